"""One report of any runs: `report.md`, `report.json`, and a page that needs nothing but itself.

`report([Path("runs/multi"), Path("runs/single")], Path("out"))["comparisons"]["multitask"]` ->
`[{"arm": "single-nli", "task": "nli", "difference": -0.04, "low": -0.07, "high": -0.01, "p": 0.008, ...}]`
"""

import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multitask.errors import InputError, suggest
from multitask.evaluation import metrics
from multitask.reports import figures, pages
from multitask.reports.results import Arm, Run, arms, json_lines, read
from multitask.reports.significance import Array, Effect, Sample, bootstrap, effect, holm, sample

SCHEMA = 1
NUM_RESAMPLES = 10_000
"""With 1,000, the smallest p-value is 0.002, which nothing survives a correction for 25 comparisons with."""
MAX_REFERENCES = 16
"""Arms that the page compares all others with; of more arms, only the chosen one."""
MAX_PAGE_BYTES = 2_000_000
EXAMPLE_BYTES = (800_000, 250_000, 50_000, 0)
"""What examples may take of the page; the next one is tried while the page is too large."""
MAX_CLASSES = 12
COSTS = {
    "wall_s": "seconds",
    "tokens": "tokens",
    "peak_memory_bytes": "peak memory (bytes)",
    "trainable_parameters": "trained parameters",
}

Content = dict[str, Any]


def report(paths: Sequence[Path], out: Path, against: str | None = None) -> Content:
    """Writes `report.md`, `report.json`, `report.html` and `figures/` to `out`; returns what `report.json` holds.

    Args:
        paths: results files, run folders, folders of them.
        out: a folder; what an earlier report left there is replaced.
        against: the arm that the others are compared with; None: the one that was scored on most tasks.

    Raises:
        InputError: a file holds no results, or those of another schema, or numbers that are not finite; two files
            scored a task on other rows; `against` is no arm; `out` cannot be written.
    """
    compared = arms(read(paths))
    tasks = [_Task(name, compared) for name in dict.fromkeys(task for arm in compared for task in arm.scores)]
    chosen = _reference(tasks, compared, against)
    content = _content(tasks, compared, chosen)
    drawn = _figures(content, tasks, compared)
    for budget in EXAMPLE_BYTES:
        content["examples"] = _examples(tasks, compared, budget)
        page = pages.page(content, drawn, COSTS)
        if len(page.encode()) < MAX_PAGE_BYTES:
            break
    files = {"report.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"}
    files |= {"report.md": pages.markdown(content, drawn, COSTS), "report.html": page}
    files |= {f"figures/{name}.svg": svg + "\n" for name, svg in drawn.items()}
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for old in (out / "figures").glob("*.svg"):
            old.unlink()
        for name, text in files.items():
            aside = (out / name).with_name(f".{Path(name).name}.tmp")
            aside.write_text(text, "utf-8")
            os.replace(aside, out / name)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); choose another --out") from None
    return content


# --- Rows of one task, as every arm answered them


@dataclass
class _Answers:
    """One arm's rows of a task.

    runs: of each seed or draw, row numbers and the numbers of the task's metric.
    predictions: by row number, what the first run answered, and its score.
    confusion: (gold, predicted) of all runs; empty for an open task.
    """

    runs: list[tuple[list[int], Sample]] = field(default_factory=list)
    predictions: dict[int, tuple[str, float]] = field(default_factory=dict)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)


