"""Trivial baselines: what a program without a model scores on the same rows.

`lead("One. Two. Three. Four.", 3)` -> `"One. Two. Three."`
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from multitask import damage
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row, read
from multitask.data.sources import has_split, provenance, resolve
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.bootstrap import interval
from multitask.evaluation.schema import Data, Score, TaskScores
from multitask.files import cannot_write, replacing
from multitask.models.bigram import BigramCounts
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples
from multitask.tokenization.row_encoder import target_spans

if TYPE_CHECKING:
    from multitask.evaluation.evaluator import EncodedPrompt

Measure = Callable[[Row, str, Sequence[str]], dict[str, dict[str, float]]]
"""The numbers of one prediction, by metric: `ArmScores.measure`."""
BaselineNumbers = dict[str, dict[str, metrics.Numbers]]
"""By baseline and metric; those of `unigram` and `bigram` under `nll`."""
MAX_ROWS = 200_000
"""Most training rows that baselines are fitted on."""
_CHUNK = 1000
_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+|\n+")


def lead(text: str, num_sentences: int) -> str:
    """The first sentences of a text."""
    return " ".join([s for s in _SENTENCE_END.split(text.strip()) if s][:num_sentences])


def random_span(text: str, num_words: int, number: int) -> str:
    """Consecutive words of a text from a position that `number` decides: the same in every run that is compared."""
    words = text.split()
    most = max(0, len(words) - num_words)
    start = int(np.random.default_rng(number).integers(0, most + 1))
    return " ".join(words[start : start + num_words])


def count_target_bigrams(train: Examples, vocab_size: int, step: int = 1) -> BigramCounts:
    """Bigram counts of the target tokens of every `step`-th training row, with the token before each target."""
    before, targets = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    numbers = range(0, len(train), step)
    for first in range(0, len(numbers), _CHUNK):  # a view of each row takes more memory than its ids
        rows = [
            (train.ids(n), *span)
            for n in numbers[first : first + _CHUNK]
            for span in target_spans(train.borders(n), train.lengths[n])
        ]
        before.append(np.concatenate([ids[start - 1 : stop - 1] for ids, start, stop in rows]))
        targets.append(np.concatenate([ids[start:stop] for ids, start, stop in rows]))
    return BigramCounts(np.concatenate(before), np.concatenate(targets), vocab_size)


class Fitted:
    """The baselines of a task, fitted on its training rows: the most frequent class, and how long answers are.

    bigram_counts: of the target tokens; None: no unigram and bigram perplexity.
    step: every `step`-th row is fitted on: 1, and 2, 4, 8 ... so that there are at most `MAX_ROWS`.
    """

    def __init__(self, task: Task, rows: Iterable[Row], bigram_counts: BigramCounts | None = None) -> None:
        self.task, self.bigram_counts = task, bigram_counts
        self.step = 1
        found: list[tuple[tuple[str, ...], int]] = []
        for number, row in enumerate(rows):
            if number % self.step == 0:
                answer = row.fields[task.target]
                classes = tuple(c for c, word in zip(row.classes, row.choices, strict=True) if word == answer)
                found.append((classes, len(answer.split())))
            if len(found) > MAX_ROWS:
                found, self.step = found[::2], 2 * self.step
        self.classes = Counter(name for classes, _ in found for name in classes)
        self.answer_words = array("i", [num_words for _, num_words in found])

    @property
    def sample(self) -> dict[str, object]:
        """The number of rows for the results, where they are a sample."""
        return {"num_baseline_rows": len(self.answer_words)} if self.step > 1 else {}

    def save(self, path: Path, key: str) -> None:
        """Writes what was fitted, with a key that says on which rows."""
        arrays = {"answer_words": np.array(self.answer_words, np.int32)}
        metadata = {"key": key, "step": str(self.step), "classes": json.dumps(self.classes, ensure_ascii=False)}
        if self.bigram_counts is not None:
            arrays |= self.bigram_counts.arrays()
            metadata |= {"weight": repr(self.bigram_counts.weight)}
        try:
            with replacing(path) as aside:
                save_file(arrays, aside, metadata)
        except (OSError, SafetensorError) as error:
            raise cannot_write(path, error) from error

    @classmethod
    def load(cls, task: Task, path: Path, key: str) -> "Fitted | None":
        """What `save` wrote; None where there is no such file, a damaged one, or one fitted on other rows."""
        if damage.tensors(path) is not None:
            return None
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            if metadata["key"] != key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        fitted = cls(task, ())
        fitted.step = int(metadata.get("step", "1"))
        fitted.classes.update(json.loads(metadata["classes"]))
        fitted.answer_words.extend(arrays["answer_words"].tolist())
        if "weight" in metadata:
            fitted.bigram_counts = BigramCounts.from_arrays(arrays, float(metadata["weight"]))
        return fitted

    @property
    def majority(self) -> str | None:
        """The most frequent class; None where there are none."""
        return self.classes.most_common(1)[0][0] if self.classes else None

    def predict(self, name: str, row: Row, number: int) -> str:
        """The prediction of a baseline by name, for the row of this number: a class name or a text."""
        if name == "majority":
            return self.majority or ""
        text = row.fields.get(self.task.truncate or "", "")
        if name.startswith("lead"):
            return lead(text, int(name.removeprefix("lead")))
        return random_span(text, self.answer_words[number % len(self.answer_words)], number)

    def numbers(self, text_metrics: Sequence[str]) -> BaselineNumbers:
        """Empty numbers of every baseline."""
        found = {name: {metric: metrics.Numbers() for metric in text_metrics} for name in self.task.baselines}
        if self.bigram_counts is not None:
            found |= {name: {"nll": metrics.Numbers()} for name in ("unigram", "bigram")}
        return found

    def add(
        self, into: BaselineNumbers, rows: Sequence[tuple[Row, "EncodedPrompt | None"]], first: int, measure: Measure
    ) -> None:
        """Adds the baselines' numbers of rows, of which the first has the number `first`."""
        for number, (row, prompt) in enumerate(rows, first):
            for name in self.task.baselines:
                for metric, found in measure(row, self.predict(name, row, number), row.accepted).items():
                    into[name][metric].append(found)
            if self.bigram_counts is not None and prompt is not None and prompt.target is not None:
                before = np.array([prompt.ids[-1], *prompt.target[:-1]])
                targets, text = np.array(prompt.target), row.fields[self.task.target]
                sizes = {"tokens": len(targets), "words": len(text.split()), "bytes": len(text.encode())}
                unigram, bigram = self.bigram_counts.unigram(targets), self.bigram_counts.bigram(before, targets)
                into["unigram"]["nll"].append({"nll": float(unigram.sum()), **sizes})
                into["bigram"]["nll"].append({"nll": float(bigram.sum()), **sizes})


