"""Reading without a gradient: what rows share is read once, answers branch off one prompt, and rows grow.

Eight demonstrations of 300 tokens, 500 questions of 40 and three answers of 2: read naively that is 500 * 3 * 342
tokens. Here it is 300 once, then 500 * (40 + 3 * 2), all in flat rows without padding. Every token attends to the
prefix and to what stands before it on its own branch; the two halves are joined by their log-sum-exp, exactly
(Milakov & Gimelshein, 2018).
"""

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from multitask.batching.collate import Ids
from multitask.models.attention import group_by_length, using
from multitask.models.lora import plain_model, text_config

_NAME = "multitask_kv_cache"
_FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""Keeps no scores: 2 to 4 times as fast from 48 tokens on. PyTorch's public function for it gives no log-sum-exp."""
_MOST_SCORES = 1 << 23  # float32 attention scores held at a time: 32 MiB
_SUPPORTING: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()
_LEAST_SHARED = 8  # ids; a shorter common beginning is cheaper read again


class KVCache(Protocol):
    """What a flat row of tokens may look at."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query, key, value (H, T, D) of one layer -> (T, H, D)."""


def _attend_with_cache(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cache: KVCache,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention that transformers calls: (1, H, T, D) -> (1, T, H, D)."""
    if (times := query.shape[1] // key.shape[1]) > 1:  # several query heads for one of keys and values
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    return cache.attend(module.layer_idx, query[0], key[0], value[0], scaling).unsqueeze(0), None


AttentionInterface.register(_NAME, _attend_with_cache)


def forward(model: Any, ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
    """Final hidden states (T, C) of a flat row of tokens; ids and positions (T,)."""
    base = plain_model(model)
    with using(base, _NAME):
        # Embedded here: given ids, transformers would take the pad token at an end for padding, and warn.
        embedded = base.get_input_embeddings()(ids[None])
        output = base.base_model(inputs_embeds=embedded, position_ids=positions[None], use_cache=False, cache=cache)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits (M, V) in float32 of final hidden states (M, C)."""
    found: Tensor = plain_model(model).get_output_embeddings()(hidden)
    return found.float()


def _partly(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention over a part of the keys, (..., T, D), and the log-sum-exp of its scores, (..., T, 1).

    mask: added to the scores, -inf where a query must not look.
    """
    if _FUSED is not None and query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[-2] > 1:
        four = (part.view(-1, *part.shape[-3:]) for part in (query, key, value))
        out, total = _FUSED(*four, attn_mask=mask, scale=scaling)
        return out.view(query.shape), total.view(*query.shape[:-1], 1)
    scores = (query * scaling) @ key.transpose(-1, -2)
    if mask is not None:
        scores += mask
    most = scores.amax(-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    return (weights @ value) / total, most + total.log()


def _joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over two parts of the keys together."""
    share = torch.sigmoid(one[1] - other[1])
    return torch.lerp(other[0], one[0], share)


class PrefixCache:
    """Keys and values of ids that many rows begin with, by layer (H, P, D)."""

    def __init__(self, model: Any, ids: Ids) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.length = len(ids)
        if self.length:
            device = next(model.parameters()).device
            forward(
                model,
                torch.tensor(np.asarray(ids), dtype=torch.long, device=device),
                torch.arange(len(ids)).to(device),
                self,
            )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention, remembered."""
        self.keys[layer], self.values[layer] = key.contiguous(), value.contiguous()
        attended = nn.functional.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, scale=scaling
        )
        return attended[0].transpose(0, 1)

    def truncated(self, length: int) -> "PrefixCache":
        """Its first `length` ids alone; nothing is read anew."""
        part = PrefixCache.__new__(PrefixCache)
        part.length = length
        part.keys = {layer: key[:, :length] for layer, key in self.keys.items()}
        part.values = {layer: value[:, :length] for layer, value in self.values.items()}
        return part

    def attend_to_prefix(self, layer: int, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """What queries (H, T, D) find here, and the log-sum-exp of their scores, a stretch of queries at a time."""
        size = max(1, _MOST_SCORES // (query.shape[0] * self.length))
        parts = [
            _partly(query[:, start : start + size], self.keys[layer], self.values[layer], scaling, None)
            for start in range(0, query.shape[1], size)
        ]
        return torch.cat([out for out, _ in parts], 1), torch.cat([total for _, total in parts], 1)


class SharedPrefixBatch:
    """Rows of a prompt and several answers each, laid end to end in one flat row: `[prompt, answer, answer, ...]`.

    An answer sees its prompt and itself; no row sees another. All of them see the prefix.
    """

    def __init__(self, prefix: PrefixCache, rows: Sequence[tuple[Ids, Sequence[Ids]]], device: torch.device) -> None:
        self.prefix = prefix
        lengths = np.array([len(prompt) + sum(map(len, answers)) for prompt, answers in rows])
        ids = np.concatenate([np.asarray(part) for prompt, answers in rows for part in (prompt, *answers)])
        positions, branches = [], []
        for prompt, answers in rows:
            after = prefix.length + len(prompt)
            positions += [np.arange(prefix.length, after), *(np.arange(after, after + len(a)) for a in answers)]
            branches += [np.zeros(len(prompt), int), *(np.full(len(a), n + 1) for n, a in enumerate(answers))]
        self.ids = torch.from_numpy(ids.astype(np.int64)).to(device)
        self.positions = torch.from_numpy(np.concatenate(positions)).to(device)
        segments = group_by_length(lengths).to(device)
        self.gather, self.scatter = segments.gather, segments.scatter
        branch = torch.from_numpy(np.concatenate(branches)).to(device)
        self.masks = [self._mask(branch[index]) for index in self.gather]

    @staticmethod
    def _mask(branch: Tensor) -> Tensor:
        """-inf where a token must not look, later and at other answers; (n, 1, L, L) of branches (n, L)."""
        length = branch.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=branch.device).triu_(1)
        other = (branch[:, None, :] != 0) & (branch[:, None, :] != branch[:, :, None])
        return torch.zeros(other.shape, device=branch.device).masked_fill_(other | later, -torch.inf)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Each token's own row, in groups of similar length, joined with the prefix."""
        parts = [part.contiguous() for part in (query, key, value)]
        outs, totals = [], []
        for index, mask in zip(self.gather, self.masks, strict=True):
            q, k, v = (
                part.index_select(1, index.view(-1)).view(-1, *index.shape, part.shape[2]).transpose(0, 1)
                for part in parts
            )
            out, total = _partly(q, k, v, scaling, mask)  # (n, H, L, D), (n, H, L, 1)
            outs.append(out.transpose(0, 1).flatten(1, 2))
            totals.append(total.transpose(0, 1).flatten(1, 2))
        own = torch.cat(outs, 1).index_select(1, self.scatter)
        if self.prefix.length:
            total = torch.cat(totals, 1).index_select(1, self.scatter)
            own = _joined((own, total), self.prefix.attend_to_prefix(layer, parts[0], scaling))
        return own.transpose(0, 1)


class DecodingBatch:
    """Rows that grow: keys and values of up to `size` rows of up to `room` tokens each, after a common prefix.

    Rows 0 to `num - 1` are in use. A row that is done gives its place to the last one.
    """

    def __init__(self, prefix: PrefixCache, size: int, room: int) -> None:
        self.prefix, self.size, self.room = prefix, size, room
        self.keys: dict[int, Tensor] = {}  # (size, H, room, D)
        self.values: dict[int, Tensor] = {}
        self.lengths: list[int] = []
        self._new: SharedPrefixBatch | None = None
        self._places: list[Tensor] = []  # of each new row, where its ids stand among all new ones
        self._at = self._mask = torch.empty(0)

    @property
    def num(self) -> int:
        """Rows in use."""
        return len(self.lengths)

    def advance(self, model: Any, ids: Sequence[int], prefix_groups: Sequence[tuple[Ids, Sequence[Ids]]]) -> Tensor:
        """One pass: adds a token to every row, and reads new rows, which take the next places.

        prefix_groups: how rows begin, computed once for all of them, and the rest of each (none is a row, too).
        Returns the last hidden states (n, C) of old and new rows.
        """
        device = next(model.parameters()).device
        self._at = torch.tensor(self.lengths, dtype=torch.long, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        column = torch.arange(max(self.lengths, default=0), device=device)
        far = (column[None] > self._at[:, None])[:, None, None]
        self._mask = torch.zeros(far.shape, device=device).masked_fill_(far, -torch.inf)
        flat, positions = torch.tensor(ids, dtype=torch.long, device=device), self._at + self.prefix.length
        last = list(range(len(ids)))
        self._new, self._places = None, []
        if prefix_groups:
            self._new = SharedPrefixBatch(self.prefix, prefix_groups, device)
            flat, positions = torch.cat([flat, self._new.ids]), torch.cat([positions, self._new.positions])
            start = 0
            for beginning, ends in prefix_groups:
                whole = torch.arange(start, start := start + len(beginning), device=device)
                for end in ends:
                    rest = torch.arange(start, start := start + len(end), device=device)
                    self._places.append(torch.cat([whole, rest]))
            last += [len(ids) + int(place[-1]) for place in self._places]
        hidden = forward(model, flat, positions, self)
        self.lengths += [len(place) for place in self._places]
        return hidden[torch.tensor(last, device=device)]

    def drop(self, row: int) -> None:
        """Gives a row's place to the last row."""
        last = self.num - 1
        if row != last:
            length = self.lengths[last]
            for layer, keys in self.keys.items():
                keys[row, :, :length] = keys[last, :, :length]
                self.values[layer][row, :, :length] = self.values[layer][last, :, :length]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One token of each old row with its row, new rows among themselves; keys and values are kept."""
        if layer not in self.keys:
            shape = (self.size, key.shape[0], self.room, key.shape[2])
            # Zeros: what a mask hides has weight 0, and 0 times whatever memory holds may be no number.
            self.keys[layer], self.values[layer] = key.new_zeros(shape), value.new_zeros(shape)
        num = len(self._at)
        outs = [self._grown(layer, query[:, :num], key[:, :num], value[:, :num], scaling)] if num else []
        if self._new is not None:
            key, value = key[:, num:], value[:, num:]
            for row, place in enumerate(self._places, num):
                self.keys[layer][row, :, : len(place)] = key[:, place]
                self.values[layer][row, :, : len(place)] = value[:, place]
            outs.append(self._new.attend(layer, query[:, num:], key, value, scaling))
        return torch.cat(outs)

    def _grown(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query, key, value (H, n, D) of a token of each old row -> (n, H, D)."""
        keys, values, num, used = self.keys[layer], self.values[layer], len(self._at), self._mask.shape[-1]
        rows = torch.arange(num, device=query.device)
        keys[rows, :, self._at] = key.transpose(0, 1)
        values[rows, :, self._at] = value.transpose(0, 1)
        found = _partly(
            query.transpose(0, 1)[:, :, None], keys[:num, :, :used], values[:num, :, :used], scaling, self._mask
        )
        out, total = (part[:, :, 0].transpose(0, 1) for part in found)  # (H, n, D), (H, n, 1)
        if self.prefix.length:
            out = _joined((out, total), self.prefix.attend_to_prefix(layer, query.contiguous(), scaling))
        return out.transpose(0, 1)


def _common_length(one: Ids, other: Ids) -> int:
    """How many ids both begin with."""
    most = min(len(one), len(other))
    differing = np.flatnonzero(np.asarray(one[:most]) != np.asarray(other[:most]))
    return int(differing[0]) if len(differing) else most


def common_prefix(prompts: Sequence[Ids]) -> int:
    """How many ids all prompts begin with, one less than the shortest at most; 0 where sharing would not pay."""
    if len(prompts) < 2:
        return 0
    shared = min(map(len, prompts)) - 1
    for prompt in prompts:
        shared = min(shared, _common_length(prompts[0], prompt))
    return shared if shared >= _LEAST_SHARED else 0


def prefix_groups(prompts: Sequence[Ids], most: int) -> list[tuple[list[int], int]]:
    """Numbers of prompts that begin alike, at most so many together, and how many ids they share.

    What is not shared is together no longer than what is, so that reading a family as one stretch stays cheap.
    """
    order = sorted(range(len(prompts)), key=lambda n: np.asarray(prompts[n], ">i4").tobytes())
    found: list[tuple[list[int], int]] = []
    for number in order:
        length = len(prompts[number])
        if found:
            members, shared = found[-1]
            together = min(shared, _common_length(prompts[members[0]], prompts[number]))
            ends = sum(len(prompts[n]) for n in (*members, number)) - together * (len(members) + 1)
            if len(members) < most and together >= max(_LEAST_SHARED, ends):
                found[-1] = [*members, number], together
                continue
        found.append(([number], length))
    return found


def supports_shared_prefix(model: Any) -> bool:
    """Whether a model gives the same logits through a `KVCache` as by itself; tried once for each loaded model."""
    base = plain_model(model)
    if base not in _SUPPORTING:
        _SUPPORTING[base] = _try_shared_prefix(model)
    return _SUPPORTING[base]


@torch.no_grad()
def _try_shared_prefix(model: Any) -> bool:
    """Two forward passes on a few ids, compared.

    Most architectures of transformers call a registered attention; those with windows, biases or caps of their own do
    not fit, and one without attention cannot.
    """
    base = plain_model(model)
    if not base._supports_attention_backend or getattr(text_config(base), "sliding_window", None):
        return False
    device = next(model.parameters()).device
    ids = [(7 * n + 3) % text_config(base).vocab_size for n in range(12)]
    own = base(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float()
    rows = SharedPrefixBatch(PrefixCache(model, ids[:5]), [(ids[5:], ())], device)
    ours = logits(model, forward(model, rows.ids, rows.positions, rows))
    return bool((own[5:] - ours).abs().max() <= 1e-3 * own.abs().max().clamp_min(1.0))
