"""What an architecture of transformers can do through our own paths, found by comparing it with its own forward.

`layout_of(model, 256)` -> "packed" for GPT-2, Llama, Gemma ...: examples may share a row. "none" for BLOOM or Mamba:
every example gets a row of its own, padded at its end, and the model's own attention (or recurrence) runs.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from multitask.batching.collate import collate
from multitask.models.layers.attention import KERNELS, name_for, using
from multitask.models.lora import plain_model, text_config
from multitask.models.loss import TokenNLL

Layout = Literal["packed", "none"]
_LAYOUTS: "weakref.WeakKeyDictionary[nn.Module, dict[bool, Layout]]" = weakref.WeakKeyDictionary()
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of the nats of a token, by the dtype of the weights."""


def layout_of(model: Any, longest: int) -> Layout:
    """How the examples of a batch are laid out: "packed" where a model supports it, else "none".

    longest: the most tokens of an example. A sliding window that is shorter is part of the comparison; it is made once
    for each model. The answer depends on the architecture: LoRA and training do not change it.
    """
    base = plain_model(model)
    if isinstance(base, GPT2LMHeadModel):
        return "packed"
    window = sliding_window(base)
    key = window is not None and longest > window
    found = _LAYOUTS.setdefault(base, {})
    if key not in found:
        found[key] = _compare(model, 12 if window is None or not key else window + 9)
    return found[key]


def sliding_window(model: Any) -> int | None:
    """The shortest sliding window of a model's layers; None: all layers attend to all earlier tokens."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not any("full" not in kind for kind in kinds):
        return None
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min((w for w in windows if isinstance(w, int) and w > 0), default=None)


def prepare_attention(model: Any, block_size: int, packing: Layout) -> Layout:
    """Sets the attention that training uses; returns the layout of batches, `packing` if the model supports it.

    Examples in rows of their own need no support from us, but are faster with our attention where it is exact.
    """
    base = plain_model(model)
    supported = layout_of(model, block_size)
    device = next(model.parameters()).device
    base.config._attn_implementation = name_for(device) if supported == "packed" else own_attention(base)
    return packing if supported == "packed" else "none"


def training_tokens(model: Any, device: torch.device, batch_tokens: int, checkpoints: bool = False) -> int:
    """Tokens of one pass with gradients, where the settings do not say: 4,096, on a GPU what its free memory holds.

    A power of two from 1,024 to 65,536, and not more than a step has. A token takes at most 100 bytes for each unit of
    width of each layer (GPT-2 92 and Llama with LoRA 55 on an H200, in bf16), 30 with gradient checkpointing; weights,
    gradients and moments 16 a parameter; a third of the memory is left free.
    """
    config = text_config(model)
    num_units = getattr(config, "hidden_size", 0) * getattr(config, "num_hidden_layers", 0)
    if device.type != "cuda" or not num_units:
        return 4096
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    num_bytes = 4 * sum(p.numel() for p in model.parameters()) + 12 * num_trained
    free, _ = torch.cuda.mem_get_info(device)
    each = num_units * (30 if checkpoints else 100)
    fitting = (2 * int(free) // 3 - num_bytes) // each
    wanted = min(fitting, batch_tokens)
    return next((size for size in (1 << n for n in range(16, 9, -1)) if size <= wanted), 1024)


def scoring_tokens(model: Any) -> int:
    """Tokens of one forward pass without gradients, where the settings do not say: 8,192, on a large GPU more.

    There as many as 512 for each GiB of the card, while their keys and values fill at most a quarter of what is free.
    """
    parameter, config = next(model.parameters()), text_config(model)
    if parameter.device.type != "cuda":
        return 8192
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        return 8192
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    each = int(2 * config.num_hidden_layers * heads * width * parameter.element_size())
    free, total = torch.cuda.mem_get_info(parameter.device)
    return max(8192, min(int(total) // 2**30 * 512, int(free) // 4 // each))


@contextmanager
def attending(model: Any, layout: Layout) -> Iterator[None]:
    """A model with the attention that a layout needs, for a while: ours where examples share rows, else its own."""
    base = plain_model(model)
    name = name_for(next(model.parameters()).device) if layout == "packed" else own_attention(base)
    with using(base, name):
        yield


def own_attention(base: Any) -> str:
    """The attention that transformers would choose for a model; written out where scores have a soft cap.

    Before transformers 5.20 Gemma 2 chose the fused kernel, which has no soft cap.
    """
    if getattr(text_config(base), "attn_logit_softcapping", None) is not None:
        return "eager"
    current = base.config._attn_implementation
    if current is not None and current not in KERNELS.values():
        return str(current)
    return "sdpa" if base._supports_sdpa else "eager"


@torch.no_grad()
def _compare(model: Any, length: int) -> Layout:
    """Whether nats of packed examples, one of `length` tokens, are those of the model's own forward.

    Raises nothing: what a model cannot do through our path it does through its own.
    """
    base = plain_model(model)
    size = base.get_input_embeddings().weight.shape[0]
    examples = [([(7 * n + 3 * k) % size for n in range(length - 4 * k)], 1) for k in range(2)]
    was_training = model.training
    model.eval()
    try:
        scorer = TokenNLL(model)
        device = next(model.parameters()).device
        with attending(model, "packed"):
            ours = scorer(collate(examples).to(device))[1].cpu()
        own = [own_nll(base, ids) for ids, _ in examples]
        mixed = own_nll(base, [*examples[0][0], *examples[1][0]])[-len(own[1]) :]
        return "packed" if is_close(base, ours, torch.cat(own), float((mixed - own[1]).abs().max())) else "none"
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError, AssertionError):
        return "none"
    finally:
        model.train(was_training)


def is_close(base: Any, ours: Tensor, own: Tensor, effect: float) -> bool:
    """Whether our nats are the model's own, far closer than the effect of what must not be mixed up."""
    most = _TOLERANCE.get(next(base.parameters()).dtype, 2e-3)
    return bool((ours - own).abs().max() <= min(most, max(effect / 20, 2e-5)))


@torch.no_grad()
def own_nll(base: Any, ids: list[int]) -> Tensor:
    """Nats (T - 1,) float32 of the ids after the first, by transformers' own forward and attention."""
    device = next(base.parameters()).device
    with using(base, own_attention(base)):
        logits = base(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, :-1].float()
    gold = torch.tensor(ids[1:], device=device)
    return nn.functional.cross_entropy(logits, gold, reduction="none").cpu()
