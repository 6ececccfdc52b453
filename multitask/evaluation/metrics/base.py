"""A metric is two pure functions: numbers of one example, and the score of their sums.

Two answers, one of them right: `{"correct": 1, "count": 1}` and `{"correct": 0, "count": 1}` sum to
`{"correct": 1, "count": 2}`, which `finish` makes 0.5.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multitask.errors import InputError
from multitask.inference.likelihood import Finish, Sums, ratio

PerExample = Callable[[str, Sequence[str]], dict[str, float]]


MAX_CELLS = 2**21
"""Sums of resamples, or new hashes of n-grams, held at a time: 16 MiB."""


@dataclass(frozen=True)
class Metric:
    """One score: two pure functions and which way is up.

    name: as in `NAMES`, or of a function; also its key in results.
    per_example: prediction and references to named numbers, which add up over examples; none: not scored. It raises
        InputError without a reference (`DESCRIPTORS` need none), and for `FROM_NLL`, whose numbers (`nll` in nats,
        `tokens`, `words`, `bytes`, each summed over the target) come from the model.
    finish: the sums to the score. It divides by no zero: without anything to divide by, the score is 0 (perplexity: 1).
    higher_is_better: false for `FROM_NLL` and repetition; None for length, which is neither good nor bad.
    """

    name: str
    per_example: PerExample
    finish: Finish
    higher_is_better: bool | None


class Numbers:
    """The numbers of many examples in three flat arrays: 16 bytes a number, where a dictionary a row takes hundreds."""

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.columns: dict[str, int] = {}
        self._rows, self._places, self._values = array("i"), array("i"), array("d")
        self._length = 0
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, float]) -> None:
        """Adds one example."""
        for key, value in row.items():
            self._rows.append(self._length)
            self._places.append(self.columns.setdefault(key, len(self.columns)))
            self._values.append(value)
        self._length += 1

    @classmethod
    def side_by_side(cls, several: "Sequence[Numbers]") -> "Numbers":
        """Several numbers of each example in one: column `key` of the second becomes `1:key`.

        Drawing an example then draws all that was measured of it, for instance after each set of demonstrations.
        """
        joined = cls()
        for turn, numbers in enumerate(several):
            base = len(joined.columns)
            joined.columns |= {f"{turn}:{key}": base + place for key, place in numbers.columns.items()}
            joined._rows.extend(numbers._rows)
            joined._places.extend(base + place for place in numbers._places)
            joined._values.extend(numbers._values)
            joined._length = max(joined._length, len(numbers))
        return joined

    def __len__(self) -> int:
        return self._length

    def measured(self) -> "Numbers":
        """Without the examples that have no number."""
        found = Numbers()
        found.columns, found._places, found._values = dict(self.columns), self._places, self._values
        kept, rows = np.unique(np.asarray(self._rows), return_inverse=True)
        found._rows, found._length = array("i", rows.tolist()), len(kept)
        return found

    def sums(self, drawn: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Sums by column; with `drawn` (examples,), each example as often as it says."""
        rows, places, values = (np.asarray(part) for part in (self._rows, self._places, self._values))
        weights = values if drawn is None else values * drawn[rows]
        sums: NDArray[np.float64] = np.bincount(places, weights=weights, minlength=len(self.columns)).astype(np.float64)
        return sums


def score(metric: Metric, numbers: Numbers | Iterable[Mapping[str, float]], drawn: NDArray[Any] | None = None) -> float:
    """The score of all examples together: sum, then finish. Raises InputError without examples.

    drawn: how often each example counts, for instance 1 for those of one language and 0 for the others.
    """
    numbers = numbers if isinstance(numbers, Numbers) else Numbers(numbers)
    sums = dict(zip(numbers.columns, numbers.sums(drawn).tolist(), strict=True))
    if not sums:
        raise InputError(f"metric '{metric.name}' has no examples to score; at least one was expected")
    return float(metric.finish(sums))


def checked_references(references: Sequence[str]) -> Sequence[str]:
    """The references; raises InputError for a bare text and for an empty list."""
    if isinstance(references, str):  # would be read as one reference per character
        raise InputError(f"references are the text {references!r}, a list of texts was expected; put it into a list")
    if not references:
        raise InputError("the list of references is empty; at least one accepted text was expected")
    return references


def mean(key: str, sums: Mapping[str, Sums]) -> Sums:
    """The sum of `key` over `count`."""
    return ratio(sums[key], sums["count"])
