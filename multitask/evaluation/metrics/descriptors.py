"""What generated text is like by itself: distinct n-grams, repetition, length."""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from multitask.evaluation.metrics.base import MAX_CELLS

DESCRIPTORS = ("distinct1", "distinct2", "repetition", "length")
"""What written text is like by itself: references are ignored, may be none."""


class CorpusDistinct:
    """Distinct-n as in Li et al. (2016): different n-grams of all texts over the number of their n-grams.

    It shrinks as texts are added and is no sum over them, so it has no interval, and sets of different sizes cannot be
    compared. Memory: 8 bytes for each different n-gram (a 64-bit hash stands for it) and a fixed buffer.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.total = 0
        self._seen, self._new = np.empty(0, np.int64), array("q")

    def add(self, text: str) -> None:
        """Counts one text."""
        before = len(self._new)
        self._new.extend(map(hash, ngrams(text, self.n)))
        self.total += len(self._new) - before
        if len(self._new) > max(MAX_CELLS, len(self._seen)):
            self._merge()

    def value(self) -> float:
        """The share of n-grams that are different ones; 0 without any."""
        self._merge()
        return len(self._seen) / max(self.total, 1)

    def _merge(self) -> None:
        self._seen, self._new = np.union1d(self._seen, np.asarray(self._new)), array("q")


def ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """Neighbours of n words between white space, as they are: a loop of punctuation marks is a loop too."""
    words = text.split()
    return zip(*(words[first:] for first in range(n)), strict=False)


def distinct(name: str, n: int, repeats: bool, prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The share of different n-grams among those of one text, or the share that repeat an earlier one of that text.

    Distinct-n (Li et al., 2016) within each text, averaged over texts: over a whole set it is no sum
    (`CorpusDistinct`). Repetition is seq-rep-4 of Welleck et al. (2020), one minus that share of 4-grams. A text of
    fewer than n words has no n-gram and does not count.
    """
    found = list(ngrams(prediction, n))
    share = len(set(found)) / max(len(found), 1)
    return {name: (1.0 - share) * bool(found) if repeats else share, "count": float(bool(found))}


def length(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Words between white space (eojeol in Korean): one unit for all languages, so that a mean over them means one."""
    return {"length": float(len(prediction.split())), "count": 1.0}
