"""What a program without a model would score: the floor beneath every figure.

`lead("One. Two. Three. Four.", 3)` -> `"One. Two. Three."`
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row, read
from multitask.data.sources import has_split, provenance, resolve
from multitask.evaluation import bootstrap, metrics
from multitask.evaluation.bigram_counts import BigramCounts
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples

_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+|\n+")


def lead(text: str, num_sentences: int) -> str:
    """The first sentences of a text."""
    return " ".join([s for s in _SENTENCE_END.split(text.strip()) if s][:num_sentences])


def random_span(text: str, num_words: int, number: int) -> str:
    """Some words of a text in a row, from a place that its number decides: the same in every run that is compared."""
    words = text.split()
    most = max(0, len(words) - num_words)
    start = int(np.random.default_rng(number).integers(0, most + 1))
    return " ".join(words[start : start + num_words])


def count_target_bigrams(train: Examples, vocab_size: int) -> BigramCounts:
    """The target tokens of training rows and those before them, counted."""
    rows = [(train.ids(n), int(train.num_prompts[n])) for n in range(len(train))]
    before = [ids[num - 1 : -1] for ids, num in rows]
    return BigramCounts(np.concatenate(before), np.concatenate([ids[num:] for ids, num in rows]), vocab_size)


def as_record(row: Row) -> dict[str, Any]:
    """A row as scorers see it: references of a closed answer are class names, whatever the language of its words."""
    names = dict(zip(row.choices, row.classes, strict=True))
    references = [names.get(reference, reference) for reference in row.references]
    return {key: getattr(row, key) for key in ("id", "fields", "language", "choices", "classes", "where")} | {
        "references": references
    }


def trivial_scores(
    task: Task, config: RunConfig, keeps: Callable[[Row], bool] = lambda row: True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One task's `data` and `baselines` of a results file, made without a model: metrics of texts, 95 % intervals.

    keeps: whether a row counts. Without training rows there is nothing to fit, and no baseline.
    """
    split = config.eval.split
    sources = [source for source in resolve(task, config.data) if has_split(source, split)]
    found = [provenance(source, split, config.data) for source in sources]
    counts, num_rows = Counts(), 0
    names = [metric for metric in task.metrics if metric not in metrics.FROM_NLL]
    has_train = any(has_split(source, "train") for source in resolve(task, config.data))
    train = islice(read(task, "train", config.data, Counts()), config.data.limit) if has_train else iter(())
    fitted = Fitted(map(as_record, train), task.target)
    numbers = {name: {metric: metrics.Numbers() for metric in names} for name in task.baselines if has_train}
    for row in islice(read(task, split, config.data, counts), config.eval.max_rows):
        if not keeps(row):
            continue
        record = as_record(row)
        for name, by_metric in numbers.items():
            made = fitted.predict(name, record, task.truncate, num_rows)
            for metric, rows in by_metric.items():
                tokenizer = config.eval.rouge_tokenizer.get(row.language, "eojeol")
                rows.append(metrics.build(metric, row.language, tokenizer).per_example(made, record["references"]))
        num_rows += 1
    data = {
        "files": [file for source in found for file in source["files"]],
        "sha256": [digest for source in found for digest in source["sha256"]],
        "revision": next((source["revision"] for source in found if source.get("revision")), None),
        "split": split,
        "num_rows": num_rows,
        "num_truncated": 0,
        "num_dropped": 0,
        "num_skipped": counts.num_skipped,
    }
    return data, {
        name: {metric: _with_interval(metric, rows, config) for metric, rows in by_metric.items() if rows}
        for name, by_metric in numbers.items()
    }


def trivial(tasks: Mapping[str, Task], config: RunConfig) -> dict[str, Any]:
    """`data` and `tasks` of a results file that no model made."""
    scored: dict[str, Any] = {"data": {}, "tasks": {}}
    for name, task in tasks.items():
        scored["data"][name], floors = trivial_scores(task, config)
        scored["tasks"][name] = {
            "num_examples": scored["data"][name]["num_rows"],
            "metrics": {},
            "baselines": floors,
        }
    return scored


def _with_interval(name: str, rows: metrics.Numbers, config: RunConfig) -> dict[str, float]:
    metric = metrics.build(name, "en")
    low, high = bootstrap.interval(metric.finish, rows, config.eval.num_bootstrap, config.seed)
    return {"value": round(metrics.score(metric, rows), 6), "low": round(low, 6), "high": round(high, 6)}


class Fitted:
    """What the baselines learn from a task's training rows: the commonest class, and how long answers are."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        target: str,
        bigram_counts: BigramCounts | None = None,
    ) -> None:
        self.bigram_counts = bigram_counts
        self.target = target
        self._classes: Counter[str] = Counter()
        self.answer_words = array("i")
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> None:
        """One more training row."""
        answer = row["fields"][self.target]
        if row["choices"]:
            self._classes.update(c for c, word in zip(row["classes"], row["choices"], strict=True) if word == answer)
        self.answer_words.append(len(answer.split()))

    @property
    def majority(self) -> str | None:
        """The commonest class; None where there are none."""
        return self._classes.most_common(1)[0][0] if self._classes else None

    def predict(self, name: str, row: Mapping[str, Any], field: str | None, number: int) -> str:
        """The prediction of a baseline by name: majority, lead1, lead3, random_span; a class name or a text."""
        if name == "majority":
            return self.majority or ""
        text = row["fields"][field] if field else ""
        if name.startswith("lead"):
            return lead(text, int(name.removeprefix("lead")))
        return random_span(text, self.answer_words[number % len(self.answer_words)], number)
