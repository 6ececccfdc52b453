"""Negative log-likelihood of given text: of targets, and of closed answer sets.

`choose(model, [(prompt_ids, [ids of " yes", ids of " no"])], 8192)` -> `[(0, [1.2, 3.4])]`: the first choice has the
lowest NLL, its final `<|end|>` included. The end marker also separates a choice from one that begins with it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from multitask.batching.collate import Example, Ids, collate
from multitask.device import choose_precision, logit_rows, to_double
from multitask.inference.kv_cache import (
    PrefixCache,
    SharedPrefixBatch,
    common_prefix,
    forward,
    logits,
    supports_shared_prefix,
)
from multitask.models.layers.casts import drop_casts
from multitask.models.lora import text_config
from multitask.models.loss import TokenNLL
from multitask.models.support import attending, layout_of

Floats = npt.NDArray[np.float64]


def in_precision(model: Any, precision: Literal["auto", "fp32", "bf16"]) -> Any:
    """The same model with its weights in the precision that it is scored in; auto: bf16 on a GPU that trains in it.

    What its architecture supports is found before, in its own precision: rounding would hide it. Buffers keep theirs:
    rounded frequencies of rotary positions would turn far tokens by large angles.
    """
    device = next(model.parameters()).device
    is_rounded = precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and choose_precision("auto", device) == "bf16"
    )
    if is_rounded and next(model.parameters()).dtype != torch.bfloat16:
        for longest in (1, 1 << 30):  # within and beyond a sliding window
            supports_shared_prefix(model, longest)
            layout_of(model, longest)
        drop_casts()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of sequences in batches of at most `batch_tokens` tokens, longest first."""
    batch: list[int] = []
    size = 0
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if batch and size + lengths[number] > batch_tokens:
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += lengths[number]
    if batch:
        yield batch


@torch.no_grad()
def example_nll(
    model: Any,
    examples: Sequence[Example],
    batch_tokens: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Floats, Floats]:
    """NLL in nats of each example's targets, `<|end|>` included, and its number of target tokens; both float64 (N,).

    No (T, V) tensor is stored; memory depends on `batch_tokens` alone.
    """
    scorer = TokenNLL(model)
    was_training = model.training
    scorer.eval()
    device = next(model.parameters()).device
    nats, tokens = np.zeros(len(examples)), np.zeros(len(examples))
    layout = layout_of(model, max((len(ids) for ids, _ in examples), default=0))
    for numbers in _by_length([len(ids) for ids, _ in examples], batch_tokens):
        batch = collate([examples[n] for n in numbers], layout).to(device)
        with autocast(), attending(model, layout):
            _, nll = scorer(batch)
        owners = batch.owners.cpu().numpy()
        nats[numbers] = np.bincount(owners, to_double(nll).cpu().numpy(), minlength=len(numbers))
        tokens[numbers] = np.bincount(owners, minlength=len(numbers))
    model.train(was_training)
    return nats, tokens


@torch.no_grad()
def choice_nll(model: Any, rows: Sequence[tuple[Ids, Sequence[Ids]]], batch_tokens: int) -> list[list[float]]:
    """NLL in nats of each choice after its prompt, for each (prompt ids, choices' ids).

    The common prefix of all prompts goes through the model once, and each prompt once for all its choices. A model that
    does not support this runs on a row for each choice. Raises ValueError for an
    empty prompt or choice.
    """
    if any(not len(prompt) or not all(map(len, choices)) for prompt, choices in rows):
        raise ValueError("an empty prompt or choice: its first token has no likelihood")
    was_training = model.training
    model.eval()
    nats = [[0.0] * len(choices) for _, choices in rows]
    longest = max((len(prompt) + max(map(len, choices), default=0) for prompt, choices in rows), default=0)
    if supports_shared_prefix(model, longest):
        shared = common_prefix([prompt for prompt, _ in rows])
        prefix = PrefixCache(model, rows[0][0][:shared] if rows else [])
        tails = [(prompt[shared:], choices) for prompt, choices in rows]
        for numbers in _by_length([len(p) + sum(map(len, choices)) for p, choices in tails], batch_tokens):
            for (number, choice), nll in _shared_prefix_nll(model, prefix, [tails[n] for n in numbers]):
                nats[numbers[number]][choice] = nll
    else:
        flat = [(n, c) for n, (_, choices) in enumerate(rows) for c in range(len(choices))]
        examples = [(np.concatenate([rows[n][0], rows[n][1][c]]), len(rows[n][0])) for n, c in flat]
        for (number, choice), nll in zip(flat, example_nll(model, examples, batch_tokens)[0].tolist(), strict=True):
            nats[number][choice] = nll
    model.train(was_training)
    return nats


def _shared_prefix_nll(
    model: Any, prefix: PrefixCache, rows: Sequence[tuple[Ids, Sequence[Ids]]]
) -> Iterator[tuple[tuple[int, int], float]]:
    """((row, choice), nats) of one forward pass."""
    device = next(model.parameters()).device
    batch = SharedPrefixBatch(prefix, rows, device)
    owners, before, labels = [], [], []
    start = 0
    for number, (prompt, choices) in enumerate(rows):
        last = start + len(prompt) - 1
        start = last + 1
        for choice, ids in enumerate(choices):
            owners.append((number, choice))
            before.append(np.array([last, *range(start, start + len(ids) - 1)]))
            labels.append(np.asarray(ids))
            start += len(ids)
    hidden = forward(model, batch.ids, batch.positions, batch)[torch.from_numpy(np.concatenate(before)).to(device)]
    gold = torch.from_numpy(np.concatenate(labels).astype(np.int64)).to(device)
    nll = _nll(model, hidden, gold).cpu().numpy()
    at = np.repeat(np.arange(len(owners)), [len(ids) for ids in labels])
    yield from zip(owners, np.bincount(at, nll, minlength=len(owners)).tolist(), strict=True)


def _nll(model: Any, hidden: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Nats (M,) float64 of tokens `gold` (M,) after hidden states (M, C); logits in chunks of `logit_rows`."""
    size = logit_rows(text_config(model).vocab_size, hidden.device)
    parts = []
    for start in range(0, len(gold), size):
        scores = logits(model, hidden[start : start + size])
        picked = scores.gather(-1, gold[start : start + size, None]).squeeze(-1)
        parts.append(to_double(scores.logsumexp(-1) - picked))
    return torch.cat(parts)


def choose(model: Any, rows: Iterable[tuple[Ids, Sequence[Ids]]], batch_tokens: int) -> list[tuple[int, list[float]]]:
    """The number of the most likely choice and the nats of all, for each (prompt ids, choices' ids with end marker)."""
    return [(int(np.argmin(nats)), nats) for nats in choice_nll(model, list(rows), batch_tokens)]


def probabilities(nats: Sequence[float]) -> tuple[list[float], float]:
    """Probabilities of the choices among themselves, which add up to 1, and what the model gives to all together."""
    likelihoods = np.exp(-(np.asarray(nats) - min(nats)))
    total = float(np.exp(-np.asarray(nats)).sum())
    return (likelihoods / likelihoods.sum()).tolist(), total
