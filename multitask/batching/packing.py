"""From ids to tensors: examples share blocks, and a batch knows where each of them begins and ends.

Lengths [5, 3, 4, 2] in blocks of 8 -> blocks [[0, 1], [2, 3]]. A block is a unit of work, not a shape: `packed` lays
the examples of several blocks end to end in one row without a single pad; `none` lays each in a row of its own. Both
hold the same examples, so both have the same loss. An example's last id is predicted and never read: its length here is
one less than the number of its ids, and 64 tokens of a corpus with the one after them fill a window of 64.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from multitask.batching.collate import Ids
from multitask.batching.mixture import Mixture
from multitask.errors import InputError
from multitask.tokenization.encoded_rows import Examples
from multitask.tokenization.row_encoder import Borders


class SampledExample(NamedTuple):
    """One drawn example: its task's number, its row, the number of its ids that are inputs and that are targets.

    Of a plain text corpus the row is the position where it begins.
    """

    task: int
    row: int
    length: int
    num_targets: int


Block = list[SampledExample]
_Items = list[tuple[int, Block]]
"""What a pass holds whole, each with its width in a batch: blocks, or examples by length, longest first."""
_MOST_IDLE = 0.1
_MAX_WINDOWS = 64  # packed to count the blocks of an epoch


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
        if at and window != self._at:  # of a resumed run that has no step left
            self._at, self._blocks = window, self._pack(window)
        taken = Counter(drawn.task for block in self._blocks[:at] for drawn in block)
        return {
            name: round(epochs[name] + taken.get(number, 0) / size, 4)
            for number, (name, size) in enumerate(self.mixture.sizes.items())
        }

    def num_blocks_in(self, epochs: float) -> float:
        """Blocks that hold as many draws as `epochs` passes over all rows have.

        The packing itself is counted, as blocks are not full; of more than 64 windows, every so many-th.
        """
        num_windows = epochs * sum(self.mixture.sizes.values()) / self.window
        whole = int(num_windows)
        counted = range(0, whole, max(1, whole // _MAX_WINDOWS))
        sizes = [len(self._pack(window)) for window in counted]
        last = (num_windows - whole) * len(self._pack(whole))
        return (sum(sizes) * whole / len(sizes) if sizes else 0.0) + last

    def example(self, drawn: SampledExample) -> tuple[Ids, Borders]:
        """Ids of a drawn example, (length + 1,), and where its targets begin and end."""
        rows = self.examples[drawn.task]
        return rows.ids(drawn.row), rows.borders(drawn.row)

    def _pack(self, window: int) -> list[Block]:
        tasks, _, rows = self.mixture.draws(window * self.window, (window + 1) * self.window)
        drawn = [
            SampledExample(t, r, int(self.examples[t].lengths[r]) - 1, int(self.examples[t].num_targets[r]))
            for t, r in zip(tasks.tolist(), rows.tolist(), strict=True)
        ]
        return [[drawn[n] for n in block] for block in best_fit([d.length for d in drawn], self.block_size)]


def micro_steps(
    blocks: Sequence[Block],
    layout: Literal["packed", "none"],
    most_tokens: int,
    block_size: int,
    num_processes: int = 1,
) -> list[list[SampledExample]]:
    """The examples of a step in passes of at most `most_tokens` tokens, padding included; at least one example each.

    packed: whole blocks at a time. none: the step's examples by length, so that a pass holds rows of similar length.
    num_processes: that share the passes in turns. There are as many passes as keep all of them busy, smaller ones of
    similar size, unless there are fewer blocks (of `none`: examples).
    """
    if layout == "packed":
        items = [(block_size, block) for block in blocks]
    else:
        drawn = sorted((d for block in blocks for d in block), key=lambda d: -d.length)
        items = [(one.length, [one]) for one in drawn]
    passes = _passes(items, most_tokens)
    if len(passes) % num_processes:
        num_wanted = min(len(items), -(-len(passes) // num_processes) * num_processes)
        passes = _spread(items, most_tokens, num_wanted)
    return [[d for _, block in one for d in block] for one in passes]


def _passes(items: _Items, most_tokens: int) -> list[_Items]:
    """Items in their order, as many to a pass as fit."""
    passes: list[_Items] = []
    for item in items:
        if passes and passes[-1][0][0] * (len(passes[-1]) + 1) <= most_tokens:
            passes[-1].append(item)
        else:
            passes.append([item])
    return passes


def _spread(items: _Items, most_tokens: int, num_wanted: int) -> list[_Items]:
    """This many passes, the largest of them as small as can be."""
    low, high = items[0][0], max(most_tokens, items[0][0])
    while low < high:
        middle = (low + high) // 2
        if len(_passes(items, middle)) <= num_wanted:
            high = middle
        else:
            low = middle + 1
    passes = _passes(items, high)
    while len(passes) < num_wanted:
        at = max(range(len(passes)), key=lambda n: (len(passes[n]) > 1, passes[n][0][0] * len(passes[n]), n))
        half = -(-len(passes[at]) // 2)
        passes[at : at + 1] = passes[at][:half], passes[at][half:]
    return passes


def idle_warning(num_blocks: int, block_size: int, num_processes: int) -> str | None:
    """What to say where processes wait for others for more than a tenth of a step of packed blocks."""
    idle = 1 - num_blocks / (num_processes * -(-num_blocks // num_processes))
    if idle <= _MOST_IDLE:
        return None
    return (
        f"a step has {num_blocks} blocks of {block_size} tokens for {num_processes} processes, which are idle for "
        f"{idle:.0%} of the time: make train.batch_tokens a multiple of {num_processes * block_size:,}, or start fewer"
    )


def check_window(block_size: int, n_positions: int | None) -> None:
    """Raises InputError when blocks are longer than the model's positions; None: it has no limit."""
    if n_positions is not None and block_size > n_positions:
        raise InputError(
            f"train.block_size {block_size} is longer than the model's window of {n_positions} positions; "
            f"set train.block_size to at most {n_positions}"
        )


class Stream(Protocol):
    """What the loop reads from: `BlockStream` of tasks, `TextStream` of a plain text corpus."""

    cursor: tuple[int, ...]

    def next_blocks(self, num_blocks: int) -> list[Block]:
        """The next blocks; moves the cursor."""

    def example(self, drawn: SampledExample) -> tuple[Ids, Borders]:
        """Ids of a drawn example, (length + 1,), and where its targets begin and end."""

    def epochs(self) -> dict[str, float]:
        """How often the rows of each name have been taken."""

    def num_blocks_in(self, epochs: float) -> float:
        """Blocks of so many passes over everything."""
