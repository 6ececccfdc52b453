"""Fine-tuning: rows of several tasks, one stream, one loop, one model folder.

`train` reads top to bottom; `Loop.run` is the loop: draw blocks, sum nats over micro-steps, divide by the step's
weight, clip, step. LoRA changes the model, never the loop.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from multitask import processes
from multitask.batching.collate import Example
from multitask.batching.mixture import Mixture, sampling_rates
from multitask.batching.packing import BlockStream
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, read
from multitask.errors import InputError
from multitask.evaluation import results_file, tuned
from multitask.evaluation.evaluator import EncodedPrompt
from multitask.evaluation.schema import Data, Results
from multitask.events import Report, ValidationScores, ignore
from multitask.models.build import build
from multitask.models.io import model_files, save, write_card
from multitask.models.lora import add_lora, is_adapter, max_positions, merged, plain_model
from multitask.models.names import model_folder
from multitask.models.support import prepare_attention
from multitask.signals import interruptible
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.tokenization.row_encoder import with_answer_tokens
from multitask.training.checks import check_before_encoding, check_sizes, few_steps, notes_on_settings
from multitask.training.loop import Loop, TrainingInputs
from multitask.training.run_dir import Run, estimate_note, open_run

UNPACKED = (
    "models of type {} cannot keep the examples of a packed row apart: each example gets a padded row of its own, with "
    "the model's own attention (train.packing none); the loss is the same"
)


def train(
    config: RunConfig,
    tasks: Mapping[str, Task],
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool | Path = False,
    report: Report = ignore,
    arm: str | None = None,
) -> Results | None:
    """Trains one model on `tasks` and writes a run folder; returns the results, None in other processes.

    resume: True: from the newest checkpoint of `out`; a path: from this one.
    arm: what a report calls the run; None: `multitask`, or `single-<task>`, with `-lora`.
    Raises InputError for settings, rows or folders that cannot be used, Interrupted after Ctrl-C or SIGTERM.
    """
    started = time.perf_counter()
    check_before_encoding(config, tasks)
    for text in notes_on_settings(config, tasks):
        report({"event": "warning", "text": text})
    with open_run(config, out, overwrite, resume) as run:
        config, out = run.config, run.out
        model, tokenizer = _model(run, tasks)
        tasks = with_answer_tokens(tasks, tokenizer, config.data)
        block_size = tuned.block_size_of(config.train, model)
        check_sizes(tasks, block_size, max_positions(model))
        layout = prepare_attention(model, block_size, config.train.packing)
        if layout != config.train.packing:
            report({"event": "note", "text": UNPACKED.format(plain_model(model).config.model_type)})
        rows = _encode(run, tasks, tokenizer, block_size)
        rates = _rates(rows.train, config)
        shown_rates = {name: round(rate, 4) for name, rate in rates.items()}
        validation = _Validation(model, tokenizer, tasks, config, block_size)
        inputs = TrainingInputs(
            names=list(tasks),
            stream=_stream(rows.train, rates, config, block_size),
            validation=rows.validation_examples(block_size),
            block_size=block_size,
            layout=layout,
            prompt_weight=config.train.prompt_weight,
            on_validation=validation.scores,
            selects_by_score=config.train.select_by == "score",
            sampling_rates=shown_rates,
            data={name: found.report for name, found in rows.train.items()},
        )
        loop = Loop(config.train, config.seed, inputs, out, run.accelerator, model, report)
        if (few := few_steps(loop.max_steps, config.train)) and run.accelerator.is_main_process:
            report({"event": "warning", "text": few})
        run.commit(loop)
        loop.run()
        if loop.step == loop.max_steps and (note := estimate_note(config, loop.elapsed_s)) is not None:
            report({"event": "note", "text": note})
        with interruptible(out):
            loop.load_best()
            finished = merged(model) if config.adapter.merge else model
            examples = {name: _shown(found) for name, found in rows.validation.items()}
            processes.by_main(lambda: save(finished, tokenizer, out / "model", tasks, examples))
            fitted = {
                name: tuned.fitted_baselines(task, tokenizer, block_size, config, out / "baselines", keeps=True)
                for name, task in tasks.items()
            }
            data, scores = tuned.score_tasks(
                finished, tokenizer, tasks, config, out / "predictions", block_size, fitted, report
            )
            if not run.accelerator.is_main_process:
                return None
            for name, found in rows.train.items():
                data[name] = data[name].model_copy(update={"train": Data.model_validate(found.report)})
            wall_s = round(time.perf_counter() - started, 1)
            cost = loop.cost.model_copy(update={"sampling_rates": shown_rates, "wall_s": wall_s})
            parts = config, "train", arm or _arm(config, tasks), str(out / "model"), data, scores
            results = results_file.results_of(*parts, cost=cost)
            write_card(out / "model", tasks, examples, results_file.card_facts(results, out.name, tasks, config))
            results_file.write_results(out / "results.json", results)
        report({"event": "done", "out": str(out), "results": results.to_json()})
        return results


@dataclass(frozen=True)
class _Rows:
    """Encoded rows of each task."""

    train: Mapping[str, Examples]
    validation: Mapping[str, Examples]

    def validation_examples(self, block_size: int) -> dict[str, list[Example]]:
        """The validation rows that fit; raises InputError where none does."""
        fitting: dict[str, list[Example]] = {
            name: [(rows.ids(n), rows.borders(n)) for n in np.flatnonzero(rows.lengths <= block_size).tolist()]
            for name, rows in self.validation.items()
        }
        if not any(fitting.values()):
            raise InputError(
                f"no validation row of any task fits the window of {block_size} tokens with its answer; raise "
                "train.block_size (or model.n_positions)"
            )
        return fitting


def _encode(run: Run[RunConfig], tasks: Mapping[str, Task], tokenizer: Any, block_size: int) -> _Rows:
    """Rows from the cache, or encoded now by the main process."""
    config = run.config
    with run.accelerator.main_process_first():
        train = {
            name: prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
            for name, task in tasks.items()
        }
        parts = tokenizer, block_size, config.data
        validation = tuned.examples_of(tasks, "validation", *parts, config.train.eval_max_rows)
        if run.accelerator.is_main_process:  # what the final scoring would reject is said now, not after hours
            tuned.examples_of(tasks, config.eval.split, *parts, config.eval.max_rows)
    return _Rows(train, validation)


def _rates(rows: Mapping[str, Examples], config: RunConfig) -> dict[str, float]:
    """The sampling rate of each task."""
    sizes, train = {name: len(found) for name, found in rows.items()}, config.train
    return sampling_rates(sizes, train.mixing_temperature, train.mixture_cap, train.mixture_weights)


def _stream(
    rows: Mapping[str, Examples], rates: Mapping[str, float], config: RunConfig, block_size: int
) -> BlockStream:
    mixture = Mixture({name: len(found) for name, found in rows.items()}, rates, config.seed)
    return BlockStream(rows, mixture, block_size, config.train.packing_window)


class _Validation:
    """Each task's first metric on its validation rows, where it selects the best checkpoint."""

    def __init__(
        self, model: Any, tokenizer: Any, tasks: Mapping[str, Task], config: RunConfig, block_size: int
    ) -> None:
        self.model, self.tokenizer, self.tasks = model, tokenizer, tasks
        self.config, self.block_size = config, block_size

    @cached_property
    def prompts(self) -> dict[str, list[EncodedPrompt]]:
        """The validation rows as prompts."""
        return {
            name: tuned.prompts_of(task, "validation", self.tokenizer, self.block_size, self.config)
            for name, task in self.tasks.items()
        }

    def scores(self) -> ValidationScores:
        """What joins the record of a validation."""
        if self.config.train.select_by == "loss":
            return {}
        parts = self.model, self.tokenizer, self.tasks, self.prompts, self.config, self.block_size
        return {"score": tuned.first_metrics(*parts)}


