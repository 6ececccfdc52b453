"""Rows: from a file, a hub dataset or the synthetic dataset to checked texts with their file and line.

`{"id": "a1", "text": "재밌다", "label": 1}` read for `cls` with `labels: {0: {ko: 부정}, 1: {ko: 긍정}}` ->
`Row(id="a1", fields={"text": "재밌다", "label": "긍정"}, choices=("부정", "긍정"), where="reviews.jsonl:1", ...)`.

Nothing here holds more than one record, or one batch of a hub set.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from multitask.config.data import DataConfig, SourceConfig
from multitask.data import rows as data_rows
from multitask.data import sources as data_sources
from multitask.data.readers import RawRecord, Record
from multitask.data.row_schema import Row as Row
from multitask.data.row_schema import RowSchema
from multitask.data.sources import column_value, source_name, source_records
from multitask.errors import InputError, RowError
from multitask.task import Task

LOOKAHEAD = 10_000
"""Records held back until every column that settings name was seen."""


@dataclass
class Counts:
    """Filled while rows are iterated.

    num_skipped: bad rows under `on_bad_row: skip`, and rows of `skip_labels`. A line of an `all` file that cannot even
        be parsed might belong to any split and is counted in each.
    """

    num_rows: int = 0
    num_skipped: int = 0


def read_rows(task: Task, source: SourceConfig, split: str, data: DataConfig, counts: Counts) -> Iterator[Row]:
    """Checked rows of one split of one source, in file order, `source.join` of them made one.

    Raises what `_single_rows` raises, and InputError where rows to join have more than their target.
    """
    rows = _single_rows(task, source, split, data, counts)
    if source.join == 1:
        yield from rows
        return
    while group := list(itertools.islice(rows, source.join)):
        for row in group:
            if set(row.fields) != {task.target}:
                raise InputError(
                    f"{row.where}: `join` is for rows of {task.target} alone, found {', '.join(row.fields)}; leave it "
                    "out, or the other columns (`columns: {field: none}`)"
                )
        text = "\n".join(row.fields[task.target] for row in group)
        yield replace(group[0], fields={task.target: text}, references=(text,))


def _single_rows(task: Task, source: SourceConfig, split: str, data: DataConfig, counts: Counts) -> Iterator[Row]:
    """Checked rows of one split of one source, in file order.

    Raises RowError for a row that cannot be used (or counts it, as `on_bad_row` says), and InputError, never skipped,
    for a file, a hub set or a setting that cannot.
    """
    skips_bad = (source.on_bad_row or data.on_bad_row) == "skip"
    schema = RowSchema(task, source)
    num_good, first_error = 0, None
    for record in _with_columns(source_records(task, source, split, data), schema):
        try:
            row = schema.row(record)
        except RowError as error:
            if not skips_bad:
                raise
            first_error = first_error or error
            row = None
        if row is None:
            counts.num_skipped += 1
            continue
        num_good += 1
        counts.num_rows += 1
        yield row
    if first_error is not None and num_good == 0:
        raise InputError(
            f"no row of the {split} split of {source_name(source)} can be used; the first error: {first_error}"
        )


def _with_columns(records: Iterator[RawRecord], schema: RowSchema) -> Iterator[RawRecord]:
    """The same records, the first of them once every column that settings name was seen.

    Raises InputError where a column is in no record: a misspelt name must not drop a field. That is before the first
    row, unless the file is longer than `LOOKAHEAD`.
    """
    held: list[RawRecord] | None = []
    missing, names = dict(schema.named_columns), dict[str, None]()
    for record in records:
        if missing and isinstance(record.found, dict):
            names |= dict.fromkeys(record.found)
            missing = {field: name for field, name in missing.items() if not _has(record.found, name)}
        if held is None:
            yield record
            continue
        held.append(record)
        if not missing or len(held) == LOOKAHEAD:
            yield from held
            held = None
            if not missing:
                yield from records
                return
    if missing and names:
        raise InputError(schema.missing_columns(missing, list(names)))
    yield from held or ()


def _has(found: Record, column: str) -> bool:
    return column in found or column_value(found, column) is not None


# ---------------------------------------------------------------- from a source to records


def read(task: Task, split: str, config: DataConfig, counts: Counts) -> Iterator[Row]:
    """Rows of all sources of a task, one source after the other in turn, so that a limit takes from each."""
    sources = [source for source in data_sources.resolve(task, config) if data_sources.has_split(source, split)]
    streams = [data_rows.read_rows(task, source, split, config, counts) for source in sources]
    while len(streams) > 1:
        for stream in list(streams):
            try:
                yield next(stream)
            except StopIteration:
                streams.remove(stream)
    for stream in streams:
        yield from stream
