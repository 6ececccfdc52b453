"""Uncertainty over rows: percentile bootstrap intervals, paired tests, Holm's correction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multitask.errors import InputError
from multitask.evaluation.metrics.base import MAX_CELLS, Numbers
from multitask.inference.likelihood import Finish


def interval(
    finish: Finish, numbers: Numbers | Iterable[Mapping[str, float]], num_resamples: int, seed: int | Sequence[int]
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval over rows (Efron, 1979): low and high end of the score.

    Which rows are drawn depends on the seed and the number of rows alone, so two systems scored on the same rows with
    the same seed are resampled alike. Raises InputError without examples.
    """
    numbers = numbers if isinstance(numbers, Numbers) else Numbers(numbers)
    n, columns = len(numbers), numbers.columns
    if not n:
        raise InputError("there are no examples to resample; at least one was expected")
    rng = np.random.default_rng(seed)
    # The numbers are kept sparse, and resamples are finished a block at a time: macro-F1 has a column per class, and a
    # model that writes freely makes up as many classes as there are rows.
    block = max(1, MAX_CELLS // len(columns))
    scores = []
    for start in range(0, num_resamples, block):
        sums = np.empty((min(block, num_resamples - start), len(columns)))
        for resample in sums:
            resample[:] = numbers.sums(np.bincount(rng.integers(n, size=n), minlength=n))
        scores.append(finish({key: sums[:, column] for key, column in columns.items()}))
    low, high = np.quantile(np.concatenate(scores), [0.025, 0.975])
    return float(low), float(high)


Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """The numbers of one run: a column for each name, a line for each example, (N, columns)."""

    columns: tuple[str, ...]
    values: Array

    def take(self, lines: NDArray[Any]) -> "Sample":
        """These lines, in this order."""
        return Sample(self.columns, self.values[lines])


@dataclass(frozen=True)
class Effect:
    """A difference of two scores, its 95 % interval over rows, and the two-sided p-value of there being none."""

    difference: float
    low: float
    high: float
    p: float


def sample(rows: Sequence[Mapping[str, float]]) -> Sample:
    """Numbers of examples, as `per_example` of a metric gives them, in one array; a number not given is 0."""
    places: dict[str, int] = {}
    for row in rows:
        for name in row:
            places.setdefault(name, len(places))
    values = np.zeros((len(rows), len(places)))
    for line, row in enumerate(rows):
        for name, value in row.items():
            values[line, places[name]] = value
    return Sample(tuple(places), values)


def bootstrap(
    finish: Finish, systems: Mapping[str, Sequence[Sample]], num_resamples: int, seed: int
) -> dict[str, Array]:
    """Each system's score on the rows (first), then on resamples of them: arrays of (1 + num_resamples,).

    Line n of every sample is the same row, and every system and run sees the same draws, so differences of two of
    these arrays are paired. A system of several runs (seeds, draws of demonstrations) scores the mean of their scores:
    rows are what is drawn, however many runs answered them.
    """
    (num_rows,) = {len(run.values) for runs in systems.values() for run in runs}
    rng = np.random.default_rng(seed)
    scores = {name: np.empty(1 + num_resamples) for name in systems}
    block = max(1, MAX_CELLS // num_rows)
    for start in range(0, 1 + num_resamples, block):
        size = min(block, 1 + num_resamples - start)
        drawn = rng.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)
        if start == 0:
            times[0] = 1
        for name, runs in systems.items():
            total = np.zeros(size)
            for run in runs:
                sums = times @ run.values
                total += finish({column: sums[:, place] for place, column in enumerate(run.columns)})
            scores[name][start : start + size] = total / len(runs)
    return scores


def effect(first: Array, second: Array) -> Effect:
    """How much higher the first scores than the second, from two arrays of `bootstrap`.

    The p-value is the interval turned round (Efron and Tibshirani, 1993, chapter 15): twice the smaller share of
    resamples on either side of no difference, so it is below 0.05 just when the 95 % interval leaves 0 out. One is
    added to both counts: no number of resamples proves a probability of 0 (Davison and Hinkley, 1997, chapter 4).
    """
    differences = np.round(first - second, 12)  # sums in another order differ by dust, which has a sign
    drawn = differences[1:]
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = 1 + min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return Effect(float(differences[0]), float(low), float(high), float(min(1.0, 2 * tail / (1 + len(drawn)))))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979): the smallest times m, the next times m - 1, never falling."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
