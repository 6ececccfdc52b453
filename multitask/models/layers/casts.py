"""Copies of tensors in another dtype that are worth keeping: of frozen matrices, and of an input that several read."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_CASTS: Any = WeakIdKeyDictionary()  # of a matrix: dtype, version, and the copy


def in_dtype(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix in another dtype; the copy of a frozen one is kept, as casting a large one takes long."""
    if matrix.dtype == dtype or matrix.requires_grad:
        return matrix.to(dtype)
    found = _CASTS.get(matrix)
    if found is None or found[0] != (dtype, matrix._version) or found[1].device != matrix.device:
        found = _CASTS[matrix] = (dtype, matrix._version), matrix.detach().to(dtype)
    copy: Tensor = found[1]
    return copy


def drop_casts() -> None:
    """Drops all kept copies: PEFT merges updates into a matrix past its version, and a cast model needs no copies."""
    _CASTS.clear()


class SharedCast:
    """The newest tensor that was cast, and its copy, for layers that read the same input one after another."""

    def __init__(self) -> None:
        self._newest: Any = WeakIdKeyDictionary()

    def cast(self, given: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in another dtype, detached; the same copy for the same tensor as long as no other came between."""
        if given.dtype == dtype:
            return given.detach()
        found = self._newest.get(given)
        if found is None or found[0] != (dtype, given._version):
            self._newest.clear()
            found = self._newest[given] = (dtype, given._version), given.detach().to(dtype)
        copy: Tensor = found[1]
        return copy
