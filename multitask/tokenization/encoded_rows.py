"""Encoded rows of one task and split: written once to a memory-mapped Arrow file, found again by content.

`prepare(nli, "train", tokenizer, 256, data)` -> `Examples`: `examples.ids(5)` is a view of the file, no copy. A file
of which no row was truncated or dropped serves every window that its rows fit.
"""

import gc
import hashlib
import itertools
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from multitask import registry
from multitask.config.data import DataConfig, SourceConfig
from multitask.data import sources as data_sources
from multitask.data.readers import existing
from multitask.data.rows import Counts, Row, read
from multitask.errors import InputError
from multitask.files import cache_folder, cannot_cache, replacing, temporary
from multitask.source_hash import source_hash
from multitask.task import Task
from multitask.tokenization.chunks import ahead
from multitask.tokenization.row_encoder import RowEncoder
from multitask.tokenization.row_file import BATCH_BYTES, DAMAGE, SCHEMA, RowBatches, one_batch
from multitask.tokenization.row_file import Examples as Examples
from multitask.tokenization.survey import LostCharacters
from multitask.tokenization.tokenizer import lost_characters

_BATCH = 1000  # rows encoded at a time
_THREADS = 2  # while one waits for `tokenizers`, which works on all cores, the other does what Python has to do

_LIVE_OBJECTS = 200_000  # more than batches on their way have


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
    key = _key(task, sources, provenance, split, tokenizer, config, limit)
    path = cache_folder(config) / f"{task.name}-{split}-{key}.arrow"
    window = str(block_size) if max_answer_tokens is None else f"{block_size}-{max_answer_tokens}"
    windowed = path.with_stem(f"{path.stem}-{window}")
    paths = [
        str(existing(name, config))
        for source, item in zip(sources, provenance, strict=True)
        for name in (item["files"] if source.files is not None else ())
    ]
    examples = _cached(path, paths)
    if examples is None or not examples.fit(block_size, max_answer_tokens):
        examples = _cached(windowed, paths)
    if examples is None:
        encoder = RowEncoder(task, tokenizer, block_size, max_answer_tokens)
        report: dict[str, object] = {
            "paths": paths,
            "files": [name for item in provenance for name in item["files"]],
            "sha256": [digest for item in provenance for digest in item["sha256"]],
            "revision": next((item["revision"] for item in provenance if item["revision"]), None),
            "split": split,
        }
        examples = Examples(_write(path, windowed, task, split, config, encoder, tokenizer, report, limit), paths)
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
    except DAMAGE as error:
        text = f"{path}: this file of the cache is truncated or damaged ({error}); the rows are encoded anew"
        warnings.warn(text, stacklevel=3)
        return None


def _key(
    task: Task,
    sources: Sequence[SourceConfig],
    provenance: Sequence[data_sources.Provenance],
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
    limit: int | None,
) -> str:
    """A hash of all that a file depends on but the window: data, task, tokenizer, settings, the code that encodes."""
    parts = [
        registry.fingerprint(task),
        tokenizer.backend_tokenizer.to_str(),
        json.dumps([source.model_dump(mode="json") for source in sources]),  # unsorted: labels stand in order
        json.dumps([provenance, split, config.on_bad_row, limit], sort_keys=True),
        source_hash(__name__),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Python's search for cycles, of which rows and ids have none, took a third of the time of encoding.

    It is not switched off: errors of bad rows that are skipped are cycles.
    """
    before = gc.get_threshold()
    gc.set_threshold(before[0] and _LIVE_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _write(
    path: Path,
    windowed: Path,
    task: Task,
    split: str,
    config: DataConfig,
    encoder: RowEncoder,
    tokenizer: PreTrainedTokenizerFast,
    report: dict[str, object],
    limit: int | None,
) -> Path:
    """Encodes in batches and writes; the file appears under its name only when it is whole.

    Returns its name: `path` where every row is there as it is, so that the file serves other windows too.
    """
    counts = Counts()
    rows = read(task, split, config, counts)
    num_truncated = num_dropped = num_rows = num_ahead = 0
    batches, lost = RowBatches(task), LostCharacters(tokenizer, encoder.plain)
    waiting: list[pa.RecordBatch] = []
    used = set[str]()

    def read_ahead() -> Iterator[list[Row]]:
        """No row more than the limit needs is read, so that the counts are of what was looked at."""
        nonlocal num_ahead
        while (most := min(_BATCH, limit - num_rows - num_ahead) if limit else _BATCH) or num_ahead:
            batch = list(itertools.islice(rows, most))
            if most and not batch:
                return
            num_ahead += len(batch)
            yield batch

    aside = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _rare_garbage_collection(), pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for batch, examples in ahead(encoder.encode, read_ahead(), _THREADS):
                found = [(row, one) for row, one in zip(batch, examples, strict=True) if one is not None]
                num_ahead -= len(batch)
                num_rows += len(found)
                num_dropped += len(batch) - len(found)
                num_truncated += sum(one.is_truncated for _, one in found)
                if task.is_closed:
                    used.update([row.fields[task.target] for row, _ in found])
                if batch:
                    waiting.append(batches.of([row for row, _ in found], [one for _, one in found]))
                    lost.add([text for row in batch for text in row.texts])
                if sum(one.nbytes for one in waiting) >= BATCH_BYTES:
                    writer.write_batch(one_batch(waiting))
                    waiting.clear()
            if any(one.num_rows for one in waiting):
                writer.write_batch(one_batch(waiting))
        if not lost.is_certain:
            again = itertools.islice(read(task, split, config, Counts()), num_rows + num_dropped)
            lost.counts = Counter()
            while batch := list(itertools.islice(again, _BATCH)):
                texts = [text for row in batch for text in row.texts]
                lost.counts.update(lost_characters(texts, tokenizer, encoder.plain))
        report |= {
            "num_rows": num_rows,
            "num_truncated": num_truncated,
            "num_dropped": num_dropped,
            "num_skipped": counts.num_skipped,
            "num_chars_lost": lost.counts.total(),
            "chars_lost": dict(lost.counts.most_common(20)),
            "unused_labels": [word for word in batches.choices if word not in used] if task.is_closed else [],
        }
        path = windowed if num_truncated or num_dropped else path
        with replacing(path.with_suffix(".json")) as written:
            written.write_text(json.dumps(report | batches.shared, ensure_ascii=False), "utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise cannot_cache(path, error, "data.cache") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return path
