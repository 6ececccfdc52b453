"""From whatever settings were given as to checked ones and the tasks they name; what a resumed run may change."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitask.config.loading import load, read_yaml
from multitask.config.run import PretrainConfig, RunConfig
from multitask.errors import InputError, suggest
from multitask.files import shipped
from multitask.registry import choose, load_tasks
from multitask.task import Task

if TYPE_CHECKING:
    pass


Settings = RunConfig | PretrainConfig | Mapping[str, Any] | str | Path | None


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
    "eval_max_blocks",
}
"""Settings below `train` that a resumed run may change."""


def settings_of(settings: Settings, flags: Iterable[str] = (), tasks: Iterable[str] | None = None) -> RunConfig:
    """A `RunConfig` from one, from a mapping, from a YAML file, or the default, `demo.yaml`."""
    given, where = given_settings(settings, "demo")
    if tasks is not None:
        given["tasks"] = list(tasks)
    return load(RunConfig, given, list(flags), where)


def given_settings(settings: Settings, default: str) -> tuple[dict[str, Any], str]:
    """Settings as a mapping, from whatever they were given as, and what to call them; None: a shipped file."""
    if settings is None:
        settings = shipped("configs") / f"{default}.yaml"
    if isinstance(settings, str | Path):
        path, inside = Path(settings), shipped("configs") / f"{Path(settings).stem}.yaml"
        given = read_yaml(inside if not path.exists() and inside.exists() else path)
        _check_kind(given, default, str(settings))
        return given, str(settings)
    return dict(settings if isinstance(settings, Mapping) else settings.model_dump()), "settings"


def _check_kind(given: Mapping[str, Any], default: str, where: str) -> None:
    """Raises InputError for settings of another kind of run."""
    if default == "pretrain" and "text" not in given and "tasks" in given:
        raise InputError(f"{where}: settings of `train`; for running text expected a section `text`")
    if default != "pretrain" and "text" in given and "tasks" not in given:
        raise InputError(
            f"{where}: settings of `pretrain`, of a model of running text that knows no tasks; score it with "
            "`evaluate RUN --text FILE`, tune it with `train --model RUN`, go on with `pretrain --resume RUN`"
        )


def chosen_tasks(
    settings: Settings, flags: Iterable[str], tasks: Iterable[str] | None, tasks_dirs: Iterable[str | Path]
) -> tuple[RunConfig, dict[str, Task]]:
    """Settings and the tasks that they name; raises InputError for a name that no task has."""
    config, found = settings_of(settings, flags, tasks), load_tasks(tasks_dirs)
    for name in config.data.sources:
        if name not in found:
            raise InputError(f"data.sources: unknown task '{name}'; {suggest(name, found)}")
    return config, choose(found, config.tasks)


def check_unchanged(begun: RunConfig | PretrainConfig, config: RunConfig | PretrainConfig, run: Path) -> None:
    """Raises InputError when a setting that decides weights or rows differs from those a run was begun with."""
    before, after = begun.model_dump(), config.model_dump()
    for name, unset in (("precision", "auto"), ("learning_rate", None)):  # chosen when the run was begun
        if after["train"][name] == unset:
            after["train"][name] = before["train"][name]
    parts = {"train": _FREE_IN_TRAIN, "": {"device", "eval", "train", "sample_prompt", "sample_tokens"}}
    differing = [
        f"{part}.{name}".lstrip(".")
        for part, free in parts.items()
        for name in (before[part] if part else before)
        if name not in free and (before[part] if part else before)[name] != (after[part] if part else after)[name]
    ]
    if differing:
        free = [
            f"{name}.*" if name == "eval" else name for name in ("device", "eval", "sample_prompt", "sample_tokens")
        ]
        free = [name for name in free if name.rstrip(".*") in before]
        free += [f"train.{name}" for name in sorted(_FREE_IN_TRAIN) if name in before["train"]]
        raise InputError(
            f"--resume {run}: {', '.join(differing)} cannot change in a run that was begun; keep it, or begin "
            f"another run; what may change: {', '.join(free)}"
        )
