"""Prompts as users give them: free text or fields of a task, from flags, a file or standard input.

A line `{"context": "Ada has a cat.", "question": "What has Ada?"}` of `rows.jsonl` ->
`PromptInput({"context": ..., "question": ...}, "rows.jsonl:1")`.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from unicodedata import normalize

from multitask.config.data import ENCODINGS, DataConfig, Encoding, SourceConfig, encoding_names
from multitask.data.readers import RawRecord, file_records, fits, short
from multitask.data.sources import column_value
from multitask.errors import InputError, RowError, suggest
from multitask.pattern import fields, last_repetition, segments
from multitask.task import Task

_TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_TEXT = "\0text"  # no column has this name


@dataclass(frozen=True)
class PromptInput:
    """One prompt, free text or the fields of a task, and its place in the input, for errors."""

    given: str | Mapping[str, Any]
    where: str


def read_prompts(source: Path | BinaryIO, task: Task | None = None, encoding: str = "utf-8") -> list[PromptInput]:
    """The prompts of a file or of standard input.

    Text has a prompt in each line. A row of a JSONL, CSV, TSV or Parquet file has the field `prompt`, or with `task`
    the task's fields. With a task, other input is text if the task has one field and the first line does not begin
    with `{`, else JSON. Empty lines are skipped. encoding: utf-8 or cp949 (also euc-kr, ms949), or both with a comma
    between them: each line in the first that fits. Raises InputError with the place of a line that cannot be used, or
    when there is none.
    """
    try:
        encodings = encoding_names(encoding)
    except ValueError as error:
        raise InputError(f"--encoding {encoding}: {error}") from None
    has_fields = task is not None and plain_field(task) is None  # text is not enough
    if isinstance(source, Path):
        name, lines = str(source), _file_lines(source, has_fields, task is not None, encodings)
    else:
        name, lines = "standard input", _lines(source, has_fields, task is not None, encodings)
    prompts = []
    for _, where, found in _with_flags(lines):
        if isinstance(found, RowError):
            raise found
        if _TEXT in found:
            prompts.append(PromptInput(found[_TEXT], where))
            continue
        given: Any = found if task is not None else found.get("prompt")
        if not isinstance(given, str | Mapping):
            wrong = (
                f"is {short(given)}, expected text" if "prompt" in found else f"is missing, found {', '.join(found)}"
            )
            raise InputError(f"{where}: field 'prompt' {wrong}; with --task NAME a line has the task's fields")
        prompts.append(PromptInput(given, where))
    if not prompts:
        raise InputError(f"{name}: found no prompts, expected at least one line")
    return prompts


def _with_flags(lines: Iterator[RawRecord]) -> Iterator[RawRecord]:
    """The same; errors name the option in place of the setting of a source."""

    def told(error: InputError) -> str:
        return re.sub(r"set `encoding: \[?([a-z0-9-]+)(?:, ([a-z0-9-]+)\])?`", _flag, str(error))

    try:
        for record in lines:
            found = record.found
            yield record._replace(found=RowError(told(found))) if isinstance(found, RowError) else record
    except InputError as error:
        raise InputError(told(error)) from None


def _flag(found: re.Match[str]) -> str:
    return f"give `--encoding {','.join(filter(None, found.groups()))}`"


def _file_lines(path: Path, has_fields: bool, has_task: bool, encodings: list[Encoding]) -> Iterator[RawRecord]:
    """The records of a file; those of text have the one field `_TEXT`."""

    def records(kind: Literal["jsonl", "text"] | None) -> Iterator[RawRecord]:
        settings = SourceConfig(files={"test": [str(path)]}, format=kind, encoding=encodings)
        return file_records(str(path), settings, DataConfig(root=Path()))

    if path.name.lower().removesuffix(".gz").endswith(_TABLES):
        yield from records(None)
        return
    is_json = has_fields
    if has_task and not has_fields:
        first = next(records("text"), None)
        is_json = first is not None and not isinstance(first.found, RowError) and _is_json(first.found["text"])
    for number, where, found in records("jsonl" if is_json else "text"):
        if not is_json and isinstance(found, dict):
            found = {_TEXT: found["text"]}
        yield RawRecord(number, where, found)


def _lines(stream: BinaryIO, has_fields: bool, has_task: bool, encodings: list[Encoding]) -> Iterator[RawRecord]:
    """The lines of standard input; those of text have the one field `_TEXT`."""
    is_json = True if has_fields else None if has_task else False
    for number, raw in enumerate(stream, 1):
        where = f"standard input:{number}"
        raw = raw.removeprefix(BOM_UTF8) if number == 1 else raw
        try:
            encoding = next((one for one in encodings if fits(raw, one)), encodings[-1])
            text = raw.decode(encoding).removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            other = next((one for one in ENCODINGS if fits(raw, one)), None)
            step = f"; the line reads as {other}: give `--encoding {other}`" if other is not None else ""
            raise InputError(
                f"{where}: byte 0x{raw[error.start]:02x} is not valid {' or '.join(encodings)}{step}"
            ) from None
        if not text.strip():
            continue
        is_json = _is_json(text) if is_json is None else is_json
        try:
            found = json.loads(text) if is_json else {_TEXT: text}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON: {error}; with --task each line is a JSON object") from None
        if not isinstance(found, dict):
            raise InputError(f"{where}: a JSON object was expected, found {short(found)}")
        yield RawRecord(where, where, found)


def _is_json(first_line: str) -> bool:
    return first_line.lstrip().startswith("{")


def prompt_fields(task: Task) -> list[str]:
    """Fields of the stream that are part of the prompt."""
    return [name for name in fields(task.stream) if name != task.target]


def plain_field(task: Task) -> str | None:
    """The one field that a prompt of the task needs, which may be given as plain text; None where it needs several."""
    all_fields = prompt_fields(task)
    needed = [name for name in all_fields if name not in task.optional] or all_fields
    return needed[0] if len(needed) == 1 else None


def prompt_values(
    task: Task, prompt: PromptInput, columns: Sequence[Mapping[str, str]] = ()
) -> tuple[dict[str, str], tuple[dict[str, str], ...]]:
    """The checked fields of a task's prompt, and those of a repeated segment before its last repetition.

    columns: as `renamed` takes them.
    """
    given, needed, problem = prompt.given, prompt_fields(task), ""
    if not isinstance(given, Mapping):
        field = plain_field(task)
        if field is None:
            flags = " ".join(f"--field {name}=..." for name in needed)
            raise InputError(
                f"{prompt.where}: found text, expected the fields of task '{task.name}': {', '.join(needed) or 'none'}"
                + (f"; give them as {flags}" if needed else "")
            )
        given = {field: given}
    else:
        given = renamed(task, {normalize("NFC", name): value for name, value in given.items()}, columns)
    if task.prepare is not None:  # it may raise for the missing answer, which a prompt does not have
        try:
            given = task.prepare(dict(given))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            problem = f" ({error})" if isinstance(error, ValueError) else ""
    try:
        given, earlier = last_repetition(task, given, has_target=False)
    except ValueError as error:
        raise InputError(f"{prompt.where}: {error}") from None
    repeated = fields(segments(task.stream)[1])
    turns = tuple(
        {name: _checked(one.get(name), name, f"{prompt.where}: repetition {number}") for name in repeated}
        for number, one in enumerate(earlier, 1)
    )
    values = {}
    for name in needed:
        value = given.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            if name in task.optional:
                continue
            others = ", ".join(str(one) for one in given if one != name) or "nothing"
            found = f"is empty{problem}" if name in given else f"is missing, found {others}{problem}"
            required = [_with_column(one, columns) for one in needed if one not in task.optional]
            raise InputError(
                f"{prompt.where}: field '{name}' {found}; the prompt of task '{task.name}' needs {', '.join(required)}"
            )
        values[name] = _checked(value, name, prompt.where)
    return values, turns


def _checked(value: object, name: str, where: str) -> str:
    """A field's text; raises InputError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: field '{name}' is {short(value)}, expected text")
    return checked_text(value, where)


