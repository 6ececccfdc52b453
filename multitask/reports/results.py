"""Results files of any runs: found, checked, and gathered into arms that can be compared.

`arms(read([Path("runs/a"), Path("runs/b")]))`, both `multitask` with seeds 7 and 8 -> one arm `multitask` of two runs.
"""

import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from multitask.errors import InputError

SCHEMA = 1
KINDS = ("train", "pretrain", "evaluate", "fewshot", "baseline")
_PASSED_OVER = {"model", "base", "checkpoints", "predictions"}  # folders of a run that hold JSON of other kinds


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class _Score(_Part):
    value: float
    low: float | None = None
    high: float | None = None


class _Spread(_Part):
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


class Draw(_Part):
    """One set of demonstrations and the score with it."""

    seed: int | None = None
    value: float
    num_fitted: float | None = None


class Shots(_Spread):
    """Scores with so many demonstrations, over draws."""

    metric: str
    draws: list[Draw] = []
    metrics: dict[str, _Spread] = {}
    rules: dict[str, _Spread] = {}


class TaskScores(_Part):
    """One task's part of a results file."""

    metrics: dict[str, _Score] = {}
    baselines: dict[str, dict[str, _Score]] = {}
    per_shot: dict[int, Shots] = {}


class Data(_Part):
    """Which rows were scored."""

    sha256: list[str] = []
    split: str
    num_rows: int
    num_refused: int = 0


class Results(_Part):
    """A results file, as far as a report reads it."""

    kind: str
    arm: str
    seed: int
    data: dict[str, Data]
    tasks: dict[str, TaskScores]
    config: dict[str, Any] = {}
    model: dict[str, Any] = {}
    cost: dict[str, float | dict[str, Any] | None] = {}
    versions: dict[str, str] = {}
    commit: str | None = None
    hardware: dict[str, Any] = {}


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

    def curve(self) -> Iterator[dict[str, Any]]:
        """Lines of the run's `metrics.jsonl`, if there are any."""
        path = self.path.parent / "metrics.jsonl"
        if self.results.kind in ("train", "pretrain") and path.is_file():
            for _, record in json_lines(path):
                yield record


@dataclass(frozen=True)
class Score:
    """A score of an arm.

    value: the mean over its runs.
    low, high: 95 % interval over rows; of several runs the mean of their ends, which is no narrower than the mean's.
    sd: standard deviation over runs or draws; None for a single one.
    num: how many runs or draws; `over` says which of the two.
    """

    value: float
    low: float | None
    high: float | None
    sd: float | None = None
    num: int = 1
    over: str = "seeds"


@dataclass
class Arm:
    """What is compared: a way to get a model, scored on some tasks, once or with several seeds.

    shots: the number of demonstrations where that is what makes the arm; None otherwise.
    group: of few-shot arms, what they share: one curve.
    scores: by task and metric; a task's first metric is its score.
    """

    name: str
    kind: str
    runs: list[Run]
    shots: int | None = None
    group: str = ""
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)

    def predictions(self, task: str) -> list[Path]:
        """Every file with the arm's rows of a task; empty when one of its runs has none: half an arm is no arm."""
        files = [run.predictions(task, self.shots) for run in self.runs if task in run.results.tasks]
        return [path for found in files for path in found] if all(files) else []

    @property
    def num_tasks_taught(self) -> int | None:
        """1 for a single-task arm, more for a multitask arm, None where a model was not taught here."""
        first, _, _ = self.name.replace("-", " ").partition(" ")
        if first in ("single", "multitask"):
            return 1 if first == "single" else 2
        return len(self.runs[0].results.config.get("tasks", ())) or None if self.kind == "train" else None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSONL file; raises InputError with file and line for what is not one."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _object(text: str, where: str) -> dict[str, Any]:
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
    numbers that are not finite, and for files whose rows are not the same.
    """
    found: dict[Path, Run] = {}
    for path in paths:
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
    _check_same_rows(list(found.values()))
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
    if content["schema"] != SCHEMA:
        raise InputError(
            f"{path}: results of schema {content['schema']!r}, this version reads schema {SCHEMA}; score the model "
            "again, or use the version that wrote the file"
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


def _check_same_rows(runs: Sequence[Run]) -> None:
    """Raises InputError when two files scored a task on other rows, or count ROUGE in other words."""
    first: dict[str, Run] = {}
    for run in runs:
        for task in run.results.tasks:
            other = first.setdefault(task, run)
            if differing := [
                f"{what}: {theirs} there, {ours} here" for what, theirs, ours in _differing(other, run, task)
            ]:
                raise InputError(
                    f"{other.path} and {run.path} cannot be compared: task '{task}': {'; '.join(differing)}; score "
                    "both on the same rows (data.sources, eval.split, eval.max_rows), or report them apart"
                )


def _differing(one: Run, other: Run, task: str) -> Iterator[tuple[str, Any, Any]]:
    """What keeps two files apart. Windows differ, and so do the rows that they refuse: those leave the number free."""
    mine, theirs = one.results.data[task], other.results.data[task]
    for name in ("sha256", "split"):
        if getattr(mine, name) != getattr(theirs, name):
            yield name, getattr(mine, name), getattr(theirs, name)
    fewer, more = sorted((mine, theirs), key=lambda data: data.num_rows)
    if fewer.num_rows + fewer.num_refused < more.num_rows:
        yield "num_rows", mine.num_rows, theirs.num_rows
    if _counts_rouge(one, task) and _counts_rouge(other, task):
        words = [run.results.config.get("eval", {}).get("rouge_tokenizer") for run in (one, other)]
        if words[0] != words[1]:
            yield "eval.rouge_tokenizer", *words


def _counts_rouge(run: Run, task: str) -> bool:
    scores = run.results.tasks[task]
    names = {*scores.metrics, *(name for shots in scores.per_shot.values() for name in (shots.metric, *shots.metrics))}
    return any(name.startswith("rouge") for name in names)


# --- Arms


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Trivial baselines, then few-shot arms by their number of demonstrations, then the others as they were named."""
    named = _named(runs)
    several = sum(any(_shots_of(run) for run in group) for group in named.values()) > 1
    prompted: list[Arm] = []
    others: list[Arm] = []
    for name, group in named.items():
        for shots in sorted({k for run in group for k in _shots_of(run)}):
            short = f"{shots}-shot"
            full = name if name.endswith(short) else f"{name} {short}" if several else short
            arm = Arm(full, "fewshot", group, shots, full.removesuffix(short).strip())
            arm.scores = _over_runs([_prompted(run, shots) for run in group])
            prompted.append(arm)
        arm = Arm(name, group[0].results.kind, group)
        arm.scores = _over_runs([_plain(run) for run in group])
        if arm.scores:
            others.append(arm)
    prompted.sort(key=lambda arm: (arm.group, arm.shots))
    taken = {arm.name for arm in (*prompted, *others)}
    return [*(arm for arm in _baselines(runs) if arm.name not in taken), *prompted, *others]


