"""Figures of a report as SVG text: the same numbers give the same bytes, and the page's own fonts write the words.

`bars("accuracy", [Bar("tuned", 0.61, 0.59, 0.63, None, 0)])` -> `"<svg ...>"`, one dot with its interval.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from multitask.plots import middles
from multitask.reports.arms import Arm, value_range
from multitask.reports.compared_task import ComparedTask
from multitask.reports.content import Content, model_name
from multitask.reports.rendering.numbers import COSTS
from multitask.reports.rendering.words import Words

INK = "#123457"
"""Drawn in this colour, then written as `currentColor`: dark on paper, light on a dark screen."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#a05fd0", "#7f7f7f")
"""Okabe and Ito's palette, for colour-blind readers, without yellow and black, which a page hides."""
MAX_POINTS = 150
WIDTH, WIDE = 4.0, 12.0
"""Inches: of a figure among others or on a phone, and of one that has the width of a page."""
KINDS = ("scores", "few-shot", "learning", "cost")
GREY = -1
_NAMESPACE = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}"
_DROPPED = ("metadata", "style")
_GEOMETRY = {"d", "transform", "x", "y", "width", "height", "points"}
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_STYLE = (
    "stroke-linejoin: round; stroke-linecap: butt; font-family: system-ui, 'Apple SD Gothic Neo', 'Malgun Gothic', "
    "'Noto Sans KR', 'Noto Sans CJK KR', sans-serif"
)


@dataclass(frozen=True)
class Bar:
    """A score with its interval over rows and its standard deviation over runs."""

    label: str
    value: float
    low: float | None
    high: float | None
    sd: float | None
    color: int


@dataclass(frozen=True)
class Curve:
    """Points in order of x. `bands`: interval over rows at each point; `sds`: standard deviation over draws."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    style: str = "-"
    bands: Sequence[tuple[float, float] | None] = ()
    sds: Sequence[float | None] = ()


@dataclass(frozen=True)
class Price:
    """A point of cost against score, by the number that the tables give its arm."""

    number: int
    costs: dict[str, float]
    score: float
    color: int
    is_trained: bool


def _color(place: int) -> str:
    """The last colour, grey, is for what is not a model."""
    return COLORS[place if place == GREY else place % (len(COLORS) - 1)]


def short(text: str, most: int = 26) -> str:
    """A label, truncated so that the figure keeps its width."""
    return text if len(text) <= most else text[: most - 1] + "…"


def bars(metric: str, scores: Sequence[Bar], width: float = WIDTH) -> str:
    """A line for each arm: a dot, a thick line for the interval over rows, a thin capped one for runs."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, bar in enumerate(scores):
            color = _color(bar.color)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [place, place], color=color, linewidth=5, alpha=0.35)
            if bar.sd is not None:
                axes.errorbar(bar.value, place, xerr=bar.sd, color=color, capsize=4, linewidth=1.2)
            axes.plot(bar.value, place, "o", color=color, markersize=5)
        axes.set_yticks(range(len(scores)), [short(bar.label) for bar in scores])
        axes.set_ylim(len(scores) - 0.5, -0.5)
        axes.set_xlabel(metric)
        _ticks_within(axes.xaxis, metric)

    return _svg(draw, (width, 0.9 + 0.27 * len(scores)), "bars", metric, *scores)


