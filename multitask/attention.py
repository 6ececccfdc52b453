"""How the examples of a packed row are kept apart: each attends to itself alone, in groups of similar length.

A flat row of examples of 3, 40 and 4 tokens becomes two causal attentions, (2, H, 4, D) and (1, H, 40, D): no mask over
the row exists, no token of another example is ever multiplied. Registered with transformers by name; the layout
arrives as the keyword argument `segments` of the model's `forward`.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from multitask.batching import Segments


@lru_cache(maxsize=64)
def _future(length: int, device: torch.device) -> Tensor:
    """True where a position (row) must not look (column), (L, L)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def _eager(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """Causal attention written out, (B, H, L, D): on a CPU faster than the fused kernel, whose backward is slow."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    weights = (
        scores.masked_fill(_future(query.shape[-2], query.device), torch.finfo(scores.dtype).min)
        .softmax(-1)
        .to(value.dtype)
    )
    return nn.functional.dropout(weights, dropout, training=dropout > 0) @ value


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """The fused causal kernel, (B, H, L, D)."""
    return nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling
    )


def _apart(kernel: Any) -> Any:
    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        segments: Segments | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """query, key, value (B, H, T, D) -> (B, T, H, D). Without segments: causal rows, padded at their end."""
        if segments is None:
            return kernel(query, key, value, scaling, dropout).transpose(1, 2), None
        heads = [part[0].transpose(0, 1) for part in (query, key, value)]  # (T, H, D)
        outputs = []
        for index in segments.gather:
            # index_select: the gradient of `h[index]` takes four times as long.
            grouped = (
                h.index_select(0, index.view(-1)).view(*index.shape, *h.shape[1:]).transpose(1, 2) for h in heads
            )
            outputs.append(kernel(*grouped, scaling, dropout).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs).index_select(0, segments.scatter).unsqueeze(0), None

    return forward


KERNELS = {"eager": "multitask_eager", "sdpa": "multitask_sdpa"}
AttentionInterface.register(KERNELS["eager"], _apart(_eager))
AttentionInterface.register(KERNELS["sdpa"], _apart(_sdpa))


def name_for(device: torch.device) -> str:
    """The attention that is fast on a device."""
    return KERNELS["eager" if device.type == "cpu" else "sdpa"]
