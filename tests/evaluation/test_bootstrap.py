import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from multitask.evaluation import bootstrap as evaluation_bootstrap
from multitask.evaluation import metrics
from multitask.evaluation.bootstrap import Resampled, Sample, bootstrap, effect, holm, interval_over_runs, sample

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
    scores = bootstrap(MACRO_F1.finish, {"a": [sample(numbers)]}, 200, seed=0)["a"].scores
    assert len(scores) == 201
    assert scores[0] == pytest.approx(metrics.score(MACRO_F1, numbers))
    assert scores[1:].std() > 0.01
    assert len(sample(numbers).columns) > 3, "numbers that a row does not have count as 0"


def test_every_system_and_run_sees_the_same_rows() -> None:
    """Where one system is right on exactly the rows that the other misses, each resample's scores add up to 1."""
    first = drawn(np.random.default_rng(1), 0.6, 40)
    second = Sample(first.columns, np.stack([1 - first.values[:, 0], first.values[:, 1]], axis=1))
    found = bootstrap(ACCURACY.finish, {"a": [first], "b": [second], "both": [first, second]}, 100, seed=3)
    scores = {name: each.scores for name, each in found.items()}
    assert scores["a"] + scores["b"] == pytest.approx(np.ones(101))
    assert scores["both"] == pytest.approx(np.full(101, 0.5)), "of several runs the mean of their scores"
    assert scores["a"][1:].std() > 0.01


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {"a": [drawn(np.random.default_rng(1), 0.6, 37)]}
    whole = bootstrap(ACCURACY.finish, systems, 50, seed=3)["a"].scores
    monkeypatch.setattr(evaluation_bootstrap, "MAX_CELLS", 100)
    np.testing.assert_array_equal(bootstrap(ACCURACY.finish, systems, 50, seed=3)["a"].scores, whole)


def test_a_mean_of_runs_is_of_their_scores_not_of_their_rows() -> None:
    """Two runs that each say one class always: macro-F1 1/3 each. Pooled rows would make it 1/2."""
    gold = ["a", "b"] * 20
    runs = [sample([MACRO_F1.per_example(said, [g]) for g in gold]) for said in "ab"]
    assert bootstrap(MACRO_F1.finish, {"x": runs}, 10, seed=0)["x"].scores[0] == pytest.approx(1 / 3)


def compared(first: Any, second: Any, num: int = 4000) -> evaluation_bootstrap.Effect:
    scores = bootstrap(ACCURACY.finish, {"a": first, "b": second}, num, seed=0)
    return effect(scores["a"], scores["b"])


def test_a_system_is_no_better_than_itself() -> None:
    """Also when its runs come in another order, which moves the last digits of their mean."""
    rng = np.random.default_rng(2)
    runs = [right(*rng.random(30)) for _ in range(3)]
    found = compared(runs, runs[::-1])
    assert found.difference == 0
    assert found.p > 0.9
    assert found.low < 0 < found.high, "seeds are drawn independently for both"


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


# ---------------------------------------------------------------- seeds


def rejected(
    rng: np.random.Generator,
    num_seeds: int,
    sd: float,
    row_error: float,
    gain: float = 0.0,
    second_is_deterministic: bool = False,
) -> float:
    """Fraction of 2,000 comparisons found significant at 5 %: two systems, `gain` apart, of `num_seeds` seeds each.

    sd: of a seed's score around its system's. row_error: standard error of the difference over rows.
    second_is_deterministic: it has one run, without seed noise (a prompt without demonstrations).
    """
    num_significant = 0
    for trial in range(2000):
        seeds = list(rng.normal(0.5, sd, (2, num_seeds)))
        if second_is_deterministic:
            seeds[1] = np.array([0.5])
        shift = rng.normal(0, row_error)  # what these rows do to the difference, and what resampling them shows
        rows = np.concatenate([[0.0], rng.normal(0, row_error, 400)])
        first, second = (
            Resampled(each.mean() + moved, float(each.var(ddof=1)) / len(each) if len(each) > 1 else 0.0, len(each))
            for each, moved in zip(seeds, (rows + shift + gain, np.zeros(401)), strict=True)
        )
        num_significant += effect(first, second, seed=trial).p < 0.05
    return num_significant / 2000


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("row_error", [0.01, 0.02])
def test_equal_systems_with_seed_noise_are_rarely_significant(num_seeds: int, row_error: float) -> None:
    """Seed noise of 2 points; by rows alone 25 to 45 % of the comparisons would be significant."""
    rate = rejected(np.random.default_rng(num_seeds), num_seeds, 0.02, row_error)
    assert 0.02 <= rate <= 0.07


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("row_error", [0.005, 0.02])
def test_a_system_with_seed_noise_against_one_without(num_seeds: int, row_error: float) -> None:
    rng = np.random.default_rng(num_seeds)
    assert rejected(rng, num_seeds, 0.02, row_error, second_is_deterministic=True) <= 0.07


def test_rows_alone_would_not_hold_the_level() -> None:
    """What the tests above guard against: the same two seeds, their variance left out."""
    rng, num_significant = np.random.default_rng(0), 0
    for _ in range(1000):
        means = rng.normal(0.5, 0.02, (2, 2)).mean(1)
        rows = np.concatenate([[0.0], rng.normal(0, 0.02, 400)])
        first, second = Resampled(means[0] + rows + rng.normal(0, 0.02), 0.0, 2), Resampled(means[1] + 0 * rows, 0.0, 2)
        num_significant += effect(first, second).p < 0.05
    assert num_significant > 120


def test_without_seed_noise_nothing_is_lost_and_large_differences_are_found() -> None:
    rng = np.random.default_rng(1)
    assert 0.03 <= rejected(rng, 2, 0.0, 0.02) <= 0.07
    assert rejected(rng, 2, 0.02, 0.02, gain=0.1) > 0.7
    assert rejected(rng, 3, 0.02, 0.02, gain=0.1) > 0.9
    assert rejected(rng, 3, 0.02, 0.01, gain=0.1, second_is_deterministic=True) > 0.9


def test_the_interval_of_a_mean_over_runs_by_hand() -> None:
    """Rows +-0.098 (a standard error of 0.05), runs 0.6 and 0.7: variance 0.005 / 2; Satterthwaite by hand."""
    low, high = interval_over_runs(0.65, 0.552, 0.748, 0.005**0.5, 2)
    total, between = 0.05**2 + 0.0025, 0.0025
    quantile = float(stats.t.ppf(0.975, total**2 / between**2))
    assert (low, high) == pytest.approx((0.65 - quantile * total**0.5, 0.65 + quantile * total**0.5), abs=1e-4)
    assert interval_over_runs(0.6, 0.5, 0.7, 0.0, 2) == pytest.approx((0.5, 0.7)), "no seed noise: rows"


def test_the_interval_over_rows_is_scipys() -> None:
    rng = np.random.default_rng(3)
    values = rng.random(200)
    numbers = metrics.Numbers({"correct": value, "count": 1.0} for value in values)
    ours = evaluation_bootstrap.interval(ACCURACY.finish, numbers, 20_000, 0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=rng).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.002)
    first, second = values[:100], rng.random(100)
    pair = bootstrap(ACCURACY.finish, {"a": [right(*first)], "b": [right(*second)]}, 20_000, 0)
    found = effect(pair["a"], pair["b"])
    theirs = stats.bootstrap(
        (first, second),
        lambda a, b, axis: (a - b).mean(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