def few_shot(metric: str, curves: Sequence[Curve], lines: Sequence[Bar], said: Words, width: float = WIDTH) -> str:
    """Scores over the number of demonstrations, beside those of arms that need none (dashed lines)."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        # Evenly apart, as 0, 1, 4, 8, 32 would not be.
        steps = sorted({x for curve in curves for x in curve.x})
        for curve in curves:
            color, x = _color(curve.color), [steps.index(x) for x in curve.x]
            banded = [(at, *band) for at, band in zip(x, curve.bands, strict=True) if band is not None]
            if banded:
                axes.fill_between(*zip(*banded, strict=True), color=color, alpha=0.18, linewidth=0)
            axes.plot(x, curve.y, "o-", color=color, markersize=4, label=short(curve.label))
            for at, y, sd in zip(x, curve.y, curve.sds, strict=True):
                if sd is not None:
                    axes.errorbar(at, y, yerr=sd, color=color, capsize=4, linewidth=1.2)
        for line in lines:
            color = _color(line.color)
            axes.axhline(line.value, color=color, linestyle="--", linewidth=1.2, label=short(line.label))
        axes.set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
        axes.set_xlabel(said["axis_shots"])
        axes.set_ylabel(metric)
        _ticks_within(axes.yaxis, metric)
        _legend(figure, axes)

    return _svg(draw, (width, 3.6), "few_shot", metric, *curves, *lines)


def learning(curves: Sequence[Curve], said: Words, width: float = WIDTH) -> str:
    """Loss over training tokens: thin lines for training, dots for validation."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

        axes = figure.subplots()
        for curve in curves:
            every = max(1, -(-len(curve.x) // MAX_POINTS))
            x, y = [*curve.x[:-1:every], *curve.x[-1:]], [*curve.y[:-1:every], *curve.y[-1:]]
            color = _color(curve.color)
            if curve.style == "o":
                axes.plot(x, y, "o-", color=color, markersize=3, linewidth=1, label=short(curve.label))
            else:
                axes.plot(x, y, color=color, linewidth=0.8, alpha=0.55)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(said["axis_tokens"])
        axes.set_ylabel(said["axis_loss"])
        _legend(figure, axes)

    return _svg(draw, (width, 3.6), "learning", *curves)


def prices(metric: str, points: Sequence[Price], names: Mapping[str, str], width: float = WIDTH) -> str:
    """The score over each kind of cost; arms by number, filled where a model was trained."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import EngFormatter, NullFormatter

        shown = [key for key in names if any(key in point.costs for point in points)]
        columns = 2 if width == WIDTH else len(shown)
        grid = figure.subplots(-(-len(shown) // columns), columns, sharey=True, squeeze=False).ravel()
        for key, axes in zip(shown, grid, strict=False):
            priced = [(point.costs[key], point) for point in points if key in point.costs]
            for cost, point in priced:
                color = _color(point.color)
                axes.plot(cost, point.score, "o", color=color, fillstyle="full" if point.is_trained else "none")
                axes.annotate(
                    str(point.number), (cost, point.score), (4, 4), textcoords="offset points", fontsize=9, color=INK
                )
            highest = max(cost for cost, _ in priced)
            lowest = min((cost for cost, _ in priced if cost > 0), default=1.0)
            if highest > 20 * lowest:
                axes.set_xscale("symlog", linthresh=lowest)  # an arm that trains nothing has its place at 0
                axes.xaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_xlim(0, 1.15 * highest or 1)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.tick_params(axis="x", labelsize=8, rotation=45)
            axes.margins(0.15)
            axes.set_xlabel(names[key])
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        for axes in grid[::columns]:
            axes.set_ylabel(metric)
        _ticks_within(grid[0].yaxis, metric)

    return _svg(draw, (width, 4.8 if width == WIDTH else 3.2), "prices", metric, *points)


def _ticks_within(axis: Any, metric: str) -> None:
    """Leaves out ticks that the metric cannot reach: none at an accuracy of 1.05."""
    least, most = value_range(metric)
    low, high = axis.get_view_interval()
    axis.set_ticks([tick for tick in axis.get_ticklocs() if max(low, least) <= round(tick, 9) <= min(high, most)])


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _svg(draw: Any, size: tuple[float, float], *content: Any) -> str:
    """What `draw` puts on a figure of that width and height, in inches.

    Ids within depend on width and content, so figures of one page do not mix them up.
    """
    import io

    import matplotlib
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": repr((size[0], *content)),
        "text.parse_math": False,  # a dollar in a name is a dollar
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.2,
    }
    file = io.StringIO()
    with matplotlib.rc_context(settings | dict.fromkeys(inked, INK)), warnings.catch_warnings():
        # matplotlib's own font lacks Hangul. It only measures here: the reader's fonts draw.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _plain(file.getvalue())


def _plain(text: str) -> str:
    """The figure as one element of a page: no styles, fonts or metadata of its own, coordinates of two decimals.

    The text is parsed as XML and styles as CSS, whose grammars no version of matplotlib changes. Of ids, those that are
    referred to stay.
    """
    root = ElementTree.fromstring(text)
    elements = [element for element in root.iter() if isinstance(element.tag, str)]
    used = {value for element in elements for key, value in element.items() if key.endswith("href") or "url(#" in value}
    for element in elements:
        element.tag = element.tag.removeprefix(f"{{{_NAMESPACE}}}")
        for child in [child for child in element if child.tag in (f"{{{_NAMESPACE}}}{tag}" for tag in _DROPPED)]:
            element.remove(child)
        attributes = {key.removeprefix(_XLINK): value for key, value in element.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "style":
                value = _style(value)
            elif key in _GEOMETRY:
                value = _NUMBER.sub(lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))
            if key != "id" or any(f"#{value}" in address for address in used):
                element.set(key, value.replace(INK, "currentColor"))
    root.set("style", _STYLE)
    root.set("xmlns", _NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")


def _style(text: str) -> str:
    """Declarations of CSS without the font's family; of the shorthand `font` its size stays."""
    kept = []
    for declaration in text.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            name, value = "font-size", next(word for word in value.split() if word[0].isdigit() and word[-1].isalpha())
        if name and name != "font-family":
            kept.append(f"{name}: {value}")
    return "; ".join(kept)


def alone(drawn: Mapping[str, str]) -> set[str]:
    """Names of figures that are the only one of their kind, and so have the whole width of a page."""
    of_kind = [[name for name in drawn if name.startswith(f"{kind}-")] for kind in KINDS]
    return {names[0] for names in of_kind if len(names) == 1}


def draw_figures(
    content: Content, tasks: Sequence[ComparedTask], compared: Sequence[Arm], said: Words, width: float = WIDTH
) -> dict[str, str]:
    """SVG by file name: scores, few-shot curves, learning curves, cost; a figure of each task."""
    models = list(dict.fromkeys(model_name(arm) for arm in compared if arm.runs))
    color = {arm.name: models.index(model_name(arm)) if arm.runs else GREY for arm in compared}
    trained = {arm.name for arm in compared if arm.shots is None and arm.kind != "baseline"}
    drawn: dict[str, str] = {}
    curves = _learning(compared, color)
    for task in tasks:
        scores = {
            arm.name: arm.scores[task.name][task.metric]
            for arm in compared
            if task.metric in arm.scores.get(task.name, {})
        }
        found = [Bar(n, s.value, s.low, s.high, s.sd, color[n]) for n, s in scores.items()]
        drawn[f"scores-{task.name}"] = bars(task.metric, found, width)
        if shots := [point for point in content["few_shot"] if point["task"] == task.name]:
            lines = [bar for bar in found if bar.label in trained]
            drawn[f"few-shot-{task.name}"] = few_shot(task.metric, _shot_curves(shots, color, said), lines, said, width)
        if curves.get(task.name):
            drawn[f"learning-{task.name}"] = learning(curves[task.name], said, width)
        points = [
            Price(
                arm["cost_number"],
                {key: arm["cost"][key] for key in COSTS if key in arm["cost"]},
                scores[arm["name"]].value,
                color[arm["name"]],
                arm["kind"] == "train",
            )
            for arm in content["arms"]
            if arm["name"] in scores and arm["cost"] and not arm["cost_is_shared"]
        ]
        if len(points) > 1:  # one alone is compared with nothing
            drawn[f"cost-{task.name}"] = prices(task.metric, points, {key: said[key] for key in COSTS}, width)
    return drawn


def _shot_curves(points: Sequence[Content], color: Mapping[str, int], said: Words) -> list[Curve]:
    groups: dict[str, list[Content]] = defaultdict(list)
    for point in points:
        groups[point["group"]].append(point)
    return [
        Curve(
            group or said["prompted"],
            [point["shots"] for point in same],
            [point["value"] for point in same],
            color[same[0]["arm"]],
            bands=[None if None in (p["low"], p["high"]) else (p["low"], p["high"]) for p in same],
            sds=[point["sd"] for point in same],
        )
        for group, same in groups.items()
    ]


def _learning(compared: Sequence[Arm], color: Mapping[str, int]) -> dict[str, list[Curve]]:
    """Training and validation loss of every run by task; the first run of an arm names the curve."""
    found: dict[str, list[Curve]] = defaultdict(list)
    for arm in compared:
        for number, run in enumerate(arm.runs):
            points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
            records = list(run.curve())
            validations = [(r["tokens"], r) for r in records if r.get("event") == "validation"]
            for place, record in [*middles(records, "tokens"), *validations]:
                for task, loss in record.get("loss", {}).items():
                    points[task, record.get("event", "step")].append((place, loss))
            for (task, event), pairs in points.items():
                name, style = arm.name if number == 0 else "_", "o" if event == "validation" else "-"
                x, y = zip(*pairs, strict=True)
                found[task].append(Curve(name, x, y, color[arm.name], style))
    return found
