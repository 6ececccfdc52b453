"""Greedy answers: each row until it is done, its place then taken by the next one.

`generate(model, [[5, 6], [7]], 8, {2}, 8192)` -> the ids that the model wrote for each prompt, the end left off, and
whether it ended by itself. What all prompts begin with is read once.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from multitask.batching import Ids
from multitask.inference import Prefix, Slots, common_prefix, families, logits, reads_exactly

IsDone = Callable[[list[int]], bool]
Uniform = Callable[[int, int], float]


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    end_ids: Set[int],
    batch_tokens: int,
    is_done: IsDone = lambda new: False,
    max_rows: int | None = None,
    uniform: Uniform | None = None,
) -> list[tuple[list[int], bool]]:
    """Greedy, or sampled, continuation of each prompt: (ids without the end, True if it ended before `max_new_tokens`).

    A prompt leaves room: its length and `max_new_tokens` together fit the model's positions.

    Args:
        model: any causal language model of transformers, or a PEFT model on one.
        prompts: ids, at least one each.
        max_new_tokens: most ids written for a prompt.
        end_ids: ids that end an answer and are no part of it.
        batch_tokens: most tokens of all rows in work; a limit on memory.
        is_done: whether the ids written so far are a whole answer; they are kept.
        max_rows: most rows in work; None: as many as `batch_tokens` holds.
        uniform: None: greedy. Else each token is drawn from the model's distribution, with the number in [0, 1) that
            this gives for (row, step): the same numbers, the same text, whatever shares the pass.
    """
    if not prompts:
        return []
    was_training = model.training
    model.eval()
    is_exact = reads_exactly(model)
    shared = common_prefix(prompts) if is_exact else 0
    longest = max(map(len, prompts)) - shared + max_new_tokens  # the beginning of all is held once
    size = min(len(prompts), max_rows or max(1, batch_tokens // longest))
    written: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    if is_exact:
        rows = _in_slots(model, prompts, shared, max_new_tokens, end_ids, is_done, size, uniform)
    else:
        rows = _in_batches(model, prompts, max_new_tokens, end_ids, is_done, size, uniform)
    for number, new, finished in rows:
        written[number] = new, finished
    model.train(was_training)
    return written


def _pick(scores: Tensor, at: Sequence[tuple[int, int]], uniform: Uniform | None) -> list[int]:
    """The next token of each of (row, step): the likeliest, or the one whose share of the whole holds the number."""
    if uniform is None:
        greedy: list[int] = scores.argmax(-1).tolist()
        return greedy
    heights = scores.double().softmax(-1).cumsum(-1)
    drawn = torch.tensor([[uniform(row, step)] for row, step in at], dtype=torch.float64, device=scores.device)
    picked = torch.searchsorted(heights, drawn * heights[:, -1:], right=True).squeeze(-1)
    sampled: list[int] = picked.clamp_max(scores.shape[-1] - 1).tolist()
    return sampled


def _in_slots(
    model: Any,
    prompts: Sequence[Ids],
    shared: int,
    max_new_tokens: int,
    end_ids: Set[int],
    is_done: IsDone,
    size: int,
    uniform: Uniform | None,
) -> Iterator[tuple[int, list[int], bool]]:
    """Rows in `size` places, longest prompts first. A family that begins alike enters together, when it has room."""
    prefix = Prefix(model, prompts[0][:shared])
    tails = [prompt[shared:] for prompt in prompts]
    waiting = sorted(families(tails, size), key=lambda family: max(len(tails[n]) for n in family[0]))
    slots = Slots(prefix, size, max(map(len, tails)) + max_new_tokens)
    rows: list[tuple[int, list[int]]] = []  # number and ids written, by place
    while waiting or rows:
        written, entering = [new[-1] for _, new in rows], []
        while waiting and len(rows) + len(waiting[-1][0]) <= size:
            numbers, alike = waiting.pop()
            entering.append((tails[numbers[0]][:alike], [tails[n][alike:] for n in numbers]))
            rows += [(number, []) for number in numbers]
        hidden = slots.advance(model, written, entering)
        steps = [(number, len(new)) for number, new in rows]
        picked = _pick(logits(model, hidden), steps, uniform)
        for place, token in reversed(list(enumerate(picked))):
            number, new = rows[place]
            ended = token in end_ids
            if not ended:
                new.append(token)
            if ended or is_done(new):
                yield number, new, True
            elif len(new) == max_new_tokens:
                yield number, new, False
            else:
                continue
            slots.drop(place)
            rows[place] = rows[-1]
            rows.pop()


def _in_batches(
    model: Any,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    end_ids: Set[int],
    is_done: IsDone,
    size: int,
    uniform: Uniform | None,
) -> Iterator[tuple[int, list[int], bool]]:
    """Transformers' own `generate`, padded on the left, for models that cannot read through `Memory`."""
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        longest = len(prompts[numbers[0]])
        ids, mask = torch.zeros(len(numbers), longest, dtype=torch.long), torch.zeros(len(numbers), longest).long()
        for row, number in enumerate(numbers):
            ids[row, longest - len(prompts[number]) :] = torch.as_tensor(list(prompts[number]))
            mask[row, longest - len(prompts[number]) :] = 1

        def only_picked(
            so_far: Tensor, scores: Tensor, numbers: Sequence[int] = numbers, longest: int = longest
        ) -> Tensor:
            picked = _pick(scores, [(number, so_far.shape[1] - longest) for number in numbers], uniform)
            only = torch.full_like(scores, -torch.inf)
            return only.scatter(1, torch.tensor(picked, device=scores.device)[:, None], 0.0)

        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(end_ids),
            pad_token_id=0,
            logits_processor=LogitsProcessorList([only_picked] if uniform is not None else []),
        )[:, longest:].tolist()
        for number, new in zip(numbers, output, strict=True):
            yield number, *_up_to_end(new, end_ids, is_done)


def _up_to_end(new: list[int], end_ids: Set[int], is_done: IsDone) -> tuple[list[int], bool]:
    for at, token in enumerate(new):
        if token in end_ids:
            return new[:at], True
        if is_done(new[: at + 1]):
            return new[: at + 1], True
    return new, False
