import numpy as np
import pytest

from multitask.overfitting import Overfitting, Rise


def validate(watch: Overfitting, step: int, nats: list[float], train: float) -> bool:
    """A validation of rows of 2 tokens each, of one task."""
    rise = watch.rise("a", np.array(nats))
    num = 2.0 * len(nats)
    return watch.is_evident(step, {"a": sum(nats) / num}, {"a": num}, {"a": rise}, train)


BEST = [2.0, 4.0, 6.0]
RISEN = [2.8, 5.0, 6.6]  # 0.8 more on average, standard error 0.12


def test_two_clear_rises_are_evidence_and_said_once() -> None:
    watch = Overfitting()
    found = [validate(watch, 10 * n, nats, 3.0 - n) for n, nats in enumerate([[3.0, 5.0, 7.0], BEST, *[RISEN] * 4])]
    assert found == [False, False, False, True, False, False]
    assert watch.step == 10


def test_the_rise_by_hand() -> None:
    watch = Overfitting()
    assert watch.rise("a", np.array(BEST)) == Rise(0, 0, 0)
    validate(watch, 1, BEST, 1.0)
    found = watch.rise("a", np.array(RISEN))
    assert found == pytest.approx((3, 2.4, 0.8**2 + 1 + 0.6**2))


@pytest.mark.parametrize(
    ("later", "train"),
    [
        ([[2.8, 5.0, 6.6], [2.0, 4.1, 6.0]], [1.0, 0.5]),  # the second is within noise
        ([[1.0, 7.0, 6.6]] * 2, [1.0, 0.5]),  # 0.87 more, standard error 1.15
        ([BEST] * 5, [1.0] * 5),  # a plateau
        ([RISEN] * 5, [2.5] * 5),  # training rises as well: it diverges
        ([[*RISEN[:2], 5.9], [1.9, 4.0, 5.9], *[RISEN]], [1.0, 0.9, 0.8]),  # a better one between them
    ],
)
def test_noise_plateaus_and_divergence_are_no_evidence(later: list[list[float]], train: list[float]) -> None:
    watch = Overfitting()
    assert not validate(watch, 0, BEST, 2.0)
    assert not any(validate(watch, n, nats, loss) for n, (nats, loss) in enumerate(zip(later, train, strict=True), 1))


def test_a_single_row_says_nothing_of_noise() -> None:
    watch = Overfitting()
    assert not any(validate(watch, n, [1.0 + n], 3.0 - n) for n in range(3))


def test_equally_good_weights_are_rarely_called_overfitted() -> None:
    """200 runs of ten validations around one loss: without a rule for noise, three worse ones in a row are common."""
    rng, num_said, num_three = np.random.default_rng(0), 0, 0
    for _ in range(200):
        watch, rows, losses = Overfitting(), rng.uniform(1, 5, 50), []
        said = False
        for step in range(10):
            nats = rows + rng.normal(0, 0.3, 50)
            losses.append(nats.mean())
            said |= validate(watch, step, list(nats), 1.0 / (step + 1))
        num_said += said
        num_three += int(np.argmin(losses)) <= 6
    assert num_said <= 0.1 * 200
    assert num_three > 0.5 * 200
