"""The mixture: shares by formula, draws a pure function of (seed, k), each task's rows once per epoch."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from multitask.batching.mixture import STRATUM, Mixture, sampling_rates
from multitask.errors import InputError

SIZES = {"a": 700, "b": 300, "c": 11}


def mixture(sizes: dict[str, int], seed: int = 7, **changes: float) -> Mixture:
    return Mixture(sizes, sampling_rates(sizes, **changes), seed)


def test_shares_follow_the_formulas() -> None:
    assert sampling_rates({"a": 3000, "b": 1000}) == pytest.approx({"a": 0.75, "b": 0.25})
    # 10000^(1/2) = 100 and 100^(1/2) = 10
    assert sampling_rates({"a": 10000, "b": 100}, mixing_temperature=2) == pytest.approx(
        {"a": 100 / 110, "b": 10 / 110}
    )
    assert sampling_rates({"a": 10000, "b": 100}, cap=300) == pytest.approx({"a": 0.75, "b": 0.25})
    assert sampling_rates({"a": 10000, "b": 100}, 2, cap=400) == pytest.approx({"a": 20 / 30, "b": 10 / 30})
    assert sampling_rates({"a": 10**6, "b": 1}, mixing_temperature=1e6)["b"] == pytest.approx(0.5, abs=1e-4)
    assert sampling_rates({"a": 5, "b": 5}, weights={"b": 3, "a": 1}) == pytest.approx({"a": 0.25, "b": 0.75})


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match=r"^train\.mixture_weights: task 'b' needs a weight above 0$"):
        sampling_rates(SIZES, weights={"a": 1, "b": weight, "c": 1})


def test_weights_name_every_task_and_no_other() -> None:
    with pytest.raises(InputError, match=r"unknown task 'sum'; did you mean 'summ'\?"):
        sampling_rates({"qa": 5, "summ": 5}, weights={"qa": 1, "sum": 1})
    with pytest.raises(InputError, match="task 'summ' needs a weight above 0"):
        sampling_rates({"qa": 5, "summ": 5}, weights={"qa": 1})


def test_any_slicing_gives_the_same_draws() -> None:
    whole = mixture(SIZES).draws(0, 3000)
    rng = random.Random(0)
    for _ in range(60):
        start = rng.randrange(3000)
        stop = rng.randrange(start, 3001)
        # A fresh mixture, and one that looked elsewhere before: neither has a memory that shows.
        for other in (mixture(SIZES), used := mixture(SIZES)):
            if other is used:
                other.draws(rng.randrange(2000), 2900)
            for part, all_of_it in zip(other.draws(start, stop), whole, strict=True):
                np.testing.assert_array_equal(part, all_of_it[start:stop])
    assert all(len(part) == 0 for part in mixture(SIZES).draws(0, 0))


def test_another_seed_is_another_order() -> None:
    one, other = mixture(SIZES, seed=1).draws(0, 500), mixture(SIZES, seed=2).draws(0, 500)
    assert (one[0] != other[0]).any()
    assert (one[2] != other[2]).any()


def test_every_row_stands_once_in_each_epoch_of_its_task() -> None:
    tasks, epochs, rows = mixture(SIZES).draws(0, 5000)
    num_whole = 0
    for number, size in enumerate(SIZES.values()):
        mine = tasks == number
        orders = []
        for epoch in range(int(epochs[mine].max())):  # the last one may be under way
            drawn = rows[mine & (epochs == epoch)]
            assert sorted(drawn) == list(range(size))
            orders.append(tuple(drawn))
            num_whole += 1
        last = rows[mine & (epochs == len(orders))]
        assert len(set(last)) == len(last)
        assert len(set(orders)) == len(orders), "each epoch has an order of its own"
    assert num_whole >= 3 + 3 + 3


def test_each_stratum_holds_the_shares_to_within_one_draw() -> None:
    made = mixture(SIZES, mixing_temperature=2)
    tasks, _, _ = made.draws(0, 40 * STRATUM)
    for stratum in tasks.reshape(40, STRATUM):
        for number, share in enumerate(made.share.values()):
            assert abs(int((stratum == number).sum()) - share * STRATUM) < 1
        assert len(set(stratum[:20].tolist())) > 1, "truly mixed: no task comes in one piece"
    assert made.epochs(40 * STRATUM)["c"] == pytest.approx(made.share["c"] * 40 * STRATUM / 11, abs=2 / 11)


def test_a_task_a_thousand_times_larger_does_not_drown_the_other() -> None:
    made = mixture({"large": 20_000, "small": 20})
    num_draws = 3 * 20_020
    tasks, _, rows = made.draws(0, num_draws)
    counts = Counter(tasks.tolist())
    assert counts[1] == pytest.approx(60, abs=12)
    assert set(rows[tasks == 1].tolist()) == set(range(20))
    last = np.flatnonzero(tasks == 1)
    assert np.diff(last).max() < num_draws / 4, "spread over the whole run"


def test_memory_does_not_grow_with_the_epochs_of_a_tiny_task() -> None:
    made = mixture({"a": 1000, "b": 2}, mixing_temperature=1e9)
    for start in range(0, 20_000, 2048):
        _, epochs, _ = made.draws(start, start + 2048)
    assert epochs.max() > 4000
    assert len(made._orders) <= 2 * 2
