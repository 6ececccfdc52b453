"""Prompts as users give them: free text or fields of a task, from flags, a file or standard input.

A line `{"context": "Ada has a cat.", "question": "What has Ada?"}` of `rows.jsonl` ->
`PromptInput({"context": ..., "question": ...}, "rows.jsonl:1")`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from multitask.config.data import DataConfig, SourceConfig
from multitask.data.readers import RawRecord, file_records, short
from multitask.errors import InputError, RowError, suggest
from multitask.pattern import fields
from multitask.task import Task


@dataclass(frozen=True)
class PromptInput:
    """One prompt, free text or the fields of a task, and its place in the input, for errors."""

    given: str | Mapping[str, Any]
    where: str


def read_prompts(
    source: Path | BinaryIO, task: Task | None = None, encoding: Literal["utf-8", "cp949"] = "utf-8"
) -> list[PromptInput]:
    """The prompts of a file or of standard input, one a line: free text, or JSON.

    A line of `.jsonl` has the field `prompt`, or with `task` the task's fields; with a task any input is JSON. Empty
    lines are skipped. Raises InputError with the place of a line that cannot be used, or when there is none.
    """
    is_json = task is not None
    if isinstance(source, Path):
        is_json = is_json or source.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json"))
        kind: Literal["jsonl", "text"] = "jsonl" if is_json else "text"
        settings = SourceConfig(files={"test": [str(source)]}, format=kind, encoding=[encoding])
        lines, name = file_records(str(source), settings, DataConfig(root=Path())), str(source)
    else:
        lines, name = _lines(source, is_json, encoding), "standard input"
    prompts = []
    for _, where, found in lines:
        if isinstance(found, RowError):
            raise found
        given: Any = found if task is not None else found.get("prompt" if is_json else "text")
        if not isinstance(given, str | Mapping):
            wrong = (
                f"is {short(given)}, expected text" if "prompt" in found else f"is missing, found {', '.join(found)}"
            )
            raise InputError(f"{where}: field 'prompt' {wrong}; with --task NAME a line has the task's fields")
        prompts.append(PromptInput(given, where))
    if not prompts:
        raise InputError(f"{name}: found no prompts, expected at least one line")
    return prompts


def _lines(stream: BinaryIO, is_json: bool, encoding: str) -> Iterator[RawRecord]:
    for number, raw in enumerate(stream, 1):
        where = f"standard input:{number}"
        try:
            text = raw.decode(encoding).removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: byte 0x{raw[error.start]:02x} is not valid {encoding}") from None
        if not text.strip():
            continue
        try:
            found = json.loads(text) if is_json else {"text": text}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON: {error}; with --task each line is a JSON object") from None
        if not isinstance(found, dict):
            raise InputError(f"{where}: a JSON object was expected, found {short(found)}")
        yield RawRecord(where, where, found)


def prompt_fields(task: Task) -> list[str]:
    """Fields of the stream that are part of the prompt."""
    return [name for name in fields(task.stream) if name != task.target]


def prompt_values(task: Task, prompt: PromptInput) -> dict[str, str]:
    """The checked fields of a task's prompt."""
    given, needed = prompt.given, prompt_fields(task)
    if not isinstance(given, Mapping):
        raise InputError(
            f"{prompt.where}: found text, expected the fields of task '{task.name}': {', '.join(needed) or 'none'}"
        )
    if task.prepare is not None:  # it may raise for the missing answer, which a prompt does not have
        with suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
            given = task.prepare(dict(given))
    values = {}
    for name in needed:
        value = given.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            if name in task.optional:
                continue
            found = f"found {', '.join(map(str, given)) or 'nothing'}"
            raise InputError(
                f"{prompt.where}: field '{name}' is {'empty' if name in given else 'missing'}, {found}; the prompt of "
                f"task '{task.name}' needs {', '.join(n for n in needed if n not in task.optional)}"
            )
        if not isinstance(value, str):
            raise InputError(f"{prompt.where}: field '{name}' is {short(value)}, expected text")
        values[name] = checked_text(value, prompt.where)
    return values


def checked_text(text: str, where: str) -> str:
    """The text itself; raises InputError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start + 1} is half of a surrogate pair; expected valid utf-8"
        ) from None
    return text


def flag_fields(task: Task, flags: Iterable[str]) -> dict[str, str]:
    """Fields of a task from `name=text` flags; raises InputError for an invalid one."""
    given: dict[str, str] = {}
    for flag in flags:
        name, sign, text = flag.partition("=")
        if not sign:
            raise InputError(f"--field {flag}: expected name=text, for instance {prompt_fields(task)[0]}=...")
        if name == task.target:
            raise InputError(
                f"--field {name}: this is the target of task '{task.name}', which the model generates; leave it out"
            )
        if name not in prompt_fields(task):
            raise InputError(
                f"--field {name}: task '{task.name}' has no such field; {suggest(name, prompt_fields(task))}"
            )
        if name in given:
            raise InputError(f"--field {name}: found twice, expected once")
        given[name] = text
    return given
