"""What a report says, as plain data: `report.json`."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multitask.errors import InputError, suggest
from multitask.evaluation.bootstrap import Effect, effect, holm
from multitask.evaluation.schema import Shots
from multitask.events import Json
from multitask.reports import pages
from multitask.reports.arms import Arm, spreads
from multitask.reports.compared_task import NUM_RESAMPLES, ComparedTask, abridged
from multitask.reports.results import Run

SCHEMA = 1


COSTS = {
    "wall_s": "seconds",
    "tokens": "tokens",
    "peak_memory_bytes": "peak memory (bytes)",
    "trainable_parameters": "trained parameters",
}
MAX_REFERENCES = 16
"""Arms that the page compares all others with; of more arms, only the chosen one."""


MAX_CLASSES = 12
BEST = "best prompting by validation rows: what tuning has to beat"


Content = Json


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


def content_of(tasks: Sequence[ComparedTask], compared: Sequence[Arm], chosen: str) -> Content:
    """All that `report.json` holds but the examples."""
    tested = [arm.name for arm in compared if any(arm.name in task.resampled for task in tasks)]
    references = tested if len(tested) <= MAX_REFERENCES else [name for name in tested if name == chosen]
    return {
        "schema": SCHEMA,
        "kind": "report",
        "against": chosen,
        "tasks": {
            task.name: {
                "metric": task.metric,
                "higher_is_better": task.higher_is_better,
                "num_rows": sorted({run.results.data[task.name].num_rows for run in _runs(compared, task.name)}),
                "num_paired": task.num_paired,
            }
            for task in tasks
        },
        "arms": [
            {
                "number": number,
                "name": arm.name,
                "kind": arm.kind,
                "shots": arm.shots,
                "has_main_score": any(task.metric in arm.scores.get(task.name, {}) for task in tasks),
                "seeds": sorted({run.results.seed for run in arm.runs}),
                "num_runs": max(
                    (task.resampled[arm.name].num_runs for task in tasks if arm.name in task.resampled), default=0
                ),
                "scores": {
                    task: {name: asdict(score) for name, score in scores.items()} for task, scores in arm.scores.items()
                },
                "cost": _cost(arm),
                "cost_is_shared": len({k for run in arm.runs for t in run.results.tasks.values() for k in t.per_shot})
                > 1,
            }
            for number, arm in enumerate(compared, 1)
        ],
        "untested": list(_untested(tasks, compared)),
        "comparisons": {name: _comparisons(tasks, compared, name) for name in references},
        "num_resamples": NUM_RESAMPLES,
        "few_shot": _few_shot(tasks, compared),
        "gain": _gain(tasks, compared),
        "confusion": _confusion(tasks, compared),
        "contamination": _contamination(compared),
        "settings": _settings(compared),
        **_provenance(compared),
    }


def _runs(compared: Sequence[Arm], task: str) -> Iterator[Run]:
    """Every run that scored a task."""
    yield from (run for arm in compared for run in arm.runs if task in run.results.tasks)


def _untested(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> Iterator[dict[str, str]]:
    """Which arms have no test, and why."""
    for arm in compared:
        for task in tasks:
            if task.metric not in arm.scores.get(task.name, {}) or arm.name in task.resampled:
                continue
            if not arm.runs:
                why = "a trivial baseline leaves no rows, only scores and intervals"
            elif not arm.predictions(task.name):
                why = "its predictions are not beside its results file"
            elif task.measure is None:
                why = f"metric {task.metric} has no numbers of single rows"
            else:
                why = f"no row has {task.metric} in every arm's predictions"
            yield {"arm": arm.name, "task": task.name, "why": why}


def _comparisons(tasks: Sequence[ComparedTask], compared: Sequence[Arm], against: str) -> list[Content]:
    """Every other arm against this one on every task, corrected for how many these are."""
    pairs = [
        (task, arm.name, against)
        for arm in compared
        for task in tasks
        if arm.name != against and {arm.name, against} <= task.resampled.keys()
    ]
    return [{"arm": arm, **rest} for (_, arm, _), rest in zip(pairs, _tests(pairs), strict=True)]


def _tests(pairs: Sequence[tuple[ComparedTask, str, str]]) -> Iterator[Content]:
    effects = [effect(task.resampled[first], task.resampled[second]) for task, first, second in pairs]
    for (task, first, second), found, corrected in zip(pairs, effects, holm([e.p for e in effects]), strict=True):
        yield {
            "task": task.name,
            "metric": task.metric,
            **{key: round(value, 6) for key, value in asdict(found).items()},
            "p_holm": round(corrected, 6),
            "verdict": _verdict(task, found, corrected),
            "has_seed_noise": min(task.resampled[name].num_runs for name in (first, second)) > 1,
        }


def _verdict(task: ComparedTask, found: Effect, p: float) -> str:
    if p >= 0.05 or found.difference == 0:
        return "no clear difference"
    return "better" if (found.difference > 0) == task.higher_is_better else "worse"


def _gain(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> list[Content]:
    """Each multitask arm against each arm that was trained on one task alone."""
    trained = {arm.name: arm.num_tasks_trained for arm in compared if arm.shots is None}
    pairs = [
        (task, many.name, one.name)
        for task in tasks
        for many in compared
        for one in compared
        if (trained.get(many.name) or 0) > 1 and trained.get(one.name) == 1
        if task.metric in many.scores.get(task.name, {}) and task.metric in one.scores.get(task.name, {})
    ]
    tested = [pair for pair in pairs if {pair[1], pair[2]} <= pair[0].resampled.keys()]
    found = dict(zip(((task.name, many, one) for task, many, one in tested), _tests(tested), strict=True))
    scores = {arm.name: arm.scores for arm in compared}
    rows = []
    for task, many, one in pairs:
        values = [scores[name][task.name][task.metric].value for name in (many, one)]
        row: Content = {"task": task.name, "metric": task.metric, "multitask": many, "single": one}
        row |= {"multitask_value": values[0], "single_value": values[1], "difference": round(values[0] - values[1], 6)}
        rows.append(row | found.get((task.name, many, one), {"p_holm": None, "verdict": "not tested"}))
    return rows


def _few_shot(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> list[Content]:
    """Points of the curves: each number of demonstrations with both of its uncertainties."""
    points: list[Content] = []
    for task in tasks:
        for arm in compared:
            score = arm.scores.get(task.name, {}).get(task.metric)
            if arm.shots is None or score is None:
                continue
            shots = [run.results.tasks[task.name].per_shot[arm.shots] for run in _runs([arm], task.name)]
            fitted = [draw.num_fitted for each in shots for draw in each.draws if draw.num_fitted is not None]
            rules = {name: rule.mean for name, rule in shots[0].rules.items()}
            point: Content = {
                "group": arm.group,
                "arm": arm.name,
                "task": task.name,
                "metric": task.metric,
                "shots": arm.shots,
            }
            point |= asdict(score) | {"num_fitted": round(statistics.fmean(fitted), 2) if fitted else None}
            rows = [spreads(each)[task.metric] for each in shots]  # the band is over rows alone
            for end in ("low", "high"):
                ends = [value for spread in rows if (value := getattr(spread, end)) is not None]
                point[end] = statistics.fmean(ends) if len(ends) == len(rows) else None
            points.append(point | {"rules": rules, "notes": _notes(shots), "validation": _on_validation(shots)})
        mine = [p for p in points if p["task"] == task.name and p["validation"] is not None]
        if mine:
            best = (max if task.higher_is_better else min)(mine, key=lambda point: point["validation"])
            best["notes"].insert(0, f"{BEST} ({pages.number(best['validation'])})")
    return points


def _on_validation(shots: Sequence[Shots]) -> float | None:
    """The score of the chosen templates on the rows that they were chosen on, a mean over runs and languages."""
    chosen = [one for each in shots for one in each.selection.values()]
    if not chosen or any(one.split is None or one.template not in one.templates for one in chosen):
        return None
    return statistics.fmean(one.templates[one.template] for one in chosen)


def _notes(shots: Sequence[Shots]) -> list[str]:
    """What else is to be known of a prompted arm: templates and rules, answers that are no answers."""
    used = [
        f"{of}: {one.template}" + f" ({one.rule})" * bool(one.rule) for s in shots for of, one in s.selection.items()
    ]
    counts = {"unfinished": sum(s.num_unfinished for s in shots), "empty": sum(s.num_empty for s in shots)}
    return list(dict.fromkeys(used)) + [f"{count:,} answers {name}" for name, count in counts.items() if count]


def _confusion(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> list[Content]:
    """Gold classes (lines) against predicted ones; rare classes of a large set are put together."""
    found = []
    for task in tasks:
        total: Counter[str] = Counter()
        for answers in task.answers.values():
            for (gold, predicted), count in answers.confusion.items():
                total[gold] += count
                total[predicted] += 0
        labels = sorted(total, key=lambda label: (-total[label], label))
        shown = labels if len(labels) <= MAX_CLASSES else [*labels[: MAX_CLASSES - 1], "(others)"]
        for arm in compared:
            if arm.name not in task.answers or not (pairs := task.answers[arm.name].confusion):
                continue
            counts = [[0] * len(shown) for _ in shown]
            for (gold, predicted), count in pairs.items():
                line, column = (shown.index(c) if c in shown else len(shown) - 1 for c in (gold, predicted))
                counts[line][column] += count
            found.append({"task": task.name, "arm": arm.name, "labels": shown, "counts": counts})
    return found


def _cost(arm: Arm) -> dict[str, float]:
    """Means over runs of what the files say."""
    costs: dict[str, list[float]] = defaultdict(list)
    for run in arm.runs:
        for key, value in run.results.cost.to_json().items():
            if isinstance(value, int | float):
                costs[key].append(value)
    return {key: round(statistics.fmean(values), 2) for key, values in costs.items()}


def model_name(arm: Arm) -> str:
    """The arm's name, or what arms of one model have in common, whatever the number of demonstrations."""
    return arm.name if arm.shots is None else arm.group or "prompted"


