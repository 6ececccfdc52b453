"""Dropout by 16 random bits: the share, the mean, the gradient, and nothing else than `nn.Dropout` would do."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from multitask.models.layers.dropout import Dropout, drop, kept, use_fast_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    keep, factor = kept(torch.ones(1001, 301, dtype=dtype), p)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    rounded = round(p * 2**16) / 2**16
    assert factor == 1 / (1 - rounded)
    assert (keep == 0).double().mean() == pytest.approx(rounded, abs=4 * (p * (1 - p) / keep.numel()) ** 0.5)


def test_neighbours_are_independent() -> None:
    """Four elements share a random number of 64 bits, a quarter each."""
    torch.manual_seed(0)
    dropped = 1 - kept(torch.empty(400_000), 0.3)[0].view(-1, 4).double()
    shares = torch.corrcoef(dropped.T) - torch.eye(4)
    assert shares.abs().max() < 4 / 100_000**0.5


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_the_ends_are_finite(p: float) -> None:
    found = drop(torch.ones(1000), p)
    assert found.isfinite().all()
    assert (found == 1).all() if p < 0.5 else (found == 0).double().mean() > 0.99


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert drop(torch.ones(shape), 0.5).shape == shape


def test_what_passes_in_the_forward_passes_in_the_backward() -> None:
    values = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    found = drop(values, 0.4)
    found.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), found.detach())
    assert 0 < (values.grad == 0).sum() < values.numel()


def test_a_seed_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return drop(torch.ones(1000), 0.5)

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))


def test_nothing_falls_outside_training() -> None:
    values = torch.randn(100)
    assert Dropout(0.5).eval()(values).equal(values)
    assert not Dropout(0.5)(values).equal(values)
    assert Dropout(0.0)(values).equal(values)


class Part(nn.Module):
    """Two layers with dropout, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Dropout(0.0))
        self.last = nn.Dropout(0.3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.layers(values))
        return found


def test_the_modules_of_a_model_are_replaced() -> None:
    model = Part()
    names = set(model.state_dict())
    assert use_fast_dropout(model)
    assert [type(part) for part in (model.layers[1], model.layers[2], model.last)] == [Dropout, nn.Dropout, Dropout]
    assert (model.layers[1].p, model.last.p) == (0.1, 0.3)
    assert set(model.state_dict()) == names
    assert use_fast_dropout(model), "still something to drop"
    assert not use_fast_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))


def test_those_of_an_adapter_too() -> None:
    model = get_peft_model(Part(), LoraConfig(target_modules=["0"], lora_dropout=0.2))  # type: ignore[arg-type]
    assert use_fast_dropout(model)
    assert {part.p for part in model.modules() if isinstance(part, Dropout)} == {0.1, 0.2, 0.3}
    assert all(type(part) is Dropout for part in model.modules() if isinstance(part, nn.Dropout) and part.p)
