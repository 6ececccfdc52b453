"""Arms that can be compared: runs that differ by seed alone, numbers of demonstrations, trivial baselines."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multitask.evaluation import metrics
from multitask.evaluation.bootstrap import interval_over_runs
from multitask.evaluation.schema import Shots, Spread
from multitask.reports.results import Run

_ANY = (-float("inf"), float("inf"))


@dataclass(frozen=True)
class Score:
    """A score of an arm.

    value: the mean over its runs.
    low, high: 95 % interval over rows; of several runs, over rows and runs.
    sd: standard deviation over runs or draws; None for a single one.
    num: how many runs or draws; `over` says which of the two.
    """

    value: float
    low: float | None
    high: float | None
    sd: float | None = None
    num: int = 1
    over: str = "seeds"


@dataclass
class Arm:
    """What is compared: a way to get a model, scored on some tasks, once or with several seeds.

    shots: the number of demonstrations where that is what makes the arm; None otherwise.
    group: of few-shot arms, what they have in common: one curve.
    scores: by task and metric; a task's first metric is its score.
    by_num_rows: of a trivial baseline, scores by task, metric and number of rows, where files were scored on different
        rows.
    """

    name: str
    kind: str
    runs: list[Run]
    shots: int | None = None
    group: str = ""
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    by_num_rows: dict[tuple[str, str, int], Score] = field(default_factory=dict)

    def predictions(self, task: str) -> list[Path]:
        """Every file with the arm's rows of a task; empty when one of its runs has none: half an arm is no arm."""
        files = [run.predictions(task, self.shots) for run in self.runs if task in run.results.tasks]
        return [path for found in files for path in found] if all(files) else []

    @property
    def num_tasks_trained(self) -> int | None:
        """1 for a single-task arm, more for a multitask arm, None where no model was trained here."""
        first, _, _ = self.name.replace("-", " ").partition(" ")
        if first in ("single", "multitask"):
            return 1 if first == "single" else 2
        return len(self.runs[0].results.config.get("tasks", ())) or None if self.kind == "train" else None


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Trivial baselines, then few-shot arms by their number of demonstrations, then the others as they were named."""
    named = _named(runs)
    several = sum(any(_shots_of(run) for run in group) for group in named.values()) > 1
    prompted: list[Arm] = []
    others: list[Arm] = []
    for name, group in named.items():
        for shots in sorted({k for run in group for k in _shots_of(run)}):
            short = f"{shots}-shot"
            full = name if name.endswith(short) else f"{name} {short}" if several else short
            arm = Arm(full, "fewshot", group, shots, full.removesuffix(short).strip())
            arm.scores = _over_runs([_prompted(run, shots) for run in group])
            prompted.append(arm)
        arm = Arm(name, group[0].results.kind, group)
        arm.scores = _over_runs([_plain(run) for run in group])
        if arm.scores:
            others.append(arm)
    prompted.sort(key=lambda arm: (arm.group, arm.shots))
    taken = {arm.name for arm in (*prompted, *others)}
    return [*(arm for arm in _baselines(runs) if arm.name not in taken), *prompted, *others]


def _shots_of(run: Run) -> set[int]:
    return {shots for task in run.results.tasks.values() for shots in task.per_shot}


def _named(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ by seed alone, by the name of their arm; of two arms with one name also the file's."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        config = {key: value for key, value in run.results.config.items() if key not in ("seed", "device")}
        groups[json.dumps([run.results.arm, run.results.kind, config], sort_keys=True)].append(run)
    apart: list[list[Run]] = []
    for group in groups.values():
        seeds = Counter(run.results.seed for run in group)
        apart += [group] if max(seeds.values()) == 1 else [[run] for run in group]
    shared = Counter(_name(group) for group in apart)
    named: dict[str, list[Run]] = {}
    for group in apart:
        name = _name(group)
        if shared[name] > 1:
            path = group[0].path
            name = f"{name} ({path.parent.name if path.name == 'results.json' else path.stem})"
        while name in named:  # folders of one name in several places
            name += "'"
        named[name] = group
    return named


def _name(group: Sequence[Run]) -> str:
    """The arm's name; of a model that `evaluate` scored, the name of its run or folder."""
    results = group[0].results
    if len(group) > 1 or results.kind != "evaluate" or results.arm != "tuned":
        return results.arm
    named = Path(results.model.name or "")
    name = named.parent.name if named.name == "model" else named.name
    return name or results.arm


