"""The Arrow file of encoded rows, and beside it what all rows share, in JSON.

`examples.ids(5)` is a view of the memory-mapped file, no copy; lengths alone (4 bytes a row) stay in memory.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from multitask.data.rows import Row
from multitask.events import Json
from multitask.pattern import fields
from multitask.task import Task
from multitask.tokenization.row_encoder import Encoded, target_spans

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "texts": pa.list_(pa.string()),  # of the fields, in the order of the pattern; null: absent
        "references": pa.list_(pa.string()),  # null: the target alone
        "earlier": pa.string(),  # JSON: a list of field -> text; null: none
        "where": pa.string(),
        "kind": pa.int32(),  # place in `kinds` of the JSON file
        "input_ids": pa.list_(pa.int32()),
        "borders": pa.list_(pa.int32()),
        "num_targets": pa.int32(),
        "is_truncated": pa.bool_(),
    }
)
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, pa.ArrowException)
"""What reading a truncated or damaged file raises."""

BATCH_BYTES = 1 << 22
"""A record batch is at least so large, so that what is read of it lies in few places: ids apart from texts."""
_ROWS = 1000  # of a record batch that are Python objects at a time
_OF_ROWS = ("id", "texts", "references", "earlier", "where", "kind")


class _Kind(NamedTuple):
    """What many rows have in common."""

    language: str
    choices: tuple[str, ...]
    classes: tuple[str, ...]
    no_answer: str | None


class RowBatches:
    """Makes record batches of one task's rows, and keeps what they share: names of fields, the few kinds of rows."""

    def __init__(self, task: Task) -> None:
        self._fields, self._target = fields(task.stream), task.target
        self._kinds: dict[_Kind, int] = {}

    @property
    def shared(self) -> dict[str, object]:
        """For the JSON file."""
        return {"fields": self._fields, "target": self._target, "kinds": list(self._kinds)}

    @property
    def choices(self) -> list[str]:
        """Words of classes, those of the first row first."""
        return list(dict.fromkeys(word for kind in self._kinds for word in kind.choices))

    def of(self, rows: Sequence[Row], examples: Sequence[Encoded]) -> pa.RecordBatch:
        """Rows with their ids."""
        kinds, target = self._kinds, self._target
        columns = [
            pa.array([row.id for row in rows], pa.string()),
            pa.array([[row.fields.get(name) for name in self._fields] for row in rows], pa.list_(pa.string())),
            pa.array(
                [None if row.references == (row.fields[target],) else row.references for row in rows],
                pa.list_(pa.string()),
            ),
            pa.array(
                [json.dumps(row.earlier, ensure_ascii=False) if row.earlier else None for row in rows], pa.string()
            ),
            pa.array([row.where for row in rows], pa.string()),
            pa.array(
                [
                    kinds.setdefault(_Kind(row.language, row.choices, row.classes, row.no_answer), len(kinds))
                    for row in rows
                ],
                pa.int32(),
            ),
            _lists([example.input_ids for example in examples]),
            _lists([example.borders for example in examples]),
            pa.array(
                [sum(b - a for a, b in target_spans(one.borders, len(one.input_ids))) for one in examples], pa.int32()
            ),
            pa.array([example.is_truncated for example in examples], pa.bool_()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def one_batch(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Several record batches, not all of them empty, as one."""
    (found,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return found


def _lists(found: Sequence[Sequence[int]]) -> pa.ListArray:
    """A column of lists of numbers."""
    offsets = np.zeros(len(found) + 1, np.int32)
    np.cumsum([len(one) for one in found], out=offsets[1:])
    values = np.fromiter(itertools.chain.from_iterable(found), np.int32, int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


class Examples:
    """Examples of one task and split, read from a memory-mapped file.

    lengths, num_targets: int32 arrays (N,), ids of an example and those of them that are targets. report: counts and
    provenance, as `results.json` shows them.
    """

    def __init__(self, path: Path, files: Sequence[str] = ()) -> None:
        """Opens the file; raises one of `DAMAGE` for one that is truncated or damaged.

        files: the paths that the rows are read from now. The content is the same when it was encoded from others.
        """
        self.path = path
        self.report: Json = json.loads(path.with_suffix(".json").read_text("utf-8"))
        paths = self.report.pop("paths")
        self._fields: list[str] = self.report.pop("fields")
        self._target: str = self.report.pop("target")
        self._kinds = [
            _Kind(language, tuple(choices), tuple(classes), no_answer)
            for language, choices, classes, no_answer in self.report.pop("kinds")
        ]
        self._moved: list[tuple[str, str]] = [
            (old, new) for old, new in zip(paths, files or paths, strict=True) if old != new
        ]
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [self._reader.get_batch(n) for n in range(self._reader.num_record_batches)]
        for batch in self._batches:
            batch.validate()
        if self._reader.schema != SCHEMA or sum(b.num_rows for b in self._batches) != self.report["num_rows"]:
            raise ValueError("not the rows that were encoded")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._ids, self._borders = _Lists(self._batches, "input_ids"), _Lists(self._batches, "borders")
        self.lengths: npt.NDArray[np.int32] = self._ids.lengths()
        self.num_targets = self._numbers("num_targets")
        kinds = self._numbers("kind")
        if len(kinds) and not 0 <= kinds.min() <= kinds.max() < len(self._kinds):
            raise ValueError("a row of an unknown kind")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _numbers(self, name: str) -> npt.NDArray[np.int32]:
        columns = [batch.column(name).to_numpy() for batch in self._batches]
        return np.concatenate(columns or [np.zeros(0, "i4")])

    def ids(self, number: int) -> npt.NDArray[np.int32]:
        """Ids of one example, (T,), a view of the file."""
        return self._ids.of(*self._place(number))

    def borders(self, number: int) -> npt.NDArray[np.int32]:
        """Where targets of one example begin and end, a view of the file."""
        return self._borders.of(*self._place(number))

    def _place(self, number: int) -> tuple[int, int]:
        """The record batch of an example, and its place in it."""
        batch = int(np.searchsorted(self._starts, number, side="right")) - 1
        return batch, number - int(self._starts[batch])

    def row(self, number: int) -> Row:
        """One row with its texts; `keep` is not stored."""
        batch, at = self._place(number)
        return next(self._rows(self._batches[batch].slice(at, 1)))

    def _rows(self, batch: pa.RecordBatch) -> Iterator[Row]:
        """The rows of a record batch."""
        columns = [batch.column(name).to_pylist() for name in _OF_ROWS]
        for row_id, texts, references, earlier, where, kind in zip(*columns, strict=True):
            found = {name: text for name, text in zip(self._fields, texts, strict=True) if text is not None}
            shared = self._kinds[kind]
            yield Row(
                row_id,
                found,
                references=(found[self._target],) if references is None else tuple(references),
                language=shared.language,
                choices=shared.choices,
                classes=shared.classes,
                keep=None,
                where=self._where(where),
                no_answer=shared.no_answer,
                earlier=tuple(json.loads(earlier)) if earlier else (),
            )

    def _where(self, where: str) -> str:
        """Where a row stands now, if it was encoded from the same file in another folder."""
        for old, new in self._moved:
            if where.startswith(f"{old}:"):
                return new + where[len(old) :]
        return where

    def is_truncated(self, number: int) -> bool:
        """Whether a row's text was truncated to fit."""
        batch, at = self._place(number)
        return bool(self._batches[batch].column("is_truncated")[at].as_py())

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """All rows in order, or the first `limit`, one record batch in memory at a time.

        They are read from the file: in the mapped one each page that was looked at counts as memory.
        """
        with pa.OSFile(str(self.path)) as source, pa.ipc.open_file(source) as reader:
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            parts = (batch.slice(at, _ROWS) for batch in batches for at in range(0, batch.num_rows, _ROWS))
            yield from itertools.islice((row for part in parts for row in self._rows(part)), limit)

    def fit(self, block_size: int, max_answer_tokens: int | None) -> bool:
        """Whether no row would be truncated or dropped in a window, as `RowEncoder` takes it."""
        if max_answer_tokens is None:
            return int(self.lengths.max(initial=0)) <= block_size
        return self._borders.max_last() <= block_size - max_answer_tokens


class _Lists:
    """A column of lists of int32: those of an example are a view of the file."""

    def __init__(self, batches: Sequence[Any], name: str) -> None:
        columns = [batch.column(name) for batch in batches]
        self.values = [column.values.to_numpy(zero_copy_only=True) for column in columns]
        self.offsets = [column.offsets.to_numpy() for column in columns]

    def of(self, batch: int, at: int) -> npt.NDArray[np.int32]:
        """The list at one place of a record batch."""
        offsets = self.offsets[batch]
        found: npt.NDArray[np.int32] = self.values[batch][offsets[at] : offsets[at + 1]]
        return found

    def lengths(self) -> npt.NDArray[np.int32]:
        """The length of every list, (N,)."""
        return np.concatenate([np.diff(offsets) for offsets in self.offsets] or [np.zeros(0, "i4")])

    def max_last(self) -> int:
        """The largest number at the end of a list; 0 without any."""
        pairs = zip(self.values, self.offsets, strict=True)
        return max((int(values[offsets[1:] - 1].max(initial=0)) for values, offsets in pairs), default=0)
