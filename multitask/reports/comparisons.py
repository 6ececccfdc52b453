"""Which arms are compared, and the verdict of each comparison: `better`, `worse`, `no clear difference`.

Main comparisons answer what a suite is run for: is each tuned arm better than the best prompting, and than the best
trivial baseline? All other pairs of arms are secondary, a family for each arm that the others are compared with.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from multitask.errors import InputError, suggest
from multitask.evaluation.bootstrap import MIN_ROWS, Resampled, compare, unpaired, verdict
from multitask.evaluation.schema import Shots
from multitask.events import Json
from multitask.reports.arms import Arm, Score
from multitask.reports.compared_task import NUM_RESAMPLES, ComparedTask
from multitask.reports.results import Run


class Pair(NamedTuple):
    """Two arms on one task."""

    task: ComparedTask
    first: str
    second: str
    resampled: tuple[Resampled, Resampled]


class BestArm(NamedTuple):
    """The best of several arms on a task; `validation`: the score that chose it, None when the scored rows did."""

    arm: Arm
    validation: float | None


def reference_arm(tasks: Sequence[ComparedTask], compared: Sequence[Arm], against: str | None) -> str:
    """The name of the arm that the others are compared with: `against`, else the one scored on most tasks."""
    names = [arm.name for arm in compared]
    if against is not None:
        if against not in names:
            raise InputError(f"--against: no arm '{against}' in these results; {suggest(against, names)}")
        return against

    def weight(arm: Arm) -> tuple[int, bool, int, int, int]:
        tested = sum(arm.name in task.resampled for task in tasks)
        # Of equals the plainest name: `multitask`, not `multitask-lora`.
        return tested, arm.shots is None, len(arm.scores), len(arm.runs), -len(arm.name)

    return max(compared, key=weight).name  # of equals the first


def main_comparisons(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> list[Json]:
    """Each tuned arm against the best prompting and the best trivial baseline of each task, as one family.

    Without a tuned arm it is the best prompting that is compared with the baseline.
    """
    pairs: list[Pair] = []
    roles: list[str] = []
    for task in tasks:
        prompting, baseline = best_prompting(task, compared), best_baseline(task, compared)
        tuned = [arm for arm in compared if arm.runs and arm.shots is None and arm.name in task.resampled]
        prompted = [prompting.arm] if prompting is not None and prompting.arm.name in task.resampled else []
        for arm in tuned:
            for other in prompted:
                pairs.append(Pair(task, arm.name, other.name, _of(task, arm.name, other.name)))
                roles.append("best prompting")
        if baseline is None:
            continue
        score = baseline.scores[task.name][task.metric]
        assert score.low is not None
        assert score.high is not None
        # Of a baseline only its score and interval are known, not its rows.
        drawn = unpaired(score.value, score.low, score.high, NUM_RESAMPLES, zlib.crc32(task.name.encode()))
        for arm in tuned or prompted:
            pairs.append(Pair(task, arm.name, baseline.name, (task.resampled[arm.name], drawn)))
            roles.append("best trivial baseline")
    return [
        {"arm": pair.first, "against": pair.second, "role": role, **found}
        for pair, role, found in zip(pairs, roles, _tested(pairs), strict=True)
    ]


def comparisons(tasks: Sequence[ComparedTask], compared: Sequence[Arm], against: str) -> list[Json]:
    """Every other arm against this one on every task, as one family."""
    pairs = [
        Pair(task, arm.name, against, _of(task, arm.name, against))
        for arm in compared
        for task in tasks
        if arm.name != against and {arm.name, against} <= task.resampled.keys()
    ]
    return [{"arm": pair.first, **found} for pair, found in zip(pairs, _tested(pairs), strict=True)]


def gain(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> list[Json]:
    """Each multitask arm against each arm that was trained on one task alone, as one family."""
    trained = {arm.name: arm.num_tasks_trained for arm in compared if arm.shots is None}
    lines = [
        (task, many, one)
        for task in tasks
        for many in compared
        for one in compared
        if (trained.get(many.name) or 0) > 1 and trained.get(one.name) == 1
        if task.metric in many.scores.get(task.name, {}) and task.metric in one.scores.get(task.name, {})
    ]
    pairs = [
        Pair(task, many.name, one.name, _of(task, many.name, one.name))
        for task, many, one in lines
        if {many.name, one.name} <= task.resampled.keys()
    ]
    found = dict(zip(((p.task.name, p.first, p.second) for p in pairs), _tested(pairs), strict=True))
    rows = []
    for task, many, one in lines:
        values = [arm.scores[task.name][task.metric].value for arm in (many, one)]
        row: Json = {"task": task.name, "metric": task.metric, "multitask": many.name, "single": one.name}
        row |= {"multitask_value": values[0], "single_value": values[1], "difference": round(values[0] - values[1], 6)}
        not_tested = {"p_adjusted": None, "verdict": "not tested"}
        rows.append(row | found.get((task.name, many.name, one.name), not_tested))
    return rows


def _of(task: ComparedTask, first: str, second: str) -> tuple[Resampled, Resampled]:
    return task.resampled[first], task.resampled[second]


def _tested(pairs: Sequence[Pair]) -> Iterator[Json]:
    for pair, found in zip(pairs, compare([pair.resampled for pair in pairs]), strict=True):
        names = [name for name in (pair.first, pair.second) if name in pair.task.resampled]
        num_rows = pair.task.num_paired
        no_p: Json = {} if num_rows >= MIN_ROWS else {"p": None, "p_adjusted": None}
        yield {
            "task": pair.task.name,
            "metric": pair.task.metric,
            **{key: round(value, 6) for key, value in found._asdict().items()},
            **no_p,
            "verdict": verdict(found.low, found.high, pair.task.higher_is_better, num_rows),
            "has_seed_noise": min(len(pair.task.resampled[name].runs) for name in names) > 1,
        }


def best_prompting(task: ComparedTask, compared: Sequence[Arm]) -> BestArm | None:
    """The number of demonstrations that did best on validation rows; where none were scored, on the scored rows.

    The latter favours prompting.
    """
    prompted = [arm for arm in compared if arm.shots is not None and task.metric in arm.scores.get(task.name, {})]
    if not prompted:
        return None
    best = max if task.higher_is_better else min
    known = {arm.name: value for arm in prompted if (value := on_validation(shots_of(arm, task.name))) is not None}
    if len(known) == len(prompted):
        arm = best(prompted, key=lambda arm: known[arm.name])
        return BestArm(arm, known[arm.name])
    return BestArm(best(prompted, key=lambda arm: arm.scores[task.name][task.metric].value), None)


def best_baseline(task: ComparedTask, compared: Sequence[Arm]) -> Arm | None:
    """The trivial baseline with the best score on the scored rows, of those with an interval."""
    scores: Mapping[str, Score] = {
        arm.name: arm.scores[task.name][task.metric]
        for arm in compared
        if not arm.runs and task.metric in arm.scores.get(task.name, {})
    }
    known = [
        arm for arm in compared if arm.name in scores and None not in (scores[arm.name].low, scores[arm.name].high)
    ]
    best = max if task.higher_is_better else min
    return best(known, key=lambda arm: scores[arm.name].value) if known else None


def shots_of(arm: Arm, task: str) -> list[Shots]:
    """What the files say of an arm with this number of demonstrations."""
    assert arm.shots is not None
    return [run.results.tasks[task].per_shot[arm.shots] for run in runs_of([arm], task)]


def runs_of(compared: Sequence[Arm], task: str) -> Iterator[Run]:
    """Every run that scored a task."""
    yield from (run for arm in compared for run in arm.runs if task in run.results.tasks)


def on_validation(shots: Sequence[Shots]) -> float | None:
    """The score of the chosen templates on the rows that they were chosen on, a mean over runs and languages."""
    chosen = [one for each in shots for one in each.selection.values()]
    if not chosen or any(one.split is None or one.template not in one.templates for one in chosen):
        return None
    return sum(one.templates[one.template] for one in chosen) / len(chosen)


def untested(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> Iterator[dict[str, str]]:
    """Which arms are not compared, and why (a name in `words.yaml`)."""
    for arm in compared:
        for task in tasks:
            if task.metric not in arm.scores.get(task.name, {}) or arm.name in task.resampled or not arm.runs:
                continue
            if not arm.predictions(task.name):
                why = "no_predictions"
            elif task.measure is None:
                why = "no_row_numbers"
            else:
                why = "no_common_rows"
            yield {"arm": arm.name, "task": task.name, "why": why}
