import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from multitask.evaluation import bootstrap as evaluation_bootstrap
from multitask.evaluation import metrics
from multitask.evaluation.bootstrap import (
    Resampled,
    Sample,
    bootstrap,
    compare,
    interval_over_runs,
    sample,
    unpaired,
    with_run_noise,
)

ACCURACY = metrics.build("accuracy", "en")
MACRO_F1 = metrics.build("macro_f1", "en")


def right(*answers: float) -> Sample:
    return sample([{"correct": answer, "count": 1.0} for answer in answers])


def drawn(rng: np.random.Generator, probability: float, num: int) -> Sample:
    return right(*(rng.random(num) < probability).astype(float))


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
    (scores,) = with_run_noise([bootstrap(ACCURACY.finish, {"a": first, "b": second}, num, seed=0)], 0)
    return compare([(scores["a"], scores["b"])])[0]


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
    for probability in (0.55, 0.62, 0.68):
        first, second = drawn(rng, probability, 200), drawn(rng, 0.52, 200)
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


# ---------------------------------------------------------------- families


def rows_only(
    rng: np.random.Generator, difference: float, error: float, num: int = 2000
) -> tuple[Resampled, Resampled]:
    """Two systems without seed noise, whose difference has this standard error over rows."""
    zeros = np.zeros(num)
    drawn = difference + np.concatenate([[0.0], rng.normal(0, error, num)])
    return Resampled(drawn, zeros, np.ones(1)), Resampled(np.zeros(num + 1), zeros, np.ones(1))


def test_a_family_of_one_is_the_percentile_interval() -> None:
    pair = rows_only(np.random.default_rng(0), 0.1, 0.05)
    (found,) = compare([pair])
    assert (found.low, found.high) == pytest.approx(np.quantile(pair[0].scores[1:], [0.025, 0.975]), abs=0.002)
    assert found.p_adjusted == pytest.approx(found.p, abs=0.002)
    assert compare([]) == []


def test_copies_of_one_comparison_need_no_correction_and_independent_ones_need_bonferronis() -> None:
    rng = np.random.default_rng(0)
    pair = rows_only(rng, 0.1, 0.05, 20_000)
    alone, copies = compare([pair])[0], compare([pair] * 20)
    assert {(one.low, one.high, one.p_adjusted) for one in copies} == {(alone.low, alone.high, alone.p_adjusted)}
    apart = compare([pair, *(rows_only(rng, 0.0, 0.05, 20_000) for _ in range(19))])
    assert apart[0].p == alone.p
    assert apart[0].p_adjusted == pytest.approx(1 - (1 - alone.p) ** 20, abs=0.02), "Sidak: independent comparisons"
    z = stats.norm.ppf(1 - (1 - 0.95 ** (1 / 20)) / 2)
    assert (apart[0].low, apart[0].high) == pytest.approx((0.1 - z * 0.05, 0.1 + z * 0.05), abs=0.012)
    assert all(one.p_adjusted >= one.p for one in apart)


def test_the_interval_and_the_adjusted_p_say_the_same() -> None:
    rng = np.random.default_rng(4)
    found = compare([rows_only(rng, rng.normal(0, 0.15), 0.05, 10_000) for _ in range(40)])
    clear = [one.low > 0 or one.high < 0 for one in found]
    assert 5 < sum(clear) < 35
    for one, is_clear in zip(found, clear, strict=True):
        assert one.p_adjusted < 0.07 if is_clear else one.p_adjusted > 0.03


def test_a_family_of_true_null_hypotheses_is_rejected_as_often_as_one() -> None:
    """300 suites: 8 arms of two seeds, equal to the prompts that they are compared with; each suite is one family."""
    rng, num_rejected, num_alone = np.random.default_rng(1), 0, 0
    for trial in range(300):
        row_error, sd = 0.02, 0.02
        arms = {str(n): rng.normal(0.5, sd, 2) for n in range(8)}
        zeros = np.zeros(500)

        def rows(error: float = row_error) -> Any:
            return rng.normal(0, error) + np.concatenate([[0.0], rng.normal(0, error, 500)])

        second = Resampled(0.5 + rows(), zeros, np.ones(1))
        systems = {name: Resampled(runs.mean() + rows(), zeros, runs) for name, runs in arms.items()}
        (noisy,) = with_run_noise([systems], trial)
        found = compare([(each, second) for each in noisy.values()])
        num_rejected += any(one.p_adjusted < 0.05 for one in found)
        num_alone += any(one.p < 0.05 for one in found)
    assert num_rejected <= 0.08 * 300
    assert num_alone > 0.1 * 300, "what the correction guards against"


