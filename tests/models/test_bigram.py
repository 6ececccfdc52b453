"""A bigram model: one token back and no further, in transformers' own ways, down to the entropy of the counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from multitask.batching.collate import collate
from multitask.inference.decoding import generate
from multitask.models.bigram import BigramConfig, BigramLMHeadModel
from multitask.models.loss import TokenNLL


def made(*hidden: int) -> BigramLMHeadModel:
    torch.manual_seed(1)
    model = BigramLMHeadModel(BigramConfig(vocab_size=30, hidden=hidden, n_positions=64))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_only_the_token_before_matters(hidden: tuple[int, ...]) -> None:
    model = made(*hidden)
    one = model(torch.tensor([[3, 4, 5]])).logits
    other = model(torch.tensor([[9, 9, 5]])).logits
    assert torch.equal(one[0, 2], other[0, 2])
    assert not torch.equal(one[0, 1], other[0, 1])
    assert one.shape == (1, 3, 30)


def test_a_table_is_a_table() -> None:
    model = made()
    (table,) = model.parameters()
    assert table.shape == (30, 30)
    assert torch.equal(model(torch.tensor([[7, 8]])).logits[0], table[[7, 8]])
    assert sum(p.numel() for p in made(16, 8).parameters()) == 30 * 16 + (16 * 8 + 8) + (8 * 30 + 30)


@pytest.mark.parametrize("layout", ["packed", "none"])
def test_our_loss_is_its_own(layout: Any) -> None:
    model, ids = made(16), torch.randint(30, (40,)).tolist()
    own = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    batch = collate([(ids, 1)], layout)
    total, _ = TokenNLL(model)(batch)
    torch.testing.assert_close(total / batch.weights.sum(), own)
    loss, _ = TokenNLL(model)(collate([(ids, 1), (ids[:9], 3)], layout), 0.5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_and_scale_are_those_of_the_batch() -> None:
    model, ids = made(16), torch.randint(30, (12,)).tolist()
    nats = -model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)[torch.arange(11), ids[1:]]
    loss, each = TokenNLL(model)(collate([(ids, 4)], prompt_weight=0.25), 0.5)
    torch.testing.assert_close(each, nats.detach())
    torch.testing.assert_close(loss, 0.5 * (0.25 * nats[:3].sum() + nats[3:].sum()))


def test_it_is_saved_and_loaded_as_any_model(tmp_path: Path) -> None:
    model = made(16)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, BigramLMHeadModel)
    ids = torch.arange(30)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_it_writes_with_transformers_and_with_us() -> None:
    model = made()
    written = model.generate(input_ids=torch.tensor([[3]]), max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = [3]
    for _ in range(6):
        expected.append(int(model.next_logits(torch.tensor(expected[-1])).argmax()))
    assert written[0].tolist() == expected
    assert generate(model, [[3], [1, 3]], 6, {29}, 512) == [(expected[1:], False)] * 2