def _arm(config: RunConfig, tasks: Mapping[str, Task]) -> str:
    named = "multitask" if len(tasks) > 1 else f"single-{next(iter(tasks))}"
    return named + ("-lora" if config.adapter.kind == "lora" else "")


def _shown(rows: Examples) -> Mapping[str, str]:
    """The texts of a row for the model card, one that fits the window if there is any."""
    number = next((n for n in range(min(len(rows), 100)) if not rows.is_truncated(n)), 0)
    return rows.row(number).fields


def _model(run: Run[RunConfig], tasks: Mapping[str, Task]) -> tuple[Any, Any]:
    """Model and tokenizer; the main process makes the tokenizer, the others and a resumed run load it."""
    config, out, accelerator = run.config, run.out, run.accelerator
    folder, settings = out / "model", config.model
    makes_tokenizer = accelerator.is_main_process and not run.resumes
    if not makes_tokenizer:
        if not run.resumes:
            accelerator.wait_for_everyone()
        if settings.tokenizer is None and settings.name is None:
            settings = settings.model_copy(update={"tokenizer": str(folder)})
    model, tokenizer, new_ids = build(settings, tasks, tokenizer_texts(tasks, config), config.seed)
    if makes_tokenizer:
        with model_files(folder) as aside:
            tokenizer.save_pretrained(aside)
        accelerator.wait_for_everyone()
    if config.adapter.kind == "lora":
        model = _with_lora(model, tokenizer, config, new_ids, out, accelerator.is_main_process)
    if config.train.gradient_checkpointing:
        plain_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if is_adapter(model):
            plain_model(model).enable_input_require_grads()
    return model, tokenizer


def tokenizer_texts(tasks: Mapping[str, Task], config: RunConfig, most: int = 20000) -> Iterator[str]:
    """What a new tokenizer is trained on: the fields of each task's first training rows."""
    for task in tasks.values():
        rows = read(task, "train", config.data, Counts())
        for row in itertools.islice(rows, min(most, config.data.limit or most)):
            yield from row.texts


def _with_lora(model: Any, tokenizer: Any, config: RunConfig, new_ids: list[int], out: Path, writes: bool) -> Any:
    """Adds LoRA; a base that has no folder of its own with these very rows is written to `base/` once."""
    named = model_folder(config.model.name)
    if named is not None and Path(named).is_dir() and not new_ids:
        model.name_or_path = str(Path(named).resolve())
    else:
        model.name_or_path = str((out / "base").resolve())
        if writes and not config.adapter.merge and not (out / "base").exists():
            with model_files(out / "base") as aside:
                model.save_pretrained(aside)
                tokenizer.save_pretrained(aside)
    return add_lora(model, config.adapter, new_ids)