def _shots_of(run: Run) -> set[int]:
    return {shots for task in run.results.tasks.values() for shots in task.per_shot}


def _named(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ by seed alone under the name of their arm; the file's name is added where arms share a name."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        config = {key: value for key, value in run.results.config.items() if key not in ("seed", "device")}
        groups[json.dumps([run.results.arm, run.results.kind, config], sort_keys=True)].append(run)
    apart: list[list[Run]] = []
    for group in groups.values():
        seeds = Counter(run.results.seed for run in group)
        apart += [group] if max(seeds.values()) == 1 else [[run] for run in group]
    shared = Counter(group[0].results.arm for group in apart)
    named: dict[str, list[Run]] = {}
    for group in apart:
        name = group[0].results.arm
        if shared[name] > 1:
            path = group[0].path
            name = f"{name} ({path.parent.name if path.name == 'results.json' else path.stem})"
        while name in named:  # folders of one name in several places
            name += "'"
        named[name] = group
    return named


def _plain(run: Run) -> dict[str, dict[str, Score]]:
    return {
        task: {name: Score(score.value, score.low, score.high) for name, score in scores.metrics.items()}
        for task, scores in run.results.tasks.items()
        if scores.metrics
    }


def _prompted(run: Run, num: int) -> dict[str, dict[str, Score]]:
    found: dict[str, dict[str, Score]] = {}
    for task, scores in run.results.tasks.items():
        if (shots := scores.per_shot.get(num)) is not None:
            spreads: Mapping[str, _Spread] = {shots.metric: shots} | shots.metrics | {shots.metric: shots}
            found[task] = {
                name: Score(s.mean, s.low, s.high, s.sd, max(1, len(shots.draws)), "draws")
                for name, s in spreads.items()
            }
    return found


def _over_runs(parts: Sequence[dict[str, dict[str, Score]]]) -> dict[str, dict[str, Score]]:
    """Means over runs. Of several runs, the standard deviation is over them; of one, what its file says."""
    found: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for task, scores in part.items():
            for name, score in scores.items():
                found[task][name].append(score)
    return {task: {name: _mean(same) for name, same in scores.items()} for task, scores in found.items()}


def _mean(scores: Sequence[Score]) -> Score:
    if len(scores) == 1:
        return scores[0]
    values = [score.value for score in scores]
    ends = [[getattr(score, end) for score in scores] for end in ("low", "high")]
    low, high = (None if None in end else statistics.fmean(end) for end in ends)
    return Score(statistics.fmean(values), low, high, statistics.stdev(values), len(values), "seeds")


def _baselines(runs: Sequence[Run]) -> list[Arm]:
    """What every file says of programs without a model; the same value said by several files is said once.

    Where tokenizers differ, so do unigram and bigram scores: the hardest one stands, in bits per byte; perplexities of
    different tokens are left out.
    """
    found: dict[str, dict[str, dict[str, dict[float, Score]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for run in runs:
        for task, scores in run.results.tasks.items():
            for name, measured in scores.baselines.items():
                for metric, score in measured.items():
                    found[name][task][metric][score.value] = Score(score.value, score.low, score.high)
    return [
        Arm(
            name,
            "baseline",
            [],
            scores={
                task: {
                    metric: values[min(values)] if metric == "bits_per_byte" else _mean(list(values.values()))
                    for metric, values in measured.items()
                    if metric != "perplexity" or len(values) == 1
                }
                for task, measured in tasks.items()
            },
        )
        for name, tasks in found.items()
    ]
