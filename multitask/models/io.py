"""Model folders that `AutoModelForCausalLM` and `AutoTokenizer` load without this package.

`load_trained(Path("runs/demo"))` -> model and tokenizer of a run; `load_causal("gpt2")` those of any other model.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from multitask import damage
from multitask.errors import InputError
from multitask.files import cannot_write, filling, replacing, write_text
from multitask.models.cards import CardFacts, card, plain_card
from multitask.models.lora import is_adapter, max_positions, plain_model
from multitask.models.names import model_folder, nearest
from multitask.task import Task
from multitask.tokenization.tokenizer import load_tokenizer, not_found, pad_left

_ADAPTER = "adapter_config.json"
_BASE = "../base"  # of an adapter in the same run, from the adapter's folder
_TERMS = re.compile(r"(?i)(licen[cs]e|notice|.*terms)")

disable_progress_bar()  # of loading and saving: they would interleave with our progress


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    tasks: Mapping[str, Task],
    examples: Mapping[str, Mapping[str, str]],
) -> None:
    """Writes weights or adapter, tokenizer, generation settings and card.

    examples: one row's fields of each task, for the card. With LoRA the base that the adapter names must exist already;
    a base in the same run is named by a path relative to the adapter's folder, so that the run can be moved.
    """
    _save(model, tokenizer, folder)
    if tasks:
        write_card(folder, tasks, examples)


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the files of a model but its card, each whole; raises InputError when they cannot be written."""
    plain = plain_model(model)
    attention = plain.config._attn_implementation
    try:
        with model_files(folder) as aside:
            plain.config._attn_implementation = None
            model.save_pretrained(aside)
            if is_adapter(model) and Path(_base_of(aside)) == (folder.parent / "base").resolve():
                named = json.loads((aside / _ADAPTER).read_text("utf-8")) | {"base_model_name_or_path": _BASE}
                (aside / _ADAPTER).write_text(json.dumps(named, indent=2), "utf-8")
            pad_left(tokenizer)
            tokenizer.save_pretrained(aside)
            plain.generation_config.save_pretrained(aside)
    finally:
        plain.config._attn_implementation = attention


