"""Settings of the training loop."""

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from multitask.config.base import Settings


class LoopConfig(Settings):
    """The one loop."""

    replaces = {"epochs": ("max_steps",)}

    epochs: float = Field(3.0, gt=0)
    """Passes over as many rows as all tasks have together, counted in tokens of the mixture; over the text."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; None: what `epochs` amounts to."""
    batch_tokens: int = Field(16384, ge=16)
    """Tokens of one step, over all micro-steps and processes; rounded down to whole blocks, at least one."""
    micro_batch_tokens: int | None = Field(None, ge=16)
    """Tokens of one forward-backward pass; lower it when memory runs out, results stay the same. None: 4,096; on a GPU
    by its free memory and the model's size, from 1,024 to 65,536."""
    block_size: int | None = Field(None, ge=16)
    """Window of one example, in tokens; None: the model's `n_positions`, at most `batch_tokens`."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; None: 3e-3 * sqrt(128 / n_embd) for a new model, 2e-4 * 768 / width for a trained one
    (2e-4 for one of the hub), 1e-3 for LoRA."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up, towards `final_learning_rate`."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Learning rate that the schedule reaches after the last step."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear rise; at most a tenth of all steps are used."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the matrices of layers, with updates of AdamW's size; AdamW for embeddings, biases and norms."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of matrices; biases, norms and embeddings have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """AdamW's second moment."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where it is fast (measured), else fp16 on a GPU, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder blocks (`torch.compile`); auto: on a GPU in half precision, without dropout, in runs of at
    least 1,000 forward passes. It takes 10 to 20 s at the start of a run. on: an error where it cannot be done."""
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

    @property
    def length(self) -> str:
        """The setting that decides how many steps there are, for messages: `train.epochs 3`."""
        return f"train.epochs {self.epochs:g}" if self.max_steps is None else f"train.max_steps {self.max_steps}"


class TrainConfig(LoopConfig):
    """The loop over rows of tasks."""

    packing: Literal["packed", "none"] = "packed"
    """packed: examples share blocks, document_masking; none: padded rows, length-sorted. The same loss either way."""
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
    """The loop over a plain text corpus."""

    renamed = {"isolated": "document_masking"}

    blocks: Literal["grid", "random"] = "grid"
    """grid: blocks begin every `stride` tokens, and all are seen, in a new order, before one comes again. random: they
    begin anywhere."""
    stride: int | None = Field(None, ge=1)
    """Tokens between the beginnings of two blocks of the grid; None: the block size, so that none overlap."""
    document_masking: bool = False
    """Documents that share a block neither attend to nor predict one another."""
    eval_max_blocks: int | None = Field(None, ge=1)
    """Blocks of the validation text looked at during training; None: all. The last score is always of all."""

    @model_validator(mode="after")
    def _one_way(self) -> "BlockConfig":
        if self.blocks == "random" and self.stride is not None:
            raise ValueError("stride belongs to `blocks: grid`; blocks at random offsets have none")
        return self
