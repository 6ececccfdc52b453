"""Model cards from `card.md.j2`: what a model is for, its data, scores and licence, and a snippet that a test runs.

`card({"summ": summ}, {"summ": {"document": "A cat sat."}})` -> Markdown with the prompt `A cat sat.<|summarize|>`. The
sections are those of huggingface_hub's own template; the metadata is written and checked by its `ModelCardData`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multitask.models.names import run_of
from multitask.pattern import fields, render, text_of
from multitask.task import END, Task

_TEMPLATE = Path(__file__).parent / "card.md.j2"
_HUB_METRICS = {
    "macro_f1": "f1",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "word_perplexity": "perplexity",
}
"""Names of the hub for ours, where they differ."""
_NO_LICENSE = (
    "not stated; choose one before the model is passed on (`run.py push RUN NAME --license apache-2.0`), and mind the "
    "licences of the data"
)


@dataclass(frozen=True)
class License:
    """A licence as the hub's metadata has it; name and link where the identifier is `other`."""

    id: str
    name: str | None = None
    link: str | None = None

    def text(self) -> str:
        """As the card says it."""
        shown = self.name or self.id
        return f"[{shown}]({self.link})" if self.link else shown


@dataclass(frozen=True)
class Base:
    """What a model was fine-tuned from."""

    name: str
    hub_id: str | None = None
    """The hub model that it is, or was made from itself."""
    license: License | None = None
    folder: Path | None = None
    """Of a local model; its licence texts go with the model."""


@dataclass(frozen=True)
class DataFacts:
    """What a task was trained on."""

    task: str
    names: tuple[str, ...]
    """Names of files without their folders, or of sets of the hub."""
    num_rows: int | None = None
    hub_sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreFacts:
    """A score of a task."""

    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    split: str
    num_rows: int
    names: tuple[str, ...]
    """Of the files or sets that were scored."""
    baseline: str | None = None
    """The best baseline and its score, as text."""

    @property
    def interval(self) -> str:
        """As the card shows it."""
        return f"{self.low:.3f} - {self.high:.3f}" if self.low is not None and self.high is not None else ""


@dataclass(frozen=True)
class CardFacts:
    """What a run says about its model."""

    name: str
    base: Base | None = None
    languages: tuple[str, ...] = ()
    license: License | None = None
    """Of the model; None: its base's."""
    data: tuple[DataFacts, ...] = ()
    scores: tuple[ScoreFacts, ...] = ()
    training: tuple[tuple[str, str], ...] = ()
    """Further lines of the details: label and value."""

    def metadata(self, is_adapter: bool) -> ModelCardData:
        """The head of the card; raises ValueError for what the hub's metadata cannot hold."""
        terms = self.license or (self.base.license if self.base is not None else None)
        results = [
            EvalResult(
                task_type="text-generation",
                task_name=score.task,
                dataset_type=re.sub(r"[^\w./-]+", "-", score.names[0] if score.names else score.task),
                dataset_name=", ".join(score.names) or score.task,
                dataset_split=score.split,
                metric_type=_HUB_METRICS.get(score.metric, score.metric),
                metric_name=score.metric,
                metric_value=round(score.value, 6),
            )
            for score in self.scores
        ]
        tasks = [score.task for score in self.scores] or [row.task for row in self.data]
        return ModelCardData(
            library_name="peft" if is_adapter else "transformers",
            pipeline_tag="text-generation",
            base_model=self.base.hub_id if self.base is not None else None,
            language=list(self.languages) or None,
            license=terms.id if terms is not None else None,
            license_name=terms.name if terms is not None else None,
            license_link=terms.link if terms is not None else None,
            datasets=sorted({name for row in self.data for name in row.hub_sets}) or None,
            metrics=sorted({result.metric_type for result in results}) or None,
            tags=["multitask", *dict.fromkeys(tasks)],
            model_name=self.name if results else None,
            eval_results=results or None,
        )


def base_of(name: str | None) -> Base | None:
    """What is known of a base from its card, in its folder or in the hub's cache; None: there was none."""
    if name is None:
        return None
    folder = Path(name)
    is_local = folder.is_dir()
    inside = folder / "model" / "README.md"
    found = (inside if inside.is_file() else folder / "README.md") if is_local else None
    if not is_local:
        cached = try_to_load_from_cache(name, "README.md")
        found = Path(cached) if isinstance(cached, str) else None
    run = run_of(folder) if is_local else None
    shown = (run or folder).resolve().name if is_local else name
    known = Base(shown, None if is_local else name, folder=found.parent if is_local and found is not None else None)
    if found is None or not found.is_file():
        return known
    try:
        data = ModelCard.load(found, ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError):  # its metadata cannot be read
        return known
    inherited = data.base_model if isinstance(data.base_model, str) else None
    terms = License(data.license, data.license_name, data.license_link) if isinstance(data.license, str) else None
    return replace(known, hub_id=inherited if is_local else name, license=terms)


