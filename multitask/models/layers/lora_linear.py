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

from multitask.models.layers.casts import SharedCast, drop_casts, in_dtype

_INPUTS = SharedCast()


class _FusedLora(torch.autograd.Function):
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


class FusedLoraLinear(Linear):
    """PEFT's layer with the fast forward wherever it computes the same."""

    def merge(self, *args: Any, **named: Any) -> None:
        """As PEFT's, which changes the matrix in place."""
        drop_casts()
        super().merge(*args, **named)

    def unmerge(self) -> None:
        """As PEFT's."""
        drop_casts()
        super().unmerge()

    def _is_plain(self, x: Tensor) -> bool:
        """Whether the fast forward computes all that PEFT's would: one update, a frozen layer, nothing hooked in."""
        base, names = self.base_layer, [name for name in self.active_adapters if name in self.lora_A]
        if type(base) not in (nn.Linear, Conv1D) or len(names) != 1 or self.disable_adapters or self.merged:
            return False
        down, up = self.lora_A[names[0]], self.lora_B[names[0]]
        return (
            x.ndim >= 2
            and x.numel() > 0
            and not x.is_inference()
            and names[0] not in self.lora_variant
            and up.bias is None
            and not base.weight.requires_grad
            and not (base.bias is not None and base.bias.requires_grad)
            and not (base._forward_hooks or base._forward_pre_hooks)
            and not (self.training and not isinstance(self.lora_dropout[names[0]], nn.Identity))
            and (torch.is_autocast_enabled(x.device.type) or down.weight.dtype == base.weight.dtype)
        )

    @property
    def _has_more(self) -> bool:
        """Whether the layer computes something else than its matrix and plain updates."""
        return bool(
            self.disable_adapters
            or self.merged
            or self.lora_variant
            or any(self.lora_B[name].bias is not None for name in self.active_adapters if name in self.lora_B)
        )

    def _traced(self, x: Tensor) -> Tensor:
        """The same for a compiler, which fuses by itself: no copy in float32, the update added by the product."""
        out: Tensor = self.base_layer(x)
        shape = out.shape
        out = out.flatten(0, -2)
        for name in self.active_adapters:
            if name in self.lora_A:
                inner = nn.functional.linear(self.lora_dropout[name](x), self.lora_A[name].weight).flatten(0, -2)
                out = torch.addmm(out, inner, self.lora_B[name].weight.T * self.scaling[name])
        return out.view(shape)

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        """(..., I) -> (..., O)."""
        if torch.compiler.is_compiling() and not (args or named or self._has_more):
            return self._traced(x)
        if args or named or not self._is_plain(x):
            found: Tensor = super().forward(x, *args, **named)
            return found
        base, kind = self.base_layer, x.device.type
        (name,) = (name for name in self.active_adapters if name in self.lora_A)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
        weight = in_dtype(base.weight, dtype)
        weight = weight.T if isinstance(base, Conv1D) else weight
        with torch.autocast(kind, enabled=False):
            found = _FusedLora.apply(  # type: ignore[no-untyped-call]
                x, weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name], dtype
            )
        return found


def use_fused_lora(model: Any) -> Any:
    """Lets the linear layers of a PEFT model compute as `FusedLoraLinear`; returns the model."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedLoraLinear
    return model
