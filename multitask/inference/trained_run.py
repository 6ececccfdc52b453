"""What the settings of a run say about its model: the tasks it was trained on, the data's columns, the closed answers.

`trained_run("runs/reviews").columns(cls)` -> `({"text": "document"},)`, as `data.sources.cls` has it.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from multitask.config.data import DataConfig, SourceConfig
from multitask.config.loading import load, read_yaml
from multitask.config.resolve import folders_of_run, trained_block_size
from multitask.data.row_schema import NO_COLUMN, closed_choices
from multitask.data.sources import resolve
from multitask.errors import InputError
from multitask.models.names import run_of
from multitask.registry import choose, load_tasks
from multitask.task import Task


class Choices(NamedTuple):
    """The answers of a closed task in one language."""

    language: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class TrainedRun:
    """A run, as its `config.yaml` describes it."""

    folder: Path
    tasks: tuple[str, ...] | None
    """What it was trained on, and before it the run that it started from; () for a model of plain text; None where the
    settings do not say."""
    window: int | None
    """Most tokens of an example in training."""
    data: DataConfig

    def check_trained(self, model: str, task: str) -> None:
        """Raises InputError for a task that the model was not trained on."""
        if self.tasks is None or task in self.tasks:
            return
        known = f"trained on {', '.join(self.tasks)}" if self.tasks else "a model of plain text, trained on no task"
        raise InputError(
            f"{model}: {known}, not on '{task}'; choose a task that it was trained on, or give --force to use its "
            "prompt all the same"
        )

    def columns(self, task: Task) -> tuple[Mapping[str, str], ...]:
        """Field -> column of each source of the task that names columns."""
        found = (
            {field: column for field, column in source.columns.items() if column != NO_COLUMN}
            for source in self._sources(task)
        )
        return tuple(columns for columns in found if columns)

    def choices(self, task: Task) -> tuple[Choices, ...]:
        """The answers of a closed task, by source and language; () for an open task."""
        if not task.is_closed:
            return ()
        found = [closed_choices(task, source) for source in self._sources(task)]
        named = (Choices(language, words) for one in found for language, words in one.items() if words)
        return tuple(dict.fromkeys(named))

    def _sources(self, task: Task) -> list[SourceConfig]:
        """The sources of a task; none where a settings file that the run names is not there any more."""
        with suppress(InputError):
            return resolve(task, self.data)
        return []


def trained_run(model: str | Path) -> TrainedRun | None:
    """The run of a model, from the run's or the model's folder; None for a model of no run."""
    folder = run_of(Path(model))
    if folder is None:
        return None
    settings, data = read_yaml(folder / "config.yaml"), DataConfig()
    with suppress(InputError):  # written by another release; generation works without it
        data = load(DataConfig, settings.get("data") or {}, where=f"{folder / 'config.yaml'}: data")
    return TrainedRun(folder, _tasks(folder, []), trained_block_size(folder), data)


def task_of_model(model: str | Path, name: str, tasks_dirs: Iterable[str | Path]) -> Task:
    """A task by name, for a model: of the folders of plugins given, or else of those that its run was trained with.

    Raises InputError for a name that no task has, and for a folder of the run's that is gone.
    """
    given, run = list(tasks_dirs), run_of(Path(model).expanduser())
    found = load_tasks(given)
    if name not in found and not given and run is not None:
        folders = folders_of_run(run)
        found = load_tasks(folders.found)
        folders.check([name], found)
    return choose(found, [name])[name]


def _tasks(folder: Path, seen: list[Path]) -> tuple[str, ...] | None:
    settings = read_yaml(folder / "config.yaml")
    own, model = settings.get("tasks", [] if "text" in settings else None), settings.get("model")
    if not isinstance(own, list):
        return None
    name = model.get("name") if isinstance(model, dict) else None
    base = run_of(Path(name)) if isinstance(name, str) else None
    before = _tasks(base, [*seen, folder]) if base is not None and base not in seen else ()
    return tuple(dict.fromkeys([*(before or ()), *own]))
