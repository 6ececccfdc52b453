"""How a report looks: Markdown for a terminal or a code host, and one page of HTML that asks for nothing else.

`amount(6130688)` -> `"6.13 M"`, `probability(0.0002)` -> `"< 0.001"`: both say numbers in the same words.
"""

import html
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    "one_seed": "Seed noise is not in the intervals and p-values of arms with one seed or draw: {}.",
    "dropped": "{}: windows differ, so arms scored between {:,} and {:,} rows; tests use the {:,} that all have.",
    "few_shot": "Two different uncertainties: sd, drawn as error bars, is over draws of demonstrations; the interval, "
    "drawn as a band, is over rows. Fitted: demonstrations that the window had room for.",
    "learning": "Thin: training. Dots: validation. A loss counts tokens: curves compare only where tokenizers are one.",
    "cost": "Of a trained arm: training and scoring. Of others: scoring alone. †: of all numbers of demonstrations "
    "together, so left out of the figures.",
    "data": "Duplicates: rows of this split that are in training too; contained: rows whose text training holds; "
    "overlap: share of n-grams that training holds. – : not measured.",
}


def page(content: Content, drawn: Mapping[str, str], costs: Mapping[str, str]) -> str:
    """`report.html`: every text of the results escaped, figures inline."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
    return environment.get_template("report.html").render(
        report=content,
        figures=inline,
        costs=costs,
        counts=COUNTS,
        contamination_keys=CONTAMINATION,
        explained=EXPLAINED,
    )


def markdown(content: Content, drawn: Mapping[str, str], costs: Mapping[str, str]) -> str:
    """`report.md`: the tables of the page, and its figures by file name."""
    against = content["against"]
    parts = [
        f"# Report\n\n{len(content['arms'])} arms, {len(content['tasks'])} tasks; compared with **{_text(against)}**.",
        f"## Scores\n\n{_scores(content)}\n\n{EXPLAINED['scores']}",
        _pictures(drawn, "scores-"),
        f"## Significance against {_text(against)}\n\n{_significance(content)}",
    ]
    if content["few_shot"]:
        parts += ["## Few-shot", _few_shot(content), EXPLAINED["few_shot"], _pictures(drawn, "few-shot-")]
    if content["gain"]:
        parts += ["## Multitask gain or loss", _gain(content)]
    if curves := _pictures(drawn, "learning-"):
        parts += ["## Learning curves", curves, EXPLAINED["learning"]]
    if content["confusion"]:
        parts += ["## Confusion", *map(_matrix, content["confusion"])]
    if any(arm["cost"] for arm in content["arms"]):
        parts += ["## Cost", _cost(content, costs), EXPLAINED["cost"], _pictures(drawn, "cost-")]
    parts += ["## Data", _data(content), EXPLAINED["data"]]
    if content["settings"]["differing"]:
        parts += ["## Settings that differ", _settings(content)]
    parts += ["## Runs", _runs(content)]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- Tables of the Markdown


def _scores(content: Content) -> str:
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
    return _table(head, rows)


def _score(score: Content | None) -> str:
    if score is None:
        return "–"
    text = number(score["value"])
    if score["low"] is not None:
        text += f" ({number(score['low'])} to {number(score['high'])})"
    return text + (f" ± {number(score['sd'])}, {score['num']} {score['over']}" if score["sd"] is not None else "")


def _significance(content: Content) -> str:
    tests = content["comparisons"].get(content["against"], [])
    head = ["arm", "task", "metric", "difference", "95 % interval", "p", "p (Holm)", "verdict"]
    rows = [
        [
            *(t["arm"], t["task"], t["metric"], signed(t["difference"]), f"{signed(t['low'])} to {signed(t['high'])}"),
            *(probability(t["p"]), probability(t["p_holm"]), t["verdict"]),
        ]
        for t in tests
    ]
    parts = [_table(head, rows), EXPLAINED["significance"].format(content["num_resamples"], len(tests))] if rows else []
    if single := [arm["name"] for arm in content["arms"] if rows and arm["num_runs"] == 1]:
        parts.append(EXPLAINED["one_seed"].format(", ".join(map(_text, single))))
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in content["untested"]:
        reasons[one["why"]].append(f"{one['arm']} ({one['task']})")
    for name, task in content["tasks"].items():
        if len(task["num_rows"]) > 1:
            few, many = task["num_rows"][0], task["num_rows"][-1]
            parts.append(EXPLAINED["dropped"].format(_text(name), few, many, task["num_paired"]))
    parts.append("\n".join(_text(f"Not tested, {why}: {', '.join(arms)}.") + "\n" for why, arms in reasons.items()))
    return "\n\n".join(parts).strip()


def _few_shot(content: Content) -> str:
    head = ["arm", "task", "metric", "mean", "sd over draws", "95 % interval over rows", "draws", "fitted"]
    rows = [
        [
            *(p["arm"], p["task"], p["metric"], number(p["value"]), number(p["sd"])),
            *(f"{number(p['low'])} to {number(p['high'])}", str(p["num"]), amount(p["num_fitted"])),
        ]
        for p in content["few_shot"]
    ]
    return _table(head, rows)


def _gain(content: Content) -> str:
    head = ["task", "multitask arm", "single-task arm", "multitask", "single", "difference", "p (Holm)", "verdict"]
    rows = [
        [
            *(g["task"], g["multitask"], g["single"], number(g["multitask_value"]), number(g["single_value"])),
            *(signed(g["difference"]), probability(g["p_holm"]), g["verdict"]),
        ]
        for g in content["gain"]
    ]
    return _table(head, rows)


def _matrix(matrix: Content) -> str:
    rows = [[label, *map(str, line)] for label, line in zip(matrix["labels"], matrix["counts"], strict=True)]
    return f"{_text(matrix['task'])}, {_text(matrix['arm'])}:\n\n" + _table(["gold", *matrix["labels"]], rows)


def _cost(content: Content, costs: Mapping[str, str]) -> str:
    rows = [
        [str(arm["number"]), arm["name"] + (" †" if arm["cost_is_shared"] else "")]
        + [amount(arm["cost"].get(key)) for key in (*costs, "total_parameters", "tokens_per_s")]
        for arm in content["arms"]
        if arm["cost"]
    ]
    return _table(["#", "arm", *costs.values(), "all parameters", "tokens/s"], rows)


def _data(content: Content) -> str:
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
    return _table([*head, "arms"], rows)


def _settings(content: Content) -> str:
    arms = list(content["settings"]["all"])
    rows = [[name, *(v[arm] or "–" for arm in arms)] for name, v in content["settings"]["differing"].items()]
    return _table(["setting", *arms], rows)


def _runs(content: Content) -> str:
    rows = []
    for run in content["runs"]:
        hashes = [run["sha256"][:12], (run["commit"] or "–")[:12]]
        rows.append([", ".join(run["arms"]), str(run["seed"]), run["file"], *hashes, str(run["environment"])])
    notes = []
    for number, environment in enumerate(content["environments"], 1):
        said = ", ".join(f"{name} {value}" for part in environment.values() for name, value in part.items())
        notes.append(f"\n\nEnvironment {number}: {_text(said)}.")
    return _table(["arms", "seed", "file", "sha256", "commit", "environment"], rows) + "".join(notes)


def _text(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[_text(cell) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pictures(drawn: Mapping[str, str], start: str) -> str:
    return "\n".join(f"![{name}](figures/{name}.svg)" for name in drawn if name.startswith(start))
