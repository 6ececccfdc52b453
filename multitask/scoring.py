"""What a model thinks of given text: nats of targets, and which of several answers it finds likeliest.

`choose(model, [(prompt_ids, [ids of " yes", ids of " no"])], 8192)` -> `[(0, [1.2, 3.4])]`: the first answer, its final
`<|end|>` included, has the fewest nats. The end marker also settles a choice that is the beginning of another.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multitask.attention import name_for, using
from multitask.batching import Ids, collate
from multitask.loss import TokenNLL, plain_model

Floats = npt.NDArray[np.float64]


def _by_length(examples: Sequence[tuple[Ids, int]], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of examples in passes of at most `batch_tokens` tokens, longest first."""
    batch: list[int] = []
    size = 0
    for number in sorted(range(len(examples)), key=lambda n: -len(examples[n][0])):
        if batch and size + len(examples[number][0]) > batch_tokens:
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += len(examples[number][0])
    if batch:
        yield batch


@torch.no_grad()
def example_nll(
    model: Any,
    examples: Sequence[tuple[Ids, int]],
    batch_tokens: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Floats, Floats]:
    """Nats of each example's target, `<|end|>` included, and its number of target tokens; both float64 (N,).

    examples: (ids, length of the prompt) each. No (T, V) tensor is kept; memory depends on `batch_tokens` alone.
    """
    scorer = TokenNLL(model)
    was_training = model.training
    scorer.eval()
    device = next(model.parameters()).device
    nats, tokens = np.zeros(len(examples)), np.zeros(len(examples))
    for numbers in _by_length(examples, batch_tokens):
        batch = collate([examples[n] for n in numbers]).to(device)
        with autocast(), using(plain_model(model), name_for(device)):
            _, nll = scorer(batch)
        owners = batch.owners.cpu().numpy()
        nats[numbers] = np.bincount(owners, nll.double().cpu().numpy(), minlength=len(numbers))
        tokens[numbers] = np.bincount(owners, minlength=len(numbers))
    model.train(was_training)
    return nats, tokens


def choose(
    model: Any, rows: Iterable[tuple[Ids, Sequence[Sequence[int]]]], batch_tokens: int
) -> list[tuple[int, list[float]]]:
    """For each (prompt ids, choices' ids with their end marker): the likeliest choice's number, and the nats of all."""
    examples: list[tuple[Ids, int]] = []
    counts = []
    for prompt, choices in rows:
        counts.append(len(choices))
        examples += [([*prompt, *choice], len(prompt)) for choice in choices]
    nats, _ = example_nll(model, examples, batch_tokens)
    chosen, start = [], 0
    for count in counts:
        mine = nats[start : start + count]
        chosen.append((int(mine.argmin()), mine.tolist()))
        start += count
    return chosen
