"""The same two commands from Python: settings in, the results object out.

`train(tasks=["summ", "qa"], out="runs/first")["tasks"]["qa"]["metrics"]["f1"]["value"]`
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from multitask.config import RunConfig, load, read_yaml, shipped
from multitask.errors import InputError, suggest
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
