"""Model cards from `card.md.j2`: each task's prompt and a snippet of plain Hugging Face code, which a test runs.

`card({"summ": summ}, {"summ": {"document": "A cat sat."}})` -> Markdown with the prompt `A cat sat.<|summarize|>`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multitask.pattern import fields, render, text_of
from multitask.task import END, Task

_TEMPLATE = Path(__file__).parent / "card.md.j2"


@dataclass(frozen=True)
class _TaskRow:
    """A task's row of the table."""

    name: str
    prompt: str
    """The prompt with field names in braces: `{document}<|summarize|>`."""
    target: str
    """The name of the target field."""


def card(tasks: Mapping[str, Task], examples: Mapping[str, Mapping[str, str]], base: str | None = None) -> str:
    """The card of a model that was fine-tuned on tasks.

    examples: one row's fields of each task. base: with LoRA, where the base is, as a Python expression.
    """
    name, task = next(iter(tasks.items()))
    example = examples.get(name) or {field: "" for field in fields(task.stream)}
    rows = [
        _TaskRow(name, prompt_text(task, {field: f"{{{field}}}" for field in fields(task.stream)}), task.target)
        for name, task in tasks.items()
    ]
    return from_template(
        _TEMPLATE,
        tasks=rows,
        end=END,
        prompt=json.dumps(prompt_text(task, example), ensure_ascii=False),
        max_new_tokens=task.max_new_tokens,
        base=base,
        needs_import=False,
    )


def plain_card(prompt: str, max_new_tokens: int, needs_import: bool) -> str:
    """The card of a model of plain text.

    prompt: what the snippet continues. needs_import: whether our package has to be imported to load the model.
    """
    return from_template(
        _TEMPLATE,
        tasks=(),
        prompt=json.dumps(prompt, ensure_ascii=False),
        max_new_tokens=max_new_tokens,
        base=None,
        needs_import=needs_import,
    )


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
