"""The one shared GPT-2: a tokenizer with the task tokens in it, weights that fit it, LoRA, and the folder it leaves.

`build(ModelConfig(name="gpt2"), tasks, ...)` -> GPT-2 with rows for `<|pad|>`, `<|end|>`, `<|sep|>` ... appended; the
folder that `save` writes loads with `AutoModelForCausalLM` and `AutoTokenizer` alone.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from multitask.config import AdapterConfig, ModelConfig
from multitask.errors import InputError, suggest
from multitask.models.bigram import BigramConfig, BigramLMHeadModel
from multitask.models.loss import plain_model
from multitask.pattern import fields, markers, render, text_of
from multitask.task import END, Task
from multitask.tokenization.tokenizer import add_markers, load_tokenizer, not_found, probe_identity, train_tokenizer

disable_progress_bar()  # of loading and writing: bars of parts of a second between our lines


def build(
    config: ModelConfig, tasks: Mapping[str, Task], texts: Iterable[str], seed: int
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[int]]:
    """Model, tokenizer, and the ids of the token rows that nothing has been learned for.

    texts: what a tokenizer is trained on when neither the model nor `config.tokenizer` brings one.
    Raises InputError for a model that is not a GPT-2 or cannot be found.
    """
    special = markers(tasks)
    config = config.model_copy(update={"name": model_folder(config.name)})
    source = config.tokenizer or config.name
    tokenizer = (
        train_tokenizer(texts, config.vocab_size, special)
        if source is None
        else load_tokenizer(source, config.revision if config.tokenizer is None else None)
    )
    added = add_markers(tokenizer, special)
    probe_identity(tokenizer, special)
    model, new_ids = build_model(config, tokenizer, added, seed)
    return model, tokenizer, new_ids


def build_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, added: Iterable[int], seed: int
) -> tuple[GPT2LMHeadModel, list[int]]:
    """An empty or a loaded model with a row for every token, and the ids of the rows that nothing has been learned for.

    added: ids that were put into the tokenizer here. Raises InputError as `build` does.
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
        model = _load_pretrained(config, dropout)
        # A base rounded up to a round number of rows has some for our markers: not new rows, yet nothing has been
        # learned for them.
        new_ids = sorted({*added, *_fit_rows(model, len(tokenizer), seed)})
    for key, value in _ids(tokenizer).items():
        setattr(model.config, key, value)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model, new_ids


