"""Records of a file, one by one, each with its line: JSONL, JSON, CSV, TSV, text and Parquet, plain or gzipped.

Line 2 of `a.jsonl`, `{"text": "b"}` -> `RawRecord("a.jsonl:2", ".../a.jsonl:2", {"text": "b"})`.

Our own line reader: a general loader names neither file nor line, and merges rows of files such as NSMC's
`ratings_*.txt`, where a quote is only a quote. Nothing here holds more than one record, or one Parquet batch.
"""

import codecs
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast
from unicodedata import normalize

from multitask.config.data import DataConfig, SourceConfig
from multitask.data import json_documents
from multitask.errors import InputError, RowError, suggest
from multitask.events import Json
from multitask.files import check_is_not_utf_16, in_any_form

Record = Json
Format = Literal["jsonl", "csv", "tsv", "excel-tab", "parquet", "text"]

EXTENSIONS: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
}
MAX_RECORD_BYTES = 1 << 24  # a CSV quote that is never closed must not swallow a whole file
ROOT_HINT = "relative names start from data.root, else MULTITASK_DATA, else the working folder; neither is set"
CELLS = {
    "csv": re.compile(r'"((?:[^"]++|"")*+)"(?=,|\Z)|([^",]*+)(?=,|\Z)'),
    "excel-tab": re.compile(r'"((?:[^"]++|"")*+)"(?=\t|\Z)|([^"\t]*+)(?=\t|\Z)'),
}
SEPARATORS = {"csv": ",", "tsv": "\t", "excel-tab": "\t"}


CARRIAGE_RETURNS = (
    "lines end with a carriage return alone (old Mac files), expected line feeds; convert the file: "
    "`tr '\\r' '\\n' < FILE > NEW`"
)
_ROWS_FOR_QUOTES = 10_000


class RawRecord(NamedTuple):
    """One record of a file: a mapping, or why there is none (a generator that raised could not continue)."""

    id: str
    where: str
    found: Record | RowError


