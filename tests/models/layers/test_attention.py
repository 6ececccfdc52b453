"""Attention by groups: the gradient written by hand is the numerical one, with dropout too."""

import numpy as np
import pytest
import torch
from torch import Tensor

from multitask.models.layers.attention import _eager, _EagerApart
from multitask.models.layers.segments import Groups, group_by_length

LENGTHS = (5, 1, 9, 2, 5, 4)
EVEN = (4, 4, 4)


def segments(lengths: tuple[int, ...] = LENGTHS) -> Groups:
    found = group_by_length(np.array(lengths))
    assert found.is_even == (lengths == EVEN)
    if found.is_even:
        return found
    assert len(found.gather) > 1, "one group would prove little"
    assert any((row[1:] == row[:-1]).any() for index in found.gather for row in index), "no example is filled up"
    return found


def inputs(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, sum(lengths), 3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("lengths", [LENGTHS, EVEN])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_is_the_numerical_one(dropout: float, lengths: tuple[int, ...]) -> None:
    layout = segments(lengths)

    def attend(*parts: Tensor) -> Tensor:
        torch.manual_seed(2)
        found: Tensor = _EagerApart.apply(*parts, 0.7, dropout, layout)
        return found

    assert torch.autograd.gradcheck(attend, inputs(lengths))


@pytest.mark.parametrize("lengths", [LENGTHS, EVEN])
def test_each_example_attends_as_if_alone(lengths: tuple[int, ...]) -> None:
    parts = inputs(lengths)
    together = _EagerApart.apply(*parts, 0.7, 0.0, segments(lengths))
    start = 0
    for length in lengths:
        mine = [part[None, :, start : start + length] for part in parts]
        torch.testing.assert_close(together[start : start + length].transpose(0, 1), _eager(*mine, 0.7, 0.0)[0])
        start += length


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    layout, (query, key, _) = segments(), inputs()
    ones = torch.ones_like(query)
    torch.manual_seed(3)
    seen = torch.stack([_EagerApart.apply(query, key, ones, 0.7, 0.4, layout).detach() for _ in range(2000)])
    assert seen.std() > 0.1
    torch.testing.assert_close(seen.mean(0), torch.ones_like(seen[0]), atol=0.1, rtol=0)
    first = seen[:, 0]  # of an example's first position: its one weight is kept in 60 % of the draws, or nothing is
    assert (first == 0).double().mean() == pytest.approx(0.4, abs=0.03)
