"""LoRA (Hu et al., 2021) through `peft`: low-rank updates and new embedding rows are trained, the base is frozen.

`add_lora(model, AdapterConfig(kind="lora"), new_ids)` -> a `PeftModel`; `plain_model` gives the model inside.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
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


def add_lora(model: Any, config: AdapterConfig, new_ids: list[int]) -> Any:
    """A PEFT model in which low-rank updates and new token rows are trained; the rest is frozen, a tied head tied.

    Raises InputError for target modules that the model does not have, and for a head whose bias PEFT would drop.
    """
    from peft import LoraConfig, get_peft_model

    from multitask.models.layers.lora_linear import use_fused_lora

    targets = _targets(model, config.target_modules)
    output = model.get_output_embeddings()
    if new_ids and getattr(output, "bias", None) is not None:
        raise InputError(
            "adapter.kind lora: this model's output layer has a bias, which PEFT leaves out when it trains new token "
            "rows; train all weights (adapter.kind none)"
        )
    names = {module: name for name, module in model.named_modules()}
    layers = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        layers.append(output)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in names),
        trainable_token_indices={names[layer].rsplit(".", 1)[-1]: new_ids for layer in layers} if new_ids else None,
    )
    return use_fused_lora(get_peft_model(model, lora))


def _targets(model: Any, chosen: list[str]) -> list[str]:
    """Names of the linear layers that get an update: the chosen ones, or all but the output layer."""
    output = model.get_output_embeddings()
    linear = dict.fromkeys(
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, Conv1D | nn.Linear) and module is not output
    )
    if "mamba" in model.config.model_type:
        for name in ("out_proj", "dt_proj"):  # their weights are read as they are, past an update
            linear.pop(name, None)
    if not linear:
        raise InputError("adapter.kind lora: this model has no linear layers; train all weights (adapter.kind none)")
    for name in chosen:
        if name not in linear:
            raise InputError(
                f"adapter.target_modules: no linear layer '{name}' in this model; {suggest(name, list(linear))}"
            )
    return chosen or list(linear)


@dataclass(frozen=True)
class TokenRows:
    """Rows (K, C) that LoRA trains in place of those of a frozen embedding or output layer at ids (K,)."""

    base_layer: Any
    ids: Tensor
    rows: Tensor


def token_rows(layer: Any) -> TokenRows | None:
    """The trained token rows of an embedding or output layer; None where there are none."""
    adapter = getattr(layer, "token_adapter", None)  # peft.utils.other.TrainableTokensWrapper
    if adapter is None or adapter.merged or adapter.disable_adapters or len(adapter.active_adapters) != 1:
        return None
    (name,) = adapter.active_adapters
    rows = adapter.trainable_tokens_delta[name]
    return TokenRows(adapter.base_layer, torch.tensor(adapter.token_indices[name], device=rows.device), rows)


def embed(base: Any, ids: Tensor) -> Tensor | None:
    """Embeddings (B, T, C) of ids (B, T) with trained token rows; None where the embedding has none.

    PEFT copies the whole matrix in each pass, and takes a gradient of its size; here only rows that occur are touched.
    """
    layer = base.get_input_embeddings()
    found = token_rows(layer)
    if found is None:
        return None
    embedded: Tensor = found.base_layer(ids).detach()
    scale = getattr(found.base_layer, "embed_scale", None)
    place = torch.full((found.base_layer.weight.shape[0],), -1, device=ids.device).index_copy(
        0, found.ids, torch.arange(len(found.ids), device=ids.device)
    )[ids]
    new = nn.functional.embedding(place.clamp_min(0), found.rows)
    if scale is not None:
        new = new * scale.to(new.dtype)
    return torch.where((place >= 0)[..., None], new.to(embedded.dtype), embedded)


def merged(model: Any) -> Any:
    """A plain model with the LoRA updates added to its weights; another model unchanged."""
    return model.merge_and_unload() if is_adapter(model) else model


def is_adapter(model: Any) -> bool:
    """True for a PEFT model."""
    from peft import PeftModel

    return isinstance(model, PeftModel)
