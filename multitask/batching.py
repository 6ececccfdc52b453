"""From ids to tensors: examples share blocks, and a batch knows where each of them begins and ends.

Lengths [5, 3, 4, 2] in blocks of 8 -> blocks [[0, 1], [2, 3]]. A block is a unit of work, not a shape: `packed` lays
the examples of several blocks end to end in one row without a single pad; `none` lays each in a row of its own. Both
hold the same examples, so both have the same loss.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multitask.errors import InputError
from multitask.examples import Examples
from multitask.mixture import Mixture


class Drawn(NamedTuple):
    """One drawn example: its task's number, its row, its length and the length of its prompt."""

    task: int
    row: int
    length: int
    num_prompt: int


Block = list[Drawn]


def best_fit(lengths: Sequence[int], block_size: int) -> list[list[int]]:
    """Packs items in their order, each into the fullest block it still fits: online best fit (Johnson, 1974).

    Keeping the order keeps blocks mixed; sorting by length first would gather each task in blocks of its own.
    """
    blocks: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free tokens, block), sorted
    for item, length in enumerate(lengths):
        if length > block_size:
            raise AssertionError(f"an example of {length} tokens in blocks of {block_size}")
        at = bisect_left(space, (length, 0))
        if at == len(space):
            blocks.append([])
            free, block = block_size, len(blocks) - 1
        else:
            free, block = space.pop(at)
        blocks[block].append(item)
        if free > length:
            insort(space, (free - length, block))
    return blocks


class BlockStream:
    """The endless stream of blocks of a mixture.

    A window of draws is packed at a time, so the blocks of a window are a pure function of (seed, window), and a cursor
    (window, block) is all that a resumed run needs.
    """

    def __init__(self, examples: Mapping[str, Examples], mixture: Mixture, block_size: int, window: int = 2048) -> None:
        self.examples = list(examples.values())
        self.mixture = mixture
        self.block_size = block_size
        self.window = window
        self.cursor = (0, 0)
        self._at = -1
        self._blocks: list[Block] = []

    def next_blocks(self, num_blocks: int) -> list[Block]:
        """The next blocks; moves the cursor."""
        taken: list[Block] = []
        window, at = self.cursor
        while len(taken) < num_blocks:
            if window != self._at:
                self._at, self._blocks = window, self._pack(window)
            more = self._blocks[at : at + num_blocks - len(taken)]
            taken += more
            at += len(more)
            if at == len(self._blocks):
                window, at = window + 1, 0
        self.cursor = (window, at)
        return taken

    def epochs(self) -> dict[str, float]:
        """How often each task's rows have been taken, to the block."""
        window, at = self.cursor
        epochs = self.mixture.epochs(window * self.window)
        taken = Counter(drawn.task for block in self._blocks[:at] for drawn in block) if window == self._at else {}
        return {
            name: round(epochs[name] + taken.get(number, 0) / size, 4)
            for number, (name, size) in enumerate(self.mixture.sizes.items())
        }

    def _pack(self, window: int) -> list[Block]:
        tasks, _, rows = self.mixture.draws(window * self.window, (window + 1) * self.window)
        drawn = [
            Drawn(t, r, int(self.examples[t].lengths[r]), int(self.examples[t].num_prompts[r]))
            for t, r in zip(tasks.tolist(), rows.tolist(), strict=True)
        ]
        return [[drawn[n] for n in block] for block in best_fit([d.length for d in drawn], self.block_size)]