@dataclass(frozen=True)
class _TaskRow:
    """A task's row of the table."""

    name: str
    prompt: str
    """The prompt with field names in braces: `{document}<|summarize|>`."""
    target: str
    """The name of the target field."""


def card(
    tasks: Mapping[str, Task],
    examples: Mapping[str, Mapping[str, str]],
    base: str | None = None,
    facts: CardFacts | None = None,
) -> str:
    """The card of a model that was fine-tuned on tasks.

    examples: one row's fields of each task. base: with LoRA, where the base is, as a Python expression. facts: None
    before the model was scored.
    """
    name, task = next(iter(tasks.items()))
    example = examples.get(name) or {field: "" for field in fields(task.stream)}
    rows = [
        _TaskRow(name, prompt_text(task, {field: f"{{{field}}}" for field in fields(task.stream)}), task.target)
        for name, task in tasks.items()
    ]
    prompt = json.dumps(prompt_text(task, example), ensure_ascii=False)
    return _card(rows, facts or CardFacts("-".join(tasks)), prompt, task.max_new_tokens, base, needs_import=False)


def plain_card(prompt: str, max_new_tokens: int, needs_import: bool, facts: CardFacts | None = None) -> str:
    """The card of a model of plain text.

    prompt: what the snippet continues. needs_import: whether our package has to be imported to load the model.
    """
    shown = json.dumps(prompt, ensure_ascii=False)
    return _card([], facts or CardFacts("language model"), shown, max_new_tokens, None, needs_import)


def _card(
    tasks: list[_TaskRow], facts: CardFacts, prompt: str, max_new_tokens: int, base: str | None, needs_import: bool
) -> str:
    terms = facts.license or (facts.base.license if facts.base is not None else None)
    text = from_template(
        _TEMPLATE,
        metadata=facts.metadata(is_adapter=base is not None).to_yaml(),
        name=facts.name,
        tasks=tasks,
        end=END,
        base_text=_base_text(facts.base),
        languages=facts.languages,
        license_text=_license_text(facts.base, facts.license, terms),
        training=facts.training,
        data=facts.data,
        scores=facts.scores,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        base=base,
        needs_import=needs_import,
    )
    ModelCard(text)  # raises ValueError where the hub could not read the metadata
    return text


def _base_text(base: Base | None) -> str:
    if base is None:
        return "none, trained from random weights"
    if base.hub_id == base.name:
        return f"[{base.name}](https://huggingface.co/{base.name})"
    return f"{base.name}, a local model" + (f" made from {base.hub_id}" if base.hub_id is not None else "")


def _license_text(base: Base | None, own: License | None, terms: License | None) -> str:
    if terms is not None:
        return terms.text() if own is not None else f"{terms.text()}, that of the base"
    return _NO_LICENSE if base is None or base.hub_id is None else "not stated here; that of the base, see its card"


def with_license(facts: CardFacts, license: str | None) -> CardFacts:
    """The facts with another licence; None: as they are."""
    return facts if license is None else replace(facts, license=License(license))


def hub_card(text: str, repo_id: str, license: str | None, is_merged: bool) -> str:
    """A run's card as it is uploaded: the snippet names the repository, and a licence may be given.

    is_merged: an adapter was merged into its base; the snippet then loads a plain model.
    """
    found = ModelCard(text)
    data: Any = found.data
    body = found.text.replace('FOLDER = "."  # this folder', f'FOLDER = "{repo_id}"')
    if license is not None:
        data.license, data.license_name, data.license_link = license, None, None
        body = re.sub(r"(?m)^- Licence: .*$", f"- Licence: {license}", body)
    if is_merged:
        data.library_name = "transformers"
        body = body.replace("from peft import PeftModel\n", "")
        body = body.replace("model = PeftModel.from_pretrained(model, FOLDER)\n", "")
        plain = "model = AutoModelForCausalLM.from_pretrained(FOLDER)"
        body = re.sub(r"(?m)^model = AutoModelForCausalLM.*$", plain, body)
    return f"---\n{data.to_yaml()}\n---\n{body}"


def from_template(template: Path, **values: object) -> str:
    """A Markdown text from a jinja2 template; a value that it names and is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["bars"] = lambda text: text.replace("|", "\\|")
    return environment.get_template(template.name).render(values)


def prompt_text(task: Task, values: Mapping[str, str]) -> str:
    """The prompt string; the literal text before the target belongs to the target."""
    return text_of(render(task, values, with_target=False))