@contextmanager
def model_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder`; raises InputError when they cannot be written."""
    try:
        with filling(folder) as aside:
            yield aside
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error


def write_card(
    folder: Path,
    tasks: Mapping[str, Task],
    examples: Mapping[str, Mapping[str, str]],
    facts: CardFacts | None = None,
) -> None:
    """Writes the card of a saved model, and copies licence texts of its base; facts: None before it was scored."""
    base = None
    if (folder / _ADAPTER).exists():
        named = _base_of(folder)
        base = f'FOLDER + "/{_BASE}"' if named == _BASE else repr(named)
    write_text(folder / "README.md", card(tasks, examples, base, facts))
    _copy_terms(facts, folder)


def _base_of(folder: Path) -> str:
    return str(json.loads((folder / _ADAPTER).read_text("utf-8"))["base_model_name_or_path"])


def _copy_terms(facts: CardFacts | None, folder: Path) -> None:
    """Copies the licence texts of a local base, which bind a model made from it."""
    if facts is None or facts.base is None or facts.base.folder is None:
        return
    try:
        for path in facts.base.folder.iterdir():
            if path.is_file() and _TERMS.match(path.name):
                shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise cannot_write(folder, error) from error


def save_plain(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, prompt: str) -> None:
    """As `save`, for a model of plain text: with weights, tokenizer, generation settings and card.

    prompt: what the card's snippet continues.
    """
    _save(model, tokenizer, folder)
    write_plain_card(model, tokenizer, folder, prompt)


def write_plain_card(
    model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, prompt: str, facts: CardFacts | None = None
) -> None:
    """Writes the card of a model of plain text; facts: None before it was scored."""
    start = prompt or tokenizer.bos_token or tokenizer.eos_token or ""
    num_new = min(40, (max_positions(model) or 80) // 2)
    text = plain_card(start, num_new, needs_import=model.config.model_type != "gpt2", facts=facts)
    write_text(folder / "README.md", text)
    _copy_terms(facts, folder)


def load_config(name: str, revision: str | None = None) -> Any:
    """The settings of a model; raises InputError for one that cannot be used here, with the reason."""
    try:
        found = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{name}: this model brings code of its own, which is not run here; take one that transformers knows"
            ) from None
        raise not_found(name, "model", error) from error
    if getattr(found, "is_encoder_decoder", False):
        raise InputError(
            f"{name}: a model of type '{found.model_type}' has an encoder and a decoder; a causal language model "
            "(decoder only) was expected, such as GPT-2, Llama or Gemma"
        )
    if getattr(found, "quantization_config", None) is not None:
        raise InputError(
            f"{name}: its weights are quantised; plain weights (safetensors in float32, bfloat16 or float16) "
            "were expected; a GGUF file is read by `import-gguf`"
        )
    return found


def load_model(name: str, revision: str | None = None, config: Any = None) -> Any:
    """A causal language model of transformers by hub name or folder, weights in float32, in evaluation mode.

    config: its settings, changed; None: as they are. Raises InputError for what is not found, not a causal language
    model, or stored in another form than safetensors.
    """
    config = config if config is not None else load_config(name, revision)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise not_found(name, "model", error) from error
    # transformers passes over a damaged one, and generates to another end.
    generation = Path(name, "generation_config.json")
    if generation.is_file() and damage.text(generation):
        raise not_found(name, "model", ValueError("generation_config.json"))
    missing = sorted({parameter for parameter, _ in model.named_parameters()} & set(found["missing_keys"]))
    if missing:
        raise InputError(
            f"{name}: its files lack {len(missing)} of the tensors of a model of type '{model.config.model_type}', the "
            f"first being '{missing[0]}'; copy or download the folder again, with all files of weights"
        )
    check_causal(model, name)
    return model


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """Raises InputError for a model whose scores of a token depend on later tokens, as those of an encoder (BERT)."""
    device, size = next(model.parameters()).device, model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[n % size for n in (5, 3, 8, last)] for last in (1, 2)], device=device)
    scores = model(input_ids=ids).logits[:, :3].float()
    if not torch.allclose(scores[0], scores[1], rtol=1e-3, atol=1e-4, equal_nan=True):
        raise InputError(
            f"{name}: a model of type '{model.config.model_type}' looks at later tokens too (an encoder); a causal "
            "language model (decoder only) was expected, such as GPT-2, Llama or Gemma"
        )


def check_new_folder(out: Path) -> Path:
    """The absolute path of a folder that is to be written; raises InputError when it has files already."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists already; expected a new name or an empty folder: name another, or remove it")
    return out


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` once all of it is on disk, or removed."""
    try:
        with replacing(out) as aside:
            aside.mkdir()
            yield aside
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{out}: cannot be written ({error}); nothing was written: free some space, or name another folder"
        ) from error


def load_causal(name: str, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerFast]:
    """Any causal language model: a run or model folder, or a hub name; weights in float32."""
    name = model_folder(name) or name
    if Path(name).exists():
        return load_trained(Path(name))
    tokenizer = load_tokenizer(name, revision)
    model = load_model(name, revision)
    _check_rows(model, tokenizer, name)
    return model, tokenizer


def _check_rows(model: Any, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Raises InputError where a token has no row in the embedding."""
    num_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_rows:
        raise InputError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, its embedding {num_rows} rows; they do not belong "
            "together: copy the tokenizer that the model was trained with into the folder"
        )


def load_trained(path: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """The model of a run, from the model's or the run's folder; an adapter is loaded onto its base.

    Raises InputError when the folder has no model or the adapter's base has too few token rows.
    """
    folder = Path(model_folder(str(path)) or "")
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; {nearest(path)}")
    tokenizer = load_tokenizer(str(folder))
    if (folder / _ADAPTER).exists():
        return _load_adapter(folder, len(tokenizer)), tokenizer
    model = load_model(str(folder))
    _check_rows(model, tokenizer, str(path))
    return model, tokenizer


def adapter_base(folder: Path) -> str:
    """The base of an adapter: a folder or a hub name; raises InputError where it is not there."""
    try:
        named = _base_of(folder)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise not_found(str(folder), "adapter", error) from error
    beside = folder.parent / "base"  # preferred: a run may have been moved or copied, and replaced at its old path
    relative = folder / named
    base_name = str(beside) if beside.is_dir() else str(relative.resolve()) if relative.is_dir() else named
    if (named == _BASE or Path(named).is_absolute()) and not Path(base_name).is_dir():
        raise InputError(
            f"{folder}: the adapter's base '{named}' is not there; put it back, or copy the base as a folder base/ "
            "beside this folder"
        )
    return model_folder(base_name) or base_name


def _load_adapter(folder: Path, num_tokens: int) -> Any:
    from peft import PeftModel

    base_name = adapter_base(folder)
    base = load_model(base_name)
    num_rows = base.get_input_embeddings().weight.shape[0]
    if num_rows < num_tokens:
        raise InputError(
            f"{folder}: the adapter's base {base_name} has {num_rows} token rows, its tokenizer "
            f"{num_tokens}; the base was not resized: use the base/ folder of the run that wrote the adapter"
        )
    from multitask.models.layers.lora_linear import use_fused_lora

    try:
        return use_fused_lora(PeftModel.from_pretrained(base, folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise not_found(str(folder), "adapter", error) from error
