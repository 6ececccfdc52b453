"""Typed settings: every default and every meaning once. YAML sets fields, dotted `--set` flags win.

`load({"train": {"learning_rate": 3e-4}}, ["train.clip_norm=0.5"])` -> one frozen `RunConfig`, or one `InputError` that
lists every problem with its path.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from multitask.errors import InputError, suggest

T = TypeVar("T", bound="Settings")
SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


class Settings(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class CutConfig(Settings):
    """How one set of rows is cut into three splits: by a stable hash of a column, so that no group crosses."""

    by: str
    """Column, as the file names it, whose equal values stay together; for instance the article of a question."""
    validation: float = Field(0.05, ge=0, lt=1)
    """Share of groups in validation."""
    test: float = Field(0.05, ge=0, lt=1)
    """Share of groups in test."""

    @model_validator(mode="after")
    def _room(self) -> "CutConfig":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave no rows for train")
        return self


class SourceConfig(Settings):
    """Where rows come from. Exactly one of `files`, `hub`, `world`."""

    files: dict[Literal["train", "validation", "test", "all"], list[str]] | None = None
    """Local files of each split, relative to `data.root`; `all`: to be cut as `cut` says."""
    hub: str | None = None
    """Namespaced name on the Hugging Face hub, read through `datasets`; a local folder works too."""
    hub_config: str | None = None
    """The hub set's configuration, for instance `nli` of `klue/klue`."""
    revision: str | None = None
    """Commit, branch or tag of the hub set; `refs/convert/parquet` for sets that exist only as loading scripts."""
    hub_splits: dict[Literal["train", "validation", "test", "all"], str] = {
        "train": "train", "validation": "validation", "test": "test"
    }  # fmt: skip
    """The hub's name of each split."""
    world: dict[Split, int] | None = None
    """Number of rows of each split of the embedded procedural world."""
    format: Literal["jsonl", "csv", "tsv", "parquet", "text"] | None = None
    """File format; None: by extension (`.gz` may follow). TSV has no quoting; text is one row `text` per line."""
    encoding: Literal["utf-8", "cp949"] = "utf-8"
    """Text encoding; utf-8 with or without BOM."""
    columns: dict[str, str] = {}
    """Our field -> the source's column; a dot goes into a nested column (`answers.text`)."""
    labels: dict[str | int, str | dict[str, str]] = {}
    """Class as the source writes it -> its word, or its word by language; in order."""
    skip_labels: list[str | int] = []
    """Classes whose rows are left out and counted, for instance -1 of SNLI."""
    join: int = Field(1, ge=1)
    """So many rows one after another make one, line by line: documents of a useful length from text in short lines. For
    rows of a text alone, without a label."""
    language: str = "en"
    """Language of the rows that do not carry a `language` of their own."""
    cut: CutConfig | None = None
    """How `all` is cut into splits."""
    on_bad_row: Literal["raise", "skip"] | None = None
    """As `data.on_bad_row`, for this source alone; None: that one."""

    @field_validator("files", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return {k: [v] if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        given = [k for k in ("files", "hub", "world") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of files, hub, world is needed, found {', '.join(given) or 'none'}")
        splits: Any = self.files if self.files is not None else self.hub_splits if self.hub else {}
        if ("all" in splits) != (self.cut is not None):
            raise ValueError("`all` and `cut` belong together: rows of `all` are cut into splits as `cut` says")
        return self


class DataConfig(Settings):
    """What rows the tasks are taught and asked."""

    sources: dict[str, list[str | SourceConfig]] = {}
    """Task -> its sources: preset names (`configs/data`) or sources written out. Not named: the embedded world."""
    root: Path | None = None
    """Folder that relative file names start from; None: the environment's MULTITASK_DATA, else the working folder."""
    on_bad_row: Literal["raise", "skip"] = "raise"
    """What a row that cannot be used does: stop with file and line, or be skipped and counted."""
    limit: int | None = Field(None, ge=1)
    """Use the first so many usable rows of each task's training split; None: all."""
    cache: Path | None = None
    """Folder of encoded rows; None: `multitask` in the user's cache folder (XDG_CACHE_HOME)."""


_SHAPES: dict[Any, dict[str, int]] = {
    name: {"n_layer": layers, "n_head": heads, "n_embd": width, "n_positions": window}
    for name, layers, heads, width, window in (
        ("nano", 4, 4, 128, 256),
        ("mini", 6, 8, 256, 512),
        ("gpt2", 12, 12, 768, 1024),
        ("medium", 24, 16, 1024, 1024),
        ("large", 36, 20, 1280, 1024),
        ("xl", 48, 25, 1600, 1024),
    )
}


_GPT2_ONLY = ("n_layer", "n_head", "n_embd", "initializer_range", "embedding_range", "tied", "dropout")


class ModelConfig(Settings):
    """The one shared GPT-2."""

    name: str | None = None
    """Hub name or local folder; None: an empty GPT-2 of the size below."""
    revision: str | None = None
    """Commit, branch or tag of the hub model."""
    tokenizer: str | None = None
    """Hub name or local folder; None: the model's own, or for an empty model one trained on the run's training rows."""
    arch: Literal["gpt2", "bigram"] = "gpt2"
    """gpt2, or the next token from the current one alone: the floor of all language models."""
    hidden: list[Annotated[int, Field(ge=1)]] = []
    """bigram: widths of the layers between a token and the next; empty: a table of all pairs."""
    shape: Literal["nano", "mini", "gpt2", "medium", "large", "xl"] | None = None
    """Size of an empty model by name: nano (4 layers, width 128, window 256), mini (6, 256, 512), and OpenAI's four
    (12, 768; 24, 1024; 36, 1280; 48, 1600; window 1024). What is set beside it wins."""
    vocab_size: int = Field(2000, ge=300)
    """Tokens of a tokenizer trained here, task tokens not counted."""
    n_layer: int = Field(4, ge=1)
    """Layers of an empty model."""
    n_head: int = Field(4, ge=1)
    """Attention heads of an empty model."""
    n_embd: int = Field(128, ge=8)
    """Width of an empty model."""
    n_positions: int = Field(256, ge=16)
    """Window of an empty model, in tokens."""
    initializer_range: float | None = Field(None, gt=0)
    """Standard deviation of an empty model's matrices; None: 0.8 / sqrt(n_embd): small widths learn sooner."""
    embedding_range: float | None = Field(None, gt=0)
    """Standard deviation of an empty model's token and position rows; None: that of its matrices. Rows that are large
    beside what the layers add (1, PyTorch's own) let a model learn a short text by heart in few steps."""
    tied: bool = True
    """An empty model's output matrix is its token rows, as in GPT-2; False: a matrix of its own."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of embeddings, attention and residuals in training. Packing and batching change no loss when it is 0."""

    @model_validator(mode="before")
    @classmethod
    def _named_shape(cls, values: Any) -> Any:
        return {**_SHAPES.get(values.get("shape"), {}), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _heads(self) -> "ModelConfig":
        if self.hidden and self.arch != "bigram":
            raise ValueError("hidden: layers of arch bigram; a GPT-2 has n_layer and n_embd")
        idle = [name for name in _GPT2_ONLY if getattr(self, name) != type(self).model_fields[name].default]
        if self.arch == "bigram" and self.name is None and idle:
            raise ValueError(f"{', '.join(idle)}: of arch gpt2, not of bigram, which has `hidden`: leave it out")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


class AdapterConfig(Settings):
    """LoRA (Hu et al., 2021) through `peft`."""

    kind: Literal["none", "lora"] = "none"
    """none: all weights train; lora: low-rank updates and the new token rows train."""
    rank: int = Field(8, ge=1)
    """Rank of the updates."""
    alpha: float = Field(16.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the low-rank update."""
    target_modules: list[str] = ["c_attn", "c_proj", "c_fc"]
    """Names of the linear layers that get an update."""
    merge: bool = False
    """Write a plain model with the updates added in, in place of an adapter and its base."""


class LoopConfig(Settings):
    """The one loop."""

    epochs: float = Field(3.0, gt=0)
    """Passes over as many rows as all tasks have together, counted in tokens of the mixture; over the text."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; None: what `epochs` amounts to."""
    batch_tokens: int = Field(16384, ge=16)
    """Tokens of one step, over all micro-steps and processes; rounded down to whole blocks, at least one."""
    micro_batch_tokens: int = Field(4096, ge=16)
    """Tokens of one forward-backward pass; lower it when memory runs out, results stay the same."""
    block_size: int | None = Field(None, ge=16)
    """Window of one example, in tokens; None: the model's `n_positions`, at most `batch_tokens`."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; None: 3e-3 * sqrt(128 / n_embd) for an empty model, 2e-4 * 768 / n_embd for a trained one
    (2e-4 for one of the hub), 1e-3 for LoRA."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up, to `final_learning_rate`."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Learning rate at the last step."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear rise; at most a tenth of all steps are used."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decay of matrices; biases, norms and embeddings have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """AdamW's second moment."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where it is fast (measured), else fp16 on a GPU, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    log_every_steps: int = Field(20, ge=1)
    """Steps between lines of metrics.jsonl."""
    eval_every_steps: int = Field(0, ge=0)
    """Steps between validations; 0: ten in all."""
    patience: int = Field(0, ge=0)
    """Stop after so many validations without a better one; 0: never."""
    save_every_steps: int = Field(500, ge=0)
    """Steps between checkpoints; 0: only when interrupted."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    tracker: str | None = None
    """An accelerate tracker by name: tensorboard, wandb, mlflow ...; None: none."""


class TrainConfig(LoopConfig):
    """The loop over rows of tasks."""

    packing: Literal["packed", "none"] = "packed"
    """packed: examples share blocks, isolated; none: padded rows, length-sorted. The same loss either way."""
    packing_window: int = Field(2048, ge=1)
    """Examples among which best fit looks for what fills a block."""
    prompt_weight: float = Field(0.0, ge=0, le=1)
    """Loss weight of prompt tokens; target tokens weigh 1."""
    mixing_temperature: float = Field(1.0, ge=1)
    """Tasks are drawn in proportion to rows^(1/T); 1: proportional, large: equal."""
    mixture_cap: int | None = Field(None, ge=1)
    """A task counts as at most so many rows in the mixture (Raffel et al., 2020); None: no cap."""
    mixture_weights: dict[str, float] = {}
    """Explicit share of each task, in any unit; empty: by rows."""
    eval_max_rows: int = Field(200, ge=1)
    """Validation rows of each task looked at during training."""
    select_by: Literal["loss", "score"] = "loss"
    """Best checkpoint by the macro-average over tasks of validation nats per target token, or of each first metric."""


class BlockConfig(LoopConfig):
    """The loop over running text."""

    blocks: Literal["grid", "random"] = "grid"
    """grid: blocks begin every `stride` tokens, and all are seen, in a new order, before one comes again. random: they
    begin anywhere."""
    stride: int | None = Field(None, ge=1)
    """Tokens between the beginnings of two blocks of the grid; None: the block size, so that none overlap."""
    isolated: bool = False
    """Documents that share a block neither attend to nor predict one another."""
    eval_max_blocks: int | None = Field(None, ge=1)
    """Blocks of the validation text looked at during training; None: all. The last score is always of all."""

    @model_validator(mode="after")
    def _one_way(self) -> "BlockConfig":
        if self.blocks == "random" and self.stride is not None:
            raise ValueError("stride belongs to `blocks: grid`; blocks at random offsets have none")
        return self


class EvalConfig(Settings):
    """How a model is scored."""

    split: Split = "test"
    """Split that final scores are taken on."""
    max_rows: int | None = Field(None, ge=1)
    """Score the first so many rows of each task; None: all."""
    batch_tokens: int = Field(8192, ge=16)
    """Tokens of one forward pass; a limit on memory, results stay the same."""
    max_free_rows: int = Field(200, ge=1)
    """Rows that are also answered freely: of a closed task, to count answers outside its set; of a task without text
    metrics, one sampled text each, to be described."""
    hub_metrics: list[str] = []
    """Further metrics of texts, by hub name or path of a script, through `evaluate.load`; their code is run."""
    num_bootstrap: int = Field(1000, ge=10)
    """Resamples behind each 95 % interval."""
    rouge_tokenizer: dict[str, Literal["words", "eojeol", "chars", "morphemes"]] = {"en": "words", "ko": "eojeol"}
    """ROUGE's text tokenizer by language; a language not named uses eojeol (split at white space)."""


class FewshotConfig(Settings):
    """How a model is prompted that was never taught the tasks."""

    shots: list[int] = Field([0, 1, 4, 8], min_length=1)
    """Numbers of solved examples (demonstrations) before each question."""
    draws: int = Field(5, ge=1)
    """Sets of demonstrations drawn from the training split, each a function of the seed; zero-shot has one."""
    balanced: bool = False
    """Draw demonstrations of a closed task from its classes in turns."""
    separator: str = "\n\n"
    """What stands between demonstrations. A tokenizer that cannot write line breaks gets another mark for each."""
    rule: Literal["raw", "per_token", "per_byte", "calibrated"] = "raw"
    """Which likelihood of a choice predicts: summed, per token, per byte of text, or over that after a content-free
    question (Zhao et al., 2021). All four are reported."""

    @field_validator("shots")
    @classmethod
    def _in_order(cls, value: list[int]) -> list[int]:
        if min(value) < 0:
            raise ValueError(f"a number of demonstrations cannot be negative, found {min(value)}")
        return sorted(set(value))


class RunConfig(Settings):
    """A whole run."""

    tasks: list[str] = Field(["gen", "summ", "nli", "qa", "cls"], min_length=1)
    """Tasks taught to the one model."""
    seed: int = Field(7, ge=0)
    """Everything random is a function of it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto: the accelerator if there is one."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    fewshot: FewshotConfig = FewshotConfig()


class TextConfig(Settings):
    """Running text: what a tokenizer and an empty model learn from. Exactly one of `files`, `world`."""

    files: dict[Literal["train", "validation"], list[str]] | None = None
    """Local files of each split, relative to `root`, read one after the other; `*`, `?` and `**` match names."""
    world: dict[Literal["train", "validation"], PositiveInt] | None = None
    """Number of documents of each split of the embedded world's running text."""
    root: Path | None = None
    """Folder that relative file names start from; None: the environment's MULTITASK_DATA, else the working folder."""
    format: Literal["text", "jsonl"] | None = None
    """File format; None: by extension (`.gz` may follow)."""
    fields: list[str] = Field(["text"], min_length=1)
    """Of JSONL: the fields that make a document, joined by a line break."""
    encoding: Literal["utf-8", "cp949"] = "utf-8"
    """Text encoding; utf-8 with or without BOM."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What a document is in plain text: the whole file, a stretch between empty lines, a line that is not empty."""
    before: str | None = None
    """Token put before each document, for instance `<s>`; None: none."""
    after: str | None = None
    """Token put after each document; None: the tokenizer's eos, empty: none."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the characters, at the end of the training text, that is the validation text where none is named; the
    document at the border is cut in two."""
    cache: Path | None = None
    """Folder of encoded text; None: `multitask` in the user's cache folder (XDG_CACHE_HOME)."""

    @field_validator("files", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return {k: [v] if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_origin(self) -> "TextConfig":
        given = [name for name in ("files", "world") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of files, world is needed, found {', '.join(given) or 'none'}")
        origin: Any = self.files if self.files is not None else self.world
        for split in ("train", *origin):
            if not origin.get(split):
                raise ValueError(f"{given[0]}: there is nothing for {split}; expected at least one")
        return self


class SamplingConfig(Settings):
    """How text is written. Without temperature, top_k and top_p the likeliest token is taken each time (greedy)."""

    temperature: float | None = Field(None, allow_inf_nan=False)
    """Scores are divided by it before a token is drawn: below 1 the likely become likelier; None: 1, where drawn."""
    top_k: int | None = Field(None, ge=1)
    """Draw among so many of the likeliest tokens; None: all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw among the likeliest tokens that together reach this probability (Holtzman et al., 2020); None: all."""
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Above 1, tokens of the prompt and of the text so far become less likely (Keskar et al., 2019)."""
    beams: int = Field(1, ge=1)
    """Continuations kept side by side, of which the likeliest is taken (beam search); 1: none but the text itself."""
    num_samples: int = Field(1, ge=1)
    """Texts for each prompt."""
    seed: int = Field(0, ge=0)
    """What is drawn is a function of it, of the prompt's place, the sample's number and the token's place."""

    @property
    def is_sampled(self) -> bool:
        """True when tokens are drawn."""
        return (self.temperature, self.top_k, self.top_p) != (None, None, None)

    @field_validator("temperature")
    @classmethod
    def _warm(cls, value: float | None) -> float | None:
        if value is not None and value < 0.001:  # smaller quotients leave float32
            raise ValueError(
                f"{value:g} is too cold to draw at, expected 0.001 or more; without temperature, top_k and top_p the "
                "likeliest token is taken (greedy)"
            )
        return value

    @field_validator("beams")
    @classmethod
    def _searched(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and any(info.data.get(name) is not None for name in ("temperature", "top_k", "top_p")):
            raise ValueError(
                f"{value} beams draw nothing, they search for the likeliest text: leave out one of the two"
            )
        return value

    @field_validator("num_samples")
    @classmethod
    def _differing(cls, value: int, info: ValidationInfo) -> int:
        beams = info.data.get("beams", 1)
        is_drawn = any(info.data.get(name) is not None for name in ("temperature", "top_k", "top_p"))
        if value > beams and not is_drawn:
            found = f"{beams} beams find no more" if beams > 1 else "greedy texts are all alike"
            raise ValueError(
                f"{value} texts of a prompt, and {found}: draw them with a temperature, top_k or top_p, or search with "
                f"at least {value} beams"
            )
        return value


class TokenizerConfig(Settings):
    """A tokenizer trained here."""

    kind: Literal["bytes", "metaspace", "characters"] = "bytes"
    """bytes: byte-level BPE, GPT-2's kind, any text survives; metaspace: BPE in which `▁` begins a word, KoGPT2's kind;
    characters: every character of the text is a token."""
    vocab_size: int | None = Field(None, ge=2)
    """Tokens of text, special tokens not counted; None: as many as the text gives, at most 8000. Not for characters."""
    min_frequency: int = Field(2, ge=1)
    """A pair of tokens that occurs less often is not merged."""
    prefix_space: bool | None = None
    """Of bytes: read a text as if a space stood before it, so that its first word is the token that it is elsewhere.
    None: yes, except for files of `--from`; GPT-2 itself does not."""
    clean: bool = False
    """Of metaspace: BERT's clean-up first; control characters go, line breaks and tabs become spaces."""
    characters: str = ""
    """Of characters: further ones that the text may lack."""
    unknown: Literal["error", "unk"] = "error"
    """Of characters, what one does that the text lacked. error: there is no token for it, and reading it stops with its
    name and place (plain transformers drops it); unk: it becomes `<unk>`."""
    separator: str | None = None
    """Token between documents, eos of the tokenizer; None: `<|endoftext|>`, of metaspace `</s>` (bos is `<s>`)."""
    tasks: Literal["all", "none"] | list[str] = "all"
    """Tasks whose tokens are built in."""
    tokens: list[str] = []
    """Further special tokens."""
    spare: int = Field(100, ge=0)
    """Number of special tokens left free for later, `<|unused0|>` and on."""
    curve: list[int] = []
    """Vocabulary sizes at which compression is measured too; empty: no curve."""

    @field_validator("tokens", "curve")
    @classmethod
    def _each_once(cls, value: list[Any]) -> list[Any]:
        return list(dict.fromkeys(value))

    @model_validator(mode="after")
    def _of_its_kind(self) -> "TokenizerConfig":
        for kind, names in {
            "bytes": ("prefix_space",),
            "metaspace": ("clean",),
            "characters": ("characters", "unknown"),
        }.items():
            for name in names:
                if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} belongs to kind {kind}, found kind {self.kind}; leave it out")
        if self.kind == "characters" and (self.vocab_size is not None or self.curve):
            raise ValueError("of kind characters there is a token for each; leave out vocab_size and curve")
        for token in [*self.tokens, *([] if self.separator is None else [self.separator])]:
            if len(token) < 2 or token != token.strip():
                raise ValueError(
                    f"'{token}' cannot be a special token: expected two characters or more, no white space around them"
                )
        if any(size < 2 for size in self.curve):
            raise ValueError(f"curve: a vocabulary of {min(self.curve)}; expected at least 2 tokens")
        return self


class PretrainConfig(Settings):
    """A run over running text."""

    seed: int = Field(7, ge=0)
    """Everything random is a function of it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto: the accelerator if there is one."""
    text: TextConfig
    """What is read; its settings stand below."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """What is trained on the text when neither `model.tokenizer` nor `model.name` brings a tokenizer."""
    model: ModelConfig = ModelConfig()
    train: BlockConfig = BlockConfig()
    sample_prompt: str = ""
    """What a sample is written after at each validation; empty: the token between documents."""
    sample_tokens: int = Field(60, ge=0)
    """Tokens of the sample; 0: none."""

    @model_validator(mode="after")
    def _one_size(self) -> "PretrainConfig":
        if self.model.vocab_size != ModelConfig().vocab_size:
            raise ValueError("model.vocab_size is of tokenizers that `train` makes; here it is tokenizer.vocab_size")
        return self


Arm = Literal["trivial", "prompted", "single", "single-lora", "multitask", "multitask-lora"]


class BenchmarkConfig(Settings):
    """A suite: the same rows scored for models tuned in several ways, for prompting, and for no model at all."""

    base: str | None = "demo_base"
    """What is prompted and tuned: the recipe of a base (`configs/<name>.yaml`, trained when it is first needed and
    kept), a hub name, or a model folder. None: tuned arms begin with an empty model, and nothing is prompted."""
    arms: list[Arm] = Field(["trivial", "prompted", "single", "multitask", "multitask-lora"], min_length=1)
    """trivial: no model. prompted: the base with `run.fewshot.shots` demonstrations. single, multitask: tuned on each
    task alone, on all together; with `-lora`, by LoRA."""
    seeds: list[int] = Field([7, 8], min_length=1)
    """Each tuned arm is trained once with each."""
    run: dict[str, Any] = {}
    """Settings of every arm, as of `train`."""
    single: dict[str, Any] = {}
    """Settings on top for single-task arms."""
    lora: dict[str, Any] = {}
    """Settings on top for LoRA arms."""


def shipped(folder: str) -> Path:
    """`tasks` or `configs` as shipped: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / folder
    return inside if inside.is_dir() else Path(__file__).parents[2] / folder


def merged(settings: Mapping[str, Any], *overlays: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them, section by section."""
    result = dict(settings)
    for overlay in overlays:
        for name, value in overlay.items():
            inner = result.get(name)
            result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping; raises InputError with file and line."""
    try:
        loaded = yaml.safe_load(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        near = suggest(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        raise InputError(f"{path}: no such file; {near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: a mapping of settings was expected, found {type(loaded).__name__}")
    return loaded


def override(settings: dict[str, Any], flags: list[str]) -> dict[str, Any]:
    """A copy of `settings` with `a.b=value` flags applied; values are read as YAML (`null`, `1e-3`, `[a, b]`)."""
    result = {**settings}
    for flag in flags:
        path, sign, text = flag.partition("=")
        if not sign or not path:
            raise InputError(f"--set {flag}: expected name=value, for instance train.learning_rate=3e-4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {flag}: '{text}' is not a YAML value; put quotes around it") from None
        if isinstance(value, str) and value == text.strip():  # YAML 1.1 reads 3e-4 as text; quoted text stays text
            with suppress(ValueError):
                value = float(value)
        node, parts = result, path.split(".")
        for part in parts[:-1]:
            node[part] = {**node[part]} if isinstance(node.get(part), dict) else {}
            node = node[part]
        node[parts[-1]] = value
        if parts[-1] == "shape":  # sizes that a file wrote give way, those of later flags do not
            for name in ("n_layer", "n_head", "n_embd", "n_positions"):
                node.pop(name, None)
    return result


def load(kind: type[T], settings: dict[str, Any], flags: list[str] | None = None, where: str = "settings") -> T:
    """Check everything at once. Raises one InputError with a line per problem: path, what is wrong, nearest name."""
    try:
        return kind.model_validate(override(settings, flags or []))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            if problem["loc"][-1:] == ("str",) and problem["type"] == "string_type":
                continue  # the other half of `name | source written out`
            path = ".".join(str(p) for p in problem["loc"] if "Config" not in str(p))
            text = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                text = f"no such setting; {suggest(str(problem['loc'][-1]), _fields(kind, problem['loc'][:-1]))}"
            elif problem["type"] != "value_error":
                text = f"{text}, found {problem['input']!r}"
            lines.append(f"{where}: {path or '(top)'}: {text}")
        raise InputError("\n".join(dict.fromkeys(lines))) from None


def _fields(kind: type[Settings], loc: tuple[Any, ...]) -> list[str]:
    """Names of the settings beside the one at `loc`."""
    for part in loc:
        if part in kind.model_fields:
            inner = kind.model_fields[part].annotation
            if isinstance(inner, type) and issubclass(inner, Settings):
                kind = inner
        elif "SourceConfig" in str(part):
            kind = SourceConfig
    return list(kind.model_fields)


def describe(kind: type[Settings] = RunConfig, path: str = "") -> list[str]:
    """Lines of a Markdown table: every setting by dotted name, its default, its meaning."""
    lines = []
    for name, item in kind.model_fields.items():
        default = item.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            lines += describe(type(default), f"{path}{name}.")
            continue
        shown = "(needed)" if item.is_required() else f"`{default!r}`".replace("PydanticUndefined", "")
        meaning = " ".join((item.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{path}{name}` | {shown} | {meaning} |")
    return lines
