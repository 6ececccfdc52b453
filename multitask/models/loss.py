"""From tensors to nats: the negative log-likelihood of the weighted tokens, projected on the vocabulary only there.

Of a row of 1,000 tokens with 60 target tokens, 60 positions meet the (V, C) output matrix, in chunks; no (B, T, V)
tensor exists.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multitask.batching.collate import Batch
from multitask.device import logit_rows
from multitask.models.bigram import BigramLMHeadModel
from multitask.models.layers.attention import KERNELS
from multitask.models.layers.casts import in_dtype
from multitask.models.layers.compiled import CompiledBlocks
from multitask.models.layers.segments import Segments
from multitask.models.lora import embed, plain_model, text_config, token_rows

_CPU_ROWS = 512  # at most: few enough for its cache where the vocabulary is small, many enough for a fast product
_HAS_HEAD: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


class _ProjectedNLL(torch.autograd.Function):
    """Cross entropy of a linear projection, gradients taken chunk by chunk in the forward pass.

    After the idea of Liger Kernel's fused linear cross entropy (Hsu et al., 2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        new_rows: Tensor | None,
        bias: Tensor | None,
        new_ids: Tensor | None,
        labels: Tensor,
        weights: Tensor,
        dtype: torch.dtype,
        softcap: float | None,
        gradient_of: "_GradientOf",
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum () and nll (M,) in float32.

        hidden (M, C), matrix (V, C), labels (M,), weights (M,). new_rows (K, C): what stands in the matrix at new_ids
        (K,) instead of its own rows. bias (V,). softcap: logits become softcap * tanh(logits / softcap). gradient_of:
        `_gradient`, or the same compiled.
        """
        needs_hidden, needs_matrix, needs_rows, needs_bias = ctx.needs_input_grad[:4]
        needs_any = needs_hidden or needs_matrix or needs_rows or needs_bias
        num_words = matrix.shape[0]
        projection = _padded(in_dtype(matrix, dtype))
        rows = None if new_rows is None else new_rows.to(dtype)
        nll = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_matrix = torch.zeros_like(matrix, dtype=torch.float32) if needs_matrix else None
        grad_rows = torch.zeros_like(new_rows, dtype=torch.float32) if needs_rows and new_rows is not None else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        # Gradients are taken of weights scaled to at most 1 and scaled back in float32: half precision would underflow.
        scale = weights.abs().max().clamp_min(1e-30) if len(labels) else weights.new_ones(())
        size = logit_rows(num_words, hidden.device)
        if hidden.device.type == "cpu":
            size = min(size, _CPU_ROWS)
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            chunk, gold = hidden[part].to(dtype), labels[part, None]
            logits = chunk @ projection.T
            if rows is not None and new_ids is not None:
                logits.index_copy_(1, new_ids, chunk @ rows.T)
            given = weights[part, None] / scale
            nll[part], share = gradient_of(logits, num_words, bias, gold, given, softcap, needs_any)
            if share is None:
                continue
            if grad_bias is not None:
                grad_bias += share[:, :num_words].float().sum(0)
            if rows is not None and new_ids is not None:
                taken = share.index_select(1, new_ids)
                if grad_rows is not None:
                    grad_rows += taken.T.float() @ chunk.float()
                share.index_fill_(1, new_ids, 0)
                if grad_hidden is not None:
                    grad_hidden[part] = (taken @ rows).float() * scale
            if grad_hidden is not None:
                of_matrix = (share @ projection).float() * scale
                grad_hidden[part] = of_matrix if rows is None else grad_hidden[part] + of_matrix
            if grad_matrix is not None:
                # In float32: a column of the sum over thousands of rows leaves the range of half precision.
                of_words = share.T.float() @ chunk.float() if dtype == torch.float16 else share.T @ chunk
                grad_matrix += of_words[:num_words]
        for found in (grad_matrix, grad_rows, grad_bias):
            if found is not None:
                found *= scale
        ctx.save_for_backward(grad_hidden, grad_matrix, grad_rows, grad_bias)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, matrix, new_rows, bias)]
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            None if found is None else (found * grad).to(dtype)
            for found, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*grads, *[None] * 6)


def _padded(matrix: Tensor) -> Tensor:
    """A matrix (V, C) with zeros below it up to a multiple of 64 rows, for products in half precision on a GPU.

    GPT-2 has 50,257 words: with an odd number, the products of its projection took a fifth of a step on an H200.
    """
    missing = -matrix.shape[0] % 64
    if not missing or not matrix.is_cuda or matrix.dtype == torch.float32:
        return matrix
    return nn.functional.pad(matrix, (0, 0, 0, missing))


_GradientOf = Callable[[Tensor, int, Tensor | None, Tensor, Tensor, float | None, bool], tuple[Tensor, Tensor | None]]


def _gradient(
    logits: Tensor,
    num_words: int,
    bias: Tensor | None,
    gold: Tensor,
    weights: Tensor,
    softcap: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Nats (R,) of gold (R, 1) by logits (R, V), and (softmax - 1 at the gold token) * weights (R, 1), (R, V), or None.

    Columns from `num_words` on are padding. In place wherever it can be: the logits are the largest tensor there is.
    """
    dtype, missing = logits.dtype, logits.shape[1] - num_words
    logits = logits[:, :num_words].float()
    if bias is not None:
        logits += bias
    slope = None
    if softcap is not None:
        logits = logits.div_(softcap).tanh_()
        slope = 1 - logits**2 if needs_gradient else None
        logits *= softcap
    logits -= logits.amax(-1, keepdim=True)
    gold_logit = logits.gather(-1, gold)
    share = logits.exp_()
    total = share.sum(-1, keepdim=True)
    nll = (total.log() - gold_logit).squeeze(-1)
    if not needs_gradient:
        return nll, None
    share = share.scatter_add_(-1, gold, -total).mul_(weights / total)
    if slope is not None:
        share *= slope
    share = share.to(dtype)
    return nll, nn.functional.pad(share, (0, missing)) if missing else share


