"""One contract for every decoder-only architecture: what holds for GPT-2 holds for all, exactly.

Each is a tiny randomly initialised model in a folder with a tokenizer of its own, as a user would bring it. Those that
cannot keep the examples of a packed row apart (BLOOM, Mamba) are trained on padded rows, with the same results.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FACTS, FOLDER, files, furthest, settings, snippet, stopped_before, weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from multitask import train
from multitask.batching.collate import collate
from multitask.config.model import AdapterConfig, ModelConfig
from multitask.errors import InputError
from multitask.inference.decoding import generate
from multitask.inference.kv_cache import supports_shared_prefix
from multitask.inference.scoring import choice_nll, example_nll
from multitask.models import build, io
from multitask.models.lora import add_lora, merged, plain_model
from multitask.models.loss import TokenNLL, head_of
from multitask.models.support import attending, layout_of, own_nll, prepare_attention
from multitask.registry import choose, load_tasks
from multitask.training import loop

V = 400
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**WIDE, "intermediate_size": 64, "max_position_embeddings": 128}
GROUPED = {**LLAMA, "num_key_value_heads": 2, "head_dim": 8}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "gpt2-untied": (
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "tie_word_embeddings": False},
    ),
    "gpt_neox": ("gpt_neox", {**LLAMA, "rotary_pct": 0.5}),
    "llama": ("llama", {**LLAMA, "num_key_value_heads": 2}),
    "llama-tied": ("llama", {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {**LLAMA, "num_key_value_heads": 2}),
    "qwen3": ("qwen3", GROUPED),
    "gemma": ("gemma", GROUPED),
    "gemma2": (
        "gemma2",
        {**GROUPED, "sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("gemma3_text", {**GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("mistral", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 8}),
    "opt": ("opt", {**WIDE, "ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 16}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "granite": ("granite", {**LLAMA, "num_key_value_heads": 2, "logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "cohere": ("cohere", {**LLAMA, "num_key_value_heads": 2, "logit_scale": 0.25}),
    "phi": ("phi", LLAMA),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
PADDED = {"bloom", "mamba"}
"""Architectures whose examples get rows of their own."""
PROMPT = "Ada has a cat.<|question|>What has Ada?<|answer|>"
TASKS = choose(load_tasks(), ["qa", "nli"])


def folder_of(name: str) -> Path:
    """A model that some other project saved, weights large enough for every token to matter."""
    folder = FOLDER / f"architecture-{name}"
    if (folder / "config.json").exists():
        return folder
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|endoftext|>"]  # the last is what AutoTokenizer gives Qwen
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [str(row) for row in FACTS] * 4
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if name.startswith("gemma"):
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=128
    )
    tokenizer.save_pretrained(folder)
    kind, shape = KINDS[name]
    num_rows = V if name == "gpt_neox" else len(tokenizer)  # NeoX rounds its vocabulary up
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=num_rows, **ids, **shape))
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def built(name: str) -> tuple[Any, Any, list[int]]:
    return build.build(ModelConfig(name=str(folder_of(name))), TASKS, iter(()), 7)


@pytest.fixture(params=list(KINDS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_loss", lambda *_: None)


@pytest.fixture(params=["groups", "varlen"])
def path(request: pytest.FixtureRequest, name: str) -> Iterator[None]:
    """How packed examples are kept apart: on a CPU, or by the kernel of GPUs, which has no soft caps."""
    if request.param == "groups":
        yield
        return
    calls = request.getfixturevalue("varlen")
    yield
    assert bool(calls) == (name not in PADDED and name != "gemma2")


def examples(num_tokens: int, num: int = 6) -> list[tuple[list[int], int]]:
    """Rows of other lengths, some longer than the sliding windows: (ids, length of the prompt)."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, num_tokens, int(length)).tolist(), int(rng.integers(1, length - 1)))
        for length in [4, 9, 30, *rng.integers(3, 25, num - 3)]
    ]


# --- Markers, rows, layout


def test_markers_are_added_and_old_rows_stay(name: str) -> None:
    before = AutoModelForCausalLM.from_pretrained(folder_of(name)).get_input_embeddings().weight.detach()
    model, tokenizer, new_ids = built(name)
    after = model.get_input_embeddings().weight.detach()
    num_own = len(AutoTokenizer.from_pretrained(folder_of(name)))
    assert new_ids == list(range(num_own, len(tokenizer)))
    assert len(after) == max(len(before), len(tokenizer))
    torch.testing.assert_close(after[: len(before)][:num_own], before[:num_own])
    output = model.get_output_embeddings()
    assert output is None or len(output.weight) == len(after)
    assert tokenizer.bos_token == "<bos>"
    assert model.config.get_text_config().vocab_size == len(after)


