"""Decoder blocks compiled for training on a GPU: what stands between matrix products becomes one kernel.

With variable-length attention the code of a block depends on no length, so that one graph serves all blocks of a kind
and every batch. GPT-2 and 50 batches of different lengths take three: of the blocks, of the last block (at targets
alone), of the projection's gradient. Only the passes of training are compiled; scoring and generation run as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from multitask.errors import InputError
from multitask.models.layers.attention import Rule, has_varlen
from multitask.models.lora import plain_model, text_config

FEWEST_PASSES = 1000
"""Of a run that is worth compiling for: it takes 10 to 20 s on an H200, and saves some tens of milliseconds a pass."""


def compiled_blocks(
    model: Any, wanted: Literal["auto", "on", "off"], device: torch.device, precision: str, layout: str, num_passes: int
) -> "CompiledBlocks | None":
    """The blocks of a model to train, compiled; None: they are not to be, or in `auto` cannot be or are not worth it.

    num_passes: how often they will be called. Raises InputError for `on` where it cannot be done.
    """
    if wanted == "off" or (wanted == "auto" and num_passes < FEWEST_PASSES):
        return None
    reason = reason_against(model, device, precision, layout)
    if reason is not None and wanted == "on":
        raise InputError(f"train.compile: {reason}; set train.compile=auto or off")
    return CompiledBlocks(model) if reason is None else None


def reason_against(model: Any, device: torch.device, precision: str, layout: str) -> str | None:
    """Why a model's training cannot be compiled; None: it can."""
    if layout != "packed":
        return "examples do not share rows"
    if device.type != "cuda":
        return f"the device is {device.type}, not a GPU"
    base = plain_model(model)
    config = text_config(base)
    if not blocks_of(base):
        return f"no list of decoder blocks was found in {type(base).__name__}"
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in base.modules()):
        return "the model has dropout"
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    rule = Rule(softcap=getattr(config, "attn_logit_softcapping", None))
    if not has_varlen(torch.empty(1, width, dtype=dtype, device=device), 0.0, rule):
        return f"there is no variable-length attention for {precision} on this GPU"
    try:
        torch.compile(_double, dynamic=True)(torch.ones(8, device=device))
    except Exception as error:  # no C compiler, no Triton for this card: many kinds
        return f"torch.compile does not work here ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None


def _double(values: torch.Tensor) -> torch.Tensor:
    return values * 2


def blocks_of(base: Any) -> list[nn.Module]:
    """The decoder blocks of a transformers model, in order; [] when there is no list of so many."""
    num = getattr(text_config(base), "num_hidden_layers", None)
    lists = [part for part in base.modules() if isinstance(part, nn.ModuleList) and len(part) == num]
    return list(lists[0]) if lists else []


class CompiledBlocks:
    """The blocks of a model, compiled when they are first called inside `active`."""

    def __init__(self, model: Any, backend: str | Callable[..., Any] = "inductor") -> None:
        self.options: dict[str, Any] = {"dynamic": True, "backend": backend}
        self._calls = [(one, self.function(one._call_impl)) for one in blocks_of(plain_model(model))]

    def function(self, given: Callable[..., Any]) -> Any:
        """A function, compiled in the same way."""
        return torch.compile(given, **self.options)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Blocks that are called meanwhile run compiled."""
        torch._dynamo.config.specialize_float = True  # else each graph is made twice: a scale might be no constant
        for block, call in self._calls:
            block._compiled_call_impl = call
        try:
            yield
        finally:
            for block, _ in self._calls:
                block._compiled_call_impl = None