class _Task:
    """A task: the metric that is its score, its rows, the answers of each arm that left any."""

    def __init__(self, name: str, compared: Sequence[Arm]) -> None:
        self.name = name
        measured = [
            list(arm.scores[name]) for arm in sorted(compared, key=lambda a: a.kind == "baseline") if name in arm.scores
        ]
        # Perplexities of different tokenizers cannot be compared; bits per byte can.
        self.metric = measured[0][0]
        if self.metric == "perplexity" and all("bits_per_byte" in names for names in measured):
            self.metric = "bits_per_byte"
        has_numbers = self.metric in metrics.NAMES and self.metric not in metrics.DESCRIPTORS
        self.measure = metrics.build(self.metric, "en") if has_numbers else None
        self.texts: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, int], int] = {}
        self.answers: dict[str, _Answers] = {}
        for arm in sorted(compared, key=lambda arm: arm.shots is not None):  # a prompt without demonstrations is shown
            if name in arm.scores and (files := arm.predictions(name)):
                self.answers[arm.name] = answers = _Answers()
                for path in files:
                    self._read(path, answers)
        self.num_paired, self.resampled = self._resample()

    @property
    def higher_is_better(self) -> bool:
        """Which way is up; a metric that is not ours is taken to rise."""
        return self.measure is None or bool(self.measure.higher_is_better)

    def _read(self, path: Path, into: _Answers) -> None:
        seen: Counter[str] = Counter()
        rows, numbers = [], []
        is_first = not into.runs
        for line, record in json_lines(path):
            try:
                row = self._row(record, seen)
                nll, scores, prediction = record.get("nll", {}), record.get("scores", {}), record.get("prediction")
                found = nll if self.metric in metrics.FROM_NLL else scores.get(self.metric, {})
                if found:
                    rows.append(row)
                    numbers.append({key: float(value) for key, value in found.items()})
                if prediction is None:
                    continue
                references = record["references"]
                if "choice_nll" in record or "macro_f1" in scores:
                    gold = prediction if prediction in references else references[0]
                    into.confusion[gold, prediction] += 1
                if is_first:
                    score = float(self.measure.finish(numbers[-1])) if found and self.measure else 0.0
                    into.predictions[row] = (str(prediction), round(score, 4))
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    f"{path}:{line}: not a line of predictions ({type(error).__name__}: {error}); expected id, prompt, "
                    "prediction, references, scores and nll as evaluate and fewshot write them"
                ) from None
        into.runs.append((rows, sample(numbers)))

    def _row(self, record: Mapping[str, Any], seen: Counter[str]) -> int:
        """The number of a row by its id; ids that a file says twice are told apart by their order."""
        key = (str(record["id"]), seen[str(record["id"])])
        seen[key[0]] += 1
        if key not in self._numbers:
            self._numbers[key] = len(self.texts)
            prompt = record.get("prompt", "")
            prompt = prompt if isinstance(prompt, str) else "\n".join(f"{k}: {v}" for k, v in prompt.items())
            references = [_cut(str(text), 300) for text in record["references"][:3]]
            self.texts.append({"id": key[0], "prompt": _cut(prompt, 700), "references": references})
        return self._numbers[key]

    def _resample(self) -> tuple[int, dict[str, Array]]:
        """Scores of each arm on the rows that all of them have numbers of, and on resamples of these."""
        tested = {arm: a.runs for arm, a in self.answers.items() if self.measure and all(rows for rows, _ in a.runs)}
        if not tested:
            return 0, {}
        common = set.intersection(*(set(rows) for runs in tested.values() for rows, _ in runs))
        if not common:
            return 0, {}
        systems: dict[str, list[Sample]] = {}
        for arm, runs in tested.items():
            systems[arm] = []
            for rows, numbers in runs:
                lines = {row: line for line, row in enumerate(rows)}
                systems[arm].append(numbers.take(np.array([lines[row] for row in sorted(common)])))
        assert self.measure is not None
        return len(common), bootstrap(self.measure.finish, systems, NUM_RESAMPLES, seed=0)


def _cut(text: str, most: int) -> str:
    """A long text without its middle: a passage is known by its beginning, a question stands at the end."""
    return text if len(text) <= most else f"{text[: most // 3]} […] {text[-(most - most // 3) :]}"


# --- What the report says


def _reference(tasks: Sequence[_Task], compared: Sequence[Arm], against: str | None) -> str:
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


def _content(tasks: Sequence[_Task], compared: Sequence[Arm], chosen: str) -> Content:
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
        "hygiene": _hygiene(compared),
        "settings": _settings(compared),
        **_provenance(compared),
    }


def _runs(compared: Sequence[Arm], task: str) -> Iterator[Run]:
    """Every run that scored a task."""
    yield from (run for arm in compared for run in arm.runs if task in run.results.tasks)


