"""How the examples of a packed row are kept apart: each attends to itself alone.

In half precision on a GPU this is one call of torch's variable-length attention (FlashAttention 2). Elsewhere examples
of similar length form groups: a flat row of examples of 3, 40 and 4 tokens becomes two causal attentions, (2, H, 4, D)
and (1, H, 40, D). No mask over the row exists, no token of another example is ever multiplied. Registered with
transformers by name; the layout arrives as the keyword argument `segments` of the model's `forward`. Sliding windows,
grouped-query attention and soft caps of the scores are those of the model.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from multitask.models.layers.dropout import drop, kept
from multitask.models.layers.segments import Groups, Segments

_TILE = 128  # queries, at least

_varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attn
except ImportError:  # torch before 2.10
    _varlen_attn = None
if _varlen_attn is not None and "window_size" not in inspect.signature(_varlen_attn).parameters:
    _varlen_attn = None  # of torch 2.10: without windows, and with another argument for causal attention


@dataclass(frozen=True)
class Rule:
    """What a layer's attention adds to causal attention; both are None in most models.

    window: a token attends to itself and the `window - 1` tokens before it (sliding window, local attention).
    softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2).
    """

    window: int | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, sliding_window: int | None = None, softcap: float | None = None, **others: Any) -> "Rule":
        """From the keyword arguments that transformers gives a layer's attention.

        Raises NotImplementedError for kinds of attention that are not computed here.
        """
        for name in ("s_aux", "position_bias", "alibi"):
            if others.get(name) is not None:
                raise NotImplementedError(f"attention with {name}")
        return cls(sliding_window, softcap)

    def is_plain(self, longest: int) -> bool:
        """Whether rows of at most `longest` tokens see causal attention and nothing else."""
        return self.softcap is None and (self.window is None or longest <= self.window)

    def capped(self, scores: Tensor) -> Tensor:
        """Scores of any shape after the soft cap."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def is_outside(self, positions: Tensor) -> Tensor:
        """True where a query (row) is too far behind a key (column) of the same positions (..., L) -> (..., L, L)."""
        assert self.window is not None
        return positions[..., :, None] - positions[..., None, :] >= self.window


def _future(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a position (row) must not look (column), else 0, (L, L)."""
    return _square(1 << (length - 1).bit_length(), device, dtype)[:length, :length]


@lru_cache(maxsize=16)
def _square(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=dtype, device=device).triu_(1)


def _eager(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """Causal attention written out, (B, H, L, D)."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    scores = scores + _future(query.shape[-2], query.device, scores.dtype)
    weights = scores.softmax(-1).to(value.dtype)
    return (drop(weights, dropout) if dropout else weights) @ value


def masked(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, rule: Rule) -> Tensor:
    """Causal attention with a sliding window or a soft cap, written out, (B, H, L, D)."""
    scores = rule.capped((query * scaling) @ key.transpose(-1, -2))
    scores = scores + _future(query.shape[-2], query.device, scores.dtype)
    if rule.window is not None and rule.window < query.shape[-2]:
        scores = scores.masked_fill(rule.is_outside(torch.arange(query.shape[-2], device=query.device)), -torch.inf)
    weights = scores.softmax(-1).to(value.dtype)
    return (drop(weights, dropout) if dropout else weights) @ value


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """The fused causal kernel, (B, H, L, D)."""
    return nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling
    )


def _gathered(part: Tensor, index: Tensor, groups: Groups) -> Tensor:
    """(H, T, D) -> (H, n L, D), the positions of a group."""
    return part if groups.is_even else part.index_select(1, index.view(-1))


def _scattered(parts: list[Tensor], groups: Groups) -> Tensor:
    """What the groups hold, (H, n L, D) each, -> (H, T, D), in the order of the row."""
    return parts[0] if groups.is_even else torch.cat(parts, 1).index_select(1, groups.scatter)


