"""JSON files as published: arrays, nested questions, objects over several lines; each row with its own line."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from multitask.config.data import DataConfig, SourceConfig
from multitask.data import json_documents
from multitask.data.json_documents import items, shape_of
from multitask.data.rows import Counts, read_rows
from multitask.errors import InputError
from multitask.registry import load_tasks
from multitask.task import Task

SUMM = Task("summ", "{document}<|summarize|>{summary}<|end|>", "summary", truncate="document")
QA = load_tasks()["qa"]
ROWS = [{"document": f"가나 {n}, 다", "summary": f"가 {n}"} for n in range(5)]
ARTICLES: dict[str, Any] = {
    "version": "KorQuAD_v1.0_x",
    "data": [
        {
            "title": f"글 {n}",
            "paragraphs": [
                {
                    "qas": [
                        {"id": f"{n}-0", "question": "어디?", "answers": [{"text": "부산", "answer_start": 4}]},
                        {"id": f"{n}-1", "question": "무엇?", "answers": [{"text": "사과", "answer_start": 12}]},
                    ],
                    "context": "가람은 부산에서 낳은 사과다.",
                }
            ]
            * 2,
        }
        for n in range(3)
    ],
}


def read(folder: Path, name: str, text: str | bytes, task: Task = SUMM, **settings: Any) -> list[Any]:
    raw = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    source = SourceConfig(files={"train": [name]}, **{"language": "ko"} | settings)
    return list(read_rows(task, source, "train", DataConfig(root=folder), Counts()))


def lines_of(text: str, what: str) -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if what in line]


@pytest.mark.parametrize("indent", [None, 0, 1, 4])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_an_array_of_objects(tmp_path: Path, indent: int | None, name: str, mark: str) -> None:
    text = json.dumps(ROWS, indent=indent, ensure_ascii=False)
    rows = read(tmp_path, name, mark + text)
    assert [row.fields for row in rows] == ROWS
    lines = [1] * 5 if indent is None else [line - 1 for line in lines_of(text, "document")]
    assert [int(row.where.rpartition(":")[2]) for row in rows] == lines
    assert len({row.id for row in rows}) == 5


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_questions_of_nested_articles(tmp_path: Path, indent: int | None) -> None:
    """As SQuAD, KorQuAD and KLUE-MRC are published; the context may stand after its questions."""
    text = json.dumps(ARTICLES, indent=indent, ensure_ascii=False)
    rows = read(tmp_path, "a.json", text, QA)
    assert len(rows) == 12
    assert {row.fields["context"] for row in rows} == {"가람은 부산에서 낳은 사과다."}
    assert [row.fields["answer"] for row in rows] == ["부산", "사과"] * 6
    assert [row.id for row in rows[::4]] == ["0-0", "1-0", "2-0"]
    assert rows[0].keep == (4, 6)
    lines = [1] * 12 if indent is None else [line - 1 for line in lines_of(text, '"id"')]
    assert [int(row.where.rpartition(":")[2]) for row in rows] == lines


@pytest.mark.parametrize("indent", [1, 4])
def test_objects_one_after_another(tmp_path: Path, indent: int) -> None:
    text = "\n".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in ROWS)
    rows = read(tmp_path, "a.json", text)
    assert [row.fields for row in rows] == ROWS
    assert [int(row.where.rpartition(":")[2]) for row in rows] == [line - 1 for line in lines_of(text, "document")]


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_in_the_list_of_an_object(tmp_path: Path, indent: int | None) -> None:
    text = json.dumps({"name": "문서", "info": {"n": [1, 2]}, "documents": ROWS}, indent=indent, ensure_ascii=False)
    for end in ("", "\n"):
        assert [row.fields for row in read(tmp_path, "a.json", text + end)] == ROWS


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_in_a_row_is_no_list_of_rows(tmp_path: Path, indent: int | None) -> None:
    answers = [{"text": "부산", "answer_start": 4}]
    given = {"context": "가람은 부산에서 낳은 사과다.", "question": "어디?", "answers": answers}
    for num in (1, 2):
        text = "\n".join(num * [json.dumps(given, indent=indent, ensure_ascii=False)])
        assert [row.fields["answer"] for row in read(tmp_path, "a.json", text, QA)] == ["부산"] * num


def test_lines_stay_lines(tmp_path: Path) -> None:
    """An object on each line is JSONL, also with lists of objects in it."""
    rows = [row | {"extra": [{"a": 1}]} for row in ROWS]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert shape_of(text) == "lines"
    assert [row.where.rpartition(":")[2] for row in read(tmp_path, "a.json", text)] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    text = json.dumps(ARTICLES, indent=2, ensure_ascii=False)
    whole = [*items(io.BytesIO(text.encode()), "a", "utf-8", "wrapped")]
    monkeypatch.setattr(json_documents, "HEAD_BYTES", size)
    assert [*items(io.BytesIO(text.encode()), "a", "utf-8", "wrapped")] == whole
    numbers = " [1.5, 2.5, 12345678901234567890]"
    assert [str(item.found) for item in items(io.BytesIO(numbers.encode()), "a", "utf-8", "array")] == [
        f"a JSON object was expected, found {number}" for number in ("1.5", "2.5", "12345678901234567890")
    ]


def test_memory_is_of_one_article(monkeypatch: pytest.MonkeyPatch) -> None:
    """More text than the limit of an item passes where no item is as long."""
    monkeypatch.setattr(json_documents, "MAX_ITEM_CHARS", 200_000)
    text = json.dumps([{"text": "글" * 1000}] * 1000)
    assert len(text) > 10 * 200_000
    assert sum(1 for _ in items(io.BytesIO(text.encode()), "a", "utf-8", "array")) == 1000
    with pytest.raises(InputError, match="an item of more than 200,000 characters"):
        list(items(io.BytesIO(b'[{"a": "' + b"x" * 400_000), "a", "utf-8", "array"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n {"document": "d", "summary": "s"},\n {"document" "d"}\n]', "a.json:3: not valid JSON at column 14"),
        (
            '[\n {"document": "d", "summary": "s"}\n {"a": 1}\n]',
            "a.json:3: not valid JSON at column 2: expected ',' or",
        ),
        ('[\n {"document": "d", "summary": "s"},', "a.json:2: not valid JSON at column 36"),
        ('[\n {"document": "d", "summary": "s"}', "a.json:2: not valid JSON at column 35: expected ',' or ']'"),
        ('[{"document": "d", "summary": "s"}]\n{}', "a.json:2: not valid JSON at column 1: expected nothing after"),
        ('[\n {"document": "d"}\n]', "a.json:2: field 'summary' is missing, found document"),
        ("[\n\n 7\n]", "a.json:3: a JSON object was expected, found 7"),
        ("[ ]", "there are no rows in it"),
        ('{"data": [\n{"paragraphs": [{"context": "c"}]}]}', "a.json:2: a paragraph with a list 'qas' was expected"),
        ('{"data": [{"paragraphs": [\n{"qas": [\n3]}]}]}', "a.json:3: a question was expected as a JSON object"),
        ('{\n "data": [\n  {"paragraphs": [}', "a.json:3: not valid JSON at column 19"),
        ("[" * 100_000, "a.json:1: not usable JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, "a.json", text)
    assert message in str(caught.value)


def test_an_undecodable_byte(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json:3: byte 0xb0 is not valid utf-8"):
        read(tmp_path, "a.json", b'[{"document": "d", "summary": "s"},\n\n{"document": "' + "가".encode("cp949"))
    rows = read(tmp_path, "b.json", json.dumps(ROWS, ensure_ascii=False).encode("cp949"), encoding="euc-kr")
    assert [row.fields for row in rows] == ROWS
