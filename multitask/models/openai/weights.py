"""OpenAI's published GPT-2: its TensorFlow checkpoint, vocabulary and merges, as a Hugging Face folder.

The source is a folder of `checkpoint`, `encoder.json`, `hparams.json`, `model.ckpt.*` and `vocab.bpe`, of any of the
four sizes. Weights are copied unchanged, since both sides multiply with matrices of (inputs, outputs):

    model/h0/attn/c_attn/w (1, 768, 2304)  ->  transformer.h.0.attn.c_attn.weight (768, 2304)

Names and shapes: src/model.py of github.com/openai/gpt-2. Its GELU is the tanh form, `gelu_new`; its output layer is
the token embedding, which is stored once.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, GPT2Config, GPT2TokenizerFast

from multitask.errors import InputError
from multitask.models.cards import from_template
from multitask.models.io import check_new_folder, whole_folder
from multitask.models.openai.bundle import Bundle
from multitask.models.openai.text_files import (
    END_OF_TEXT,
    Shape,
    find_prefix,
    read_merges,
    read_shape,
    read_vocabulary,
)
from multitask.tokenization.tokenizer import pad_left

_CARD = Path(__file__).parent / "card.md.j2"
_NUM_SHOWN = 5  # problems in an error message


@dataclass(frozen=True)
class Imported:
    """What was written."""

    num_tensors: int
    num_parameters: int
    num_ignored: int
    """Tensors of the checkpoint that are not weights: optimizer state, counters."""
    shape: Shape


def import_openai(source: Path, out: Path) -> Imported:
    """Writes OpenAI's GPT-2 in `source` as the folder `out`, completely or not at all.

    Raises:
        InputError: a file of `source` is missing, damaged or does not match the others; `out` has files already.
    """
    out = check_new_folder(out)
    shape = read_shape(source / "hparams.json")
    vocabulary = read_vocabulary(source / "encoder.json", shape.n_vocab)
    merges = read_merges(source / "vocab.bpe", vocabulary)
    bundle = Bundle(find_prefix(source))
    variables = check(bundle, shape, source / "hparams.json")
    # Memory-mapped: the weights are never in memory as a whole.
    tensors = {key: torch.from_numpy(bundle.read(name).reshape(target)) for name, (key, target) in variables.items()}
    tokenizer = GPT2TokenizerFast(vocab=vocabulary, merges=merges, model_max_length=shape.n_ctx)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), vocabulary[END_OF_TEXT])
    config = GPT2Config(
        vocab_size=shape.n_vocab,
        n_positions=shape.n_ctx,
        n_embd=shape.n_embd,
        n_head=shape.n_head,
        n_layer=shape.n_layer,
        activation_function="gelu_new",
        architectures=["GPT2LMHeadModel"],
        dtype="float32",
        **ends,
    )
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    with whole_folder(out) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        GenerationConfig(**ends).save_pretrained(folder)
        pad_left(tokenizer)
        tokenizer.save_pretrained(folder)
        card = from_template(_CARD, shape=shape, num_parameters=num_parameters)
        (folder / "README.md").write_text(card, "utf-8")
    return Imported(len(tensors), num_parameters, len(bundle.entries) - len(tensors), shape)


def variables_of(shape: Shape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """OpenAI's name of each variable -> its name in transformers, its shape in the checkpoint."""
    n = shape.n_embd
    vector = {"g": (n,), "b": (n,)}
    parts: dict[str, tuple[int, ...]] = {"wte": (shape.n_vocab, n), "wpe": (shape.n_ctx, n)}
    for layer in range(shape.n_layer):
        for norm in ("ln_1", "ln_2"):
            parts |= {f"h{layer}/{norm}/{name}": size for name, size in vector.items()}
        for name, num_in, num_out in (
            ("attn/c_attn", n, 3 * n),
            ("attn/c_proj", n, n),
            ("mlp/c_fc", n, 4 * n),
            ("mlp/c_proj", 4 * n, n),
        ):
            parts |= {f"h{layer}/{name}/w": (1, num_in, num_out), f"h{layer}/{name}/b": (num_out,)}
    parts |= {f"ln_f/{name}": size for name, size in vector.items()}
    return {f"model/{name}": (_transformers_name(name), size) for name, size in parts.items()}


def _transformers_name(name: str) -> str:
    """`h0/attn/c_attn/w` -> `transformer.h.0.attn.c_attn.weight`, `wte` -> `transformer.wte.weight`."""
    *modules, last = name.split("/")
    role = {"w": "weight", "g": "weight", "b": "bias"}.get(last, f"{last}.weight")
    return ".".join(["transformer", *(re.sub(r"^h(\d+)$", r"h.\1", module) for module in modules), role])


def check(bundle: Bundle, shape: Shape, hparams: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """OpenAI's name of each variable -> its name and shape in transformers.

    Raises InputError, with all problems at once, when variables are missing, unknown, or of another shape or type than
    `hparams` says. Variables of an optimizer (`beta1_power`, `model/wte/Adam`) are ignored.
    """
    entries = bundle.entries
    if shape.n_layer > len(entries):  # before that many names are made
        raise InputError(f"{hparams}: n_layer is {shape.n_layer}, but {bundle.index} has {len(entries)} tensors")
    expected = variables_of(shape)
    problems = [f"'{name}' is missing" for name in expected if name not in entries]
    for name, entry in entries.items():
        if name in expected:
            if entry.shape != expected[name][1]:
                problems.append(f"'{name}' has shape {entry.shape}, expected {expected[name][1]}")
            elif entry.dtype != "<f4":
                problems.append(f"'{name}' is of type {entry.dtype}, expected float32")
        elif name.startswith("model/") and name.rpartition("/")[0] not in expected:
            problems.append(f"'{name}' is not a variable of this model")
    if problems:
        more = [f"and {len(problems) - _NUM_SHOWN} more"] if len(problems) > _NUM_SHOWN else []
        raise InputError(
            f"{bundle.index}: not the model that {hparams} describes: {'; '.join([*problems[:_NUM_SHOWN], *more])}; "
            "use files that were published together"
        )
    return {name: (key, size[1:] if len(size) == 3 else size) for name, (key, size) in expected.items()}
