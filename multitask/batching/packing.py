"""From ids to tensors: examples share blocks, and a batch knows where each of them begins and ends.

Lengths [5, 3, 4, 2] in blocks of 8 -> blocks [[0, 1], [2, 3]]. A block is a unit of work, not a shape: `packed` lays
the examples of several blocks end to end in one row without a single pad; `none` lays each in a row of its own. Both
hold the same examples, so both have the same loss. An example's last id is predicted and never read: its length here is
one less than the number of its ids, and 64 tokens of running text with the one after them fill a window of 64.
"""

import itertools
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multitask.batching.mixture import Mixture
from multitask.errors import InputError
from multitask.tokenization.encoded_rows import Examples

_NUM_OFFSETS = 4096  # drawn at a time


class Drawn(NamedTuple):
    """One drawn example: its task's number, its row, the number of its ids that are read, the length of its prompt.

    Of running text the row is the place where it begins.
    """

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
        self.cursor: tuple[int, ...] = (0, 0)
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

    @property
    def tokens_per_epoch(self) -> float:
        """Tokens read in as many draws as all tasks have rows."""
        means = [float(rows.lengths.mean()) - 1 for rows in self.examples]
        mean = sum(share * mean for share, mean in zip(self.mixture.share.values(), means, strict=True))
        return sum(self.mixture.sizes.values()) * mean

    def ids(self, drawn: Drawn) -> "Ids":
        """Ids of a drawn example, (length + 1,)."""
        return self.examples[drawn.task].ids(drawn.row)

    def _pack(self, window: int) -> list[Block]:
        tasks, _, rows = self.mixture.draws(window * self.window, (window + 1) * self.window)
        drawn = [
            Drawn(t, r, int(self.examples[t].lengths[r]) - 1, int(self.examples[t].num_prompts[r]))
            for t, r in zip(tasks.tolist(), rows.tolist(), strict=True)
        ]
        return [[drawn[n] for n in block] for block in best_fit([d.length for d in drawn], self.block_size)]


