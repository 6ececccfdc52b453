"""Uncertainty over rows and seeds: bootstrap intervals, paired comparisons, simultaneous intervals.

Ten rows, the first system right on nine, the second on six of the same: the difference is 0.3, and how often it stays
above 0 when ten rows are drawn again with replacement, the same rows for both, tells how reliable it is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

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


class Effect(NamedTuple):
    """A difference of two scores, compared in a family with others.

    low, high: 95 % interval; the intervals of the family hold together (all of them contain the true difference in 95 %
    of families). p: two-sided, of this comparison alone. p_adjusted: for the family; below 0.05 where the interval does
    not contain 0.
    """

    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float


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
    noise: draws of how far that mean is from the mean over all seeds (or draws of demonstrations), (num_resamples,); 0
        of a single run.
    runs: the score of each run on the rows, (runs,).
    """

    scores: Array
    noise: Array
    runs: Array


def bootstrap(
    finish: Finish, systems: Mapping[str, Sequence[Sample]], num_resamples: int, seed: int
) -> dict[str, Resampled]:
    """Each system's score on the rows, and on resamples of them.

    Line n of every sample is the same row, and every system and run sees the same resamples, so differences between two
    systems are paired. A system of several runs (seeds, draws of demonstrations) scores the mean of their scores; the
    noise of that mean is added by `with_run_noise`.
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
    none = np.zeros(num_resamples)
    return {name: Resampled(each.mean(0), none, np.round(each[:, 0], 12)) for name, each in scores.items()}


def with_run_noise(
    tasks: Sequence[Mapping[str, Resampled]], seed: int, pools: Mapping[str, str] | None = None
) -> list[dict[str, Resampled]]:
    """The systems of each task with draws of the noise of their means over runs; a single run has none.

    Two runs resampled with replacement vary too little, and their variance alone has one degree of freedom. So, as in
    an analysis of variance, variances are pooled: s^2, the variance between runs over that over rows, on average over
    all tasks and systems, has f = sum(k_i - 1) degrees of freedom, k_i the runs of system i. The noise is then
    multivariate t, as in Dunnett's (1955) comparisons: s_i k_i^-0.5 z_i (f / chi^2_f)^0.5, with z_i normal and one
    chi^2_f for all. Against tasks and systems with more noise than others, s_i^2 is the largest of three: pooled over
    all, over the systems of the task, and the system's own.

    A test at 5 % then rejects at most 5 % of true null hypotheses, as simulated; where one task has sixteen times the
    variance of two others, 5 % if its rows vary as much as its runs, 10 % if they hardly vary.

    tasks: for each, systems by name. pools: by system, what its runs differ in (seeds, draws); systems of different
    pools are not pooled. Default: one pool.
    """
    rng = np.random.default_rng([seed, 1])
    found = [dict(task) for task in tasks]
    several = [(n, name) for n, task in enumerate(tasks) for name, system in task.items() if len(system.runs) > 1]
    for pool in dict.fromkeys((pools or {}).get(name, "") for _, name in several):
        members = [(n, name) for n, name in several if (pools or {}).get(name, "") == pool]
        own, over_rows, weights = {}, {}, {}
        for n, name in members:
            system = tasks[n][name]
            own[n, name] = float(system.runs.var(ddof=1))
            over_rows[n, name] = float(system.scores[1:].var())
            weights[n, name] = len(system.runs) - 1
        measured = [key for key in members if over_rows[key] > 1e-18]  # of equal rows, only rounding is left
        freedom = sum(weights[key] for key in measured)
        if not freedom:
            continue
        pooled = sum(weights[key] * own[key] / over_rows[key] for key in measured) / freedom
        widened = np.sqrt(freedom / rng.chisquare(freedom, len(tasks[members[0][0]][members[0][1]].noise)))
        for n, name in members:
            same = [key for key in members if key[0] == n]
            of_task = sum(weights[key] * own[key] for key in same) / sum(weights[key] for key in same)
            variance = max(own[n, name], of_task, pooled * over_rows[n, name])
            system = tasks[n][name]
            noise = (variance / len(system.runs)) ** 0.5 * rng.standard_normal(len(system.noise)) * widened
            found[n][name] = replace(system, noise=noise)
    return found


def unpaired(score: float, low: float, high: float, num_resamples: int, seed: int) -> Resampled:
    """A score of which only its 95 % interval is known, as normal draws that are independent of everything else."""
    from scipy import stats  # half a second of imports

    sd = (high - low) / (2 * float(stats.norm.ppf(0.975)))
    drawn = score + sd * np.random.default_rng([seed, 2]).standard_normal(num_resamples)
    return Resampled(np.concatenate([[score], drawn]), np.zeros(num_resamples), np.array([score]))


LEVEL = 0.05


def compare(pairs: Sequence[tuple[Resampled, Resampled]]) -> list[Effect]:
    """How much higher the first of each pair scores than the second, over rows and over seeds, as one family.

    The difference on each resample of the rows, with the noise of both means, is a draw from its distribution; the
    interval holds all but the fraction a / 2 of draws on each side. One a is used for the whole family, so chosen that
    in 95 % of draws no difference of the family is outside its interval (percentile intervals of equal coverage, Beran,
    1988; the p-value is the single-step minP of Westfall and Young, 1993). Comparisons that share rows and systems vary
    together, so this is less strict than Bonferroni's a = 0.05 / number and never stricter; of a single comparison
    it is the percentile interval.

    The p-value inverts the interval (Efron and Tibshirani, 1993, chapter 15): twice the smaller fraction of draws on
    either side of no difference. One is added to both counts: no number of resamples proves a probability of 0 (Davison
    and Hinkley, 1997, chapter 4).
    """
    if not pairs:
        return []
    observed, differences = [], []
    for first, second in pairs:
        found = np.round(first.scores - second.scores, 12)  # sums in another order differ in the last digit
        observed.append(float(found[0]))
        differences.append(found[1:] + first.noise - second.noise)
    num_draws = len(differences[0])
    rarest = np.full(num_draws, np.inf)  # of each draw, the smallest two-sided rank of its differences
    p_values = []
    for drawn in differences:
        ordered = np.sort(drawn)
        below = np.searchsorted(ordered, drawn, "right")
        above = num_draws - np.searchsorted(ordered, drawn, "left")
        rarest = np.minimum(rarest, 2 * np.minimum(below, above) / (1 + num_draws))
        tail = 1 + min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
        p_values.append(float(min(1.0, 2 * tail / (1 + num_draws))))
    level = min(LEVEL, float(np.quantile(rarest, LEVEL)))
    effects = []
    for difference, drawn, p in zip(observed, differences, p_values, strict=True):
        low, high = np.quantile(drawn, [level / 2, 1 - level / 2])
        adjusted = (1 + np.count_nonzero(rarest <= p)) / (1 + num_draws)
        effects.append(Effect(difference, float(low), float(high), p, float(min(1.0, max(p, adjusted)))))
    return effects


Verdict = Literal["better", "worse", "no clear difference"]


MIN_ROWS = 10
"""Fewer compared rows give no verdict: resamples of one row are all alike, and an interval of no width proves nothing.
Ten rows that all differ in one direction have a p-value of 2 / 2^10 in a sign test."""


def verdict(low: float, high: float, higher_is_better: bool, num_rows: int) -> Verdict:
    """From the interval of a difference: clear only on `MIN_ROWS` rows or more and where it does not contain 0."""
    if num_rows < MIN_ROWS or low <= 0 <= high:
        return "no clear difference"
    return "better" if (low > 0) == higher_is_better else "worse"


def difference_interval(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """The interval of a difference of two scores (value, low, high) of which the intervals are known (Newcombe, 1998).

    0.04 (0.03 to 0.06) less 0.46 (0.44 to 0.48) -> (-0.442, -0.392). Scores on the same rows mostly vary together; then
    it is wider than a paired interval.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def interval_over_runs(mean: float, low: float, high: float, sd: float, num_runs: int) -> tuple[float, float]:
    """The 95 % interval of a mean over runs (seeds, draws of demonstrations), over rows and runs.

    low, high: the interval over rows; sd: standard deviation of the runs' scores. Each half-width over rows gives a
    variance, to which sd^2 / num_runs is added; the sum has Satterthwaite's degrees of freedom, as a t statistic has.
    """
    from scipy import stats  # half a second of imports

    between = sd**2 / num_runs
    widths: list[float] = []
    for end in (low, high):
        total = ((end - mean) / float(stats.norm.ppf(0.975))) ** 2 + between
        freedom = total**2 / (between**2 / (num_runs - 1)) if between else np.inf
        widths.append(float(stats.t.ppf(0.975, freedom)) * total**0.5)
    return mean - widths[0], mean + widths[1]