def _untested(tasks: Sequence[_Task], compared: Sequence[Arm]) -> Iterator[dict[str, str]]:
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


def _comparisons(tasks: Sequence[_Task], compared: Sequence[Arm], against: str) -> list[Content]:
    """Every other arm against this one on every task, corrected for how many these are."""
    pairs = [
        (task, arm.name, against)
        for arm in compared
        for task in tasks
        if arm.name != against and {arm.name, against} <= task.resampled.keys()
    ]
    return [{"arm": arm, **rest} for (_, arm, _), rest in zip(pairs, _tests(pairs), strict=True)]


def _tests(pairs: Sequence[tuple[_Task, str, str]]) -> Iterator[Content]:
    effects = [effect(task.resampled[first], task.resampled[second]) for task, first, second in pairs]
    for (task, _, _), found, corrected in zip(pairs, effects, holm([e.p for e in effects]), strict=True):
        yield {
            "task": task.name,
            "metric": task.metric,
            **{key: round(value, 6) for key, value in asdict(found).items()},
            "p_holm": round(corrected, 6),
            "verdict": _verdict(task, found, corrected),
        }


def _verdict(task: _Task, found: Effect, p: float) -> str:
    if p >= 0.05 or found.difference == 0:
        return "no clear difference"
    return "better" if (found.difference > 0) == task.higher_is_better else "worse"


