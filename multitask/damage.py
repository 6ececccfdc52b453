"""What is wrong with a file of weights or settings: truncated, damaged, or a Git LFS pointer in its place.

`tensors(Path("model.safetensors"))` -> `"truncated: 1,024 bytes of 5,120"`, or None for a whole file.
"""

import json
import os
from pathlib import Path
from typing import Any

_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_AGAIN = "copy or download the file again"


def tensors(path: Path) -> str | None:
    """Why a safetensors file cannot be read; None for a whole one. The header alone is read.

    Format: 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, offsets), the tensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if problem := _not_the_file(start + file.read(len(_POINTER)), size):
                return problem
            length = int.from_bytes(start, "little")
            if size < 8 or not 2 <= length <= _MAX_HEADER_BYTES:
                return f"not a safetensors file ({size:,} bytes, starting with {start!r})"
            if 8 + length > size:
                return f"truncated: {size:,} bytes, and its header alone has {8 + length:,}"
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    try:
        ends = [_end(value) for name, value in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return "damaged: its header is not what safetensors writes"
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        return f"truncated: {size:,} bytes of {expected:,}"
    return None if size == expected else f"damaged: {size:,} bytes, expected {expected:,}"


def _end(tensor: Any) -> int:
    """Where a tensor ends, in bytes behind the header."""
    start, end = tensor["data_offsets"]
    if not (type(start) is type(end) is int and 0 <= start <= end):
        raise ValueError("offsets")
    return int(end)


def text(path: Path) -> str | None:
    """Why a JSON file cannot be read; None for one that can."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if problem := _not_the_file(raw, len(raw)):
        return problem
    try:
        json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        return f"truncated or damaged: not valid JSON ({error})"
    return None


def _not_the_file(start: bytes, size: int) -> str | None:
    if size == 0:
        return "empty"
    if start.startswith(_POINTER):
        return f"a Git LFS pointer of {size} bytes in place of the file"
    return None


def of_model(folder: Path) -> str | None:
    """The first file of a model folder that cannot be read, what is wrong with it and what to do; None: all are whole.

    Of weights in several files, each that the index names has to be there.
    """
    weights = [*folder.glob("*.safetensors")]
    if weights and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return f"{folder / 'config.json'}: missing beside {weights[0].name}; copy or download the folder with all files"
    for path in sorted(folder.glob("*.json")):
        if problem := text(path) or _missing_part(path):
            return _with_remedy(path, problem)
    for path in sorted(folder.glob("*.safetensors")):
        if problem := tensors(path):
            return _with_remedy(path, problem)
    return None


def _missing_part(index: Path) -> str | None:
    """Of the index of weights in several files, the first of them that is not there."""
    if not index.name.endswith(".safetensors.index.json"):
        return None
    found = json.loads(index.read_bytes())
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return "damaged: it has no weight_map, which says where each tensor is"
    missing = [name for name in sorted(set(names.values())) if not os.path.isfile(index.parent / name)]
    return f"names the file {', '.join(missing)}, which is not in the folder" if missing else None


def _with_remedy(path: Path, problem: str) -> str:
    remedy = f"`git lfs pull` in {path.parent} fetches the file itself" if "Git LFS" in problem else _AGAIN
    return f"{path}: {problem}; {remedy}"
