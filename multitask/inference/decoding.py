"""Greedy decoding, sampling and beam search; rows that are done give their place in the batch to waiting ones.

`generate(model, [[5, 6], [7]], 8, {2}, 8192)` -> for each prompt the new ids, without the end token, and whether the
model ended the text. The common prefix of all prompts goes through the model once.
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
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from multitask.batching.collate import Ids
from multitask.config.evaluation import SamplingConfig
from multitask.device import to_double
from multitask.errors import InputError
from multitask.inference.kv_cache import (
    DecodingBatch,
    PrefixCache,
    common_prefix,
    logits,
    prefix_groups,
    supports_shared_prefix,
)
from multitask.models.lora import plain_model

IsDone = Callable[[list[int]], bool]
Uniform = Callable[[int, int], float]
OnTokens = Callable[[Sequence[tuple[int, int]], Sequence[int], Tensor, Tensor], None]
"""Receives (row, step) of each row in the batch, the picked tokens, and scores (n, V) before and after processors."""


def logits_processors_of(config: SamplingConfig) -> LogitsProcessorList | None:
    """Repetition penalty, temperature, top-k and top-p, in the order of transformers' `generate`; None: no change."""
    processors = LogitsProcessorList()
    if config.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.temperature is not None:
        processors.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k is not None:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None:
        processors.append(TopPLogitsWarper(config.top_p))
    return processors or None


