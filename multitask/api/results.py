"""What the commands return in Python: a results file as a mapping, by attributes, or as a table.

`found = train(tasks="qa")`: `found["tasks"]["qa"]`, `found.tasks["qa"].metrics["f1"].value`, `found.to_frame()`.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from multitask.errors import InputError

if TYPE_CHECKING:
    from multitask.evaluation.schema import Cost, Data, Results, TaskScores


class ScoreRow(NamedTuple):
    """One line of the table: a metric of a task, of a prompted model with one number of demonstrations.

    low, high: the 95 % interval over rows. best_baseline: the best trivial one, by name.
    """

    task: str
    shots: int | None
    metric: str
    value: float
    low: float | None
    high: float | None
    num_examples: int
    best_baseline: str | None
    baseline_value: float | None


class RunResults(dict[str, Any]):
    """What a results file holds, as JSON; attributes have it as objects."""

    @cached_property
    def record(self) -> "Results":
        """All of it, as objects."""
        from multitask.evaluation.schema import Results

        if not self:
            raise InputError("there are no results in this process: the main process alone has them")
        return Results.model_validate(dict(self))

    @property
    def tasks(self) -> "dict[str, TaskScores]":
        """Scores by task: `tasks["qa"].metrics["f1"].value`, with `.low` and `.high`."""
        return self.record.tasks

    @property
    def data(self) -> "dict[str, Data]":
        """By task, which rows were scored."""
        return self.record.data

    @property
    def cost(self) -> "Cost":
        """Seconds, tokens, memory, parameters."""
        return self.record.cost

    @property
    def config(self) -> dict[str, Any]:
        """All settings, as used."""
        return self.record.config

    @property
    def kind(self) -> str:
        """Which command: train, pretrain, evaluate, fewshot, baseline."""
        return self.record.kind

    @property
    def arm(self) -> str:
        """What a report calls the run."""
        return self.record.arm

    @property
    def model(self) -> str:
        """The model that was scored: a folder or a name."""
        return self.record.model.name

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.record.seed

    def rows(self) -> list[ScoreRow]:
        """The scores as a table has them."""
        return list(self._rows())

    def _rows(self) -> Iterator[ScoreRow]:
        for task, scores in self.tasks.items():
            for name, score in scores.metrics.items():
                best = _best_baseline(scores, name)
                yield ScoreRow(task, None, name, score.value, score.low, score.high, scores.num_examples, *best)
            for shots, found in scores.per_shot.items():
                spreads = {found.metric: found, **{k: v for k, v in found.metrics.items() if k != found.metric}}
                for name, spread in spreads.items():
                    best = _best_baseline(scores, name)
                    yield ScoreRow(task, shots, name, spread.mean, spread.low, spread.high, scores.num_examples, *best)

    def to_frame(self) -> Any:
        """The scores as a pandas DataFrame; raises InputError where pandas is not installed."""
        return frame(self.rows(), ScoreRow._fields)

    def __repr__(self) -> str:
        if not self:
            return "RunResults: none in this process"
        lines = [f"RunResults of {self.kind}, {self.arm}: {self.model}"]
        for row in self.rows():
            shots = "" if row.shots is None else f", {row.shots}-shot"
            interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            lines.append(f"  {row.task}{shots}: {row.metric} {row.value:.3f}{interval} of {row.num_examples} rows")
        return "\n".join(lines)


def frame(rows: list[Any], columns: tuple[str, ...]) -> Any:
    """A pandas DataFrame; raises InputError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise InputError(
            "to_frame() needs the package pandas, which is not installed; run `pip install pandas`"
        ) from None
    return pandas.DataFrame(rows, columns=list(columns))


def _best_baseline(scores: "TaskScores", metric: str) -> tuple[str | None, float | None]:
    from multitask.evaluation import metrics

    found = {name: each[metric].value for name, each in scores.baselines.items() if metric in each}
    if not found:
        return None, None
    is_down = metric in metrics.FROM_NLL or metrics.build(metric, "en").higher_is_better is False
    name = (min if is_down else max)(found, key=lambda name: found[name])
    return name, found[name]
