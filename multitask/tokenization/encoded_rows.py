"""Encoded rows of one task and split: written once to a memory-mapped Arrow file, found again by content.

`prepare(nli, "train", tokenizer, 256, data)` -> `Examples`: `examples.ids(5)` is a view of the file, no copy;
lengths alone (4 bytes a row) stay in memory.
"""

import hashlib
import itertools
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from multitask import registry
from multitask.config.data import DataConfig, SourceConfig
from multitask.data import sources as data_sources
from multitask.data.readers import existing
from multitask.data.rows import Counts, Row, read
from multitask.errors import InputError
from multitask.events import Json
from multitask.files import cache_folder, cannot_cache, replacing, temporary
from multitask.source_hash import source_hash
from multitask.task import Task
from multitask.tokenization.row_encoder import Encoded, RowEncoder, target_spans
from multitask.tokenization.tokenizer import lost_characters

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)
"""What reading a truncated or damaged file raises."""

_BATCH = 1000
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "fields": pa.string(),  # JSON: field -> text
        "references": pa.list_(pa.string()),
        "language": pa.string(),
        "choices": pa.list_(pa.string()),
        "classes": pa.list_(pa.string()),
        "where": pa.string(),
        "no_answer": pa.string(),
        "earlier": pa.string(),  # JSON: a list of field -> text
        "input_ids": pa.list_(pa.int32()),
        "borders": pa.list_(pa.int32()),
        "num_targets": pa.int32(),
        "is_truncated": pa.bool_(),
    }
)


