"""What the run page shows: runs below one folder, read from `metrics.jsonl`, `results.json` and `predictions/`.

`find_runs(Path("runs"))` -> `{"demo": Path("runs/demo"), "suite:multitask": Path("runs/suite/multitask")}`. A request
names a key of that mapping; no path is ever made of what a request says.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel

from multitask.events import Json

_MAX_DEPTH = 3  # runs/SUITE/ARM/SEED
_MAX_BYTES = 64 << 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_LINES = 1000
"""Step lines in an answer: more are thinned out evenly, since a chart has about as many pixels."""
_ROWS_PER_TASK = 3
_PARTS = ("kind", "arm", "seed", "versions", "hardware", "tasks", "cost")
"""What is shown of a results file; its settings and its data hold paths."""


class RunSummary(BaseModel):
    """One line of the list of runs."""

    name: str
    tasks: list[str]
    step: int
    max_steps: int | None
    """None: an unfinished run whose lines do not say it."""
    is_done: bool
    has_report: bool
    idle_s: float
    """Seconds since the last line of `metrics.jsonl`."""


class Sample(BaseModel):
    """A text that the model wrote."""

    task: str
    prompt: str | None = None
    text: str
    references: list[str] = []
    step: int | None = None
    """Of a text that was generated during training."""


class RunList(BaseModel):
    """All runs, the one that was written to last first."""

    runs: list[RunSummary]


class RunDetails(RunSummary):
    """One run: lines of `metrics.jsonl` (steps thinned out), its results, texts that it wrote."""

    records: list[Json]
    results: Json | None
    samples: list[Sample]


def make_router(root: Path) -> APIRouter:
    """`/v1/runs`, `/v1/runs/NAME` and `/v1/runs/NAME/report`, for the runs below a folder."""
    router = APIRouter(tags=["runs"])

    @router.get("/v1/runs")
    def runs() -> RunList:
        """All runs, the one that was written to last first."""
        found = [summary(name, folder, root) for name, folder in find_runs(root).items()]
        return RunList(runs=sorted(found, key=lambda run: (run.idle_s, run.name)))

    @router.get("/v1/runs/{name}", response_model=RunDetails)
    def run(name: str) -> RunDetails | Response:
        """Losses, learning rate, tokens/s, validation scores, results and sample texts of a run."""
        folder = find_runs(root).get(name)
        return details(name, folder, root) if folder else _not_found(f"no run '{name[:80]}'")

    @router.get("/v1/runs/{name}/report", response_class=FileResponse)
    def report(name: str) -> Response:
        """The report.html of a run, or of the suite that it belongs to."""
        folder = find_runs(root).get(name)
        path = _report(folder, root) if folder else None
        if path is None:
            return _not_found(f"no report of a run '{name[:80]}'")
        return FileResponse(path, media_type="text/html; charset=utf-8")

    return router


def _not_found(message: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": "name", "code": "run_not_found"}
    return JSONResponse({"error": error}, status_code=404)


def find_runs(root: Path) -> dict[str, Path]:
    """Folders with a `metrics.jsonl` below a folder, by their names joined with colons.

    Hidden folders, links that lead out of the folder, and names that are not UTF-8 are left out.
    """
    found: dict[str, Path] = {}
    inside = root.resolve()

    def visit(folder: Path, names: tuple[str, ...]) -> None:
        metrics = folder / "metrics.jsonl"
        if names and metrics.is_file() and metrics.resolve().is_relative_to(inside):
            found[":".join(names)] = folder
            return
        if len(names) < _MAX_DEPTH:
            for child in _folders(folder):
                if not child.name.startswith(".") and child.resolve().is_relative_to(inside):
                    visit(child, (*names, child.name))

    visit(root, ())
    return found


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and _is_unicode(child.name))
    except OSError:
        return []


def _is_unicode(name: str) -> bool:
    return name.encode(errors="replace").decode() == name


def _owned(path: Path, root: Path) -> bool:
    """Whether it is a file of moderate size that lies below the folder, links followed."""
    try:
        inside = path.resolve().is_relative_to(root.resolve())
        return inside and path.is_file() and path.stat().st_size <= _MAX_BYTES
    except OSError:
        return False


def _report(folder: Path, root: Path) -> Path | None:
    """The report of a run, or of the nearest folder above it, up to `root`."""
    for place in (folder, *folder.parents):
        if place == root:
            return None
        if _owned(place / "report.html", root):
            return place / "report.html"
    return None


def summary(name: str, folder: Path, root: Path) -> RunSummary:
    """How far a run is."""
    metrics = folder / "metrics.jsonl"
    changed = _changed(metrics)
    lines = _tail(metrics, changed)
    last = next((line for line in reversed(lines) if "step" in line), {})
    step, is_done = _whole(last.get("step")) or 0, (folder / "results.json").is_file()
    limit = next((_whole(line["max_steps"]) for line in reversed(lines) if "max_steps" in line), None)
    return RunSummary(
        name=name,
        tasks=list(_losses(last)),
        step=step,
        max_steps=step if is_done else limit,
        is_done=is_done,
        has_report=_report(folder, root) is not None,
        idle_s=round(max(0.0, time.time() - changed), 1),
    )


def details(name: str, folder: Path, root: Path) -> RunDetails:
    """A run with its records."""
    metrics, results_file = folder / "metrics.jsonl", folder / "results.json"
    records = list(_lines(metrics) if _owned(metrics, root) else _tail(metrics, _changed(metrics)))
    read = _object(results_file.read_text("utf-8", "replace")) if _owned(results_file, root) else None
    results = {key: read[key] for key in _PARTS if key in read} if read else None
    return RunDetails(
        **summary(name, folder, root).model_dump(),
        records=thinned(records),
        results=results,
        samples=[*_of_training(records), *_of_results(results or {}), *_of_predictions(folder, root)],
    )


def thinned(records: list[Json], most: int = _MAX_LINES) -> list[Json]:
    """At most so many step lines, evenly spaced and with the last one; all others stay."""
    steps = [number for number, line in enumerate(records) if line.get("event") == "step"]
    if len(steps) <= most:
        return records
    kept = {steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)}
    return [line for number, line in enumerate(records) if number in kept or line.get("event") != "step"]


def _of_training(records: list[Json]) -> list[Sample]:
    """Of a pretrained model: the newest texts first, at most five."""
    found = [line for line in records if isinstance(line.get("sample"), str)]
    return [Sample(task="text", text=line["sample"], step=_whole(line.get("step"))) for line in found[:-6:-1]]


def _of_results(results: Json) -> list[Sample]:
    found = []
    for task, part in _mapping(results.get("tasks")).items():
        texts = _mapping(_mapping(part).get("generation")).get("sample")
        for text in islice(texts if isinstance(texts, list) else [], _ROWS_PER_TASK):
            if isinstance(text, str):
                found.append(Sample(task=task, text=text))
    return found


def _of_predictions(folder: Path, root: Path) -> list[Sample]:
    """The first predictions of each task."""
    found = []
    for path in sorted((folder / "predictions").glob("*.jsonl")):
        if not _owned(path, root):
            continue
        answered = (line for line in _lines(path) if isinstance(line.get("prediction"), str))
        for line in islice(answered, _ROWS_PER_TASK):
            references = line.get("references")
            texts = [str(one) for one in references] if isinstance(references, list) else []
            prompt = str(line["prompt"]) if "prompt" in line else None
            found.append(Sample(task=path.stem, prompt=prompt, text=line["prediction"], references=texts))
    return found


def _lines(path: Path) -> Iterator[Json]:
    """The objects of a JSONL file; a line that is being written, or is damaged, is left out."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if (found := _object(line)) is not None:
                    yield found
    except OSError:
        return


@lru_cache(maxsize=1024)
def _tail(path: Path, changed: float) -> tuple[Json, ...]:
    """The objects in the last 64 KiB of a file; `changed`: when it was written, so that it is read once."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - (64 << 10)))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ()
    return tuple(found for line in lines if (found := _object(line)) is not None)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _object(text: str) -> Json | None:
    """A JSON object with finite numbers; None for anything else."""
    try:
        read = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    if _SURROGATE.search(text):  # halves of pairs, which no answer can hold, become question marks
        read = json.loads(json.dumps(read, ensure_ascii=False).encode(errors="replace"))
    return read if isinstance(read, dict) else None


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _losses(line: Json) -> Mapping[str, Any]:
    return _mapping(line.get("loss"))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
