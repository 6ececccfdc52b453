"""Tables of the Markdown report: a head and rows of text."""

from collections.abc import Sequence
from typing import Any

from multitask.reports.rendering.numbers import CONTAMINATION, COSTS, COUNTS, amount, number, probability, signed
from multitask.reports.rendering.words import Words, notes

Content = dict[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]
ARROWS = {"better": " ▲", "worse": " ▼"}


class Bold(str):
    """A cell that is printed bold."""


def scores(content: Content, said: Words) -> Table:
    """Arms by task, the best score of each task in bold."""
    compared = content["comparisons"].get(content["against"], [])
    marks = {(test["arm"], test["task"]): ARROWS.get(test["verdict"], "") for test in compared}
    head = [said["arm"]]
    for name, task in content["tasks"].items():
        head.append(f"{name}: {task['metric']} {'↑' if task['higher_is_better'] else '↓'}")
    rows = []
    for arm in content["arms"]:
        if not arm["has_main_score"]:  # `unigram`, `bigram`: of perplexity alone, among all metrics
            continue
        row = [arm["name"]]
        for name, task in content["tasks"].items():
            text = _score(arm["scores"].get(name, {}).get(task["metric"]), said) + marks.get((arm["name"], name), "")
            row.append(Bold(text) if arm["name"] in task["best_arms"] else text)
        rows.append(row)
    return head, rows


def metrics(content: Content, said: Words) -> Table:
    """Every metric of every arm; no rows where each arm has its task's first metric alone."""
    rows = [
        [
            *(arm["name"], task, metric, number(score["value"]), between(score["low"], score["high"], said)),
            *(number(score["sd"]), str(score["num"])),
        ]
        for arm in content["arms"]
        for task, scores in arm["scores"].items()
        for metric, score in scores.items()
    ]
    has_more = any(metric != content["tasks"][task]["metric"] for _, task, metric, *_ in rows)
    names = ("arm", "task", "metric", "score", "interval", "sd", "runs_or_draws")
    return [said[name] for name in names], rows if has_more else []


def _score(score: Content | None, said: Words) -> str:
    if score is None:
        return "–"
    text = number(score["value"])
    if score["low"] is not None:
        text += f" ({between(score['low'], score['high'], said)})"
    over = said[score["over"]]
    return text + (f" ± {number(score['sd'])}, {score['num']} {over}" if score["sd"] is not None else "")


def between(low: float | None, high: float | None, said: Words) -> str:
    """An interval: `0.3 to 0.4`."""
    if low is None or high is None:
        return "–"
    return f"{number(low)} {said['to']} {number(high)}"


def _difference(test: Content, said: Words) -> list[str]:
    interval = f"{signed(test['low'])} {said['to']} {signed(test['high'])}"
    return [signed(test["difference"]), interval, probability(test["p_adjusted"]), said[test["verdict"]]]


def _difference_head(said: Words) -> list[str]:
    return [said[name] for name in ("difference", "joint_interval", "p", "verdict")]


def main(content: Content, said: Words) -> Table:
    """Tuned arms against the best prompting and the best trivial baseline."""
    head = [said["task"], said["arm"], said["compared_with"], *_difference_head(said)]
    rows = [
        [one["task"], one["arm"], f"{said[one['role']]}: {one['against']}", *_difference(one, said)]
        for one in content["main_comparisons"]
    ]
    return head, rows


def tests(found: Sequence[Content], said: Words) -> Table:
    """Every arm against one."""
    head = [said["arm"], said["task"], said["metric"], *_difference_head(said)]
    return head, [[one["arm"], one["task"], one["metric"], *_difference(one, said)] for one in found]


def few_shot(content: Content, said: Words) -> Table:
    """Numbers of demonstrations."""
    names = ("arm", "task", "metric", "mean", "sd_over_draws", "interval_over_rows", "draws", "fitted", "notes")
    rows = [
        [
            *(p["arm"], p["task"], p["metric"], number(p["value"]), number(p["sd"])),
            *(between(p["low"], p["high"], said), str(p["num"]), amount(p["num_fitted"])),
            "; ".join(notes(said, p)),
        ]
        for p in content["few_shot"]
    ]
    return [said[name] for name in names], rows


def gain(content: Content, said: Words) -> Table:
    """Multitask arms against single-task arms."""
    names = ("task", "multitask_arm", "single_arm", "multitask", "single", "difference", "p", "verdict")
    rows = [
        [
            *(g["task"], g["multitask"], g["single"], number(g["multitask_value"]), number(g["single_value"])),
            *(signed(g["difference"]), probability(g["p_adjusted"]), said[g["verdict"]]),
        ]
        for g in content["gain"]
    ]
    return [said[name] for name in names], rows


def matrix(found: Content, said: Words) -> Table:
    """Gold classes (rows) by predicted ones (columns)."""
    rows = [[label, *map(str, line)] for label, line in zip(found["labels"], found["counts"], strict=True)]
    return [said["gold"], *found["labels"]], rows


def cost(content: Content, said: Words) -> Table:
    """Arms that a file says the cost of."""
    rows = [
        [str(arm["cost_number"]), arm["name"] + (" †" if arm["cost_is_shared"] else "")]
        + [amount(arm["cost"].get(key)) for key in (*COSTS, "total_parameters", "tokens_per_s")]
        for arm in content["arms"]
        if arm["cost"]
    ]
    return [said[name] for name in ("number", "arm", *COSTS, "total_parameters", "tokens_per_s")], rows


def data(content: Content, said: Words) -> Table:
    """Counts of rows."""
    rows = []
    for line in content["contamination"]:
        digests = ", ".join(digest[:12] for digest in line["sha256"] or ())
        counts = [amount(line[key]) if key != "overlap" else number(line[key]) for key in (*COUNTS, *CONTAMINATION)]
        rows.append([line["task"], line["split"], *counts, digests, ", ".join(line["arms"])])
    names = [said[name] for name in ("task", "split", *COUNTS, *CONTAMINATION)]
    return [*names, "sha256", said["arms"]], rows


def settings(content: Content, said: Words) -> Table:
    """Settings that differ between arms."""
    arms = list(content["settings"]["all"])
    rows = [[name, *(v[arm] or "–" for arm in arms)] for name, v in content["settings"]["differing"].items()]
    return [said["setting"], *arms], rows


def runs(content: Content, said: Words) -> Table:
    """Results files."""
    rows = []
    for run in content["runs"]:
        hashes = [run["sha256"][:12], (run["commit"] or "–")[:12]]
        rows.append([", ".join(run["arms"]), str(run["seed"]), run["file"], *hashes, str(run["environment"])])
    return [said["arms"], said["seed"], said["file"], "sha256", said["commit"], said["environment"]], rows