def _tiles(length: int) -> list[tuple[int, int]]:
    """Queries of an example in parts, the last one first: behind a part's own queries there is no key to multiply.

    500 -> (334, 500), (167, 334), (0, 167).
    """
    size = -(-length // max(1, length // _TILE))
    return [(start, min(start + size, length)) for start in reversed(range(0, length, size))]


class _EagerApart(torch.autograd.Function):
    """`_eager` over all groups of a row, its gradient written by hand: on a CPU the fastest of all ways tried.

    The fused kernel's backward is slow there, and so is the gradient of gathering: it adds into rows one by one, though
    only an example's own positions receive any. What repeats its last position lies in its future, gets no weight and
    leaves no output, so that gradients too are just gathered.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, groups: Groups
    ) -> Tensor:
        """query, key, value (H, T, D) -> (T, H, D)."""
        num_heads, _, width = query.shape
        parts = [part.contiguous() for part in (query, key, value)]
        outputs: list[Tensor] = []
        saved: list[Tensor | None] = []
        for index in groups.gather:
            num, length = index.shape
            shape = (num_heads * num, length, width)
            q, k, v = (_gathered(part, index, groups).view(shape) for part in parts)
            q = q * scaling
            saved += [q, k, v]
            mixed = torch.empty_like(q)
            for start, stop in _tiles(length):
                scores = torch.bmm(q[:, start:stop], k[:, :stop].transpose(1, 2))
                scores += _future(stop, scores.device, scores.dtype)[start:]
                weights = scores.softmax(-1).to(v.dtype)
                keep, factor = kept(weights, dropout) if dropout else (None, 1.0)
                dropped = weights if keep is None else weights * keep
                torch.bmm(dropped, v[:, :stop], out=mixed[:, start:stop])
                saved += [weights, keep]
            outputs.append((mixed.mul_(factor) if dropout else mixed).view(num_heads, num * length, width))
        ctx.save_for_backward(*saved)
        ctx.scaling, ctx.factor, ctx.groups = scaling, factor, groups
        return _scattered(outputs, groups).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient (T, H, D) -> gradients of query, key and value (H, T, D)."""
        _, num_heads, width = grad.shape
        groups: Groups = ctx.groups
        saved = iter(ctx.saved_tensors)  # read once: gradient checkpointing allows no more
        if groups.is_even:
            placed = grad.transpose(0, 1)
        else:
            num_places = sum(index.numel() for index in groups.gather)
            placed = grad.new_zeros(num_heads, num_places, width).index_copy_(1, groups.scatter, grad.transpose(0, 1))
        grads: tuple[list[Tensor], ...] = ([], [], [])
        start = 0
        for index in groups.gather:
            num, length = index.shape
            q, k, v = next(saved), next(saved), next(saved)
            out = placed[:, start : start + num * length].reshape(num_heads * num, length, width)
            out = out * ctx.factor if ctx.factor != 1 else out
            start += num * length
            of_query, of_key, of_value = map(torch.empty_like, (q, k, v))
            for first, last in _tiles(length):
                weights, keep, given = next(saved), next(saved), out[:, first:last]
                by_weight = torch.bmm(given, v[:, :last].transpose(1, 2))
                by_weight = by_weight if keep is None else by_weight.mul_(keep)
                by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
                torch.bmm(by_score, k[:, :last], out=of_query[:, first:last])
                mixed, beta = (
                    weights if keep is None else weights * keep,
                    int(last < length),
                )  # 0: the first to be written
                of_key[:, :last].baddbmm_(by_score.transpose(1, 2), q[:, first:last], beta=beta)
                of_value[:, :last].baddbmm_(mixed.transpose(1, 2), given, beta=beta)
            for part, found in zip(grads, (of_query.mul_(ctx.scaling), of_key, of_value), strict=True):
                part.append(found.view(num_heads, num * length, width))
        return *(_scattered(part, groups) for part in grads), None, None, None


def _eager_apart(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, groups: Groups) -> Tensor:
    """query, key, value (H, T, D) -> (T, H, D)."""
    apart: Tensor = _EagerApart.apply(query, key, value, scaling, dropout, groups)  # type: ignore[no-untyped-call]
    return apart


def _sdpa_apart(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, groups: Groups) -> Tensor:
    """query, key, value (H, T, D) -> (T, H, D)."""
    heads = [part.transpose(0, 1) for part in (query, key, value)]  # (T, H, D)
    if groups.is_even:
        shape = (*groups.gather[0].shape, *heads[0].shape[1:])
        q, k, v = (h.reshape(shape).transpose(1, 2) for h in heads)
        return _sdpa(q, k, v, scaling, dropout).transpose(1, 2).flatten(0, 1)
    outputs = []
    for index in groups.gather:
        # index_select: the gradient of `h[index]` takes four times as long.
        shape = (*index.shape, *heads[0].shape[1:])
        q, k, v = (h.index_select(0, index.view(-1)).view(shape).transpose(1, 2) for h in heads)
        outputs.append(_sdpa(q, k, v, scaling, dropout).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, groups.scatter)


def _masked_apart(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, groups: Groups, rule: Rule
) -> Tensor:
    """`masked` within each example; query, key, value (H, T, D) -> (T, H, D)."""
    heads = [part.transpose(0, 1) for part in (query, key, value)]
    outputs = []
    for index in groups.gather:
        shape = (*index.shape, *heads[0].shape[1:])
        q, k, v = (h.index_select(0, index.view(-1)).view(shape).transpose(1, 2) for h in heads)
        outputs.append(masked(q, k, v, scaling, dropout, rule).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, groups.scatter)


def has_varlen(value: Tensor, dropout: float, rule: Rule) -> bool:
    """Whether `varlen` can attend to `value` (..., D): in half precision, on a GPU of compute capability 8 or newer."""
    return (
        _varlen_attn is not None
        and value.is_cuda
        and value.dtype in (torch.bfloat16, torch.float16)
        and not dropout
        and rule.softcap is None
        and value.shape[-1] % 8 == 0
        and value.shape[-1] <= _widest(value.device)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@lru_cache(maxsize=16)
def _widest(device: torch.device) -> int:
    """The widest heads that FlashAttention 2 has gradients for on a device; 0: none."""
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0) or torch.version.hip is not None:
        return 0
    return 192 if capability in ((8, 6), (8, 9)) else 256


def varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float, segments: Segments, rule: Rule) -> Tensor:
    """All examples of a row in one call; query, key, value (H, T, D) -> (T, H, D)."""
    window = -1 if rule.is_plain(segments.longest) or rule.window is None else rule.window - 1
    heads = (part.transpose(0, 1) for part in (query, key, value))
    found: Tensor = _varlen_attn(
        *heads,
        segments.bounds,
        segments.bounds,
        segments.longest,
        segments.longest,
        scale=scaling,
        window_size=(window, 0),
    )
    return found