class Examples:
    """Examples of one task and split, read from a memory-mapped file.

    lengths, num_targets: int32 arrays (N,), ids of an example and those of them that are targets. report: counts and
    provenance, as `results.json` shows them.
    """

    def __init__(self, path: Path, files: Sequence[str] = ()) -> None:
        """Opens the file; raises `_DAMAGE` for one that is truncated or damaged.

        files: the paths that the rows are read from now. The content is the same when it was encoded from others.
        """
        self.path = path
        self.report: Json = json.loads(path.with_suffix(".json").read_text("utf-8"))
        paths = self.report.pop("paths")
        self._moved: list[tuple[str, str]] = [
            (old, new) for old, new in zip(paths, files or paths, strict=True) if old != new
        ]
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [self._reader.get_batch(n) for n in range(self._reader.num_record_batches)]
        for batch in self._batches:
            batch.validate()
        if self._reader.schema != _SCHEMA or sum(b.num_rows for b in self._batches) != self.report["num_rows"]:
            raise ValueError("not the rows that were encoded")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._ids, self._borders = _Lists(self._batches, "input_ids"), _Lists(self._batches, "borders")
        self.lengths: npt.NDArray[np.int32] = self._ids.lengths()
        self.num_targets: npt.NDArray[np.int32] = np.concatenate(
            [batch.column("num_targets").to_numpy() for batch in self._batches] or [np.zeros(0, "i4")]
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

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
        found = self._batches[batch].slice(at, 1).to_pylist()[0]
        lists = {name: tuple(found[name]) for name in ("references", "choices", "classes")}
        return Row(
            found["id"],
            json.loads(found["fields"]),
            language=found["language"],
            keep=None,
            where=self._where(found["where"]),
            no_answer=found["no_answer"],
            earlier=tuple(json.loads(found["earlier"])),
            **lists,
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
        """All rows in order, or the first `limit`, one record batch in memory at a time."""
        return itertools.islice((self.row(n) for n in range(len(self))), limit)


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


def prepare(
    task: Task,
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    block_size: int,
    config: DataConfig,
    *,
    max_answer_tokens: int | None = None,
    limit: int | None = None,
) -> Examples:
    """Examples of a task's split, from the cache or encoded now.

    max_answer_tokens: as in `RowEncoder`; None in training. limit: the first so many usable rows.
    Raises InputError when no row is usable, or when the cache cannot be written. Warns of a damaged file in the cache,
    which is encoded anew.
    """
    sources = [source for source in data_sources.resolve(task, config) if data_sources.has_split(source, split)]
    if not sources:
        raise InputError(
            f"task '{task.name}' has no {split} rows: none of its sources has that split; "
            f"give `files: {{{split}: ...}}`"
        )
    provenance = [data_sources.provenance(source, split, config) for source in sources]
    key = _key(task, sources, provenance, split, tokenizer, block_size, config, max_answer_tokens, limit)
    path = cache_folder(config) / f"{task.name}-{split}-{key}.arrow"
    paths = [
        str(existing(name, config))
        for source, item in zip(sources, provenance, strict=True)
        for name in (item["files"] if source.files is not None else ())
    ]
    examples = _cached(path, paths)
    if examples is None:
        encoder = RowEncoder(task, tokenizer, block_size, max_answer_tokens)
        report: dict[str, object] = {
            "paths": paths,
            "files": [name for item in provenance for name in item["files"]],
            "sha256": [digest for item in provenance for digest in item["sha256"]],
            "revision": next((item["revision"] for item in provenance if item["revision"]), None),
            "split": split,
        }
        _write(path, task, split, config, encoder, tokenizer, report, limit)
        examples = Examples(path, paths)
    if len(examples) == 0:
        raise InputError(
            f"task '{task.name}', {split}: no usable row: {json.dumps(examples.report)}; "
            "raise train.block_size (or model.n_positions), or look at the rows with `preview`"
        )
    return examples


def _cached(path: Path, files: Sequence[str]) -> Examples | None:
    """The rows of a file of the cache; None when it is not there, or damaged."""
    if not path.exists():
        return None
    try:
        return Examples(path, files)
    except _DAMAGE as error:
        text = f"{path}: this file of the cache is truncated or damaged ({error}); the rows are encoded anew"
        warnings.warn(text, stacklevel=3)
        return None


def _key(
    task: Task,
    sources: Sequence[SourceConfig],
    provenance: Sequence[data_sources.Provenance],
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    block_size: int,
    config: DataConfig,
    max_answer_tokens: int | None,
    limit: int | None,
) -> str:
    """A hash of everything the file depends on: data, task, tokenizer, settings and the code that encodes."""
    parts = [
        registry.fingerprint(task),
        tokenizer.backend_tokenizer.to_str(),
        json.dumps([source.model_dump(mode="json") for source in sources]),  # unsorted: labels stand in order
        json.dumps([provenance, split, block_size, config.on_bad_row, max_answer_tokens, limit], sort_keys=True),
        source_hash(__name__),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _write(
    path: Path,
    task: Task,
    split: str,
    config: DataConfig,
    encoder: RowEncoder,
    tokenizer: PreTrainedTokenizerFast,
    report: dict[str, object],
    limit: int | None,
) -> None:
    """Encode in batches and write; the file appears under its name only when it is whole."""
    counts = Counts()
    num_truncated = num_dropped = num_rows = 0
    lost: Counter[str] = Counter()
    classes, used = dict[str, None](), set[str]()
    aside = temporary(path)
    rows = read(task, split, config, counts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            # No row more than the limit needs is read, so that the counts are of what was looked at.
            while batch := list(itertools.islice(rows, min(_BATCH, limit - num_rows) if limit else _BATCH)):
                records = []
                for row, example in zip(batch, encoder.encode(batch), strict=True):
                    if example is None:
                        num_dropped += 1
                    else:
                        num_rows += 1
                        num_truncated += example.is_truncated
                        records.append(_record(row, example))
                        if task.is_closed:
                            classes |= dict.fromkeys(row.choices)
                            used.add(row.fields[task.target])
                writer.write_batch(pa.RecordBatch.from_pylist(records, schema=_SCHEMA))
                lost.update(lost_characters([t for r in batch for t in r.texts], tokenizer, encoder.plain))
        report |= {
            "num_rows": num_rows,
            "num_truncated": num_truncated,
            "num_dropped": num_dropped,
            "num_skipped": counts.num_skipped,
            "num_chars_lost": sum(lost.values()),
            "chars_lost": dict(lost.most_common(20)),
            "unused_labels": [word for word in classes if word not in used],
        }
        with replacing(path.with_suffix(".json")) as written:
            written.write_text(json.dumps(report, ensure_ascii=False), "utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise cannot_cache(path, error, "data.cache") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _record(row: Row, example: Encoded) -> dict[str, object]:
    """One line of the Arrow file."""
    return {
        "id": row.id,
        "fields": json.dumps(row.fields, ensure_ascii=False),
        "references": list(row.references),
        "language": row.language,
        "choices": list(row.choices),
        "classes": list(row.classes),
        "where": row.where,
        "no_answer": row.no_answer,
        "earlier": json.dumps(row.earlier, ensure_ascii=False),
        "input_ids": example.input_ids,
        "borders": example.borders,
        "num_targets": sum(stop - start for start, stop in target_spans(example.borders, len(example.input_ids))),
        "is_truncated": example.is_truncated,
    }
