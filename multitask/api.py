"""The same two commands from Python: settings in, the results object out.

`train(tasks=["summ", "qa"], out="runs/first")["tasks"]["qa"]["metrics"]["f1"]["value"]`
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitask.config.data import TextConfig
from multitask.config.evaluation import SamplingConfig
from multitask.config.loading import load, read_yaml
from multitask.config.model import TokenizerConfig
from multitask.config.resolve import Settings, check_unchanged, chosen_tasks, given_settings, settings_of
from multitask.config.run import BenchmarkConfig, PretrainConfig, RunConfig
from multitask.errors import InputError, Interrupted
from multitask.events import Report, ignore
from multitask.files import shipped
from multitask.pattern import markers
from multitask.registry import choose, load_tasks

if TYPE_CHECKING:
    from multitask.inference.generator import Generator
    from multitask.inference.prompt_input import PromptInput


_DOCUMENTS = {"train": 10_000, "validation": 1_000}
"""Of the embedded world, that a tokenizer learns from and is measured on."""


def train(
    settings: Settings = None,
    *,
    tasks: Iterable[str] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = ignore,
) -> dict[str, Any]:
    """Trains one model on several tasks; returns what `results.json` of the run folder holds.

    Args:
        settings: a `RunConfig`, a mapping, a YAML file (or the name of a shipped one); None: the embedded default.
        tasks: task names; None: those of the settings.
        out: run folder; None: `runs/<tasks>-<date>-<time>`.
        resume: a run folder to continue, with its own settings.
        overwrite: replace a run that `out` holds.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `train.learning_rate=3e-4`.
        report: called with progress records.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    if resume is not None:
        out = _resumed(resume, out, overwrite)
        settings = settings if settings is not None else out / "config.yaml"
    config, chosen = chosen_tasks(settings, flags, tasks, tasks_dirs)
    if out is not None and resume is not None:
        check_unchanged(settings_of(Path(out) / "config.yaml"), config, Path(out))
    folder = Path(out) if out is not None else Path("runs") / f"{'-'.join(chosen)}-{time.strftime('%Y%m%d-%H%M%S')}"
    from multitask.training.finetune import (
        train as run,  # heavy: after everything that can be wrong with names and settings
    )

    return run(config, chosen, folder, overwrite=overwrite, resume=resume is not None, report=report)


def _resumed(resume: str | Path, out: str | Path | None, overwrite: bool) -> Path:
    """The run folder that a resumed run goes on in; raises InputError for arguments that contradict one another."""
    if overwrite:
        raise InputError("--resume goes on with a run, --overwrite replaces it; give one of the two")
    if out is not None and Path(out) != Path(resume):
        raise InputError(f"--resume {resume} goes on in that folder, --out {out} names another; leave out --out")
    if not (Path(resume) / "config.yaml").exists():
        raise InputError(f"{resume}: not a run folder (no config.yaml); name the folder that train or pretrain wrote")
    return Path(resume)


