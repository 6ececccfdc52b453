"""Where files are and how they are written: shipped folders, hashes, the cache folder, atomic writes.

`shipped("configs")` -> the folder of the YAML recipes, in a checkout as in an installed package.
"""

import codecs
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO
from unicodedata import normalize

from multitask.config.data import DataConfig
from multitask.errors import InputError


def shipped(folder: str) -> Path:
    """`tasks` or `configs` as shipped: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / folder
    return inside if inside.is_dir() else Path(__file__).parents[1] / folder


def relative_if_near(path: Path, start: Path, most_up: int = 4) -> str:
    """A path as seen from a folder, where both move together: a few folders up and down. Else the absolute path."""
    here, there = path.expanduser().resolve(), start.expanduser().resolve()
    if len(Path(os.path.commonpath([here, there])).parts) < 2:  # nothing in common but the root
        return str(here)
    found = Path(os.path.relpath(here, there))
    return found.as_posix() if found.parts.count("..") <= most_up else str(here)


def in_any_form(path: Path) -> Path:
    """The path whose names are the same in NFC (macOS writes Korean names in NFD); the path itself if there is none."""
    if path.parent == path or path.exists() or str(path).isascii():
        return path
    parent = in_any_form(path.parent)
    wanted = normalize("NFC", path.name)
    names = [one.name for one in parent.iterdir()] if parent.is_dir() else []
    return parent / next((name for name in names if normalize("NFC", name) == wanted), path.name)


def check_is_not_utf_16(head: bytes, path: Path) -> None:
    """Raises InputError for a file that begins with the byte order mark of UTF-16."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(
            f"{path}: utf-16 text (Excel calls it Unicode text), expected utf-8; save it as utf-8, or convert it: "
            "`iconv -f utf-16 -t utf-8 FILE > NEW`"
        )


def sha256_of(paths: Iterable[Path]) -> str:
    """One digest of the bytes of several files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


_SETTLED_NS = 2_000_000_000
_LEAST_BYTES = 1 << 20


def remembered_sha256(paths: Iterable[Path], cache: Path) -> str:
    """As `sha256_of`; the digest of more than a megabyte is kept in the cache folder, so that it is read once.

    It is found again by path, size, times of change (mtime, ctime) and inode of every file, and by nothing else: where
    one of them is another, all is read anew. Of files that changed less than 2 seconds ago nothing is kept, as their
    next change could have the same time.
    """
    paths = list(paths)
    before, started = _versions(paths), time.time_ns()
    if sum(size for size, *_ in before) < _LEAST_BYTES:
        return sha256_of(paths)
    name = hashlib.sha256("\0".join(str(path.resolve()) for path in paths).encode("utf-8", "surrogateescape"))
    memory = cache / "hashes" / f"{name.hexdigest()[:24]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
        kept = json.loads(memory.read_text("utf-8"))
        if kept["versions"] == before and re.fullmatch("[0-9a-f]{64}", kept["sha256"]):
            return str(kept["sha256"])
    digest = sha256_of(paths)
    is_settled = all(max(times) < started - _SETTLED_NS for _, *times, _ in before)
    if is_settled and _versions(paths) == before:
        with suppress(OSError), replacing(memory) as aside:
            aside.write_text(json.dumps({"versions": before, "sha256": digest}), "utf-8")
    return digest


def _versions(paths: Iterable[Path]) -> list[list[int]]:
    """Size, times of change in nanoseconds and inode of each file; of none where one cannot be looked at."""
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return []
    return [[one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino] for one in found]


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder(config: DataConfig) -> Path:
    """Where encoded rows are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return config.cache.expanduser() if config.cache else Path(home) / "multitask"


def temporary(path: Path) -> Path:
    """Where a file or folder is written before it takes its name; another one for each process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, to be written as a file or a folder, that replaces `path` when the block ends.

    It is on disk by then; if anything fails before, it is removed and `path` stays as it was. A device or a pipe, such
    as /dev/stdout, is written itself. Raises OSError.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    aside = temporary(path)
    _remove(aside)  # of a killed process that had this number
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        for written in (*(aside.iterdir() if aside.is_dir() else ()), aside):
            flush(written)
        if aside.is_dir():
            _remove(path)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        with suppress(OSError):
            _remove(aside)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder`, each whole, when the block ends. Raises OSError.

    Other files of `folder` stay, and so does the old one of a name until the new one takes its place.
    """
    aside = temporary(folder)
    _remove(aside)
    try:
        aside.mkdir(parents=True)
        yield aside
        folder.mkdir(exist_ok=True)
        written = sorted(aside.iterdir())
        for file in written:
            flush(file)
        for file in written:
            if file.is_dir():
                _remove(folder / file.name)
            os.replace(file, folder / file.name)
        flush(folder)
    finally:
        with suppress(OSError):
            _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


SPACE = "free some disk space, or name another place"


def cannot_write(path: Path, error: Exception, remedy: str = SPACE) -> InputError:
    """What to say of a file that cannot be written: the disk is full, the folder is read-only ..."""
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return InputError(f"{path}: cannot be written ({reason}); what was there before is untouched: {remedy}")


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file to be written, whole or not at all; raises InputError when it cannot be written."""
    try:
        with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all; raises InputError when it cannot be written."""
    with writing(path) as file:
        file.write(text)


def append_line(path: Path, text: str, remedy: str = SPACE) -> None:
    """Appends a line, whole or not at all; raises InputError when it cannot be written."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)
        raise cannot_write(path, error, remedy) from None


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file as `write_text` does; raises ValueError for a number that is not finite."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check_writable(path: Path) -> None:
    """Makes the folder of a file to be; raises InputError, before any work, when the file cannot be written."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.is_file():
            temporary(path).touch()
            temporary(path).unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file") from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all; raises InputError when they cannot be written."""
    with writing(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def cannot_cache(path: Path, error: Exception, setting: str | None) -> InputError:
    """What to say of a file of the cache that cannot be written; setting: the one that names the folder, if any."""
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return InputError(
        f"{path}: the cache cannot be written ({reason}); name a folder on a disk with space, where you may write: "
        f"{f'`--set {setting}=FOLDER`, or ' if setting else ''}the environment's XDG_CACHE_HOME"
    )
