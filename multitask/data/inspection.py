"""Looks at data files and writes the settings that read them: format, encoding, columns, classes, splits.

A CSV file with `review,sentiment` and rows such as `재밌다,긍정` -> task cls, `columns: {text: review, label:
sentiment}`, `labels: [긍정, 부정]`, `language: ko`, split by row.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

from multitask.config.data import DataConfig, SourceConfig, label_key
from multitask.config.loading import written_word
from multitask.data.readers import RawRecord, file_records, fits, raw_records
from multitask.data.row_schema import RowSchema
from multitask.errors import InputError, RowError, suggest
from multitask.files import in_any_form
from multitask.pattern import fields
from multitask.task import Task

MAX_ROWS = 100_000
"""Rows looked at."""
MAX_CLASSES = 100
SPLIT_NAMES = {
    "train": ("train", "training", "학습", "훈련"),
    "validation": ("validation", "valid", "val", "dev", "검증"),
    "test": ("test", "eval", "평가"),
}
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "category",
    "sentiment",
    "target",
    "gold_label",
    "라벨",
    "레이블",
    "분류",
    "평가",
)


@dataclass
class Column:
    """What the rows hold in one column."""

    num_rows: int = 0
    num_texts: int = 0
    values: Counter[str] = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        """One value; classes are counted up to a limit."""
        if value is None or value == "":
            return
        self.num_rows += 1
        if isinstance(value, str):
            self.num_texts += 1
        if isinstance(value, str | int | float | bool) and len(self.values) <= MAX_CLASSES:
            self.values[label_key(value)] += 1

    @property
    def is_class(self) -> bool:
        """Few values, or each more than once on average."""
        return 1 < len(self.values) <= MAX_CLASSES and (self.num_rows >= 2 * len(self.values) or len(self.values) <= 10)


@dataclass
class Inspection:
    """What was found.

    files: names by split, below `root`. format: None where the extension tells it. columns: our field -> the file's.
    classes: of the label, with counts, the most frequent first. num_unanswered: rows without an answer.
    """

    root: Path
    files: dict[str, list[str]]
    task: Task
    columns: dict[str, str]
    format: str | None = None
    encoding: list[str] = field(default_factory=lambda: ["utf-8"])
    language: str = "en"
    classes: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    num_unanswered: int = 0


def inspect(
    paths: Sequence[Path], tasks: Mapping[str, Task], task: str | None = None, columns: Mapping[str, str] | None = None
) -> Inspection:
    """Looks at the first rows of files of the same kind.

    task, columns: what is not to be guessed, a task's name and our field -> the file's column.
    Raises InputError for files that cannot be read, and, with the columns that are there, where no task fits.
    """
    paths = [in_any_form(path) for path in paths]
    for path in paths:
        if not path.is_file():
            near = suggest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
            raise InputError(f"{path}: no such file; {near}")
    root = paths[0].parent
    if any(path.parent != root for path in paths):
        raise InputError(f"{paths[0]} and others are in several folders; name files of one folder")
    encoding, kind = _encoding(paths), _format(paths[0])
    found, num_rows, sample = _columns(paths, encoding, kind)
    chosen, mapped = _task(tasks, found, sample, task, dict(columns or {}))
    result = Inspection(root, _splits(paths), chosen, mapped, kind, encoding, num_rows=num_rows)
    texts = [[value for name, value in mapped.items() if name != chosen.label] or row for row in sample]
    result.language = _language([row.get(column) for row, each in zip(sample, texts, strict=True) for column in each])
    if chosen.label is not None and chosen.label in mapped:
        result.classes = dict(found[mapped[chosen.label]].values.most_common())
    if chosen.prepare is not None:
        result.num_unanswered = sum(_has_no_answer(row, mapped) for row in sample)
    return result


def settings_text(found: Inspection, share: float, tasks_dirs: Sequence[str] = ()) -> str:
    """The settings as commented YAML; where files do not name a split, it gets that share of the rows.

    tasks_dirs: folders of plugins to name in it.
    """
    task, source = found.task, found
    lines = [
        f"# {source.num_rows:,} rows, task {task.name}. Look at it: run.py preview --config THIS_FILE",
        f"tasks: [{task.name}]",
        *([f"tasks_dirs: [{', '.join(map(written_word, tasks_dirs))}]"] if tasks_dirs else []),
        "data:",
        f"  root: {written_word(str(source.root))}  # the files below are in this folder",
        "  sources:",
        f"    {task.name}:",
    ]
    rest = []
    if "all" in source.files:
        needs = {split: share for split in ("validation", "test") if split not in source.files}
        text = ", ".join(f"{split}: {needs.get(split, 0)}" for split in ("validation", "test"))
        rest.append(f"split_by: {{{text}}}  # by row; `column: NAME` keeps rows with equal values together")
    files = ", ".join(f"{split}: [{', '.join(map(written_word, each))}]" for split, each in source.files.items())
    body = [f"files: {{{files}}}", *rest]
    if source.format is not None:
        body.append(f"format: {source.format}")
    if source.encoding != ["utf-8"]:
        several = len(source.encoding) > 1
        body.append(f"encoding: {'[' + ', '.join(source.encoding) + ']' if several else source.encoding[0]}")
    body.append(f"language: {source.language}")
    renamed = {name: column for name, column in source.columns.items() if name != column}
    if renamed:
        pairs = ", ".join(f"{written_word(name)}: {written_word(column)}" for name, column in renamed.items())
        body.append(f"columns: {{{pairs}}}  # our field: the file's column")
    body += _label_lines(source)
    if source.num_unanswered:
        body.append(f"no_answer: skip  # {source.num_unanswered} of the first rows have no answer; or a word for them")
    lines += [f"      {'- ' if n == 0 else '  '}{line}" for n, line in enumerate(body)]
    lines += [
        "# model: {name: openai-community/gpt2}  # a pretrained model; without it a small new one is trained",
        "# train: {epochs: 3, learning_rate: 3.0e-4}",
    ]
    return "\n".join(lines) + "\n"


def _label_lines(found: Inspection) -> list[str]:
    classes, own = found.classes, found.task.choices
    if not classes:
        return []
    counts = ", ".join(f"{name} {number:,}" for name, number in list(classes.items())[:10])
    lines = [f"# classes: {counts}{', ...' if len(classes) > 10 else ''}"]
    if own is not None:
        if set(classes) <= set(own):
            return lines
        numbers = sorted(key for key in classes if key.isdecimal())
        if numbers == [str(n) for n in range(len(own))]:
            pairs = ", ".join(f"{n}: {written_word(word)}" for n, word in zip(numbers, own, strict=True))
            lines.append(f"labels: {{{pairs}}}  # CHECK the order: the file does not tell it")
        skipped = [key for key in classes if key not in numbers and key not in own]
        if skipped:
            lines.append(
                f"skip_labels: [{', '.join(map(written_word, skipped))}]  # rows of these classes are left out"
            )
        return lines
    if all(re.fullmatch(r"-?\d+(\.\d+)?", key) or key in ("true", "false") for key in classes):
        pairs = ", ".join(f"{key}: {written_word(key)}" for key in sorted(classes, key=_order))
        return [*lines, f"labels: {{{pairs}}}  # a word in place of each second one reads better: {{0: 부정, 1: 긍정}}"]
    return [*lines, f"labels: [{', '.join(map(written_word, classes))}]"]


def _order(key: str) -> tuple[float, str]:
    return (float(key) if re.fullmatch(r"-?\d+(\.\d+)?", key) else 0.0, key)


def _encoding(paths: Sequence[Path]) -> list[str]:
    """The encoding in which every line of the files can be read: utf-8, cp949, or both."""
    if any(path.suffix == ".parquet" for path in paths):
        return ["utf-8"]
    for encodings in (["utf-8"], ["cp949"], ["utf-8", "cp949"]):
        if all(_fits(path, encodings) for path in paths):
            return encodings
    raise InputError(f"{paths[0]}: neither utf-8 nor cp949 text; save it as utf-8 (`iconv -f ENCODING -t utf-8`)")


def _fits(path: Path, encodings: Sequence[str]) -> bool:
    return all(any(fits(raw, one) for one in encodings) for _, raw in raw_records(path, has_quotes=False))


def _format(path: Path) -> str | None:
    """What the extension does not tell: a `.txt` file with tabs is a table."""
    if path.name.endswith(".txt"):
        with path.open("rb") as stream:
            counts = {line.count(b"\t") for _, line in zip(range(3), stream, strict=False) if line.strip()}
        if len(counts) == 1 and counts != {0}:
            return "tsv"
    return None


def _columns(
    paths: Sequence[Path], encoding: Sequence[str], kind: str | None
) -> tuple[dict[str, Column], int, list[dict[str, Any]]]:
    """Columns, the number of rows, and the first rows."""
    found: dict[str, Column] = {}
    num_rows = 0
    sample: list[dict[str, Any]] = []
    for path in paths:
        for row in _rows(path, encoding, kind):
            num_rows += 1
            if len(sample) < 1000:
                sample.append(row)
            for name, value in row.items():
                found.setdefault(name, Column()).add(value)
            if num_rows >= MAX_ROWS:
                break
    if not found:
        raise InputError(f"{paths[0]}: there are no rows in it, expected at least one")
    return found, num_rows, sample


def _rows(path: Path, encoding: Sequence[str], kind: str | None) -> Iterator[dict[str, Any]]:
    settings: Any = {"files": {"train": [path.name]}, "encoding": list(encoding), "format": kind}
    for record in file_records(path.name, SourceConfig(**settings), DataConfig(root=path.parent)):
        if isinstance(record.found, RowError):
            raise record.found
        yield {normalize("NFC", name): value for name, value in record.found.items()}


def _splits(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Files by split, as their names tell; `all` for what has to be split."""
    found: dict[str, list[str]] = {}
    for path in paths:
        words = re.split(r"[^a-z가-힣]+", normalize("NFC", path.name).lower())
        split = next((split for split, names in SPLIT_NAMES.items() if any(name in words for name in names)), "all")
        found.setdefault(split, []).append(path.name)
    if "all" in found or not {"train", "validation", "test"} <= set(found):
        found["all"] = found.pop("all", []) + found.pop("train", [])
        if not found["all"]:
            raise InputError(
                f"{paths[0]}: only files of {', '.join(s for s in found if s != 'all')}; add one to train on"
            )
    return found


