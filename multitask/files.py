"""Where files are and how they are written: shipped folders, hashes, the cache folder, atomic writes.

`shipped("configs")` -> the folder of the YAML recipes, in a checkout as in an installed package.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
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
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file") from None
