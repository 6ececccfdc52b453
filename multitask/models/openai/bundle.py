"""A reader of TensorFlow's checkpoint files ("tensor bundle", format V2) without TensorFlow.

`model.ckpt.index` is a sorted table: name -> dtype, shape and offset. `model.ckpt.data-00000-of-00001` is the bytes,
little-endian, one tensor after another. A table of one tensor, `{"w": [1.0, 2.0]}`, in short:

    block     "" -> {num_shards: 1}      "w" -> {float32, shape 2, shard 0, offset 0, size 8, crc}
    trailer   compression (0), crc of the block
    footer    offsets of the other blocks, padding, the magic number

`Bundle(Path("model.ckpt")).read("w")` -> `array([1., 2.], dtype=float32)`

Every block and every tensor has a CRC-32C, and all are checked. Damage is always an InputError; the only bytes of an
index that are not checked are the zeros before the magic number.

Sources of the format: LevelDB's doc/table_format.md (footer, blocks, prefix-compressed keys, masked checksums);
TensorFlow's tensor_bundle.proto, tensor_shape.proto, types.proto and versions.proto (the messages).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from multitask.errors import InputError

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_VERSION = 1  # of the format, as TensorFlow's writer counts
_MAX_INDEX_BYTES = 1 << 26  # GPT-2 of 1558M has 580 tensors in 30 kB
_MAX_KEY_BYTES = 4096  # otherwise a damaged table of short entries could expand to keys of many gigabytes
_CHUNK_BYTES = 1 << 20
_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "|u1",
    5: "<i2",
    6: "|i1",
    9: "<i8",
    10: "|b1",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
"""TensorFlow's numbers of the types that numpy can map."""


class _Damaged(Exception):
    """What is wrong with the bytes; `Bundle` adds the file and what to do."""


@dataclass(frozen=True)
class Entry:
    """One line of the index: type, shape and location of a tensor."""

    dtype: str | int
    """numpy's name (`<f4`), or TensorFlow's number where numpy has none."""
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    is_sliced: bool
    """A partitioned variable, whose slices are other entries."""


class Bundle:
    """The tensors of a checkpoint, `entries` by name; the index is read and checked at once, tensors on request."""

    def __init__(self, prefix: Path) -> None:
        """Reads the index.

        Args:
            prefix: the common prefix of the checkpoint's files, `.../model.ckpt`.

        Raises:
            InputError: the index is missing, damaged or not supported.
        """
        self.prefix = prefix
        self.index = prefix.with_name(f"{prefix.name}.index")
        try:
            with self.index.open("rb") as file:
                data = file.read(_MAX_INDEX_BYTES + 1)
        except OSError as error:
            raise InputError(
                f"{self.index}: cannot be read ({error.strerror}); expected the index of a TensorFlow checkpoint, "
                f"format V2: copy it there, with its {prefix.name}.data-00000-of-00001"
            ) from error
        try:
            self.num_shards, self.entries = _read_index(data)
        except _Damaged as error:
            raise InputError(
                f"{self.index}: {error}; expected the whole index of a TensorFlow checkpoint, format V2: copy or "
                "download it again"
            ) from error

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor, memory-mapped; writing to it does not change the file.

        Raises:
            InputError: the tensor is incomplete or damaged, or of a type that is not supported.
        """
        entry = self.entries[name]
        where = f"{self.index}: tensor '{name}'"
        if entry.is_sliced:
            raise InputError(f"{where} is stored in slices, expected whole; save it again without a partitioner")
        if isinstance(entry.dtype, int):
            raise InputError(
                f"{where} is of TensorFlow's type number {entry.dtype}, expected a numeric type of numpy; save it "
                "again, in float32"
            )
        dtype, count = np.dtype(entry.dtype), math.prod(entry.shape)
        num_bytes = count * dtype.itemsize
        if entry.size != num_bytes:
            raise InputError(
                f"{where} has {entry.size} bytes, expected {num_bytes} for {dtype} of shape {entry.shape}; "
                "copy or download the checkpoint again"
            )
        if entry.shard >= self.num_shards:
            raise InputError(
                f"{where} is in data file number {entry.shard}, expected one below {self.num_shards}; copy or "
                "download the checkpoint again"
            )
        path = self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.num_shards:05d}")
        try:
            length = path.stat().st_size
            if entry.offset + entry.size > length:
                raise InputError(
                    f"{path}: truncated: {length} bytes, expected at least {entry.offset + entry.size}, where tensor "
                    f"'{name}' ends; copy or download the file again"
                )
            # Copy-on-write, as torch wants arrays it may write to. An empty array cannot be mapped.
            array = np.memmap(path, dtype, "c", entry.offset, (count,)) if count else np.empty(0, dtype)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); tensor '{name}' is in it: put all files of the "
                "checkpoint into one folder"
            ) from error
        found = _checksum(array.view(np.uint8))
        if found != entry.checksum:
            raise InputError(
                f"{path}: damaged: the checksum of tensor '{name}' is {found:#010x}, expected {entry.checksum:#010x}; "
                "copy or download the file again"
            )
        return array.reshape(entry.shape)


def _checksum(data: bytes | npt.NDArray[np.uint8]) -> int:
    """CRC-32C, rotated and shifted as LevelDB stores it ("masked")."""
    crc = 0
    for start in range(0, len(data), _CHUNK_BYTES):
        crc = google_crc32c.extend(crc, bytes(data[start : start + _CHUNK_BYTES]))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_index(data: bytes) -> tuple[int, dict[str, Entry]]:
    """Number of data files, and the entries by name."""
    pairs = _table(data)
    key, value = next(pairs, (None, b""))
    if key != b"":
        raise _Damaged("its first entry is not the header")
    num_shards = _read_header(value)
    entries, previous = {}, b""
    for key, value in pairs:
        name = key.decode("utf-8", "backslashreplace")
        if key <= previous:
            raise _Damaged(f"entry {name!r} is out of order")
        entries[name], previous = _read_entry(name, value), key
    return num_shards, entries


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of all blocks, in order."""
    if len(data) > _MAX_INDEX_BYTES:
        raise _Damaged(f"it has more than {_MAX_INDEX_BYTES} bytes, more than the index of any model")
    if len(data) < _FOOTER_BYTES or not data.endswith(_MAGIC):
        raise _Damaged("it does not end with the magic number of a table: truncated, or another kind of file")
    body, footer = data[:-_FOOTER_BYTES], data[-_FOOTER_BYTES : -len(_MAGIC)]
    meta_start, meta_size, at = _handle(footer, 0)
    index_start, index_size, _ = _handle(footer, at)
    _block(body, meta_start, meta_size)  # unused, but its checksum has to match
    end = 0
    for _, value in _pairs(_block(body, index_start, index_size)):
        start, size, _ = _handle(value, 0)
        if start < end:
            raise _Damaged(f"the block at byte {start} overlaps the one before it")
        end = start + size
        yield from _pairs(_block(body, start, size))


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """The start and size of a block, and the offset after these two numbers."""
    start, at = _varint(data, at)
    size, at = _varint(data, at)
    return start, size, at