def model_folder(name: str | None) -> str | None:
    """The model inside a run's folder; any other name as it is."""
    inside = Path(name or "", "model")
    return str(inside) if name is not None and inside.is_dir() else name


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {role: getattr(tokenizer, role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _load_pretrained(config: ModelConfig, dropout: dict[str, float]) -> GPT2LMHeadModel:
    assert config.name is not None
    if Path(config.name, "adapter_config.json").exists():
        raise InputError(
            f"{config.name}: this is an adapter, not a model; name its base, or write a plain model with --merge"
        )
    try:
        shape = AutoConfig.from_pretrained(config.name, revision=config.revision)
        if shape.model_type != "gpt2":
            raise InputError(f"{config.name}: a model of type '{shape.model_type}'; only GPT-2 models are trained here")
        for key, value in dropout.items():
            setattr(shape, key, value)
        if shape.activation_function == "gelu_new":  # the same function, in one kernel
            shape.activation_function = "gelu_pytorch_tanh"
        return GPT2LMHeadModel.from_pretrained(
            config.name, config=shape, revision=config.revision, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise not_found(config.name, "model", error) from error


def _fit_rows(model: GPT2LMHeadModel, num_rows: int, seed: int) -> list[int]:
    """Grows the embedding to `num_rows` rows; returns the new ones.

    New rows are the mean of the old ones plus noise of the initialiser's size: their logits start near the average, so
    that no new token takes probability from the text the model knows (Hewitt, 2021).
    """
    old = model.config.vocab_size
    if num_rows <= old:
        return []
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    matrices = [model.get_input_embeddings().weight.data]
    if not model.config.tie_word_embeddings:
        matrices.append(model.get_output_embeddings().weight.data)
    for rows in matrices:
        noise = torch.empty(num_rows - old, rows.shape[1])
        noise.normal_(0.0, model.config.initializer_range, generator=generator)
        rows[old:] = rows[:old].mean(0) + noise
    return list(range(old, num_rows))


def add_lora(model: GPT2LMHeadModel, config: AdapterConfig, new_ids: list[int]) -> Any:
    """A PEFT model whose low-rank updates and new token rows train; the head stays tied.

    Raises InputError for target modules that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name in config.target_modules:
        if name not in names:
            raise InputError(f"adapter.target_modules: no linear layer '{name}' in this model; {suggest(name, names)}")
    if new_ids and not model.config.tie_word_embeddings:
        raise InputError(
            "adapter.kind lora: this model's output matrix is not tied to its token rows, and the adapter would train "
            "the new tokens of one of the two alone; train all weights (adapter.kind none)"
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


def is_adapter(model: Any) -> bool:
    """True for a PEFT model."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    tasks: Mapping[str, Task],
    examples: Mapping[str, Mapping[str, str]],
) -> None:
    """Writes weights or adapter, tokenizer, generation settings and card.

    examples: one row's fields of each task, for the card. With LoRA the base that the adapter names must exist already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = plain_model(model)
    kernel = plain.config._attn_implementation
    plain.config._attn_implementation = None
    model.save_pretrained(folder)
    plain.config._attn_implementation = kernel
    tokenizer.save_pretrained(folder)
    plain.generation_config.save_pretrained(folder)
    base = None
    if is_adapter(model):
        named = model.peft_config["default"].base_model_name_or_path
        is_beside = Path(named) == (folder.parent / "base").resolve()
        base = 'FOLDER + "/../base"' if is_beside else repr(named)
    if tasks:
        (folder / "README.md").write_text(card(tasks, examples, base), "utf-8")


def save_plain(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, prompt: str) -> None:
    """As `save`, for a model of running text: with weights, tokenizer, generation settings and card.

    prompt: what the card's snippet goes on from.
    """
    save(model, tokenizer, folder, {}, {})
    code = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if model.config.model_type != "gpt2":
        code.append("import multitask.models.bigram  # transformers does not know this kind of model")
    most = min(40, model.config.n_positions // 2)
    start = prompt or tokenizer.bos_token or tokenizer.eos_token or ""
    code += [
        'FOLDER = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
        f"inputs = tokenizer({json.dumps(start, ensure_ascii=False)}, return_tensors='pt', add_special_tokens=False)",
        f"ids = model.generate(input_ids=inputs['input_ids'], do_sample=True, max_new_tokens={most})[0]",
        "print(tokenizer.decode(ids))",
    ]
    text = ["# A language model of running text", "", "```python", *code, "```", ""]
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", ""]
    (folder / "README.md").write_text("\n".join([*head, *text]), "utf-8")


def card(tasks: Mapping[str, Task], examples: Mapping[str, Mapping[str, str]], base: str | None = None) -> str:
    """The model card: each task's prompt string, and a snippet of plain Hugging Face code.

    base: with LoRA, where the base is, as a Python expression.
    """
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        "# One GPT-2, many tasks",
        "",
    ]
    lines += ["| task | prompt | the model writes |", "| --- | --- | --- |"]
    for name, task in tasks.items():
        shown = _prompt(task, {field: f"{{{field}}}" for field in fields(task.stream)}).replace("|", "\\|")
        lines.append(f"| {name} | `{shown}` | {{{task.target}}}, then `{END.replace('|', chr(92) + '|')}` |")
    name, task = next(iter(tasks.items()))
    prompt = _prompt(task, examples.get(name) or {field: "" for field in fields(task.stream)})
    load = (
        ["model = AutoModelForCausalLM.from_pretrained(FOLDER)"]
        if base is None
        else [
            f"model = AutoModelForCausalLM.from_pretrained({base})",
            "model = PeftModel.from_pretrained(model, FOLDER)",
        ]
    )
    lines += [
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *(["from peft import PeftModel"] if base else []),
        'FOLDER = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        *load,
        f"inputs = tokenizer({json.dumps(prompt, ensure_ascii=False)}, return_tensors='pt')",
        f"ids = model.generate(**inputs, max_new_tokens={task.max_new_tokens})[0, inputs['input_ids'].shape[1]:]",
        "print(tokenizer.decode(ids, skip_special_tokens=True).strip())",
        "```",
        "",
    ]
    return "\n".join(lines)


def _prompt(task: Task, values: Mapping[str, str]) -> str:
    """The prompt string; the literal text before the target belongs to the target."""
    return text_of(render(task, values, with_target=False))


def load_causal(name: str, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerFast]:
    """Any causal language model: what a run left, another local folder, or a hub name; weights in float32."""
    if Path(name).exists():
        return load_trained(Path(name))
    tokenizer = load_tokenizer(name, revision)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise not_found(name, "model", error) from error
    return model, tokenizer


def load_trained(path: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """A model that a run left: its folder, or the run's folder; an adapter is put on its base.

    Raises InputError when the folder holds no model or the adapter's base has too few token rows.
    """
    folder = Path(model_folder(str(path)) or "")
    if not folder.is_dir():
        raise not_found(str(path), "model", FileNotFoundError("no such folder"))
    tokenizer = load_tokenizer(str(folder))
    if (folder / "adapter_config.json").exists():
        return _load_adapter(folder, len(tokenizer)), tokenizer
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True), tokenizer
    except (OSError, ValueError) as error:
        raise not_found(str(path), "model", error) from error


def _load_adapter(folder: Path, num_tokens: int) -> Any:
    from peft import PeftModel

    named = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    beside = folder.parent / "base"  # first: a run may have been moved or copied, and another taken its old place
    base_name = str(beside) if beside.is_dir() else named
    try:
        base = AutoModelForCausalLM.from_pretrained(base_name, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise not_found(base_name, "base model for the adapter", error) from error
    if base.config.vocab_size < num_tokens:
        raise InputError(
            f"{folder}: the adapter's base {base_name} has {base.config.vocab_size} token rows, its tokenizer "
            f"{num_tokens}; the base was not resized: use the base/ folder of the run that wrote the adapter"
        )
    return PeftModel.from_pretrained(base, folder)
