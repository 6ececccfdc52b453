"""Results files of any runs: found, checked, and gathered into arms that can be compared.

`arms(read([Path("runs/a"), Path("runs/b")]))`, both `multitask` with seeds 7 and 8 -> one arm `multitask` of two runs.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from multitask.errors import InputError
from multitask.evaluation.schema import READABLE, Results
from multitask.events import Json
from multitask.files import in_any_form

KINDS = ("train", "pretrain", "evaluate", "fewshot", "baseline")
_PASSED_OVER = {"model", "base", "checkpoints", "predictions"}  # folders of a run that hold JSON of other kinds


@dataclass(frozen=True)
class Run:
    """One results file and what lies beside it."""

    path: Path
    sha256: str
    results: Results

    def predictions(self, task: str, shots: int | None) -> list[Path]:
        """The files with a task's rows: one, or one of each draw; empty when they are not there."""
        folder = self.path.with_name(self.path.name + ".predictions")
        if not folder.is_dir():
            folder = self.path.parent / "predictions"
        if shots is None:
            found = [folder / f"{task}.jsonl"]
        else:
            start = f"{task}.shots-{shots}.draw-"
            found = sorted(
                (path for path in folder.glob("*.jsonl") if path.name.startswith(start)),
                key=lambda path: (len(path.name), path.name),  # draw-2 before draw-10
            )
        return [path for path in found if path.is_file()]

    def curve(self) -> Iterator[Json]:
        """Lines of the run's `metrics.jsonl`, if there are any."""
        path = self.path.parent / "metrics.jsonl"
        if self.results.kind in ("train", "pretrain") and path.is_file():
            for _, record in json_lines(path):
                yield record


def json_lines(path: Path) -> Iterator[tuple[int, Json]]:
    """Line numbers and objects of a JSONL file; raises InputError with file and line for what is not one."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _object(text: str, where: str) -> Json:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); write it again with the command that made it") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: a JSON object was expected, found {type(found).__name__}")
    for key, value in _leaves(found):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: {key} is {value}, a finite number was expected; score this model again")
    return found


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested lists and objects that is neither, with its dotted path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    else:
        for key, inner in items:
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def read(paths: Iterable[Path]) -> list[Run]:
    """The results files that are named, and all that lie below the folders that are named, each once.

    Raises InputError for a file that holds no results or those of another schema, for a folder without any, for
    numbers that are not finite, and for files that count ROUGE in other words.
    """
    found: dict[Path, Run] = {}
    for path in map(in_any_form, paths):
        below = [run for file in _json_files(path) if (run := _run(file, is_named=file == path)) is not None]
        if not below:
            raise InputError(
                f"{path}: no results in this folder; expected a run that train finished (results.json), or files of "
                "evaluate --out or fewshot --out. An interrupted run is finished with train --resume"
            )
        for run in below:
            found.setdefault(run.path.resolve(), run)
    if not found:
        raise InputError("no results were named; expected run folders or results files")
    _check_same_words(list(found.values()))
    return list(found.values())


def _json_files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected a run folder or a results file")
    if not path.is_dir():
        yield path
        return
    for inner in sorted(path.iterdir()):
        if inner.is_dir():
            if inner.name not in _PASSED_OVER and not inner.name.endswith(".predictions"):
                yield from _json_files(inner)
        elif inner.suffix == ".json" and not inner.name.startswith("."):
            yield inner


def _run(path: Path, is_named: bool) -> Run | None:
    """The run of a results file; None for a JSON file of another kind that was only come across."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); expected a results file (JSON)") from None
    if not is_named and not text.lstrip().startswith("{"):
        return None
    content = _object(text, str(path))
    if content.get("kind") not in KINDS or "schema" not in content:
        if not is_named:
            return None
        raise InputError(
            f"{path}: not a results file: kind is {content.get('kind')!r}, expected one of {', '.join(KINDS)}; name "
            "what train, evaluate --out or fewshot --out wrote"
        )
    if content["schema"] not in READABLE:
        raise InputError(
            f"{path}: results of schema {content['schema']!r}, this version reads {' and '.join(map(str, READABLE))}; "
            "score the model again, or use the version that wrote the file"
        )
    try:
        results = Results.model_validate(content)
    except ValidationError as error:
        problems = (f"{path}: {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise InputError("\n".join(problems)) from None
    for task in results.tasks:
        if task not in results.data:
            raise InputError(f"{path}: data.{task} is missing: which rows task '{task}' was scored on is not known")
    return Run(path, hashlib.sha256(raw).hexdigest(), results)


def _check_same_words(runs: Sequence[Run]) -> None:
    """Raises InputError when two files count ROUGE of a task in other words."""
    first: dict[str, Run] = {}
    for run in runs:
        for task in run.results.tasks:
            if not _counts_rouge(run, task):
                continue
            other = first.setdefault(task, run)
            words = [one.results.config.get("eval", {}).get("rouge_tokenizer") for one in (other, run)]
            if words[0] != words[1]:
                raise InputError(
                    f"{other.path} and {run.path} cannot be compared: task '{task}': eval.rouge_tokenizer: {words[0]} "
                    f"there, {words[1]} here; score both with the same, or report them apart"
                )


class RowSet(NamedTuple):
    """Which rows a file scored; rows that a window dropped make no other set."""

    sha256: tuple[str, ...]
    split: str
    num_rows: int
    """Without those that a window dropped: of a set, the largest number of any file."""

    def __str__(self) -> str:
        digests = ", ".join(digest[:8] for digest in self.sha256)
        return f"{self.num_rows} rows of {self.split}" + f" ({digests})" * bool(digests)


def row_sets(runs: Iterable[Run], task: str) -> dict[RowSet, list[str]]:
    """The different sets of rows that a task was scored on, each with its files; one set where all are the same.

    Windows differ, and so do the rows that they drop: files that differ by no more rows than were dropped are one set.
    """
    found: dict[RowSet, list[str]] = {}
    scored = [(run.results.data[task], run) for run in runs if task in run.results.tasks]
    for data, run in sorted(scored, key=lambda pair: -pair[0].num_rows):
        for rows in found:
            same = (rows.sha256, rows.split) == (tuple(data.sha256), data.split)
            if same and data.num_rows + data.num_dropped >= rows.num_rows:
                break
        else:
            rows = RowSet(tuple(data.sha256), data.split, data.num_rows)
        files = found.setdefault(rows, [])
        if str(run.path) not in files:
            files.append(str(run.path))
    return found


def _counts_rouge(run: Run, task: str) -> bool:
    scores = run.results.tasks[task]
    names = {*scores.metrics, *(name for shots in scores.per_shot.values() for name in (shots.metric, *shots.metrics))}
    return any(name.startswith("rouge") for name in names)
