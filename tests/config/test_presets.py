"""Every shipped preset loads and says where its rows are from; those whose rows are at hand are read end to end."""

import importlib.util
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from multitask.config.data import DataConfig, SourceConfig
from multitask.config.loading import load, read_yaml
from multitask.data.rows import Counts, Row, read_rows
from multitask.data.sources import has_split
from multitask.files import shipped
from multitask.task import Task

FOLDER = shipped("configs") / "data"
PRESETS = sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml"))
LOCAL = [name for name in PRESETS if "/" not in name]
DATA = Path(os.environ.get("MULTITASK_DATA") or Path(__file__).parents[3] / "shared" / "data")
SPLITS = ("train", "validation", "test")

# Rows of each split, as the read-me of the data counts them.
NUM_ROWS = {
    "gen_ko_nsmc": (100_000, 2_000, 2_000),
    "gen_ko_stylekqc": (23_976, 1_197, 2_109),
    "lm_en_the-verdict": (83, 0, 0),
    "lm_en_tinyshakespeare": (32_777, 0, 0),
    "lm_en_wikitext2": (0, 2_461, 2_746),
    "lm_ko_kaist": (3_610, 534, 0),
    "lm_ko_novels": (15_270, 1_280, 1_098),
    "lm_ko_pud": (0, 0, 1_000),
    "nli_en_breaking": (0, 0, 8_131),
    "nli_en_cad": (8_709, 899, 1_073),
    "nli_ko_klue": (23_407, 1_589, 2_559),
    "qa_en_qed": (812, 150, 151),
    "qa_en_xquad": (812, 127, 134),
    "qa_ko_korquad": (4_303, 456, 579),
    "summ_en_qmsum": (704, 121, 121),
    "summ_en_scitldr": (2_320, 310, 334),
    "summ_ko_sae4k": (21_141, 1_012, 977),
}


def task(name: str) -> Task:
    spec = importlib.util.spec_from_file_location(name, shipped("tasks") / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.TASK
    assert isinstance(found, Task)
    return found


def preset(name: str) -> SourceConfig:
    return load(SourceConfig, read_yaml(FOLDER / f"{name}.yaml"), where=name)


def rows(name: str, split: str, root: Path, task_name: str | None = None) -> list[Row]:
    kind = task(task_name or {"lm": "gen"}.get(name[: name.index("_")], name[: name.index("_")]))
    return list(read_rows(kind, preset(name), split, DataConfig(root=root), Counts()))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_its_head_says_where_from(name: str) -> None:
    source = preset(name)
    assert any(has_split(source, split) for split in SPLITS)
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    head = " ".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    assert "https://" in head
    assert re.search(r"CC0|CC BY|Apache|MIT|licence|public domain", head)
    assert ("Not run" in head) == ("/" in name)
    if source.hub is not None:
        assert source.hub == "/".join(name.split("/")[:2])
        assert (source.revision == "refs/convert/parquet") == ("loading script" in head)
    elif "/" not in name:
        assert all(file.startswith(f"{name}.") for files in (source.files or {}).values() for file in files)


def test_local_presets_are_those_counted() -> None:
    assert sorted(NUM_ROWS) == LOCAL


@pytest.mark.parametrize("name", ["e9t/nsmc", "e9t/nsmc_ratings", "klue/klue/nli", "klue/klue/ynat"])
def test_published_splits_are_kept(name: str) -> None:
    source = preset(name)
    assert source.split_by is not None
    assert source.split_by.test == 0  # `test` is what was published, nothing else
    assert all(has_split(source, split) for split in SPLITS)


def test_published_nsmc_files(tmp_path: Path) -> None:
    header = "id\tdocument\tlabel\n"
    body = "".join(f'{i}\t"리뷰 {i}\t{i % 2}\n' for i in range(300))
    (tmp_path / "ratings_train.txt").write_text(f"{header}{body}300\t\t1\n", "utf-8")
    (tmp_path / "ratings_test.txt").write_text(f"{header}9\t별로\t0\n", "utf-8")
    found = {split: rows("e9t/nsmc_ratings", split, tmp_path, "cls") for split in SPLITS}
    assert len(found["train"]) + len(found["validation"]) == 300
    assert 0 < len(found["validation"]) < 20
    assert [r.fields for r in found["test"]] == [{"text": "별로", "label": "부정"}]


@pytest.mark.skipif(not (DATA / "SHA256SUMS").is_file(), reason=f"no data in {DATA}; set MULTITASK_DATA")
@pytest.mark.parametrize("name", LOCAL)
def test_every_row_of_a_local_preset(name: str) -> None:
    source = preset(name)
    ids: Counter[str] = Counter()
    for split, expected in zip(SPLITS, NUM_ROWS[name], strict=True):
        assert has_split(source, split) == (expected > 0)
        if not expected:
            continue
        found = rows(name, split, DATA)
        assert len(found) == expected
        assert {r.language for r in found} == {name.split("_")[1]}
        ids.update(r.id for r in found)
        if name.startswith("nli"):
            assert {r.fields["label"] for r in found} == {"entailment", "neutral", "contradiction"}
        if name.startswith("gen"):
            assert {r.fields["label"] for r in found} == set(found[0].choices)
        if name.startswith("qa"):
            spans = [r.fields["context"][slice(*r.keep)] for r in found if r.keep]
            assert spans == [r.fields["answer"] for r in found]
    assert max(ids.values()) == 1
