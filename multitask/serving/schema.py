"""Requests and answers of the HTTP API.

`PredictRequest(rows=[{"document": "A cat sat."}])`; the completion routes have the names and meanings of OpenAI's.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Kind = Literal["tuned", "lora", "prompted"]
Reason = Literal["stop", "length"]
MAX_ROWS = 64
"""Rows of one request: rows of a task, or prompts times `n`."""
MAX_TEXT = 200_000
"""Characters of a text."""
MAX_REPETITIONS = 128
"""Texts of a list field; the time that a prompt takes to encode grows with their square."""
MAX_LIST_TEXTS = 2048
"""Texts of all list fields of a request."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
MIN_TEMPERATURE = 0.001
MIN_PENALTY = 0.01
"""Of repetition: a smaller one makes scores infinite, an error that ends all rows of a batch."""


def _warm(value: float) -> float:
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(f"expected 0 (greedy), or {MIN_TEMPERATURE} or more")
    return value


Temperature = Annotated[float, Field(ge=0, le=10), AfterValidator(_warm)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


def _few_texts(rows: "list[dict[str, str | list[str]]]") -> "list[dict[str, str | list[str]]]":
    number = sum(len(given) for row in rows for given in row.values() if isinstance(given, list))
    if number > MAX_LIST_TEXTS:
        raise ValueError(f"the list fields have {number:,} texts, expected at most {MAX_LIST_TEXTS:,}; send fewer rows")
    return rows


class Request(BaseModel):
    """A request; names that it does not have are an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PredictRequest(Request):
    """Rows of a task to answer. Without a temperature, or with 0, the most likely token is taken (greedy)."""

    rows: Annotated[
        list[dict[str, Text | Annotated[list[Text], Field(max_length=MAX_REPETITIONS)]]], AfterValidator(_few_texts)
    ] = Field(min_length=1, max_length=MAX_ROWS)
    arm: str | None = None
    max_new_tokens: int | None = Field(None, ge=1, le=4096)
    temperature: Temperature | None = None
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=MIN_PENALTY, le=10)
    seed: Seed = 0
    tokens: bool = False
    stream: bool = False


class StreamOptions(Request):
    """Whether the last event of a stream has the numbers of tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(Request):
    """A text to continue. Options of OpenAI's API that are not supported are an error unless they have no effect."""

    model: str
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_ROWS)]
    max_tokens: int | None = Field(16, ge=1, le=4096)
    temperature: Temperature | None = 1.0
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=MAX_ROWS)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Seed | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class CandidateToken(BaseModel):
    """One of the most likely tokens."""

    text: str
    logprob: float


class Token(CandidateToken):
    """A token of a completion; logprob: under the model's own distribution, before temperature and the like."""

    top: list[CandidateToken]


class Prediction(BaseModel):
    """The answer to one row.

    prediction: the completion as metrics compare it; of a closed task without sampling, the most likely choice.
    classes: of a closed task, the probabilities of its choices among themselves. prompt: the text that the model was
    given. ms: from the request to the answer.
    """

    prediction: str
    completion: str
    finish_reason: Reason
    classes: dict[str, float] | None = None
    prompt: str
    demonstrations: list[str] = []
    is_truncated: bool = False
    tokens: list[Token] | None = None
    ms: float = 0.0


class Predictions(BaseModel):
    """Answers, in the order of the rows."""

    task: str
    arm: str
    predictions: list[Prediction]


class ArmInfo(BaseModel):
    """A way to answer a task: a trained model, or one that is prompted with demonstrations in plain text."""

    name: str
    model: str
    kind: Kind
    shots: int


class FieldInfo(BaseModel):
    """A field of a prompt; a list has a text for each repetition of its segment."""

    name: str
    is_optional: bool
    is_list: bool


class TaskInfo(BaseModel):
    """A task, with rows to try and the arms that answer it."""

    name: str
    pattern: str
    fields: list[FieldInfo]
    target: str
    is_closed: bool
    choices: dict[str, list[str]]
    max_new_tokens: int
    examples: list[dict[str, str | list[str]]]
    arms: list[ArmInfo]


class Tasks(BaseModel):
    """All tasks that are served."""

    tasks: list[TaskInfo]


class Logprobs(BaseModel):
    """As OpenAI's: one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Reason | None = None


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """Texts, or a part of them in a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelInfo(BaseModel):
    """A loaded model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "multitask"


class Models(BaseModel):
    """All loaded models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class ErrorInfo(BaseModel):
    """What is wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorInfo

    @classmethod
    def of(cls, message: str, type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
        """As JSON; halves of surrogate pairs in a name that a request gave become question marks."""
        shown, named = (text and text.encode(errors="replace").decode() for text in (message, param))
        return cls(error=ErrorInfo(message=shown or "", type=type, param=named, code=code)).model_dump()
