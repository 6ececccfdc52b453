"""Continuous batching: the same ids as alone, whatever else decodes; rows enter, leave and are cancelled."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from multitask.config.evaluation import SamplingConfig
from multitask.inference.decoding import generate, logits_processors_of
from multitask.serving.batch import ContinuousBatch, DecodingRow

V, END = 50, frozenset({0})
SETTINGS = (
    SamplingConfig(),
    SamplingConfig(temperature=1.3, seed=3),
    SamplingConfig(temperature=0.7, top_k=12, top_p=0.8, repetition_penalty=1.3, seed=4),
)


def gpt2() -> Any:
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, bos_token_id=0, eos_token_id=0, **shape)).eval()


def mamba() -> Any:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, initializer_range=0.3))


def rows(num: int) -> list[DecodingRow]:
    rng = np.random.default_rng(0)
    found = []
    for n in range(num):
        prompt = rng.integers(1, V, int(rng.integers(1, 60))).tolist()
        if n % 4 == 3:  # a common prefix with the row before
            prompt = [*found[-1].prompt, 7]
        found.append(DecodingRow(prompt, int(rng.integers(1, 40)), END, SETTINGS[n % 3], number=n % 2, sample=n % 5))
    return found


def alone(model: Any, row: DecodingRow) -> tuple[list[int], bool]:
    ((ids, is_finished),) = generate(
        model,
        [row.prompt],
        row.max_new_tokens,
        END,
        10_000,
        uniform=(lambda _, step: row.uniform(step)) if row.sampling.is_sampled else None,
        processors=logits_processors_of(row.sampling),
    )
    return ids, is_finished


@pytest.mark.parametrize("make", [gpt2, mamba])
def test_rows_that_enter_at_any_step_have_the_ids_that_they_have_alone(make: Any) -> None:
    model, mine = make(), rows(24)
    batch = ContinuousBatch(model, max_rows=6, batch_tokens=400)
    most = longest = 0
    for n, row in enumerate(mine):
        batch.waiting.append(row)
        if n % 3 == 0:
            batch.step()
        most = max(most, len(batch.rows))
        longest = max(longest, batch._cache.max_length)
    while any(row.is_finished is None for row in mine):
        batch.step()
        assert len(batch.rows) <= 6
        assert len(batch.rows) * max((row.length for row in batch.rows), default=0) <= 400
    assert [(row.new, row.is_finished) for row in mine] == [alone(model, row) for row in mine]
    assert len({tuple(row.new) for row in mine}) > 15
    assert {row.is_finished for row in mine} == {True, False}, "some end, some stop at the limit"
    if make is gpt2:
        assert most > 3, "rows shared a batch"


def test_a_cancelled_row_leaves_and_the_others_are_unchanged() -> None:
    model, mine = gpt2(), rows(6)
    batch = ContinuousBatch(model, max_rows=6, batch_tokens=4000)
    for row in mine:
        row.max_new_tokens = 30
        batch.waiting.append(row)
    batch.step()
    for row in mine[::2]:
        row.is_cancelled = lambda: True
    batch.step()
    assert {id(row) for row in batch.rows} <= {id(row) for row in mine[1::2]}
    while batch.rows:
        batch.step()
    assert [(row.new, row.is_finished) for row in mine[1::2]] == [alone(model, row) for row in mine[1::2]]


def test_tokens_have_the_models_own_log_probabilities() -> None:
    model, mine = gpt2(), rows(5)
    batch = ContinuousBatch(model, max_rows=5, batch_tokens=4000)
    for n, row in enumerate(mine):
        row.num_top = n or None
        batch.waiting.append(row)
    while any(row.is_finished is None for row in mine):
        batch.step()
    assert not mine[0].tokens
    for row in mine[1:]:
        assert [score.id for score in row.tokens] == row.new
        with torch.no_grad():
            scores = model(torch.tensor([[*row.prompt, *row.new]])).logits[0].log_softmax(-1)[len(row.prompt) - 1 :]
        for at, score in enumerate(row.tokens):
            assert score.logprob == pytest.approx(float(scores[at, score.id]), abs=1e-4)
            top = scores[at].topk(row.num_top)
            assert [i for i, _ in score.top] == top.indices.tolist()
            assert [p for _, p in score.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_a_cache_without_rows_becomes_shorter_again() -> None:
    model = gpt2()
    batch = ContinuousBatch(model, max_rows=8, batch_tokens=512)
    for length in (100, 4):
        row = DecodingRow([3] * length, 4, END)
        batch.waiting.append(row)
        while row.is_finished is None:
            batch.step()
    assert (batch._cache.max_rows, batch._cache.max_length) == (8, 64)
