"""Which figures a report has, and of which numbers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from multitask.reports import figures
from multitask.reports.arms import Arm
from multitask.reports.compared_task import ComparedTask
from multitask.reports.content import COSTS, Content, model_name


def draw_figures(content: Content, tasks: Sequence[ComparedTask], compared: Sequence[Arm]) -> dict[str, str]:
    """SVG by file name: scores, few-shot curves, learning curves, cost; a figure of each task."""
    models = list(dict.fromkeys(model_name(arm) for arm in compared if arm.runs))
    color = {arm.name: models.index(model_name(arm)) if arm.runs else figures.GREY for arm in compared}
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
