"""Settings of scoring, prompting and generation."""

import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from multitask.config.base import Settings
from multitask.config.data import Split
from multitask.errors import InputError


class EvalConfig(Settings):
    """How a model is scored."""

    split: Split = "test"
    """Split that final scores are taken on."""
    max_rows: int | None = Field(None, ge=1)
    """Score the first so many rows of each task; None: all."""
    batch_tokens: int | None = Field(None, ge=16)
    """Tokens of one forward pass; a limit on memory, results stay the same. None: 8,192; on a large GPU more, by its
    memory and the model's size."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and products while rows are scored and answered; bf16 is faster where there is hardware for it and
    halves weights and keys once the model is loaded; the nats of a token differ by some hundredths. auto: bf16 on a GPU
    of compute capability 8 and newer, else fp32."""
    max_free_rows: int = Field(200, ge=1)
    """Rows that are also answered freely: of a closed task, to count answers outside its set; of a task scored
    by likelihood, one sampled text each, to be described."""
    metrics: dict[str, list[str]] = {}
    """Further metrics by task, beside the task's own: a Python function, `my_metrics.py:length_ratio` or
    `module:function`, with `:lower` behind where less is better; or the name of one of ours."""
    hub_metrics: list[str] = []
    """Further metrics of texts, by hub name or path of a script, through `evaluate.load`; their code is run."""
    num_bootstrap: int = Field(1000, ge=10)
    """Resamples behind each 95 % interval."""
    rouge_tokenizer: dict[str, Literal["words", "eojeol", "chars", "morphemes"]] = {"en": "words", "ko": "eojeol"}
    """ROUGE's text tokenizer by language; a language not named uses eojeol (split at white space)."""


class PromptConfig(Settings):
    """A prompt template, written in the settings."""

    template: str
    """Text with `{field}` names, ending where the answer begins: `"{context}\\nQ: {question}\\nA:"`; in closed tasks
    `{choices}` stands for all words."""
    name: str | None = None
    """What results call it; None: `settings-1` by its place. One with the name of a task's own template replaces it."""
    words: list[str] | None = None
    """In closed tasks the word of each choice, in order; None: the words of the labels."""
    stop: list[str] | None = None
    """Texts that end a generated answer; None: a line break, and the template's first word."""
    sentences: int | None = Field(None, ge=1)
    """Take the first so many sentences of a generated answer; None: all."""


class FewshotConfig(Settings):
    """How an untuned model is prompted."""

    shots: list[int] = Field([0, 1, 4, 8], min_length=1)
    """Numbers of solved examples (demonstrations) before each question."""
    draws: int = Field(5, ge=1)
    """Sets of demonstrations drawn from the training split, each a function of the seed; zero-shot has one."""
    demonstrations: Literal["random", "balanced", "nearest"] = "random"
    """Which training rows are demonstrations: drawn; of a closed task drawn from its classes in turns; or for each row
    those whose inputs are most like its own (TF-IDF of character n-grams), the most similar next to the question. The
    nearest are not drawn, so there is one set."""
    separator: str = "\n\n"
    """What stands between demonstrations. A tokenizer that cannot write line breaks gets another mark for each."""
    rule: Literal["best", "raw", "per_token", "per_byte", "calibrated", "batch_calibrated", "domain_calibrated"] = (
        "best"
    )
    """Which likelihood of a choice predicts: summed, per token, per byte of text, or over that after a content-free
    question (Zhao et al., 2021), after random words of the training inputs (Fei et al., 2023), or on average over all
    scored inputs of a language, without their labels (Zhou et al., 2024). `best`: chosen on validation rows together
    with the template. All are reported."""

    chat: Literal["auto", "on", "off"] = "auto"
    """Demonstrations and question as turns of the tokenizer's chat template; auto: with a tokenizer that has one, it is
    chosen on validation rows like a template (`templates: first` chooses nothing and is plain text)."""
    templates: str = "best"
    """Which of a task's prompt templates is used, by language and number of shots: the `best` on validation rows; the
    `first` (nothing is chosen: no rule, no chat, and no validation rows are scored); the one of this NAME; `all`: the
    best, and scores of all others on the same rows beside it."""
    max_validation_rows: int = Field(100, ge=1)
    """Validation rows of each language that templates and rules are chosen on."""
    prompts: dict[str, dict[str, list[PromptConfig]]] = {}
    """Further templates by task and language, before the task's own; or the name of a YAML or JSON file that holds
    them."""

    @model_validator(mode="before")
    @classmethod
    def _accept_balanced(cls, values: Any) -> Any:
        """Reads `balanced: true`, of the release before."""
        if not isinstance(values, dict) or "balanced" not in values:
            return values
        if "demonstrations" in values:
            raise ValueError("'balanced' is the old form of 'demonstrations: balanced', and both are given")
        if values["balanced"]:  # false, which runs of that release hold, was and is the default
            text = "'balanced: true' is now 'demonstrations: balanced'; the old key is read in this release only"
            warnings.warn(text, FutureWarning, stacklevel=2)
        rest = {name: value for name, value in values.items() if name != "balanced"}
        return rest | ({"demonstrations": "balanced"} if values["balanced"] else {})

    @field_validator("prompts", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        if not isinstance(value, str | Path):
            return value
        from multitask.config.loading import read_yaml

        try:
            return read_yaml(Path(value))
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("shots")
    @classmethod
    def _in_order(cls, value: list[int]) -> list[int]:
        if min(value) < 0:
            raise ValueError(f"a number of demonstrations cannot be negative, found {min(value)}")
        return sorted(set(value))


class SamplingConfig(Settings):
    """How text is generated. Without temperature, top_k and top_p the most likely token is taken each time (greedy)."""

    temperature: float | None = Field(None, allow_inf_nan=False)
    """Scores are divided by it before a token is drawn: below 1 the likely become likelier; None: 1, where drawn."""
    top_k: int | None = Field(None, ge=1)
    """Sample from this many of the most likely tokens; None: all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the most likely tokens that together reach this probability (Holtzman et al., 2020); None: all."""
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Above 1, tokens of the prompt and of the text so far become less likely (Keskar et al., 2019)."""
    beams: int = Field(1, ge=1)
    """Continuations kept side by side, of which the most likely is taken (beam search); 1: none but the text itself."""
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
                "most likely token is taken (greedy)"
            )
        return value

    @field_validator("beams")
    @classmethod
    def _searched(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and any(info.data.get(name) is not None for name in ("temperature", "top_k", "top_p")):
            raise ValueError(
                f"{value} beams draw nothing, they search for the most likely text: leave out one of the two"
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
