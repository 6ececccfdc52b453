"""Progress of long work: events, one after another, to whoever wants to show them.

`report({"event": "note", "text": "..."})`; the events `step` and `validation` are also the lines of `metrics.jsonl`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

Json = dict[str, Any]
"""A JSON or YAML object, as read or as it will be written."""


class TextEvent(TypedDict):
    """Something to tell: a note, or a warning."""

    event: Literal["note", "warning"]
    text: str


class StartEvent(TypedDict):
    """Training starts, or continues at `step`."""

    event: Literal["start"]
    step: int
    max_steps: int
    device: str
    precision: str
    tokens_per_step: int
    parameters: int
    trainable_parameters: int
    sampling_rates: Mapping[str, float]
    data: Mapping[str, Json]
    """By task, or `text`: what the report of the encoded rows, or of the token file, holds."""


class StepEvent(TypedDict):
    """Steps of training since the last such event; losses in nats per target token, by task."""

    event: Literal["step"]
    step: int
    max_steps: int
    tokens: int
    loss: dict[str, float]
    learning_rate: float
    epochs: dict[str, float]
    tokens_per_s: float
    peak_memory_bytes: int


class ValidationScores(TypedDict, total=False):
    """What a validation measures beside the loss."""

    score: dict[str, float]
    """Each task's first metric, where it selects the best weights."""
    sample: str
    """A generated text, while pretraining."""


class ValidationEvent(ValidationScores):
    """A validation during training; losses in nats per target token, by task."""

    event: Literal["validation"]
    step: int
    tokens: int
    loss: dict[str, float]
    is_best: bool


class SavedEvent(TypedDict):
    """A checkpoint was written."""

    event: Literal["saved"]
    step: int
    path: str


class EncodingEvent(TypedDict):
    """How far the encoding of a plain text is."""

    event: Literal["encoding"]
    split: str
    num_characters: int
    num_tokens: int
    elapsed_s: float


class PromptedEvent(TypedDict):
    """How many rows an arm of a task has answered."""

    event: Literal["prompted"]
    task: str
    arm: str
    rows: int


class TaskEvent(TypedDict):
    """A task was scored; `result` is its part of the results file."""

    event: Literal["task"]
    task: str
    result: Json
    elapsed_s: float


class ArmEvent(TypedDict):
    """An arm of a benchmark suite begins."""

    event: Literal["arm"]
    arm: str
    number: int
    of: int
    kept: bool


class DoneEvent(TypedDict):
    """A run is complete; `results` is its results file."""

    event: Literal["done"]
    out: str
    results: Json


Event = (
    TextEvent
    | StartEvent
    | StepEvent
    | ValidationEvent
    | SavedEvent
    | EncodingEvent
    | PromptedEvent
    | TaskEvent
    | ArmEvent
    | DoneEvent
)
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Shows nothing."""
