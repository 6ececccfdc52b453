"""Muon with AdamW as one optimizer: torch's own steps, a state that is saved and loaded, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import furthest, settings, stopped_before, weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from multitask import train
from multitask.api import preview
from multitask.config.train import TrainConfig
from multitask.errors import InputError
from multitask.models.bigram import BigramConfig, BigramLMHeadModel
from multitask.training import loop
from multitask.training.optim import MuonAndAdamW, make_optimizer

CPU = torch.device("cpu")


def model_of(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def stepped(model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        ids = torch.randint(50, (4, 16))
        model(input_ids=ids, labels=ids).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def config(**named: Any) -> TrainConfig:
    return TrainConfig(learning_rate=1e-2, weight_decay=0.1, **named)


def test_layers_go_to_muon_and_the_rest_to_adamw() -> None:
    model = model_of()
    optimizer = make_optimizer(model, config(optimizer="muon"), CPU)
    assert isinstance(optimizer, MuonAndAdamW)
    stepped(model, optimizer, 0, 1)
    kinds = {name: set(optimizer.state[parameter]) for name, parameter in model.named_parameters()}
    muon = {name for name, keys in kinds.items() if "momentum_buffer" in keys}
    assert muon == {name for name, p in model.named_parameters() if ".h." in name and p.ndim == 2}
    assert all("exp_avg" in keys for name, keys in kinds.items() if name not in muon)
    assert type(make_optimizer(model, config(), CPU)) is torch.optim.AdamW


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "mamba"])
def test_embeddings_are_neither_for_muon_nor_decay(kind: str) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60, "ffn_dim": 64}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, word_embed_proj_dim=32))
    optimizer = make_optimizer(model, config(optimizer="muon"), CPU)
    muon, *rest = optimizer.param_groups
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    output = model.get_output_embeddings().weight
    assert {id(p) for p in muon["params"]} == {id(p) for p in linear if p is not output}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    assert embeddings
    for group in (muon, *rest):
        if group["weight_decay"]:
            assert not embeddings & {id(p) for p in group["params"]}
    assert sum(len(group["params"]) for group in (muon, *rest)) == len(list(model.parameters()))


def test_a_copy_is_independent_of_the_original() -> None:
    model = model_of()
    optimizer = make_optimizer(model, config(optimizer="muon"), CPU)
    stepped(model, optimizer, 0, 1)
    both = copy.deepcopy((model, optimizer))
    before = both[0].transformer.h[0].mlp.c_fc.weight.detach().clone()
    stepped(model, optimizer, 1, 2)
    assert torch.equal(both[0].transformer.h[0].mlp.c_fc.weight, before)
    stepped(*both, 1, 2)
    assert torch.equal(both[0].transformer.h[0].mlp.c_fc.weight, model.transformer.h[0].mlp.c_fc.weight)


def test_each_part_steps_as_alone() -> None:
    whole, apart = model_of(), model_of()
    stepped(whole, make_optimizer(whole, config(optimizer="muon"), CPU), 0, 3)
    named = dict(apart.named_parameters())
    layers = [p for n, p in named.items() if ".h." in n and p.ndim == 2]
    muon = torch.optim.Muon(layers, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in named.values() if not any(p is layer for layer in layers)]
    adamw = torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    for step in range(3):
        torch.manual_seed(step)
        ids = torch.randint(50, (4, 16))
        apart(input_ids=ids, labels=ids).loss.backward()
        for part in (muon, adamw):
            for group in part.param_groups:
                group["lr"] = 1e-2 / (step + 1)
            part.step()
            part.zero_grad(set_to_none=True)
    for (name, ours), theirs in zip(whole.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_loaded_state_continues_bit_for_bit() -> None:
    whole, parts = model_of(), model_of()
    stepped(whole, make_optimizer(whole, config(optimizer="muon"), CPU), 0, 6)
    before = make_optimizer(parts, config(optimizer="muon"), CPU)
    stepped(parts, before, 0, 3)
    state: dict[str, Any] = before.state_dict()
    after = make_optimizer(parts, config(optimizer="muon"), CPU)
    after.load_state_dict(state)
    stepped(parts, after, 3, 6)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_with_muon_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_loss", lambda *_: None)
    given = settings("cls", train={"optimizer": "muon", "save_every_steps": 1})
    whole = train(given, out=tmp_path / "whole")
    assert whole["config"]["train"]["optimizer"] == "muon"
    with stopped_before(3):
        train(given, out=tmp_path / "parts")
    train(resume=tmp_path / "parts")
    assert furthest(weights(tmp_path / "parts" / "model"), weights(tmp_path / "whole" / "model")) == 0
    plain: dict[str, Tensor] = weights(train_plain(tmp_path) / "model")
    assert furthest(plain, weights(tmp_path / "whole" / "model")) > 1e-3


def train_plain(tmp_path: Path) -> Path:
    train(settings("cls"), out=tmp_path / "plain")
    return tmp_path / "plain"


def test_what_muon_cannot_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings("cls", train={"optimizer": "muon"}, adapter={"kind": "lora"})
    for refused in (lambda: train(given, out=tmp_path / "run"), lambda: preview(given)):
        with pytest.raises(InputError, match="LoRA trains none; take adamw"):
            refused()
    assert not (tmp_path / "run").exists()
    bigram = BigramLMHeadModel(BigramConfig(50, (16,), 32))
    with pytest.raises(InputError, match="no matrices between its embeddings and logits"):
        make_optimizer(bigram, config(optimizer="muon"), CPU)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"needs torch 2\.9 or newer"):
        make_optimizer(model_of(), config(optimizer="muon"), CPU)
