"""Greedy, sampled and beam answers: each row until it is done, its place then taken by the next one.

`generate(model, [[5, 6], [7]], 8, {2}, 8192)` -> the ids that the model wrote for each prompt, the end left off, and
whether it ended by itself. What all prompts begin with is read once.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from multitask.batching.collate import Ids
from multitask.errors import InputError
from multitask.inference.kv_cache import (
    DecodingBatch,
    PrefixCache,
    common_prefix,
    logits,
    prefix_groups,
    supports_shared_prefix,
)
from multitask.models.device import to_double
from multitask.models.lora import plain_model

IsDone = Callable[[list[int]], bool]
Uniform = Callable[[int, int], float]
Watch = Callable[[Sequence[tuple[int, int]], Sequence[int], Tensor, Tensor], None]
"""Sees (row, step) of each row in work, the tokens picked, and scores (n, V) before and after reshaping."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Ids],
    max_new_tokens: int | Sequence[int],
    end_ids: Set[int],
    batch_tokens: int,
    is_done: IsDone = lambda new: False,
    max_rows: int | None = None,
    uniform: Uniform | None = None,
    reshape: LogitsProcessorList | None = None,
    watch: Watch | None = None,
) -> list[tuple[list[int], bool]]:
    """Greedy, or sampled, continuation of each prompt: (ids without the end, True if it ended before `max_new_tokens`).

    A prompt leaves room: its length and `max_new_tokens` together fit the model's positions.

    Args:
        model: any causal language model of transformers, or a PEFT model on one.
        prompts: ids, at least one each.
        max_new_tokens: most ids written, at least 1; for all prompts or for each.
        end_ids: ids that end an answer and are no part of it.
        batch_tokens: most tokens of all rows in work; a limit on cache.
        is_done: whether the ids written so far are a whole answer; they are kept.
        max_rows: most rows in work; None: as many as `batch_tokens` holds.
        uniform: None: greedy. Else each token is drawn from the model's distribution, with the number in [0, 1) that
            this gives for (row, step): the same numbers, the same text, whatever shares the pass.
        reshape: changes scores before one is picked. Rows are given to it with prompt and ids written so far, padded
            on the left with a row's own first id: what depends on the set of ids alone ignores it.
        watch: called with each pass's tokens, ends included.

    Raises:
        InputError: scores that are no numbers.
    """
    if not prompts:
        return []
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    was_training = model.training
    model.eval()
    is_exact = supports_shared_prefix(model)
    shared = common_prefix(prompts) if is_exact else 0
    longest = max(len(p) + limit for p, limit in zip(prompts, limits, strict=True)) - shared  # its beginning: once
    size = min(len(prompts), max_rows or max(1, batch_tokens // longest))
    written: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    picker = _Picker([torch.from_numpy(np.array(prompt, np.int64)) for prompt in prompts], uniform, reshape, watch)
    ends = _Ends(limits, end_ids, is_done)
    if is_exact:
        rows = _in_decoding_batch(model, prompts, shared, ends, size, longest, picker)
    else:
        rows = _in_batches(model, prompts, ends, size, picker)
    for number, new, finished in rows:
        written[number] = new, finished
    model.train(was_training)
    return written


@dataclass(frozen=True)
class _Picker:
    """Picks the next token of each row: the most likely, or, by its number, one of the cumulative distribution."""

    prompts: Sequence[Tensor]
    uniform: Uniform | None
    reshape: LogitsProcessorList | None
    watch: Watch | None

    def __call__(self, raw: Tensor, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """Scores (n, V), and number and ids written of each row."""
        scores, at = raw, [(number, len(new)) for number, new in rows]
        if self.reshape:
            read = [torch.cat([self.prompts[number], torch.tensor(new, dtype=torch.long)]) for number, new in rows]
            width = max(len(row) for row in read)  # an id of V as padding is an error in transformers before 5.23
            ids = torch.stack([torch.cat([row[:1].expand(width - len(row)), row]) for row in read])
            scores = self.reshape(ids.to(raw.device), raw)
        if not scores.amax(-1).isfinite().all():
            raise InputError(
                "the model's scores of the next token are no numbers: its weights are broken, or a repetition penalty "
                "is beyond all measure"
            )
        picked: list[int] = scores.argmax(-1).tolist() if self.uniform is None else self._drawn(scores, at)
        if self.watch is not None:
            self.watch(at, picked, raw, scores)
        return picked

    def _drawn(self, scores: Tensor, at: Sequence[tuple[int, int]]) -> list[int]:
        assert self.uniform is not None
        heights = to_double(scores).softmax(-1).cumsum(-1)
        numbers = [[self.uniform(row, step)] for row, step in at]
        drawn = torch.tensor(numbers, dtype=torch.float64, device=heights.device)
        picked = torch.searchsorted(heights, drawn * heights[:, -1:], right=True).squeeze(-1)
        sampled: list[int] = picked.clamp_max(scores.shape[-1] - 1).tolist()
        return sampled


@dataclass(frozen=True)
class _Ends:
    """When a row ends, and how."""

    limits: Sequence[int]
    end_ids: Set[int]
    is_done: IsDone

    def add(self, number: int, new: list[int], token: int) -> bool | None:
        """Adds a token, unless it is an end. True: the row has ended; False: at its limit; None: it continues."""
        if token in self.end_ids:
            return True
        new.append(token)
        if self.is_done(new):
            return True
        return False if len(new) == self.limits[number] else None


def _in_decoding_batch(
    model: Any, prompts: Sequence[Ids], shared: int, ends: _Ends, size: int, room: int, picker: _Picker
) -> Iterator[tuple[int, list[int], bool]]:
    """Rows in `size` places, longest prompts first. A family that begins alike enters together, when it has room."""
    prefix = PrefixCache(model, prompts[0][:shared])
    tails = [prompt[shared:] for prompt in prompts]
    waiting = sorted(prefix_groups(tails, size), key=lambda family: max(len(tails[n]) for n in family[0]))
    slots = DecodingBatch(prefix, size, room)
    rows: list[tuple[int, list[int]]] = []  # number and ids written, by place
    while waiting or rows:
        written, entering = [new[-1] for _, new in rows], []
        while waiting and len(rows) + len(waiting[-1][0]) <= size:
            numbers, alike = waiting.pop()
            entering.append((tails[numbers[0]][:alike], [tails[n][alike:] for n in numbers]))
            rows += [(number, []) for number in numbers]
        hidden = slots.advance(model, written, entering)
        picked = picker(logits(model, hidden), rows)
        for place, token in reversed(list(enumerate(picked))):
            number, new = rows[place]
            finished = ends.add(number, new, token)
            if finished is not None:
                yield number, new, finished
                slots.drop(place)
                rows[place] = rows[-1]
                rows.pop()


def _in_batches(
    model: Any, prompts: Sequence[Ids], ends: _Ends, size: int, picker: _Picker
) -> Iterator[tuple[int, list[int], bool]]:
    """Transformers' own `generate`, padded on the left, for models that cannot read through `KVCache`."""
    # Rows of one limit: a row that is done is read on with the others, and must not run out of positions.
    order = sorted(range(len(prompts)), key=lambda n: (ends.limits[n], -len(prompts[n])))
    for limit, alike in groupby(order, key=lambda n: ends.limits[n]):
        numbers = list(alike)
        for start in range(0, len(numbers), size):
            yield from _in_batch(model, prompts, numbers[start : start + size], limit, ends, picker)


def _in_batch(
    model: Any, prompts: Sequence[Ids], numbers: Sequence[int], limit: int, ends: _Ends, picker: _Picker
) -> Iterator[tuple[int, list[int], bool]]:
    read = [picker.prompts[number] for number in numbers]
    device = next(model.parameters()).device
    ids = pad_sequence(read, batch_first=True, padding_side="left").to(device)
    mask = pad_sequence([torch.ones_like(row) for row in read], batch_first=True, padding_side="left").to(device)
    new: list[list[int]] = [[] for _ in numbers]
    finished: list[bool | None] = [None] * len(numbers)

    def only_picked(_: Tensor, scores: Tensor) -> Tensor:
        working = [row for row, end in enumerate(finished) if end is None]
        picked = torch.zeros(len(numbers), dtype=torch.long)  # of rows that are done, any
        for row, token in zip(working, picker(scores[working], [(numbers[w], new[w]) for w in working]), strict=True):
            picked[row] = token
            finished[row] = ends.add(numbers[row], new[row], token)
        return torch.full_like(scores, -torch.inf).scatter(1, picked[:, None].to(device), 0.0)

    def are_done(_: Tensor, __: Tensor) -> Tensor:
        return torch.tensor([end is not None for end in finished], device=device)

    with _unshaped(model) as base:
        base.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([only_picked]),
            stopping_criteria=StoppingCriteriaList([are_done]),
        )
    for number, written, end in zip(numbers, new, finished, strict=True):
        yield number, written, bool(end)


@torch.no_grad()
def beam_search(
    model: Any,
    prompt: Ids,
    max_new_tokens: int,
    end_ids: Set[int],
    beams: int,
    num: int = 1,
    repetition_penalty: float = 1.0,
) -> list[tuple[list[int], bool]]:
    """The `num` most likely of `beams` continuations, best first, as transformers finds them; else as `generate`."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.array(prompt, np.int64))[None].to(device)
    was_training = model.training
    model.eval()
    with _unshaped(model) as base:
        found = base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=num,
            repetition_penalty=repetition_penalty,
            eos_token_id=sorted(end_ids) or None,
            pad_token_id=min(end_ids, default=0),  # what is padded has ended
        )
    model.train(was_training)
    written = []
    for new in found[:, ids.shape[1] :].tolist():
        at = next((at for at, token in enumerate(new) if token in end_ids), None)
        written.append((new[:at], at is not None))
    return written


@contextmanager
def _unshaped(model: Any) -> Iterator[Any]:
    """The plain model without generation settings of its own, which `generate` would mix into those it is given."""
    base = plain_model(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield base
    finally:
        base.generation_config = own
