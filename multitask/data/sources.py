"""Sources of rows: local files, sets of the hub, the synthetic dataset; which of their parts hold a split.

`provenance(SourceConfig(files={"train": ["a.jsonl"]}), "train", data)` -> `{"files": ["a.jsonl"], ...}`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast
from unicodedata import normalize

from multitask.config.data import DataConfig, SourceConfig, SplitConfig, is_data_file, own_file
from multitask.config.loading import load, read_yaml, written_word
from multitask.data.readers import RawRecord, existing, file_records, format_of, has_excel_quotes, matching
from multitask.errors import InputError, RowError, suggest
from multitask.events import Json
from multitask.files import cache_folder, remembered_sha256, shipped
from multitask.pattern import fields
from multitask.source_hash import source_hash
from multitask.task import Task

_NESTED = {list, dict}

SYNTHETIC = SourceConfig(synthetic={"train": 20000, "validation": 500, "test": 500})


def resolve(task: Task, data: DataConfig) -> list[SourceConfig]:
    """The sources of one task, presets looked up; the synthetic dataset where none is named.

    Raises InputError for an unknown preset, with the nearest one.
    """
    if task.name not in data.sources:
        return [SYNTHETIC]
    return [_preset(task, s) if isinstance(s, str) else s for s in data.sources[task.name]]


def has_split(source: SourceConfig, split: str) -> bool:
    """True when the source promises rows of `split`."""
    return bool(_parts(source, split)) if source.synthetic is None else bool(_synthetic_count(source, split))


class Provenance(TypedDict):
    """Names and content hashes of what rows are read from; revision: of a hub set."""

    files: list[str]
    sha256: list[str]
    revision: str | None


def provenance(source: SourceConfig, split: str, data: DataConfig) -> Provenance:
    """Names and content hashes of what one split is read from: `{"files": [...], "sha256": [...], "revision": ...}`.

    Of a hub set the Arrow files in the local cache are hashed; of the synthetic dataset, its code; the count is in
    the name.
    """
    cache = cache_folder(data)
    if source.synthetic is not None:
        module = "documents" if is_documents(source) else "dataset"
        files, digests = (
            [f"synthetic:{split}:{_synthetic_count(source, split)}"],
            [source_hash(f"multitask.data.synthetic.{module}")],
        )
    elif source.hub is not None:
        files = ["/".join(filter(None, (source.hub, source.hub_config, name))) for name, _ in _parts(source, split)]
        arrow = [_hub_set(source, name).cache_files for name, _ in _parts(source, split)]
        digests = [remembered_sha256((Path(f["filename"]) for f in found), cache) for found in arrow]
    else:
        files = [name for name, _ in _files(source, split, data)]
        digests = [remembered_sha256([existing(name, data)], cache) for name in files]
    return {"files": files, "sha256": digests, "revision": source.revision}


def quoted_files(task: Task, data: DataConfig) -> list[str]:
    """What to say of each file of a task that is read as TSV, quotes as they are, and looks like Excel's."""
    notes = []
    for source in resolve(task, data):
        names = (name for given in (source.files or {}).values() for one in given for name in matching(one, data))
        for name in dict.fromkeys(names):
            path = existing(name, data)
            if format_of(path, source) == "tsv" and has_excel_quotes(path):
                notes.append(
                    f"{task.name}: {path}: cells in quotes, as Excel writes them, are read with the quotes as text; "
                    "`format: excel-tab` reads them without"
                )
    return notes


def column_value(found: Any, column: str) -> Any:
    """The value of a column; a dot goes into a nested one, through lists of mappings too; None if there is none."""
    if isinstance(found, list):
        values = [column_value(item, column) for item in found]
        return None if None in values else values
    if not isinstance(found, dict):
        return None
    if column in found or "." not in column:
        return found.get(column)
    outer, _, inner = column.partition(".")
    return column_value(found.get(outer), inner)


def source_name(source: SourceConfig) -> str:
    """What errors call a source."""
    if source.hub is not None:
        return "/".join(filter(None, (source.hub, source.hub_config)))
    return ", ".join(n for names in source.files.values() for n in names) if source.files else "synthetic"


