"""How much of a test set stands in the training set: equal texts, and word n-grams that occur in both.

train "a b c d e", test "A b  c d E" and "x b c d e", n = 3: the first is a duplicate; of the six n-grams of the test
(abc bcd cde, xbc bcd cde) five occur in train, and at least half of those of both texts.

The idea is the contamination study of GPT-3 (Brown et al., 2020, appendix C), which looked for n-grams of 8 to 13
words, folded as here: case, white space and punctuation do not count.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Owners = npt.NDArray[np.int64]

MIN_WORDS = 3
"""Words of the shortest n-gram: a test text of one or two words would be found in any training set."""
MAX_TRAIN = 1_000_000
"""Most training texts that are compared, the first ones; an example found in later ones is missed."""
_CHUNK = 4096  # training texts at a time
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: an odd factor loses nothing modulo 2^64


def measure_contamination(train_texts: Iterable[str], test_texts: Iterable[str], n: int = 8) -> dict[str, float | int]:
    """Overlap of test with train. Memory follows the test set alone, about 24 bytes a word; train is streamed.

    A test text of fewer than `n` words, as many Korean sentences are, is one n-gram of all its words, and is looked for
    in train at that length; below `MIN_WORDS` words it has none. Hashes of 64 bits stand for texts and n-grams.

    Returns:
        `num_train`, `num_test`: texts that were compared; of training texts the first `MAX_TRAIN`.
        `num_duplicates`: test texts equal to a training text after NFC, case and white-space folding.
        `ngram`: n.
        `num_short`: test texts of fewer than n words.
        `num_ngrams`, `overlap`: n-grams of the test, and the share of them that occurs in train (0 of none).
        `num_contained`: test texts at least half of whose n-grams occur in train.
    """
    if n < MIN_WORDS:
        raise ValueError(f"n-grams of {n} words; at least {MIN_WORDS} were expected")
    texts: list[Hashes] = []
    grams: dict[int, list[tuple[Hashes, Owners]]] = {size: [] for size in range(MIN_WORDS, n + 1)}
    num_test = num_short = 0
    for whole, words, owners in _hashed(test_texts):
        texts.append(whole)
        lengths = np.bincount(owners, minlength=len(whole))
        num_short += int((lengths < n).sum())
        for size, found in grams.items():
            chosen = (lengths >= n if size == n else lengths == size)[owners]
            hashes, of = _ngrams(words[chosen], owners[chosen], size)
            found.append((hashes, of + num_test))
        num_test += len(whole)
    wanted = {0: _Wanted([(t, np.empty(0, np.int64)) for t in texts])}
    wanted |= {size: made for size, found in grams.items() if len((made := _Wanted(found)).hashes)}
    num_train = 0
    for whole, words, owners in _hashed(islice(train_texts, MAX_TRAIN)):
        num_train += len(whole)
        for size, sought in wanted.items():
            sought.find(whole if size == 0 else _ngrams(words, owners, size)[0])
    num_ngrams, hits = np.zeros(num_test, np.int64), np.zeros(num_test, np.int64)
    for size, sought in wanted.items():
        if size:
            num_ngrams += np.bincount(sought.owners, minlength=num_test)
            hits += np.bincount(sought.owners[sought.was_found()], minlength=num_test)
    return {
        "num_train": num_train,
        "num_test": num_test,
        "num_duplicates": int(wanted[0].was_found().sum()),
        "ngram": n,
        "num_short": num_short,
        "num_ngrams": int(num_ngrams.sum()),
        "overlap": float(hits.sum() / max(1, num_ngrams.sum())),
        "num_contained": int(((num_ngrams > 0) & (2 * hits >= num_ngrams)).sum()),
    }


class _Wanted:
    """Hashes of the test set, whose they are, and which of them a search has met."""

    def __init__(self, parts: list[tuple[Hashes, Owners]]) -> None:
        self.hashes = np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in parts)])
        self.owners = np.concatenate([np.empty(0, np.int64), *(owners for _, owners in parts)])
        self._sorted = np.unique(self.hashes)
        self._met = np.zeros(len(self._sorted), bool)

    def find(self, hashes: Hashes) -> None:
        if len(self._sorted):
            at = np.searchsorted(self._sorted, hashes).clip(max=len(self._sorted) - 1)
            self._met[at[self._sorted[at] == hashes]] = True

    def was_found(self) -> npt.NDArray[np.bool_]:
        """Of each hash, in the order given."""
        return self._met[np.searchsorted(self._sorted, self.hashes)]


def _hashed(texts: Iterable[str]) -> Iterator[tuple[Hashes, Hashes, Owners]]:
    """Some texts at a time: a hash of each whole text, of each word, and the number of the text each word is of."""
    texts = iter(texts)
    while chunk := list(islice(texts, _CHUNK)):
        whole, words, owners = array("q"), array("q"), array("q")
        for number, text in enumerate(chunk):
            folded = unicodedata.normalize("NFC", text).casefold()
            whole.append(hash(" ".join(folded.split())))
            before = len(words)
            words.extend(map(hash, re.findall(r"\w+", folded)))
            owners.extend([number] * (len(words) - before))
        yield np.array(whole).view(np.uint64), np.array(words).view(np.uint64), np.array(owners)


def _ngrams(words: Hashes, owners: Owners, n: int) -> tuple[Hashes, Owners]:
    """Hashes of n neighbours of one text, and the number of that text."""
    num = max(0, len(words) - n + 1)
    total = np.zeros(num, np.uint64)
    for first in range(n):
        total = total * _ODD + words[first : first + num]
        total ^= total >> np.uint64(29)  # so that the order of words tells in every bit
    inside = owners[:num] == owners[n - 1 : n - 1 + num]
    return total[inside], owners[:num][inside]
