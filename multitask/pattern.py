"""From a row to pieces: the one place that reads a pattern.

`render(nli, {"premise": "A", "hypothesis": "B", "label": "neutral"})` ->
`A`, `<|sep|>`, `B`, `<|nli|>`, `neutral`, `<|end|>`: six pieces, markers and fields in the order of the stream.

A pattern that ends with `(<|marker|>...)+` repeats that segment: `(<|user|>{user}<|assistant|>{reply}<|end|>)+` of a
conversation of three turns has three replies, and each of them is a target.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from multitask.task import END, PAD, Prompt, Task

_TOKEN = re.compile(r"(<\|[^|<>{}\s]+\|>)|\{(\w+)\}")
_REPEATED = re.compile(r"\((?=<\|)(.*)\)\+$", re.DOTALL)


class Piece(NamedTuple):
    """One span of a rendered row: a marker, or a field together with the literal text before it.

    text: what stands in the stream; of a field, without the literal.
    field: the field's name; None for a marker and for literal text that no field follows.
    literal: pattern text glued before the field, for instance the space of `{label} {text}`.
    """

    text: str
    field: str | None = None
    literal: str = ""
    is_marker: bool = False


@lru_cache(maxsize=256)
def parse(pattern: str) -> tuple[Piece, ...]:
    """The pattern as pieces without values, a repeated segment once; `text` of a field is empty."""
    pattern = "".join(segments(pattern))
    pieces: list[Piece] = []
    literal, end = "", 0
    for match in _TOKEN.finditer(pattern):
        literal = pattern[end : match.start()]
        end = match.end()
        if match[1]:
            if literal:
                pieces.append(Piece(literal))
            pieces.append(Piece(match[1], is_marker=True))
        else:
            pieces.append(Piece("", field=match[2], literal=literal))
    if pattern[end:]:
        pieces.append(Piece(pattern[end:]))
    return tuple(pieces)


@lru_cache(maxsize=256)
def segments(pattern: str) -> tuple[str, str]:
    """What stands once and what is repeated: `a(<|b|>{c})+` -> `a` and `<|b|>{c}`; the latter is "" without any."""
    found = _REPEATED.search(pattern)
    return (pattern[: found.start()], found[1]) if found else (pattern, "")


def fields(pattern: str) -> tuple[str, ...]:
    """Field names in the order of the pattern: `("premise", "hypothesis", "label")`."""
    return tuple(piece.field for piece in parse(pattern) if piece.field)


def markers(tasks: Mapping[str, Task]) -> list[str]:
    """Special tokens of these tasks: `<|pad|>`, `<|end|>` and the patterns' own, each once, in a stable order."""
    found = dict.fromkeys([PAD, END])
    for name in sorted(tasks):
        found.update(dict.fromkeys(piece.text for piece in parse(tasks[name].stream) if piece.is_marker))
    return list(found)


def last_repetition(
    task: Task, values: Mapping[str, Any], has_target: bool = True
) -> tuple[Mapping[str, Any], tuple[dict[str, Any], ...]]:
    """The values of the last repetition, and those of the repeated segment's fields in the ones before it.

    `{"user": ["A", "B"], "reply": ["C", "D"]}` -> `{"user": "B", "reply": "D"}` and `{"user": "A", "reply": "C"}`. A
    field of the segment is a text, or a list with a text for each repetition. Of a task without a repeated segment the
    values are as they were. has_target: whether the last repetition has its target; without, a prompt is meant.
    Raises ValueError for lists of different lengths.
    """
    names = fields(segments(task.stream)[1])
    given = {name: values[name] for name in names if values.get(name) is not None}
    lists = {name: list(one) if isinstance(one, list | tuple) else [one] for name, one in given.items()}
    num = max((len(one) for name, one in lists.items() if name != task.target), default=0)
    counts = ", ".join(f"{name} has {len(one)}" for name, one in lists.items())
    if not has_target and len(lists.get(task.target, [])) < num:
        lists[task.target] = [*lists.get(task.target, []), None]
    if len({len(one) for one in lists.values()}) > 1 or [] in lists.values():
        last = "" if has_target else f", the last {task.target} left out"
        raise ValueError(f"the fields {', '.join(names)} need a text each for every repetition{last}; {counts}")
    earlier = tuple({name: one[place] for name, one in lists.items()} for place in range(num - 1))
    return {**values, **{name: one[-1] for name, one in lists.items()}}, earlier


def render(
    task: Task, values: Mapping[str, str], with_target: bool = True, earlier: Sequence[Mapping[str, str]] = ()
) -> tuple[Piece, ...]:
    """The stream pieces of a row; without the target, the prompt pieces.

    earlier: values of the repeated segment, once for each time that it stands before its last repetition.
    An absent optional field takes the literal text around it along: `{label} {text}` without a label is `{text}`.
    Raises KeyError for an absent field that is not optional.
    """
    once, repeated = segments(task.stream)
    before = [piece for one in earlier for piece in _filled(task, repeated, one)]
    if not repeated:
        return tuple(_filled(task, once, values, with_target))
    return (*_filled(task, once, values), *before, *_filled(task, repeated, values, with_target))


def _filled(task: Task, pattern: str, values: Mapping[str, str], with_target: bool = True) -> list[Piece]:
    """The pieces of a pattern with their values."""
    pieces: list[Piece] = []
    glue = True
    for piece in parse(pattern):
        if piece.field is None:
            if piece.is_marker or glue:
                pieces.append(piece)
            glue = True
            continue
        if piece.field == task.target and not with_target:
            break
        if piece.field in task.optional and not values.get(piece.field):
            glue = False
            continue
        pieces.append(Piece(values[piece.field], piece.field, piece.literal if glue else ""))
        glue = True
    return pieces


def text_of(pieces: tuple[Piece, ...]) -> str:
    """The rendered string, markers written out."""
    return "".join(piece.literal + piece.text for piece in pieces)


def render_plain(
    task: Task,
    values: Mapping[str, str],
    language: str,
    prompt: Prompt | None = None,
    earlier: Sequence[Mapping[str, str]] = (),
) -> str:
    """The plain prompt of a row for an untuned model; it ends where the answer, with its own leading space, begins.

    A line about an optional field that the row lacks is left out. prompt: None: the task's first in the language.
    earlier: as in `render`.
    """
    turns, last = plain_turns(task, values, language, prompt, earlier)
    return "\n".join([*(f"{asked} {answer}" for asked, answer in turns), last])


def plain_turns(
    task: Task,
    values: Mapping[str, str],
    language: str,
    prompt: Prompt | None = None,
    earlier: Sequence[Mapping[str, str]] = (),
) -> tuple[list[tuple[str, str]], str]:
    """The plain prompts of earlier repetitions, each with its answer, and the prompt of the last one.

    Lines of the template above the first one with a field of the repeated segment belong to the first repetition.
    """
    template = (prompt or task.templates(language)[0]).template
    absent = [f"{{{name}}}" for name in task.optional if not values.get(name)]
    lines = [line for line in template.split("\n") if not any(name in line for name in absent)]
    repeated = [f"{{{name}}}" for name in fields(segments(task.stream)[1])]
    first = next((n for n, line in enumerate(lines) if any(name in line for name in repeated)), 0)
    asked = []
    for number, one in enumerate([*earlier, {}]):
        found, pieces = {**values, **one}, parse("\n".join(lines[first if number else 0 :]))
        asked.append("".join(p.text if p.field is None else p.literal + found.get(p.field, "") for p in pieces))
    return [(text, one[task.target]) for text, one in zip(asked, earlier, strict=False)], asked[-1]
