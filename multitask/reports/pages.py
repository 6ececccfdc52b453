"""How a report looks: Markdown for a terminal or a code host, and one page of HTML that asks for nothing else.

`amount(6130688)` -> `"6.13 M"`, `probability(0.0002)` -> `"< 0.001"`: both say numbers in the same words.
"""

import html
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Content = Mapping[str, Any]
COUNTS = ("num_rows", "num_truncated", "num_dropped", "num_skipped", "num_chars_lost")
CONTAMINATION = ("num_duplicates", "num_contained", "ngram", "overlap")


def number(value: float | None) -> str:
    """As the report prints a score: three decimals, fewer for large ones."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def signed(value: float) -> str:
    """A difference with its sign."""
    text = number(abs(value))
    return text if not text.strip("0.") else ("+" if value > 0 else "−") + text


def probability(value: float | None) -> str:
    """A p-value."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def amount(value: float | None) -> str:
    """A count or a cost, with the unit's usual prefix from a million on."""
    if value is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.2f}"


EXPLAINED = {
    "scores": "Beside each score: its 95 % interval over rows, and over seeds where there are several. ±: standard "
    "deviation over seeds, or over draws of demonstrations. ▲ ▼: better, worse than the arm compared with, after "
    "correction. ↑ more is better, ↓ less is.",
    "significance": "Paired bootstrap over rows ({:,} resamples, the same for all arms), two-sided; of an arm with "
    "several seeds or draws the mean is tested, with their variance. p (Holm) is corrected for the {} comparisons with "
    "this arm.",
    "one_seed": "One seed or draw: {}. Their seed noise is not in the intervals and p-values.",
    "dropped": "{}: windows differ, so arms scored between {:,} and {:,} rows; tests use the {:,} that all have.",
    "few_shot": "Two different uncertainties: sd, drawn as error bars, is over draws of demonstrations; the interval, "
    "drawn as a band, is over rows. Fitted: demonstrations that the window had room for. Unfinished: nothing ended the "
    "answer within the task's `max_new_tokens`.",
    "learning": "Thin: training. Dots: validation. A loss counts tokens: curves compare only where tokenizers are one.",
    "cost": "Of a trained arm: training and scoring. Of others: scoring alone. †: of all numbers of demonstrations "
    "together, so left out of the figures.",
    "data": "Duplicates: rows of this split that are in training too; contained: rows whose text training holds; "
    "overlap: share of n-grams that training holds. – : not measured.",
}


def page(content: Content, drawn: Mapping[str, str], costs: Mapping[str, str]) -> str:
    """`report.html`: every text of the results escaped, figures inline."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    for show in (number, signed, probability, amount):
        environment.filters[show.__name__] = show
    inline = {name: re.sub(r' xmlns="[^"]*"', "", svg, count=1) for name, svg in drawn.items()}
    return environment.get_template("report.html.j2").render(
        report=content,
        figures=inline,
        costs=costs,
        counts=COUNTS,
        contamination_keys=CONTAMINATION,
        explained=EXPLAINED,
    )


def markdown(content: Content, drawn: Mapping[str, str], costs: Mapping[str, str]) -> str:
    """`report.md`: the tables of the page, and its figures by file name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["md"] = _text
    tests = content["comparisons"].get(content["against"], [])
    untested: dict[str, list[str]] = defaultdict(list)
    for one in content["untested"]:
        untested[one["why"]].append(f"{one['arm']} ({one['task']})")
    return environment.get_template("report.md.j2").render(
        report=content,
        figures=list(drawn),
        explained=EXPLAINED,
        scores=_scores(content),
        tests=_tests(tests),
        one_seed=[arm["name"] for arm in content["arms"] if arm["num_runs"] == 1 and arm["shots"] != 0],
        windows=[
            (name, task["num_rows"][0], task["num_rows"][-1], task["num_paired"])
            for name, task in content["tasks"].items()
            if len(task["num_rows"]) > 1
        ],
        untested=untested,
        few_shot=_few_shot(content),
        gain=_gain(content),
        confusion=_matrix,
        cost=_cost(content, costs),
        data=_data(content),
        settings=_settings(content),
        runs=_runs(content),
        environment_text=lambda parts: ", ".join(f"{k} {v}" for part in parts.values() for k, v in part.items()),
    )


