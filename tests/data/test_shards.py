"""A folder of Parquet shards: by a pattern or as a hub set, in order, one batch of a shard in memory at a time."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from multitask.config.data import DataConfig, SourceConfig
from multitask.data.rows import Counts, read
from multitask.data.sources import provenance
from multitask.errors import InputError
from multitask.registry import load_tasks
from multitask.task import Task

CLS = load_tasks()["cls"]
LABELS: dict[str, Any] = {"labels": {"0": "negative", "1": "positive"}}
NUM_ROWS = 4000  # of a shard, in row groups of 2,000


def shards(folder: Path, num: int) -> Path:
    """`train-00000-of-00003.parquet` ..., as the hub names them."""
    folder.mkdir(parents=True)
    for shard in range(num):
        numbers = range(shard * NUM_ROWS, (shard + 1) * NUM_ROWS)
        table = pa.table({"text": [f"the cat {n} " + "sat " * 40 for n in numbers], "label": [n % 2 for n in numbers]})
        pyarrow.parquet.write_table(table, folder / f"train-{shard:05}-of-{num:05}.parquet", row_group_size=2000)
    return folder


def read_all(source: SourceConfig, config: DataConfig, task: Task = CLS) -> tuple[list[str], int]:
    """The first words of each row, and the most bytes that Arrow held meanwhile."""
    before, most, found = pa.total_allocated_bytes(), 0, []
    for row in read(task, "train", config.model_copy(update={"sources": {task.name: [source]}}), Counts()):
        if len(found) % 500 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
        found.append(row.fields["text"][:14].strip())
    return found, most


@pytest.fixture
def as_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", ["pattern", "hub"])
def test_shards_are_read_in_order_in_constant_memory(form: str, tmp_path: Path, as_hub: None) -> None:
    held = {}
    for num in (2, 8):
        folder = shards(tmp_path / str(num) / "data", num)
        source = (
            SourceConfig(files={"train": ["data/train-*.parquet"]}, **LABELS)
            if form == "pattern"
            else SourceConfig(hub=str(folder), **LABELS)
        )
        found, held[num] = read_all(source, DataConfig(root=tmp_path / str(num)))
        assert found == [f"the cat {n} sat"[:14].strip() for n in range(num * NUM_ROWS)]
    assert held[8] < 1.2 * held[2] + (1 << 16), "as much for many shards as for two"


def test_a_pattern_is_part_of_what_is_hashed(tmp_path: Path) -> None:
    shards(tmp_path / "data", 2)
    source, config = SourceConfig(files={"train": ["data/*.parquet"]}, **LABELS), DataConfig(root=tmp_path)
    found = provenance(source, "train", config)
    assert found["files"] == [f"data/train-0000{n}-of-00002.parquet" for n in range(2)]
    assert len(set(found["sha256"])) == 2
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    assert provenance(source, "train", config)["sha256"] == found["sha256"][:1]


def test_names_with_brackets_are_names(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text('{"text": "the cat", "label": 1}\n')
    found, _ = read_all(SourceConfig(files={"train": ["a[1].jsonl"]}, **LABELS), DataConfig(root=tmp_path))
    assert found == ["the cat"]
    with pytest.raises(InputError, match=r"b\[1\]\.jsonl: no file has a name of this pattern"):
        read_all(SourceConfig(files={"train": ["b[1].jsonl"]}, **LABELS), DataConfig(root=tmp_path))