def _preset(task: Task, name: str) -> SourceConfig:
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    else:
        folder = shipped("configs") / "data"
        path = folder / f"{name}.yaml"
        if not path.is_file():
            if is_data_file(name):
                raise InputError(
                    f"data.sources.{task.name}: '{name}' is a data file, expected a source or a preset's name; write "
                    f"`{task.name}: [{own_file(written_word(name))}]`, or let `multitask init {name}` write it"
                )
            known = [p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")]
            raise InputError(
                f"data.sources.{task.name}: there is no preset '{name}'; {suggest(name, known)}; "
                "a file of your own is named with its extension, for instance my_data.yaml"
            )
    return load(SourceConfig, read_yaml(path), where=str(path))


def _parts(source: SourceConfig, split: str) -> list[tuple[str, bool]]:
    """(file or hub split, whether it is one to be split) that hold rows of `split`."""
    named = cast(Mapping[str, Any], source.files if source.files is not None else source.hub_splits)
    parts: list[tuple[str, bool]] = []
    for key in (split, "all"):
        if key == "all" and (source.split_by is None or not _share(source, split)):
            continue
        names = named.get(key, [])
        parts += [(name, key == "all") for name in ([names] if isinstance(names, str) else names)]
    return parts


def _files(source: SourceConfig, split: str, data: DataConfig) -> list[tuple[str, bool]]:
    """The parts of a split, patterns of file names resolved."""
    parts = _parts(source, split)
    return parts if source.files is None else [(one, is_all) for name, is_all in parts for one in matching(name, data)]


def _share(source: SourceConfig, split: str) -> float:
    """Share of the groups of `all` that goes to `split`."""
    assert source.split_by is not None
    shares = {"validation": source.split_by.validation, "test": source.split_by.test}
    return shares.get(split, 1 - sum(shares.values()))


def _split_of(group: object, source: SourceConfig) -> str:
    """The split of one group of rows: a pure function of its value and the shares, the same on every machine.

    The first 8 bytes of SHA-256 of the value's text, as a fraction of 2^64: below `test` it is test, below
    `test + validation` validation, else train. New rows never move old ones.
    """
    assert source.split_by is not None
    digest = hashlib.sha256(str(group).encode("utf-8", "surrogatepass")).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    if at < source.split_by.test:
        return "test"
    return "validation" if at < source.split_by.test + source.split_by.validation else "train"


def _group(found: Json, source: SourceConfig) -> object:
    """What decides about a row's split: the value of a column, or all of the row."""
    assert source.split_by is not None
    if source.split_by.column is None:
        return json.dumps(found, ensure_ascii=False, sort_keys=True, default=str)
    return column_value(found, source.split_by.column)


def _nfc_keys(found: Any) -> Any:
    """The same with names of columns in NFC, nested ones too; values stay as they are."""
    if isinstance(found, list):
        return [_nfc_keys(item) for item in found] if any(isinstance(item, list | dict) for item in found) else found
    if not isinstance(found, dict) or (all(map(str.isascii, found)) and _NESTED.isdisjoint(map(type, found.values()))):
        return found
    return {
        key if key.isascii() else normalize("NFC", key): _nfc_keys(value) if isinstance(value, list | dict) else value
        for key, value in found.items()
    }


def source_records(task: Task, source: SourceConfig, split: str, data: DataConfig) -> Iterator[RawRecord]:
    """Every record of one split of a source, good or bad; raises InputError for a split that it does not have."""
    if not has_split(source, split):
        has = [s for s in ("train", "validation", "test") if has_split(source, s)]
        raise InputError(f"{source_name(source)}: there is no split '{split}', only {', '.join(has) or 'none at all'}")
    if source.synthetic is not None:
        yield from _synthetic_records(task, source, split)
        return
    for name, is_divided in _files(source, split, data):
        is_empty = True
        records = _hub_records(source, name) if source.hub is not None else file_records(name, source, data)
        for record in records:
            is_empty = False
            if isinstance(record.found, dict) and (found := _nfc_keys(record.found)) is not record.found:
                record = record._replace(found=found)
            if is_divided and isinstance(record.found, dict):
                group = _group(record.found, source)
                if group is None:
                    column = cast(SplitConfig, source.split_by).column
                    missing = f"{record.where}: column '{column}', by which rows are split, is missing"
                    record = RawRecord(record.id, record.where, RowError(f"{missing}; found {', '.join(record.found)}"))
                elif _split_of(group, source) != split:
                    continue
            yield record
        if is_empty:
            raise InputError(f"{name}: there are no rows in it, expected at least one")


def _synthetic_count(source: SourceConfig, split: str) -> int:
    return cast(dict[str, int], source.synthetic or {}).get(split, 0)


def is_documents(source: SourceConfig) -> bool:
    """True for `columns: {text: document}`: synthetic documents in place of rows made for the task's fields."""
    return list(source.columns.values()) == ["document"]


def _synthetic_records(task: Task, source: SourceConfig, split: str) -> Iterator[RawRecord]:
    from multitask.data.synthetic import dataset

    count = _synthetic_count(source, split)
    try:
        if is_documents(source):
            from multitask.data.synthetic import documents

            records = documents.rows(split, count)
        else:
            records = dataset.rows(frozenset(fields(task.stream)), split, count)
        for number, found in enumerate(records, 1):
            where = f"synthetic:{split}:{number}"
            yield RawRecord(where, where, found)
    except InputError as error:
        raise InputError(f"task '{task.name}': {error}") from None


def _hub_set(source: SourceConfig, split: str) -> Any:
    import datasets

    name = source_name(source)
    try:
        return datasets.load_dataset(source.hub, source.hub_config, split=split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        step = "check `hub`, `hub_config`, `hub_splits`, `revision`; without a network, name local copies in `files:`"
        if "scripts are no longer supported" in reason:
            step = "set `revision: refs/convert/parquet`, where the hub keeps a converted copy"
        raise InputError(f"hub set {name}, split '{split}': cannot be loaded: {reason}; {step}") from error


def _hub_records(source: SourceConfig, split: str) -> Iterator[RawRecord]:
    """Rows of a hub split, batch by batch from its memory-mapped file; ClassLabel columns stay integers."""
    batches = _hub_set(source, split).with_format("arrow").iter(batch_size=1000)
    rows = (found for batch in batches for found in batch.to_pylist())
    for number, found in enumerate(rows, 1):
        yield RawRecord(
            f"{source_name(source)}:{split}:{number}", f"{source_name(source)}, {split}: row {number}", found
        )
