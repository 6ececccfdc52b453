"""Uncertainty over rows and seeds: bootstrap intervals, paired tests, Holm's correction.

Ten rows, the first system right on nine, the second on six of the same: the difference is 0.3, and how often it stays
above 0 when ten rows are drawn again with replacement, the same rows for both, tells how reliable it is.
"""

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


@dataclass(frozen=True)
class Resampled:
    """One system's scores.

    scores: on the rows (first), then on resamples of them, (1 + num_resamples,); of several runs their mean.
    run_variance: variance of that mean between runs (seeds, draws of demonstrations), s^2 / k; 0 for a single run.
    num_runs: k.
    """

    scores: Array
    run_variance: float
    num_runs: int


def bootstrap(
    finish: Finish, systems: Mapping[str, Sequence[Sample]], num_resamples: int, seed: int
) -> dict[str, Resampled]:
    """Each system's score on the rows, and on resamples of them.

    Line n of every sample is the same row, and every system and run sees the same resamples, so differences between two
    systems are paired. A system of several runs (seeds, draws of demonstrations) scores the mean of their scores.
    """
    (num_rows,) = {len(run.values) for runs in systems.values() for run in runs}
    rng = np.random.default_rng(seed)
    scores = {name: np.empty((len(runs), 1 + num_resamples)) for name, runs in systems.items()}
    block = max(1, MAX_CELLS // num_rows)
    for start in range(0, 1 + num_resamples, block):
        size = min(block, 1 + num_resamples - start)
        drawn = rng.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)
        if start == 0:
            times[0] = 1
        for name, runs in systems.items():
            for number, run in enumerate(runs):
                sums = times @ run.values
                scores[name][number, start : start + size] = finish(
                    {column: sums[:, place] for place, column in enumerate(run.columns)}
                )
    return {name: _resampled(each) for name, each in scores.items()}


def _resampled(scores: Array) -> Resampled:
    """scores: of each run, (runs, 1 + num_resamples)."""
    num_runs = len(scores)
    variance = float(np.round(scores[:, 0], 12).var(ddof=1)) / num_runs if num_runs > 1 else 0.0
    return Resampled(scores.mean(0), variance, num_runs)


def effect(first: Resampled, second: Resampled, seed: int = 0) -> Effect:
    """How much higher the first scores than the second, over rows and over seeds.

    Rows are resampled. Two or three seeds drawn with replacement spread too little, so the seed noise of a difference
    is drawn from a distribution with the variance found between seeds, v_i = s_i^2 / k_i for the k_i seeds of system i:

    - Both systems have several seeds: normal noise, and the whole distribution is widened as Student's t is, with
      V^2 / sum(v_i^2 / (k_i - 1)) degrees of freedom (Satterthwaite, 1946), V the variance of the difference.
    - One of them has: v_1^0.5 times Student's t with k_1 - 1 degrees of freedom (the Behrens-Fisher distribution;
      Fisher, 1935). Satterthwaite's approximation rejects too often here: 12 % at a level of 5 % with two seeds.
    - None has: rows are all that is resampled.

    Rows alone make a third of all comparisons of equal systems significant at 5 %, given two seeds and a seed noise of
    two points.

    The p-value inverts the interval (Efron and Tibshirani, 1993, chapter 15): twice the smaller fraction of resamples
    on either side of no difference, so it is below 0.05 just when the 95 % interval does not contain 0. One is added to
    both counts: no number of resamples proves a probability of 0 (Davison and Hinkley, 1997, chapter 4).
    """
    differences = np.round(first.scores - second.scores, 12)  # sums in another order differ in the last digit
    observed, drawn = float(differences[0]), differences[1:]
    parts = [(one.run_variance, one.num_runs) for one in (first, second) if one.run_variance > 0]
    rng = np.random.default_rng(seed)
    if len(parts) == 1:
        ((variance, num_runs),) = parts
        drawn = drawn + variance**0.5 * rng.standard_t(num_runs - 1, len(drawn))
    elif parts:
        between = sum(variance for variance, _ in parts)
        total = between + float(drawn.var())
        freedom = total**2 / sum(variance**2 / (num_runs - 1) for variance, num_runs in parts)
        noise = rng.normal(0.0, between**0.5, len(drawn))
        widened = np.sqrt(freedom / rng.chisquare(freedom, len(drawn)))
        drawn = observed + (drawn - observed + noise) * widened
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = 1 + min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return Effect(observed, float(low), float(high), float(min(1.0, 2 * tail / (1 + len(drawn)))))


def interval_over_runs(mean: float, low: float, high: float, sd: float, num_runs: int) -> tuple[float, float]:
    """The 95 % interval of a mean over runs (seeds, draws of demonstrations), over rows and runs.

    low, high: the interval over rows; sd: standard deviation of the runs' scores. Each half-width over rows gives a
    variance, to which sd^2 / num_runs is added; the sum has Satterthwaite's degrees of freedom, as in `effect`.
    """
    from scipy import stats  # half a second of imports

    between = sd**2 / num_runs
    widths: list[float] = []
    for end in (low, high):
        total = ((end - mean) / float(stats.norm.ppf(0.975))) ** 2 + between
        freedom = total**2 / (between**2 / (num_runs - 1)) if between else np.inf
        widths.append(float(stats.t.ppf(0.975, freedom)) * total**0.5)
    return mean - widths[0], mean + widths[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979): the smallest times m, the next times m - 1, never falling."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