def _task(
    tasks: Mapping[str, Task],
    found: Mapping[str, Column],
    sample: Sequence[Mapping[str, Any]],
    name: str | None,
    given: dict[str, str],
) -> tuple[Task, dict[str, str]]:
    """The task whose fields the columns have, and which column each is; without any, one whose `prepare` makes them."""
    for column in given.values():
        if column not in found:
            raise InputError(f"--column: no column '{column}'; {suggest(column, found)}")
    if name is not None and name not in tasks:
        raise InputError(f"no task '{name}'; {suggest(name, tasks)}")
    candidates = [tasks[name]] if name is not None else list(tasks.values())
    fitting = []
    for task in candidates:
        mapped, missing, score = _mapped(task, found, given)
        if missing and not given and _is_readable(task, sample):
            mapped, missing, score = {}, [], 0
        if not missing:
            fitting.append(((score, task.is_closed), task, mapped))
        elif name is not None:
            raise InputError(
                f"task '{name}': no column for {', '.join(missing)}; found {', '.join(found)}; name it with --column "
                f"{missing[0]}=NAME"
            )
    if not fitting:
        raise InputError(
            f"no task fits the columns {', '.join(found)}; name one with --task ({', '.join(tasks)}) and its columns "
            "with --column FIELD=NAME"
        )
    _, task, mapped = max(fitting, key=lambda one: one[0])
    return task, mapped


