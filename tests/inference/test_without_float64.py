"""A device without float64, as MPS: a tensor class that raises for it, and becomes a plain tensor on the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tokenizer_of
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from multitask.inference.decoding import beam_search, generate
from multitask.inference.perplexity import perplexity_of_text
from multitask.inference.scoring import choice_nll, example_nll

Make = Callable[..., GPT2LMHeadModel]


class OnDevice(Tensor):
    """A tensor that is on the device."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu:
            return found.as_subclass(Tensor)
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, OnDevice) and each.dtype is torch.float64:
                raise TypeError("the device has no float64")
        return found


@pytest.fixture
def models(tiny_model: Make) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """One on the CPU, and the same on the device."""
    num = len(tokenizer_of("byte-level"))
    there = tiny_model(vocab_size=num).eval()
    for module in list(there.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().as_subclass(OnDevice), requires_grad=False))
    there.lm_head.weight = there.transformer.wte.weight
    return tiny_model(vocab_size=num).eval(), there


def test_the_stub_raises_for_float64(models: tuple[GPT2LMHeadModel, GPT2LMHeadModel]) -> None:
    logits = models[1](input_ids=torch.tensor([[1, 2]])).logits
    assert isinstance(logits, OnDevice)
    with pytest.raises(TypeError, match="no float64"):
        logits.double()
    assert logits.cpu().double().dtype is torch.float64


@pytest.mark.parametrize("is_shared", [True, False])
def test_scores_and_texts_are_those_of_the_cpu(
    models: tuple[GPT2LMHeadModel, GPT2LMHeadModel], is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one KV cache for all rows, and by transformers' own `forward` and `generate`."""
    for module in ("scoring", "decoding"):
        monkeypatch.setattr(f"multitask.inference.{module}.supports_shared_prefix", lambda model, longest: is_shared)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]]
    found, perplexities = [], []
    for model in models:
        nats, _ = example_nll(model, [([*prompt, 11, 12], len(prompt)) for prompt in prompts], 500)
        choices = choice_nll(model, [(prompt, [[20], [21, 22]]) for prompt in prompts], 500)
        greedy = generate(model, prompts, 5, {96}, 500)
        sampled = generate(model, prompts, 5, {96}, 500, uniform=lambda row, step: (row + step) % 7 / 7)
        beams = beam_search(model, prompts[0], 4, {96}, 3, 2, 1.0)
        text = perplexity_of_text(model, tokenizer_of("byte-level"), "the cat sat on a mat", 8, 4, 500)
        found.append((nats, np.array(choices), greedy, sampled, beams))
        perplexities.append(text.perplexity)
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5)
    assert found[1][2:] == found[0][2:]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-5)
