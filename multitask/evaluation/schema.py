"""Results files as pydantic models: built and read through the same classes."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class _Score(_Part):
    value: float
    low: float | None = None
    high: float | None = None


class Spread(_Part):
    """A mean over draws, their standard deviation, and a 95 % interval over rows."""

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


class Draw(_Part):
    """One set of demonstrations and the score with it."""

    seed: int | None = None
    value: float
    num_fitted: float | None = None


class Shots(Spread):
    """Scores with so many demonstrations, over draws."""

    metric: str
    draws: list[Draw] = []
    metrics: dict[str, Spread] = {}
    rules: dict[str, Spread] = {}


class TaskScores(_Part):
    """One task's part of a results file."""

    metrics: dict[str, _Score] = {}
    baselines: dict[str, dict[str, _Score]] = {}
    per_shot: dict[int, Shots] = {}


class Data(_Part):
    """Which rows were scored."""

    sha256: list[str] = []
    split: str
    num_rows: int
    num_dropped: int = 0


class Results(_Part):
    """A results file, as far as a report reads it."""

    kind: str
    arm: str
    seed: int
    data: dict[str, Data]
    tasks: dict[str, TaskScores]
    config: dict[str, Any] = {}
    model: dict[str, Any] = {}
    cost: dict[str, float | dict[str, Any] | None] = {}
    versions: dict[str, str] = {}
    commit: str | None = None
    hardware: dict[str, Any] = {}