def pretrain(
    settings: Settings = None,
    *,
    files: Iterable[str | Path] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    find_learning_rate: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = ignore,
) -> dict[str, Any]:
    """Trains a model on running text; returns what `results.json` of the run folder holds.

    Args:
        settings: a `PretrainConfig`, a mapping, a YAML file (or the name of a shipped one); None: `pretrain.yaml`.
        files: the text, in place of that of the settings.
        out: run folder; None: `runs/pretrain-<date>-<time>`.
        resume: a run folder to continue, with its own settings.
        overwrite: replace a run that `out` holds.
        find_learning_rate: instead of training, try learning rates; returns `suggested` and the curve.
        tasks_dirs: folders with further task plugins, whose tokens a tokenizer trained here gets.
        flags: settings by dotted name, `model.shape=mini`.
        report: called with progress records.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    if resume is not None:
        out = _resumed(resume, out, overwrite)
        settings = settings if settings is not None else out / "config.yaml"
    given, where = given_settings(settings, "pretrain")
    if names := [str(name) for name in files]:
        kept = {
            name: value for name, value in dict(given.get("text") or {}).items() if name not in ("files", "synthetic")
        }
        given["text"] = {"root": str(Path.cwd()), **kept, "files": {"train": names}}
        if settings is None:  # that of the world is made for the world
            given.pop("tokenizer", None)
    config = load(PretrainConfig, given, list(flags), where)
    if resume is not None:
        begun = load(PretrainConfig, read_yaml(Path(resume) / "config.yaml"), where=f"{resume}/config.yaml")
        check_unchanged(begun, config, Path(resume))
    found = load_tasks(tasks_dirs)
    named = config.tokenizer.tasks if resume is None else "none"  # the tokenizer is there
    tasks = found if named == "all" else {} if named == "none" else choose(found, named)
    folder = Path(out) if out is not None else Path("runs") / f"pretrain-{time.strftime('%Y%m%d-%H%M%S')}"
    from multitask.training import lr_finder
    from multitask.training import pretrain as runner

    if find_learning_rate:
        if resume is not None or overwrite:
            raise InputError("--find-lr trains nothing: leave out --resume and --overwrite, and name a new --out")
        return lr_finder.find_learning_rate(config, tasks, folder, report)
    return runner.pretrain(config, tasks, folder, overwrite=overwrite, resume=resume is not None, report=report)


def evaluate(
    model: str | Path,
    settings: Settings = None,
    *,
    tasks: Iterable[str] | None = None,
    out: str | Path | None = None,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = ignore,
) -> dict[str, Any]:
    """Scores a model folder or run on its tasks' rows; returns what the results file holds.

    Args:
        model: a run folder, or a model folder that a run wrote.
        settings: as in `train`; None: the run's own, or else the embedded default.
        tasks: task names; None: those of the settings.
        out: results file; predictions go to `<out>.predictions/`. None: nothing is written.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `eval.max_rows=100`.
        report: called with progress records.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    path = Path(model)
    homes = [folder / "config.yaml" for folder in (path, path.parent) if (folder / "config.yaml").exists()]
    if settings is None and homes:
        settings = homes[0]
    config, chosen = chosen_tasks(settings, flags, tasks, tasks_dirs)
    from multitask.device import choose_device
    from multitask.evaluation.tuned import evaluate as run
    from multitask.models.io import load_trained

    loaded, tokenizer = load_trained(path)
    loaded.to(choose_device(config.device))
    kept = (homes[0].parent if homes else path) / "baselines"
    results = run(loaded, tokenizer, str(model), chosen, config, Path(out) if out is not None else None, report, kept)
    return results.to_json()


def evaluate_text(
    model: str | Path,
    text: str | Path,
    window: int | None = None,
    stride: int | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    batch_tokens: int = 8192,
) -> dict[str, Any]:
    """Perplexity of a running text in overlapping windows; returns `{"text": {...}}` with what it was measured with.

    Args:
        model: a run or model folder, or the hub name of any causal language model.
        text: a UTF-8 file.
        window: tokens that the model sees at a time; None: as many as it has positions.
        stride: tokens between two windows; None: the window, no overlap.
        out: results file. None: nothing is written.
        device: auto, cpu, cuda or mps.
        batch_tokens: tokens of one forward pass.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    from multitask.device import choose_device
    from multitask.evaluation.results_file import results_of, write_results
    from multitask.evaluation.schema import Data, PlainText, Score, TaskScores
    from multitask.files import sha256_of
    from multitask.inference.perplexity import perplexity_of_text
    from multitask.models.io import load_causal
    from multitask.models.lora import plain_model

    config = load(RunConfig, {"device": device})
    loaded, tokenizer = load_causal(str(model))
    loaded.to(choose_device(config.device))
    window = window or getattr(plain_model(loaded).config, "max_position_embeddings", None) or 1024
    found = perplexity_of_text(loaded, tokenizer, Path(text), window, stride or window, batch_tokens)
    measured = {name: Score(value=found[name]) for name in ("perplexity", "word_perplexity", "bits_per_byte")}
    scores = TaskScores(num_examples=int(found["num_windows"]), metrics=measured, baselines={})
    data = Data(files=[str(text)], sha256=[sha256_of([Path(text)])], split="text", num_rows=1)
    plain_text = PlainText.model_validate({"file": str(text), **found})
    parts = config, "evaluate", Path(model).name, str(model), {"text": data}, {"text": scores}
    results = results_of(*parts, text=plain_text)
    if out is not None:
        write_results(Path(out), results)
    return results.to_json()


def fewshot(
    model: str | Path | None = None,
    settings: Settings = None,
    *,
    tasks: Iterable[str] | None = None,
    out: str | Path | None = None,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = ignore,
) -> dict[str, Any]:
    """Prompts a model with solved examples, without training it; returns what the results file holds.

    Args:
        model: a hub name or folder of any causal language model; None: the settings' `model.name`, or else the
            embedded base, which is trained first (minutes) and kept.
        settings: as in `train`; None: `configs/fewshot.yaml`, fewer rows of the embedded default.
        tasks: task names; None: those of the settings.
        out: results file; predictions go to `<out>.predictions/`. None: nothing is written.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `fewshot.shots=[0,4]`.
        report: called with progress records.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    if settings is None:
        settings = shipped("configs") / "fewshot.yaml"
    config, chosen = chosen_tasks(settings, flags, tasks, tasks_dirs)
    from multitask.device import choose_device
    from multitask.evaluation.fewshot import fewshot as run
    from multitask.models.io import load_causal
    from multitask.training.demo_model import demo_model

    name = str(model or config.model.name or demo_model(report=report))
    loaded, tokenizer = load_causal(name, config.model.revision)
    loaded.to(choose_device(config.device))
    return run(loaded, tokenizer, name, chosen, config, Path(out) if out is not None else None, report).to_json()