def _contamination(compared: Sequence[Arm]) -> list[Content]:
    """Counts of rows by task and split; arms whose tokenizers and windows led to the same counts share a line."""
    lines: dict[str, tuple[Content, list[str]]] = {}
    for arm in compared:
        name = model_name(arm)
        for run in arm.runs:
            for task, data in run.results.data.items():
                scored = data.model_dump()
                for part in (scored, scored.get("train")):
                    if isinstance(part, dict):
                        line = {"task": task} | {key: part.get(key) for key in ("split", *pages.COUNTS, "sha256")}
                        found, names = lines.setdefault(json.dumps(line, sort_keys=True), (line, []))
                        contamination = part.get("contamination") or {}  # of the rows: measured once, true of every arm
                        found |= {key: contamination.get(key, found.get(key)) for key in pages.CONTAMINATION}
                        names += [name] if name not in names else []
    return sorted(
        ({**line, "arms": names} for line, names in lines.values()),
        key=lambda line: (line["task"], line["split"] != "train", str(line["sha256"])),
    )


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Settings by dotted name, as JSON."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else key).items()}
    return {path: json.dumps(value, ensure_ascii=False)}


def _settings(compared: Sequence[Arm]) -> Content:
    """Settings in which arms differ, and all settings of each; seeds are told elsewhere."""
    flat = {model_name(arm): _flat(arm.runs[0].results.config) for arm in compared if arm.runs}
    for settings in flat.values():
        settings.pop("seed", None)
    names = dict.fromkeys(name for settings in flat.values() for name in settings)
    differing = {
        name: {arm: settings.get(name) for arm, settings in flat.items()}
        for name in names
        if len({settings.get(name) for settings in flat.values()}) > 1
    }
    return {"differing": differing, "all": flat}


