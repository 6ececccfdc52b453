"""Scoring a model: every task's rows, intervals, and what no model at all would score on the same rows.

`results["tasks"]["nli"]["metrics"]["accuracy"]` -> `{"value": 0.61, "low": 0.59, "high": 0.63}`; closed answers are
chosen by likelihood, open ones written greedily, both from the prompt alone.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from multitask.config.data import DataConfig
from multitask.config.evaluation import EvalConfig
from multitask.config.run import RunConfig
from multitask.config.train import LoopConfig
from multitask.data.contamination import measure_contamination
from multitask.data.sources import has_split, resolve
from multitask.errors import InputError, suggest
from multitask.evaluation import bootstrap, free_generation, metrics
from multitask.evaluation.baselines import Fitted, count_target_bigrams
from multitask.evaluation.results_file import cost_of, envelope, write_results
from multitask.events import Report, ignore
from multitask.inference.decoding import generate
from multitask.inference.scoring import choose, example_nll
from multitask.models.lora import plain_model
from multitask.pattern import markers, parse
from multitask.task import END, Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.tokenization.row_encoder import RowEncoder

_CHUNK = 256  # rows whose texts are in memory at a time
Numbers = dict[str, metrics.Numbers]


def window(config: LoopConfig, model: Any) -> int:
    """Tokens of one example at most: what the settings say, else as many as the model and a step hold."""
    return config.block_size or min(plain_model(model).config.n_positions, config.batch_tokens)


def check_metrics(tasks: Mapping[str, Task], config: EvalConfig) -> None:
    """Raises InputError for a task without metrics or with unknown ones, and a text tokenizer that is not installed."""
    for language, tokenizer in config.rouge_tokenizer.items():
        metrics.build("rouge1", language, tokenizer)
    for name, task in tasks.items():
        unknown = [metric for metric in task.metrics if metric not in metrics.NAMES]
        if unknown:
            raise InputError(f"task '{name}': no metric '{unknown[0]}'; {suggest(unknown[0], metrics.NAMES)}")
        if task.metrics and metrics.build(task.metrics[0], "en").higher_is_better is None:
            raise InputError(
                f"task '{name}': its first metric is its score, and '{task.metrics[0]}' has no better or worse; put "
                "another one first"
            )
        if not task.metrics:
            raise InputError(f"task '{name}' has no metrics; its score needs one of {', '.join(metrics.NAMES)}")


def examples_of(
    tasks: Mapping[str, Task], split: str, tokenizer: Any, block_size: int, data: DataConfig, limit: int | None
) -> dict[str, Examples]:
    """Each task's rows of a split, their prompts truncated so that `max_new_tokens` fit behind them."""
    for name, task in tasks.items():
        if task.max_new_tokens >= block_size:
            raise InputError(
                f"task '{name}' may answer with {task.max_new_tokens} tokens, the window has {block_size}: no room is "
                f"left for a prompt; raise train.block_size (or model.n_positions) above {task.max_new_tokens}"
            )
    return {
        name: prepare(task, split, tokenizer, block_size, data, max_answer_tokens=task.max_new_tokens, limit=limit)
        for name, task in tasks.items()
    }