def fit(task: Task, config: RunConfig) -> Fitted | None:
    """Fitted on the training rows as read, without tokens; None for a task without training rows."""
    if not any(has_split(source, "train") for source in resolve(task, config.data)):
        return None
    return Fitted(task, islice(read(task, "train", config.data, Counts()), config.data.limit))


def scores_of(numbers: Mapping[str, metrics.Numbers], task: Task, config: RunConfig) -> dict[str, Score]:
    """Scores with 95 % intervals; perplexity and bits per byte come from the same nats."""
    settings = config.eval.num_bootstrap, config.seed
    texts = {
        name: score_of(name, rows.measured(), *settings)
        for name, rows in numbers.items()
        if rows.columns and name != "nll"
    }
    nll = {}
    if numbers.get("nll") and numbers["nll"].columns:
        measured = numbers["nll"].measured()
        names = [name for name in metrics.FROM_NLL if name != "word_perplexity" or not task.is_closed]
        nll = {name: score_of(name, measured, *settings) for name in names}
    # Reports take the first metric as the task's score.
    return nll | texts if set(task.metrics[:1]) <= set(metrics.FROM_NLL) else texts | nll


def score_of(name: str, numbers: metrics.Numbers, num_bootstrap: int, seed: int) -> Score:
    """One score with its interval, rounded to six digits."""
    metric = metrics.build(name, "en")
    low, high = interval(metric.finish, numbers, num_bootstrap, seed)
    return Score(value=round(metrics.score(metric, numbers), 6), low=round(low, 6), high=round(high, 6))


def baseline_scores(numbers: BaselineNumbers, task: Task, config: RunConfig) -> dict[str, dict[str, Score]]:
    """The `baselines` of a results file."""
    return {name: found for name, each in numbers.items() if (found := scores_of(each, task, config))}


def data_of(task: Task, config: RunConfig, split: str) -> Data:
    """Where a split's rows come from; counts are left at 0."""
    sources = [source for source in resolve(task, config.data) if has_split(source, split)]
    found = [provenance(source, split, config.data) for source in sources]
    return Data(
        files=[file for one in found for file in one["files"]],
        sha256=[digest for one in found for digest in one["sha256"]],
        revision=next((one["revision"] for one in found if one["revision"]), None),
        split=split,
        num_rows=0,
    )


def trivial(tasks: Mapping[str, Task], config: RunConfig) -> tuple[dict[str, Data], dict[str, TaskScores]]:
    """`data` and `tasks` of a results file that no model made."""
    data, scores = {}, {}
    for name, task in tasks.items():
        fitted, counts, num_rows = fit(task, config), Counts(), 0
        text_metrics = [metric for metric in task.metrics if metric not in metrics.FROM_NLL]
        numbers = fitted.numbers(text_metrics) if fitted is not None else {}
        for row in islice(read(task, config.eval.split, config.data, counts), config.eval.max_rows):
            if fitted is not None:
                fitted.add(numbers, [(row, None)], num_rows, measure_with(text_metrics, config))
            num_rows += 1
        update = {"num_rows": num_rows, "num_truncated": 0, "num_dropped": 0, "num_skipped": counts.num_skipped}
        data[name] = data_of(task, config, config.eval.split).model_copy(update=update)
        found = baseline_scores(numbers, task, config)
        sample = fitted.sample if fitted is not None else {}
        scores[name] = TaskScores.model_validate(
            {"num_examples": num_rows, "metrics": {}, "baselines": found, **sample}
        )
    return data, scores


def measure_with(text_metrics: Sequence[str], config: RunConfig) -> Measure:
    """Measures texts, in NFC, with each row's language and its text tokenizer."""

    def measure(row: Row, prediction: str, references: Sequence[str]) -> dict[str, dict[str, float]]:
        prediction, references = normalize("NFC", prediction), [normalize("NFC", one) for one in references]
        if row.no_answer is not None:  # SQuAD 2.0 (Rajpurkar et al., 2018): right or wrong, never in part
            is_none = prediction == row.no_answer
            if references == [""]:
                prediction, references = row.no_answer if is_none else "", [row.no_answer]
            elif is_none:
                prediction = ""
        tokenizer = config.eval.rouge_tokenizer.get(row.language, "eojeol")
        try:
            return {
                name: metrics.build(name, row.language, tokenizer).per_example(prediction, references)
                for name in text_metrics
            }
        except InputError as error:
            raise InputError(f"{row.where}: {error}") from error

    return measure
