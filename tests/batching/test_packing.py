"""Packing, the resumable stream of blocks, micro-steps, and the tensors of both layouts."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from multitask.batching.collate import collate
from multitask.batching.mixture import Mixture, sampling_rates
from multitask.batching.packing import BlockStream, SampledExample, best_fit, check_window, idle_warning, micro_steps
from multitask.batching.text_blocks import TextStream
from multitask.errors import InputError
from multitask.models.layers.segments import group_by_length

LAYOUTS = ("packed", "none")


def stream(seed: int = 7, window: int = 128) -> BlockStream:
    """Blocks of 64 tokens from three tasks of 300, 200 and 50 examples of random lengths."""
    rng = np.random.default_rng(0)
    sizes = {"a": 300, "b": 200, "c": 50}
    examples: dict[str, Any] = {}
    for name, size in sizes.items():
        lengths = rng.integers(3, 50, size)
        examples[name] = SimpleNamespace(lengths=lengths, num_targets=rng.integers(1, lengths - 1))
    return BlockStream(examples, Mixture(sizes, sampling_rates(sizes), seed), block_size=64, window=window)


def test_packing_by_hand() -> None:
    assert best_fit([5, 3, 4, 2], 8) == [[0, 1], [2, 3]]
    assert best_fit([5, 6, 2, 3], 8) == [[0, 3], [1, 2]]  # 2 goes where it fits best, not first
    assert best_fit([], 8) == []


@pytest.mark.parametrize("seed", range(20))
def test_packing_loses_and_doubles_nothing_and_fills_blocks(seed: int) -> None:
    rng = random.Random(seed)
    block_size = rng.choice([64, 256, 1024])
    lengths = [rng.randint(2, rng.choice([block_size // 4, block_size])) for _ in range(1500)]
    blocks = best_fit(lengths, block_size)
    assert sorted(n for block in blocks for n in block) == list(range(1500))
    assert all(block == sorted(block) for block in blocks)
    sizes = [sum(lengths[n] for n in block) for block in blocks]
    assert max(sizes) <= block_size
    assert sum(sizes) / (len(sizes) * block_size) > 0.9
    assert any(len(block) > 2 for block in blocks)


def test_an_example_longer_than_a_block_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="an example of 9 tokens in blocks of 8"):
        best_fit([3, 9], 8)


def test_every_draw_of_a_window_is_in_one_block() -> None:
    made = stream()
    blocks: list[list[SampledExample]] = []
    while made.cursor[0] < 2:
        blocks += made.next_blocks(1)
    tasks, _, rows = made.mixture.draws(0, 256)
    found = Counter((d.task, d.row) for block in blocks for d in block)
    assert found == Counter(zip(tasks.tolist(), rows.tolist(), strict=True))
    for block in blocks:
        assert sum(d.length for d in block) <= 64
        for d in block:
            examples = made.examples[d.task]
            assert (d.length, d.num_targets) == (examples.lengths[d.row] - 1, examples.num_targets[d.row])
    assert sum(len({d.task for d in block}) > 1 for block in blocks) > len(blocks) / 3, "tasks share blocks"


def test_three_and_four_blocks_are_seven() -> None:
    one, other = stream(), stream()
    assert one.next_blocks(3) + one.next_blocks(4) == other.next_blocks(7)
    assert one.cursor == other.cursor == (0, 7)
    assert one.next_blocks(0) == []


def test_a_stream_goes_on_from_any_cursor() -> None:
    whole, cursors = [], []
    made = stream()
    for _ in range(150):
        cursors.append(made.cursor)
        whole += made.next_blocks(1)
    assert cursors[-1][0] >= 2, "several windows were seen"
    for at in range(0, 150, 7):
        resumed = stream()
        resumed.cursor = cursors[at]
        assert resumed.next_blocks(150 - at) == whole[at:]
        assert resumed.cursor == made.cursor


def test_epochs_count_what_was_drawn() -> None:
    made = stream(window=256)
    while made.cursor[0] < 4:
        made.next_blocks(5)
    # 1,024 draws of 550 rows in all, in proportion to the rows
    assert made.epochs() == pytest.approx({"a": 1.86, "b": 1.86, "c": 1.86}, abs=0.1)


def test_epochs_move_with_every_block() -> None:
    made = stream(window=256)
    sizes, taken = made.mixture.sizes, dict.fromkeys(made.mixture.sizes, 0)
    while made.cursor[0] < 2:
        for drawn in made.next_blocks(1)[0]:
            taken[list(sizes)[drawn.task]] += 1
        assert made.epochs() == pytest.approx({name: taken[name] / sizes[name] for name in sizes}, abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("most_tokens", [10, 64, 200, 10_000])
def test_micro_steps_hold_every_example_of_a_step(layout: Any, most_tokens: int) -> None:
    blocks = stream().next_blocks(12)
    passes = micro_steps(blocks, layout, most_tokens, 64)
    assert Counter(d for p in passes for d in p) == Counter(d for block in blocks for d in block)
    for drawn in passes:
        size = sum(d.length for d in drawn) if layout == "packed" else max(d.length for d in drawn) * len(drawn)
        is_least = len(drawn) == 1 or (layout == "packed" and any(drawn == block for block in blocks))
        assert size <= most_tokens or is_least
    if most_tokens == 10_000:
        assert len(passes) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("most_tokens", "num_processes"), [(256, 8), (64, 8), (10_000, 5), (10_000, 40), (300, 3)])
def test_no_process_is_without_a_pass(layout: Any, most_tokens: int, num_processes: int) -> None:
    blocks = stream().next_blocks(16)
    alone = micro_steps(blocks, layout, most_tokens, 64)
    passes = micro_steps(blocks, layout, most_tokens, 64, num_processes)
    assert Counter(d for p in passes for d in p) == Counter(d for p in alone for d in p)
    assert all(passes)

    def width(drawn: list[SampledExample]) -> int:
        return sum(d.length for d in drawn) if layout == "packed" else max(d.length for d in drawn) * len(drawn)

    assert max(map(width, passes)) <= max(map(width, alone)), "no pass needs more memory than in one process"
    if layout == "packed" and num_processes == 40:
        assert passes == blocks, "a pass holds at least a block"
    else:
        assert len(passes) == -(-len(alone) // num_processes) * num_processes
    assert micro_steps(blocks, layout, most_tokens, 64, 1) == alone


def test_passes_are_of_like_size() -> None:
    blocks = stream().next_blocks(12)
    passes = micro_steps(blocks, "packed", 256, 64, 8)
    sizes = [sum(block[0] in drawn for block in blocks) for drawn in passes]
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 1]
    assert micro_steps(blocks, "packed", 256, 64) == [
        [d for block in blocks[n : n + 4] for d in block] for n in (0, 4, 8)
    ]


def test_idle_processes_by_hand() -> None:
    assert [idle_warning(blocks, 64, size) for blocks, size in ((16, 8), (100, 8), (3, 1), (1, 1))] == [None] * 4
    assert idle_warning(12, 64, 8) == (
        "a step has 12 blocks of 64 tokens for 8 processes, which are idle for 25% of the time: make "
        "train.batch_tokens a multiple of 512, or start fewer"
    )
    assert "idle for 50% of the time" in str(idle_warning(4, 64, 8))


def example(rng: random.Random, length: int) -> tuple[list[int], int]:
    return [rng.randrange(1, 97) for _ in range(length)], rng.randrange(1, length)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompt_weight", [0.0, 0.3])
def test_labels_are_targets_and_weighted_prompt_tokens_only(layout: Any, prompt_weight: float) -> None:
    rng = random.Random(1)
    examples = [example(rng, rng.randint(2, 30)) for _ in range(25)]
    batch = collate(examples, layout, prompt_weight)
    ids, positions = batch.input_ids.view(-1), batch.position_ids.view(-1)
    expected = [
        (owner, at, ids_[at], 1.0 if at >= num_prompt else prompt_weight)
        for owner, (ids_, num_prompt) in enumerate(examples)
        for at in range(1, len(ids_))  # the first token of an example is never a label
        if at >= num_prompt or prompt_weight
    ]
    found = [
        (int(owner), int(positions[at]) + 1, int(target), pytest.approx(float(weight)))
        for owner, at, target, weight in zip(batch.owners, batch.before, batch.targets, batch.weights, strict=True)
    ]
    assert found == expected
    assert [bool(t) for t in batch.is_target] == [at >= examples[owner][1] for owner, at, _, _ in expected]
    assert batch.num_tokens == sum(len(i) - 1 for i, _ in examples)
    read = [i for ids_, _ in examples for i in ids_[:-1]]
    assert ids[ids > 0].tolist() == read, "no id is 0 here but a pad"
    for owner, at in zip(batch.owners.tolist(), batch.before.tolist(), strict=True):
        assert ids[at] == examples[owner][0][positions[at]], "predicted from the id before it"


def test_packed_has_no_pad_and_none_pads_at_the_end() -> None:
    examples = [([5, 6, 7], 1), ([8, 9], 1)]
    packed, none = collate(examples, "packed"), collate(examples, "none")
    assert packed.input_ids.tolist() == [[5, 6, 8]], "the last id of an example is never read"
    assert packed.position_ids.tolist() == [[0, 1, 0]]
    assert (packed.before.tolist(), packed.targets.tolist()) == ([0, 1, 2], [6, 7, 9])
    assert none.input_ids.tolist() == [[5, 6], [8, 0]]
    assert none.segment_lengths is None
    assert (none.before.tolist(), none.targets.tolist()) == ([0, 1, 2], [6, 7, 9])


def test_segments_gather_and_scatter_are_inverse() -> None:
    rng = random.Random(2)
    num_grouped = 0
    for _ in range(30):
        examples = [example(rng, rng.randint(2, rng.choice([6, 60]))) for _ in range(rng.randint(1, 20))]
        batch = collate(examples, "packed")
        assert batch.segment_lengths is not None
        segments = group_by_length(batch.segment_lengths)
        flat = torch.arange(batch.num_tokens)
        laid_out = torch.cat([flat[g].flatten() for g in segments.gather])
        assert torch.equal(laid_out[segments.scatter], flat)
        padding = len(laid_out) / batch.num_tokens
        assert padding < 2, "short examples among long ones would be mostly padding"
        for group in segments.gather:
            num_grouped += len(group) > 1
            owner = batch.position_ids[0][group]
            assert (owner[:, 0] == 0).all(), "a line of a group begins where its example begins"
    assert num_grouped > 20


def test_an_example_without_a_prompt_is_a_bug() -> None:
    for num_prompt in (0, 2):
        with pytest.raises(AssertionError, match=r"its first token a label, or nothing to predict"):
            collate([([1, 2], num_prompt)])


def test_blocks_longer_than_the_model_are_refused() -> None:
    check_window(64, 64)
    check_window(64, None)  # a model without a limit
    with pytest.raises(InputError, match=r"train\.block_size 65 is longer than the model's window of 64 positions"):
        check_window(65, 64)


# ---------------------------------------------------------------- plain text corpus

TEXT = np.arange(1000, dtype=np.uint16)


def seen(made: TextStream, blocks: list[list[SampledExample]]) -> list[int]:
    return [int(i) for block in blocks for d in block for i in made.example(d)[0][1:]]


@pytest.mark.parametrize("length", [17, 18, 160, 161, 175, 1000])
def test_a_grid_predicts_every_token_of_its_blocks_once_an_epoch(length: int) -> None:
    made = TextStream(TEXT[:length], 16, seed=3)
    first, second = (made.next_blocks(made.num_blocks) for _ in range(2))
    assert sorted(seen(made, first)) == sorted(seen(made, second)) == list(range(1, 16 * ((length - 1) // 16) + 1))
    assert made.epochs() == {"text": 2.0}
    assert made.num_blocks_in(2) == 2 * made.num_blocks
    if made.num_blocks > 5:
        assert first != second, "each epoch has an order of its own"
        assert [b[0].row for b in first] != sorted(b[0].row for b in first)


def test_strided_blocks_overlap() -> None:
    made = TextStream(TEXT, 16, seed=3, stride=5)
    starts = sorted(block[0].row for block in made.next_blocks(made.num_blocks))
    assert starts == list(range(0, 1000 - 16, 5))


def test_random_blocks_begin_anywhere() -> None:
    made = TextStream(TEXT, 16, seed=3, at_random=True)
    starts = [block[0].row for block in made.next_blocks(4000)]
    assert (min(starts), max(starts)) == (0, 1000 - 17)
    assert len(set(starts)) > 0.95 * 984, "of 984 places, 4,000 draws leave 1.7 % out"
    assert made.epochs()["text"] == pytest.approx(4000 * 16 / 999, abs=1e-4)


def test_a_text_in_order_is_predicted_whole() -> None:
    made = TextStream(TEXT[:100], 16, seed=3)
    assert seen(made, made.in_order()) == list(range(1, 100))


@pytest.mark.parametrize("at_random", [False, True])
def test_a_text_stream_goes_on_from_any_cursor(at_random: bool) -> None:
    made = TextStream(TEXT, 16, seed=3, at_random=at_random)
    whole = made.next_blocks(200)
    for at in range(0, 200, 23):
        resumed = TextStream(TEXT, 16, seed=3, at_random=at_random)
        resumed.cursor = (at,)
        assert resumed.next_blocks(200 - at) == whole[at:]
    assert TextStream(TEXT, 16, seed=4, at_random=at_random).next_blocks(200) != whole


def test_isolated_documents_are_examples_of_their_own() -> None:
    text = np.array([5, 6, 9, 7, 9, 9, 8, 8, 8, 9, 4, 4], np.uint16)  # 9 ends a document
    made = TextStream(text, 11, seed=0, border_id=9)
    (block,) = made.next_blocks(1)
    assert [made.example(d)[0].tolist() for d in block] == [[5, 6, 9], [9, 7, 9], [9, 9], [9, 8, 8, 8, 9], [9, 4, 4]]
    assert sum(d.length for d in block) == 11
    plain = TextStream(text, 11, seed=0)
    assert seen(made, [block]) == seen(plain, plain.next_blocks(1)), "the same tokens are predicted"


class _Lengths:
    """Rows of given lengths in place of encoded ones."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.num_targets = np.array(lengths, np.int32), np.ones(len(lengths), np.int32)

    def __len__(self) -> int:
        return len(self.lengths)


