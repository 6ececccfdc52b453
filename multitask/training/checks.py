"""What can be found wrong before any row is encoded: splits, first rows, metrics, mixture, window, answers.

`check_before_encoding(config, tasks)` raises one InputError with a line for each problem: minutes of encoding must not
end in an error that the first second could have told.
"""

from collections.abc import Callable, Iterable, Mapping

from multitask.batching.mixture import sampling_rates
from multitask.batching.packing import check_window
from multitask.config.data import SPLIT_BY
from multitask.config.run import RunConfig
from multitask.config.train import LoopConfig
from multitask.data.rows import Counts, Row, read_rows
from multitask.data.sources import has_split, resolve, source_name
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.baselines import measure_with
from multitask.evaluation.tuned import check_answer_length, check_metrics
from multitask.task import Task


def check_before_encoding(config: RunConfig, tasks: Mapping[str, Task]) -> None:
    """Raises InputError with all that is wrong with metrics, mixture, splits and the first row of each source."""
    train = config.train
    checks: list[Callable[[], object]] = [
        lambda: check_metrics(tasks, config.eval),
        lambda: sampling_rates(
            dict.fromkeys(tasks, 1), train.mixing_temperature, train.mixture_cap, train.mixture_weights
        ),
    ]
    for task in tasks.values():
        for split in dict.fromkeys(("train", "validation", config.eval.split)):
            checks.append(lambda task=task, split=split: _check_split(task, split, config))  # type: ignore[misc]
    _all(checks)


FEW_STEPS = 20
"""Of fewer optimizer steps a model learns next to nothing."""


def few_steps(num_steps: int, train: LoopConfig) -> str | None:
    """A note for a run whose passes over the rows are too few steps; None where the steps suffice or were named."""
    if num_steps >= FEW_STEPS or train.max_steps is not None:
        return None
    steps = "1 optimizer step" if num_steps == 1 else f"{num_steps} optimizer steps"
    return (
        f"only {steps} in all: a model hardly learns from fewer than {FEW_STEPS}; lower train.batch_tokens (now "
        f"{train.batch_tokens:,}) or raise train.epochs (now {train.epochs:g})"
    )


def notes_on_settings(config: RunConfig, tasks: Iterable[str]) -> list[str]:
    """What settings say that was perhaps not meant: tasks without a source beside tasks with one, LoRA on no model."""
    notes = [
        f"{name}: no source is named in data.sources: the synthetic dataset is used"
        for name in tasks
        if config.data.sources and name not in config.data.sources
    ]
    if config.adapter.kind == "lora" and config.model.name is None:
        notes.append(
            "LoRA on a randomly initialised model, whose own weights stay as they are: name a trained one with "
            "model.name (--model)"
        )
    return notes


def check_sizes(tasks: Mapping[str, Task], block_size: int, window: int | None) -> None:
    """Raises InputError for a block that the model cannot take, and for answers that leave no tokens for a prompt.

    window: the model's positions; None: any number.
    """
    check_window(block_size, window)
    check_answer_length(tasks, block_size)


def _check_split(task: Task, split: str, config: RunConfig) -> None:
    """Reads the first usable row of each source."""
    sources = [source for source in resolve(task, config.data) if has_split(source, split)]
    if not sources:
        raise InputError(
            f"task '{task.name}' has no {split} rows: none of its sources has that split; "
            f"give `files: {{{split}: FILE}}`, or one file for all splits, `files: {{all: FILE}}` with `{SPLIT_BY}`"
        )
    for source in sources:
        row = next(read_rows(task, source, split, config.data, Counts()), None)
        if row is None:
            raise InputError(
                f"task '{task.name}', {split}: no usable row in {source_name(source)}; every row is in another split "
                "(raise `split_by`) or left out by `skip_labels` or `no_answer`"
            )
        tokenizer = config.eval.rouge_tokenizer.get(row.language, "eojeol")
        has_words = any(map(metrics.TOKENIZERS[tokenizer], row.references))
        if any(name in metrics.ROUGE for name in task.metrics) and not has_words:
            raise InputError(
                f"{row.where}: {task.target} has no word that ROUGE could count: its text tokenizer '{tokenizer}' is "
                f"that of language '{row.language}'; correct `language` (ko for Korean), or set eval.rouge_tokenizer"
            )
        if split != "train" or config.eval.split == "train":
            _check_functions(task, row, config)


def _check_functions(task: Task, row: Row, config: RunConfig) -> None:
    """Measures a row with the metrics that are functions of the user, as if its first reference was the prediction."""
    for name in task.metrics:
        if name in metrics.NAMES or not metrics.is_known(name):
            continue
        try:
            metrics.check_function(name)
        except InputError:  # `check_metrics` has named it
            continue
        measure_with([name], config)(row, row.accepted[0], row.accepted)


def _all(checks: Iterable[Callable[[], object]]) -> None:
    problems = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
