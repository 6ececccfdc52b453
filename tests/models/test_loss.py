"""Loss and attention: packed = padded = each example alone in transformers' own words, and nothing leaks."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from multitask.batching.collate import Batch, collate
from multitask.models import loss as loss_module
from multitask.models.layers.attention import KERNELS, name_for
from multitask.models.loss import Head, TokenNLL, projected_nll

Make = Callable[..., GPT2LMHeadModel]
LAYOUTS = ("packed", "none")
PATHS = (*KERNELS, "varlen")


@pytest.fixture(params=PATHS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of an attention; `varlen`: that of GPUs in half precision."""
    if request.param != "varlen":
        yield KERNELS[request.param]
        return
    calls = request.getfixturevalue("varlen")
    yield KERNELS["sdpa"]
    assert calls or "none" in request.node.name


def examples(seed: int = 0, lengths: tuple[int, ...] = (5, 31, 2, 17, 5, 64, 6, 16)) -> list[tuple[list[int], int]]:
    rng = random.Random(seed)
    return [([rng.randrange(97) for _ in range(n)], rng.randrange(1, n)) for n in lengths]


def alone(model: GPT2LMHeadModel, ids: list[int], num_prompt: int, prompt_weight: float) -> tuple[Tensor, Tensor]:
    """One example in transformers' own attention and full logits: (weighted nats, nats of the target)."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    nll = nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    weights = torch.tensor([1.0 if at >= num_prompt else prompt_weight for at in range(1, len(ids))])
    return (nll * weights).sum(), nll[num_prompt - 1 :].detach().sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name; the model's own are cleared."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Differences against the largest entry of each tensor: float32 sums in another order."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        error = (found[name] - gradient).abs().max() / gradient.abs().max()
        assert error < tolerance, f"{name}: {float(error)}"


@pytest.mark.parametrize("prompt_weight", [0.0, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_is_padded_is_apart(tiny_model: Make, kernel: str, layout: Any, prompt_weight: float) -> None:
    rows = examples()
    reference = tiny_model("eager")
    each = [alone(reference, ids, num_prompt, prompt_weight) for ids, num_prompt in rows]
    expected = torch.stack([weighted for weighted, _ in each]).sum()
    expected.backward()
    model = tiny_model(kernel)
    batch = collate(rows, layout, prompt_weight)
    found, nll = TokenNLL(model)(batch)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    by_example = torch.zeros(len(rows)).index_add_(0, batch.owners[batch.is_target], nll[batch.is_target])
    torch.testing.assert_close(by_example, torch.stack([target for _, target in each]), rtol=1e-5, atol=1e-5)
    assert_close(gradients(model), gradients(reference))


def test_one_example_alone_is_transformers_own_loss(tiny_model: Make) -> None:
    ((ids, num_prompt),) = examples(lengths=(40,))
    labels = torch.tensor([[-100] * num_prompt + ids[num_prompt:]])
    own = tiny_model("sdpa")(torch.tensor([ids]), labels=labels).loss
    batch = collate([(ids, num_prompt)])
    total, _ = TokenNLL(tiny_model(KERNELS["sdpa"]))(batch)
    torch.testing.assert_close(total / batch.weights.sum(), own, rtol=1e-5, atol=0)
    assert int(batch.weights.sum()) == len(ids) - num_prompt


def test_naive_packing_is_really_different(tiny_model: Make) -> None:
    """Were this small, the tests around it could not fail."""
    model = tiny_model(KERNELS["sdpa"])
    batch = collate(examples())
    right, _ = TokenNLL(model)(batch)
    leaking, _ = TokenNLL(model)(replace(batch, segment_lengths=None))
    assert abs(leaking - right) / right > 0.01
    running = replace(batch, position_ids=torch.arange(batch.num_tokens)[None] % 64)
    assert abs(TokenNLL(model)(running)[0] - right) / right > 0.01


def test_changing_one_example_leaves_the_others_alone(tiny_model: Make, kernel: str) -> None:
    model = tiny_model(kernel)
    rows = examples()
    for changed in range(len(rows)):
        others = [*rows]
        others[changed] = ([(i + 1) % 97 for i in rows[changed][0]], rows[changed][1])
        before, after = collate(rows, prompt_weight=1.0), collate(others, prompt_weight=1.0)
        (_, was), (_, now) = TokenNLL(model)(before), TokenNLL(model)(after)
        mine = before.owners == changed
        # The same shapes in the same order: bit for bit.
        assert torch.equal(was[~mine], now[~mine])
        assert not torch.allclose(was[mine], now[mine])


def test_the_gradient_of_an_example_reaches_its_own_tokens_only(tiny_model: Make, kernel: str) -> None:
    model = tiny_model(kernel)
    embedded: list[Tensor] = []
    model.transformer.drop.register_forward_pre_hook(lambda _, given: embedded.append(given[0]))
    batch = collate(examples(), prompt_weight=1.0)
    owner_of = torch.repeat_interleave(torch.arange(8), torch.tensor([len(ids) - 1 for ids, _ in examples()]))
    for number in range(8):
        only = replace(batch, weights=batch.weights * (batch.owners == number))
        loss, _ = TokenNLL(model)(only)
        (gradient,) = torch.autograd.grad(loss, embedded[-1])
        reached = gradient[0].abs().sum(-1) > 0
        assert torch.equal(reached, owner_of == number)


# ---------------------------------------------------------------- the projection


def projection(seed: int = 0, num: int = 23) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num, 16, generator=generator).requires_grad_()
    matrix = torch.randn(50, 16, generator=generator).requires_grad_()
    labels = torch.randint(50, (num,), generator=generator)
    return hidden, matrix, labels, torch.rand(num, generator=generator)


@pytest.mark.parametrize("rows_per_chunk", [1, 4, 23, 1000])
def test_the_projection_in_chunks_is_full_cross_entropy(monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int) -> None:
    monkeypatch.setattr(loss_module, "logit_rows", lambda vocab_size, device: rows_per_chunk)
    hidden, matrix, labels, weights = projection()
    expected = nn.functional.cross_entropy(hidden @ matrix.T, labels, reduction="none")
    wanted = torch.autograd.grad((expected * weights).sum() * 0.7, (hidden, matrix))
    loss, nll = projected_nll(hidden, Head(matrix), labels, weights, torch.float32)
    found = torch.autograd.grad(loss * 0.7, (hidden, matrix))
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, (expected * weights).sum(), rtol=1e-5, atol=0)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert not nll.requires_grad


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_of_the_projection_gets_no_gradient(frozen: int) -> None:
    hidden, matrix, labels, weights = projection()
    (hidden, matrix)[frozen].requires_grad_(False)
    loss, _ = projected_nll(hidden, Head(matrix), labels, weights, torch.float32)
    loss.backward()
    assert ((hidden.grad is None), (matrix.grad is None)) == (frozen == 0, frozen == 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_tiny_weights_do_not_underflow_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    """One over a step's weight is easily 1e-6; float16 ends at 6e-8. Tolerances: a few units in the last place."""
    hidden, matrix, labels, weights = projection()
    wanted = torch.autograd.grad(
        projected_nll(hidden, Head(matrix), labels, weights, torch.float32)[0], (hidden, matrix)
    )
    found = torch.autograd.grad(projected_nll(hidden, Head(matrix), labels, weights * 1e-7, dtype)[0], (hidden, matrix))
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine * 1e7 - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_zero_give_gradients_of_zero(tiny_model: Make, layout: Any) -> None:
    model = tiny_model(KERNELS["eager"])
    batch = collate(examples(), layout)
    for silent in (replace(batch, weights=torch.zeros_like(batch.weights)), without_targets(batch)):
        loss, nll = TokenNLL(model)(silent)
        loss.backward()
        assert loss.item() == 0
        assert torch.isfinite(nll).all()
        assert all(float(g.abs().max()) == 0 for g in gradients(model).values())