def repeated(part: Tensor, num_heads: int, dim: int) -> Tensor:
    """Keys or values of grouped-query attention, each head of `dim` repeated for the query heads that share it."""
    times = num_heads // part.shape[dim]
    return part.repeat_interleave(times, dim) if times > 1 else part


def _attention(padded: Any, apart: Any) -> Any:
    """What transformers calls: `padded` without segments (causal rows, padded at their end), else `apart`."""

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        segments: Segments | None = None,
        **named: Any,
    ) -> tuple[Tensor, None]:
        """Query (B, H, T, D), key and value, of fewer heads in grouped-query attention -> (B, T, H, D)."""
        # Under autocast rotary positions leave query and key in float32, the value in half precision.
        query, key = query.to(value.dtype), key.to(value.dtype)
        key, value = (repeated(part, query.shape[1], 1) for part in (key, value))
        rule = Rule.of(**named)
        if segments is None:
            if rule.is_plain(query.shape[2]):
                return padded(query, key, value, scaling, dropout).transpose(1, 2), None
            return masked(query, key, value, scaling, dropout, rule).transpose(1, 2), None
        if has_varlen(value, dropout, rule):
            return varlen(query[0], key[0], value[0], scaling, segments, rule).unsqueeze(0), None
        parts = query[0], key[0], value[0], scaling, dropout, segments.groups()
        if rule.is_plain(segments.longest):
            return apart(*parts).unsqueeze(0), None
        return _masked_apart(*parts, rule).unsqueeze(0), None

    return forward


KERNELS = {"eager": "multitask_eager", "sdpa": "multitask_sdpa"}
AttentionInterface.register(KERNELS["eager"], _attention(_eager, _eager_apart))
AttentionInterface.register(KERNELS["sdpa"], _attention(_sdpa, _sdpa_apart))


def name_for(device: torch.device) -> str:
    """The attention that is fast on a device."""
    return KERNELS["eager" if device.type == "cpu" else "sdpa"]


@contextmanager
def using(base: Any, name: str) -> Iterator[None]:
    """A transformers model with another attention for a while."""
    before = base.config._attn_implementation
    base.config._attn_implementation = name
    try:
        yield
    finally:
        base.config._attn_implementation = before