def test_a_score_with_nothing_but_an_interval() -> None:
    found = unpaired(0.3, 0.2, 0.4, 20_000, 0)
    assert found.scores[0] == 0.3
    assert np.quantile(found.scores[1:], [0.025, 0.975]) == pytest.approx([0.2, 0.4], abs=0.005)
    assert not found.noise.any()


# ---------------------------------------------------------------- seeds


def system(runs: Sequence[float], rows: Any) -> Resampled:
    """Scores of runs, and how the rows move their mean: once (first), then on each resample, (1 + num_resamples,)."""
    return Resampled(np.mean(runs) + rows, np.zeros(len(rows) - 1), np.array(runs))


def test_the_variance_of_seeds_is_pooled_as_in_an_analysis_of_variance() -> None:
    """Four systems of two seeds, two tasks, variances 2, 8, 2 and 200 (in 1e-4); rows of the last vary 100 times more.

    Pooled over the task 4, over all 3.5 of the rows' variance, with 4 degrees of freedom; 8 of its own.
    """
    rng = np.random.default_rng(0)
    rows = np.concatenate([[0.0], rng.permutation(np.resize([-0.01, 0.01], 200_000))])
    first = {"a": system([0.5, 0.52], rows), "b": system([0.4, 0.44], rows), "c": system([0.3, 0.32], rows)}
    second = {"a": system([0.3, 0.5], 10 * rows), "once": system([0.9], rows)}
    found, other = with_run_noise([first, second], 0)
    assert not other["once"].noise.any()
    t = stats.t.ppf(0.9, 4)
    for noise, variance in ((found["a"], 4e-4), (found["b"], 8e-4), (found["c"], 4e-4), (other["a"], 350e-4)):
        assert np.quantile(noise.noise, 0.9) == pytest.approx(t * (variance / 2) ** 0.5, rel=0.02)
    a, c = (found[name].noise.clip(-0.05, 0.05) for name in "ac")
    assert abs(np.corrcoef(a, c)[0, 1]) < 0.02
    assert np.corrcoef(abs(a), abs(c))[0, 1] > 0.1, "one estimate of the variance for all"
    (apart,) = with_run_noise([first], 0, {"a": "seeds", "b": "draws", "c": "seeds"})
    assert np.quantile(apart["b"].noise, 0.9) == pytest.approx(stats.t.ppf(0.9, 1) * 0.02, rel=0.03)


def test_rows_that_all_score_the_same_do_not_decide_the_pooled_variance() -> None:
    same, rows = np.zeros(101), np.random.default_rng(0).normal(0, 0.01, 101)
    suite = [{"right": system([1.0, 1.0], same)}, {"other": system([0.4, 0.41], rows)}]
    found, other = with_run_noise(suite, 0)
    assert not found["right"].noise.any()
    assert 0.001 < np.median(abs(other["other"].noise)) < 0.02
    assert not with_run_noise(suite[:1], 0)[0]["right"].noise.any()


def rejected(
    rng: np.random.Generator,
    num_seeds: int,
    tasks: Sequence[Sequence[float]],
    row_error: float,
    gain: float = 0.0,
    second: int | None = None,
    num: int = 1000,
) -> float:
    """Fraction of comparisons found significant at 5 %, one in each of `num` suites.

    tasks: for each, the seed noise (standard deviation) of its systems. The first system of the first task is compared
    with its `second`, or (None) with a system without seed noise. gain: true difference. row_error: standard error of a
    score over rows.
    """
    num_significant = 0
    for trial in range(num):
        suite = []
        for sds in tasks:
            systems = {}
            for number, sd in enumerate(sds):  # what these rows do to the difference, and what resampling them shows
                rows = rng.normal(0, row_error) + np.concatenate([[0.0], rng.normal(0, row_error, 400)])
                runs = rng.normal(0.5, sd, num_seeds)
                systems[str(number)] = system(runs, rows if second is None or number == 0 else rows / 1e3)
            suite.append(systems)
        noisy = with_run_noise(suite, trial)[0]
        first = replace(noisy["0"], scores=noisy["0"].scores + gain)
        other = system([0.5], np.zeros(401)) if second is None else noisy[str(second)]
        num_significant += compare([(first, other)])[0].p < 0.05
    return num_significant / num


