"""Settings of the model, its adapter and its tokenizer."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from multitask.config.base import Settings

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
    """The one shared model."""

    replaces = {"shape": ("n_layer", "n_head", "n_embd", "n_positions")}

    name: str | None = None
    """Hub name or local folder; None: a randomly initialised GPT-2 of the size below."""
    revision: str | None = None
    """Commit, branch or tag of the hub model."""
    tokenizer: str | None = None
    """Hub name or local folder; None: the model's own, or for a new model one trained on the run's training rows."""
    arch: Literal["gpt2", "bigram"] = "gpt2"
    """gpt2, or the next token from the current one alone: the simplest baseline of all language models."""
    hidden: list[Annotated[int, Field(ge=1)]] = []
    """bigram: widths of the layers between a token and the next; empty: a table of all pairs."""
    shape: Literal["nano", "mini", "gpt2", "medium", "large", "xl"] | None = None
    """Size of a new model by name: nano (4 layers, width 128, window 256), mini (6, 256, 512), and OpenAI's four
    (12, 768; 24, 1024; 36, 1280; 48, 1600; window 1024). What is set beside it wins."""
    vocab_size: int = Field(2000, ge=300)
    """Tokens of a tokenizer trained here, task tokens not counted."""
    n_layer: int = Field(4, ge=1)
    """Layers of a new model."""
    n_head: int = Field(4, ge=1)
    """Attention heads of a new model."""
    n_embd: int = Field(128, ge=8)
    """Width of a new model."""
    n_positions: int = Field(256, ge=16)
    """Context window of a new model, in tokens."""
    initializer_range: float | None = Field(None, gt=0)
    """Standard deviation of a new model's matrices; None: 0.8 / sqrt(n_embd): small widths learn sooner."""
    embedding_range: float | None = Field(None, gt=0)
    """Standard deviation of a new model's token and position embeddings; None: that of its matrices. Rows that are
    large beside what the layers add (1, PyTorch's own) let a model memorise a short text in few steps."""
    tied: bool = True
    """A new model's output matrix is its token embeddings, as in GPT-2; False: a matrix of its own."""
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
    target_modules: list[str] = []
    """Names of the linear layers that get an update; empty: all but the output layer."""
    merge: bool = False
    """Write a plain model with the updates added in, in place of an adapter and its base."""


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
