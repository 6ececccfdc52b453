"""A run's folder and its processes: what every kind of training does before its first and after its last step.

`with open_run(config, out, overwrite=False, resume=False) as run:` -> the settings with all that was chosen for them,
an accelerator, and a folder `runs/NAME` with `config.yaml` in it.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType

from multitask import processes
from multitask.config.loading import RUN_END, RUN_START, written_yaml
from multitask.config.run import PretrainConfig, RunConfig
from multitask.device import choose_device, choose_precision
from multitask.errors import InputError, suggest
from multitask.files import cache_folder, relative_if_near, write_text
from multitask.launch import require_whole_models
from multitask.models.names import model_folder
from multitask.training import checkpoint
from multitask.training.loop import Loop

Config = TypeVar("Config", RunConfig, PretrainConfig)

_SMALLEST_GPT2 = 768  # its width
_WRITTEN = (
    "config.yaml",
    "model",
    "base",
    "checkpoints",
    "metrics.jsonl",
    "loss.png",
    "results.json",
    "predictions",
    "baselines",
)
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_REPLACED = ".replaced-by-multitask"  # below the run that --overwrite replaces, until all input is read
_REMOVED = ".removed-by-multitask"  # the same, while it is removed


def start(config: Config, out: Path, overwrite: bool, resume: bool | Path) -> tuple[Config, Path, Accelerator]:
    """Creates the run folder and writes `config.yaml` into it: every setting as used.

    Raises InputError when the folder holds something else, or when a setting needs what this machine does not have.
    """
    config = with_learning_rate(config)
    accelerator, precision, out = _engine(config, out, resume)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    if accelerator.is_main_process:
        _create_folder(config, out, overwrite, resume)
        kept = config.model_dump(mode="json")
        if isinstance(config, RunConfig):
            kept["tasks_dirs"] = [relative_if_near(Path(folder), out) for folder in config.tasks_dirs]
        settings = written_yaml(kept)
        try:
            write_text(out / "config.yaml", RUN_START + "\n" + settings + RUN_END + "\n")
        except BaseException:
            if not resume:
                _restore_replaced(out)
            raise
    accelerator.wait_for_everyone()
    return config, out, accelerator


@dataclass
class Run(Generic[Config]):
    """A run under way: its settings with all that was chosen for them, its folder, its processes."""

    config: Config
    out: Path
    accelerator: Accelerator
    resumes: bool | Path
    """True: from the newest checkpoint; a path: from this one."""
    is_committed: bool = False

    def commit(self, loop: Loop) -> None:
        """Called when all input was read and found right: from here on the run that it replaces is gone.

        A resumed run continues from a checkpoint, and newer ones are removed; raises InputError when it does not fit.
        """
        if self.resumes:
            path = _checkpoint(self.out, self.resumes)
            loop.restore(path)
            if self.accelerator.is_main_process and (removed := checkpoint.remove_after(path)):
                text = f"resumed from step {checkpoint.step_of(path)}; newer checkpoints removed: {', '.join(removed)}"
                loop.report({"event": "warning", "text": text})
        if self.accelerator.is_main_process:
            _discard(self.out)
        self.is_committed = True


@contextmanager
def open_run(config: Config, out: Path, overwrite: bool, resume: bool | Path) -> Iterator[Run[Config]]:
    """A run's folder; `config.yaml` is in it.

    Whatever stops the run before `Run.commit`: what was written is removed again, and the run that it was to replace is
    back. Raises InputError as `start` does.
    """
    with processes.together(choose_device(config.device)):  # no process leaves the group while another one needs it
        run = Run(*start(config, out, overwrite, resume), resume)
        try:
            yield run
        except BaseException:
            if run.accelerator.is_main_process and not resume and not run.is_committed:
                _restore_replaced(run.out)  # once the input is right, the same command works
            raise
        for tracker in run.accelerator.trackers:
            tracker.finish()


def _engine(config: RunConfig | PretrainConfig, out: Path, resume: bool | Path) -> tuple[Accelerator, str, Path]:
    """The accelerator, and what one process decided for all: the precision, which each would measure, and the folder.

    A resumed run keeps the precision that it was started with.
    """
    if (tracker := config.train.tracker) is not None:
        known = [str(kind) for kind in LoggerType.list() if str(kind) != "all"]
        if tracker not in known:
            raise InputError(f"train.tracker: no tracker '{tracker}'; {suggest(tracker, known)}")
        if tracker not in map(str, get_available_trackers()):
            raise InputError(f"train.tracker: '{tracker}' is not installed; `pip install {tracker}`, or leave it out")
    device = choose_device(config.device)
    # Of an earlier run in this process, which may have had another precision or, alone, another device.
    AcceleratorState._reset_state(reset_partial_state=processes.size() == 1)
    processes.connect(device)
    chosen: str = config.train.precision
    if chosen == "auto" and resume:
        chosen = checkpoint.read_state(_checkpoint(out, resume))["precision"]
    width = config.model.n_embd if config.model.name is None else _width(config.model.name)
    # A folder whose name has the time in it differs, too.
    precision, folder = processes.by_main(lambda: (choose_precision(chosen, device, width), out))
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=device.type == "cpu",
        gradient_accumulation_steps=1,
        log_with=tracker,
        project_dir=str(folder),
    )
    if accelerator.distributed_type in _SHARDED:
        require_whole_models(accelerator.distributed_type.value)
    return accelerator, precision, folder


def _checkpoint(out: Path, resume: bool | Path) -> Path:
    """The checkpoint to resume from; raises InputError when there is none or when it is damaged."""
    if isinstance(resume, Path):
        checkpoint.check(resume)
        return resume
    return checkpoint.newest(out)


def _width(name: str) -> int:
    """The width of a local model; of one on the hub, the least that GPT-2 comes in."""
    try:
        found = json.loads(Path(model_folder(name) or "", "config.json").read_text("utf-8"))
        return int(next(found[key] for key in ("hidden_size", "n_embd", "d_model") if key in found))
    except (OSError, ValueError, StopIteration, TypeError):
        return _SMALLEST_GPT2


def with_learning_rate(config: Config) -> Config:
    """The settings with the learning rate that None stands for."""
    if config.train.learning_rate is not None:
        return config
    named = config.model.name
    rate = 3e-3 * (128 / config.model.n_embd) ** 0.5 if named is None else 2e-4 * _SMALLEST_GPT2 / _width(named)
    if isinstance(config, RunConfig) and config.adapter.kind == "lora":
        rate = 1e-3
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": rate})})


def estimate_file(config: RunConfig) -> Path:
    """Where `preview` keeps the seconds that it estimates for the steps of a run with these settings."""
    train = config.train.model_dump(mode="json", exclude={"learning_rate", "precision", "tracker"})
    parts = [train, *(config.model_dump(mode="json")[name] for name in ("tasks", "data", "model", "adapter", "device"))]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder(config.data) / f"estimate-{key}.txt"


def estimate_note(config: RunConfig, train_s: float) -> str | None:
    """How far the steps of a run were from what `preview` had estimated; None where it had not."""
    try:
        estimated_s = float(estimate_file(config).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    more = train_s / max(estimated_s, 1e-9) - 1
    told = f"{abs(more):.0%} {'more' if more > 0 else 'less'} than" if abs(more) >= 0.005 else "as"
    return f"the steps took {train_s / 60:.1f} min, {told} preview had estimated ({estimated_s / 60:.1f} min)"


def check_folder(config: RunConfig | PretrainConfig, out: Path, overwrite: bool) -> None:
    """Raises InputError for a folder that a new run cannot have, because it holds a run already or something else."""
    try:
        is_file = out.exists() and not out.is_dir()
    except OSError as error:  # a name that is too long
        raise InputError(f"{out}: cannot be made ({error}); choose another --out") from None
    if is_file:
        raise InputError(f"{out}: a file, not a folder; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(
                f"{out}: already holds files; continue with --resume {out}, replace them with --overwrite, or choose "
                "another --out"
            )
        if not any((folder / "config.yaml").exists() for folder in (out, out / _REPLACED)):
            raise InputError(
                f"{out}: not a run folder (no config.yaml), so --overwrite leaves it alone; choose another --out"
            )
        for name in (config.model.name, config.model.tokenizer):
            if name and Path(name).exists() and Path(name).resolve().is_relative_to(out.resolve()):
                raise InputError(
                    f"{out}: --overwrite would remove {name}, which this run starts from; choose another --out"
                )
    _check_can_be_made(out)


def _check_can_be_made(out: Path) -> None:
    """Makes the missing folders of a path and a file in the last, and removes them again; raises InputError.

    Permissions alone do not tell: below /proc even root can make nothing.
    """
    made: list[Path] = []
    try:
        for folder in reversed([folder for folder in (out, *out.parents) if not folder.exists()]):
            folder.mkdir()
            made.append(folder)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error}); choose another --out") from None
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _create_folder(config: RunConfig | PretrainConfig, out: Path, overwrite: bool, resume: bool | Path) -> None:
    """Creates the run folder; raises InputError when it holds a run already."""
    if resume:
        _checkpoint(out, resume)
        return
    check_folder(config, out, overwrite)
    if out.is_dir() and any(out.iterdir()):
        _set_aside(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error}); choose another --out") from None


def clear(out: Path) -> None:
    """Removes what a run writes, and nothing else: the folder may be somebody's home."""
    for name in _WRITTEN:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        out.rmdir()


def _set_aside(out: Path) -> None:
    """Moves what a run has written into a folder below it, its `config.yaml` last: with it, the folder is that run.

    A run that is there already is the last whole one: the run that was to replace it was killed before it began.
    """
    shutil.rmtree(out / _REMOVED, ignore_errors=True)
    if (out / _REPLACED / "config.yaml").exists():
        clear(out)
        return
    (out / _REPLACED).mkdir(exist_ok=True)
    for name in reversed(_WRITTEN):
        if (out / name).exists():
            (out / name).rename(out / _REPLACED / name)


def _restore_replaced(out: Path) -> None:
    """Removes what this run wrote and undoes `_set_aside`, `config.yaml` first."""
    clear(out)
    if (out / _REPLACED).exists():
        for name in _WRITTEN:
            if (out / _REPLACED / name).exists():
                (out / _REPLACED / name).rename(out / name)
        (out / _REPLACED).rmdir()


def _discard(out: Path) -> None:
    """Removes what `_set_aside` has kept."""
    with suppress(FileNotFoundError):
        (out / _REPLACED).rename(out / _REMOVED)
        shutil.rmtree(out / _REMOVED, ignore_errors=True)