def _gradient_to_compile(
    logits: Tensor,
    num_words: int,
    bias: Tensor | None,
    gold: Tensor,
    weights: Tensor,
    softcap: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The same as `_gradient`, nothing in place: a compiler reads the logits twice and writes only what is returned."""
    columns = torch.arange(logits.shape[-1], device=logits.device)
    found = logits.float()
    if bias is not None:
        found = found + nn.functional.pad(bias, (0, logits.shape[-1] - num_words))
    squashed = None if softcap is None else torch.tanh(found / softcap)
    found = found if squashed is None or softcap is None else squashed * softcap
    found = torch.where(columns < num_words, found, -torch.inf)
    found = found - found.amax(-1, keepdim=True)
    exponential = found.exp()
    total = exponential.sum(-1, keepdim=True)
    nll = (total.log() - found.gather(-1, gold)).squeeze(-1)
    if not needs_gradient:
        return nll, None
    share = (exponential / total - (columns == gold).float()) * weights
    share = share if squashed is None else share * (1 - squashed**2)
    return nll, share.to(logits.dtype)


class TokenNLL(nn.Module):
    """The model with its loss inside `forward`, so that hooks of DDP and mixed precision see one call.

    forward(batch, scale) -> (weighted nats summed and multiplied by `scale` (), nats of each target (M,) float32,
    detached). `scale` is one over the step's whole weight; dividing before the backward pass keeps fp16 in range.
    compiled: the model's blocks, where passes with gradients are compiled.
    """

    def __init__(self, model: nn.Module, compiled: CompiledBlocks | None = None) -> None:
        super().__init__()
        self.model, self.compiled = model, compiled
        self.parts = _Parts() if compiled is None else _Parts.compiled_by(compiled)

    def forward(self, batch: Batch, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """One pass over a batch; a `PeftModel` is looked through to its base model."""
        if self.compiled is None or not torch.is_grad_enabled():
            return self._forward(batch, scale, _Parts())
        with self.compiled.active():
            return self._forward(batch, scale, self.parts)

    def _forward(self, batch: Batch, scale: float, parts: "_Parts") -> tuple[Tensor, Tensor]:
        base = plain_model(self.model)
        if isinstance(base, BigramLMHeadModel):
            logits = base.next_logits(batch.input_ids.view(-1)[batch.before])
            each = nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
            return (each * batch.weights * scale).sum(), each.detach()
        weights = batch.weights * scale
        head = head_of(base)
        if head is None:
            logits = _own_output(base, base, batch).logits.flatten(0, 1).index_select(0, batch.before)
            each = nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
            return (each * weights).sum(), each.detach()
        hidden = hidden_before_targets(base, batch, parts.last_block)
        kind = batch.input_ids.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        loss, nll = projected_nll(hidden, head, batch.targets, weights, dtype, parts.gradient)
        return loss, nll.detach()


def projected_nll(
    hidden: Tensor,
    head: "Head",
    labels: Tensor,
    weights: Tensor,
    dtype: torch.dtype,
    gradient_of: _GradientOf = _gradient,
) -> tuple[Tensor, Tensor]:
    """Weighted sum () and nats (M,) float32 of labels (M,) after hidden states (M, C); products in `dtype`."""
    parts = [head.matrix, head.new_rows, head.bias]
    if not torch.is_grad_enabled():  # a parameter says that it needs a gradient even then
        parts = [None if part is None else part.detach() for part in parts]
    scaled = hidden if head.scale == 1 else hidden * head.scale
    found: tuple[Tensor, Tensor] = _ProjectedNLL.apply(  # type: ignore[no-untyped-call]
        scaled, *parts, head.new_ids, labels, weights, dtype, head.softcap, gradient_of
    )
    return found


def hidden_before_targets(base: Any, batch: Batch, last_block: Any = None) -> Tensor:
    """(M, C) final hidden states of the positions before targets; last_block: `_gpt2_last_block`, or it compiled."""
    if isinstance(base, GPT2LMHeadModel):
        return _gpt2_hidden(base, batch, last_block or _gpt2_last_block)
    hidden: Tensor = _own_output(base, base.base_model, batch).last_hidden_state.flatten(0, 1)
    return hidden.index_select(0, batch.before) if len(batch.before) < len(hidden) else hidden


def _own_output(base: Any, part: Any, batch: Batch) -> Any:
    """What `part`, a model or its base model, makes of a batch.

    With our attention examples may share a row. Without, each has a row of its own; what stands behind its end changes
    nothing before it.
    """
    named: dict[str, Any] = {"use_cache": False}
    if base.config._attn_implementation in KERNELS.values():
        named["position_ids"] = batch.position_ids
        if batch.segment_lengths is not None:
            named["segments"] = Segments(batch.segment_lengths, batch.input_ids.device)
    else:
        assert batch.segment_lengths is None, "this model's own attention does not keep the examples of a row apart"
        named["attention_mask"] = batch.attention_mask
    embedded = embed(base, batch.input_ids)
    given = {"input_ids": batch.input_ids} if embedded is None else {"inputs_embeds": embedded}
    return part(**given, **named)


def _gpt2_hidden(base: GPT2LMHeadModel, batch: Batch, last_block: Any) -> Tensor:
    """`GPT2Model.forward` for a batch, where it matters: (M, C) final hidden states of the positions before targets.

    Nothing follows the last block's attention but a function of each position alone, so that block's projection, its
    MLP and the final norm run on M positions instead of B*T.
    """
    lengths = batch.segment_lengths
    segments = None if lengths is None else Segments(lengths, batch.input_ids.device)
    transformer, embedded = base.transformer, embed(base, batch.input_ids)
    if embedded is None:
        embedded = transformer.wte(batch.input_ids)
    hidden = transformer.drop(embedded + transformer.wpe(batch.position_ids))
    for block in transformer.h[:-1]:
        hidden = block(hidden, segments=segments)
    name, before = transformer.config._attn_implementation, batch.before
    assert name in KERNELS.values(), f"'{name}' does not keep the examples of a row apart"
    attend = ALL_ATTENTION_FUNCTIONS[name]
    all_of_them = len(before) == hidden.shape[0] * hidden.shape[1]  # in pretraining: nothing to select
    final: Tensor = last_block(
        transformer.h[-1], transformer.ln_f, hidden, None if all_of_them else before, segments, attend
    )
    return final


def _gpt2_last_block(
    last: Any, norm: nn.Module, hidden: Tensor, before: Tensor | None, segments: Segments | None, attend: Any
) -> Tensor:
    """The last block and the final norm: hidden (B, T, C) -> (M, C) at flat positions `before` (M,); None: at all."""
    attention = last.attn
    query, key, value = (
        part.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for part in attention.c_attn(last.ln_1(hidden)).split(attention.split_size, dim=2)
    )
    dropout = attention.attn_dropout.p if attention.training else 0.0
    mixed, _ = attend(attention, query, key, value, None, scaling=attention.scaling, dropout=dropout, segments=segments)
    mixed, hidden = mixed.flatten(0, 1).flatten(1), hidden.flatten(0, 1)
    if before is not None:
        mixed, hidden = mixed.index_select(0, before), hidden.index_select(0, before)
    hidden = hidden + attention.resid_dropout(attention.c_proj(mixed))
    final: Tensor = norm(hidden + last.mlp(last.ln_2(hidden)))
    return final


@dataclass(frozen=True)
class _Parts:
    """Functions of a pass that are compiled, or not: of the projection's gradient, of GPT-2's last block."""

    gradient: _GradientOf = _gradient
    last_block: Any = _gpt2_last_block

    @classmethod
    def compiled_by(cls, compiled: CompiledBlocks) -> "_Parts":
        """The same functions, compiled."""
        return cls(compiled.function(_gradient_to_compile), compiled.function(_gpt2_last_block))


@dataclass(frozen=True)
class Head:
    """How final hidden states (M, C) become logits (M, V): times `scale`, times the matrix, plus bias, soft cap.

    new_rows (K, C) stand at new_ids (K,) of the matrix: token rows that LoRA trains, while the matrix is frozen.
    """

    matrix: Tensor
    bias: Tensor | None = None
    new_ids: Tensor | None = None
    new_rows: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (M, V) in float32."""
        found = ((hidden * self.scale) @ self.matrix.T.to(hidden.dtype)).float()
        if self.new_ids is not None and self.new_rows is not None:
            new = (hidden * self.scale) @ self.new_rows.T.to(hidden.dtype)
            found = found.index_copy(1, self.new_ids, new.float())
        if self.bias is not None:
            found = found + self.bias
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)


