"""What counting alone predicts: the nats of tokens by their frequency, and by their frequency after the one before.

`BigramCounts(ids, 300).bigram(before, targets)` -> nats (M,). P(b|a) = (n(ab) + k P(b)) / (n(a) + k): pairs, smoothed
towards single tokens by a Dirichlet prior of weight k (MacKay & Peto, 1995), k being the one of a few that finds a
tenth of the training pairs likeliest when it is counted on the others.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
MOST_PAIRS = 20_000_000
"""BigramCounts at most: some 500 MB while they are sorted."""


class BigramCounts:
    """Pairs of one token and the next, counted.

    before, targets: ids (N,) of pairs; the first `MOST_PAIRS` are counted. vocab_size: number of different ids.
    """

    def __init__(self, before: Ints, targets: Ints, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        before, targets = before[:MOST_PAIRS].astype(np.int64), targets[:MOST_PAIRS].astype(np.int64)
        is_held = np.arange(len(targets)) % 10 == 9
        self._count(before[~is_held], targets[~is_held])
        self.weight = _WEIGHTS[0]
        tried = {}
        for weight in _WEIGHTS if is_held.any() else ():
            self.weight = weight
            tried[weight] = float(self.bigram(before[is_held], targets[is_held]).sum())
        self.weight = min(tried, key=lambda weight: tried[weight]) if tried else _WEIGHTS[0]
        self._count(before, targets)

    def _count(self, before: Ints, targets: Ints) -> None:
        singles = np.bincount(targets, minlength=self.vocab_size) + 1.0
        self._share = singles / singles.sum()
        self._firsts = np.bincount(before, minlength=self.vocab_size)
        self._pairs, self._num = np.unique(before * self.vocab_size + targets, return_counts=True)

    def unigram(self, targets: Ints) -> Floats:
        """Nats (M,) of ids by their frequency, with add-one smoothing."""
        nats: Floats = -np.log(self._share[targets])
        return nats

    def bigram(self, before: Ints, targets: Ints) -> Floats:
        """Nats (M,) of ids by their frequency after the ids before them, (M,)."""
        sought = before.astype(np.int64) * self.vocab_size + targets
        at = np.minimum(np.searchsorted(self._pairs, sought), max(0, len(self._pairs) - 1))
        found = np.where(self._pairs[at] == sought, self._num[at], 0) if len(self._pairs) else np.zeros(len(sought))
        share = (found + self.weight * self._share[targets]) / (self._firsts[before] + self.weight)
        nats: Floats = -np.log(share)
        return nats

    @property
    def entropy(self) -> float:
        """Nats of the next token given the current one, as counted, without smoothing: what training comes down to."""
        total = self._num.sum()
        firsts = self._firsts[self._pairs // self.vocab_size]
        return float(-(self._num * np.log(self._num / firsts)).sum() / total)
