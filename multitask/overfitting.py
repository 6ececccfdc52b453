"""Evidence of overfitting: the validation loss rises beyond noise while the training loss falls.

Losses of 3 validation rows 1.0, 2.0, 3.0 at the best step, 1.4, 2.5, 3.3 later: a rise of 0.4 with a standard error of
0.06. Two such validations in a row are evidence; one is not, nor is a validation that is merely not the best.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NUM_RISES = 2
_NUM_ERRORS = 2.0
"""A rise of so many standard errors is beyond noise."""


class Rise(NamedTuple):
    """How many more nats the rows of a task cost than at the lowest loss: number of rows, sum, sum of squares."""

    num: float
    total: float
    squares: float


class Overfitting:
    """The step of the lowest validation loss, each row's nats there, and how often the loss has risen since."""

    def __init__(self) -> None:
        self.step = 0
        self._lowest = math.inf
        self._train_loss = math.inf
        self._nats: dict[str, NDArray[np.float64]] = {}
        self._now: dict[str, NDArray[np.float64]] = {}
        self._num_rises = 0

    def rise(self, name: str, nats: NDArray[np.float64]) -> Rise:
        """Of a task's rows in this process; sums of all processes go to `is_evident`."""
        self._now[name] = nats
        before = self._nats.get(name)
        if before is None:
            return Rise(0.0, 0.0, 0.0)
        more = nats - before
        return Rise(len(more), float(more.sum()), float((more**2).sum()))

    def is_evident(
        self, step: int, loss: Mapping[str, float], tokens: Mapping[str, float], rises: Mapping[str, Rise], train: float
    ) -> bool:
        """Whether this validation makes it evident, for the first time since the lowest loss.

        loss, tokens, rises: by task; a loss is nats per token. train: the training loss since the last log line.
        """
        mean = sum(loss.values()) / len(loss)
        if mean < self._lowest:
            self.step, self._lowest, self._train_loss, self._num_rises = step, mean, train, 0
            self._nats = dict(self._now)
            return False
        variance = 0.0
        for name in loss:
            num, total, squares = rises[name]
            if num < 2:
                return False
            variance += num / (num - 1) * (squares - total**2 / num) / tokens[name] ** 2 / len(loss) ** 2
        is_clear = mean - self._lowest > _NUM_ERRORS * max(variance, 0.0) ** 0.5 and train < self._train_loss
        told = self._num_rises >= _NUM_RISES
        self._num_rises = self._num_rises + 1 if is_clear or told else 0
        return self._num_rises == _NUM_RISES and not told
