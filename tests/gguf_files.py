"""Small GGUF files: a Llama of random weights and a byte-level tokenizer, written by the package `gguf`.

`write(tmp_path / "m.gguf", llama())` gives a file that transformers reads as that model.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

TEXTS = [
    "The capital of France is Paris.",
    "이 영화는 정말 재미있다.",
    "the the the cat cat\n\n\n12 12 1998",
    "  x  y",
] * 5
SPECIAL = ["<unk>", "<s>", "</s>"]
NAMES = {  # llama.cpp's name of a tensor in a layer -> transformers'
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@cache
def bpe() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def llama() -> LlamaForCausalLM:
    """Random weights; tied, as small models are."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=bpe().get_vocab_size() + 8,  # rounded up, as vocabularies often are
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        initializer_range=0.3,  # a large range, so that an exchanged matrix changes the logits visibly
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def _permuted(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of queries and keys in the order of llama.cpp's rotary positions (convert_hf_to_gguf.py)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray[Any, Any]]:
    """The weights by llama.cpp's names."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
            found[f"blk.{layer}.{ours}.weight"] = _permuted(weight, heads[ours]) if ours in heads else weight
    return found


def write(
    path: Path,
    model: LlamaForCausalLM,
    kind: str = "F32",
    *,
    architecture: str = "llama",
    add_bos: bool | None = False,
    pre: str = "gpt-2",
    bos: int = 1,
    change: Callable[[Any, dict[str, np.ndarray[Any, Any]]], None] = lambda writer, tensors: None,
) -> LlamaForCausalLM:
    """Writes a file; gives the model with the weights as the file has them, rounded by `kind`.

    change: called with the writer and the tensors by llama.cpp's names, before they are written.
    """
    import gguf

    writer, config, tokenizer = gguf.GGUFWriter(path, architecture), model.config, bpe()
    writer.add_name("Tiny | model\nof tests")
    writer.add_license("apache-2.0")
    writer.add_author("nobody")
    writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7}[kind])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    merges = tokenizer_merges(tokenizer)
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(2)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    named, rounded = tensors(model), {}
    change(writer, named)
    for name, weight in named.items():
        used = kind if weight.ndim == 2 else "F32"
        quantization = gguf.GGMLQuantizationType[used]
        data = gguf.quantize(np.ascontiguousarray(weight), quantization)
        rounded[name] = gguf.dequantize(data, quantization)
        writer.add_tensor(name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _with_weights(model, rounded)


def tokenizer_merges(tokenizer: Tokenizer) -> list[str]:
    import json

    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _with_weights(model: LlamaForCausalLM, named: dict[str, np.ndarray[Any, Any]]) -> LlamaForCausalLM:
    """A copy with other weights, by llama.cpp's names; those that are absent stay."""
    made = LlamaForCausalLM(model.config).eval()
    state = dict(model.state_dict())
    theirs = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for name, weight in named.items():
        if name.startswith("blk."):
            _, layer, ours, _ = name.split(".")
            if ours in ("attn_q", "attn_k"):
                heads = model.config.num_attention_heads if ours == "attn_q" else model.config.num_key_value_heads
                weight = weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            state[f"model.layers.{layer}.{NAMES[ours]}.weight"] = torch.from_numpy(weight.copy())
        elif name.removesuffix(".weight") in theirs:
            state[f"{theirs[name.removesuffix('.weight')]}.weight"] = torch.from_numpy(weight.copy())
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    made.load_state_dict(state)
    return made
