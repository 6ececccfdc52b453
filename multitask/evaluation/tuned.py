"""Scoring a tuned model: every task's rows with the prompts of training, beside trivial baselines.

`results.tasks["nli"].metrics["accuracy"]` -> `Score(value=0.61, low=0.59, high=0.63)`; closed answers are chosen by
likelihood, open ones generated greedily, both from the prompt alone.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from multitask import processes
from multitask.config.data import DataConfig
from multitask.config.evaluation import EvalConfig
from multitask.config.run import RunConfig
from multitask.config.train import LoopConfig
from multitask.data.contamination import measure_contamination
from multitask.data.rows import Counts, Row, read
from multitask.data.sources import has_split, provenance, resolve
from multitask.errors import InputError, suggest
from multitask.evaluation import free_generation, metrics
from multitask.evaluation.baselines import Fitted, baseline_scores, count_target_bigrams, data_of, scores_of
from multitask.evaluation.evaluator import ArmScores, EncodedPrompt, Evaluator
from multitask.evaluation.prompts import StreamFormat
from multitask.evaluation.results_file import cost_of, results_of, write_results
from multitask.evaluation.schema import (
    Confusion,
    Contamination,
    Data,
    FreeAnswers,
    PlainText,
    Results,
    Score,
    TaskScores,
)
from multitask.events import Report, ignore
from multitask.files import check_writable, sha256_of
from multitask.inference.perplexity import perplexity_of_text
from multitask.inference.scoring import in_precision
from multitask.models.lora import max_positions
from multitask.pattern import markers
from multitask.registry import fingerprint
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.tokenization.row_encoder import with_answer_tokens


def block_size_of(config: LoopConfig, model: Any) -> int:
    """Most tokens of one example: `train.block_size`, else as many as the model and a step hold."""
    window = max_positions(model)
    return config.block_size or min(window or config.batch_tokens, config.batch_tokens)


def check_metrics(tasks: Mapping[str, Task], config: EvalConfig) -> None:
    """Raises InputError for a task without metrics or with unknown ones, and a text tokenizer that is not installed."""
    for language, tokenizer in config.rouge_tokenizer.items():
        metrics.build("rouge1", language, tokenizer)
    for name, task in tasks.items():
        unknown = [metric for metric in task.metrics if not metrics.is_known(metric)]
        if unknown:
            near = suggest(unknown[0], metrics.NAMES)
            own = "" if near.startswith("did you mean") else "; a function of your own is named `file.py:function`"
            raise InputError(f"task '{name}': no metric '{unknown[0]}'; {near}{own}")
        if task.metrics and metrics.build(task.metrics[0], "en").higher_is_better is None:
            raise InputError(
                f"task '{name}': its first metric is its score, and '{task.metrics[0]}' has no better or worse; put "
                "another one first"
            )
        for metric in task.metrics:
            metrics.check_function(metric)
        if not task.metrics:
            raise InputError(f"task '{name}' has no metrics; its score needs one of {', '.join(metrics.NAMES)}")


def check_answer_length(tasks: Mapping[str, Task], block_size: int) -> None:
    """Raises InputError for a task whose answers leave no tokens for a prompt."""
    for name, task in tasks.items():
        if task.max_new_tokens >= block_size:
            raise InputError(
                f"task '{name}' may answer with {task.max_new_tokens} tokens, the window has {block_size}: no tokens "
                f"are left for a prompt; raise train.block_size (or model.n_positions) above {task.max_new_tokens}"
            )


def examples_of(
    tasks: Mapping[str, Task], split: str, tokenizer: Any, block_size: int, data: DataConfig, limit: int | None
) -> dict[str, Examples]:
    """Each task's rows of a split, encoded, their prompts truncated so that `max_new_tokens` fit behind them."""
    check_answer_length(tasks, block_size)
    return {
        name: prepare(task, split, tokenizer, block_size, data, max_answer_tokens=task.max_new_tokens, limit=limit)
        for name, task in tasks.items()
    }


def prompts_of(task: Task, split: str, tokenizer: Any, block_size: int, config: RunConfig) -> list[EncodedPrompt]:
    """The first `train.eval_max_rows` rows of a split as prompts; dropped rows are left out."""
    rows = list(itertools.islice(read(task, split, config.data, Counts()), config.train.eval_max_rows))
    encoded = StreamFormat(task, tokenizer, block_size).encode(rows, [()] * len(rows), 0)
    return [prompt for prompt in encoded if prompt is not None]