def benchmark(
    settings: str | Path,
    *,
    out: str | Path | None = None,
    arms: Iterable[str] | None = None,
    dry_run: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = ignore,
) -> dict[str, Any]:
    """Runs the arms of a suite that are missing, then its report; returns `{"arms": [...], "report": folder}`.

    Args:
        settings: a YAML file (or the name of a shipped one), read as `BenchmarkConfig`.
        out: folder of the suite; None: `runs/<name of the file>`, so that the same command goes on.
        arms: names of arms; None: all.
        dry_run: run nothing; each arm has `tokens` and `seconds`, an estimate.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `run.train.epochs=2`.
        report: called with progress records.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    path = Path(settings)
    inside = shipped("configs") / f"{path.stem}.yaml"
    path = inside if not path.exists() and inside.exists() else path
    suite = load(BenchmarkConfig, read_yaml(path), list(flags), str(path))
    shared = load(RunConfig, suite.run, where=f"{path}: run")
    chosen = choose(load_tasks(tasks_dirs), shared.tasks)
    folder = Path(out) if out is not None else Path("runs") / path.stem
    from multitask.reports import benchmark as runner
    from multitask.reports import benchmark_estimate
    from multitask.reports.report import report as write_report

    only = list(arms) if arms is not None else None
    if dry_run:
        return {"arms": list(benchmark_estimate.dry_run(suite, chosen, str(path), only))}
    try:
        done = runner.benchmark(suite, chosen, folder, str(path), only, report)
    except Interrupted:
        raise Interrupted(str(folder)) from None
    write_report([folder], folder)
    return {"arms": done, "report": str(folder / "report.html")}


def generator(
    model: str | Path,
    task: str | None = None,
    *,
    max_new_tokens: int | None = None,
    tasks_dirs: Iterable[str | Path] = (),
    device: str = "auto",
    report: Report = ignore,
    **sampling: Any,
) -> "Generator":
    """A loaded model that writes, once or many times; arguments as in `generate`."""
    settings, config = load(SamplingConfig, sampling, where="sampling"), load(RunConfig, {"device": device})
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    chosen = choose(load_tasks(tasks_dirs), [task])[task] if task is not None else None
    from multitask.device import choose_device
    from multitask.inference.generator import Generator
    from multitask.models.io import load_causal

    loaded, tokenizer = load_causal(str(model))
    loaded.to(choose_device(config.device))
    window = trained_block_size(Path(model)) if task is not None else None
    return Generator(loaded, tokenizer, str(model), settings, chosen, max_new_tokens, window, report=report)


def trained_block_size(model: Path) -> int | None:
    """The window that a run was trained with, if the model is one's: its prompts are truncated as for scoring."""
    homes = [folder / "config.yaml" for folder in (model, model.parent) if (folder / "config.yaml").exists()]
    taught = read_yaml(homes[0]).get("train") if homes else None
    return (taught.get("block_size") or taught.get("batch_tokens")) if isinstance(taught, dict) else None


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
    tasks_dirs: Iterable[str | Path] = (),
    device: str = "auto",
    report: Report = ignore,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """Lets a model write; returns a record for each text, as `out` holds them.

    Args:
        model: a run or model folder, or the hub name of any causal language model.
        prompts: one or several: free text, or with `task` mappings of its fields.
        task: its prompts are encoded as in training, and its answers parsed; None: free text goes on until an end.
        max_new_tokens: most tokens of a text; None: the task's; of free text 100, or as many as fit the window.
        explain: of each step so many of the likeliest tokens, before and after reshaping, as `steps`.
        picture: a PNG of that, of one text.
        out: JSON lines. None: nothing is written.
        stream: called with parts of the one text as it is written.
        tasks_dirs: folders with further task plugins.
        device: auto, cpu, cuda or mps.
        report: called with warnings: what was truncated, what the tokenizer cannot write.
        sampling: as in `SamplingConfig`: temperature, top_k, top_p, repetition_penalty, beams, num_samples, seed.

    Raises:
        InputError: something given cannot be used; the message says what to do. Nothing is written then.
    """
    from multitask.files import check_writable, write_lines
    from multitask.inference.prompt_input import PromptInput

    given = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
    if not given:
        raise InputError("there are no prompts, expected at least one")
    asked = [one if isinstance(one, PromptInput) else PromptInput(one, f"prompt {n}") for n, one in enumerate(given, 1)]
    if picture is not None and (len(asked) != 1 or sampling.get("num_samples", 1) != 1):
        raise InputError("--picture draws the steps of one text; give one prompt, and one sample of it")
    if out is not None:
        check_writable(Path(out))
    named: dict[str, Any] = {"max_new_tokens": max_new_tokens, "tasks_dirs": tasks_dirs, "device": device}
    writer = generator(model, task, **named, report=report, **sampling)
    records = writer.write(asked, explain or (5 if picture is not None else 0), stream)
    if picture is not None:
        from multitask.training.plots import draw_steps

        try:
            is_readable = draw_steps(records[0]["steps"], Path(picture))
        except (OSError, ValueError) as error:  # no such folder, or an extension that matplotlib does not know
            raise InputError(f"{picture}: cannot be drawn ({error}); name a file ending in .png") from None
        if not is_readable:
            text = f"{picture}: no font here has all its characters; install one, for instance Noto Sans CJK"
            report({"event": "warning", "text": text})
    if out is not None:
        write_lines(Path(out), records)
    return records


