"""Train against test: counted by hand and by brute force, in memory of the test set alone."""

import random
import re
import tracemalloc
import unicodedata

import pytest

from multitask.data import contamination as module
from multitask.data.contamination import measure_contamination


def test_the_example_by_hand():
    found = measure_contamination(
        ["a b c d e"], ["A b  c d E", "x b c d e", "a b c", "no more than that", "a b", ""], n=3
    )
    assert found == {
        "num_train": 1,
        "num_test": 6,
        "num_duplicates": 1,
        "ngram": 3,
        "num_short": 2,
        "num_ngrams": 3 + 3 + 1 + 2,
        "overlap": 6 / 9,
        "num_contained": 3,
    }


def test_duplicates_are_folded_and_counted_per_row():
    train = ["서울은  수도이다.\n", unicodedata.normalize("NFD", "가나다 라마바"), "Straße", "one two"]
    test = ["서울은 수도이다.", "서울은 수도이다.", "가나다 라마바", "STRASSE", "one two!", "one", "서울은 수도이다"]
    assert measure_contamination(train, test)["num_duplicates"] == 4, "punctuation and words are not folded"


def test_short_texts_are_one_ngram():
    train = ["오늘 영화는 정말 재미있었다, 또 보고 싶다"]
    test = ["정말 재미있었다 또", "정말 재미없었다 또", "또 보고", "오늘 영화는 정말 재미있었다 또 보고 싶다"]
    found = measure_contamination(train, test, n=8)
    assert (found["num_short"], found["num_ngrams"]) == (4, 3)
    assert (found["overlap"], found["num_contained"]) == (pytest.approx(2 / 3), 2)
    assert found["num_duplicates"] == 0, "the comma makes a difference"


def test_ngrams_do_not_run_from_one_text_into_the_next():
    assert measure_contamination(["a b c", "d e f"], ["b c d e"], n=4)["overlap"] == 0
    assert measure_contamination(["b c d e"], ["a b c", "d e f"], n=3)["overlap"] == 0
    assert measure_contamination(["c b a", "a a b", "a b b"], ["a b c", "b a a", "b b a"], n=3)["overlap"] == 0, (
        "order counts"
    )


def test_nothing_to_compare():
    nothing = {"num_duplicates": 0, "num_ngrams": 0, "overlap": 0, "num_contained": 0, "ngram": 8}
    assert measure_contamination([], []) == {"num_train": 0, "num_test": 0, "num_short": 0} | nothing
    assert measure_contamination(["a"], ["?!"]) == {"num_train": 1, "num_test": 1, "num_short": 1} | nothing
    with pytest.raises(ValueError, match="n-grams of 2 words; at least 3 were expected"):
        measure_contamination([], [], n=2)


@pytest.mark.parametrize("n", [3, 5])
def test_it_is_brute_force(n, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 7)
    rng = random.Random(n)
    num_partly = num_duplicates = 0
    for _ in range(40):
        words = ["The", "the", "고양이가", "앉았다.", "cat,", "😀", "a", "3.5"]
        train, test = (
            [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(rng.randint(0, 40))] for _ in range(2)
        )
        test += rng.sample(train, len(train) // 4)
        found = measure_contamination(iter(train), iter(test), n)

        grams = {size: set() for size in range(n + 1)}
        for text in train:
            tokens = re.findall(r"\w+", text.casefold())
            for size, seen in grams.items():
                seen.update(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
        total = hits = contained = 0
        for text in test:
            tokens = re.findall(r"\w+", text.casefold())
            size = min(n, len(tokens))
            own = [tuple(tokens[i : i + size]) in grams[size] for i in range(len(tokens) - size + 1) if size >= 3]
            total, hits = total + len(own), hits + sum(own)
            contained += bool(own) and sum(own) >= len(own) / 2
        assert found["num_duplicates"] == sum(t.casefold() in {r.casefold() for r in train} for t in test)
        assert (found["num_ngrams"], found["num_contained"]) == (total, contained)
        assert found["overlap"] == pytest.approx(hits / max(1, total))
        num_partly += 0 < hits < total
        num_duplicates += found["num_duplicates"]
    assert num_partly > 10
    assert num_duplicates > 40


def test_memory_follows_the_test_set(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 100)

    def texts(seed, num):
        rng = random.Random(seed)
        return (" ".join(str(rng.randrange(10**6)) for _ in range(10)) for _ in range(num))

    peaks = []
    for num in (500, 5000):
        tracemalloc.start()
        assert measure_contamination(texts(1, num), texts(2, 300))["num_train"] == num
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