class TextStream:
    """The endless stream of blocks of one running text, of the same kind as `BlockStream`.

    Block n is a pure function of (seed, n), and the cursor (n,) all that a resumed run needs. Isolated, a block is as
    many examples as it has documents: each begins at `border_id`, which stands before it (`before`) or ends the one
    before (`after`, and is then predicted by that one and read by this one).
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.integer[Any]],
        block_size: int,
        seed: int,
        stride: int | None = None,
        at_random: bool = False,
        border_id: int | None = None,
    ) -> None:
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.stride, self.at_random, self.border_id = stride or block_size, at_random, border_id
        self.num_blocks = (len(tokens) - 1 - block_size) // self.stride + 1
        self.cursor: tuple[int, ...] = (0,)
        self._turn = -1  # of the numbers in `_order`: an epoch, or a round of random offsets
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def next_blocks(self, num_blocks: int) -> list[Block]:
        """The next blocks; moves the cursor."""
        first = self.cursor[0]
        self.cursor = (first + num_blocks,)
        return [self.block(self._start(n)) for n in range(first, first + num_blocks)]

    def _start(self, number: int) -> int:
        if self.at_random:
            turn, place = divmod(number, _NUM_OFFSETS)
            if turn != self._turn:
                rng = np.random.default_rng([self.seed, 3, turn])
                self._turn, self._order = turn, rng.integers(len(self.tokens) - self.block_size, size=_NUM_OFFSETS)
            return int(self._order[place])
        turn, place = divmod(number, self.num_blocks)
        if turn != self._turn:
            self._turn, self._order = turn, np.random.default_rng([self.seed, 2, turn]).permutation(self.num_blocks)
        return int(self._order[place]) * self.stride

    def block(self, start: int) -> Block:
        """The block that reads `block_size` ids from `start` on, fewer at the end of the text."""
        stop = min(start + self.block_size, len(self.tokens) - 1)
        if self.border_id is None:
            return [Drawn(0, start, stop - start, 1)]
        begins = np.flatnonzero(self.tokens[start + 1 : stop] == self.border_id) + start + 1
        edges = [start, *begins.tolist(), stop]
        return [Drawn(0, one, other - one, 1) for one, other in itertools.pairwise(edges)]

    def in_order(self, limit: int | None = None) -> list[Block]:
        """Blocks that end where the next begins, or the first of them: every token but the first is predicted once."""
        starts = range(0, len(self.tokens) - 1, self.block_size)
        return [self.block(start) for start in starts[:limit]]

    def epochs(self) -> dict[str, float]:
        """How often the text has been seen, to the block."""
        return {"text": round(self.cursor[0] * self.block_size / self.tokens_per_epoch, 4)}

    @property
    def tokens_per_epoch(self) -> float:
        """Tokens of the blocks of one pass; at random offsets, of the text."""
        return float(len(self.tokens) - 1 if self.at_random else self.num_blocks * self.block_size)

    def ids(self, drawn: Drawn) -> "Ids":
        """Ids of a drawn stretch, (length + 1,)."""
        return self.tokens[drawn.row : drawn.row + drawn.length + 1]


@dataclass(frozen=True)
class Segments:
    """Where the examples of one flat row are, grouped by similar length for attention.

    gather: per group an index (n, L) of flat positions; what lies past an example's end repeats its last position.
    scatter: (T,) for each flat position, its place in the groups laid end to end.
    is_even: all examples have one length, so that both are the order of the row itself.
    """

    gather: tuple[Tensor, ...]
    scatter: Tensor
    is_even: bool = False

    def to(self, device: torch.device) -> "Segments":
        """On another device."""
        gather = tuple(g.to(device, non_blocking=True) for g in self.gather)
        return Segments(gather, self.scatter.to(device), self.is_even)


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass.

    input_ids, position_ids: (B, T) int64; positions restart at each example.
    targets: (M,) int64 ids that carry loss; never the first of an example. before: (M,) int64 flat positions in B*T of
    the ids just before them. weights: (M,) float32 loss weights. owners: (M,) int64, the example each target belongs
    to. is_target: (M,) bool; False for prompt tokens, which carry loss when they have a weight.
    segments: None when every row is one example, padded at its end. num_tokens: ids that are read, pads left out.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    before: Tensor
    weights: Tensor
    owners: Tensor
    is_target: Tensor
    segments: Segments | None
    num_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        if device.type == "cpu":
            return self
        names = ("input_ids", "position_ids", "targets", "before", "weights", "owners", "is_target")
        moved: Any = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved, segments=self.segments.to(device) if self.segments else None)


Ids = Sequence[int] | npt.NDArray[np.integer[Any]]


def collate(
    examples: Sequence[tuple[Ids, int]], layout: Literal["packed", "none"] = "packed", prompt_weight: float = 0.0
) -> Batch:
    """Lays out examples, each (ids, length of its prompt).

    packed: one row (1, sum of lengths). none: one row each (B, longest), padded with id 0 at the end, where causal
    attention never looks and no loss falls.
    """
    lengths = np.array([len(ids) - 1 for ids, _ in examples], np.int64)
    longest = int(lengths.max())
    if layout == "packed":
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        shape = (1, int(lengths.sum()))
    else:
        starts = np.arange(len(examples)) * longest
        shape = (len(examples), longest)
    flat = np.zeros(shape[0] * shape[1], np.int64)
    following, positions = np.zeros_like(flat), np.zeros_like(flat)
    weights = np.zeros(flat.shape, np.float32)
    owners = np.zeros_like(flat)
    is_target = np.zeros(flat.shape, bool)
    for number, ((ids, num_prompt), start) in enumerate(zip(examples, starts.tolist(), strict=True)):
        if not 1 <= num_prompt < len(ids):
            raise AssertionError("an example without a prompt, its first token a label, or without anything to predict")
        stop, target = start + len(ids) - 1, start + num_prompt - 1
        flat[start:stop], following[start:stop] = ids[:-1], ids[1:]
        positions[start:stop] = np.arange(stop - start)
        weights[start:target] = prompt_weight
        weights[target:stop] = 1.0
        is_target[target:stop] = True
        owners[start:stop] = number
    before = np.flatnonzero(weights)
    return Batch(
        input_ids=torch.from_numpy(flat).view(shape),
        position_ids=torch.from_numpy(positions).view(shape),
        targets=torch.from_numpy(following[before]),
        before=torch.from_numpy(before),
        weights=torch.from_numpy(weights[before]),
        owners=torch.from_numpy(owners[before]),
        is_target=torch.from_numpy(is_target[before]),
        segments=group_by_length(starts, lengths) if layout == "packed" else None,
        num_tokens=int(lengths.sum()),
    )


def group_by_length(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Segments:
    """Groups examples of similar length: the longest at most a quarter and 4 tokens above the shortest.

    starts, lengths (N,): where each example begins in the flat row, and how long it is.
    """
    if (lengths == lengths[0]).all():
        place = torch.arange(int(lengths.sum()))
        return Segments((place.view(len(lengths), -1),), place, is_even=True)
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
