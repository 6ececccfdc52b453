"""Compiled blocks compute what the blocks compute, in few graphs whatever the lengths; the operator is a stand-in."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig, AutoModelForCausalLM

from multitask.batching.collate import collate
from multitask.config.model import AdapterConfig
from multitask.errors import InputError
from multitask.models.layers import attention
from multitask.models.layers.attention import KERNELS
from multitask.models.layers.compiled import CompiledBlocks, blocks_of, compiled_blocks
from multitask.models.lora import add_lora, plain_model
from multitask.models.loss import TokenNLL, _gradient, _gradient_to_compile

_OPERATORS = ("torch_attn::_varlen_attn", "torch_attn::_varlen_attn_backward")
WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 4, "n_head": 2, "n_embd": 32, "n_positions": 64, "attn_pdrop": 0, "resid_pdrop": 0},
    "llama": {**WIDE, "num_hidden_layers": 3},
    "gemma3_text": {**WIDE, "num_hidden_layers": 6, "head_dim": 8, "sliding_window": 9},
}


def _weights(query: Tensor, key: Tensor, scale: float, window: Sequence[int]) -> Tensor:
    behind = torch.arange(len(query))[:, None] - torch.arange(len(query))
    seen = (behind >= 0) & ((behind <= window[0]) if window[0] >= 0 else True)
    scores = torch.einsum("ihd,jhd->hij", query.float(), key.float()) * scale
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def _forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(T, H, D) each; rest: as the operator has it, scale and window among it."""
    _, _, _, _, scale, window, *_ = rest
    outs = [
        torch.einsum("hij,jhd->ihd", _weights(q[a:b], k[a:b], scale, window), v[a:b].float())
        for a, b in itertools.pairwise(bounds.tolist())
    ]
    return torch.cat(outs).to(q.dtype), torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, _, bounds, _, _, _, _, _, scale, window, *_ = rest
    grads: tuple[list[Tensor], ...] = ([], [], [])
    for a, b in itertools.pairwise(bounds.tolist()):
        weights, given = _weights(q[a:b], k[a:b], scale, window), grad[a:b].float()
        by_weight = torch.einsum("ihd,jhd->hij", given, v[a:b].float())
        by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True)) * scale
        grads[0].append(torch.einsum("hij,jhd->ihd", by_score, k[a:b].float()))
        grads[1].append(torch.einsum("hij,ihd->jhd", by_score, q[a:b].float()))
        grads[2].append(torch.einsum("hij,ihd->jhd", weights, given))
    return tuple(torch.cat(part).to(q.dtype) for part in grads)


@pytest.fixture(scope="module", autouse=True)
def _operators_on_a_cpu() -> None:
    pytest.importorskip("torch.nn.attention.varlen")
    for name, function in zip(_OPERATORS, (_forward, _backward), strict=True):
        torch.library.register_kernel(name, "cpu", function)


@pytest.fixture(autouse=True)
def _varlen_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attention, "has_varlen", lambda _, dropout, rule: not dropout and rule.softcap is None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(kind: str, is_lora: bool, checkpoints: bool = False) -> Any:
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    given = {**SHAPES[kind], "embd_pdrop": 0} if kind == "gpt2" else SHAPES[kind]
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=97, **ids, **given))
    base = model
    if is_lora:
        model = add_lora(model, AdapterConfig(kind="lora", rank=4), [5, 9])
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    base.config._attn_implementation = KERNELS["sdpa"]
    if checkpoints:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    return model.train()


def batches(num: int) -> list[Any]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num):
        lengths = rng.integers(5, 40, int(rng.integers(1, 9)))
        found.append(collate([(rng.integers(0, 97, n).tolist(), int(rng.integers(2, n - 1))) for n in lengths]))
    return found


def learned(forward: TokenNLL, given: list[Any]) -> tuple[list[float], dict[str, Tensor]]:
    losses = []
    for batch in given:
        loss, _ = forward(batch, 0.01)
        loss.backward()
        losses.append(float(loss.detach()))
    found = {name: p.grad.clone() for name, p in forward.model.named_parameters() if p.grad is not None}
    forward.model.zero_grad()
    return losses, found


@pytest.mark.parametrize(
    ("kind", "is_lora", "checkpoints", "num"),
    [
        ("gpt2", False, False, 8),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in [
            ("llama", True, False, 8),
            ("gpt2", False, False, 50),
            ("gpt2", True, False, 50),
            ("gpt2", True, True, 8),
            ("llama", False, False, 50),
            ("llama", True, True, 8),
            ("gemma3_text", False, False, 50),
            ("gemma3_text", True, False, 8),
            ("gemma3_text", True, True, 8),
        ]),
    ],
)  # fmt: skip
def test_mixed_batches_take_few_graphs_and_give_the_same(kind: str, is_lora: bool, checkpoints: bool, num: int) -> None:
    model, given = made(kind, is_lora, checkpoints), batches(num)
    wanted, slopes = learned(TokenNLL(model), given)
    counter = CompileCounterWithBackend("aot_eager")
    forward = TokenNLL(model, CompiledBlocks(model, counter))
    found, ours = learned(forward, given)
    of_blocks = 2 if kind == "gemma3_text" else 1  # of layers with and without a sliding window
    assert 0 < counter.frame_count <= of_blocks + 1 + (kind == "gpt2"), "and the projection's, and GPT-2's last block"
    assert found == pytest.approx(wanted, rel=1e-5)
    assert ours.keys() == slopes.keys()
    flat = [torch.cat([part.flatten().double() for _, part in sorted(s.items())]) for s in (ours, slopes)]
    assert float(torch.nn.functional.cosine_similarity(*flat, dim=0)) > 0.999999
    before = counter.frame_count
    with torch.no_grad():
        forward(given[0])
    assert counter.frame_count == before, "without gradients nothing is compiled"
    assert all(block._compiled_call_impl is None for block in blocks_of(plain_model(model)))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_gradient_to_compile_is_the_one_in_place(softcap: float | None, has_bias: bool) -> None:
    torch.manual_seed(0)
    logits, gold = 3 * torch.randn(7, 30), torch.randint(30, (7, 1))
    bias, weights = torch.randn(30) if has_bias else None, torch.rand(7, 1)
    wanted, gradient = _gradient(logits.clone(), 30, bias, gold, weights, softcap, True)
    assert gradient is not None
    padded = torch.nn.functional.pad(logits, (0, 2), value=9.0)  # whatever the columns of the padding hold
    for given, function in ((logits, _gradient_to_compile), (padded, _gradient_to_compile), (padded, _gradient)):
        nll, slope = function(given.clone(), 30, bias, gold, weights, softcap, True)
        torch.testing.assert_close(nll, wanted)
        assert slope is not None
        assert slope.shape == given.shape
        torch.testing.assert_close(slope[:, :30], gradient)
        assert not slope[:, 30:].any()
    assert _gradient_to_compile(logits, 30, bias, gold, weights, softcap, False)[1] is None


def test_where_nothing_can_be_compiled() -> None:
    model, here = made("gpt2", False), torch.device("cpu")
    assert compiled_blocks(model, "auto", here, "bf16", "packed", 10**6) is None
    assert compiled_blocks(model, "off", here, "bf16", "packed", 10**6) is None
    with pytest.raises(
        InputError, match=r"train\.compile: the device is cpu, not a GPU; set train\.compile=auto or off"
    ):
        compiled_blocks(model, "on", here, "bf16", "packed", 10**6)
    with pytest.raises(InputError, match="examples do not share rows"):
        compiled_blocks(model, "on", here, "bf16", "none", 10**6)