@pytest.mark.parametrize(
    ("low", "high", "num_rows", "window"),
    [
        (140, 160, 6000, 2048),
        (20, 30, 9000, 2048),
        (5, 256, 5000, 512),
        (120, 135, 3000, 2048),
        (140, 160, 400_000, 2048),
    ],
)
@pytest.mark.parametrize("epochs", [1, 2.5])
def test_epochs_are_passes_over_the_rows(low: int, high: int, num_rows: int, window: int, epochs: float) -> None:
    """Blocks are not full: as many are needed as hold so many draws, not so many tokens."""
    if num_rows > 100_000 and epochs != 1:
        pytest.skip("one size is enough")
    rng = np.random.default_rng(0)
    rows = {"a": _Lengths(rng.integers(low, high, num_rows).tolist()), "b": _Lengths([low] * 1000)}
    sizes = {name: len(found) for name, found in rows.items()}
    made = BlockStream(rows, Mixture(sizes, sampling_rates(sizes), 7), 256, window)  # type: ignore[arg-type]
    num_blocks = round(made.num_blocks_in(epochs))
    drawn = 0
    while num_blocks:
        blocks = made.next_blocks(min(num_blocks, 500))
        drawn += sum(map(len, blocks))
        num_blocks -= len(blocks)
    assert drawn / sum(sizes.values()) == pytest.approx(epochs, rel=0.02)