@dataclass(frozen=True)
class Segments:
    """Where the examples of one flat row are, grouped by similar length for attention.

    gather: per group an index (n, L) of flat positions; what lies past an example's end repeats its last position.
    scatter: (T,) for each flat position, its place in the groups laid end to end.
    """

    gather: tuple[Tensor, ...]
    scatter: Tensor

    def to(self, device: torch.device) -> "Segments":
        """On another device."""
        return Segments(tuple(g.to(device, non_blocking=True) for g in self.gather), self.scatter.to(device))


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass.

    input_ids, position_ids: (B, T) int64; positions restart at each example.
    targets: (M,) int64 flat positions in B*T that carry loss; never the first position of an example.
    weights: (M,) float32 loss weights. owners: (M,) int64, the example each target belongs to.
    is_target: (M,) bool; False for prompt tokens, which carry loss when they have a weight.
    segments: None when every row is one example, padded at its end.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    is_target: Tensor
    segments: Segments | None
    num_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        if device.type == "cpu":
            return self
        tensors = (self.input_ids, self.position_ids, self.targets, self.weights, self.owners, self.is_target)
        ids, positions, targets, weights, owners, is_target = (t.to(device, non_blocking=True) for t in tensors)
        segments = self.segments.to(device) if self.segments else None
        return Batch(ids, positions, targets, weights, owners, is_target, segments, self.num_tokens)


Ids = Sequence[int] | npt.NDArray[np.int32]


def collate(
    examples: Sequence[tuple[Ids, int]], layout: Literal["packed", "none"] = "packed", prompt_weight: float = 0.0
) -> Batch:
    """Lays out examples, each (ids, length of its prompt).

    packed: one row (1, sum of lengths). none: one row each (B, longest), padded with id 0 at the end, where causal
    attention never looks and no loss falls.
    """
    lengths = np.array([len(ids) for ids, _ in examples], np.int64)
    longest = int(lengths.max())
    if layout == "packed":
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        shape = (1, int(lengths.sum()))
    else:
        starts = np.arange(len(examples)) * longest
        shape = (len(examples), longest)
    flat = np.zeros(shape[0] * shape[1], np.int64)
    positions = np.zeros_like(flat)
    weights = np.zeros(flat.shape, np.float32)
    owners = np.zeros_like(flat)
    is_target = np.zeros(flat.shape, bool)
    for number, ((ids, num_prompt), start) in enumerate(zip(examples, starts.tolist(), strict=True)):
        if num_prompt < 1:
            raise AssertionError("an example without a prompt: its first token would be a label")
        stop = start + len(ids)
        flat[start:stop] = ids
        positions[start:stop] = np.arange(stop - start)
        weights[start + 1 : start + num_prompt] = prompt_weight
        weights[start + num_prompt : stop] = 1.0
        is_target[start + num_prompt : stop] = True
        owners[start:stop] = number
    targets = np.flatnonzero(weights)
    return Batch(
        input_ids=torch.from_numpy(flat).view(shape),
        position_ids=torch.from_numpy(positions).view(shape),
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights[targets]),
        owners=torch.from_numpy(owners[targets]),
        is_target=torch.from_numpy(is_target[targets]),
        segments=group_by_length(starts, lengths) if layout == "packed" else None,
        num_tokens=int(lengths.sum()),
    )


def group_by_length(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Segments:
    """Groups examples of similar length: the longest at most a quarter and 4 tokens above the shortest.

    starts, lengths (N,): where each example begins in the flat row, and how long it is.
    """
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
    return Segments(tuple(torch.from_numpy(g) for g in gather), torch.from_numpy(scatter))


def micro_steps(
    blocks: Sequence[Block], layout: Literal["packed", "none"], most_tokens: int, block_size: int
) -> list[list[Drawn]]:
    """The examples of a step in passes of at most `most_tokens` tokens, padding included; at least one example each.

    packed: whole blocks at a time. none: the step's examples by length, so that a pass holds rows of similar length.
    """
    if layout == "packed":
        size = max(1, most_tokens // block_size)
        return [[d for block in blocks[n : n + size] for d in block] for n in range(0, len(blocks), size)]
    passes: list[list[Drawn]] = []
    for drawn in sorted((d for block in blocks for d in block), key=lambda d: -d.length):
        if passes and passes[-1][0].length * (len(passes[-1]) + 1) <= most_tokens:
            passes[-1].append(drawn)
        else:
            passes.append([drawn])
    return passes


def check_window(block_size: int, n_positions: int) -> None:
    """Raises InputError when blocks are longer than the model's positions."""
    if block_size > n_positions:
        raise InputError(
            f"train.block_size {block_size} is longer than the model's window of {n_positions} positions; "
            f"set train.block_size to at most {n_positions}"
        )
