"""BigramCounts pairs: probabilities that sum to one, by hand, and better than single tokens where order matters."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from multitask.models import bigram as models_bigram
from multitask.models.bigram import BigramCounts


def chain(num: int, seed: int = 0) -> np.ndarray:
    """A text of 20 tokens, each mostly followed by the next one."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([1, 2, 7], num, p=[0.8, 0.15, 0.05])
    return np.asarray(np.cumsum(steps) % 20, np.uint16)


def test_counts_by_hand() -> None:
    text = np.array([0, 1, 0, 1, 0, 2], np.uint16)
    counted = BigramCounts(text[:-1], text[1:], 4)
    share = np.array([3, 3, 2, 1]) / 9  # of the targets 1 0 1 0 2, with add-one smoothing
    assert counted.unigram(np.arange(4)) == pytest.approx(-np.log(share))
    k = counted.weight
    assert counted.bigram(np.array([0, 0, 3]), np.array([1, 3, 3])) == pytest.approx(
        -np.log([(2 + k * share[1]) / (3 + k), k * share[3] / (3 + k), share[3]])
    )


@pytest.mark.parametrize("num", [2, 30, 3000])
def test_probabilities_sum_to_one(num: int) -> None:
    text = chain(num)
    counted = BigramCounts(text[:-1], text[1:], 25)
    targets = np.arange(25)
    assert np.exp(-counted.unigram(targets)).sum() == pytest.approx(1)
    for before in range(25):
        assert np.exp(-counted.bigram(np.full(25, before), targets)).sum() == pytest.approx(1)


def test_entropy_is_that_of_the_counts() -> None:
    text = chain(500)
    pairs, firsts = Counter(pairwise(text.tolist())), Counter(text[:-1].tolist())
    expected = -sum(n * math.log(n / firsts[a]) for (a, _), n in pairs.items()) / (len(text) - 1)
    counted = BigramCounts(text[:-1], text[1:], 20)
    assert counted.entropy == pytest.approx(expected)


def test_pairs_are_better_than_single_tokens_where_order_matters() -> None:
    text, other = chain(5000), chain(2000, seed=1)
    counted = BigramCounts(text[:-1], text[1:], 20)
    bigram, unigram = counted.bigram(other[:-1], other[1:]).mean(), counted.unigram(other[1:]).mean()
    true = -(0.8 * math.log(0.8) + 0.15 * math.log(0.15) + 0.05 * math.log(0.05))
    assert unigram == pytest.approx(math.log(20), abs=0.02)
    assert bigram == pytest.approx(true, abs=0.05)
    # Where it does not, smoothing leaves it no worse.
    noise = np.random.default_rng(2).integers(0, 200, 3000)
    counted = BigramCounts(noise[:-1], noise[1:], 200)
    fresh = np.random.default_rng(3).integers(0, 200, 3000)
    assert counted.weight >= 300
    assert counted.bigram(fresh[:-1], fresh[1:]).mean() < counted.unigram(fresh[1:]).mean() + 0.02


def test_of_a_long_text_the_beginning_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = chain(100)
    expected = BigramCounts(text[:40], text[1:41], 20)
    monkeypatch.setattr(models_bigram, "MOST_PAIRS", 40)
    found = BigramCounts(text[:-1], text[1:], 20)
    assert found.entropy == expected.entropy
    assert found.bigram(text[:-1], text[1:]).tolist() == expected.bigram(text[:-1], text[1:]).tolist()


def test_ids_of_two_bytes_make_pairs_of_more() -> None:
    text = np.array([50_000, 60_000, 50_000, 60_000, 50_000, 1], np.uint16)
    counted = BigramCounts(text[:-1], text[1:], 65_000)
    assert len(counted._pairs) == 3
    sure, never = counted.bigram(np.array([60_000, 60_000], np.uint16), np.array([50_000, 60_000], np.uint16))
    assert sure < 0.5 < 5 < never
