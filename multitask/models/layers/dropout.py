"""Dropout (Srivastava et al., 2014) that does not wait for its random numbers.

Torch draws a random number for each element; 16 bits decide as well, so that a number of 64 serves four. The attention
of 4,096 tokens in blocks of 256 with 6 heads has 6.3 million weights: 6 ms in place of 30 on two CPU cores.
"""

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


def kept(values: Tensor, p: float) -> tuple[Tensor, float]:
    """1 where an element of `values` is kept, else 0, in its shape and dtype; and the factor that keeps the mean.

    `p` is rounded to a multiple of 2**-16, and the factor is that of the rounded one. Uses torch's generator. To
    multiply by numbers is several times faster on a CPU than to fill where a mask says so.
    """
    level = min(round(p * _LEVELS), _LEVELS - 1)
    size = values.numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    keep = torch.empty_like(values, memory_format=torch.contiguous_format, requires_grad=False)
    torch.ge(bits.view(torch.int16)[:size].view(values.shape), level - _LEVELS // 2, out=keep)
    return keep, _LEVELS / (_LEVELS - level)


def drop(values: Tensor, p: float) -> Tensor:
    """A tensor with a share `p` of its elements dropped and the others made larger."""
    keep, factor = kept(values, p)
    return (values * keep).mul_(factor)


class Dropout(nn.Dropout):
    """`nn.Dropout`, faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        is_ours = self.training and self.p and input.device.type == "cpu"
        return drop(input, self.p) if is_ours else super().forward(input)


def use_fast_dropout(model: nn.Module) -> bool:
    """Puts `Dropout` in the place of `nn.Dropout`; returns whether anything is dropped at all."""
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Dropout) and part.p > 0]
    for name, part in found:
        model.set_submodule(name, Dropout(part.p).train(part.training))
    return bool(found)
