"""Plain text corpora: from files, or the synthetic corpus, to documents of any length, part by part.

Two files `a.txt` ("one two") and `b.txt` ("three") -> `parts` gives ("one two", True), ("three", True); a file of ten
gigabytes comes in thousands of parts, of which only the last says True.

The validation text, where none is named, is the end of the training text, so many characters of it: nanoGPT and the
textbook of Raschka ("Build a Large Language Model (From Scratch)") split a text so.
"""

import codecs
import gzip
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from multitask.config.data import DataConfig, SourceConfig, TextConfig
from multitask.data.readers import EXTENSIONS, existing, file_records, matching, short
from multitask.errors import InputError, RowError, suggest
from multitask.files import cache_folder, check_is_not_utf_16, in_any_form, remembered_sha256
from multitask.source_hash import source_hash

TextSplit = Literal["train", "validation"]
Parts = Iterator[tuple[str, bool]]
"""Text that is not empty, and whether its document ends with it."""

_PART = 1 << 18  # characters of a part at most, or twice as many: bytes that are read at a time
_KEPT = 3  # characters held back until a document's end is known: its line end, and one that makes the last part


def documents(config: TextConfig, split: TextSplit) -> Iterator[str]:
    """The documents of a split, each whole; raises InputError as `parts` does."""
    held: list[str] = []
    for text, is_last in parts(config, split):
        held.append(text)
        if is_last:
            yield "".join(held)
            held = []


def parts(config: TextConfig, split: TextSplit) -> Parts:
    """The documents of a split in parts, in order; memory does not grow with their length.

    A document that the border between training and validation text cuts is a document on both sides.

    Raises:
        InputError: no such file, one that is empty or not text, a line that is not JSON, a field that is missing or not
            text, or a share for validation that leaves nothing on one side.
    """
    if not _is_shared(config):
        if split not in _named(config):
            raise InputError(
                "text.validation is 0 and no validation text is named: there is none; set a share above 0, or name "
                f"{'files' if config.files else 'documents'} for validation"
            )
        return _all_parts(config, split)
    num_characters = sum(len(text) for text, _ in _all_parts(config, "train"))
    border = int(num_characters * (1 - config.validation))
    if not 0 < border < num_characters:
        empty = "train" if border == 0 else "validation"
        raise InputError(
            f"text.validation: a share of {config.validation:g} of {num_characters} characters leaves nothing for "
            f"{empty}; expected a larger text, another share, or validation text of its own"
        )
    first, last = (0, border) if split == "train" else (border, num_characters)
    return between(_all_parts(config, "train"), first, last)


def between(found: Iterable[tuple[str, bool]], first: int, last: int | None = None) -> Parts:
    """What lies between two places, counted in characters over all documents."""
    at = 0
    for text, is_last in found:
        begin, at = at, at + len(text)
        kept = text[max(0, first - begin) : None if last is None else last - begin]
        is_end = last is not None and at >= last
        if kept:
            yield kept, is_last or is_end
        if is_end:
            return


def provenance(config: TextConfig, split: TextSplit) -> dict[str, object]:
    """Names and content hashes of what a split is read from, and which share of it the split is.

    `{"files": [...], "sha256": [...], "split": ..., "validation_share": 0.1}`; the share is None where each split has
    text of its own. Of the synthetic corpus its code is hashed; the count is in the name.
    """
    is_shared = _is_shared(config)
    source: TextSplit = "train" if is_shared else split
    if config.synthetic is not None:
        files, digests = (
            [f"documents:{source}:{_named(config).get(source, 0)}"],
            [source_hash("multitask.data.synthetic.documents")],
        )
    else:
        files = _names(config, source)
        cache = cache_folder(_rows(config))
        digests = [remembered_sha256([existing(name, _rows(config))], cache) for name in files]
    share = config.validation if is_shared else None
    return {"files": files, "sha256": digests, "split": split, "validation_share": share}


def place_of(character: str, config: TextConfig, split: TextSplit) -> str:
    """`file:line` where a character first stands in a split's text after NFC; for a message: the text is read anew."""
    source: TextSplit = "train" if _is_shared(config) else split
    if config.synthetic is not None:
        return f"the synthetic documents ({source})"
    for name in _names(config, source):
        path, line = existing(name, _rows(config)), 1
        if _format(path, config) == "jsonl":
            for where, text in _records(name, config):
                if character in unicodedata.normalize("NFC", text):
                    return where
            continue
        for text in read(path, config.encoding):
            text = unicodedata.normalize("NFC", text)
            if character in text:
                return f"{path}:{line + text.count(chr(10), 0, text.index(character))}"
            line += text.count("\n")
    return ", ".join(_names(config, source))


def read(path: Path, encoding: str = "utf-8", size: int = _PART) -> Iterator[str]:
    """The text of a file, or of a gzipped one, in parts of at most `size` bytes, line ends as they are.

    A byte order mark of UTF-8 is no text. Raises InputError for what is no file or no such text, with its line.
    """
    path = in_any_form(path)
    if not path.is_file():
        near = suggest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise InputError(f"{path}: {'is a folder; expected a file' if path.is_dir() else f'no such file; {near}'}")
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)()
    line, is_first = 1, True
    is_gzip = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as file:
            while True:
                raw = file.read(size)
                if is_first:
                    check_is_not_utf_16(raw, path)
                is_first = False
                text = decoder.decode(raw, final=not raw)
                if text:
                    yield text
                if not raw:
                    return
                line += raw.count(b"\n")
    except UnicodeDecodeError as error:  # its object begins with the unfinished character of the part before
        line += error.object[: error.start].count(b"\n")
        remedy = (
            f"convert the file, e.g. `iconv -f CP949 -t UTF-8 {path.name}`, or say `encoding: cp949` in its settings"
            if encoding == "utf-8"
            else "expected that encoding; if the text is UTF-8, say `encoding: utf-8`"
        )
        raise InputError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not {encoding.upper()}; {remedy}"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip data is damaged or cut off ({error}); fetch or compress it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


