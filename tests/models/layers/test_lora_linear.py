"""The linear layer with its update in one operation: PEFT's own results and gradients, and PEFT itself elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from multitask.models.layers import lora_linear
from multitask.models.layers.lora_linear import FusedLoraLinear, use_fused_lora


class Net(nn.Module):
    """Two layers that read the same input, as projections of attention do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        made: Any = (lambda i, o: Conv1D(o, i)) if kind == "conv1d" else nn.Linear
        self.left, self.right, self.last = made(12, 20), made(12, 20), made(20, 7)
        if kind == "no bias":
            self.left.bias = self.right.bias = self.last.bias = None

    def forward(self, x: Tensor) -> Tensor:
        shared = x.float() * 1.5
        found: Tensor = self.last(torch.tanh(self.left(shared)) * self.right(shared))
        return found


KINDS = ("linear", "no bias", "conv1d")


def adapted(kind: str, is_fast: bool, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["left", "right", "last"], fan_in_fan_out=kind == "conv1d", **options
    )
    model = get_peft_model(Net(kind), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return use_fused_lora(model) if is_fast else model


def learned(model: Any, dtype: torch.dtype | None = None, seed: int = 1) -> list[Tensor]:
    """Output, gradient of the input, and gradients of the updates."""
    torch.manual_seed(seed)
    x = torch.randn(2, 5, 12, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        out = model(x)
    (out.float() ** 2).sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_peft_computes(kind: str) -> None:
    wanted, found = learned(adapted(kind, False)), learned(adapted(kind, True))
    assert len(found) == len(wanted) == 8
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_as_near_to_float32_as_peft(kind: str, dtype: torch.dtype) -> None:
    errors = np.zeros((2, 8))
    for seed in range(20):
        exact = learned(adapted(kind, False, seed), seed=seed)
        for is_fast in (False, True):
            found = learned(adapted(kind, is_fast, seed), dtype, seed)
            errors[int(is_fast)] += [
                float((one.float() - right).abs().max() / right.abs().max())
                for one, right in zip(found, exact, strict=True)
            ]
    assert (errors[1] < 1.2 * errors[0]).all()
    assert errors[1].mean() < 1.02 * errors[0].mean()


def test_layers_that_read_one_input_share_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    cast = lora_linear._INPUTS.cast

    def watched(given: Tensor, dtype: torch.dtype) -> Tensor:
        copy = cast(given, dtype)
        seen.append((id(given), copy.data_ptr()))
        return copy

    monkeypatch.setattr(lora_linear._INPUTS, "cast", watched)
    with torch.autocast("cpu", torch.bfloat16):
        adapted("linear", True)(torch.randn(2, 5, 12))
    assert len(seen) == 3
    assert seen[0] == seen[1]
    assert seen[2][1] != seen[0][1]


def test_a_changed_input_is_cast_again() -> None:
    model, x = adapted("linear", True), torch.randn(2, 5, 12)
    layer = model.base_model.model.left
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = layer(x)
        x += 1
        assert not torch.equal(layer(x), before)


def test_what_is_saved_for_the_backward_pass() -> None:
    """The input that two layers read is kept once, (640, 12) in bf16."""

    def saved(model: Any) -> int:
        sizes: dict[int, int] = {}

        def pack(part: Tensor) -> Tensor:
            if part.shape[0] == 640 or part.shape[:2] == (64, 10):
                sizes[part.data_ptr()] = part.numel() * part.element_size()
            return part

        torch.manual_seed(1)
        x = torch.randn(64, 10, 12, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda part: part), torch.autocast("cpu", torch.bfloat16):
            model(x).float().sum()
        return sum(sizes.values())

    assert saved(adapted("linear", False)) - saved(adapted("linear", True)) == 640 * 12 * 2


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}, {"bias": "lora_only"}]
)
def test_other_kinds_are_pefts_own(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_linear, "_FusedLora", None)
    results = [learned(adapted("linear", is_fast, **options)) for is_fast in (False, True)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_disabled_and_merged_updates() -> None:
    model, x = adapted("linear", True), torch.randn(3, 12)
    assert sum(type(module) is FusedLoraLinear for module in model.modules()) == 3
    assert not any(type(module) is Linear for module in model.modules())
    model.eval()
    with_update = model(x)
    with model.disable_adapter():
        without = model(x)
    assert not torch.allclose(with_update, without)
    model.merge_adapter()
    torch.testing.assert_close(model(x), with_update, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), with_update, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(x), with_update, rtol=1e-5, atol=1e-5)


def test_a_second_update_on_merged_weights_reads_them_anew() -> None:
    """PEFT merges past the version of a matrix, so that a kept copy would still hold the old one."""
    model, x = adapted("linear", True), torch.randn(3, 5, 12)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(x)
        plain = model.merge_and_unload()
        wanted = plain(x)
        config = LoraConfig(r=2, target_modules=["left", "right", "last"])
        torch.testing.assert_close(use_fused_lora(get_peft_model(plain, config))(x), wanted)


def test_inputs_of_other_shapes_and_modes() -> None:
    for is_fast in (False, True):
        layer = adapted("linear", is_fast).base_model.model.left.eval()
        assert layer(torch.randn(0, 12)).shape == (0, 20)
        assert layer(torch.randn(12)).shape == (20,)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(2, 12)).shape == (2, 20)


def test_a_hooked_layer_is_called_as_a_module() -> None:
    model = adapted("linear", True)
    calls: list[int] = []
    model.base_model.model.left.base_layer.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(3, 12))
    assert calls == [1]