def test_what_each_architecture_supports(name: str) -> None:
    model, _, _ = built(name)
    wanted = "none" if name in PADDED else "packed"
    assert [layout_of(model, 6), layout_of(model, 60)] == [wanted, wanted]
    assert supports_shared_prefix(model.eval(), 60) == (name not in PADDED)
    assert head_of(model) is not None


def test_the_first_id_is_what_the_base_expects(name: str, tmp_path: Path) -> None:
    """Gemma was trained with `<bos>` before every text; in training and in the card's snippet alike."""
    _, tokenizer, _ = built(name)
    encoder = build_encoder(tokenizer)
    given = PROMPT
    assert tokenizer(given)["input_ids"] == encoder
    assert (encoder[0] == 1) == name.startswith("gemma")


def build_encoder(tokenizer: Any) -> list[int]:
    from multitask.data.rows import Row
    from multitask.tokenization.row_encoder import RowEncoder

    fields = {"context": "Ada has a cat.", "question": "What has Ada?", "answer": "a cat"}
    row = Row("1", fields, ("a cat",), "en", (), (), None, "x:1")
    (found,) = RowEncoder(TASKS["qa"], tokenizer, 100).encode([row])
    assert found is not None
    return found.input_ids[: found.num_prompt]


# --- Loss


def own_nats(model: Any, ids: list[int], num_prompt: int) -> float:
    return float(own_nll(plain_model(model), ids)[num_prompt - 1 :].double().sum())


@pytest.mark.usefixtures("path")
def test_packed_is_apart_and_projected_at_targets_is_full_logits(name: str) -> None:
    model, _, _ = built(name)
    given = examples(300)
    found, num = example_nll(model, given, 64)
    assert num.tolist() == [len(ids) - n for ids, n in given]
    assert found == pytest.approx([own_nats(model, *one) for one in given], rel=2e-5, abs=2e-4)


@pytest.mark.usefixtures("path")
def test_gradients_of_packed_rows_are_those_of_full_logits(name: str) -> None:
    model, _, _ = built(name)
    model.train()
    given = examples(300)
    layout = prepare_attention(model, 40, "packed")
    loss, _ = TokenNLL(model)(collate(given, layout, prompt_weight=0.3), 0.1)
    loss.backward()
    ours = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with attending(model, "none"):
        for ids, num_prompt in given:
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
            nats = nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            weight = torch.where(torch.arange(len(nats)) < num_prompt - 1, 0.3, 1.0)
            ((nats * weight).sum() * 0.1).backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            assert key not in ours or float(ours[key].abs().max()) == 0
            continue
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(ours[key], parameter.grad, rtol=1e-3, atol=1e-3 * max(scale, 1e-3), msg=key)


# --- Scoring and decoding


def test_shared_prefixes_change_no_likelihood(name: str) -> None:
    model, _, _ = built(name)
    rng = np.random.default_rng(1)
    prefix = rng.integers(0, 300, 14).tolist()
    rows = [
        ([*prefix, *rng.integers(0, 300, int(n)).tolist()], [[5, 6], [7], [8, 9, 10, 11]])
        for n in rng.integers(1, 20, 8)
    ]
    for (prompt, choices), found in zip(rows, choice_nll(model, rows, 200), strict=True):
        wanted = [own_nats(model, [*prompt, *choice], len(prompt)) for choice in choices]
        assert found == pytest.approx(wanted, rel=2e-5, abs=2e-4)


def test_decoding_is_that_of_transformers(name: str) -> None:
    model, _, _ = built(name)
    model.eval()
    rng = np.random.default_rng(2)
    prefix = rng.integers(0, 300, 12).tolist()
    prompts = [[*prefix, *rng.integers(0, 300, int(n)).tolist()] for n in (1, 4, 20, 9)]
    for prompt, (new, _) in zip(prompts, generate(model, prompts, 12, {2}, 200), strict=True):
        ids = list(prompt)
        with torch.no_grad(), attending(model, "none"):
            for token in [*new, *([2] if len(new) < 12 else [])]:
                scores = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                assert scores[token] >= scores.max() - 1e-4
                ids.append(token)


# --- LoRA