def _block(body: bytes, start: int, size: int) -> bytes:
    """A block's content, checked against its trailer: a byte that names the compression, and the checksum of both."""
    end = start + size
    if end + _TRAILER_BYTES > len(body):
        raise _Damaged(f"a block of {size} bytes at byte {start} does not fit into the file")
    found = _checksum(body[start : end + 1])
    expected = int.from_bytes(body[end + 1 : end + _TRAILER_BYTES], "little")
    if found != expected:
        raise _Damaged(f"the checksum of the block at byte {start} is {found:#010x}, expected {expected:#010x}")
    if body[end] != 0:
        kind = "snappy" if body[end] == 1 else f"number {body[end]}"
        raise _Damaged(f"the block at byte {start} is compressed ({kind}); only uncompressed ones are read")
    return body[start:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block. A key is stored as the length of its prefix in the key before, and the rest."""
    num_restarts = int.from_bytes(block[-4:], "little")  # entry points of a block; not needed to read all of it
    end = len(block) - 4 - 4 * num_restarts
    if end < 0:
        raise _Damaged(f"a block of {len(block)} bytes counts {num_restarts} restarts")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        num_new, at = _varint(block, at)
        num_value, at = _varint(block, at)
        if shared > len(key) or shared + num_new > _MAX_KEY_BYTES or at + num_new + num_value > end:
            raise _Damaged(
                f"the entry after {key[:80].decode('utf-8', 'backslashreplace')!r} does not fit into its block"
            )
        key = key[:shared] + block[at : at + num_new]
        at += num_new + num_value
        yield key, block[at - num_value : at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the offset after it."""
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, at + n + 1
    raise _Damaged("a number is truncated or has more than 64 bits")


def _message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message by number: an int (varint, fixed32, fixed64), or bytes (string, message)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise _Damaged(f"a message has a field of unknown kind {kind}")
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(data):
            raise _Damaged("a message is truncated")
        raw, at = data[at : at + size], at + size
        yield tag >> 3, raw if kind == 2 else int.from_bytes(raw, "little")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _Damaged("a message has text where a number is expected")
    return value


def _inner(value: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    if isinstance(value, int):
        raise _Damaged("a message has a number where a message is expected")
    return _message(value)


def _read_header(data: bytes) -> int:
    """BundleHeaderProto: the number of data files."""
    num_shards = 0
    for field, value in _message(data):
        if field == 1:
            num_shards = _number(value)
        elif field == 2 and _number(value) != 0:
            raise _Damaged("its tensors are big-endian; only little-endian ones are read")
        elif field == 3:
            for part, number in _inner(value):
                if part == 2 and _number(number) > _VERSION:  # min_consumer
                    raise _Damaged(f"it needs a reader of version {number!r}; this one has {_VERSION}")
    return num_shards


def _read_entry(name: str, data: bytes) -> Entry:
    """BundleEntryProto; fields that proto3 omits are 0."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}  # dtype, shard, offset, size, checksum
    shape: list[int] = []
    is_sliced = False
    for field, value in _message(data):
        if field in numbers:
            numbers[field] = _number(value)
        elif field == 2:
            for part, dimension in _inner(value):
                if part == 2:
                    shape.append(sum(_number(size) for number, size in _inner(dimension) if number == 1))
        elif field == 7:
            is_sliced = True
    if len(shape) > 32 or math.prod(size or 1 for size in shape) >= 1 << 59:  # numpy's limits
        raise _Damaged(f"tensor {name!r} has the impossible shape {tuple(shape[:33])}")
    dtype = _DTYPES.get(numbers[1], numbers[1])
    return Entry(dtype, tuple(shape), numbers[3], numbers[4], numbers[5], numbers[6], is_sliced)
