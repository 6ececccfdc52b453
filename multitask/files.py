"""Where files are and how they are written: shipped folders, hashes, the cache folder, atomic writes.

`shipped("configs")` -> the folder of the YAML recipes, in a checkout as in an installed package.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from multitask.config.data import DataConfig
from multitask.errors import InputError


def shipped(folder: str) -> Path:
    """`tasks` or `configs` as shipped: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / folder
    return inside if inside.is_dir() else Path(__file__).parents[1] / folder


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

    It is on disk by then; if anything fails before, it is removed and `path` stays as it was. Raises OSError.
    """
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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all; raises InputError when it cannot be written."""
    try:
        with replacing(path) as aside:
            aside.write_text(text, "utf-8", newline="\n")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is untouched: make space on "
            "the disk, or name another place"
        ) from None


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file as `write_text` does; raises ValueError for a number that is not finite."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check_writable(path: Path) -> None:
    """Makes the folder of a file to be; raises InputError, before any work, when the file cannot be."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file for the JSON lines")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file") from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    try:
        with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file") from None