def first_metrics(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Task],
    prompts: Mapping[str, Sequence[EncodedPrompt]],
    config: RunConfig,
    block_size: int,
) -> dict[str, float]:
    """Each task's first metric on given prompts, larger is better; of perplexity and bits per byte minus the log.

    A task has none when it is measured by likelihood alone and no row fits the block size. To be called by every
    process: each answers a part of the prompts, and all have the metrics.
    """
    best = {}
    for name, task in tasks.items():
        evaluator = Evaluator(model, tokenizer, task, StreamFormat(task, tokenizer, block_size), config)
        scores = ArmScores(task, config)
        for part in processes.mapped(evaluator.predict, processes.parts(prompts[name])):
            for found in part:
                scores.add(found, has_likelihood=True)
        numbers = dict(scores.named()).get(task.metrics[0])
        if numbers is not None:
            metric = metrics.build(task.metrics[0], "en")
            value = round(metrics.score(metric, numbers), 6)
            down = -math.log(value) if task.metrics[0] in metrics.FROM_NLL else -value
            best[name] = value if metric.higher_is_better else down
    return best


def fitted_baselines(
    task: Task, tokenizer: Any, block_size: int, config: RunConfig, folder: Path | None = None, keeps: bool = False
) -> Fitted | None:
    """Baselines fitted on the encoded training rows; None for a task without training rows, or not the main process.

    folder: of a run, where they were kept when it was trained; the rows are encoded only if they are not there, or
    were fitted on other rows. keeps: write them there.
    """
    sources = [source for source in resolve(task, config.data) if has_split(source, "train")]
    if not sources or not processes.is_main():
        return None
    found = [provenance(source, "train", config.data) for source in sources]
    parts = [fingerprint(task), tokenizer.backend_tokenizer.to_str(), *(s.model_dump_json() for s in sources)]
    parts.append(json.dumps([found, block_size, config.data.limit, config.data.on_bad_row]))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = folder / f"{task.name}.safetensors" if folder is not None else None
    if path is not None and (kept := Fitted.load(task, path, key)) is not None:
        return kept
    train = prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
    fitted = Fitted(task, train.rows())
    fitted.bigram_counts = count_target_bigrams(train, len(tokenizer), fitted.step)
    if path is not None and keeps:
        fitted.save(path, key)
    return fitted


def score_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Task],
    config: RunConfig,
    predictions: Path | None,
    block_size: int,
    fitted: Mapping[str, Fitted | None],
    report: Report = ignore,
) -> tuple[dict[str, Data], dict[str, TaskScores]]:
    """`data` and `tasks` of a results file. Predictions go to `predictions/<task>.jsonl`, line by line.

    fitted: the baselines of each task; None where there are none. To be called by every process; the main one alone
    has what it returns, the others have nothing.
    """
    check_answer_length(tasks, block_size)
    in_precision(model, config.eval.precision)
    data, scores = {}, {}
    for name, task in tasks.items():
        started = time.perf_counter()
        found = _score_task(model, tokenizer, task, tasks, config, predictions, block_size, fitted[name], report)
        if found is None:
            continue
        data[name], scores[name] = found
        result, elapsed_s = scores[name].to_json(), time.perf_counter() - started
        report({"event": "task", "task": name, "result": result, "elapsed_s": elapsed_s})
    return data, scores


def _score_task(
    model: Any,
    tokenizer: Any,
    task: Task,
    tasks: Mapping[str, Task],
    config: RunConfig,
    predictions: Path | None,
    block_size: int,
    fitted: Fitted | None,
    report: Report,
) -> tuple[Data, TaskScores] | None:
    counts, limit = Counts(), config.eval.max_rows
    evaluator = Evaluator(model, tokenizer, task, StreamFormat(task, tokenizer, block_size), config)
    texts: list[str] = []
    rows = _remembering(itertools.islice(read(task, config.eval.split, config.data, counts), limit), texts)
    (scores,), baselines = evaluator.run(rows, counts, fitted=fitted, predictions=predictions, report=report)
    if not processes.is_main():
        return None
    found: dict[str, object] = {
        "num_examples": scores.num_rows,
        "num_unfinished": scores.num_unfinished,
        "num_empty": scores.num_empty,
        "num_unscored": scores.num_unscored,
        "metrics": scores_of(scores.numbers, task, config),
        "baselines": baseline_scores(baselines, task, config),
        **(fitted.sample if fitted is not None else {}),
        **_parts(scores),
        **_freely(model, tokenizer, task, tasks, evaluator, config, block_size),
    }
    update: dict[str, object] = counts_of(evaluator) | {"num_tokens": scores.num_tokens}
    if fitted is not None:
        train = itertools.islice(read(task, "train", config.data, Counts()), config.data.limit)
        overlap = measure_contamination((text_of(row) for row in train), texts)
        update["contamination"] = Contamination.model_validate(overlap)
    return data_of(task, config, config.eval.split).model_copy(update=update), TaskScores(**found)


def _remembering(rows: Iterator[Row], texts: list[str]) -> Iterator[Row]:
    """The rows; their texts are kept for the n-gram overlap."""
    for row in rows:
        texts.append(text_of(row))
        yield row


def text_of(row: Row) -> str:
    """All texts of a row as one."""
    return " ".join(row.texts)


