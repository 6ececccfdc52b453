"""Training: rows of several tasks, one stream, one loop, one model folder.

Read `train` for the order of things, `Loop.run` for the loop: draw blocks, sum nats over micro-steps, divide by the
step's weight, clip, step. LoRA changes the model, never the loop.
"""

import itertools
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, is_initialized
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, broadcast_object_list

from multitask import checkpoint, evaluation
from multitask.attention import name_for
from multitask.batching import check_window
from multitask.config import RunConfig
from multitask.data import Counts
from multitask.device import choose_device, choose_precision
from multitask.errors import InputError, Interrupted, suggest
from multitask.examples import Examples, prepare, read
from multitask.loop import Loop, Report
from multitask.loss import plain_model
from multitask.model import add_lora, build, is_adapter, model_folder, save
from multitask.task import Task

_SMALLEST_GPT2 = 768  # its width
_WRITTEN = ("config.yaml", "model", "base", "checkpoints", "metrics.jsonl", "loss.png", "results.json", "predictions")


def train(
    config: RunConfig,
    tasks: Mapping[str, Task],
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    report: Report = lambda record: None,
    arm: str | None = None,
) -> dict[str, Any]:
    """Trains one model on `tasks` and leaves a run folder; returns what `results.json` holds.

    arm: what a report calls the run; None: `multitask`, or `single-<task>`, with `-lora`.
    Raises InputError for settings, rows or folders that cannot be used, Interrupted after Ctrl-C or SIGTERM.
    """
    started = time.perf_counter()
    config = with_learning_rate(config)
    evaluation.check_metrics(tasks, config.eval)
    accelerator, precision, out = _engine(config, out, resume)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    if accelerator.is_main_process:
        _claim(config, out, overwrite, resume)
        (out / "config.yaml").write_text(
            yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False), "utf-8"
        )
    accelerator.wait_for_everyone()
    try:
        loop = _begin(config, tasks, out, resume, accelerator, report)
    except InputError:
        if accelerator.is_main_process and not resume:  # once the input is right, the same command works
            _clear(out)
        raise
    loop.run()
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        with _interruptible(out):
            results = _finish(loop, started, arm)
        report({"event": "done", "out": str(out), "results": results})
    accelerator.end_training()
    return results


def _begin(
    config: RunConfig, tasks: Mapping[str, Task], out: Path, resume: bool, accelerator: Accelerator, report: Report
) -> Loop:
    """Model, rows and the loop over them, at its first step or where a checkpoint left it."""
    model, tokenizer = _model(config, tasks, out, resume, accelerator)
    block_size = evaluation.window(config.train, model)
    check_window(block_size, plain_model(model).config.n_positions)
    with accelerator.main_process_first():
        examples = {
            name: prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
            for name, task in tasks.items()
        }
        validation = evaluation.examples_of(
            tasks, "validation", tokenizer, block_size, config.data, config.train.eval_max_rows
        )
        if accelerator.is_main_process:  # what the last scoring would refuse is said now, not after hours
            evaluation.examples_of(tasks, config.eval.split, tokenizer, block_size, config.data, config.eval.max_rows)
    loop = Loop(config, tasks, out, accelerator, model, tokenizer, examples, validation, block_size, report)
    if resume:
        loop.restore(checkpoint.newest(out))
    return loop


def _finish(loop: Loop, started: float, arm: str | None) -> dict[str, Any]:
    """Writes the best model and its scores; returns what `results.json` holds."""
    config, tasks, out = loop.config, loop.tasks, loop.out
    loop.take_best()
    finished = loop.model
    if is_adapter(finished) and config.adapter.merge:
        finished = finished.merge_and_unload()
    shown = {name: _shown(rows) for name, rows in loop.validation.items()}
    save(finished, loop.tokenizer, out / "model", tasks, shown)
    named = "multitask" if len(tasks) > 1 else f"single-{next(iter(tasks))}"
    arm = arm or named + ("-lora" if config.adapter.kind == "lora" else "")
    results = evaluation.envelope(config, "train", arm, {"name": str(out / "model")})
    results |= evaluation.score_model(
        finished, loop.tokenizer, tasks, config, out / "predictions", loop.block_size, loop.report
    )
    results["data"] = {name: results["data"][name] | {"train": loop.examples[name].report} for name in tasks}
    results["cost"] = loop.cost | {"wall_s": round(time.perf_counter() - started, 1)}
    evaluation.write_results(out / "results.json", results)
    return results


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM while the trained model is scored: the last checkpoint holds it, a resumed run scores anew."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(str(out)) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _engine(config: RunConfig, out: Path, resume: bool) -> tuple[Accelerator, str, Path]:
    """The accelerator, and what one process decided for all: the precision, which each would measure, and the folder.

    A resumed run goes on in the precision it was begun in.
    """
    if (tracker := config.train.tracker) is not None:
        known = [str(kind) for kind in LoggerType.list() if str(kind) != "all"]
        if tracker not in known:
            raise InputError(f"train.tracker: no tracker '{tracker}'; {suggest(tracker, known)}")
        if tracker not in map(str, get_available_trackers()):
            raise InputError(f"train.tracker: '{tracker}' is not installed; `pip install {tracker}`, or leave it out")
    device = choose_device(config.device)
    if is_initialized() and PartialState().num_processes == 1:  # of an earlier run in this process, on another device
        AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=device.type == "cpu")
    chosen: list[str] = [config.train.precision]
    if chosen == ["auto"] and resume:
        chosen = [checkpoint.read_state(checkpoint.newest(out))["precision"]]
    width = config.model.n_embd if config.model.name is None else _SMALLEST_GPT2
    chosen = [choose_precision(chosen[0], device, width), str(out)]  # a name with the time in it differs, too
    broadcast_object_list(chosen)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(chosen[0], chosen[0]),
        cpu=device.type == "cpu",
        gradient_accumulation_steps=1,
        log_with=tracker,
        project_dir=chosen[1],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],  # one process encodes for all
    )
    return accelerator, chosen[0], Path(chosen[1])