def _gain(tasks: Sequence[_Task], compared: Sequence[Arm]) -> list[Content]:
    """Each multitask arm against each arm that was taught one task alone."""
    taught = {arm.name: arm.num_tasks_taught for arm in compared if arm.shots is None}
    pairs = [
        (task, many.name, one.name)
        for task in tasks
        for many in compared
        for one in compared
        if (taught.get(many.name) or 0) > 1 and taught.get(one.name) == 1
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


def _few_shot(tasks: Sequence[_Task], compared: Sequence[Arm]) -> list[Content]:
    """Points of the curves: each number of demonstrations with both of its uncertainties."""
    points = []
    for task in tasks:
        for arm in compared:
            score = arm.scores.get(task.name, {}).get(task.metric)
            if arm.shots is None or score is None:
                continue
            shots = [run.results.tasks[task.name].per_shot[arm.shots] for run in _runs([arm], task.name)]
            fitted = [draw.num_fitted for each in shots for draw in each.draws if draw.num_fitted is not None]
            rules = {name: rule.mean for name, rule in shots[0].rules.items()}
            point = {"group": arm.group, "arm": arm.name, "task": task.name, "metric": task.metric, "shots": arm.shots}
            point |= asdict(score) | {"num_fitted": round(statistics.fmean(fitted), 2) if fitted else None}
            points.append(point | {"rules": rules})
    return points


def _confusion(tasks: Sequence[_Task], compared: Sequence[Arm]) -> list[Content]:
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
        for key, value in run.results.cost.items():
            if isinstance(value, int | float):
                costs[key].append(value)
    return {key: round(statistics.fmean(values), 2) for key, values in costs.items()}


def _model(arm: Arm) -> str:
    """The arm's name, or what arms of one model have in common, whatever the number of demonstrations."""
    return arm.name if arm.shots is None else arm.group or "prompted"


def _hygiene(compared: Sequence[Arm]) -> list[Content]:
    """Counts of rows by task and split; arms whose tokenizers and windows led to the same counts share a line."""
    lines: dict[str, tuple[Content, list[str]]] = {}
    for arm in compared:
        name = _model(arm)
        for run in arm.runs:
            for task, data in run.results.data.items():
                scored = data.model_dump()
                for part in (scored, scored.get("train")):
                    if isinstance(part, dict):
                        line = {"task": task} | {key: part.get(key) for key in ("split", *pages.COUNTS, "sha256")}
                        found, names = lines.setdefault(json.dumps(line, sort_keys=True), (line, []))
                        hygiene = part.get("hygiene") or {}  # of the rows: measured once, true of every arm
                        found |= {key: hygiene.get(key, found.get(key)) for key in pages.HYGIENE}
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
    flat = {_model(arm): _flat(arm.runs[0].results.config) for arm in compared if arm.runs}
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
            environment = {"versions": results.versions, "hardware": results.hardware}
            if environment not in environments:
                environments.append(environment)
            runs[run.path] = {
                "arms": [arm.name],
                "seed": results.seed,
                "kind": results.kind,
                "file": str(run.path),
                "sha256": run.sha256,
                "model": results.model.get("name"),
                "commit": results.commit,
                "environment": 1 + environments.index(environment),
            }
    return {"runs": list(runs.values()), "environments": environments}


def _examples(tasks: Sequence[_Task], compared: Sequence[Arm], budget: int) -> Content:
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


def _example(task: _Task, row: int, names: Sequence[str]) -> Content:
    answers = [task.answers[name].predictions.get(row) if name in task.answers else None for name in names]
    predictions = [_cut(answer[0], 400) if answer else None for answer in answers]
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


# --- Figures


def _figures(content: Content, tasks: Sequence[_Task], compared: Sequence[Arm]) -> dict[str, str]:
    """SVG by file name: scores, few-shot curves, learning curves, cost; a figure of each task."""
    models = list(dict.fromkeys(_model(arm) for arm in compared if arm.runs))
    color = {arm.name: models.index(_model(arm)) if arm.runs else figures.GREY for arm in compared}
    taught = {arm.name for arm in compared if arm.shots is None and arm.kind != "baseline"}
    drawn: dict[str, str] = {}
    curves = _learning(compared, color)
    for task in tasks:
        scores = {
            arm.name: arm.scores[task.name][task.metric]
            for arm in compared
            if task.metric in arm.scores.get(task.name, {})
        }
        bars = [figures.Bar(n, s.value, s.low, s.high, s.sd, color[n]) for n, s in scores.items()]
        drawn[f"scores-{task.name}"] = figures.bars(task.metric, bars)
        if shots := [point for point in content["few_shot"] if point["task"] == task.name]:
            lines = [bar for bar in bars if bar.label in taught]
            drawn[f"few-shot-{task.name}"] = figures.few_shot(task.metric, _shot_curves(shots, color), lines)
        if curves.get(task.name):
            drawn[f"learning-{task.name}"] = figures.learning(curves[task.name])
        prices = [
            figures.Price(
                arm["number"],
                {key: arm["cost"][key] for key in COSTS if key in arm["cost"]},
                scores[arm["name"]].value,
                color[arm["name"]],
                arm["kind"] == "train",
            )
            for arm in content["arms"]
            if arm["name"] in scores and arm["cost"] and not arm["cost_is_shared"]
        ]
        if prices:
            drawn[f"cost-{task.name}"] = figures.prices(task.metric, prices, COSTS)
    return drawn


def _shot_curves(points: Sequence[Content], color: Mapping[str, int]) -> list[figures.Curve]:
    groups: dict[str, list[Content]] = defaultdict(list)
    for point in points:
        groups[point["group"]].append(point)
    return [
        figures.Curve(
            group or "prompted",
            [point["shots"] for point in same],
            [point["value"] for point in same],
            color[same[0]["arm"]],
            bands=[None if None in (p["low"], p["high"]) else (p["low"], p["high"]) for p in same],
            sds=[point["sd"] for point in same],
        )
        for group, same in groups.items()
    ]


def _learning(compared: Sequence[Arm], color: Mapping[str, int]) -> dict[str, list[figures.Curve]]:
    """Training and validation loss of every run by task; the first run of an arm names the curve."""
    found: dict[str, list[figures.Curve]] = defaultdict(list)
    for arm in compared:
        for number, run in enumerate(arm.runs):
            points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
            for record in run.curve():
                for task, loss in record.get("loss", {}).items():
                    points[task, record.get("event", "step")].append((record["tokens"], loss))
            for (task, event), pairs in points.items():
                name, style = arm.name if number == 0 else "_", "o" if event == "validation" else "-"
                x, y = zip(*pairs, strict=True)
                found[task].append(figures.Curve(name, x, y, color[arm.name], style))
    return found
