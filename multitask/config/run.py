"""Settings of whole runs: fine-tuning, pretraining, a benchmark suite."""

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from multitask.config.base import Settings
from multitask.config.data import DataConfig, TextConfig
from multitask.config.evaluation import EvalConfig, FewshotConfig
from multitask.config.model import AdapterConfig, ModelConfig, TokenizerConfig
from multitask.config.train import BlockConfig, TrainConfig


class RunConfig(Settings):
    """A whole run."""

    tasks: list[str] = Field(["gen", "summ", "nli", "qa", "cls"], min_length=1)
    """Tasks that the one model is trained on."""
    tasks_dirs: list[str] = []
    """Folders with further task plugins, relative to this file or else to the working directory. A run keeps them;
    `--tasks-dir` takes their place."""
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

    @model_validator(mode="after")
    def _whole_matrices(self) -> "RunConfig":
        if self.train.optimizer == "muon" and self.adapter.kind == "lora":
            raise ValueError("train.optimizer: muon trains whole matrices, and LoRA trains none; take adamw")
        return self


class PretrainConfig(Settings):
    """Pretraining on a plain text corpus."""

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


Language = Literal["en", "ko"]


class ReportConfig(Settings):
    """The report of a suite."""

    language: Language = "en"
    """English, or Korean: of all its texts but the names of arms, tasks and metrics."""


Arm = Literal["trivial", "prompted", "single", "single-lora", "multitask", "multitask-lora"]


class BenchmarkConfig(Settings):
    """A suite: the same rows scored for models tuned in several ways, for prompting, and for no model at all."""

    base: str | None = "demo_model"
    """What is prompted and tuned: the recipe of a base (`configs/<name>.yaml`, trained when it is first needed and
    kept), a hub name, or a model folder. None: tuned arms begin with a randomly initialised model, and nothing is
    prompted."""
    arms: list[Arm] = Field(["trivial", "prompted", "single", "multitask", "multitask-lora"], min_length=1)
    """trivial: no model. prompted: the base with `run.fewshot.shots` demonstrations. single, multitask: tuned on each
    task alone, on all together; with `-lora`, by LoRA."""
    seeds: list[int] = Field([7, 8], min_length=1)
    """Each tuned arm is trained once with each."""
    run: dict[str, object] = {}
    """Settings of every arm, as of `train`."""
    single: dict[str, object] = {}
    """Settings on top for single-task arms."""
    lora: dict[str, object] = {}
    """Settings on top for LoRA arms."""
    report: ReportConfig = ReportConfig()