def _is_readable(task: Task, sample: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the task reads the first rows as they are, because its `prepare` knows their form."""
    if task.prepare is None or task.label is not None:
        return False
    schema = RowSchema(task, SourceConfig(files={"train": ["-"]}, language="en"))
    for row in sample[:20]:
        with suppress(RowError):
            if schema.row(RawRecord("", "", dict(row))) is not None:
                return True
    return False


def _mapped(task: Task, found: Mapping[str, Column], given: Mapping[str, str]) -> tuple[dict[str, str], list[str], int]:
    """Our field -> the file's column, the fields that have none, and how sure that is: names count more than values."""
    names = task.columns or {name: () for name in fields(task.stream)}
    mapped = {name: column for name, column in given.items() if name in names}
    by_lower = {column.lower(): column for column in reversed(list(found))}
    for name, others in names.items():
        wanted = (name, *others, *(LABEL_NAMES if name == task.label else ()))
        own = [by_lower[one] for one in wanted if one in by_lower and by_lower[one] not in mapped.values()]
        if name == task.label:
            own = [column for column in own if found[column].is_class or task.choices is not None]
        if name not in mapped and own:
            mapped[name] = own[0]
    score = sum(3 if column.lower() == name else 2 for name, column in mapped.items())
    left = [name for name in names if name not in mapped]
    free = {column: found[column] for column in found if column not in mapped.values()}
    if task.label in left and (classes := [column for column, one in free.items() if one.is_class]):
        mapped[task.label] = classes[-1]
    left = [name for name in left if name not in mapped]
    texts = [c for c, one in free.items() if c not in mapped.values() and 2 * one.num_texts > one.num_rows]
    if len(left) == 1 and left[0] != task.label and len(texts) == 1:
        mapped[left[0]] = texts[0]
    missing = [name for name in names if name not in mapped and name not in task.optional]
    return mapped, missing, score + len(mapped)


def _language(values: list[Any]) -> str:
    """Code `ko` where most letters of the texts are Hangul."""
    text = normalize("NFC", "".join(_texts(values)))
    num_letters = sum(character.isalpha() for character in text)
    return "ko" if 2 * sum("가" <= character <= "힣" for character in text) > num_letters else "en"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _has_no_answer(row: Mapping[str, Any], mapped: Mapping[str, str]) -> bool:
    empties: tuple[Any, ...] = ([], {"text": [], "answer_start": []})
    return row.get("is_impossible") is True or any(row.get(column) in empties for column in mapped.values())
