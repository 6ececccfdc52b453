"""Perplexity, word perplexity and bits per byte from summed nats.

`perplexity("tokens", {"nll": 6.9, "tokens": 3})` -> 10.0, nearly.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Sums = TypeVar("Sums", float, NDArray[np.float64])

MAX_EXPONENT = 700.0
"""Perplexity is reported as e^700 at most: beyond e^709 a float is infinite."""


class Finish(Protocol):
    """Sums to a score: of floats a float, of arrays with one entry per resample an array."""

    def __call__(self, sums: Mapping[str, Sums], /) -> Sums:
        """Divide, once."""


def ratio(top: Sums, bottom: Sums) -> Sums:
    """0 where the bottom is 0, without a warning. Counts are whole numbers, so the 1 changes nothing else."""
    result: Sums = top * (bottom > 0) / np.maximum(bottom, 1)
    return result


def perplexity(per: str, sums: Mapping[str, Sums]) -> Sums:
    """Per token, or per word between white space: all nats of the target, `<|end|>` included, over its number."""
    result: Sums = np.exp(np.minimum(ratio(sums["nll"], sums[per]), MAX_EXPONENT))
    return result


def bits_per_byte(sums: Mapping[str, Sums]) -> Sums:
    """Bits of the target, `<|end|>` included, over the UTF-8 bytes of its text: comparable across tokenizers."""
    return ratio(sums["nll"] / math.log(2), sums["bytes"])


FINISH_NLL: Mapping[str, Finish] = {
    "perplexity": partial(perplexity, "tokens"),
    "word_perplexity": partial(perplexity, "words"),
    "bits_per_byte": bits_per_byte,
}