def counts_of(evaluator: Evaluator) -> dict[str, object]:
    """The counts of a results file's `data`."""
    counts = evaluator.counts
    return {
        "num_rows": counts.num_rows,
        "num_truncated": counts.num_truncated,
        "num_dropped": counts.num_dropped,
        "num_skipped": counts.num_skipped,
        "num_chars_lost": counts.chars_lost.total(),
        "chars_lost": dict(counts.chars_lost.most_common(20)),
    }


def _parts(scores: ArmScores) -> dict[str, object]:
    """What only some tasks have: scores by language, the confusion matrix, metrics of the hub."""
    found: dict[str, object] = {}
    languages = sorted(set(scores.languages))
    if len(languages) > 1 and scores.text_metrics:
        masks = {of: np.array([language == of for language in scores.languages]) for of in languages}
        found["by_language"] = {
            of: {
                name: round(metrics.score(metrics.build(name, of), scores.numbers[name], mask), 6)
                for name in scores.text_metrics
            }
            for of, mask in masks.items()
        }
    if scores.answers:
        matrix = metrics.confusion(scores.answers.elements(), list(scores.classes))
        found["confusion"] = Confusion.model_validate(matrix)
    if scores.texts[0]:
        hub = {name: metrics.hub_metric(name) for name in scores.config.eval.hub_metrics}
        found["hub_metrics"] = {name: metrics.hub_scores(metric, *scores.texts) for name, metric in hub.items()}
    return found


def _freely(
    model: Any,
    tokenizer: Any,
    task: Task,
    tasks: Mapping[str, Task],
    evaluator: Evaluator,
    config: RunConfig,
    block_size: int,
) -> dict[str, object]:
    """Free generation: of a closed task the answers outside its set, of a task scored by likelihood sampled texts."""
    if task.is_closed:
        outside, num = free_generation.num_outside(model, tokenizer, task, evaluator.first, evaluator.batch_tokens)
        return {"free_answers": FreeAnswers(num=num, num_outside=outside)}
    if task.metrics[0] not in metrics.FROM_NLL:
        return {}
    described = free_generation.describe(
        model, tokenizer, task, tasks, evaluator.first, evaluator.batch_tokens, block_size, config.seed
    )
    return {"generation": described}


def evaluate(
    model: Any,
    tokenizer: Any,
    name: str,
    tasks: Mapping[str, Task],
    config: RunConfig,
    out: Path | None = None,
    report: Report = ignore,
    baselines: Path | None = None,
) -> Results | None:
    """Scores a loaded model; with `out`, writes `out` and `out.predictions/`. Other processes have None.

    baselines: the folder of a run in which its baselines were kept.
    """
    started = time.perf_counter()
    if out is not None:
        processes.by_main(lambda: check_writable(out))
    block_size = block_size_of(config.train, model)
    if (window := max_positions(model)) is not None:
        block_size = min(block_size, window)
    vocabulary = tokenizer.get_vocab()
    check_metrics(tasks, config.eval)
    for task_name, task in tasks.items():
        missing = [marker for marker in markers({task_name: task}) if marker not in vocabulary]
        if missing:
            raise InputError(
                f"{name}: its tokenizer has no {missing[0]}, a marker of task '{task_name}'; name with --tasks the "
                "tasks that it was trained on, or train it on this one"
            )
    tasks = with_answer_tokens(tasks, tokenizer, config.data)
    check_answer_length(tasks, block_size)
    predictions = out.with_name(out.name + ".predictions") if out is not None else None
    fitted = {key: fitted_baselines(task, tokenizer, block_size, config, baselines) for key, task in tasks.items()}
    data, scores = score_tasks(model, tokenizer, tasks, config, predictions, block_size, fitted, report)
    if not processes.is_main():
        return None
    tokens = sum(rows.num_tokens or 0 for rows in data.values())
    cost = cost_of(model, tokens, time.perf_counter() - started)
    results = results_of(config, "evaluate", "tuned", name, data, scores, cost=cost)
    if out is not None:
        write_results(out, results)
    return results


def evaluate_text(
    model: Any,
    tokenizer: Any,
    name: str,
    text: Path,
    config: RunConfig,
    window: int | None,
    stride: int | None,
    batch_tokens: int,
    out: Path | None = None,
) -> Results:
    """Sliding-window perplexity of a plain text file; with `out`, writes `out`."""
    if out is not None:
        check_writable(out)
    window = window or max_positions(model) or 1024
    found = perplexity_of_text(model, tokenizer, text, window, stride or window, batch_tokens)
    measured = {key: Score(value=getattr(found, key)) for key in ("perplexity", "word_perplexity", "bits_per_byte")}
    scores = TaskScores(num_examples=found.num_windows, metrics=measured, baselines={})
    data = Data(files=[str(text)], sha256=[sha256_of([text])], split="text", num_rows=1)
    plain_text = PlainText(file=str(text), **asdict(found))
    arm = Path(name).name
    results = results_of(config, "evaluate", arm, name, {"text": data}, {"text": scores}, text=plain_text)
    if out is not None:
        write_results(out, results)
    return results
