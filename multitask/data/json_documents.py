r"""Rows of a JSON file that is no JSONL, read piece by piece, each with the line it begins at.

Four shapes, told apart by the beginning of the file: an array of objects; objects one after another, each over several
lines; an object with its rows in one list (`{"data": [...]}`); and SQuAD's nesting in such a list, articles with
paragraphs with questions. `[{"a": 1},\n {"a": 2}]` -> `(1, {"a": 1}), (2, {"a": 2})`.

No more than one item of the outermost list is in memory: an article, of SQuAD.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

from multitask.errors import InputError, RowError
from multitask.events import Json

HEAD_BYTES = 1 << 16
MAX_ITEM_CHARS = 1 << 26
BLANK = re.compile(r"[ \t\r\n]*")
KEY = re.compile(r'[ \t\r\n]*"((?:[^"\\]|\\.)*)"[ \t\r\n]*:[ \t\r\n]*')
LIST = re.compile(r"\[[ \t\r\n]*\{")
DECODER = json.JSONDecoder()
WRAPPERS = frozenset(("data", "documents", "examples", "instances", "items", "records", "rows"))
"""Names under which an object holds the list of its rows."""
Shape = Literal["lines", "array", "objects", "wrapped"]


class Item(NamedTuple):
    """An object and the line it begins at, from 1; or why it is no row."""

    line: int
    found: Json | RowError


def shape_of(head: str) -> Shape:
    """The shape of a file by its first `HEAD_BYTES`; `lines` where each line is an object of its own, or anything else.

    An object is a wrapper where one of `WRAPPERS` is a list of objects, and the object is the only one of the file.
    """
    text = head.lstrip()
    if text.startswith("["):
        return "array"
    if not text.startswith("{"):
        return "lines"
    first, has_more, rest = text.partition("\n")
    if _has_list(text) and not (_is_object(first) and rest.strip()):
        return "wrapped"
    is_open = first.rstrip().endswith(("{", "[", ","))
    return "objects" if has_more and is_open and not _is_object(first) and KEY.match(text, 1) else "lines"


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _has_list(text: str) -> bool:
    """Whether the beginning of an object shows a list of rows among its values."""
    at = BLANK.match(text, 1).end()  # type: ignore[union-attr]
    while key := KEY.match(text, at):
        if key[1] in WRAPPERS and LIST.match(text, key.end()):
            return True
        try:
            _, at = DECODER.raw_decode(text, key.end())
        except (ValueError, RecursionError):
            return False
        at = BLANK.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] != ",":
            return False
        at += 1
    return False


class _Text:
    """A window of a file's text that grows at its end and is dropped from its front."""

    def __init__(self, stream: BinaryIO, path: object, encoding: str) -> None:
        self.stream, self.path, self.encoding = stream, path, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.text, self.at, self.is_done = "", 0, False
        self.line, self.column = 1, 1  # of the place `at`
        self.size = HEAD_BYTES

    def more(self) -> bool:
        """Reads on, twice as much each time within an item; False at the end of the file."""
        if self.is_done:
            return False
        raw = self.stream.read(self.size)
        self.size = min(2 * self.size, 1 << 24)
        self.is_done = not raw
        try:
            self.text = self.text[self.at :] + self.decoder.decode(raw, final=self.is_done)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n", self.at) + raw.count(b"\n", 0, error.start)
            other = "cp949" if self.encoding == "utf-8" else "utf-8"
            remedy = f"; the file may be {other}: set `encoding: {other}`" if _fits(raw, other) else ""
            raise InputError(
                f"{self.path}:{line}: byte 0x{error.object[error.start]:02x} is not valid {self.encoding}{remedy}"
            ) from None
        self.at = 0
        if len(self.text) > MAX_ITEM_CHARS:
            raise InputError(
                f"{self.path}:{self.line}: an item of more than {MAX_ITEM_CHARS:,} characters; is a bracket open?"
            )
        return True

    def skip(self, end: int) -> None:
        """Everything before `end` was used."""
        num_lines = self.text.count("\n", self.at, end)
        self.line += num_lines
        self.column = end - self.text.rfind("\n", self.at, end) if num_lines else self.column + end - self.at
        self.at = end

    def peek(self) -> str:
        """The next character that is no blank; empty at the end of the file."""
        while True:
            self.skip(BLANK.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> tuple[int, str, Any]:
        """The value that begins here: its line, its text, and itself. Raises InputError where it is none."""
        self.peek()
        line, self.size = self.line, HEAD_BYTES
        while True:
            try:
                found, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self.more():  # a number may not be whole yet
                    text = self.text[self.at : end]
                    self.skip(end)
                    return line, text, found
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                if not is_cut or not self.more():
                    raise self.error(error.pos, error.msg) from None
            except (RecursionError, ValueError) as error:
                raise InputError(f"{self.path}:{line}: not usable JSON: {error}") from None

    def error(self, at: int, message: str) -> InputError:
        """What is wrong at a place of the window."""
        num_lines = self.text.count("\n", self.at, at)
        column = at - self.text.rfind("\n", self.at, at) if num_lines else self.column + at - self.at
        rest = self.text[at : at + 20].strip()
        return InputError(
            f"{self.path}:{self.line + num_lines}: not valid JSON at column {column}: {message}, "
            f"found {repr(rest) if rest else 'the end of the file'}"
        )


def _fits(raw: bytes, encoding: str) -> bool:
    """Whether bytes are text in an encoding; the last character may be cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(raw)
    except UnicodeDecodeError:
        return False
    return True


def items(stream: BinaryIO, path: object, encoding: str, shape: Shape) -> Iterator[Item]:
    """The rows of a file of that shape. Raises InputError with the line where the file is no such JSON."""
    text = _Text(stream, path, encoding)
    if text.peek() == "\ufeff":
        text.skip(1)
    if shape == "objects":
        while text.peek():
            yield from _rows(*text.value())
        return
    if shape == "wrapped":
        _skip_to_list(text)
    yield from _array(text)
    if shape == "array" and text.peek():
        raise text.error(text.at, "expected nothing after the array")


def _skip_to_list(text: _Text) -> None:
    """Past the values before the list of rows."""
    text.peek()
    text.skip(text.at + 1)
    while True:
        text.peek()
        key = KEY.match(text.text, text.at)
        while key is None or key.end() == len(text.text):
            if not text.more():
                raise text.error(text.at, "expected a name and a list of rows")
            key = KEY.match(text.text, text.at)
        text.skip(key.end())
        while len(text.text) - text.at < HEAD_BYTES and text.more():
            pass
        if key[1] in WRAPPERS and LIST.match(text.text, text.at):
            return
        text.value()
        if text.peek() == ",":
            text.skip(text.at + 1)


def _array(text: _Text) -> Iterator[Item]:
    text.peek()
    text.skip(text.at + 1)
    if text.peek() == "]":
        text.skip(text.at + 1)
        return
    while True:
        yield from _rows(*text.value())
        sign = text.peek()
        if sign not in (",", "]"):
            raise text.error(text.at, "expected ',' or ']' after an item")
        text.skip(text.at + 1)
        if sign == "]":
            return


def _rows(line: int, text: str, found: Any) -> Iterator[Item]:
    """The rows of one item: itself, or the questions of an article."""
    if not isinstance(found, dict):
        shown = json.dumps(found, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        yield Item(line, RowError(f"a JSON object was expected, found {shown}"))
    elif isinstance(found.get("paragraphs"), list):
        yield from _questions(line, text, found)
    else:
        yield Item(line, found)


def _questions(line: int, text: str, article: Json) -> Iterator[Item]:
    """SQuAD's article (Rajpurkar et al., 2016; KorQuAD 1.0, KLUE-MRC): a row for each question, with its own line.

    Scalars of the article and of the paragraph are columns of each of its questions.
    """
    outer = {key: value for key, value in article.items() if not isinstance(value, list | dict)}
    for at, paragraph in _members(text, 0, "paragraphs"):
        begins = line + text.count("\n", 0, at)
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            yield Item(begins, RowError("a paragraph with a list 'qas' was expected, found none"))
            continue
        inner = outer | {key: value for key, value in paragraph.items() if not isinstance(value, list | dict)}
        for start, question in _members(text, at, "qas"):
            number = line + text.count("\n", 0, start)
            if isinstance(question, dict):
                yield Item(number, inner | question)
            else:
                yield Item(number, RowError("a question was expected as a JSON object"))


def _members(text: str, at: int, name: str) -> Iterator[tuple[int, Any]]:
    """The items of the list under `name` in the object at `at`, of valid JSON, each with its place."""
    at = BLANK.match(text, at + 1).end()  # type: ignore[union-attr]
    while key := KEY.match(text, at):
        if json.loads(f'"{key[1]}"') == name and text.startswith("[", key.end()):
            at = BLANK.match(text, key.end() + 1).end()  # type: ignore[union-attr]
            while not text.startswith("]", at):
                found, end = DECODER.raw_decode(text, at)
                yield at, found
                at = BLANK.match(text, end).end()  # type: ignore[union-attr]
                at = BLANK.match(text, at + text.startswith(",", at)).end()  # type: ignore[union-attr]
            return
        _, at = DECODER.raw_decode(text, key.end())
        at = BLANK.match(text, at).end()  # type: ignore[union-attr]
        at = BLANK.match(text, at + text.startswith(",", at)).end()  # type: ignore[union-attr]
