"""The same two commands from Python: settings in, the results object out.

`train(tasks=["summ", "qa"], out="runs/first")["tasks"]["qa"]["metrics"]["f1"]["value"]`
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from multitask.config import BenchmarkConfig, RunConfig, load, read_yaml, shipped
from multitask.errors import InputError, Interrupted, suggest
from multitask.registry import choose, load_tasks
from multitask.task import Task

Report = Callable[[dict[str, Any]], None]
Settings = RunConfig | Mapping[str, Any] | str | Path | None


_FREE_IN_TRAIN = {
    "epochs",
    "max_steps",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "log_every_steps",
    "eval_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "patience",
    "tracker",
}
"""Settings below `train` that a resumed run may change."""


def settings_of(settings: Settings, flags: Iterable[str] = (), tasks: Iterable[str] | None = None) -> RunConfig:
    """A `RunConfig` from one, from a mapping, from a YAML file, or from nothing: the embedded default, `world.yaml`."""
    where = "settings"
    if isinstance(settings, RunConfig):
        settings = settings.model_dump()
    elif isinstance(settings, str | Path):
        where = str(settings)
        path, inside = Path(settings), shipped("configs") / f"{Path(settings).stem}.yaml"
        settings = read_yaml(inside if not path.exists() and inside.exists() else path)
    elif settings is None:
        where = str(shipped("configs") / "world.yaml")
        settings = read_yaml(Path(where))
    given = dict(settings)
    if tasks is not None:
        given["tasks"] = list(tasks)
    return load(RunConfig, given, list(flags), where)


def _chosen(
    settings: Settings, flags: Iterable[str], tasks: Iterable[str] | None, tasks_dirs: Iterable[str | Path]
) -> tuple[RunConfig, dict[str, Task]]:
    """Settings and the tasks that they name; raises InputError for a name that no task has."""
    config, found = settings_of(settings, flags, tasks), load_tasks(tasks_dirs)
    for name in config.data.sources:
        if name not in found:
            raise InputError(f"data.sources: unknown task '{name}'; {suggest(name, found)}")
    return config, choose(found, config.tasks)


def _check_unchanged(begun: RunConfig, config: RunConfig, run: Path) -> None:
    """Raises InputError when a setting that decides weights or rows differs from those a run was begun with."""
    before, after = begun.model_dump(), config.model_dump()
    for name, unset in (("precision", "auto"), ("learning_rate", None)):  # chosen when the run was begun
        if after["train"][name] == unset:
            after["train"][name] = before["train"][name]
    parts = {"train": _FREE_IN_TRAIN, "": {"device", "eval", "train"}}
    differing = [
        f"{part}.{name}".lstrip(".")
        for part, free in parts.items()
        for name in (before[part] if part else before)
        if name not in free and (before[part] if part else before)[name] != (after[part] if part else after)[name]
    ]
    if differing:
        free_names = ", ".join(f"train.{name}" for name in sorted(_FREE_IN_TRAIN))
        raise InputError(
            f"--resume {run}: {', '.join(differing)} cannot change in a run that was begun; keep it, or begin "
            f"another run; what may change: device, eval.*, {free_names}"
        )


def train(
    settings: Settings = None,
    *,
    tasks: Iterable[str] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = lambda record: None,
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
        if overwrite:
            raise InputError("--resume goes on with a run, --overwrite replaces it; give one of the two")
        if out is not None and Path(out) != Path(resume):
            raise InputError(f"--resume {resume} goes on in that folder, --out {out} names another; leave out --out")
        out = Path(resume)
        if not (out / "config.yaml").exists():
            raise InputError(f"{out}: not a run folder (no config.yaml); name the folder that train wrote")
        settings = settings if settings is not None else out / "config.yaml"
    config, chosen = _chosen(settings, flags, tasks, tasks_dirs)
    if out is not None and resume is not None:
        _check_unchanged(settings_of(Path(out) / "config.yaml"), config, Path(out))
    folder = Path(out) if out is not None else Path("runs") / f"{'-'.join(chosen)}-{time.strftime('%Y%m%d-%H%M%S')}"
    from multitask.training import train as run  # heavy: after everything that can be wrong with names and settings

    return run(config, chosen, folder, overwrite=overwrite, resume=resume is not None, report=report)


def evaluate(
    model: str | Path,
    settings: Settings = None,
    *,
    tasks: Iterable[str] | None = None,
    out: str | Path | None = None,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = lambda record: None,
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
    config, chosen = _chosen(settings, flags, tasks, tasks_dirs)
    from multitask.device import choose_device
    from multitask.evaluation import evaluate as run
    from multitask.model import load_trained

    loaded, tokenizer = load_trained(path)
    loaded.to(choose_device(config.device))
    return run(loaded, tokenizer, str(model), chosen, config, Path(out) if out is not None else None, report)


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
    from multitask.evaluation import envelope, write_results
    from multitask.loss import plain_model
    from multitask.model import load_causal
    from multitask.running import perplexity_of_text

    config = load(RunConfig, {"device": device})
    loaded, tokenizer = load_causal(str(model))
    loaded.to(choose_device(config.device))
    window = window or getattr(plain_model(loaded).config, "max_position_embeddings", None) or 1024
    found = perplexity_of_text(loaded, tokenizer, Path(text), window, stride or window, batch_tokens)
    results = envelope(config, "evaluate", "text", {"name": str(model)}) | {"text": {"file": str(text), **found}}
    if out is not None:
        write_results(Path(out), results)
    return results


def fewshot(
    model: str | Path | None = None,
    settings: Settings = None,
    *,
    tasks: Iterable[str] | None = None,
    out: str | Path | None = None,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = lambda record: None,
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
    config, chosen = _chosen(settings, flags, tasks, tasks_dirs)
    from multitask.base import base_model
    from multitask.device import choose_device
    from multitask.fewshot import fewshot as run
    from multitask.model import load_causal

    name = str(model or config.model.name or base_model(report=report))
    loaded, tokenizer = load_causal(name, config.model.revision)
    loaded.to(choose_device(config.device))
    return run(loaded, tokenizer, name, chosen, config, Path(out) if out is not None else None, report)


def benchmark(
    settings: str | Path,
    *,
    out: str | Path | None = None,
    arms: Iterable[str] | None = None,
    dry_run: bool = False,
    tasks_dirs: Iterable[str | Path] = (),
    flags: Iterable[str] = (),
    report: Report = lambda record: None,
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
    from multitask import benchmark as runner
    from multitask.report import report as write_report

    only = list(arms) if arms is not None else None
    if dry_run:
        return {"arms": list(runner.dry_run(suite, chosen, str(path), only))}
    try:
        done = runner.benchmark(suite, chosen, folder, str(path), only, report)
    except Interrupted:
        raise Interrupted(str(folder)) from None
    write_report([folder], folder)
    return {"arms": done, "report": str(folder / "report.html")}


def report(runs: Iterable[str | Path], out: str | Path, against: str | None = None) -> dict[str, Any]:
    """Writes `report.md`, `report.json`, `report.html` of run folders, results files, suites; returns the numbers.

    against: the arm that all others are tested against; None: the first one. Raises InputError for files that are no
    results, or that cannot be compared.
    """
    from multitask.report import report as write

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
    config, chosen = _chosen(settings, flags, tasks, tasks_dirs)
    from rich.console import Console

    from multitask.preview import preview as run

    run(config, chosen, num_rows, Console())
