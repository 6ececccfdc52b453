"""Blocks of a plain text corpus: on a grid or at random offsets, each a pure function of (seed, number).

129 tokens in blocks of 64 -> blocks that read 0-63 and 64-127 and predict 1-64 and 65-128.
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from multitask.batching.collate import Ids
from multitask.batching.packing import Block, SampledExample
from multitask.tokenization.row_encoder import Borders

_NUM_OFFSETS = 4096  # drawn at a time


class TextStream:
    """The endless stream of blocks of one plain text corpus, of the same kind as `BlockStream`.

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
            return [SampledExample(0, start, stop - start, stop - start)]
        begins = np.flatnonzero(self.tokens[start + 1 : stop] == self.border_id) + start + 1
        edges = [start, *begins.tolist(), stop]
        return [SampledExample(0, one, other - one, other - one) for one, other in itertools.pairwise(edges)]

    def in_order(self, limit: int | None = None) -> list[Block]:
        """Blocks that end where the next begins, or the first of them: every token but the first is predicted once."""
        starts = range(0, len(self.tokens) - 1, self.block_size)
        return [self.block(start) for start in starts[:limit]]

    def epochs(self) -> dict[str, float]:
        """How often the text has been seen, to the block."""
        return {"text": round(self.cursor[0] / self.num_blocks_in(1), 4)}

    def num_blocks_in(self, epochs: float) -> float:
        """Blocks of so many passes over the grid; at random offsets, with as many tokens as the text."""
        return epochs * ((len(self.tokens) - 1) / self.block_size if self.at_random else self.num_blocks)

    def example(self, drawn: SampledExample) -> tuple[Ids, Borders]:
        """Ids of a drawn stretch, (length + 1,); all but the first are predicted."""
        return self.tokens[drawn.row : drawn.row + drawn.length + 1], 1