def _shown(rows: Examples) -> Mapping[str, str]:
    """The texts of a row for the model card, one that fits the window if there is any."""
    record = next((row for row in rows.rows(limit=100) if not row["is_cut"]), None) or rows.row(0)
    fields: Mapping[str, str] = record["fields"]
    return fields


def with_learning_rate(config: RunConfig) -> RunConfig:
    """The settings with the learning rate that None stands for."""
    if config.train.learning_rate is not None:
        return config
    rate = 3e-3 * (128 / config.model.n_embd) ** 0.5 if config.model.name is None else 2e-4
    rate = 1e-3 if config.adapter.kind == "lora" else rate
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": rate})})


def _claim(config: RunConfig, out: Path, overwrite: bool, resume: bool) -> None:
    """Makes the run folder ours; raises InputError when it holds a run already."""
    if resume:
        checkpoint.newest(out)
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file, not a folder; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(
                f"{out}: already holds files; go on with --resume {out}, replace them with --overwrite, or choose "
                "another --out"
            )
        if not (out / "config.yaml").exists():
            raise InputError(
                f"{out}: not a run folder (no config.yaml), so --overwrite leaves it alone; choose another --out"
            )
        for name in (config.model.name, config.model.tokenizer):
            if name and Path(name).exists() and Path(name).resolve().is_relative_to(out.resolve()):
                raise InputError(
                    f"{out}: --overwrite would remove {name}, which this run starts from; choose another --out"
                )
        _clear(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error}); choose another --out") from None


def _clear(out: Path) -> None:
    """Removes what a run writes, and nothing else: the folder may be somebody's home."""
    for name in _WRITTEN:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        out.rmdir()


def _model(
    config: RunConfig, tasks: Mapping[str, Task], out: Path, resume: bool, accelerator: Accelerator
) -> tuple[Any, Any]:
    """Model and tokenizer; the main process makes the tokenizer, the others and a resumed run read it."""
    folder, settings = out / "model", config.model
    makes_tokenizer = accelerator.is_main_process and not resume
    if not makes_tokenizer:
        if not resume:
            accelerator.wait_for_everyone()
        if settings.tokenizer is None and settings.name is None:
            settings = settings.model_copy(update={"tokenizer": str(folder)})
    model, tokenizer, new_ids = build(settings, tasks, tokenizer_texts(tasks, config), config.seed)
    if makes_tokenizer:
        tokenizer.save_pretrained(folder)
        accelerator.wait_for_everyone()
    if config.adapter.kind == "lora":
        model = _with_lora(model, tokenizer, config, new_ids, out, accelerator.is_main_process)
    base = plain_model(model)
    base.config._attn_implementation = name_for(accelerator.device)
    if config.train.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if is_adapter(model):
            base.enable_input_require_grads()
    return model, tokenizer


def tokenizer_texts(tasks: Mapping[str, Task], config: RunConfig, most: int = 20000) -> Iterator[str]:
    """What a new tokenizer is trained on: the fields of each task's first training rows."""
    for task in tasks.values():
        rows = read(task, "train", config.data, Counts())
        for row in itertools.islice(rows, min(most, config.data.limit or most)):
            yield from row.fields.values()


def _with_lora(model: Any, tokenizer: Any, config: RunConfig, new_ids: list[int], out: Path, writes: bool) -> Any:
    """Adds LoRA; a base that has no folder of its own with these very rows is written to `base/` once."""
    named = model_folder(config.model.name)
    if named is not None and Path(named).is_dir() and not new_ids:
        model.name_or_path = str(Path(named).resolve())
    else:
        model.name_or_path = str((out / "base").resolve())
        if writes and not config.adapter.merge and not (out / "base").exists():
            model.save_pretrained(out / "base")
            tokenizer.save_pretrained(out / "base")
    return add_lora(model, config.adapter, new_ids)