def head_of(base: Any) -> Head | None:
    """The head of a model; None for one whose logits are not those that its output matrix gives.

    Scales and soft caps have other names in other architectures; whether all was found is tested once for each model,
    on the model's own logits.
    """
    output = base.get_output_embeddings()
    if output is None or not hasattr(base, "base_model") or base.base_model is base:
        return None
    config = text_config(base)
    multiplier = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    rows = token_rows(output)
    plain = output if rows is None else rows.base_layer
    if not isinstance(plain, nn.Linear):
        return None
    new_ids, new_rows = (None, None) if rows is None else (rows.ids, rows.rows)
    head = Head(plain.weight, plain.bias, new_ids, new_rows, multiplier / divisor, softcap)
    if isinstance(base, GPT2LMHeadModel):
        return head
    if base not in _HAS_HEAD:
        _HAS_HEAD[base] = True  # while it is tested
        _HAS_HEAD[base] = _is_head(base, head)
    return head if _HAS_HEAD[base] else None


@torch.no_grad()
def _is_head(base: Any, head: Head) -> bool:
    """Whether a head gives a model's own logits."""
    device, was_training = head.matrix.device, base.training
    base.eval()
    ids = torch.tensor([[(5 * n + 1) % head.matrix.shape[0] for n in range(6)]], device=device)
    try:
        with torch.autocast(device.type, enabled=False):
            own = base(input_ids=ids, use_cache=False).logits[0].float()
            hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = head.logits(hidden)
        return ours.shape == own.shape and bool((ours - own).abs().max() <= 1e-3 * own.abs().max().clamp_min(1.0))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        base.train(was_training)
