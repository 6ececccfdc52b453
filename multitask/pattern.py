"""From a row to pieces: the one place that reads a pattern.

`render(nli, {"premise": "A", "hypothesis": "B", "label": "neutral"})` ->
`A`, `<|sep|>`, `B`, `<|nli|>`, `neutral`, `<|end|>`: six pieces, markers and fields in the order of the stream.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from multitask.task import END, PAD, Prompt, Task

_TOKEN = re.compile(r"(<\|[^|<>{}\s]+\|>)|\{(\w+)\}")


@dataclass(frozen=True)
class Piece:
    """One stretch of a rendered row: a marker, or a field together with the literal text before it.

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
    """The pattern as pieces without values; `text` of a field is empty."""
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


def fields(pattern: str) -> tuple[str, ...]:
    """Field names in the order of the pattern: `("premise", "hypothesis", "label")`."""
    return tuple(piece.field for piece in parse(pattern) if piece.field)


def markers(tasks: Mapping[str, Task]) -> list[str]:
    """Special tokens of these tasks: `<|pad|>`, `<|end|>` and the patterns' own, each once, in a stable order."""
    found = dict.fromkeys([PAD, END])
    for name in sorted(tasks):
        found.update(dict.fromkeys(piece.text for piece in parse(tasks[name].stream) if piece.is_marker))
    return list(found)


def render(task: Task, values: Mapping[str, str], with_target: bool = True) -> tuple[Piece, ...]:
    """The stream pieces of a row; without the target, the prompt pieces.

    An absent optional field takes the literal text around it along: `{label} {text}` without a label is `{text}`.
    Raises KeyError for an absent field that is not optional.
    """
    pieces: list[Piece] = []
    glue = True
    for piece in parse(task.stream):
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
    return tuple(pieces)


def text_of(pieces: tuple[Piece, ...]) -> str:
    """The rendered string, markers written out."""
    return "".join(piece.literal + piece.text for piece in pieces)


def render_plain(task: Task, values: Mapping[str, str], language: str, prompt: Prompt | None = None) -> str:
    """The plain prompt of a row for an untuned model; it ends where the answer, with its own leading space, begins.

    A line about an optional field that the row lacks is left out. prompt: None: the task's first in the language.
    """
    template = (prompt or task.templates(language)[0]).template
    absent = [f"{{{name}}}" for name in task.optional if not values.get(name)]
    template = "\n".join(line for line in template.split("\n") if not any(name in line for name in absent))
    return "".join(
        piece.text if piece.field is None else piece.literal + values.get(piece.field, "") for piece in parse(template)
    )
