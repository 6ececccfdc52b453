"""Results files by hand: `write(tmp_path / "a.json", "tuned", {"nli": answers("aab", "abb")})`, rows and all."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from helpers import FOLDER, settings

Rows = list[dict[str, Any]]


def answers(predicted: Sequence[str], gold: Sequence[str], **changes: Any) -> Rows:
    """Lines of a predictions file of a closed task."""
    lines: Rows = []
    for number, (said, right) in enumerate(zip(predicted, gold, strict=True)):
        confusion = {f"tp:{said}": 1.0} if said == right else {f"fp:{said}": 1.0, f"fn:{right}": 1.0}
        lines.append(
            {
                "id": f"r{number}",
                "prompt": f"prompt {number}",
                "completion": said,
                "prediction": said,
                "references": [right],
                "choice_nll": {said: 0.1},
                "nll": {"nll": 1.0 + number, "tokens": 2.0, "bytes": 4.0},
                "scores": {"accuracy": {"correct": float(said == right), "count": 1.0}, "macro_f1": confusion},
                "language": "en",
                "where": f"rows.jsonl:{number + 1}",
            }
            | changes
        )
    return lines


def accuracy(rows: Rows) -> float:
    """The fraction of right answers."""
    return sum(row["scores"]["accuracy"]["correct"] for row in rows) / len(rows)


def score(value: float, width: float = 0.1) -> dict[str, float]:
    """A score with an interval."""
    return {"value": value, "low": value - width, "high": value + width}


def results(kind: str, arm: str, seed: int, tasks: Mapping[str, Any], num_rows: Mapping[str, int]) -> dict[str, Any]:
    """What a results file holds."""
    rows = {"sha256": ["ab" * 32], "split": "test", "num_truncated": 0, "num_dropped": 0, "num_skipped": 0}
    return {
        "schema": 1,
        "kind": kind,
        "arm": arm,
        "model": {"name": "some/model"},
        "config": {"tasks": list(tasks), "seed": seed, "train": {"learning_rate": 0.001}},
        "versions": {"torch": "2.13.0"},
        "commit": "c0ffee" * 6,
        "hardware": {"machine": "x86_64"},
        "seed": seed,
        "data": {name: {**rows, "num_rows": num} for name, num in num_rows.items()},
        "tasks": dict(tasks),
        "cost": {"wall_s": 12.5, "tokens": 1000 * seed, "peak_memory_bytes": 10**9, "trainable_parameters": 5000},
    }


def write(
    path: Path, arm: str, tasks: Mapping[str, Rows], seed: int = 7, kind: str = "evaluate", **changes: Any
) -> Path:
    """A file of `evaluate --out`, or of an arm of a suite, with its predictions."""
    scores = {}
    for name, rows in tasks.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        folder = path.with_name(path.name + ".predictions")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
        measured = {"accuracy": score(accuracy(rows)), "perplexity": score(2.0)}
        majority = {"accuracy": score(0.25), "macro_f1": score(0.1)}
        scores[name] = {"num_examples": len(rows), "metrics": measured, "baselines": {"majority": majority}}
    content = results(kind, arm, seed, scores, {name: len(rows) for name, rows in tasks.items()}) | changes
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def write_shots(path: Path, draws: Mapping[int, Sequence[Rows]], task: str = "nli", arm: str = "prompted") -> Path:
    """A file of `fewshot --out` by numbers of demonstrations and draws."""
    folder = path.with_name(path.name + ".predictions")
    folder.mkdir(parents=True, exist_ok=True)
    per_shot = {}
    for shots, sets in draws.items():
        for draw, rows in enumerate(sets):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{task}.shots-{shots}.draw-{draw}.jsonl").write_text(lines, "utf-8")
        values = [accuracy(rows) for rows in sets]
        mean = sum(values) / len(values)
        sd = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
        spread = {"mean": mean, "sd": sd, "low": mean - 0.05, "high": mean + 0.05}
        per_shot[str(shots)] = {
            "metric": "accuracy",
            **spread,
            "draws": [{"seed": n, "value": value, "num_fitted": min(shots, 3)} for n, value in enumerate(values)],
            "metrics": {"accuracy": spread, "macro_f1": spread},
            "rules": {"raw": spread, "calibrated": spread | {"mean": mean / 2}},
            "num_unfinished": 500 * shots,
            "num_empty": shots,
        }
    rows = next(iter(draws.values()))[0]
    scores = {task: {"num_examples": len(rows), "metrics": {}, "baselines": {}, "per_shot": per_shot}}
    path.write_text(json.dumps(results("fewshot", arm, 7, scores, {task: len(rows)})), "utf-8")
    return path


@cache
def trained() -> Path:
    """A folder of real runs: two tasks together with two seeds, one of them alone, and an evaluation of the first."""
    from multitask import evaluate, train

    folder = FOLDER / "reported"
    for seed in (7, 8):
        train(settings("nli", "qa", seed=seed), out=folder / f"both-{seed}")
    train(settings("nli"), out=folder / "alone")
    evaluate(folder / "both-7", out=folder / "again.json")
    return folder
