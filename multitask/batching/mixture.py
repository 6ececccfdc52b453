"""Which task and which row come next: the k-th draw is a pure function of (seed, k).

With sizes {"a": 4, "b": 2} the draws hold two `a` for each `b`; each task goes through its rows in an order of its own,
every row once per epoch of that task.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from multitask.errors import InputError, suggest

STRATUM = 256
Ints = npt.NDArray[np.int64]


def sampling_rates(
    sizes: Mapping[str, int],
    mixing_temperature: float = 1.0,
    cap: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Probability of each task, summing to 1: min(rows, cap)^(1/temperature), or the explicit weights.

    Raffel et al. (2020), section 3.5.2: examples-proportional and temperature-scaled mixing.
    """
    if weights:
        for name in [*weights, *sizes]:
            if name not in sizes:
                raise InputError(f"train.mixture_weights: unknown task '{name}'; {suggest(name, sizes)}")
            if not 0 < weights.get(name, 0) < math.inf:  # NaN is no number above 0 either
                raise InputError(f"train.mixture_weights: task '{name}' needs a weight above 0")
        raw = {name: float(weights[name]) for name in sizes}
    else:
        raw = {n: float(min(size, cap or size)) ** (1.0 / mixing_temperature) for n, size in sizes.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


@dataclass
class Mixture:
    """Draws from several tasks.

    Within each stratum of 256 draws the tasks' counts are within one of their shares (stratified, then shuffled), so a
    short run sees the same mixture as a long one.
    """

    sizes: Mapping[str, int]
    share: Mapping[str, float]
    seed: int
    _counts: list[Ints] = field(default_factory=list, repr=False)
    _orders: dict[tuple[int, int], Ints] = field(default_factory=dict, repr=False)

    def draws(self, start: int, stop: int) -> tuple[Ints, Ints, Ints]:
        """Draws `start` to `stop`: task numbers, epochs of their tasks, and rows; each an array (stop - start,)."""
        first = start // STRATUM
        last = max(first + 1, -(-stop // STRATUM))  # an empty stretch lies in a stratum too
        before = self._before(first)
        tasks = np.concatenate([self._tasks(n) for n in range(first, last)])
        rank = np.empty(len(tasks), np.int64)
        for number in range(len(self.sizes)):
            mine = tasks == number
            rank[mine] = before[number] + np.arange(int(mine.sum()))
        window = slice(start - first * STRATUM, stop - first * STRATUM)
        tasks, rank = tasks[window], rank[window]
        size = np.array(list(self.sizes.values()), np.int64)[tasks]
        epoch, place = rank // size, rank % size
        rows = np.empty(len(tasks), np.int64)
        # In order, so that `_order` can forget: a tiny task has hundreds of epochs in one window.
        for number, turn in sorted({(int(n), int(e)) for n, e in zip(tasks, epoch, strict=True)}):
            mine = (tasks == number) & (epoch == turn)
            rows[mine] = self._order(number, turn)[place[mine]]
        return tasks, epoch, rows

    def epochs(self, stop: int) -> dict[str, float]:
        """How often each task's rows are drawn in the first `stop` draws, to the stratum: `{"nli": 1.25, ...}`."""
        counts = self._before(stop // STRATUM)
        return {name: round(float(n) / size, 4) for (name, size), n in zip(self.sizes.items(), counts, strict=True)}

    def _before(self, stratum: int) -> Ints:
        """Draws of each task before a stratum; remembered, since they add up from the first."""
        if not self._counts:
            self._counts.append(np.zeros(len(self.sizes), np.int64))
        while len(self._counts) <= stratum:
            drawn = self._tasks(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + np.bincount(drawn, minlength=len(self.sizes)))
        return self._counts[stratum]

    def _tasks(self, stratum: int) -> Ints:
        """Task numbers of one stratum, (256,)."""
        rng = np.random.default_rng([self.seed, 1, stratum])
        place = (rng.permutation(STRATUM) + rng.random()) / STRATUM
        edges = np.cumsum(list(self.share.values()))[:-1]
        return np.searchsorted(edges, place, side="right").astype(np.int64)

    def _order(self, number: int, epoch: int) -> Ints:
        """The order of a task's rows in one of its epochs; the last two epochs of each task are remembered."""
        if (number, epoch) not in self._orders:
            size = list(self.sizes.values())[number]
            self._orders.pop((number, epoch - 2), None)
            self._orders[number, epoch] = np.random.default_rng([self.seed, 2, number, epoch]).permutation(size)
        return self._orders[number, epoch]
