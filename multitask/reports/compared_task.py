"""One task as every arm answered it: rows, numbers of its metric, paired resamples."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.bootstrap import Resampled, Sample, bootstrap, sample, with_run_noise
from multitask.reports.arms import Arm, Score
from multitask.reports.results import json_lines, row_sets

NUM_RESAMPLES = 10_000
"""With 1,000, the joint intervals of 25 comparisons would end at the most extreme resamples."""


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
        has_numbers = metrics.is_known(self.metric) and self.metric not in metrics.DESCRIPTORS
        self.measure = metrics.build(self.metric, "en") if has_numbers else None
        self.texts: list[dict[str, object]] = []
        self.row_sets = row_sets((run for arm in compared for run in arm.runs), name)
        self._numbers: dict[tuple[str, ...], int] = {}
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
        seen: Counter[tuple[str, ...]] = Counter()
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

    def _row(self, record: Mapping[str, Any], seen: Counter[tuple[str, ...]]) -> int:
        """The number of a row by its id (of different files also its references) and, if repeated, its order."""
        same = (str(record["id"]), *map(str, record["references"] if len(self.row_sets) > 1 else ()))
        key = (*same, str(seen[same]))
        seen[same] += 1
        if key not in self._numbers:
            self._numbers[key] = len(self.texts)
            prompt = record.get("prompt", "")
            prompt = prompt if isinstance(prompt, str) else "\n".join(f"{k}: {v}" for k, v in prompt.items())
            references = [abridged(str(text), 300) for text in record["references"][:3]]
            self.texts.append({"id": same[0], "prompt": abridged(prompt, 700), "references": references})
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
        # Each task has its own resamples: otherwise tasks with as many rows would seem to vary together.
        return len(common), bootstrap(self.measure.finish, systems, NUM_RESAMPLES, zlib.crc32(self.name.encode()))

    def rescore(self, compared: Sequence[Arm]) -> None:
        """Replaces the scores of the metric by those on the common rows; a baseline stays where it is of just these.

        Raises InputError when an arm has none of them.
        """
        for arm in compared:
            if self.name not in arm.scores:
                continue
            if arm.runs and arm.name not in self.resampled:
                sets = "; ".join(f"{', '.join(paths)}: {rows}" for rows, paths in self.row_sets.items())
                raise InputError(
                    f"task '{self.name}' was scored on different rows ({sets}), and arm '{arm.name}' has no row that "
                    "all have (predictions beside each results file are needed); score all on the same rows "
                    "(data.sources, eval.split, eval.max_rows), or report them apart"
                )
            if arm.runs:
                found = self.resampled[arm.name]
                low, high = np.quantile(found.scores[1:] + found.noise, [0.025, 0.975])
                num = len(found.runs)
                sd = float(found.runs.std(ddof=1)) if num > 1 else None
                over = "seeds" if arm.shots is None else "draws"
                score = Score(float(found.scores[0]), max(0.0, float(low)), float(high), sd, num, over)
                arm.scores[self.name] = {self.metric: score}
            elif not any(rows.num_rows == self.num_paired for rows in self.row_sets):
                del arm.scores[self.name]
            else:
                arm.scores[self.name] = {
                    metric: arm.by_num_rows[self.name, metric, self.num_paired]
                    for metric in arm.scores[self.name]
                    if (self.name, metric, self.num_paired) in arm.by_num_rows
                }


def compared_tasks(compared: Sequence[Arm]) -> list[ComparedTask]:
    """Every task that an arm was scored on, with the noise of seeds and draws.

    Scores of a task whose files have different rows are replaced by those on the common rows.
    """
    tasks = [ComparedTask(name, compared) for name in dict.fromkeys(task for arm in compared for task in arm.scores)]
    pools = {arm.name: "seeds" if arm.shots is None else "draws" for arm in compared}
    for task, noisy in zip(tasks, with_run_noise([task.resampled for task in tasks], 0, pools), strict=True):
        task.resampled = noisy
        if len(task.row_sets) > 1:
            task.rescore(compared)
    return tasks


def abridged(text: str, most: int) -> str:
    """A long text without its middle: a passage is known by its beginning, a question is at the end."""
    return text if len(text) <= most else f"{text[: most // 3]} […] {text[-(most - most // 3) :]}"
