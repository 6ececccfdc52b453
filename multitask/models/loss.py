"""From tensors to nats: the negative log-likelihood of the weighted tokens, projected on the vocabulary only there.

Of a row of 1,000 tokens with 60 target tokens, 60 positions meet the (V, C) output matrix, in chunks; no (B, T, V)
tensor exists.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multitask.batching.collate import Batch
from multitask.models.attention import KERNELS, group_by_length
from multitask.models.bigram import BigramLMHeadModel
from multitask.models.lora import plain_model

_CHUNK_ELEMENTS = 1 << 23  # of a (chunk, V) float32 tensor: 32 MiB
_CPU_ROWS = 512  # at most: few enough for its cache where the vocabulary is small, many enough for a fast product


class _ProjectedNLL(torch.autograd.Function):
    """Cross entropy of a linear projection, gradients taken chunk by chunk in the forward pass.

    After the idea of Liger Kernel's fused linear cross entropy (Hsu et al., 2024).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, labels: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Hidden (M, C), matrix (V, C), labels (M,), weights (M,) -> weighted sum (), nll (M,) in float32."""
        needs_hidden, needs_matrix = ctx.needs_input_grad[:2]
        projection = matrix.to(dtype)
        nll = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_matrix = torch.zeros_like(matrix, dtype=torch.float32) if needs_matrix else None
        # Gradients are taken of weights scaled to at most 1 and scaled back in float32: half precision would underflow.
        scale = weights.abs().max().clamp_min(1e-30) if len(labels) else weights.new_ones(())
        size = max(1, _CHUNK_ELEMENTS // matrix.shape[0])
        if hidden.device.type == "cpu":
            size = min(size, _CPU_ROWS)
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            chunk, gold = hidden[part].to(dtype), labels[part, None]
            logits = (chunk @ projection.T).float()
            logits -= logits.amax(-1, keepdim=True)
            gold_logit = logits.gather(-1, gold)
            share = logits.exp_()
            total = share.sum(-1, keepdim=True)
            nll[part] = (total.log() - gold_logit).squeeze(-1)
            if needs_hidden or needs_matrix:
                # (softmax - 1 at the gold token) * weight, in place
                share = share.scatter_add_(-1, gold, -total).mul_((weights[part] / scale)[:, None] / total).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (share @ projection).float() * scale
                if grad_matrix is not None:
                    # In float32: a column of the sum over thousands of rows leaves the range of half precision.
                    grad_matrix += share.T.float() @ chunk.float() if dtype == torch.float16 else share.T @ chunk
        if grad_matrix is not None:
            grad_matrix *= scale
        ctx.save_for_backward(grad_hidden, grad_matrix)
        ctx.dtypes = hidden.dtype, matrix.dtype
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_matrix = ctx.saved_tensors
        return (
            None if grad_hidden is None else (grad_hidden * grad).to(ctx.dtypes[0]),
            None if grad_matrix is None else (grad_matrix * grad).to(ctx.dtypes[1]),
            None,
            None,
            None,
        )


class TokenNLL(nn.Module):
    """The model with its loss inside `forward`, so that hooks of DDP and mixed precision see one call.

    forward(batch, scale) -> (weighted nats summed and multiplied by `scale` (), nats of each target (M,) float32,
    detached). `scale` is one over the step's whole weight; dividing before the backward pass keeps fp16 in range.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """One pass over a batch; a `PeftModel` is looked through to its base model."""
        base = plain_model(self.model)
        if isinstance(base, BigramLMHeadModel):
            logits = base.next_logits(batch.input_ids.view(-1)[batch.before])
            each = nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
            return (each * batch.weights * scale).sum(), each.detach()
        hidden = hidden_before_targets(base.transformer, batch)
        matrix = head_matrix(base)
        if not torch.is_grad_enabled():
            matrix = matrix.detach()  # a parameter says that it needs a gradient even then
        kind = batch.input_ids.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        loss, nll = _ProjectedNLL.apply(  # type: ignore[no-untyped-call]
            hidden, matrix, batch.targets, batch.weights * scale, dtype
        )
        return loss, nll.detach()


def hidden_before_targets(transformer: Any, batch: Batch) -> Tensor:
    """`GPT2Model.forward` for a batch, where it matters: (M, C) final hidden states of the positions before targets.

    Nothing follows the last block's attention but a function of each position alone, so that block's projection, its
    MLP and the final norm run on M positions instead of B*T.
    """
    lengths = batch.segment_lengths
    segments = None if lengths is None else group_by_length(lengths).to(batch.input_ids.device)
    hidden = transformer.drop(transformer.wte(batch.input_ids) + transformer.wpe(batch.position_ids))
    for block in transformer.h[:-1]:
        hidden = block(hidden, segments=segments)
    last, before = transformer.h[-1], batch.before
    attention = last.attn
    query, key, value = (
        part.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for part in attention.c_attn(last.ln_1(hidden)).split(attention.split_size, dim=2)
    )
    dropout = attention.attn_dropout.p if attention.training else 0.0
    name = transformer.config._attn_implementation
    assert name in KERNELS.values(), f"'{name}' does not keep the examples of a row apart"
    attend = ALL_ATTENTION_FUNCTIONS[name]
    mixed, _ = attend(attention, query, key, value, None, scaling=attention.scaling, dropout=dropout, segments=segments)
    mixed, hidden = mixed.flatten(0, 1).flatten(1), hidden.flatten(0, 1)
    if len(before) < len(hidden):  # all of them in pretraining: nothing to select
        mixed, hidden = mixed.index_select(0, before), hidden.index_select(0, before)
    hidden = hidden + attention.resid_dropout(attention.c_proj(mixed))
    final: Tensor = transformer.ln_f(hidden + last.mlp(last.ln_2(hidden)))
    return final


def head_matrix(base: Any) -> Tensor:
    """The (V, C) output matrix; with LoRA, the tied matrix with its trained token rows put in."""
    head = base.lm_head
    if isinstance(head, nn.Linear):
        return head.weight
    adapter = head.token_adapter  # peft.utils.other.TrainableTokensWrapper
    merged: Tensor = adapter.get_merged_weights(adapter.active_adapters)
    return merged