# --- Tables of the Markdown: head and rows

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def _scores(content: Content) -> Table:
    tests = content["comparisons"].get(content["against"], [])
    marks = {(test["arm"], test["task"]): {"better": " ▲", "worse": " ▼"}.get(test["verdict"], "") for test in tests}
    head = ["arm"]
    for name, task in content["tasks"].items():
        head.append(f"{name}: {task['metric']} {'↑' if task['higher_is_better'] else '↓'}")
    rows = []
    for arm in content["arms"]:
        if not arm["has_main_score"]:  # `unigram`, `bigram`: of perplexity alone, among all metrics
            continue
        row = [arm["name"]]
        for name, task in content["tasks"].items():
            score = arm["scores"].get(name, {}).get(task["metric"])
            row.append(_score(score) + marks.get((arm["name"], name), ""))
        rows.append(row)
    return head, rows


def _score(score: Content | None) -> str:
    if score is None:
        return "–"
    text = number(score["value"])
    if score["low"] is not None:
        text += f" ({number(score['low'])} to {number(score['high'])})"
    return text + (f" ± {number(score['sd'])}, {score['num']} {score['over']}" if score["sd"] is not None else "")


def _tests(tests: Sequence[Content]) -> Table:
    head = ["arm", "task", "metric", "difference", "95 % interval", "p", "p (Holm)", "verdict"]
    rows = [
        [
            *(t["arm"], t["task"], t["metric"], signed(t["difference"]), f"{signed(t['low'])} to {signed(t['high'])}"),
            *(probability(t["p"]), probability(t["p_holm"]), t["verdict"]),
        ]
        for t in tests
    ]
    return head, rows


def _few_shot(content: Content) -> Table:
    head = ["arm", "task", "metric", "mean", "sd over draws", "95 % interval over rows", "draws", "fitted", "notes"]
    rows = [
        [
            *(p["arm"], p["task"], p["metric"], number(p["value"]), number(p["sd"])),
            *(f"{number(p['low'])} to {number(p['high'])}", str(p["num"]), amount(p["num_fitted"])),
            "; ".join(p["notes"]),
        ]
        for p in content["few_shot"]
    ]
    return head, rows


def _gain(content: Content) -> Table:
    head = ["task", "multitask arm", "single-task arm", "multitask", "single", "difference", "p (Holm)", "verdict"]
    rows = [
        [
            *(g["task"], g["multitask"], g["single"], number(g["multitask_value"]), number(g["single_value"])),
            *(signed(g["difference"]), probability(g["p_holm"]), g["verdict"]),
        ]
        for g in content["gain"]
    ]
    return head, rows


def _matrix(matrix: Content) -> Table:
    rows = [[label, *map(str, line)] for label, line in zip(matrix["labels"], matrix["counts"], strict=True)]
    return ["gold", *matrix["labels"]], rows


def _cost(content: Content, costs: Mapping[str, str]) -> Table:
    rows = [
        [str(arm["number"]), arm["name"] + (" †" if arm["cost_is_shared"] else "")]
        + [amount(arm["cost"].get(key)) for key in (*costs, "total_parameters", "tokens_per_s")]
        for arm in content["arms"]
        if arm["cost"]
    ]
    return ["#", "arm", *costs.values(), "all parameters", "tokens/s"], rows


def _data(content: Content) -> Table:
    head = [
        "task",
        "split",
        *(key.removeprefix("num_").replace("_", " ") for key in (*COUNTS, *CONTAMINATION)),
        "sha256",
    ]
    rows = []
    for line in content["contamination"]:
        digests = ", ".join(digest[:12] for digest in line["sha256"] or ())
        counts = [amount(line[key]) if key != "overlap" else number(line[key]) for key in (*COUNTS, *CONTAMINATION)]
        rows.append([line["task"], line["split"], *counts, digests, ", ".join(line["arms"])])
    return [*head, "arms"], rows


def _settings(content: Content) -> Table:
    arms = list(content["settings"]["all"])
    rows = [[name, *(v[arm] or "–" for arm in arms)] for name, v in content["settings"]["differing"].items()]
    return ["setting", *arms], rows


def _runs(content: Content) -> Table:
    rows = []
    for run in content["runs"]:
        hashes = [run["sha256"][:12], (run["commit"] or "–")[:12]]
        rows.append([", ".join(run["arms"]), str(run["seed"]), run["file"], *hashes, str(run["environment"])])
    return ["arms", "seed", "file", "sha256", "commit", "environment"], rows


def _text(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