def score_model(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Task],
    config: RunConfig,
    predictions: Path | None,
    block_size: int,
    report: Report = ignore,
) -> dict[str, Any]:
    """`data` and `tasks` of a results file. Predictions go to `predictions/<task>.jsonl`, line by line."""
    rows = examples_of(tasks, config.eval.split, tokenizer, block_size, config.data, config.eval.max_rows)
    scored: dict[str, Any] = {"data": {}, "tasks": {}}
    for name, task in tasks.items():
        started = time.perf_counter()
        fitted = train = None  # of a set for testing only: its baselines are left out
        if any(has_split(source, "train") for source in resolve(task, config.data)):
            train = prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
            fitted = Fitted(train.rows(), task.target, count_target_bigrams(train, len(tokenizer)))
        scorer = TaskScorer(model, tokenizer, task, config.eval, block_size, config.seed)
        if predictions is not None:
            predictions.mkdir(parents=True, exist_ok=True)
            with (predictions / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                result = scorer.score(rows[name], fitted, file)
        else:
            result = scorer.score(rows[name], fitted, None)
        result |= _freely(model, tokenizer, task, tasks, rows[name], config, block_size)
        scored["data"][name] = {**rows[name].report, "num_tokens": int(rows[name].lengths.sum())}
        if train is not None:
            scored["data"][name]["contamination"] = measure_contamination(_texts(train), _texts(rows[name]))
        scored["tasks"][name] = result
        report({"event": "task", "task": name, "result": result, "elapsed_s": time.perf_counter() - started})
    return scored


def _freely(
    model: Any,
    tokenizer: Any,
    task: Task,
    tasks: Mapping[str, Task],
    rows: Examples,
    config: RunConfig,
    block_size: int,
) -> dict[str, Any]:
    """What a results file says of answers that nothing holds."""
    if task.is_closed:
        outside, num = free_generation.num_outside(model, tokenizer, task, rows, config.eval)
        return {"free_answers": {"num": num, "num_outside": outside}}
    if any(name not in metrics.FROM_NLL for name in task.metrics):
        return {}
    described = free_generation.describe(model, tokenizer, task, tasks, rows, config.eval, block_size, config.seed)
    return {"generation": described}


def _texts(rows: Examples) -> Iterator[str]:
    """All fields of each row as one text."""
    return (" ".join(row["fields"].values()) for row in rows.rows())


def first_metrics(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Task],
    rows: Mapping[str, Examples],
    config: RunConfig,
    block_size: int,
) -> dict[str, float]:
    """Each task's first metric on given rows, larger is better; of perplexity and bits per byte minus the log.

    A task has none when it is measured by likelihood alone and no row fits the window.
    """
    best = {}
    for name, task in tasks.items():
        scorer = TaskScorer(model, tokenizer, task, config.eval, block_size, config.seed, intervals=False)
        found = scorer.score(rows[name], None, None)["metrics"]
        if task.metrics[0] in found:
            value = found[task.metrics[0]]["value"]
            down = -math.log(value) if task.metrics[0] in metrics.FROM_NLL else -value
            best[name] = value if metrics.build(task.metrics[0], "en").higher_is_better else down
    return best


