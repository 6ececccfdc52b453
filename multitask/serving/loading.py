"""Runs and models that are served: loaded once, tensors that several have in common stored once.

`load_served(["runs/demo"], "cpu")` -> `Served(models={"demo": ServedModel(...)}, runs={"demo": Path("runs/demo")})`; a
LoRA run has its base beside it, as `demo-base`, unless that is one of the models.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from multitask.config.data import DataConfig
from multitask.errors import InputError
from multitask.inference.scoring import in_precision
from multitask.inference.trained_run import TrainedRun, task_of_model, trained_run
from multitask.models.io import adapter_base, load_causal, load_model
from multitask.models.lora import is_adapter, max_positions
from multitask.models.names import model_folder
from multitask.registry import load_tasks
from multitask.serving.schema import Kind
from multitask.task import Task

MAX_WINDOW = 4096
"""Most tokens of a row, of a model with more positions."""


@dataclass(frozen=True)
class ServedModel:
    """A loaded model.

    id: what requests call it. run: of a model that was trained on tasks. window: most tokens of a row. is_base: whether
    it was loaded as the base of an adapter.
    """

    id: str
    model: Any
    tokenizer: Any
    kind: Kind
    run: TrainedRun | None
    window: int
    is_base: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class ServedTask:
    """A task with the data that its examples and demonstrations are taken from."""

    task: Task
    data: DataConfig
    trained: TrainedRun | None


@dataclass(frozen=True)
class Served:
    """All that is served.

    tasks: those that the runs were trained on; without runs, the shipped ones that have plain prompts. runs: run
    folders by model id.
    """

    models: dict[str, ServedModel]
    tasks: dict[str, ServedTask]
    runs: dict[str, Path]


def load_served(
    names: Sequence[str], device: str, tasks_dirs: Iterable[str | Path] = (), report: Callable[[str], None] = print
) -> Served:
    """Loads runs, model folders and hub names; report: called with a line about each model.

    Raises InputError for one that cannot be loaded, and for two of the same name.
    """
    folders, models, runs = list(tasks_dirs), dict[str, ServedModel](), dict[str, Path]()
    tasks = dict[str, ServedTask]()
    for name in names:
        model_folder(name)  # an error before the first one is loaded
    for name in names:
        for found in _load(name, device):
            if found.id in models:
                raise InputError(f"{name}: another model is called '{found.id}' already; rename one of the folders")
            loaded = [one.model for one in models.values()]
            _share_tensors(loaded, found.model)
            if found.is_base and any(_pointers(one) == _pointers(found.model) for one in loaded):
                continue
            models[found.id] = found
            report(f"{found.id}: {sum(p.numel() for p in found.model.parameters()):,} parameters, {found.kind}")
            if found.run is not None:
                runs[found.id] = found.run.folder
                for key in found.run.tasks or ():
                    task = task_of_model(name, key, folders)
                    tasks.setdefault(key, ServedTask(task, found.run.data, found.run))
    if not tasks:
        tasks = {key: ServedTask(task, DataConfig(), None) for key, task in load_tasks(folders).items() if task.prompts}
    return Served(models, tasks, runs)


def _load(name: str, device: str) -> Iterator[ServedModel]:
    """A model, and the base of one with a LoRA adapter."""
    folder, run = Path(name).expanduser(), trained_run(Path(name).expanduser())
    short = run.folder.resolve().name if run is not None else folder.resolve().name if folder.exists() else name
    model, tokenizer = load_causal(name)
    is_lora = is_adapter(model)
    kind: Kind = "lora" if is_lora else "tuned" if run is not None and run.tasks else "prompted"
    window = min(max_positions(model) or MAX_WINDOW, MAX_WINDOW)
    made = ServedModel(short, in_precision(model.to(device).eval(), "auto"), tokenizer, kind, run, window)
    yield made
    if is_lora:
        base = load_model(adapter_base(Path(model_folder(name) or name)))
        base = in_precision(base.to(device).eval(), "auto")
        yield replace(made, id=f"{short}-base", model=base, kind="prompted", run=None, is_base=True)


@torch.no_grad()
def _share_tensors(loaded: Sequence[Any], model: Any) -> None:
    """Lets parameters of a model that have the values of a loaded one share its memory.

    That is the base of several LoRA adapters, and of an adapter and its base. The model's own copy is freed.
    """
    known: dict[tuple[object, ...], list[torch.Tensor]] = {}
    for other in loaded:
        for parameter in other.parameters():
            known.setdefault(_signature(parameter), []).append(parameter.data)
    for parameter in model.parameters():
        same = (one for one in known.get(_signature(parameter), ()) if torch.equal(one, parameter.data))
        parameter.data = next(same, parameter.data)


def _pointers(model: Any) -> set[int]:
    """Where its parameters are stored."""
    return {parameter.data_ptr() for parameter in model.parameters()}


def _signature(tensor: torch.Tensor) -> tuple[object, ...]:
    """What equal tensors have in common, cheap to compute."""
    return (tensor.dtype, tuple(tensor.shape), *tensor.flatten()[:8].tolist())
