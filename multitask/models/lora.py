"""LoRA (Hu et al., 2021) through `peft`: low-rank updates and new embedding rows are trained, the base is frozen.

`add_lora(model, AdapterConfig(kind="lora"), new_ids)` -> a `PeftModel`; `plain_model` gives the model inside.
"""

from typing import Any

from transformers import (
    GPT2LMHeadModel,
)
from transformers.pytorch_utils import Conv1D

from multitask.config.model import AdapterConfig
from multitask.errors import InputError, suggest


def plain_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if callable(getattr(model, "get_base_model", None)) else model


def text_config(model: Any) -> Any:
    """The settings of a model's text part, which a model of text and images keeps apart: `vocab_size` and others."""
    return plain_model(model).config.get_text_config()


def max_positions(model: Any) -> int | None:
    """The context window of a model in tokens; None where it has no limit (Mamba, XLNet)."""
    found: int | None = getattr(text_config(model), "max_position_embeddings", None)
    return found if found is not None and found > 0 else None


def add_lora(model: GPT2LMHeadModel, config: AdapterConfig, new_ids: list[int]) -> Any:
    """A PEFT model in which low-rank updates and new embedding rows are trained; the head stays tied.

    Raises InputError for target modules that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name in config.target_modules:
        if name not in names:
            raise InputError(f"adapter.target_modules: no linear layer '{name}' in this model; {suggest(name, names)}")
    if new_ids and not model.config.tie_word_embeddings:
        raise InputError(
            "adapter.kind lora: this model's output matrix is not tied to its embedding, and the adapter would train "
            "the new tokens in one of the two only; train all weights (adapter.kind none)"
        )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        fan_in_fan_out=True,
        trainable_token_indices={"wte": new_ids} if new_ids else None,
    )
    return get_peft_model(model, lora)


def merged(model: Any) -> Any:
    """A plain model with the LoRA updates added to its weights; another model unchanged."""
    return model.merge_and_unload() if is_adapter(model) else model


def is_adapter(model: Any) -> bool:
    """True for a PEFT model."""
    from peft import PeftModel

    return isinstance(model, PeftModel)