# ---------------------------------------------------------------- which files


def _named(config: TextConfig) -> Mapping[str, Any]:
    """What the settings name, by split."""
    return cast(Mapping[str, Any], config.files if config.files is not None else config.synthetic or {})


def _is_shared(config: TextConfig) -> bool:
    """True where the validation text is the end of the training text."""
    return "validation" not in _named(config) and config.validation > 0


def _rows(config: TextConfig) -> DataConfig:
    """The settings as readers of rows know them."""
    return DataConfig(root=config.root, cache=config.cache)


def _names(config: TextConfig, split: str) -> list[str]:
    """Names of the files of a split, patterns resolved in alphabetical order; relative where they are given so."""
    return [one for name in _named(config).get(split, []) for one in matching(name, _rows(config))]


def _format(path: Path, config: TextConfig) -> str:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    found = config.format or EXTENSIONS.get(suffix)
    if found not in ("text", "jsonl"):
        raise InputError(
            f"{path}: a corpus is read from plain text and JSONL, and the extension '{suffix}' tells neither; set "
            "`text.format` to text or jsonl"
        )
    return found


# ---------------------------------------------------------------- documents of files


def _all_parts(config: TextConfig, split: TextSplit) -> Parts:
    """All that is named for a split."""
    if config.synthetic is not None:
        from multitask.data.synthetic import documents as written

        for text in written.documents(split, _named(config)[split]):
            yield text, True
        return
    for name in _names(config, split):
        path = existing(name, _rows(config))
        found = _json_parts(name, config) if _format(path, config) == "jsonl" else _text_parts(path, config)
        is_blank = True
        for text, is_last in found:
            is_blank = is_blank and text.isspace()
            yield text, is_last
        if is_blank:
            raise InputError(f"{path}: has no words; some text was expected")


def _text_parts(path: Path, config: TextConfig) -> Parts:
    """The documents of a plain text."""
    if config.documents != "file":
        yield from _by_line(read(path, config.encoding, _PART), config.documents == "line")
        return
    held = ""
    for text in read(path, config.encoding, _PART):
        if held:
            yield held, False
        held = text
    if held:
        yield held, True


def _by_line(text: Iterable[str], is_line: bool) -> Parts:
    """Documents that are a line each, or lines up to an empty one; without the line end behind them."""
    held: list[str] = []
    size = 0
    goes_on = False  # in the middle of a long line, white space is no empty line
    for line in _lines(text):
        is_empty = not goes_on and line.isspace()
        goes_on = line[-1] != "\n"
        if is_line and not (held or is_empty or goes_on):  # nearly every one
            yield line[:-2] if line[-2] == "\r" else line[:-1], True
            continue
        if not is_empty:
            held.append(line)
            size += len(line)
        if held and (is_empty or (is_line and not goes_on)):
            yield "".join(held).removesuffix("\n").removesuffix("\r"), True
            held, size = [], 0
        elif size > _PART:
            joined = "".join(held)
            yield joined[:-_KEPT], False
            held, size = [joined[-_KEPT:]], _KEPT
    if held:
        yield "".join(held).removesuffix("\n").removesuffix("\r"), True


def _lines(text: Iterable[str]) -> Iterator[str]:
    r"""Lines with their ends, a very long one in pieces. Only `\n` ends a line: text may hold other separators."""
    held = ""
    for part in text:
        *whole, held = (held + part).split("\n")
        for line in whole:
            yield line + "\n"
        if len(held) > _PART:
            yield held
            held = ""
    if held:
        yield held


def _json_parts(name: str, config: TextConfig) -> Parts:
    """The documents of a JSONL file; a row without text is none."""
    for _, text in _records(name, config):
        if not text.isspace():
            for start in range(0, len(text), _PART):
                yield text[start : start + _PART], start + _PART >= len(text)


def _records(name: str, config: TextConfig) -> Iterator[tuple[str, str]]:
    """(place, text) of each row of a JSONL file."""
    source = SourceConfig(files={"train": [name]}, format="jsonl", encoding=[config.encoding])
    for record in file_records(name, source, _rows(config)):
        if isinstance(record.found, RowError):
            raise record.found
        yield record.where, "\n".join(_field(record.found, field, record.where) for field in config.fields)


def _field(found: Mapping[str, Any], field: str, where: str) -> str:
    if field not in found:
        names = ", ".join(map(str, found)) or "nothing"
        raise InputError(f"{where}: field '{field}' is missing, found {names}; `fields:` names those that hold text")
    text = found[field]
    if not isinstance(text, str):
        raise InputError(f"{where}: field '{field}' is {short(text)}, expected text, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer can take
        raise InputError(
            f"{where}: field '{field}' holds half of a surrogate pair at character {error.start + 1}, expected text"
        ) from None
    return text