def without_targets(batch: Batch) -> Batch:
    none = slice(0, 0)
    parts = {name: getattr(batch, name)[none] for name in ("targets", "before", "weights", "owners", "is_target")}
    return replace(batch, **parts)


def test_scale_divides_before_the_backward_pass(tiny_model: Make) -> None:
    model, batch = tiny_model(KERNELS["eager"]), collate(examples())
    loss, nll = TokenNLL(model)(batch)
    loss.backward()
    whole = gradients(model)
    scaled, same = TokenNLL(model)(batch, 1 / 64)
    scaled.backward()
    torch.testing.assert_close(scaled, loss / 64)
    torch.testing.assert_close(same, nll)
    assert_close({n: g * 64 for n, g in gradients(model).items()}, whole)


# ---------------------------------------------------------------- precision, checkpointing, dropout


def test_bf16_is_close_to_fp32(tiny_model: Make, kernel: str) -> None:
    """bfloat16 has 8 bits: one rounding is 0.4 %, a few of them on the way to a gradient stay within some per cent."""
    model, batch = tiny_model(kernel, initializer_range=0.05), collate(examples(), prompt_weight=1.0)
    loss, nll = TokenNLL(model)(batch)
    loss.backward()
    exact = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        rough_loss, rough = TokenNLL(model)(batch)
    rough_loss.backward()
    assert rough_loss.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(rough_loss, loss, rtol=0.005, atol=0)
    torch.testing.assert_close(rough, nll, rtol=0.02, atol=0.02)
    assert not torch.equal(rough, nll), "bfloat16 was really used"
    for name, gradient in gradients(model).items():
        assert (gradient - exact[name]).norm() < 0.05 * exact[name].norm(), name


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing_changes_no_gradient(tiny_model: Make, kernel: str, layout: Any) -> None:
    batch = collate(examples(), layout)
    found = []
    for is_on in (False, True):
        model = tiny_model(kernel).train()
        num_passes: list[int] = []
        model.transformer.h[0].ln_1.register_forward_hook(lambda *_, seen=num_passes: seen.append(1))
        if is_on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        TokenNLL(model)(batch)[0].backward()
        assert len(num_passes) == 1 + is_on
        found.append(gradients(model))
    assert_close(found[1], found[0], tolerance=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_falls_in_training_only(tiny_model: Make, kernel: str, layout: Any) -> None:
    batch = collate(examples(), layout)
    plain, _ = TokenNLL(tiny_model(kernel))(batch)
    model = tiny_model(kernel, attn_pdrop=0.3)  # in attention alone
    torch.testing.assert_close(TokenNLL(model.eval())(batch)[0], plain)
    model.train()
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(TokenNLL(model)(batch)[0])
    losses[0].backward()
    assert len({x.item() for x in losses}) == 2
    assert losses[0].item() == losses[2].item()
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


def test_each_device_has_an_attention() -> None:
    assert name_for(torch.device("cpu")) == KERNELS["eager"]
    assert name_for(torch.device("cuda")) == KERNELS["sdpa"]


def test_scoring_takes_no_gradient_of_the_output_matrix(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(KERNELS["eager"])
    made: list[Any] = []
    zeros_like = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda *given, **named: made.append(given) or zeros_like(*given, **named))
    batch = collate([([1, 2, 3, 4], 2)])
    with torch.no_grad():
        TokenNLL(model)(batch)
    assert not made
    TokenNLL(model)(batch)
    assert made


def test_the_gradient_of_the_output_matrix_stays_in_range_in_half_precision() -> None:
    """Many rows of one token: their sum leaves the range of fp16, the mean that is asked for does not."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.full((500, 8), 300.0) + torch.randn(500, 8, generator=generator)
    matrix = torch.randn(20, 8, generator=generator) * 1e-3
    labels, weights = torch.full((500,), 3), torch.full((500,), 1 / 500)
    found = {}
    for dtype in (torch.float32, torch.float16):
        ours = matrix.clone().requires_grad_()
        loss, _ = projected_nll(hidden, Head(ours), labels, weights, dtype)
        loss.backward()
        assert ours.grad is not None
        found[dtype] = ours.grad
    assert (500 * found[torch.float32].abs() > torch.finfo(torch.float16).max).any(), "the sum is out of range"
    assert found[torch.float16].isfinite().all()
    torch.testing.assert_close(found[torch.float16], found[torch.float32], rtol=0.02, atol=0.5)
