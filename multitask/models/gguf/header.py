"""The header of a GGUF file: that it is whole, and what its metadata says about the model.

`read_header(Path("SmolLM2-135M-Instruct.Q4_1.gguf")).license` -> `"apache-2.0"`

Format: docs/gguf.md of github.com/ggml-org/ggml. The package `gguf`, of the same authors, reads it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask.errors import InputError
from multitask.files import sha256_of

_MAGIC = b"GGUF"
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_UNUSED = ("rope_freqs.", "rope_factors_")
"""Tensors of stretched positions (Llama 3.1, Phi 3 with 128k tokens), which transformers ignores in a GGUF file."""
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Header:
    """What is known of a GGUF file without its weights."""

    path: Path
    sha256: str
    metadata: Mapping[str, Any]
    """Scalars by key: `{"general.architecture": "llama", "tokenizer.ggml.eos_token_id": 2}`."""
    num_tensors: int
    tensor_types: Mapping[str, int]
    """Number of tensors by type: `{"F32": 61, "Q4_1": 210}`."""
    file_type: str
    """The quantisation in llama.cpp's words, `Q4_K_M`; without it, the tensor types."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name: `llama`, `gemma3`."""
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        """`general.name`, or the name of the file."""
        return self.text("name") or self.path.stem

    @property
    def license(self) -> str:
        """An identifier (`apache-2.0`) or a name; empty when the file does not say."""
        return self.text("license.name") or self.text("license")

    @property
    def author(self) -> str:
        """Who made the model; empty when the file does not say."""
        return self.text("author") or self.text("organization")

    def text(self, key: str) -> str:
        """A value of `general`, in one line; empty when it is missing."""
        return " ".join(str(self.metadata.get(f"general.{key}", "")).split())

    def token_id(self, name: str) -> int | None:
        """The id of `bos`, `eos`, `padding` or `unknown`."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) else None


def require_gguf() -> None:
    """Raises InputError when the package `gguf` is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(
            "GGUF files need the package gguf, which is not installed; run `pip install 'multitask[gguf]'`"
        ) from error


def read_header(path: Path) -> Header:
    """Reads the metadata and checks that all tensors are in the file.

    Raises:
        InputError: the file is missing, no GGUF file, truncated, one part of several, or of a kind that is not
        converted; the package `gguf` is not installed.
    """
    require_gguf()
    from gguf import GGUFReader, LlamaFileType

    _check_start(path)
    try:
        reader = GGUFReader(path)
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith(("general.", "tokenizer.", "split.")) and len(field.data) == 1
        }
        names = [tensor.name for tensor in reader.tensors]
        types = [tensor.tensor_type.name for tensor in reader.tensors]
        tokens = reader.fields.get("tokenizer.ggml.tokens")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {_AGAIN}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path}: truncated or damaged ({type(error).__name__}: {error}); expected a whole GGUF file, "
            f"version 2 or 3: {_AGAIN}"
        ) from error
    if isinstance(metadata.get("split.count"), int) and metadata["split.count"] > 1:
        raise _split(path, metadata["split.count"])
    if not metadata.get("general.architecture"):
        raise InputError(
            f"{path}: has no general.architecture, expected the name of the model's kind, such as llama: {_AGAIN}"
        )
    if not names:
        raise InputError(f"{path}: has no tensors, expected a model: name the file with the weights")
    if tokens is None:
        raise InputError(f"{path}: has no tokenizer, expected tokenizer.ggml.tokens: name a file of a language model")
    for name in ("bos", "eos", "padding", "unknown"):
        key = f"tokenizer.ggml.{name}_token_id"
        if metadata.get(key, 0) >= len(tokens.data):
            raise InputError(
                f"{path}: {key} is {metadata[key]}, expected an id below {len(tokens.data)}, the number of tokens: "
                "use another file"
            )
    if unused := [name for name in names if name.startswith(_UNUSED)]:
        raise InputError(
            f"{path}: has the tensor '{unused[0]}' (stretched positions), which transformers does not read from GGUF: "
            "the model would be another one; use a model without it, or its Hugging Face folder"
        )
    kinds = {kind: types.count(kind) for kind in sorted(set(types))}
    try:
        file_type = LlamaFileType(metadata["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        file_type = ", ".join(kinds)
    return Header(path, sha256_of([path]), metadata, len(names), kinds, file_type)


def _check_start(path: Path) -> None:
    """That the path is a file which starts as a GGUF file does, and not one part of several."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a GGUF file: name the file inside it")
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); expected a GGUF file") from error
    if start != _MAGIC:
        raise InputError(
            f"{path}: starts with {start!r}, expected {_MAGIC!r}: not a GGUF file; name one, or download it again"
        )
    if (part := _PART.search(path.name)) and int(part[2]) > 1:
        raise _split(path, int(part[2]))


def _split(path: Path, count: int) -> InputError:
    return InputError(
        f"{path}: is one of {count} parts, expected a model in one file; join them with llama.cpp: "
        "`llama-gguf-split --merge FIRST-PART WHOLE.gguf`"
    )