@pytest.mark.parametrize("num_seeds", [2, 5])
@pytest.mark.parametrize("row_error", [0.003, 0.02])
def test_equal_systems_with_seed_noise_are_rarely_significant(num_seeds: int, row_error: float) -> None:
    """Seed noise of 2 points; by rows alone 25 to 45 % of the comparisons would be significant."""
    rng = np.random.default_rng(num_seeds)
    assert rejected(rng, num_seeds, [[0.02] * 3] * 3, row_error) <= 0.065
    assert rejected(rng, num_seeds, [[0.02] * 2], row_error) <= 0.065


def test_two_seeds_of_a_lone_system() -> None:
    assert rejected(np.random.default_rng(0), 2, [[0.02]], 0.003) <= 0.065


def test_a_system_and_a_task_that_are_noisier_than_the_others() -> None:
    """Sixteen times their variance; with the pooled variance alone 12 % to 25 %."""
    rng = np.random.default_rng(0)
    assert rejected(rng, 2, [[0.02, 0.005]], 0.02) <= 0.065
    assert rejected(rng, 2, [[0.02, 0.005]], 0.003) <= 0.13
    assert rejected(rng, 2, [[0.02] * 3, [0.005] * 3, [0.005] * 3], 0.02) <= 0.065
    assert rejected(rng, 2, [[0.02] * 3, [0.005] * 3, [0.005] * 3], 0.003) <= 0.13


def test_rows_alone_would_not_hold_the_level() -> None:
    """What the tests above guard against: the same two seeds, their variance left out."""
    rng, num_significant = np.random.default_rng(0), 0
    for _ in range(1000):
        means = rng.normal(0.5, 0.02, (2, 2)).mean(1)
        rows = np.concatenate([[0.0], rng.normal(0, 0.02, 400)])
        first = Resampled(means[0] + rows + rng.normal(0, 0.02), np.zeros(400), np.ones(2))
        second = Resampled(means[1] + 0 * rows, np.zeros(400), np.ones(2))
        num_significant += compare([(first, second)])[0].p < 0.05
    assert num_significant > 120


def test_large_differences_are_found_and_without_seed_noise_nothing_is_lost() -> None:
    rng = np.random.default_rng(1)
    assert 0.03 <= rejected(rng, 2, [[0.0, 0.0]], 0.02) <= 0.07
    assert rejected(rng, 2, [[0.02] * 2] * 3, 0.02, gain=0.1) > 0.8
    assert rejected(rng, 2, [[0.01]], 0.01, gain=0.3) > 0.8


def test_two_seeds_far_above_a_prompt_are_clearly_better_in_a_whole_suite() -> None:
    """Accuracy 0.667 against 0.344 on 500 rows, four tasks, two tuned arms of two seeds each: 24 comparisons.

    With Student's t of one degree of freedom for each arm and Holm's correction, p was 0.096.
    """
    rng = np.random.default_rng(0)
    suite = []
    for task in range(4):
        systems = {"a": [drawn(rng, 0.667, 500) for _ in "12"], "b": [drawn(rng, 0.68, 500) for _ in "12"]}
        systems |= {f"{shots}-shot": [drawn(rng, 0.344, 500)] for shots in (0, 1, 4)}
        suite.append(bootstrap(ACCURACY.finish, systems, 10_000, seed=task))
    pairs = [
        (found[tuned], found[f"{shots}-shot"])
        for found in with_run_noise(suite, 0)
        for tuned in "ab"
        for shots in (0, 1, 4)
    ]
    assert len(pairs) == 24
    effects = compare(pairs)
    assert all(one.low > 0.1 and one.p_adjusted < 0.05 for one in effects)


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
    (found,) = compare([(pair["a"], pair["b"])])
    theirs = stats.bootstrap(
        (first, second),
        lambda a, b, axis: (a - b).mean(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