def uniform_of(seed: int, prompt: int, sample: int, step: int) -> float:
    """The number in [0, 1) that draws a token: a function of these alone, whatever the batch."""
    return float(np.random.default_rng([seed, prompt, sample, step]).random())


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
    processors: LogitsProcessorList | None = None,
    on_tokens: OnTokens | None = None,
) -> list[tuple[list[int], bool]]:
    """Continues each prompt, greedily or by sampling: (new ids, True if it ended before `max_new_tokens`) of each.

    The length of a prompt and its `max_new_tokens` together must fit the model's positions.

    Args:
        model: any causal language model of transformers, or a PEFT model on one.
        prompts: ids, at least one each.
        max_new_tokens: most new ids, at least 1; for all prompts or for each.
        end_ids: ids that end a text and are not part of it.
        batch_tokens: most tokens of all rows in the batch; a limit on the KV cache.
        is_done: whether the new ids so far are complete; they are kept.
        max_rows: most rows in the batch; None: as many as `batch_tokens` allows.
        uniform: None: greedy. Else each token is sampled from the model's distribution by inverse transform, with the
            number in [0, 1) that this gives for (row, step); the result does not depend on the other rows of the batch.
        processors: change the scores before a token is picked. They receive the prompt and new ids of each row, padded
            on the left with the row's own first id: what depends on the set of ids alone ignores it.
        on_tokens: called after each forward pass with the picked tokens, end tokens included.

    Raises:
        InputError: scores are NaN or infinite.
    """
    if not prompts:
        return []
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    was_training = model.training
    model.eval()
    longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    is_shared = supports_shared_prefix(model, longest)
    num_shared = common_prefix(prompts) if is_shared else 0
    max_length = max(len(p) + limit for p, limit in zip(prompts, limits, strict=True)) - num_shared
    size = min(len(prompts), max_rows or max(1, batch_tokens // max_length))
    found: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    picker = TokenPicker(
        [torch.from_numpy(np.array(prompt, np.int64)) for prompt in prompts], uniform, processors, on_tokens
    )
    stop = _Stop(limits, end_ids, is_done)
    if is_shared:
        rows = _in_decoding_batch(model, prompts, num_shared, stop, size, max_length, picker)
    else:
        rows = _in_padded_batches(model, prompts, stop, size, picker)
    for number, new, is_finished in rows:
        found[number] = new, is_finished
    model.train(was_training)
    return found


@dataclass(frozen=True)
class TokenPicker:
    """Picks the next token of each row: the most likely one, or a sample."""

    prompts: Sequence[Tensor]
    uniform: Uniform | None
    processors: LogitsProcessorList | None
    on_tokens: OnTokens | None

    def __call__(self, raw: Tensor, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """Takes scores (n, V), and the number and new ids of each row."""
        scores, at = raw, [(number, len(new)) for number, new in rows]
        if self.processors:
            whole = [torch.cat([self.prompts[number], torch.tensor(new, dtype=torch.long)]) for number, new in rows]
            width = max(len(row) for row in whole)  # an id of V as padding is an error in transformers before 5.23
            ids = torch.stack([torch.cat([row[:1].expand(width - len(row)), row]) for row in whole])
            scores = self.processors(ids.to(raw.device), raw)
        chosen = scores.argmax(-1) if self.uniform is None else self._sampled(scores, at)
        # The one wait for a GPU in a step, which rows stop by.
        picked: list[int]
        picked, is_finite = torch.stack([chosen, scores.amax(-1).isfinite()]).tolist()
        if not all(is_finite):
            raise InputError(
                "the model's scores of the next token are NaN or infinite: its weights are broken, or the repetition "
                "penalty is too large"
            )
        if self.on_tokens is not None:
            self.on_tokens(at, picked, raw, scores)
        return picked

    def _sampled(self, scores: Tensor, at: Sequence[tuple[int, int]]) -> Tensor:
        assert self.uniform is not None
        cumulative = to_double(scores).softmax(-1).cumsum(-1)
        numbers = [[self.uniform(row, step)] for row, step in at]
        uniform = torch.tensor(numbers, dtype=torch.float64, device=cumulative.device)
        picked = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)
        return picked.clamp_max(scores.shape[-1] - 1).to(scores.device)


@dataclass(frozen=True)
class _Stop:
    """When a row stops, and whether it is finished then."""

    limits: Sequence[int]
    end_ids: Set[int]
    is_done: IsDone

    def add(self, number: int, new: list[int], token: int) -> bool | None:
        """Adds a token, unless it is an end token. True: finished; False: at its limit; None: more tokens follow."""
        if token in self.end_ids:
            return True
        new.append(token)
        if self.is_done(new):
            return True
        return False if len(new) == self.limits[number] else None


def _in_decoding_batch(
    model: Any, prompts: Sequence[Ids], num_shared: int, stop: _Stop, size: int, max_length: int, picker: TokenPicker
) -> Iterator[tuple[int, list[int], bool]]:
    """Decodes up to `size` rows at a time, longest prompts first. A prefix group enters when all of it fits."""
    prefix = PrefixCache(model, prompts[0][:num_shared])
    tails = [prompt[num_shared:] for prompt in prompts]
    waiting = sorted(prefix_groups(tails, size), key=lambda group: max(len(tails[n]) for n in group[0]))
    batch = DecodingBatch(prefix, size, max_length)
    rows: list[tuple[int, list[int]]] = []  # number and new ids of each row of the batch
    while waiting or rows:
        last_ids, entering = [new[-1] for _, new in rows], []
        while waiting and len(rows) + len(waiting[-1][0]) <= size:
            numbers, num_common = waiting.pop()
            entering.append((tails[numbers[0]][:num_common], [tails[n][num_common:] for n in numbers]))
            rows += [(number, []) for number in numbers]
        hidden = batch.advance(model, last_ids, entering)
        picked = picker(logits(model, hidden), rows)
        for row, token in reversed(list(enumerate(picked))):
            number, new = rows[row]
            is_finished = stop.add(number, new, token)
            if is_finished is not None:
                yield number, new, is_finished
                batch.drop(row)
                rows[row] = rows[-1]
                rows.pop()


def _in_padded_batches(
    model: Any, prompts: Sequence[Ids], stop: _Stop, size: int, picker: TokenPicker
) -> Iterator[tuple[int, list[int], bool]]:
    """Transformers' own `generate`, padded on the left, for models that do not support a `KVCache`."""
    # Rows of one limit: a finished row still goes through the model with the others, and must not exceed its positions.
    order = sorted(range(len(prompts)), key=lambda n: (stop.limits[n], -len(prompts[n])))
    for limit, group in groupby(order, key=lambda n: stop.limits[n]):
        numbers = list(group)
        for start in range(0, len(numbers), size):
            yield from _in_padded_batch(model, numbers[start : start + size], limit, stop, picker)


def _in_padded_batch(
    model: Any, numbers: Sequence[int], limit: int, stop: _Stop, picker: TokenPicker
) -> Iterator[tuple[int, list[int], bool]]:
    prompts = [picker.prompts[number] for number in numbers]
    device = next(model.parameters()).device
    ids = pad_sequence(prompts, batch_first=True, padding_side="left").to(device)
    mask = pad_sequence([torch.ones_like(row) for row in prompts], batch_first=True, padding_side="left").to(device)
    new: list[list[int]] = [[] for _ in numbers]
    is_finished: list[bool | None] = [None] * len(numbers)

    def pick_only(_: Tensor, scores: Tensor) -> Tensor:
        active = [row for row, finished in enumerate(is_finished) if finished is None]
        picked = torch.zeros(len(numbers), dtype=torch.long)  # of finished rows, any
        for row, token in zip(active, picker(scores[active], [(numbers[n], new[n]) for n in active]), strict=True):
            picked[row] = token
            is_finished[row] = stop.add(numbers[row], new[row], token)
        return torch.full_like(scores, -torch.inf).scatter(1, picked[:, None].to(device), 0.0)

    def have_stopped(_: Tensor, __: Tensor) -> Tensor:
        return torch.tensor([finished is not None for finished in is_finished], device=device)

    with _default_generation_config(model) as base:
        base.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([pick_only]),
            stopping_criteria=StoppingCriteriaList([have_stopped]),
        )
    for number, new_ids, finished in zip(numbers, new, is_finished, strict=True):
        yield number, new_ids, bool(finished)


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
    """The `num` best of `beams` continuations by transformers' beam search, best first; otherwise as `generate`."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.array(prompt, np.int64))[None].to(device)
    was_training = model.training
    model.eval()
    with _default_generation_config(model) as base:
        sequences = base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=num,
            repetition_penalty=repetition_penalty,
            eos_token_id=sorted(end_ids) or None,
            pad_token_id=min(end_ids, default=0),  # only finished sequences are padded
        )
    model.train(was_training)
    found = []
    for new in sequences[:, ids.shape[1] :].tolist():
        end = next((place for place, token in enumerate(new) if token in end_ids), None)
        found.append((new[:end], end is not None))
    return found


@contextmanager
def _default_generation_config(model: Any) -> Iterator[Any]:
    """The plain model with default generation settings: its own would be merged into the given ones."""
    base = plain_model(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield base
    finally:
        base.generation_config = own
