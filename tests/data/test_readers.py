"""Encodings, Unicode forms of names, and files that are not what their extension says."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from multitask.config.data import DataConfig, SourceConfig
from multitask.data.rows import Counts, Row, read_rows
from multitask.data.sources import has_split
from multitask.errors import InputError
from multitask.task import Task

CLS = Task("cls", "{text}<|classify|>{label}<|end|>", "label", truncate="text", label="label")
GEN = Task("gen", "<|start|>{label} {text}<|end|>", "text", label="label", optional=("label",))
LABELS = {"부정": "부정", "긍정": "긍정"}


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def read(folder: Path, task: Task = CLS, name: str = "a.csv", **settings: Any) -> list[Row]:
    source = SourceConfig(**{"files": {"train": [name]}, "language": "ko"} | settings)
    return list(read_rows(task, source, "train", DataConfig(root=folder), Counts()))


def error(folder: Path, task: Task = CLS, name: str = "a.csv", **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, task, name, **settings)
    return str(caught.value).replace(f"{folder}/", "")


# ---------------------------------------------------------------- encodings


@pytest.mark.parametrize("name", ["cp949", "CP949", "euc-kr", "euc_kr", "ms949", "uhc"])
def test_names_of_the_korean_encoding(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\n재밌다,긍정\n".encode("cp949"))
    assert read(tmp_path, labels=LABELS, encoding=name)[0].fields == {"text": "재밌다", "label": "긍정"}


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
def test_a_file_that_mixes_encodings(tmp_path: Path, encoding: str) -> None:
    lines = [b"text,label\n", "재밌다,긍정\n".encode(), "x,긍정\n".encode("cp949"), b"y,\xbe\n"]
    (tmp_path / "a.csv").write_bytes(b"".join(lines[:3]))
    said = error(tmp_path, labels=LABELS, encoding=encoding)
    assert "the file mixes encodings: " in said
    assert "line 2 is utf-8" in said
    assert "line 3 is cp949" in said
    assert "set `encoding: [utf-8, cp949]`" in said
    for both in (["utf-8", "cp949"], ["ms949", "utf8"]):
        assert [row.fields["text"] for row in read(tmp_path, labels=LABELS, encoding=both)] == ["재밌다", "x"]
    (tmp_path / "a.csv").write_bytes(b"".join(lines))
    assert error(tmp_path, labels=LABELS, encoding=["utf-8", "cp949"]).startswith(
        "a.csv:4: byte 0xbe is not valid utf-8 or cp949"
    )


def test_a_file_of_another_encoding_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\n재밌다,긍정\nx,부정\n".encode("cp949"))
    assert error(tmp_path, labels=LABELS).endswith("the line reads as cp949: set `encoding: cp949`")


def test_an_unknown_encoding() -> None:
    with pytest.raises(ValueError, match=r"encoding.0\n +Input should be 'utf-8' or 'cp949'"):
        SourceConfig(files={"train": ["a"]}, encoding="klingon")


# ---------------------------------------------------------------- Unicode forms of names


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("setting", ["NFC", "NFD"])
def test_names_match_in_any_unicode_form(tmp_path: Path, form: Any, setting: Any) -> None:
    """macOS writes names of files in NFD, and files from there often hold texts in NFD."""

    def data(text: str) -> str:
        return unicodedata.normalize(form, text)

    def given(text: str) -> str:
        return unicodedata.normalize(setting, text)

    folder = tmp_path / data("자료")
    folder.mkdir()
    (folder / data("학습.csv")).write_text(data("리뷰,평가\n재밌다,긍정\n"), "utf-8")
    (folder / data("학습.jsonl")).write_text(json.dumps({data("글"): {data("본문"): "t"}, data("평가"): data("부정")}))
    settings: Any = {"labels": {given("부정"): given("부정"), given("긍정"): given("긍정")}}
    [row] = read(
        tmp_path, name=given("자료/학습.csv"), columns={"text": given("리뷰"), "label": given("평가")}, **settings
    )
    assert row.fields == {"text": data("재밌다"), "label": "긍정"}, "the word as settings say, the text untouched"
    columns = {"text": given("글.본문"), "label": given("평가")}
    [row] = read(tmp_path, name=given("자료/학습.jsonl"), columns=columns, **settings)
    assert row.fields == {"text": "t", "label": "부정"}


def test_a_header_with_one_name_in_two_forms(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"가,{nfd('가')}\n1,2\n")
    assert "the header names '가' twice" in error(tmp_path)


# ---------------------------------------------------------------- tables named .txt


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("task", [CLS, GEN])
def test_a_table_with_tabs_named_txt(tmp_path: Path, task: Task, end: str) -> None:
    (tmp_path / "a.txt").write_bytes(end.join(["id\tdocument\tlabel", "1\t재밌다\t1", "2\t별로\t0", ""]).encode())
    said = error(tmp_path, task, "a.txt", labels={"0": "부정", "1": "긍정"})
    assert said.startswith(
        "a.txt:1: a table of 3 columns with tabs (id, document, label), expected plain text; set `form"
    )
    rows = read(tmp_path, task, "a.txt", labels={"0": "부정", "1": "긍정"}, format="tsv", columns={"text": "document"})
    assert [row.fields for row in rows] == [{"text": "재밌다", "label": "긍정"}, {"text": "별로", "label": "부정"}]
    assert len(read(tmp_path, GEN, "a.txt", format="text")) == 3


def test_a_table_with_commas_named_txt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("review,label\nx,1\n")
    said = error(tmp_path, name="a.txt", columns={"text": "review", "label": "label"}, labels={"1": "긍정"})
    assert "a.txt:1: a table of columns review,label, expected plain text; set `format: csv`" in said


def test_text_with_a_tab_here_and_there_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("하나\t둘\n셋\n넷\t다섯\n")
    assert [row.fields["text"] for row in read(tmp_path, GEN, "a.txt")] == ["하나\t둘", "셋", "넷\t다섯"]


# ---------------------------------------------------------------- columns and labels that are named


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def test_a_named_column_that_no_row_has(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"text": f"영화 {n}", "sentiment": n % 2} for n in range(4)])
    labels = {"0": "부정", "1": "긍정"}
    said = error(tmp_path, GEN, "a.jsonl", labels=labels, columns={"label": "sentimant"})
    assert "no row has a column 'sentimant'; found text, sentiment" in said
    assert "did you mean 'sentiment'?" in said
    said = error(tmp_path, GEN, "a.jsonl", labels=labels)
    assert "labels: no row has a column 'label'; found text, sentiment; `columns: {label: NAME}` names another" in said
    for without in ({"labels": labels, "columns": {"label": "none"}}, {}):
        assert read(tmp_path, GEN, "a.jsonl", **without)[0].fields == {"text": "영화 0"}
    rows = read(tmp_path, GEN, "a.jsonl", labels=labels, columns={"label": "sentiment"})
    assert [row.fields["label"] for row in rows] == ["부정", "긍정"] * 2


def test_a_column_that_some_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond the rows that are held back; nothing is lost or doubled."""
    for limit in (1, 2, 3, 10_000):
        monkeypatch.setattr("multitask.data.rows.LOOKAHEAD", limit)
        for place in range(4):
            rows = [{"text": f"영화 {n}"} | ({"kind": "0"} if n == place else {}) for n in range(4)]
            jsonl(tmp_path, rows)
            found = read(tmp_path, GEN, "a.jsonl", labels={"0": "부정"}, columns={"label": "kind"})
            assert [row.fields["text"] for row in found] == [row["text"] for row in rows]
            assert ["label" in row.fields for row in found] == ["kind" in row for row in rows]
        jsonl(tmp_path, [{"text": "영화"}] * 4)
        assert "no row has a column 'kind'" in error(tmp_path, GEN, "a.jsonl", columns={"label": "kind"})


