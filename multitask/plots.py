"""Pictures of a run: training and validation loss over steps and tokens; and of a text, how each token was picked."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask.errors import InputError
from multitask.events import Json, Report
from multitask.files import cannot_write, replacing

_HANGUL = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansKR-Regular.otf",
    "NotoSansKR-Regular.ttf",
    "NanumGothic.ttf",
    "NanumBarunGothic.ttf",
    "malgun.ttf",
    "AppleSDGothicNeo.ttc",
    "AppleGothic.ttf",
    "UnDotum.ttf",
)
_MAX_STEPS = 24


def draw_rates(rates: Sequence[float], losses: Sequence[float], suggested: float, picture: Path) -> None:
    """The loss at each learning rate tried, and the one suggested."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(suggested, color="C1", linestyle="--", label=f"falls fastest at {suggested:.1e}")
    axes.set(
        xlabel="learning rate", ylabel="loss (nats per target token)", xscale="log", title="one step with each rate"
    )
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    try:
        _save(figure, picture)
    except OSError as error:
        raise cannot_write(picture, error) from None


def draw_loss(metrics: Path, picture: Path, by_epochs: bool = False) -> None:
    """`loss.png` from `metrics.jsonl`: a line per task, thin for training, with dots for validation.

    A training loss is an average since the line before it, and stands in the middle of that interval.
    by_epochs: passes over the rows below, in place of steps; tokens are above in either case.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
    if not lines:
        return
    counted = [line for line in lines if "epochs" in line] if by_epochs else []
    per_step = max(counted[-1]["epochs"].values()) / counted[-1]["step"] if counted else 1.0
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    validations = [(line["step"], line) for line in lines if line["event"] == "validation"]
    places = {"step": middles(lines, "step"), "validation": validations}
    for number, name in enumerate(sorted({name for line in lines for name in line["loss"]})):
        for event, style in (
            ("step", {"linewidth": 1.0, "alpha": 0.6}),
            ("validation", {"marker": "o", "markersize": 4}),
        ):
            points = [(x * per_step, line["loss"][name]) for x, line in places[event] if name in line["loss"]]
            label = name if event == "validation" else None
            axes.plot([p[0] for p in points], [p[1] for p in points], color=f"C{number}", label=label, **style)
    title, below = "training (thin) and validation (dots)", "epoch" if counted else "step"
    axes.set(xlabel=below, ylabel="loss (nats per target token)", yscale="log", title=title)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    per_unit = lines[-1]["tokens"] / (max(1, lines[-1]["step"]) * per_step)
    above = axes.secondary_xaxis("top", functions=(lambda x: x * per_unit, lambda x: x / per_unit))
    above.set_xlabel("training tokens")
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    try:
        _save(figure, picture)
    except OSError as error:
        raise cannot_write(picture, error) from None


def middles(lines: Iterable[Json], key: str) -> list[tuple[float, Json]]:
    """Training lines of `metrics.jsonl`, each with the middle of the interval that its losses are averages of.

    key: `step` or `tokens`. Steps 20 and 40 -> 10 and 30.
    """
    found, before = [], 0.0
    for line in lines:
        if line.get("event", "step") == "step":
            found.append(((before + line[key]) / 2, line))
            before = line[key]
    return found


def draw_steps(steps: Sequence[Mapping[str, Any]], picture: Path) -> bool:
    """How each token was picked, as `generate --explain` shows it: a panel for each of the first steps.

    Bars: the most likely tokens' probability before (light) and after (dark) temperature, top-k and top-p; the token
    taken is named in colour, one that was removed in grey. False when no font has all characters.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = steps[:_MAX_STEPS]
    columns = max(1, min(4, len(shown)))
    num_rows = max(1, -(-len(shown) // columns))
    most = max((len(step["candidates"]) for step in shown), default=1)
    settings: dict[str, object] = {
        "font.family": _families(),
        "text.parse_math": False,  # a dollar in a token is a dollar
        "font.size": 9,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = Figure(figsize=(3.1 * columns, 0.9 + num_rows * (0.75 + 0.3 * most)), layout="constrained")
        grid = figure.subplots(num_rows, columns, squeeze=False).ravel()
        for number, (axes, step) in enumerate(zip(grid, shown, strict=False), 1):
            candidates = step["candidates"]
            for side, name, color in ((-1, "before", "#9ecae1"), (1, "after", "#0072b2")):
                places = [place + 0.2 * side for place in range(len(candidates))]
                axes.barh(places, [c[name] for c in candidates], 0.38, color=color, label=name)
            labels = [("" if c["after"] else "✗ ") + _short(c["token"]) for c in candidates]
            axes.set_yticks(range(len(candidates)), labels)
            for label, candidate in zip(axes.get_yticklabels(), candidates, strict=True):
                is_taken = candidate["id"] == step["id"]
                label.set_color("#d55e00" if is_taken else "black" if candidate["after"] else "#7f7f7f")
            axes.set(xlim=(0, 1), ylim=(most - 0.5, -0.5), title=f"{number}: {_short(step['token'])}")
            axes.tick_params(axis="x", labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        rest = f"; the first {len(shown)} of {len(steps)} steps" if len(shown) < len(steps) else ""
        figure.suptitle(f"probability of the next token before and after reshaping{rest}")
        if shown:
            figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        _save(figure, picture)
    return not any("missing from font" in str(warning.message) for warning in caught)


def save_steps(steps: Sequence[Mapping[str, Any]], picture: Path, report: Report) -> None:
    """Draws the steps of a text; raises InputError where the file cannot be written, warns of missing fonts."""
    try:
        is_readable = draw_steps(steps, picture)
    except (OSError, ValueError) as error:  # no such folder, or an extension that matplotlib does not know
        raise InputError(f"{picture}: cannot be drawn ({error}); name a file ending in .png") from None
    if not is_readable:
        text = f"{picture}: no font here has all its characters; install one, for instance Noto Sans CJK"
        report({"event": "warning", "text": text})


def _save(figure: Any, picture: Path) -> None:
    """Writes a picture, whole or not at all, in the format of its extension; raises OSError."""
    if not picture.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {picture.parent}")
    with replacing(picture) as aside:
        figure.savefig(aside, dpi=110, format=picture.suffix.removeprefix(".") or None)


def _short(token: str) -> str:
    return token if len(token) <= 16 else token[:15] + "…"


def _families() -> list[str]:
    """Matplotlib's own font, and one with Hangul by its file: the list of fonts that matplotlib keeps may be old."""
    from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager

    files = {Path(path).name: path for path in findSystemFonts()}
    path = next((files[name] for name in _HANGUL if name in files), None)
    if path is None:
        return ["DejaVu Sans"]
    fontManager.addfont(path)
    return ["DejaVu Sans", FontProperties(fname=path).get_name()]
