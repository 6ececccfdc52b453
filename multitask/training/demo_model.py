"""The demo model: a small GPT-2 to prompt, trained on the synthetic documents when it is first needed.

`demo_model()` -> `~/.cache/multitask/demo_base-3f2a.../`, a model folder. The name holds a hash of the recipe, of the
synthetic data and of the code that trains: after a change of any of them the model is trained again, otherwise the
folder is found and returned at once.
"""

import hashlib
import os
import shutil
from pathlib import Path

from multitask import damage, processes
from multitask.config.loading import load, read_yaml
from multitask.config.run import RunConfig
from multitask.errors import Interrupted
from multitask.events import Report, ignore
from multitask.files import cache_folder, cannot_cache, shipped, temporary
from multitask.registry import choose, fingerprint, load_tasks
from multitask.source_hash import source_hash
from multitask.task import Task
from multitask.training import finetune


def demo_model(config_name: str = "demo_model", report: Report = ignore) -> Path:
    """The folder of the demo model; the first call trains it, and reports every step.

    A training that was stopped is resumed. The folder appears under its name only when it is whole, so
    processes that train at the same time do not collide: the folder is that of the first to finish.

    A damaged folder is trained anew. To be called by every process. Raises InputError for a recipe that does not exist
    and a cache that cannot be written, KeyboardInterrupt when it is stopped, after all was saved.
    """
    path = shipped("configs") / f"{config_name}.yaml"
    config = load(RunConfig, read_yaml(path), where=str(path))
    tasks = choose(load_tasks(), config.tasks)
    folder = cache_folder(config.data) / f"{config_name}-{_key(config, tasks)}"
    if not processes.by_main(lambda: _is_there(folder, report)):
        _train(config, tasks, folder, report)
    return folder


def _is_there(folder: Path, report: Report) -> bool:
    """Whether the folder is there and whole; raises InputError where it could not be written."""
    if folder.exists() and (problem := damage.of_model(folder)):
        report({"event": "warning", "text": f"{problem.rpartition('; ')[0]}; the demo model is trained anew"})
        shutil.rmtree(folder)
    if not folder.exists():
        try:
            temporary(folder).mkdir(parents=True, exist_ok=True)
            temporary(folder).rmdir()
        except OSError as error:
            raise cannot_cache(folder, error, None) from None
    return folder.exists()


def _key(config: RunConfig, tasks: dict[str, Task]) -> str:
    """A hash of all that decides the weights."""
    recipe = [
        config.model_dump_json(exclude={"eval": True, "tasks_dirs": True, "data": {"cache"}}),
        *map(fingerprint, tasks.values()),
    ]
    return hashlib.sha256("\0".join([*recipe, source_hash("multitask.training.finetune")]).encode()).hexdigest()[:16]


def _train(config: RunConfig, tasks: dict[str, Task], folder: Path, report: Report) -> None:
    """Trains in a run folder of this process's own, from the start or from where another one stopped."""
    stopped = folder.with_name(f"{folder.name}.stopped")
    run, resumes = processes.by_main(lambda: _run_folder(folder, stopped))
    text = "the demo model is not there yet: it is trained first and kept, about 5 minutes on two CPU cores"
    report({"event": "note", "text": text})
    shown = {"start", "step", "validation", "warning"}
    progress: Report = lambda record: report(record) if record["event"] in shown else None  # noqa: E731
    try:
        finetune.train(config, tasks, run, overwrite=not resumes, resume=resumes, report=progress)
        if processes.is_main() and not folder.exists():
            (run / "model").rename(folder)
        processes.wait()
    except Interrupted:
        if processes.is_main() and not stopped.exists():
            run.rename(stopped)
        report({"event": "warning", "text": "stopped and saved; the same command continues from here"})
        raise KeyboardInterrupt from None
    finally:
        if processes.is_main():
            shutil.rmtree(run, ignore_errors=True)


def _run_folder(folder: Path, stopped: Path) -> tuple[Path, bool]:
    """The run folder, of this process's own, and whether a stopped run is in it."""
    run = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(run, ignore_errors=True)  # of a killed process that had this number
    try:
        stopped.rename(run)
    except FileNotFoundError:
        return run, False
    return run, any((run / "checkpoints").glob("step-*"))
