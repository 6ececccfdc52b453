"""The shared model: a tokenizer with the markers of all tasks, and a model with an embedding row for each token.

`build(ModelConfig(name="gpt2"), tasks, ...)` -> GPT-2 with rows for `<|pad|>`, `<|end|>`, `<|sep|>` ... appended.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from multitask.config.model import ModelConfig
from multitask.errors import InputError
from multitask.models.bigram import BigramConfig, BigramLMHeadModel
from multitask.models.io import load_config, load_model
from multitask.models.lora import text_config
from multitask.models.names import checked_name, model_folder
from multitask.pattern import markers
from multitask.task import Task
from multitask.tokenization.tokenizer import (
    add_markers,
    first_ids,
    load_tokenizer,
    pad_left,
    probe_identity,
    train_tokenizer,
)

_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout")
"""What architectures call it."""


def build(
    config: ModelConfig, tasks: Mapping[str, Task], texts: Iterable[str], seed: int
) -> tuple[Any, PreTrainedTokenizerFast, list[int]]:
    """Model, tokenizer, and the ids whose embedding rows are untrained.

    texts: the training text of a new tokenizer, when neither the model nor `config.tokenizer` has one.
    Raises InputError for a model that is not a causal language model of text, or is not found.
    """
    special = markers(tasks)
    config = config.model_copy(update={"name": model_folder(config.name)})
    source = checked_name(config.tokenizer) if config.tokenizer is not None else config.name
    tokenizer = (
        train_tokenizer(texts, config.vocab_size, special)
        if source is None
        else load_tokenizer(source, config.revision if config.tokenizer is None else None)
    )
    num_own = len(tokenizer)
    pad_left(tokenizer)
    added = add_markers(tokenizer, special)
    probe_identity(tokenizer, special)
    first_ids(tokenizer)
    model, new_ids = build_model(config, tokenizer, added, seed)
    if config.name is not None and new_ids and new_ids[0] < min(num_own, *added, len(tokenizer)):
        raise InputError(
            f"{source}: its tokenizer has {num_own} tokens, {config.name} has {new_ids[0]} rows: it was trained "
            "with another tokenizer; name the right one in model.tokenizer"
        )
    return model, tokenizer, new_ids


def build_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, added: Iterable[int], seed: int
) -> tuple[Any, list[int]]:
    """A randomly initialised or pretrained model, and the ids whose embedding rows are untrained.

    added: ids of the markers that were added to the tokenizer. Raises InputError as `build` does.
    """
    dropout = {"resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout}
    torch.manual_seed(seed)
    model: Any
    if config.name is None and config.arch == "bigram":
        model = BigramLMHeadModel(BigramConfig(len(tokenizer), tuple(config.hidden), config.n_positions))
        new_ids = list(range(len(tokenizer)))
    elif config.name is None:
        shape = {k: getattr(config, k) for k in ("n_layer", "n_head", "n_embd", "n_positions")}
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                **shape,
                **dropout,
                activation_function="gelu_pytorch_tanh",
                initializer_range=config.initializer_range or 0.8 * config.n_embd**-0.5,
                tie_word_embeddings=config.tied,
                **_ids(tokenizer),
            )
        )
        if config.embedding_range is not None:
            for rows in (model.transformer.wte, model.transformer.wpe):
                rows.weight.data.normal_(0.0, config.embedding_range)
        new_ids = list(range(len(tokenizer)))
    else:
        model = _load_pretrained(config)
        # A base whose vocabulary was rounded up has rows for our markers already: not new, but untrained.
        new_ids = sorted({*added, *_fit_rows(model, len(tokenizer), seed)})
    for key, value in _ids(tokenizer).items():
        setattr(model.config, key, value)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model, new_ids


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {role: getattr(tokenizer, role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _load_pretrained(config: ModelConfig) -> Any:
    """The named model, with the dropout of the settings wherever its architecture has some."""
    assert config.name is not None
    if Path(config.name, "adapter_config.json").exists():
        raise InputError(
            f"{config.name}: this is an adapter, not a model; name its base, or write a plain model with --merge"
        )
    shape = load_config(config.name, config.revision)
    for part in ("vision_config", "audio_config"):
        if getattr(shape, part, None) is not None:
            raise InputError(
                f"{config.name}: a model of type '{shape.model_type}' reads more than text ({part}); models of text "
                "alone are trained here"
            )
    for name in _DROPOUT:
        if hasattr(shape, name):
            setattr(shape, name, config.dropout)
    if getattr(shape, "activation_function", None) == "gelu_new":  # the same function, in one kernel
        shape.activation_function = "gelu_pytorch_tanh"
    return load_model(config.name, config.revision, shape)


def _fit_rows(model: Any, num_rows: int, seed: int) -> list[int]:
    """Resizes the embedding to `num_rows` rows; returns the ids of the new ones.

    New rows are the mean of the old ones plus noise with the standard deviation of the initialiser: their logits start
    near the average, so that new tokens get little probability (Hewitt, 2021).
    """
    old = model.get_input_embeddings().weight.shape[0]
    if num_rows <= old:
        return []
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    matrices = [model.get_input_embeddings().weight.data]
    if not text_config(model).tie_word_embeddings:
        matrices.append(model.get_output_embeddings().weight.data)
    for rows in matrices:
        noise = torch.empty(num_rows - old, rows.shape[1])
        noise.normal_(0.0, getattr(text_config(model), "initializer_range", None) or 0.02, generator=generator)
        rows[old:] = rows[:old].mean(0) + noise
    return list(range(old, num_rows))
