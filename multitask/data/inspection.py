"""Looks at data files for the settings that read them: format, encoding, columns, classes, splits.

A CSV file with `review,sentiment` and rows such as `재밌다,긍정` -> task cls, `columns: {text: review, label:
sentiment}`, `labels: [긍정, 부정]`, `language: ko`, split by row.
"""

import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

from multitask.config.data import DataConfig, SourceConfig, is_data_file, label_key
from multitask.data.readers import EXTENSIONS, RawRecord, file_records, fits, has_excel_quotes, opened, raw_records
from multitask.data.row_schema import RowSchema
from multitask.errors import InputError, RowError, suggest
from multitask.files import in_any_form
from multitask.pattern import fields
from multitask.task import Task

MAX_ROWS = 100_000
"""Rows looked at."""
MAX_CLASSES = 100
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
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
    num_empty: int = 0
    distinct: set[int] = field(default_factory=set)
    values: Counter[str] = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        """One value; classes are counted up to a limit."""
        if value is None or value == "":
            self.num_empty += value is not None
            return
        self.num_rows += 1
        if isinstance(value, str):
            self.num_texts += 1
            self.distinct.add(hash(value))
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
    num_without_hangul: of the num_sampled first rows of a Korean set, where none has a language of its own. classes: of
    the label, with counts, the most frequent first. num_unanswered: rows without an answer. repeated: the
    column of the task's `truncate` field where rows share its texts, of which there are num_texts.
    """

    root: Path
    files: dict[str, list[str]]
    task: Task
    columns: dict[str, str]
    format: str | None = None
    encoding: list[str] = field(default_factory=lambda: ["utf-8"])
    language: str = "en"
    num_without_hangul: int = 0
    num_sampled: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    num_unanswered: int = 0
    repeated: str | None = None
    num_texts: int = 0


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
            folder = path if path.is_dir() else path.parent
            files = (
                [p.name for p in folder.iterdir() if p.is_file() and is_data_file(p.name)] if folder.is_dir() else []
            )
            if path.is_dir():
                named = f"; in it: {', '.join(sorted(files)[:8]) or 'none'}"
                raise InputError(f"{path}: a folder, expected data files{named}")
            near = suggest(path.name, files) if folder.is_dir() else f"there is no folder {folder}"
            raise InputError(f"{path}: no such file; {near}")
    root = paths[0].parent
    if any(path.parent != root for path in paths):
        raise InputError(f"{paths[0]} and others are in several folders; name files of one folder")
    kind, encoding = _format(paths[0]), _encoding(paths)
    found, num_rows, sample, names = _columns(paths, encoding, kind)
    chosen, mapped = _task(tasks, found, sample, task, _nfc_pairs(columns or {}))
    _check_alike(names, chosen, mapped)
    result = Inspection(root, _splits(paths), chosen, mapped, kind, encoding, num_rows=num_rows)
    texts = [[value for name, value in mapped.items() if name != chosen.label] or row for row in sample]
    of_rows = [[row.get(column) for column in each] for row, each in zip(sample, texts, strict=True)]
    result.language = _language(of_rows)
    if result.language == "ko" and "language" not in found:
        result.num_without_hangul = sum(not _num_hangul(_text(values)) for values in of_rows)
        result.num_sampled = len(sample)
    text = found.get(mapped.get(chosen.truncate or "", chosen.truncate or ""))
    if text is not None and text.num_texts + text.num_empty == num_rows and text.num_texts > len(text.distinct):
        result.repeated, result.num_texts = mapped.get(chosen.truncate or "", chosen.truncate), len(text.distinct)
    if chosen.label is not None and chosen.label in mapped:
        result.classes = dict(found[mapped[chosen.label]].values.most_common())
    if chosen.prepare is not None:
        result.num_unanswered = sum(_has_no_answer(row, mapped) for row in sample)
    return result


def _encoding(paths: Sequence[Path]) -> list[str]:
    """The encoding in which every line of the files can be read: utf-8, cp949, or both."""
    if any(path.suffix == ".parquet" or _head(path).startswith(b"PAR1") for path in paths):
        return ["utf-8"]
    for encodings in (["utf-8"], ["cp949"], ["utf-8", "cp949"]):
        if all(_fits(path, encodings) for path in paths):
            return encodings
    raise InputError(f"{paths[0]}: neither utf-8 nor cp949 text; save it as utf-8 (`iconv -f ENCODING -t utf-8`)")


def _fits(path: Path, encodings: Sequence[str]) -> bool:
    return all(any(fits(raw, one) for one in encodings) for _, raw in raw_records(path, has_quotes=False))


def _format(path: Path) -> str | None:
    """What the extension does not tell: a `.txt` file with tabs is a table, cells may be in quotes."""
    suffix, head = Path(path.name.lower().removesuffix(".gz")).suffix, _head(path)
    if suffix in _WORKBOOKS:
        raise InputError(f"{path}: a workbook of a spreadsheet; save its sheet as CSV (`CSV UTF-8` in Excel's list)")
    lines = [line for line in head.splitlines()[:3] if line.strip()]
    has_tabs = len({line.count(b"\t") for line in lines}) == 1 and b"\t" in head
    found: str | None = None
    if suffix == ".tsv" or (has_tabs and suffix not in EXTENSIONS) or (has_tabs and suffix == ".txt"):
        found = "excel-tab" if has_excel_quotes(path) else "tsv" if suffix != ".tsv" else None
    elif suffix == ".csv" and has_tabs and b"," not in head.split(b"\n")[0]:
        found = "excel-tab"
    elif suffix not in EXTENSIONS:
        found = _format_of(head, path)
    return found


def _format_of(head: bytes, path: Path) -> str:
    """The format of a file whose name does not tell it. Raises InputError for one that shows none."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.removeprefix(BOM_UTF8).lstrip().startswith((b"{", b"[")):
        return "jsonl"
    if b"\0" not in head and b"," in head.split(b"\n")[0]:
        return "csv"
    known = ", ".join(EXTENSIONS)
    raise InputError(
        f"{path}: neither its name nor its beginning tells the format; give it a name that ends in {known}"
    )


def _head(path: Path) -> bytes:
    with opened(path) as stream:
        return stream.read(1 << 16)


def _columns(
    paths: Sequence[Path], encoding: Sequence[str], kind: str | None
) -> tuple[dict[str, Column], int, list[dict[str, Any]], dict[Path, list[str]]]:
    """Columns, the number of rows, the first rows, and the columns of each file."""
    found: dict[str, Column] = {}
    names: dict[Path, list[str]] = {}
    num_rows = 0
    sample: list[dict[str, Any]] = []
    for path in paths:
        own = dict[str, None]()
        for row in _rows(path, encoding, kind):
            num_rows += 1
            own |= dict.fromkeys(row)
            if len(sample) < 1000:
                sample.append(row)
            for name, value in row.items():
                found.setdefault(name, Column()).add(value)
            if num_rows >= MAX_ROWS:
                break
        names[path] = list(own)
        if own and not own.keys() & names[paths[0]]:
            raise InputError(_differing(paths[0], names[paths[0]], path, names[path]))
    if not found:
        raise InputError(f"{paths[0]}: there are no rows in it, expected at least one")
    return found, num_rows, sample, names


def _differing(first: Path, names: Sequence[str], other: Path, others: Sequence[str]) -> str:
    return (
        f"{other}: columns {', '.join(others)}; {first} has {', '.join(names)}; files of one set of rows have the same "
        "columns: look at others with an `init` of their own"
    )


def _check_alike(names: Mapping[Path, Sequence[str]], task: Task, mapped: Mapping[str, str]) -> None:
    """Raises InputError for a file without a column that is needed and another file has."""
    needed = {column for name, column in mapped.items() if name not in task.optional}
    for path, others in names.items():
        whole = next((one for one in names if needed <= set(names[one])), None)
        if whole is not None and others and not needed <= set(others):
            raise InputError(_differing(whole, names[whole], path, others))


def _nfc_pairs(columns: Mapping[str, str]) -> dict[str, str]:
    return {normalize("NFC", name): normalize("NFC", column) for name, column in columns.items()}


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
    for field_name in given:
        known = {one for task in candidates for one in _fields(task)}
        near = suggest(field_name, known)
        is_read = name is not None and tasks[name].prepare is not None and not near.startswith("did")
        if field_name not in known and not is_read:
            of = "no task has a" if name is None else f"task '{name}' has no"
            raise InputError(f"--column {field_name}={given[field_name]}: {of} field '{field_name}'; {near}")
    candidates = [task for task in candidates if given.keys() <= _fields(task)] or candidates
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
    return task, {**mapped, **given}


def _fields(task: Task) -> set[str]:
    """What a column may be of a task."""
    return {*task.columns, *fields(task.stream), "id", "language"}


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
    """Code `ko` where a tenth of the letters or more are Hangul: what is Korean counts the words of both languages."""
    text = _text(values)
    num_letters = sum(character.isalpha() for character in text)
    return "ko" if num_letters and 10 * _num_hangul(text) >= num_letters else "en"


def _text(values: list[Any]) -> str:
    return normalize("NFC", "".join(_texts(values)))


def _num_hangul(text: str) -> int:
    return sum("가" <= character <= "힣" for character in text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _has_no_answer(row: Mapping[str, Any], mapped: Mapping[str, str]) -> bool:
    empties: tuple[Any, ...] = ([], {"text": [], "answer_start": []})
    return row.get("is_impossible") is True or any(row.get(column) in empties for column in mapped.values())