def _plain(run: Run) -> dict[str, dict[str, Score]]:
    return {
        task: {name: Score(score.value, score.low, score.high) for name, score in scores.metrics.items()}
        for task, scores in run.results.tasks.items()
        if scores.metrics
    }


def _prompted(run: Run, num_shots: int) -> dict[str, dict[str, Score]]:
    found: dict[str, dict[str, Score]] = {}
    for task, scores in run.results.tasks.items():
        if (shots := scores.per_shot.get(num_shots)) is not None:
            num = max(1, len(shots.draws))
            found[task] = {name: _of_draws(spread, num, value_range(name)) for name, spread in spreads(shots).items()}
    return found


def spreads(shots: Shots) -> dict[str, Spread]:
    """By metric, the main one first."""
    return {shots.metric: shots} | shots.metrics | {shots.metric: shots}


def _of_draws(spread: Spread, num: int, limits: tuple[float, float]) -> Score:
    """The score over draws of demonstrations; results files hold the interval over rows alone."""
    low, high = spread.low, spread.high
    if low is not None and high is not None and spread.sd is not None and num > 1:
        low, high = _over_rows_and_runs(spread.mean, low, high, spread.sd, num, limits)
    return Score(spread.mean, low, high, spread.sd, num, "draws")


def _over_runs(parts: Sequence[dict[str, dict[str, Score]]]) -> dict[str, dict[str, Score]]:
    """Means over runs. Of several runs, the standard deviation is over them; of one, what its file says."""
    found: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for task, scores in part.items():
            for name, score in scores.items():
                found[task][name].append(score)
    return {
        task: {name: _mean(same, value_range(name)) for name, same in scores.items()} for task, scores in found.items()
    }


def value_range(metric: str) -> tuple[float, float]:
    """The smallest and the largest value of a metric; of functions of the user nothing is known."""
    if metric not in metrics.NAMES:
        return _ANY
    return 0.0, float("inf") if metric in (*metrics.FROM_NLL, "length") else 1.0


def _mean(scores: Sequence[Score], limits: tuple[float, float] = _ANY) -> Score:
    """Of several runs their mean; `limits` are those of the metric's values."""
    if len(scores) == 1:
        return scores[0]
    values = [score.value for score in scores]
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    lows, highs = ([end for score in scores if (end := getattr(score, name)) is not None] for name in ("low", "high"))
    low = high = None
    if len(lows) == len(highs) == len(values):
        # Runs share their rows, so the half-widths are averaged: of their mean they are no wider.
        low, high = _over_rows_and_runs(mean, statistics.fmean(lows), statistics.fmean(highs), sd, len(values), limits)
    return Score(mean, low, high, sd, len(values), "seeds")


def _over_rows_and_runs(
    mean: float, low: float, high: float, sd: float, num: int, limits: tuple[float, float]
) -> tuple[float, float]:
    """The interval within the metric's range: of few runs it may be wider."""
    low, high = interval_over_runs(mean, low, high, sd, num)
    return max(limits[0], low), min(limits[1], high)


def _baselines(runs: Sequence[Run]) -> list[Arm]:
    """What every file says of programs without a model; the same value said by several files is said once.

    Where tokenizers differ, so do unigram and bigram scores: the best one is kept, in bits per byte; perplexities of
    different tokens are left out.
    """
    found: dict[str, dict[str, dict[str, dict[float, Score]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    by_num_rows: dict[str, dict[tuple[str, str, int], Score]] = defaultdict(dict)
    for run in runs:
        for task, scores in run.results.tasks.items():
            for name, measured in scores.baselines.items():
                for metric, score in measured.items():
                    kept = Score(score.value, score.low, score.high)
                    found[name][task][metric][score.value] = kept
                    by_num_rows[name][task, metric, run.results.data[task].num_rows] = kept
    return [
        Arm(
            name,
            "baseline",
            [],
            scores={
                task: {
                    metric: values[min(values)]
                    if metric == "bits_per_byte"
                    else _mean(list(values.values()), (value_range(metric)[0], float("inf")))
                    for metric, values in measured.items()
                    if metric != "perplexity" or len(values) == 1
                }
                for task, measured in tasks.items()
            },
            by_num_rows=by_num_rows[name],
        )
        for name, tasks in found.items()
    ]