def test_lora_trains_updates_and_new_rows_and_merges(name: str) -> None:
    model, _, new_ids = built(name)
    if name == "phi":  # PEFT would drop the bias of the output layer
        with pytest.raises(InputError, match="bias"):
            add_lora(model, AdapterConfig(kind="lora"), new_ids)
        return
    learner = add_lora(model, AdapterConfig(kind="lora", rank=4), new_ids)
    for key, parameter in learner.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.05)
    trained = {key.split(".")[-3] for key, p in learner.named_parameters() if p.requires_grad and "lora" in key}
    assert trained
    assert not trained & {"lm_head", "embed_out"}
    given = [([*ids[:2], new_ids[n % len(new_ids)], *ids[2:]], 1) for n, (ids, _) in enumerate(examples(300))]
    layout = prepare_attention(learner, 40, "packed")
    loss, nats = TokenNLL(learner)(collate(given, layout))
    loss.backward()
    ours = {key: p.grad.clone() for key, p in learner.named_parameters() if p.grad is not None}
    assert any("token" in key for key in ours)
    learner.zero_grad()
    with attending(learner, "none"):
        total = torch.zeros(())
        for ids, _ in given:
            logits = learner(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
            total = total + nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
        total.backward()
    assert float(loss) == pytest.approx(float(total), rel=1e-5)
    for key, parameter in learner.named_parameters():
        if parameter.requires_grad:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(ours[key], parameter.grad, rtol=1e-3, atol=1e-3 * max(scale, 1e-3), msg=key)
    before, _ = example_nll(learner, given, 64)
    plain = merged(learner)
    after, _ = example_nll(plain, given, 64)
    assert after == pytest.approx(before, rel=1e-4)
    assert nats.sum().item() == pytest.approx(before.sum(), rel=1e-5)


# --- Whole runs


def run(name: str, out: Path, **sections: Any) -> dict[str, Any]:
    source = files(FOLDER / "facts", train=FACTS, validation=FACTS, test=FACTS)
    sections["train"] = {"max_steps": 6, "batch_tokens": 256, "block_size": 96, "save_every_steps": 2} | sections.get(
        "train", {}
    )
    given = settings("qa", data={"sources": {"qa": [source]}}, **sections)
    given["model"] = {"name": str(folder_of(name))}
    return train(given, out=out)


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_a_run_is_resumed_bit_for_bit_and_loads_without_us(name: str, kind: str, tmp_path: Path) -> None:
    if name == "phi" and kind == "lora":
        return
    adapter = {"adapter": {"kind": kind, "merge": True}}
    whole = run(name, tmp_path / "whole", **adapter)
    assert whole["tasks"]["qa"]["metrics"]["perplexity"]["value"] > 1
    with stopped_before(3):
        run(name, tmp_path / "parts", **adapter)
    train(resume=tmp_path / "parts")
    assert furthest(weights(tmp_path / "parts" / "model"), weights(tmp_path / "whole" / "model")) == 0
    folder = tmp_path / "whole" / "model"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ours, tokenizer = io.load_trained(folder)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    with torch.no_grad():
        scores: Tensor = loaded(input_ids=ids["input_ids"]).logits
        torch.testing.assert_close(scores, ours(input_ids=ids["input_ids"]).logits)
    assert tokenizer.eos_token == "<|end|>"


def test_the_snippet_of_the_card_answers_as_we_do(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, tmp_path / "run", train={"max_steps": 40, "learning_rate": 3e-3})
    exec(
        snippet(tmp_path / "run" / "model").replace('FOLDER = "."', f"FOLDER = {str(tmp_path / 'run' / 'model')!r}"), {}
    )
    lines = (tmp_path / "run" / "predictions" / "qa.jsonl").read_text("utf-8").splitlines()
    assert capsys.readouterr().out.strip() == json.loads(lines[0])["prediction"]


# --- What is no causal language model of text


@pytest.fixture
def strangers(tmp_path: Path) -> dict[str, Path]:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    found = {}
    for name, model in {
        "encoder": BertLMHeadModel(BertConfig(vocab_size=V, **small)),
        "both": T5ForConditionalGeneration(
            T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
    }.items():
        found[name] = tmp_path / name
        model.save_pretrained(found[name])
        AutoTokenizer.from_pretrained(folder_of("llama")).save_pretrained(found[name])
    return found


@pytest.mark.parametrize(
    ("stranger", "words"), [("encoder", "looks at later tokens"), ("both", "encoder and a decoder")]
)
def test_other_kinds_of_models_are_an_error(strangers: dict[str, Path], stranger: str, words: str) -> None:
    for load in (lambda: io.load_causal(str(strangers[stranger])), lambda: built_from(strangers[stranger])):
        with pytest.raises(InputError, match=words):
            load()


def built_from(folder: Path) -> Any:
    return build.build(ModelConfig(name=str(folder)), TASKS, iter(()), 7)


def changed(tmp_path: Path, **values: Any) -> Path:
    """The Llama with other settings."""
    folder = tmp_path / "changed"
    model, tokenizer = io.load_causal(str(folder_of("llama")))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings_file = folder / "config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised"),
        ({"model_type": "of-nobody", "auto_map": {"AutoConfig": "code.Config"}}, "code of its own"),
        ({"vision_config": {"hidden_size": 8}}, "reads more than text"),
    ],
)
def test_models_that_cannot_be_trained_are_an_error(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        built_from(changed(tmp_path, **values))


def test_a_tokenizer_larger_than_the_embedding_is_an_error(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{n}" for n in range(9)])
    tokenizer.save_pretrained(folder)
    for load in (lambda: io.load_causal(str(folder)), lambda: built_from(folder)):
        with pytest.raises(InputError, match="tokenizer has"):
            load()


def test_a_model_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        built_from(folder)
