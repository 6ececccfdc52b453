"""A linear layer with a LoRA update as one operation: PEFT's layer, computed with fewer products and copies.

`x W' + b + s (x A') B'`: PEFT computes both parts apart, casts the input back and forth under autocast, scales and adds
in passes of their own, and each layer keeps its own copy of the input. Here the update is added by the product itself
(`addmm`), layers that read the same input share one half-precision copy of it, and nothing else is kept for the
backward pass but that copy and `x A'` (T, R).
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from multitask.models.casts import SharedCast, in_dtype

_INPUTS = SharedCast()


class _LinearWithUpdate(torch.autograd.Function):
    """x (T, I), frozen weight (O, I) and bias (O,), A (R, I), B (O, R) -> (T, O) in the dtype of the products."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        given, a, b = _INPUTS.cast(x, dtype).flatten(0, -2), down.to(dtype), (up * scaling).to(dtype)
        inner = given @ a.T
        out = nn.functional.linear(given, weight, None if bias is None else bias.to(dtype))
        out.addmm_(inner, b.T)
        ctx.save_for_backward(given, inner, weight, a, b)
        ctx.scaling, ctx.dtypes = scaling, (x.dtype, down.dtype, up.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        given, inner, weight, a, b = ctx.saved_tensors
        shape, grad = grad.shape, grad.flatten(0, -2)
        of_x, of_down, of_up = ctx.dtypes
        of_inner = grad @ b
        found = None
        if ctx.needs_input_grad[0]:
            found = (grad @ weight).addmm_(of_inner, a).to(of_x).view(*shape[:-1], -1)
        grad_down = (of_inner.T @ given).to(of_down)
        grad_up = (grad.T @ inner).to(of_up).mul_(ctx.scaling)
        return found, None, None, grad_down, grad_up, None, None


class UpdatedLinear(Linear):
    """PEFT's layer with the fast forward wherever it is exact: one update, neither merged nor dropped out."""

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        """(..., I) -> (..., O)."""
        base = self.base_layer
        names = [name for name in self.active_adapters if name in self.lora_A]
        is_plain = (
            len(names) == 1
            and not args
            and not named
            and not self.disable_adapters
            and not self.merged
            and names[0] not in self.lora_variant
            and isinstance(base, nn.Linear | Conv1D)
            and not base.weight.requires_grad
        )
        if not is_plain or (self.training and not isinstance(self.lora_dropout[names[0]], nn.Identity)):
            found: Tensor = super().forward(x, *args, **named)
            return found
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
        weight = in_dtype(base.weight, dtype)
        down, up = self.lora_A[names[0]], self.lora_B[names[0]]
        if up.bias is not None:
            found = super().forward(x)
            return found
        weight = weight.T if isinstance(base, Conv1D) else weight
        with torch.autocast(kind, enabled=False):
            found = _LinearWithUpdate.apply(  # type: ignore[no-untyped-call]
                x, weight, base.bias, down.weight, up.weight, self.scaling[names[0]], dtype
            )
        return found


def use_fast_forward(model: Any) -> Any:
    """Lets the linear layers of a PEFT model compute as `UpdatedLinear`; returns the model."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = UpdatedLinear
    return model