def renamed(task: Task, given: Mapping[str, Any], columns: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
    """A prompt's fields by the task's names, where it was given by the columns of the training data.

    columns: field -> column of each source. The first source whose columns hold all fields that the prompt needs is
    used, as in training; without one the names stay as they are. A field whose column is absent may have its own name.
    """
    for names in columns:
        found = {field: column_value(given, column) for field, column in names.items()}
        for field in names:
            if found[field] is None and field not in names.values():
                found[field] = given.get(field)
        needed = [name for name in prompt_fields(task) if name in names and name not in task.optional]
        if all(found[name] is not None for name in needed) and any(found[name] is not None for name in found):
            rest = {name: value for name, value in given.items() if name not in names}
            return {**rest, **{field: value for field, value in found.items() if value is not None}}
    return given


def _with_column(field: str, columns: Sequence[Mapping[str, str]]) -> str:
    named = dict.fromkeys(names[field] for names in columns if field in names)
    return f"{field} (or its column {' or '.join(named)})" if named else field


def checked_text(text: str, where: str) -> str:
    """The text itself; raises InputError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start + 1} is half of a surrogate pair; expected valid utf-8"
        ) from None
    return text


def flag_fields(task: Task, flags: Iterable[str], columns: Sequence[Mapping[str, str]] = ()) -> dict[str, str]:
    """Fields of a task from `name=text` flags, named as in the task or by their columns.

    Raises InputError for an invalid one.
    """
    known = {name: name for name in (*prompt_fields(task), task.target)}
    known |= {column: field for names in columns for field, column in names.items() if field in known}
    given: dict[str, str] = {}
    seen = set()
    for flag in flags:
        name, sign, text = flag.partition("=")
        name = normalize("NFC", name)
        if not sign:
            raise InputError(f"--field {flag}: expected name=text, for instance {prompt_fields(task)[0]}=...")
        if known.get(name) == task.target:
            raise InputError(
                f"--field {name}: this is the target of task '{task.name}', which the model generates; leave it out"
            )
        if name not in known:
            valid = [one for one, field in known.items() if field != task.target]
            raise InputError(f"--field {name}: task '{task.name}' has no such field; {suggest(name, valid)}")
        if known[name] in seen:
            raise InputError(f"--field {name}: found twice, expected once")
        seen.add(known[name])
        given[name] = text
    return given