def import_openai(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Turns OpenAI's checkpoint of a GPT-2 into a Hugging Face folder; returns the number of tensors and the shape.

    source: the folder with `checkpoint`, `encoder.json`, `hparams.json`, `model.ckpt.*` and `vocab.bpe`. TensorFlow is
    not needed. Raises InputError for a file that is missing or damaged; nothing is written then.
    """
    from multitask.models.openai.weights import import_openai as run

    return run(Path(source), Path(out))


def report(runs: Iterable[str | Path], out: str | Path, against: str | None = None) -> dict[str, Any]:
    """Writes `report.md`, `report.json`, `report.html` of run folders, results files, suites; returns the numbers.

    against: the arm that all others are tested against; None: the first one. Raises InputError for files that are no
    results, or that cannot be compared.
    """
    from multitask.reports.report import report as write

    return write([Path(run) for run in runs], Path(out), against)


def preview(
    settings: Settings = None,
    *,
    tasks: Iterable[str] | None = None,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    num_rows: int = 3,
) -> None:
    """Prints what `train` with the same arguments would see; raises InputError as it would."""
    config, chosen = chosen_tasks(settings, flags, tasks, tasks_dirs)
    from rich.console import Console

    from multitask.cli.preview import preview as run

    run(config, chosen, num_rows, Console())


def tokenizer(
    files: Iterable[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    text: Mapping[str, Any] | None = None,
    held_out: str | Path | None = None,
    source: str | Path | None = None,
    export: str | Path | None = None,
    overwrite: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    report: Report = ignore,
) -> dict[str, Any]:
    """Trains a tokenizer, or takes one from `vocab.json` and `merges.txt`; returns what its report file holds.

    Args:
        files: what it is trained on: plain text or JSONL, `.gz` may follow; none: the embedded world's documents.
        settings: values of `TokenizerConfig`.
        out: folder that it is written to.
        text: further values of `TextConfig`: `fields`, `encoding`, `format`, `validation`.
        held_out: file that it is measured on; None: the end of the text, which it is not trained on then.
        source: folder with `vocab.json` and `merges.txt`; nothing is trained.
        export: folder that these two files of the result are written to.
        overwrite: replace a tokenizer that `out` holds.
        tasks_dirs: folders with further task plugins.
        report: called with progress records.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    config = load(TokenizerConfig, dict(settings or {}), where="tokenizer")
    found = load_tasks(tasks_dirs)
    named = list(found) if config.tasks == "all" else [] if config.tasks == "none" else config.tasks
    special = markers(choose(found, named))
    train, validation = [str(file) for file in files], [] if held_out is None else [str(held_out)]
    if train:
        origin: dict[str, Any] = {"files": {"train": train, **({"validation": validation} if validation else {})}}
    elif held_out is not None:
        raise InputError(f"--held-out {held_out}: name the files that the tokenizer is trained on, too")
    else:
        origin = {"synthetic": _DOCUMENTS}
    if all(Path(name).exists() for name in train + validation):  # rather than below MULTITASK_DATA
        origin["root"] = "."
    texts = load(TextConfig, {**origin, **(text or {})}, where="text")
    from multitask.tokenization.train import tokenizer as run

    return run(
        config,
        texts,
        special,
        Path(out),
        source=Path(source) if source is not None else None,
        export=Path(export) if export is not None else None,
        overwrite=overwrite,
        report=report,
    )
