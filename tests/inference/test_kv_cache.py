"""Shared prefixes, continuations of a prompt, growing rows: the same as each row alone, for several architectures."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from multitask.inference import kv_cache
from multitask.inference.decoding import generate
from multitask.inference.kv_cache import common_prefix, prefix_groups, supports_shared_prefix
from multitask.inference.scoring import choice_nll, choose, in_precision

SMALL = {"vocab_size": 50, "initializer_range": 0.3}
GPT2_SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL | GPT2_SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **SHAPE, num_key_value_heads=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, **SHAPE)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, **SHAPE, num_key_value_heads=2)),
}
CHOICES = [[6], [6, 7], [8, 9, 10], [11]]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def prompts(shared: int = 20, num: int = 15) -> list[list[int]]:
    rng = np.random.default_rng(0)
    beginning = rng.integers(0, 50, shared).tolist()
    return [beginning + rng.integers(0, 50, int(length)).tolist() for length in rng.integers(1, 30, num)]


def alone(model: Any, prompt: list[int], choice: list[int]) -> float:
    with torch.no_grad():
        scores = model(torch.tensor([[*prompt, *choice]])).logits[0].log_softmax(-1)
    return -sum(float(scores[len(prompt) - 1 + at, token]) for at, token in enumerate(choice))


def test_which_architectures_support_shared_prefixes() -> None:
    found = {name: supports_shared_prefix(make().eval(), 12) for name, make in MODELS.items()}
    assert found == {"gpt2": True, "llama": True, "gpt_neox": True, "bloom": False, "mistral": True}


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("batch_tokens", [40, 5000])
def test_choices_of_a_prompt_are_each_choice_alone(model: Any, shared: int, batch_tokens: int) -> None:
    given = prompts(shared)
    assert (common_prefix(given) >= 20) == (shared == 20)
    found = choice_nll(model, [(prompt, CHOICES) for prompt in given], batch_tokens)
    for prompt, nats in zip(given, found, strict=True):
        assert nats == pytest.approx([alone(model, prompt, choice) for choice in CHOICES], rel=1e-4, abs=1e-4)


def test_scores_do_not_depend_on_the_chunk_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, rows = MODELS["gpt2"]().eval(), [(prompt, CHOICES) for prompt in prompts()]
    whole = choice_nll(model, rows, 5000)
    monkeypatch.setattr(kv_cache, "_MAX_SCORES", 100)
    monkeypatch.setattr("multitask.inference.scoring.logit_rows", lambda vocab_size, device: 3)
    np.testing.assert_allclose(choice_nll(model, rows, 5000), whole, rtol=1e-5)


def test_the_shared_prefix_is_forwarded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, given = MODELS["gpt2"]().eval(), prompts()
    lengths: list[int] = []
    forward = kv_cache.forward
    monkeypatch.setattr(kv_cache, "forward", lambda m, ids, *rest: lengths.append(len(ids)) or forward(m, ids, *rest))
    monkeypatch.setattr("multitask.inference.scoring.forward", kv_cache.forward)
    monkeypatch.setattr("multitask.inference.scoring.supports_shared_prefix", lambda model, longest: True)
    choose(model, [(prompt, CHOICES) for prompt in given], 5000)
    tails = sum(len(prompt) - 20 for prompt in given)
    assert lengths == [20, tails + len(given) * sum(map(len, CHOICES))]


@pytest.mark.parametrize(("prompt", "choice"), [([], [1]), ([1], [])])
def test_an_empty_prompt_or_choice_is_an_error(prompt: list[int], choice: list[int]) -> None:
    with pytest.raises(ValueError, match="empty prompt or choice"):
        choice_nll(MODELS["gpt2"]().eval(), [(prompt, [choice])], 100)


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([[1, 2, 3]], 0),
        ([list(range(20)), [*range(15), 3]], 15),
        ([list(range(20)), list(range(12))], 11),  # one prompt is a prefix of the other: its last id is not shared
        ([list(range(20)), [9, *range(20)]], 0),
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 0),  # too short to pay
    ],
)
def test_common_prefix(lists: list[list[int]], expected: int) -> None:
    assert common_prefix(lists) == expected
    assert common_prefix([np.array(ids, np.int32) for ids in lists]) == expected


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("max_rows", [1, 4, None])
def test_growing_rows_are_each_row_alone(
    model: Any, shared: int, max_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = prompts(shared)

    def is_done(new: list[int]) -> bool:
        return len(new) > sum(new) % 11

    found = generate(model, given, 12, {7, 9}, 5000, is_done, max_rows)
    assert found == [generate(model, [prompt], 12, {7, 9}, 5000, is_done)[0] for prompt in given]
    assert len({len(new) for new, _ in found}) > 2, "rows end at different times"
    monkeypatch.setattr(
        "multitask.inference.decoding.supports_shared_prefix", lambda model, longest: False
    )  # transformers' own `generate`
    assert found == generate(model, given, 12, {7, 9}, 5000, is_done, 4)


def test_a_stop_criterion_of_the_caller_ends_a_text(model: Any) -> None:
    given = prompts()
    free = generate(model, given, 12, set(), 5000)
    assert all(len(new) == 12 and not finished for new, finished in free)
    stopped = generate(model, given, 12, set(), 5000, is_done=lambda new: len(new) >= 3 and new[-1] % 2 == 0)
    assert {finished for _, finished in stopped} == {True, False} or all(finished for _, finished in stopped)
    for (whole, _), (part, finished) in zip(free, stopped, strict=True):
        at = next((n + 1 for n in range(2, 12) if whole[n] % 2 == 0), None)
        assert finished == (at is not None)
        assert part == (whole[:at] if at else whole)


def test_samples_follow_their_numbers_in_any_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = prompts()

    def uniform(row: int, step: int) -> float:
        return float(np.random.default_rng([row, step]).random())

    found = generate(model, given, 8, {7}, 5000, uniform=uniform)
    assert found == generate(model, given, 8, {7}, 5000, max_rows=3, uniform=uniform)
    assert found != generate(model, given, 8, {7}, 5000)
    monkeypatch.setattr("multitask.inference.decoding.supports_shared_prefix", lambda model, longest: False)
    assert found == generate(model, given, 8, {7}, 5000, max_rows=4, uniform=uniform)


def test_sample_frequencies_are_the_probabilities() -> None:
    torch.manual_seed(0)
    model, prompt = MODELS["gpt2"]().eval(), [3, 4, 5]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
    rng = np.random.default_rng(1)
    found = generate(model, [prompt] * 4000, 1, set(), 10**6, uniform=lambda row, step: float(rng.random()))
    counts = np.bincount([new[0] for new, _ in found], minlength=50)
    assert np.abs(counts / 4000 - probabilities).max() < 4 * np.sqrt(0.25 / 4000)
    assert (counts > 0).sum() > 5


def test_every_row_enters_once_and_rows_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, given = MODELS["llama"]().eval(), prompts(num=23)
    admitted: list[tuple[int, int]] = []
    advance = kv_cache.DecodingBatch.advance

    def counted(self: kv_cache.DecodingBatch, model: Any, ids: Any, entering: Any) -> Any:
        admitted.append((len(ids), sum(len(tails) for _, tails in entering)))
        found = advance(self, model, ids, entering)
        assert self.num_rows <= self.max_rows
        return found

    monkeypatch.setattr(kv_cache.DecodingBatch, "advance", counted)
    generate(model, given, 10, {7, 9, 11}, 5000, max_rows=8)
    assert sum(new for _, new in admitted) == 23
    assert admitted[0] == (0, 8)
    assert any(old and new for old, new in admitted), "rows enter while others are decoded"


def prompts_on_passages(seed: int = 0) -> list[list[int]]:
    """Twenty questions on five passages, a few alone, one twice; nothing common to all."""
    rng = np.random.default_rng(seed)
    passages = [[n, *rng.integers(0, 50, 20 + 9 * n).tolist()] for n in range(5)]
    questions = [passages[n % 5] + rng.integers(0, 50, int(rng.integers(1, 6))).tolist() for n in range(20)]
    single = [[10 + n, *rng.integers(0, 50, int(rng.integers(1, 9))).tolist()] for n in range(4)]
    every = [*questions, *single, questions[3]]
    return [every[n] for n in rng.permutation(len(every)).tolist()]


@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_prefix_groups_share_more_than_they_do_not(max_rows: int) -> None:
    given = prompts_on_passages()
    found = prefix_groups(given, max_rows)
    assert sorted(n for numbers, _ in found for n in numbers) == list(range(len(given)))
    for numbers, shared in found:
        assert 1 <= len(numbers) <= max_rows
        assert len({tuple(given[n][:shared]) for n in numbers}) == 1
        assert len(numbers) == 1 or sum(len(given[n]) - shared for n in numbers) <= shared
    assert (max(len(numbers) for numbers, _ in found) > 2) == (max_rows > 2)


@pytest.mark.parametrize("max_rows", [2, 6, None])
def test_the_prefix_of_a_group_is_forwarded_once(
    model: Any, max_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = prompts_on_passages()
    expected = [generate(model, [prompt], 8, {7, 9}, 5000)[0] for prompt in given]
    num_forwarded = 0
    make = kv_cache.SharedPrefixBatch.__init__

    def counted(self: Any, prefix: Any, rows: Any, device: Any) -> None:
        nonlocal num_forwarded
        num_forwarded += sum(len(common) + sum(map(len, tails)) for common, tails in rows)
        make(self, prefix, rows, device)

    is_shared = supports_shared_prefix(model, 12)  # before anything is counted
    monkeypatch.setattr("multitask.inference.decoding.supports_shared_prefix", lambda model, longest: is_shared)
    monkeypatch.setattr(kv_cache.SharedPrefixBatch, "__init__", counted)
    assert generate(model, given, 8, {7, 9}, 5000, max_rows=max_rows) == expected
    if is_shared:
        assert num_forwarded < sum(map(len, given)) * (0.8 if max_rows == 2 else 0.6)


def test_unused_parts_of_the_cache_do_not_enter_any_sum() -> None:
    torch.manual_seed(0)
    model, given = MODELS["gpt2"]().eval(), prompts()
    expected = generate(model, given, 12, set(), 5000)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert generate(model, given, 12, set(), 5000) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_model_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = MODELS["gpt2"]().eval(), prompts()
    tried: list[Any] = []
    probe = kv_cache._try_shared_prefix
    monkeypatch.setattr(kv_cache, "_try_shared_prefix", lambda m, n: tried.append(m) or probe(m, n))
    for _ in range(2):
        choose(model, [(prompt, CHOICES) for prompt in given], 5000)
        generate(model, given, 3, {7}, 5000)
    assert tried == [model]
    choose(MODELS["gpt2"]().eval(), [(given[0], CHOICES)], 5000)
    assert len(tried) == 2, "another model is another one"


@pytest.mark.parametrize("kind", list(MODELS))
def test_half_precision_is_near_and_takes_the_same_path(kind: str) -> None:
    torch.manual_seed(0)
    exact_model = MODELS[kind]().eval()
    halved_model = copy.deepcopy(exact_model)
    assert in_precision(exact_model, "fp32") is exact_model
    in_precision(halved_model, "bf16")
    assert {p.dtype for p in halved_model.parameters()} == {torch.bfloat16}
    for (name, buffer), before in zip(halved_model.named_buffers(), exact_model.buffers(), strict=True):
        assert torch.equal(buffer, before), name
        assert buffer.dtype == before.dtype, name
    seen: list[bool] = []
    rows = [(prompt, CHOICES) for prompt in prompts()]
    nats = [np.array(choice_nll(model, rows, 5000)) for model in (exact_model, halved_model)]
    assert 0 < np.abs(nats[1] - nats[0]).max() < 0.05 * np.abs(nats[0]).max()
    for model in (exact_model, halved_model):
        seen += [kv_cache.supports_shared_prefix(model, longest) for longest in (1, 1 << 30)]
    assert seen[:2] == seen[2:]


def test_far_tokens_keep_their_angles_in_half_precision() -> None:
    """Rounded rotary frequencies would move the nats of far tokens by several times the rounding of products."""
    torch.manual_seed(0)
    shape = SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 2048}
    exact_model = LlamaForCausalLM(LlamaConfig(**SMALL, **shape)).eval()
    for parameter in exact_model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    halved, rounded = copy.deepcopy(exact_model), copy.deepcopy(exact_model).to(torch.bfloat16)
    ids = np.random.default_rng(0).integers(0, SMALL["vocab_size"], 1400)
    rows = [(ids[: 1000 + 20 * n], CHOICES) for n in range(20)]
    exact, ours, theirs = (
        np.array(choice_nll(model, rows, 20000)) for model in (exact_model, in_precision(halved, "bf16"), rounded)
    )
    assert np.abs(ours - exact).mean() < 0.6 * np.abs(theirs - exact).mean()
