"""What a report says, as plain data: `report.json`."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from multitask.evaluation.schema import Shots
from multitask.events import Json
from multitask.reports.arms import Arm, spreads
from multitask.reports.compared_task import NUM_RESAMPLES, ComparedTask, abridged
from multitask.reports.comparisons import (
    best_prompting,
    comparisons,
    gain,
    main_comparisons,
    on_validation,
    runs_of,
    shots_of,
    untested,
)
from multitask.reports.rendering.numbers import CONTAMINATION, COUNTS
from multitask.reports.results import Run

SCHEMA = 2
"""2: `main_comparisons`; intervals and `p_adjusted` of a family in place of `p_holm`."""


MAX_REFERENCES = 16
"""Arms that the page compares all others with; of more arms, only the chosen one."""


MAX_CLASSES = 12
Content = Json


def content_of(
    tasks: Sequence[ComparedTask], compared: Sequence[Arm], chosen: str, names: Sequence[str], runs: Sequence[Run]
) -> Content:
    """All that `report.json` holds but the examples; `names`: what the report is of, `runs`: all files."""
    tested = [arm.name for arm in compared if any(arm.name in task.resampled for task in tasks)]
    references = tested if len(tested) <= MAX_REFERENCES else [name for name in tested if name == chosen]
    priced = [arm.name for arm in compared if _cost(arm)]
    return {
        "schema": SCHEMA,
        "kind": "report",
        "names": list(names),
        "models": _models(compared),
        "date": _date(runs),
        "num_files": len(runs),
        "against": chosen,
        "tasks": {
            task.name: {
                "metric": task.metric,
                "higher_is_better": task.higher_is_better,
                "num_rows": sorted({run.results.data[task.name].num_rows for run in runs_of(compared, task.name)}),
                "best_arms": _best_arms(task, compared),
                "num_paired": task.num_paired,
                "row_sets": [
                    {
                        "rows": str(rows),
                        "num_rows": rows.num_rows,
                        "split": rows.split,
                        "sha256": [digest[:8] for digest in rows.sha256],
                        "files": files,
                    }
                    for rows, files in task.row_sets.items()
                ],
            }
            for task in tasks
        },
        "arms": [
            {
                "number": number,
                "cost_number": priced.index(arm.name) + 1 if arm.name in priced else None,
                "name": arm.name,
                "kind": arm.kind,
                "shots": arm.shots,
                "has_main_score": any(task.metric in arm.scores.get(task.name, {}) for task in tasks),
                "seeds": sorted({run.results.seed for run in arm.runs}),
                "num_runs": max(
                    (len(task.resampled[arm.name].runs) for task in tasks if arm.name in task.resampled), default=0
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
        "main_comparisons": main_comparisons(tasks, compared),
        "untested": list(untested(tasks, compared)),
        "comparisons": {name: comparisons(tasks, compared, name) for name in references},
        "num_resamples": NUM_RESAMPLES,
        "few_shot": _few_shot(tasks, compared),
        "gain": gain(tasks, compared),
        "confusion": _confusion(tasks, compared),
        "contamination": _contamination(compared),
        "settings": _settings(compared),
        **_provenance(compared),
    }


def _models(compared: Sequence[Arm]) -> list[str]:
    """Names of the models that were prompted, or that training began with; folders by their last part."""
    names = []
    for run in (run for arm in compared for run in arm.runs):
        config = run.results.config.get("model")
        name = config.get("name") if isinstance(config, dict) else None
        if run.results.kind == "fewshot":
            name = run.results.model.name or name
        if isinstance(name, str) and name:
            names.append(name.rstrip("/").rpartition("/")[2])
    return list(dict.fromkeys(names))


def _date(runs: Sequence[Run]) -> str:
    """The day of the newest results file: the same files make the same report on any day."""
    return datetime.fromtimestamp(max(run.path.stat().st_mtime for run in runs)).date().isoformat()


def _best_arms(task: ComparedTask, compared: Sequence[Arm]) -> list[str]:
    """The arms with the best score."""
    scores = {arm.name: arm.scores.get(task.name, {}).get(task.metric) for arm in compared}
    values = {name: score.value for name, score in scores.items() if score is not None}
    best = (max if task.higher_is_better else min)(values.values(), default=None)
    return [name for name, value in values.items() if value == best]


def _few_shot(tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> list[Content]:
    """Points of the curves: each number of demonstrations with both of its uncertainties."""
    points: list[Content] = []
    for task in tasks:
        best = best_prompting(task, compared)
        for arm in compared:
            score = arm.scores.get(task.name, {}).get(task.metric)
            if arm.shots is None or score is None:
                continue
            shots = shots_of(arm, task.name)
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
            is_best = best is not None and best.arm is arm and best.validation is not None
            point |= {"rules": rules, "notes": _notes(shots), "validation": on_validation(shots), "is_best": is_best}
            point["num_unfinished"] = sum(each.num_unfinished for each in shots)
            point["num_empty"] = sum(each.num_empty for each in shots)
            points.append(point)
    return points


def _notes(shots: Sequence[Shots]) -> list[str]:
    """Templates and rules of a prompted arm, by language."""
    used = [
        f"{of}: {one.template}" + f" ({one.rule})" * bool(one.rule) for s in shots for of, one in s.selection.items()
    ]
    return list(dict.fromkeys(used))


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
    if arm.shots is not None:  # older files hold the size of the prompted model
        costs["trainable_parameters"] = [0]
    elif any(run.results.kind not in ("train", "pretrain") for run in arm.runs):  # scored here, trained elsewhere
        costs.pop("trainable_parameters", None)
    return {key: round(statistics.fmean(values), 2) for key, values in costs.items()}


def model_name(arm: Arm) -> str:
    """The arm's name, or what arms of one model have in common, whatever the number of demonstrations."""
    return arm.name if arm.shots is None else arm.group or "prompted"


def _contamination(compared: Sequence[Arm]) -> list[Content]:
    """Counts of rows by task and split; arms whose tokenizers and windows led to the same counts are on one line."""
    lines: dict[str, tuple[Content, list[str]]] = {}
    for arm in compared:
        name = model_name(arm)
        for run in arm.runs:
            for task, data in run.results.data.items():
                scored = data.model_dump()
                for part in (scored, scored.get("train")):
                    if isinstance(part, dict):
                        line = {"task": task} | {key: part.get(key) for key in ("split", *COUNTS, "sha256")}
                        found, names = lines.setdefault(json.dumps(line, sort_keys=True), (line, []))
                        contamination = part.get("contamination") or {}  # of the rows: measured once, true of every arm
                        found |= {key: contamination.get(key, found.get(key)) for key in CONTAMINATION}
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
    """Settings in which arms differ, and all settings of each; seeds are listed with the runs."""
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