def short(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def existing(name: str, data: DataConfig) -> Path:
    """The path of a file as configured, its names in any Unicode form.

    Raises InputError with the nearest name of its folder.
    """
    base = data.root or os.environ.get("MULTITASK_DATA")
    path = (Path(base) / name if base else Path(name)).expanduser()
    path = in_any_form(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file")
    text = f"{path}: no such file"
    if path.parent.is_dir():
        text += f"; in its folder: {suggest(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])}"
    else:
        text += f"; there is no folder {path.parent}"
    raise InputError(text if base or path.is_absolute() else f"{text} ({ROOT_HINT})")


def matching(name: str, data: DataConfig) -> list[str]:
    """The name of a file, or those of a pattern (`*`, `?`, `[]`, `**`) in alphabetical order; relative as it is.

    Raises InputError for a pattern that no file has.
    """
    base = data.root or os.environ.get("MULTITASK_DATA") or ""
    if not glob.has_magic(name) or in_any_form(Path(base, name).expanduser()).is_file():
        return [name]
    folder, pattern = Path(base).expanduser(), str(Path(name).expanduser())
    found = sorted(one for one in glob.glob(pattern, root_dir=folder, recursive=True) if (folder / one).is_file())
    if not found:
        raise InputError(f"{Path(folder, pattern)}: no file has a name of this pattern")
    return found


def format_of(path: Path, source: SourceConfig) -> Format:
    """The format of a source's file; raises InputError where nothing tells it, or it is a table named .txt."""
    name = path.name.lower().removesuffix(".gz")
    found = source.format or EXTENSIONS.get(Path(name).suffix)
    if found is None:
        formats = ", ".join(dict.fromkeys(EXTENSIONS.values()))
        raise InputError(
            f"{path}: the extension '{Path(name).suffix}' does not tell the format; set `format:` to one of {formats}"
        )
    if found == "text" and source.format is None:
        _check_is_no_table(path, source)
    return found


def _check_is_no_table(path: Path, source: SourceConfig) -> None:
    """Raises InputError for a `.txt` file whose first lines have the same columns: NSMC's are tables with tabs."""
    lines = []
    for number, raw in raw_records(path, has_quotes=False):
        if number > 3:
            break
        lines.append(raw.decode(source.encoding[0], errors="replace").rstrip("\r\n"))
    num_tabs = {line.count("\t") for line in lines if line}
    if len(num_tabs) == 1 and (num := num_tabs.pop()):
        header = ", ".join(lines[0].split("\t"))
        raise InputError(
            f"{path}:1: a table of {num + 1} columns with tabs ({header}), expected plain text; set `format: tsv`, or "
            "`format: text` to take each line as it is"
        )
    wanted = set(source.columns.values()) - {"none"}
    if len(wanted) > 1 and lines and wanted <= set(lines[0].split(",")):
        raise InputError(
            f"{path}:1: a table of columns {lines[0]}, expected plain text; set `format: csv`, or `format: text` to "
            "take each line as it is"
        )


def file_records(name: str, source: SourceConfig, data: DataConfig) -> Iterator[RawRecord]:
    """Every record of one file, good or bad; raises InputError for a file that cannot be read at all."""
    path = existing(name, data)
    kind = format_of(path, source)
    if kind == "parquet":
        yield from _parquet_records(path)
        return
    if kind == "jsonl" and (shape := _shape(path, source)) != "lines":
        yield from _json_records(path, source, shape)
        return
    header: list[str] | None = None
    file_name, file_path = path.name, str(path)
    for number, raw in raw_records(path, has_quotes=kind in CELLS):
        where = f"{file_path}:{number}"
        found: Record | RowError
        try:
            text = _without_end(_decoded(raw, path, number, source.encoding))
            if kind == "jsonl":
                if not text.strip():
                    continue
                found = _json_record(text, where)
            elif kind == "text":
                if not text.strip():
                    continue
                found = {"text": text}
            else:
                if not text:
                    continue
                cells = _quoted_cells(text, where, kind) if kind in CELLS else text.split("\t")
                if header is None:
                    header = _header(cells, where, SEPARATORS[kind])
                    continue
                found = _table_record(cells, header, where)
        except RowError as error:
            if kind in SEPARATORS and header is None:
                raise InputError(f"{error} (in the header)") from None
            found = error
        yield RawRecord(f"{file_name}:{number}", where, found)


def _shape(path: Path, source: SourceConfig) -> json_documents.Shape:
    with opened(path) as stream:
        head = stream.read(json_documents.HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
    return json_documents.shape_of(head.decode(source.encoding[0], errors="replace"))


def _json_records(path: Path, source: SourceConfig, shape: json_documents.Shape) -> Iterator[RawRecord]:
    """Rows of a file that is one JSON value, or objects over several lines."""
    if len(source.encoding) > 1:
        raise InputError(f"{path}: a JSON file is read in one encoding, found `encoding: {source.encoding}`")
    with opened(path) as stream:
        for number, (line, found) in enumerate(json_documents.items(stream, path, source.encoding[0], shape), 1):
            where = f"{path}:{line}"
            is_bad = isinstance(found, RowError)
            yield RawRecord(f"{path.name}:{number}", where, RowError(f"{where}: {found}") if is_bad else found)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked; raises InputError for one that cannot be read."""
    is_gzip = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip data is damaged or cut off ({error}); fetch or compress it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def raw_records(path: Path, has_quotes: bool) -> Iterator[tuple[int, bytes]]:
    r"""(first line number, bytes with line ends) of each record; with quotes a record may span lines.

    Only `\n` ends a line: text may hold other separators (U+2028, a lone `\r`), which Python's text mode splits at. In
    utf-8 and cp949 the bytes of `\n`, `"` and `,` are never part of another character, so records are told apart
    before decoding, and an undecodable one spoils nothing else.
    """
    parts: list[bytes] = []
    first, num_quotes, size = 0, 0, 0
    with opened(path) as stream:
        for number, raw in enumerate(stream, 1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
                check_is_not_utf_16(raw, path)
            if not has_quotes:
                yield number, raw
                continue
            first = first if parts else number
            parts.append(raw)
            num_quotes += raw.count(b'"')
            size += len(raw)
            if num_quotes % 2 == 0 or size > MAX_RECORD_BYTES:
                yield first, b"".join(parts)
                parts, num_quotes, size = [], 0, 0
        if parts:
            yield first, b"".join(parts)


def _decoded(raw: bytes, path: Path, number: int, encodings: Sequence[str]) -> str:
    """The text of a record in the first encoding that fits; raises RowError, also for a file that mixes two."""

    def line_at(position: int) -> str:
        return f"{path}:{number + raw.count(10, 0, position)}"

    if b"\0" in raw:
        raise RowError(
            f"{line_at(raw.index(0))}: a NUL byte, expected text; if the file is UTF-16, save it as utf-8, if it is "
            "damaged, fetch it again"
        )
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            position = error.start
    names = " or ".join(encodings)
    text = f"{line_at(position)}: byte 0x{raw[position]:02x} is not valid {names}"
    if len(encodings) > 1:
        raise RowError(f"{text}; expected text in one of them")
    other = "cp949" if encodings[0] == "utf-8" else "utf-8"
    if not fits(raw, other):
        raise RowError(f"{text}, nor does the line read as {other}; expected {names} text")
    stat = path.stat()
    own, others = _by_encoding(path, encodings[0], (stat.st_size, stat.st_mtime_ns))
    if not own:
        raise RowError(f"{text}; the line reads as {other}: set `encoding: {other}`")
    raise RowError(
        f"{text}: the file mixes encodings: {_lines(own)} {encodings[0]}, {_lines(others)} {other}; set "
        "`encoding: [utf-8, cp949]`, which reads each line in the first that fits, or save the file in one encoding"
    )


@lru_cache(maxsize=4)
def _by_encoding(path: Path, encoding: str, version: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Numbers of the lines beyond ASCII that are in the encoding, and of those that are not."""
    found: tuple[list[int], list[int]] = ([], [])
    for line, raw in raw_records(path, has_quotes=False):
        if not raw.isascii():
            found[not fits(raw, encoding)].append(line)
    return found


def fits(raw: bytes, encoding: str) -> bool:
    """Whether bytes are text in an encoding."""
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _lines(numbers: Sequence[int]) -> str:
    """`line 3 is`, `lines 1, 2 are`, `lines 1, 2, 3, 4, 5 and 90 others are`."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    shown = ", ".join(map(str, numbers[:5]))
    return f"lines {shown}{f' and {len(numbers) - 5} others' if len(numbers) > 5 else ''} are"


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _json_record(text: str, where: str) -> Record:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos : error.pos + 20].strip()
        seen = repr(rest) if rest else "the end of the line"
        if re.search(r"\}[ \t]*\r(?!\n)", text):
            raise RowError(f"{where}: {CARRIAGE_RETURNS}") from None
        raise RowError(f"{where}: not valid JSON at column {error.pos + 1}: {error.msg}, found {seen}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise RowError(f"{where}: not usable JSON: {error}") from None
    if not isinstance(found, dict):
        raise RowError(f"{where}: a JSON object was expected, found {short(found)}")
    return found


def has_excel_quotes(path: Path) -> bool:
    """Whether a table with tabs has cells in quotes as Excel writes them: then `format: excel-tab` reads it.

    True where a cell that needs quotes has them (it holds a comma, a tab, a line break, or a quote, which is doubled),
    and no other cell holds a quote. The first rows decide.
    """
    is_found = False
    for number, (_, raw) in enumerate(raw_records(path, has_quotes=True)):
        if number == _ROWS_FOR_QUOTES:
            break
        text = _without_end(raw.decode("latin-1"))  # no part of a character of utf-8 or cp949 is a quote or a tab
        if '"' not in text:
            continue
        try:
            cells = _quoted_cells(text, "", "excel-tab")
        except RowError:
            return False
        is_found |= any(character in cell for cell in cells for character in ',"\t\n') or not number
    return is_found


def _quoted_cells(text: str, where: str, kind: str) -> list[str]:
    """Cells of one CSV record (RFC 4180), or the same with tabs."""
    if '"' not in text:
        return text.split(SEPARATORS[kind])
    if text.count('"') % 2:
        raise RowError(f"{where}: a quote is opened in this record and never closed; expected a closing quote")
    cells: list[str] = []
    at = 0
    while True:
        cell = CELLS[kind].match(text, at)
        if cell is None:
            raise RowError(
                f"{where}: column {len(cells) + 1}: a quote inside a cell, found {text[at : at + 20]!r}; expected the "
                "whole cell in quotes with quotes in it doubled, or `format: tsv`, which has no quoting"
            )
        cells.append(cell[2] if cell[1] is None else cell[1].replace('""', '"'))
        at = cell.end() + 1
        if at > len(text):
            return cells


def _header(cells: list[str], where: str, separator: str) -> list[str]:
    cells = [normalize("NFC", cell) for cell in cells]
    name = {",": "commas", "\t": "tabs"}[separator]
    if any(re.search(r"\r(?!\n)", cell) for cell in cells):
        raise InputError(f"{where}: {CARRIAGE_RETURNS}")
    for other in ";|,\t":
        if len(cells) == 1 and other in cells[0] and separator != other:
            step = {"\t": "set `format: tsv`", ",": "set `format: csv`"}.get(other, f"save the table with {name}")
            raise InputError(
                f"{where}: the names of the columns, {short(cells[0])}, are separated by {other!r}, expected {name}; "
                f"{step}"
            )
    doubled = sorted({c for c in cells if cells.count(c) > 1})
    if doubled:
        raise InputError(f"{where}: the header names {', '.join(map(repr, doubled))} twice; expected distinct columns")
    return cells


def _table_record(cells: list[str], header: list[str], where: str) -> Record:
    if len(cells) != len(header):
        raise RowError(f"{where}: found {len(cells)} columns, expected {len(header)} ({', '.join(header)})")
    return dict(zip(header, cells, strict=True))


def _parquet_records(path: Path) -> Iterator[RawRecord]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for found in batch.to_pylist():
                    number += 1
                    yield RawRecord(f"{path.name}:{number}", f"{path}: row {number}", found)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({next(iter(str(error).splitlines()), '')})") from None