class TaskScorer:
    """Scores one task's rows with one model."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        task: Task,
        config: EvalConfig,
        block_size: int,
        seed: int,
        intervals: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.task, self.config = model, tokenizer, task, config
        self.block_size, self.seed, self.intervals = block_size, seed, intervals
        self.text_metrics = [name for name in task.metrics if name not in metrics.FROM_NLL]
        self.hub_metrics = {name: metrics.hub_metric(name) for name in config.hub_metrics}
        self.encoder = RowEncoder(task, tokenizer, block_size, task.max_new_tokens)
        self.end_id = tokenizer.convert_tokens_to_ids(END)

    def score(self, rows: Examples, fitted: Fitted | None, file: TextIO | None) -> dict[str, Any]:
        """The task's part of a results file: counts, metrics and baselines with 95 % intervals."""
        own: Numbers = {name: metrics.Numbers() for name in (*self.text_metrics, "nll")}
        languages: list[str] = []
        floors: dict[str, Numbers] = {
            name: {m: metrics.Numbers() for m in self.text_metrics} for name in self.task.baselines
        }
        floors |= {name: {"nll": metrics.Numbers()} for name in ("unigram", "bigram")}
        num_unfinished = num_unscored = 0
        answers: Counter[tuple[str, tuple[str, ...]]] = Counter()  # of a closed task
        classes: dict[str, None] = {}
        for_hub: tuple[list[str], list[list[str]]] = ([], [])
        for start in range(0, len(rows), _CHUNK):
            numbers = range(start, min(start + _CHUNK, len(rows)))
            records = [rows.row(n) for n in numbers]
            ids = [(rows.ids(n), int(rows.num_prompts[n])) for n in numbers]
            fits = [len(sequence) <= self.block_size for sequence, _ in ids]
            num_unscored += fits.count(False)
            for record, nll in zip(records, self._nll(records, ids, fits), strict=True):
                record["nll"] = nll
            num_unfinished += self._predict(records, ids)
            for number, record, (sequence, num_prompt) in zip(numbers, records, ids, strict=True):
                languages.append(record["language"])
                if record["nll"]:
                    own["nll"].append(record["nll"])
                    if fitted is not None and fitted.bigram_counts is not None:
                        before, targets = sequence[num_prompt - 1 : -1], sequence[num_prompt:]
                        unigram, bigram = (
                            fitted.bigram_counts.unigram(targets),
                            fitted.bigram_counts.bigram(before, targets),
                        )
                        floors["unigram"]["nll"].append({**record["nll"], "nll": float(unigram.sum())})
                        floors["bigram"]["nll"].append({**record["nll"], "nll": float(bigram.sum())})
                record["prompt"] = self.tokenizer.decode(sequence[:num_prompt].tolist()).strip()
                record["scores"] = self._measure(record, record["prediction"], own)
                if self.task.is_closed:
                    answers[record["prediction"], tuple(record["references"])] += 1
                    classes |= dict.fromkeys(record["classes"])
                if self.hub_metrics and record["prediction"] is not None:
                    for_hub[0].append(record["prediction"])
                    for_hub[1].append(record["references"])
                if fitted is not None:
                    for name in self.task.baselines:
                        self._measure(record, fitted.predict(name, record, self.task.truncate, number), floors[name])
                if file is not None:
                    file.write(json.dumps(self._line(record), ensure_ascii=False, allow_nan=False) + "\n")
        return {
            "num_examples": len(rows),
            "num_unfinished": num_unfinished,
            "num_unscored": num_unscored,
            "metrics": self._finish(own),
            **self._by_language(own, languages),
            **({"confusion": metrics.confusion(answers.elements(), list(classes))} if answers else {}),
            **({"hub_metrics": self._by_hub(*for_hub)} if for_hub[0] else {}),
            "baselines": {n: f for n, numbers in floors.items() if fitted is not None and (f := self._finish(numbers))},
        }

    def _nll(self, records: Sequence[dict[str, Any]], ids: Any, fits: Sequence[bool]) -> Iterator[dict[str, float]]:
        """Nats, target tokens and bytes of each row; empty where target and prompt together exceed the window."""
        scored = [pair for pair, fit in zip(ids, fits, strict=True) if fit]
        nats, tokens = example_nll(self.model, scored, self.config.batch_tokens)
        found = iter(zip(nats.tolist(), tokens.tolist(), strict=True))
        for record, fit in zip(records, fits, strict=True):
            if fit:
                nll, num = next(found)
                if not math.isfinite(nll):
                    raise InputError(
                        f"{record['where']}: the model finds no finite likelihood of this row's "
                        f"{self.task.target}: its weights are broken, or training ran away (a lower "
                        "train.learning_rate helps)"
                    )
                target = record["fields"][self.task.target]
                yield {"nll": nll, "tokens": num, "words": len(target.split()), "bytes": len(target.encode())}
            else:
                yield {}

    def _predict(self, records: Sequence[dict[str, Any]], ids: Any) -> int:
        """Adds `completion`, `prediction` and `finished` to the records; returns how many answers did not end."""
        prompts = [sequence[:num_prompt] for sequence, num_prompt in ids]
        if self.task.is_closed:
            choices = [[self._answer_ids(word) for word in record["choices"]] for record in records]
            # Words of more tokens than `max_new_tokens` take their room from the prompt's beginning.
            rooms = [self.block_size - max(map(len, words)) for words in choices]
            prompts = [prompt[-room:] for prompt, room in zip(prompts, rooms, strict=True)]
            chosen = choose(self.model, zip(prompts, choices, strict=True), self.config.batch_tokens)
            for record, (number, nats) in zip(records, chosen, strict=True):
                record["completion"] = record["choices"][number]
                record["prediction"] = record["classes"][number]
                record["references"] = [
                    dict(zip(record["choices"], record["classes"], strict=True)).get(r, r) for r in record["references"]
                ]
                record["choice_nll"] = dict(zip(record["choices"], nats, strict=True))
            return 0
        if not self.text_metrics:
            for record in records:
                record["completion"] = record["prediction"] = None
            return 0
        written = generate(
            self.model,
            prompts,
            self.task.max_new_tokens,
            {self.end_id},
            self.config.batch_tokens,
        )
        parse = self.task.parse or str.strip
        for record, (new, _) in zip(records, written, strict=True):
            record["completion"] = self.tokenizer.decode(new, skip_special_tokens=True)
            record["prediction"] = parse(record["completion"])
        return sum(not finished for _, finished in written)

    def _answer_ids(self, word: str) -> list[int]:
        """Ids of a choice as the stream holds it, end marker included."""
        literal = parse(self.task.stream)[-2].literal
        return [*self.encoder.plain.encode(literal + word, add_special_tokens=False).ids, self.end_id]

    def _measure(self, record: Mapping[str, Any], prediction: str | None, into: Numbers) -> dict[str, dict[str, float]]:
        """Adds the numbers of one prediction; returns them by metric."""
        if prediction is None:
            return {}
        found = {}
        for name in self.text_metrics:
            tokenizer = self.config.rouge_tokenizer.get(record["language"], "eojeol")
            found[name] = metrics.build(name, record["language"], tokenizer).per_example(
                prediction, record["references"]
            )
            into[name].append(found[name])
        return found

    def _by_hub(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        return {name: metrics.hub_scores(each, predictions, references) for name, each in self.hub_metrics.items()}

    def _finish(self, numbers: Numbers) -> dict[str, dict[str, float]]:
        """Scores with intervals; perplexity and bits per byte come from the same nats."""
        finished = {}
        for name, rows in self._named(numbers):
            metric = metrics.build(name, "en")
            value = round(metrics.score(metric, rows), 6)
            finished[name] = {"value": value}
            if self.intervals:
                low, high = bootstrap.interval(metric.finish, rows, self.config.num_bootstrap, self.seed)
                finished[name] |= {"low": round(low, 6), "high": round(high, 6)}
        return finished

    def _named(self, numbers: Numbers) -> Iterator[tuple[str, metrics.Numbers]]:
        for name, rows in numbers.items():
            if rows and name != "nll":
                yield name, rows
        if numbers.get("nll"):
            names = [name for name in metrics.FROM_NLL if name != "word_perplexity" or not self.task.is_closed]
            yield from ((name, numbers["nll"]) for name in names)

    def _by_language(self, numbers: Numbers, languages: Sequence[str]) -> dict[str, Any]:
        """Text metrics of each language, where the rows have several."""
        if len(set(languages)) < 2 or not self.text_metrics:
            return {}
        split: dict[str, dict[str, float]] = {}
        for language in sorted(set(languages)):
            mine = np.array([of == language for of in languages])
            split[language] = {
                name: round(metrics.score(metrics.build(name, language), numbers[name], mine), 6)
                for name in self.text_metrics
            }
        return {"by_language": split}

    def _line(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One line of the predictions file."""
        kept = (
            "id",
            "prompt",
            "is_truncated",
            "completion",
            "prediction",
            "references",
            "choice_nll",
            "nll",
            "scores",
            "language",
            "where",
        )
        return {key: record[key] for key in kept if key in record}


def evaluate(
    model: Any,
    tokenizer: Any,
    name: str,
    tasks: Mapping[str, Task],
    config: RunConfig,
    out: Path | None = None,
    report: Report = ignore,
) -> dict[str, Any]:
    """Scores a loaded model; with `out`, writes `out` and `out.predictions/`. Returns what the file holds."""
    started = time.perf_counter()
    base = plain_model(model)
    block_size = min(window(config.train, model), base.config.n_positions)
    vocabulary = tokenizer.get_vocab()
    check_metrics(tasks, config.eval)
    for task_name, task in tasks.items():
        missing = [marker for marker in markers({task_name: task}) if marker not in vocabulary]
        if missing:
            raise InputError(
                f"{name}: its tokenizer has no {missing[0]}, a marker of task '{task_name}'; name with --tasks the "
                "tasks that it was trained on, or train it on this one"
            )
    predictions = out.with_name(out.name + ".predictions") if out is not None else None
    results = envelope(config, "evaluate", "tuned", {"name": name})
    results |= score_model(model, tokenizer, tasks, config, predictions, block_size, report)
    tokens = sum(rows["num_tokens"] for rows in results["data"].values())
    results["cost"] = cost_of(model, tokens, time.perf_counter() - started)
    if out is not None:
        write_results(out, results)
    return results
