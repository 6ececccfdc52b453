"""How long a suite would take, without training: `benchmark --dry-run`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypedDict

from multitask.batching.mixture import sampling_rates
from multitask.config.loading import load, read_yaml
from multitask.config.run import BenchmarkConfig, RunConfig
from multitask.data.rows import Counts, read
from multitask.device import choose_device
from multitask.evaluation import tuned
from multitask.evaluation.metrics import FROM_NLL
from multitask.files import shipped
from multitask.models.build import build
from multitask.models.lora import add_lora
from multitask.reports.benchmark import chosen, plan
from multitask.task import Task
from multitask.tokenization.encoded_rows import prepare
from multitask.training import finetune
from multitask.training.preview import estimate

_ARM_S = 3.0  # to load, to score baselines and to write, about


class EstimatedArm(TypedDict):
    """About how many tokens an arm reads and seconds it takes."""

    arm: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class _Tokens:
    """Tokens to train on, the mean length of each task's rows, and whether the tokenizer has a chat template."""

    trained: float
    lengths: dict[str, float]
    has_chat: bool


def dry_run(
    suite: BenchmarkConfig, tasks: Mapping[str, Task], where: str, only: Sequence[str] | None = None
) -> Iterator[EstimatedArm]:
    """For each arm: tokens, and about how many seconds they take; nothing is trained.

    The speed of training is measured on a few micro-steps; scoring is taken to be as fast a token, and writing a
    quarter as fast. Loading and reporting take a few seconds an arm besides: rough, and said to be so.
    """
    speeds: dict[bool, float] = {}
    for arm in chosen(plan(suite, list(tasks), where), only):
        if arm.kind == "trivial":
            yield {"arm": arm.folder, "tokens": 0, "seconds": 0.0}
            continue
        mine = {name: tasks[name] for name in arm.tasks}
        is_lora = arm.config.adapter.kind == "lora"
        tokens, speeds[is_lora] = _measure(suite, mine, arm.config, speeds.get(is_lora))
        num_rows, mean_length, num_written = _test_rows(mine, arm.config, tokens.lengths)
        num_times, num_trained = 1.0, tokens.trained
        if arm.kind == "prompted":
            settings, num_trained = arm.config.fewshot, 0
            num_times = sum(settings.draws if shots else 1 for shots in settings.shots)
            if settings.templates != "first":  # each template on validation rows
                several = sum(max(len(task.templates(of)) for of in task.prompts or ("en",)) for task in mine.values())
                several *= 2 if tokens.has_chat and settings.chat == "auto" else 1
                num_times += len(settings.shots) * several * settings.max_validation_rows / max(1, num_rows)
        num_scored = num_times * num_rows * mean_length
        seconds = _ARM_S + speeds[is_lora] * (num_trained + num_scored + 4 * num_times * num_written)
        yield {"arm": arm.folder, "tokens": round(num_trained + num_scored), "seconds": round(seconds, 3)}


def _measure(
    suite: BenchmarkConfig, tasks: Mapping[str, Task], config: RunConfig, s_per_token: float | None
) -> tuple[_Tokens, float]:
    """Tokens to train on and mean lengths by task; and seconds a token, measured unless known."""
    settings = config.model
    if suite.base is not None:
        recipe = shipped("configs") / f"{suite.base}.yaml"
        shape = load(RunConfig, read_yaml(recipe), where=str(recipe)).model if recipe.exists() else None
        settings = shape or settings.model_copy(update={"name": suite.base})
    model, tokenizer, new_ids = build(settings, tasks, finetune.tokenizer_texts(tasks, config), config.seed)
    device = choose_device(config.device)
    block_size = tuned.block_size_of(config.train, model)
    rows = {
        name: prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
        for name, task in tasks.items()
    }
    if config.adapter.kind == "lora":
        model = add_lora(model, config.adapter, new_ids)
    lengths = {name: float(each.lengths.mean()) for name, each in rows.items()}
    has_chat = bool(tokenizer.chat_template)
    if s_per_token is not None:
        sizes = {name: len(each) for name, each in rows.items()}
        rates = sampling_rates(
            sizes, config.train.mixing_temperature, config.train.mixture_cap, config.train.mixture_weights
        )
        mean = sum(rates[name] * lengths[name] for name in rows)
        steps = config.train.max_steps
        trained = steps * config.train.batch_tokens if steps else config.train.epochs * sum(sizes.values()) * mean
        return _Tokens(trained, lengths, has_chat), s_per_token
    found = estimate(model, rows, config, block_size, device)
    return _Tokens(found.num_tokens, lengths, has_chat), found.s_per_token


def _test_rows(tasks: Mapping[str, Task], config: RunConfig, lengths: Mapping[str, float]) -> tuple[int, float, int]:
    """Rows to score, their mean length in tokens, and tokens to write for open answers, half of the most."""
    num_rows = {
        name: sum(1 for _ in islice(read(task, config.eval.split, config.data, Counts()), config.eval.max_rows))
        for name, task in tasks.items()
    }
    total = sum(num_rows.values())
    mean = sum(num_rows[name] * lengths[name] for name in tasks) / max(1, total)
    written = sum(
        num_rows[name] * task.max_new_tokens // 2
        for name, task in tasks.items()
        if not task.is_closed and any(metric not in FROM_NLL for metric in task.metrics)
    )
    return total, mean, written
