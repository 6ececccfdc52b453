"""Training: rows of several tasks, one stream, one loop, one model folder.

Read `train` for the order of things, `Loop.run` for the loop: draw blocks, sum nats over micro-steps, divide by the
step's weight, clip, step. LoRA changes the model, never the loop.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from multitask.batching.mixture import Mixture, sampling_rates
from multitask.batching.packing import BlockStream, check_window
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, read
from multitask.errors import InputError
from multitask.evaluation import results_file, tuned
from multitask.evaluation.baselines import Fitted
from multitask.evaluation.evaluator import EncodedPrompt
from multitask.evaluation.schema import Cost, Data
from multitask.events import Report, ignore
from multitask.models.attention import name_for
from multitask.models.build import build
from multitask.models.io import model_folder, save
from multitask.models.lora import add_lora, is_adapter, plain_model
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.training import run_dir
from multitask.training.loop import Loop, TrainingInputs


def train(
    config: RunConfig,
    tasks: Mapping[str, Task],
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    report: Report = ignore,
    arm: str | None = None,
) -> dict[str, Any]:
    """Trains one model on `tasks` and leaves a run folder; returns what `results.json` holds.

    arm: what a report calls the run; None: `multitask`, or `single-<task>`, with `-lora`.
    Raises InputError for settings, rows or folders that cannot be used, Interrupted after Ctrl-C or SIGTERM.
    """
    started = time.perf_counter()
    tuned.check_metrics(tasks, config.eval)

    def prepare(config: RunConfig, out: Path, accelerator: Accelerator) -> _Prepared:
        return _prepare(config, tasks, out, resume, accelerator)

    def finish(config: RunConfig, loop: Loop, prepared: _Prepared) -> dict[str, Any]:
        return _finish(loop, prepared, config, tasks, started, arm)

    return run_dir.run_training(config, out, overwrite, resume, report, prepare, finish)


@dataclass(frozen=True)
class _Prepared:
    """What the loop teaches, with what only the end needs."""

    inputs: TrainingInputs
    model: Any
    tokenizer: Any
    examples: Mapping[str, Examples]
    validation: Mapping[str, Examples]


def _prepare(
    config: RunConfig, tasks: Mapping[str, Task], out: Path, resume: bool, accelerator: Accelerator
) -> _Prepared:
    """Model and rows, and how they are drawn."""
    model, tokenizer = _model(config, tasks, out, resume, accelerator)
    train, block_size = config.train, tuned.block_size_of(config.train, model)
    check_window(block_size, plain_model(model).config.n_positions)
    with accelerator.main_process_first():
        examples = {
            name: prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
            for name, task in tasks.items()
        }
        validation = tuned.examples_of(tasks, "validation", tokenizer, block_size, config.data, train.eval_max_rows)
        if accelerator.is_main_process:  # what the last scoring would refuse is said now, not after hours
            tuned.examples_of(tasks, config.eval.split, tokenizer, block_size, config.data, config.eval.max_rows)
    sizes = {name: len(rows) for name, rows in examples.items()}
    share = sampling_rates(sizes, train.mixing_temperature, train.mixture_cap, train.mixture_weights)
    fitting = {
        name: [(rows.ids(n), int(rows.num_prompts[n])) for n in np.flatnonzero(rows.lengths <= block_size).tolist()]
        for name, rows in validation.items()
    }
    if not any(fitting.values()):
        raise InputError(
            f"no validation row of any task fits the window of {block_size} tokens with its answer; raise "
            "train.block_size (or model.n_positions)"
        )

    prompts: dict[str, list[EncodedPrompt]] = {}

    def on_validation() -> dict[str, Any]:
        if train.select_by == "loss":
            return {}
        if not prompts:
            prompts.update(
                {n: tuned.prompts_of(t, "validation", tokenizer, block_size, config) for n, t in tasks.items()}
            )
        return {"score": tuned.first_metrics(model, tokenizer, tasks, prompts, config, block_size)}

    inputs = TrainingInputs(
        names=list(tasks),
        stream=BlockStream(examples, Mixture(sizes, share, config.seed), block_size, train.packing_window),
        validation=fitting,
        block_size=block_size,
        layout=train.packing,
        prompt_weight=train.prompt_weight,
        on_validation=on_validation,
        selects_by_score=train.select_by == "score",
        facts={
            "sampling_rates": {name: round(part, 4) for name, part in share.items()},
            "data": {name: rows.report for name, rows in examples.items()},
        },
    )
    return _Prepared(inputs, model, tokenizer, examples, validation)


def _finish(
    loop: Loop, prepared: _Prepared, config: RunConfig, tasks: Mapping[str, Task], started: float, arm: str | None
) -> dict[str, Any]:
    """Writes the best model and its scores; returns what `results.json` holds."""
    out, tokenizer = loop.out, prepared.tokenizer
    loop.load_best()
    finished = loop.model
    if is_adapter(finished) and config.adapter.merge:
        finished = finished.merge_and_unload()
    shown = {name: _shown(rows) for name, rows in prepared.validation.items()}
    save(finished, tokenizer, out / "model", tasks, shown)
    named = "multitask" if len(tasks) > 1 else f"single-{next(iter(tasks))}"
    arm = arm or named + ("-lora" if config.adapter.kind == "lora" else "")
    fitted: dict[str, Fitted | None] = {
        name: tuned.fitted_baselines(task, tokenizer, loop.block_size, config, out / "baselines", keeps=True)
        for name, task in tasks.items()
    }
    data, scores = tuned.score_tasks(
        finished, tokenizer, tasks, config, out / "predictions", loop.block_size, fitted, loop.report
    )
    for name, rows in prepared.examples.items():
        data[name] = data[name].model_copy(update={"train": Data.model_validate(rows.report)})
    cost = Cost(
        **loop.cost,
        sampling_rates=prepared.inputs.facts["sampling_rates"],
        wall_s=round(time.perf_counter() - started, 1),
    )
    results = results_file.results_of(config, "train", arm, str(out / "model"), data, scores, cost=cost)
    results_file.write_results(out / "results.json", results)
    return results.to_json()


def _shown(rows: Examples) -> Mapping[str, str]:
    """The texts of a row for the model card, one that fits the window if there is any."""
    number = next((n for n in range(min(len(rows), 100)) if not rows.is_truncated(n)), 0)
    return rows.row(number).fields


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