def test_a_field_that_the_task_does_not_have(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"text": "영화", "label": 1}])
    said = error(tmp_path, CLS, "a.jsonl", labels={"1": "긍정"}, columns={"txt": "text"})
    assert "columns: task 'cls' has no field 'txt'; did you mean 'text'?" in said


# ---------------------------------------------------------------- classes as settings and rows write them


@pytest.mark.parametrize("raw", [1, 1.0, "1", "1.0", True])
@pytest.mark.parametrize("key", [1, 1.0, "1", "1.0", "1.00", True, "true"])
def test_numbers_that_are_one_class(tmp_path: Path, raw: object, key: object) -> None:
    jsonl(tmp_path, [{"text": "영화", "label": raw}])
    assert read(tmp_path, CLS, "a.jsonl", labels={key: "긍정", "x": "부정"})[0].fields["label"] == "긍정"


@pytest.mark.parametrize(("raw", "key"), [("010", "10"), ("1", "1.5"), ("-1", "1"), ("01", "1"), ("1e0", "1")])
def test_names_that_are_not_one_class(tmp_path: Path, raw: str, key: str) -> None:
    jsonl(tmp_path, [{"text": "영화", "label": raw}])
    assert f"label '{raw}' is not one of {key}" in error(tmp_path, CLS, "a.jsonl", labels={key: "긍정"})


def test_a_list_of_words(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"text": "영화", "label": nfd("긍정")}])
    [row] = read(tmp_path, CLS, "a.jsonl", labels=[nfd("부정"), "긍정"])
    assert (row.fields["label"], row.choices) == ("긍정", ("부정", "긍정"))


def test_a_class_twice() -> None:
    with pytest.raises(ValueError, match="class '1' is given twice"):
        SourceConfig(files={"train": ["a"]}, labels={"1": "긍정", "1.0": "부정"})


# ---------------------------------------------------------------- split by row


def test_rows_split_by_themselves(tmp_path: Path) -> None:
    """Equal rows stay together; nothing is lost, and more rows move none."""
    rows = [{"text": f"영화 {n // 2}", "label": "긍정"} for n in range(400)]
    jsonl(tmp_path, rows)
    source = SourceConfig(files={"all": ["a.jsonl"]}, split_by={"validation": 0.2}, labels=["긍정"], language="ko")
    found = {
        split: [row.fields["text"] for row in read_rows(CLS, source, split, DataConfig(root=tmp_path), Counts())]
        for split in ("train", "validation", "test")
        if has_split(source, split)
    }
    assert sorted(text for texts in found.values() for text in texts) == sorted(row["text"] for row in rows)
    assert not set(found["train"]) & (set(found["validation"]) | set(found["test"]))
    assert 40 <= len(found["validation"]) <= 120
    assert 4 <= len(found["test"]) <= 40