def _provenance(compared: Sequence[Arm]) -> Content:
    """Which files were read, what they hash to, and in which environments they were made."""
    environments: list[Content] = []
    runs: dict[Path, Content] = {}
    for arm in compared:
        for run in arm.runs:
            results = run.results
            if run.path in runs:  # of several numbers of demonstrations
                runs[run.path]["arms"].append(arm.name)
                continue
            environment = {"versions": results.versions, "hardware": results.hardware.to_json()}
            if environment not in environments:
                environments.append(environment)
            runs[run.path] = {
                "arms": [arm.name],
                "seed": results.seed,
                "kind": results.kind,
                "file": str(run.path),
                "sha256": run.sha256,
                "model": results.model.name,
                "commit": results.commit,
                "environment": 1 + environments.index(environment),
            }
    return {"runs": list(runs.values()), "environments": environments}


def examples_of_rows(tasks: Sequence[ComparedTask], compared: Sequence[Arm], budget: int) -> Content:
    """Rows on which at least two arms answered differently: evenly from each task, as many as fit the budget."""
    names = [arm.name for arm in compared if any(arm.name in task.answers for task in tasks)]
    disagreeing: dict[str, list[int]] = {}
    for task in tasks:
        said: dict[int, set[str]] = defaultdict(set)
        for answers in task.answers.values():
            for row, (prediction, _) in answers.predictions.items():
                said[row].add(prediction)
        if rows := sorted(row for row, predictions in said.items() if len(predictions) > 1):
            disagreeing[task.name] = rows
    shown: list[Content] = []
    counts = {}
    for task in tasks:
        rows = disagreeing.get(task.name, [])
        kept = list(
            _within(rows, lambda row, task=task: _example(task, row, names), budget // max(1, len(disagreeing)))
        )
        shown += kept
        counts[task.name] = {"disagreeing": len(rows), "shown": len(kept)}
    return {"arms": names, "counts": counts, "rows": shown}


def _example(task: ComparedTask, row: int, names: Sequence[str]) -> Content:
    answers = [task.answers[name].predictions.get(row) if name in task.answers else None for name in names]
    predictions = [abridged(answer[0], 400) if answer else None for answer in answers]
    return {
        "task": task.name,
        **task.texts[row],
        "predictions": predictions,
        "scores": [answer[1] if answer else None for answer in answers],
    }


def _within(rows: Sequence[int], make: Any, budget: int) -> Iterator[Content]:
    """Examples of rows evenly spaced, so that about `budget` bytes are used and never more."""
    sizes = [len(json.dumps(make(row), ensure_ascii=False).encode()) for row in rows[:: max(1, len(rows) // 50)]]
    most = min(len(rows), int(budget / statistics.fmean(sizes))) if sizes else 0
    for place in range(most):
        found = make(rows[place * len(rows) // most])
        budget -= len(json.dumps(found, ensure_ascii=False).encode())
        if budget < 0:
            return
        yield found
