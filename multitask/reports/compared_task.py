"""One task as every arm answered it: rows, numbers of its metric, paired resamples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.bootstrap import Resampled, Sample, bootstrap, sample
from multitask.reports.arms import Arm
from multitask.reports.results import json_lines

NUM_RESAMPLES = 10_000
"""With 1,000, the smallest p-value is 0.002, which nothing survives a correction for 25 comparisons with."""


@dataclass
class Answers:
    """One arm's rows of a task.

    runs: of each seed or draw, row numbers and the numbers of the task's metric.
    predictions: by row number, what the first run answered, and its score.
    confusion: (gold, predicted) of all runs; empty for an open task.
    """

    runs: list[tuple[list[int], Sample]] = field(default_factory=list)
    predictions: dict[int, tuple[str, float]] = field(default_factory=dict)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)


class ComparedTask:
    """A task: the metric that is its score, its rows, the answers of each arm that left any."""

    def __init__(self, name: str, compared: Sequence[Arm]) -> None:
        self.name = name
        measured = [
            list(arm.scores[name]) for arm in sorted(compared, key=lambda a: a.kind == "baseline") if name in arm.scores
        ]
        # Perplexities of different tokenizers cannot be compared; bits per byte can.
        self.metric = measured[0][0]
        if self.metric == "perplexity" and all("bits_per_byte" in names for names in measured):
            self.metric = "bits_per_byte"
        has_numbers = self.metric in metrics.NAMES and self.metric not in metrics.DESCRIPTORS
        self.measure = metrics.build(self.metric, "en") if has_numbers else None
        self.texts: list[dict[str, object]] = []
        self._numbers: dict[tuple[str, int], int] = {}
        self.answers: dict[str, Answers] = {}
        for arm in sorted(compared, key=lambda arm: arm.shots is not None):  # a prompt without demonstrations is shown
            if name in arm.scores and (files := arm.predictions(name)):
                self.answers[arm.name] = answers = Answers()
                for path in files:
                    self._read(path, answers)
        self.num_paired, self.resampled = self._resample()

    @property
    def higher_is_better(self) -> bool:
        """Which way is up; a metric that is not ours is taken to rise."""
        return self.measure is None or bool(self.measure.higher_is_better)

    def _read(self, path: Path, into: Answers) -> None:
        seen: Counter[str] = Counter()
        rows, numbers = [], []
        is_first = not into.runs
        for line, record in json_lines(path):
            try:
                row = self._row(record, seen)
                nll, scores, prediction = record.get("nll", {}), record.get("scores", {}), record.get("prediction")
                found = nll if self.metric in metrics.FROM_NLL else scores.get(self.metric, {})
                if found:
                    rows.append(row)
                    numbers.append({key: float(value) for key, value in found.items()})
                if prediction is None:
                    continue
                references = record["references"]
                if "choice_nll" in record or "macro_f1" in scores:
                    gold = prediction if prediction in references else references[0]
                    into.confusion[gold, prediction] += 1
                if is_first:
                    score = float(self.measure.finish(numbers[-1])) if found and self.measure else 0.0
                    into.predictions[row] = (str(prediction), round(score, 4))
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    f"{path}:{line}: not a line of predictions ({type(error).__name__}: {error}); expected id, prompt, "
                    "prediction, references, scores and nll as evaluate and fewshot write them"
                ) from None
        into.runs.append((rows, sample(numbers)))

    def _row(self, record: Mapping[str, Any], seen: Counter[str]) -> int:
        """The number of a row by its id; ids that a file says twice are told apart by their order."""
        key = (str(record["id"]), seen[str(record["id"])])
        seen[key[0]] += 1
        if key not in self._numbers:
            self._numbers[key] = len(self.texts)
            prompt = record.get("prompt", "")
            prompt = prompt if isinstance(prompt, str) else "\n".join(f"{k}: {v}" for k, v in prompt.items())
            references = [abridged(str(text), 300) for text in record["references"][:3]]
            self.texts.append({"id": key[0], "prompt": abridged(prompt, 700), "references": references})
        return self._numbers[key]

    def _resample(self) -> tuple[int, dict[str, Resampled]]:
        """Scores of each arm on the rows that all of them have numbers of, and on resamples of these."""
        tested = {arm: a.runs for arm, a in self.answers.items() if self.measure and all(rows for rows, _ in a.runs)}
        if not tested:
            return 0, {}
        common = set.intersection(*(set(rows) for runs in tested.values() for rows, _ in runs))
        if not common:
            return 0, {}
        systems: dict[str, list[Sample]] = {}
        for arm, runs in tested.items():
            systems[arm] = []
            for rows, numbers in runs:
                lines = {row: line for line, row in enumerate(rows)}
                systems[arm].append(numbers.take(np.array([lines[row] for row in sorted(common)])))
        assert self.measure is not None
        return len(common), bootstrap(self.measure.finish, systems, NUM_RESAMPLES, seed=0)


def abridged(text: str, most: int) -> str:
    """A long text without its middle: a passage is known by its beginning, a question stands at the end."""
    return text if len(text) <= most else f"{text[: most // 3]} […] {text[-(most - most // 3) :]}"
