"""Where the examples of a packed row are, for attention that keeps them apart.

Examples of 3, 40 and 4 tokens -> bounds 0, 3, 43, 47, and two groups of similar length, (2, 4) and (1, 40).
"""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On another device, without waiting for it."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Segments:
    """Where the examples of one flat row are.

    lengths (N,): how long each example of the row is, in order. longest: tokens of the longest. bounds (N + 1,) int32:
    0, then the end of each example.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device) -> None:
        self.lengths, self.device = lengths, device
        self.longest = int(lengths.max())
        self.bounds = _moved(torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)), device)
        if "torch._dynamo" in sys.modules:  # blocks may be compiled: the number of examples is no constant of the code
            torch._dynamo.maybe_mark_dynamic(self.bounds, 0)
        self._groups: Groups | None = None

    def groups(self) -> "Groups":
        """The examples in groups of similar length, made when first asked for."""
        if self._groups is None:
            self._groups = group_by_length(self.lengths).to(self.device)
        return self._groups


@dataclass(frozen=True)
class Groups:
    """The examples of one flat row, grouped by similar length for attention.

    gather: per group an index (n, L) of flat positions; what lies past an example's end repeats its last position.
    scatter: (T,) for each flat position, its place in the groups laid end to end.
    is_even: all examples have one length, so that both are the order of the row itself.
    """

    gather: tuple[Tensor, ...]
    scatter: Tensor
    is_even: bool = False

    def to(self, device: torch.device) -> "Groups":
        """On another device."""
        if device.type == "cpu":
            return self
        return Groups(tuple(_moved(index, device) for index in self.gather), _moved(self.scatter, device), self.is_even)


def group_by_length(lengths: npt.NDArray[np.int64]) -> Groups:
    """Groups examples of similar length: the longest at most a quarter and 4 tokens above the shortest.

    lengths (N,): how long each example of the flat row is, in order.
    """
    starts = np.cumsum(lengths) - lengths
    if (lengths == lengths[0]).all():
        place = torch.arange(int(lengths.sum()))
        return Groups((place.view(len(lengths), -1),), place, is_even=True)
    order = np.argsort(lengths, kind="stable")
    groups: list[npt.NDArray[np.int64]] = []
    first = 0
    for at in range(1, len(order) + 1):
        if at == len(order) or lengths[order[at]] > 1.25 * lengths[order[first]] + 4:
            groups.append(order[first:at])
            first = at
    gather, scatter, base = [], np.zeros(int(lengths.sum()), np.int64), 0
    for group in groups:
        longest = int(lengths[group].max())
        column = np.arange(longest)
        gather.append(starts[group, None] + np.minimum(column, lengths[group, None] - 1))
        inside = column < lengths[group, None]
        scatter[gather[-1][inside]] = (base + np.arange(inside.size)).reshape(inside.shape)[inside]
        base += inside.size
    return Groups(tuple(torch.from_numpy(g) for g in gather), torch.from_numpy(scatter))
