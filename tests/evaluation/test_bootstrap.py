import math
from typing import Any

import numpy as np
import pytest

from multitask.evaluation import bootstrap as evaluation_bootstrap
from multitask.evaluation import metrics
from multitask.evaluation.bootstrap import Sample, bootstrap, effect, holm, sample

ACCURACY = metrics.build("accuracy", "en")
MACRO_F1 = metrics.build("macro_f1", "en")


def right(*answers: float) -> Sample:
    return sample([{"correct": answer, "count": 1.0} for answer in answers])


def drawn(rng: np.random.Generator, share: float, num: int) -> Sample:
    return right(*(rng.random(num) < share).astype(float))


def test_the_first_score_is_that_of_the_rows_as_they_are() -> None:
    rng = np.random.default_rng(0)
    said, gold = (rng.choice(list("abc"), 50).tolist() for _ in "12")
    numbers = [MACRO_F1.per_example(one, [other]) for one, other in zip(said, gold, strict=True)]
    scores = bootstrap(MACRO_F1.finish, {"a": [sample(numbers)]}, 200, seed=0)["a"]
    assert len(scores) == 201
    assert scores[0] == pytest.approx(metrics.score(MACRO_F1, numbers))
    assert scores[1:].std() > 0.01
    assert len(sample(numbers).columns) > 3, "numbers that a row does not have count as 0"


def test_every_system_and_run_sees_the_same_rows() -> None:
    """Where one system is right on exactly the rows that the other misses, each resample's scores add up to 1."""
    first = drawn(np.random.default_rng(1), 0.6, 40)
    second = Sample(first.columns, np.stack([1 - first.values[:, 0], first.values[:, 1]], axis=1))
    scores = bootstrap(ACCURACY.finish, {"a": [first], "b": [second], "both": [first, second]}, 100, seed=3)
    assert scores["a"] + scores["b"] == pytest.approx(np.ones(101))
    assert scores["both"] == pytest.approx(np.full(101, 0.5)), "of several runs the mean of their scores"
    assert scores["a"][1:].std() > 0.01


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {"a": [drawn(np.random.default_rng(1), 0.6, 37)]}
    whole = bootstrap(ACCURACY.finish, systems, 50, seed=3)["a"]
    monkeypatch.setattr(evaluation_bootstrap, "MAX_CELLS", 100)
    np.testing.assert_array_equal(bootstrap(ACCURACY.finish, systems, 50, seed=3)["a"], whole)


def test_a_mean_of_runs_is_of_their_scores_not_of_their_rows() -> None:
    """Two runs that each say one class always: macro-F1 1/3 each. Pooled rows would make it 1/2."""
    gold = ["a", "b"] * 20
    runs = [sample([MACRO_F1.per_example(said, [g]) for g in gold]) for said in "ab"]
    assert bootstrap(MACRO_F1.finish, {"x": runs}, 10, seed=0)["x"][0] == pytest.approx(1 / 3)


def compared(first: Any, second: Any, num: int = 4000) -> evaluation_bootstrap.Effect:
    scores = bootstrap(ACCURACY.finish, {"a": first, "b": second}, num, seed=0)
    return effect(scores["a"], scores["b"])


def test_a_system_is_no_better_than_itself() -> None:
    """Also when its runs come in another order, which moves the last digits of their mean."""
    rng = np.random.default_rng(2)
    runs = [right(*rng.random(30)) for _ in range(3)]
    found = compared(runs, runs[::-1])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_difference_agrees_with_the_normal_approximation() -> None:
    """200 paired rows: p of the mean difference over its standard error, as McNemar's test has it.

    Resamples without a difference count on both sides: up to 1 / (200 x 0.05 x sqrt(2 pi)) = 0.04 more.
    """
    rng = np.random.default_rng(5)
    for share in (0.55, 0.62, 0.68):
        first, second = drawn(rng, share, 200), drawn(rng, 0.52, 200)
        differences = first.values[:, 0] - second.values[:, 0]
        error = differences.std() / math.sqrt(200)
        found = compared([first], [second], 20000)
        assert found.difference == pytest.approx(differences.mean())
        assert found.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.012)
        assert found.high == pytest.approx(differences.mean() + 1.96 * error, abs=0.012)
        assert found.p == pytest.approx(math.erfc(abs(differences.mean()) / error / math.sqrt(2)), abs=0.045)
        back = compared([second], [first], 20000)
        assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))
        assert back.p == found.p


def test_under_no_difference_one_test_in_twenty_is_significant() -> None:
    """300 pairs of equally good systems; 5 % of 300 is 15, and 4 to 30 is where all but one in a thousand sets lie."""
    rng = np.random.default_rng(7)
    found = [compared([drawn(rng, 0.5, 80)], [drawn(rng, 0.5, 80)], 400) for _ in range(300)]
    assert 4 <= sum(one.p < 0.05 for one in found) <= 30
    apart = [one for one in found if not one.low <= 0 <= one.high]
    assert apart
    assert all(one.p < 0.06 for one in apart), "the interval and p say the same"
    assert all(one.p > 0.04 for one in found if one.low < 0 < one.high)


def test_no_number_of_resamples_proves_a_probability_of_zero() -> None:
    assert compared([right(*[1] * 20)], [right(*[0] * 20)], 99).p == 2 / 100


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04, and never falling 0.06 at the end."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
