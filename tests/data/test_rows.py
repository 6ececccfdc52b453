"""Readers, splits, labels and every bad input of the data floor. All files are written here, in a temporary folder."""

import gzip
import json
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest

import multitask.data.synthetic
from multitask.config.data import DataConfig, SourceConfig
from multitask.data import readers
from multitask.data import sources as data_sources
from multitask.data.rows import Counts, Row, read_rows
from multitask.data.sources import has_split, provenance, resolve
from multitask.errors import InputError, RowError
from multitask.task import Task


def prepare(row: dict[str, Any]) -> dict[str, Any]:
    answers = row["answers"]
    if not answers:
        raise ValueError("field 'answers' is empty, expected a list of at least one answer")
    start = row["answer_start"][0]
    return {**row, "answer": answers[0], "references": answers, "keep": [start, start + len(answers[0])]}


CLS = Task("cls", "{text}<|classify|>{label}<|end|>", "label", truncate="text", label="label")
GEN = Task("gen", "<|start|>{label} {text}<|end|>", "text", label="label", optional=("label",))
SUMM = Task("summ", "{document}<|summarize|>{summary}<|end|>", "summary", truncate="document")
NLI = Task("nli", "{premise}<|nli|>{label}<|end|>", "label", label="label", choices=("entailment", "neutral"))
QA = Task("qa", "{context}<|q|>{question}<|a|>{answer}<|end|>", "answer", truncate="context", prepare=prepare)
SENTIMENT: dict[str | int, Any] = {0: {"ko": "부정", "en": "negative"}, 1: {"ko": "긍정", "en": "positive"}}


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTITASK_DATA", raising=False)


def write(folder: Path, name: str, content: str | bytes | list[dict[str, Any]]) -> SourceConfig:
    """A file and the source that reads it as `train`."""
    if isinstance(content, list):
        content = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content)
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return SourceConfig(files={"train": [name]})


def read(task: Task, source: SourceConfig, root: Path | None, split: str = "train", **changes: Any) -> list[Row]:
    source = SourceConfig(**{**source.model_dump(exclude_unset=True), **changes})
    return list(read_rows(task, source, split, DataConfig(root=root), Counts()))


def error(task: Task, source: SourceConfig, root: Path | None, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(task, source, root, **changes)
    return str(caught.value).replace(f"{root}/", "")


# ---------------------------------------------------------------- formats


def test_one_row_of_every_part(tmp_path: Path) -> None:
    found = [{"id": 7, "text": " 재밌다  <|end|> ", "label": 1, "extra": [1]}]
    [row] = read(CLS, write(tmp_path, "a.jsonl", found), tmp_path, labels=SENTIMENT, language="ko")
    assert row == Row(
        id="7",
        fields={"text": " 재밌다  <|end|> ", "label": "긍정"},
        references=("긍정",),
        language="ko",
        choices=("부정", "긍정"),
        classes=("negative", "positive"),
        keep=None,
        where=f"{tmp_path}/a.jsonl:1",
    )


def test_the_same_rows_in_every_format(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"document": "가나, 다", "summary": "가"}, {"document": "x y", "summary": "\u2028z\x85"}]
    table = [list(rows[0]), *(list(r.values()) for r in rows)]
    tsv = "".join("\t".join(line) + "\r\n" for line in table)
    csv = "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in table)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    sources = {
        "a.jsonl": write(tmp_path, "a.jsonl", rows),
        "a.ndjson": write(tmp_path, "a.ndjson", b"\xef\xbb\xbf" + "\n\n".join(map(json.dumps, rows)).encode()),
        "a.json.gz": write(tmp_path, "a.json.gz", rows),
        "a.tsv": write(tmp_path, "a.tsv", tsv),
        "b.TSV.gz": write(tmp_path, "b.TSV.gz", tsv),
        "a.csv": write(tmp_path, "a.csv", csv),
        "b.csv": write(tmp_path, "b.csv", b"\xef\xbb\xbf" + csv.encode()),
        "a.dat": write(tmp_path, "a.dat", csv).model_copy(update={"format": "csv"}),
        "a.parquet": SourceConfig(files={"train": ["a.parquet"]}),
    }
    for name, source in sources.items():
        found = read(SUMM, source, tmp_path, language="ko")
        assert [r.fields for r in found] == rows, name
        assert [r.references for r in found] == [("가",), ("\u2028z\x85",)], name
        first, second = found[0].id.split(":"), found[1].id.split(":")
        assert first[0] == name
        assert int(second[1]) > int(first[1]), name


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
def test_korean_encodings(tmp_path: Path, encoding: str) -> None:
    text = "똠방각하 펲시콜라 |~\\"  # syllables that only cp949 has beyond EUC-KR, and bytes like ASCII letters
    source = write(tmp_path, "a.csv", f'text\n"{text}, 둘"\n'.encode(encoding))
    assert read(GEN, source, tmp_path, encoding=encoding, language="ko")[0].fields == {"text": f"{text}, 둘"}


@pytest.mark.parametrize(("encoding", "other"), [("utf-8", "cp949"), ("cp949", "utf-8")])
def test_wrong_encoding_names_the_line_and_the_right_one(tmp_path: Path, encoding: str, other: str) -> None:
    source = write(tmp_path, "a.txt", b"ascii\n" + "각".encode(other) + b"\n")
    text = error(GEN, source, tmp_path, encoding=encoding)
    assert text.startswith("a.txt:2: byte 0x")
    assert f"is not valid {encoding}; the line reads as {other}: set `encoding: {other}`" in text


def test_bytes_of_no_encoding(tmp_path: Path) -> None:
    assert "a.txt:1: byte 0xff is not valid utf-8, nor does the line read as cp949" in error(
        GEN, write(tmp_path, "a.txt", b"a\xff\xff"), tmp_path
    )


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    # The layout of NSMC's ratings_*.txt: a reader with quoting merges rows 2 and 3 into one.
    lines = 'id\tdocument\tlabel\n1\t"최고\t1\n2\t최악"\t0\n3\t\t1\n4\t"그냥" 그래\t0\n'
    source = write(tmp_path, "ratings_train.txt", lines)
    source = source.model_copy(
        update={"format": "tsv", "columns": {"text": "document"}, "labels": SENTIMENT, "language": "ko"}
    )
    counts = Counts()
    rows = list(read_rows(CLS, source, "train", DataConfig(root=tmp_path, on_bad_row="skip"), counts))
    assert [(r.id, r.fields["text"]) for r in rows] == [("1", '"최고'), ("2", '최악"'), ("4", '"그냥" 그래')]
    assert counts == Counts(num_rows=3, num_skipped=1)
    assert "ratings_train.txt:4: field 'text' is empty, expected text" in error(CLS, source, tmp_path)


def test_csv_quoting_over_lines(tmp_path: Path) -> None:
    source = write(tmp_path, "a.csv", 'document,summary\r\n"one\r\n\r\n""two"", three",x\r\ny,\r\n"",z\r\n"w",w')
    rows = list(read_rows(SUMM, source, "train", DataConfig(root=tmp_path, on_bad_row="skip"), counts := Counts()))
    assert [r.fields["document"] for r in rows] == ['one\r\n\r\n"two", three', "w"]
    assert [r.where.rsplit(":", 1)[1] for r in rows] == ["2", "7"]
    assert counts == Counts(num_rows=2, num_skipped=2)


def test_text_is_one_row_per_line_that_is_not_blank(tmp_path: Path) -> None:
    rows = read(GEN, write(tmp_path, "a.txt", " 하나 \r\n\n\u3000\n둘"), tmp_path, language="ko")
    assert [(r.id, r.fields) for r in rows] == [("a.txt:1", {"text": " 하나 "}), ("a.txt:4", {"text": "둘"})]


def test_several_files_in_order(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "1\n2\n")
    write(tmp_path, "b.txt", "3\n")
    source = SourceConfig(files={"train": ["b.txt", "a.txt"]})
    assert [r.fields["text"] for r in read(GEN, source, tmp_path)] == ["3", "1", "2"]


def test_reading_is_lazy(tmp_path: Path) -> None:
    rows = read_rows(
        GEN, write(tmp_path, "a.jsonl", '{"text": "a"}\n{broken'), "train", DataConfig(root=tmp_path), Counts()
    )
    assert next(rows).fields == {"text": "a"}
    with pytest.raises(RowError):
        next(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv.gz"])
def test_memory_is_flat(tmp_path: Path, name: str) -> None:
    line = '{"text": "' + "x" * 990 + '"}\n' if name == "a.jsonl" else "x" * 1000 + "\n"
    source = write(tmp_path, name, "text\n" * (name != "a.jsonl") + line * 8000)
    tracemalloc.start()
    num_rows = sum(1 for _ in read_rows(GEN, source, "train", DataConfig(root=tmp_path), Counts()))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 8000
    assert peak_bytes < 1_000_000  # of 8 MB read: buffers and one record


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, multitask.data.rows; print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- columns, labels, prepare


def test_columns_nested_and_renamed(tmp_path: Path) -> None:
    span = {"text": ["b", "c"], "answer_start": [2, 4]}
    pairs = [{"text": t, "answer_start": s} for t, s in zip(*span.values(), strict=True)]
    columns = {"context": "p.body", "answers": "answers.text", "answer_start": "answers.answer_start", "id": "key"}
    for answers in (span, pairs):  # the layout of `datasets`, and the one of the published JSON
        found = [{"p": {"body": "a b c"}, "question": "?", "key": "k", "answers": answers}]
        [row] = read(QA, write(tmp_path, "a.jsonl", found), tmp_path, columns=columns)
        assert row.fields == {"context": "a b c", "question": "?", "answer": "b"}
        assert (row.id, row.references, row.keep) == ("k", ("b", "c"), (2, 3))


def test_a_mapped_column_wins_over_one_of_our_name(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", [{"text": "wrong", "body": "right"}, {"text": "wrong"}])
    source = source.model_copy(update={"columns": {"text": "body"}})
    assert next(read_rows(GEN, source, "train", DataConfig(root=tmp_path), Counts())).fields == {"text": "right"}
    assert "a.jsonl:2: field 'text' (column 'body') is missing" in error(GEN, source, tmp_path)


def test_a_column_named_references_is_not_an_answer(tmp_path: Path) -> None:
    found = [{"document": "d", "summary": "s", "references": "Kim 2020", "keep": "no"}]
    [row] = read(SUMM, write(tmp_path, "a.jsonl", found), tmp_path)
    assert (row.references, row.keep) == (("s",), None)


@pytest.mark.parametrize("raw", [0, "0", 0.0, False])
def test_labels_compare_as_text(tmp_path: Path, raw: object) -> None:
    [row] = read(CLS, write(tmp_path, "a.jsonl", [{"text": "t", "label": raw}]), tmp_path, labels=SENTIMENT)
    assert row.fields["label"] == "negative"


def test_the_words_are_of_the_rows_own_language(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", [{"text": "t", "label": 1}, {"text": "t", "label": 1, "language": "ko"}])
    english, korean = read(CLS, source, tmp_path, labels=SENTIMENT)
    assert (english.language, english.fields["label"], english.choices) == ("en", "positive", ("negative", "positive"))
    assert (korean.language, korean.fields["label"], korean.choices) == ("ko", "긍정", ("부정", "긍정"))
    assert english.classes == korean.classes == ("negative", "positive")


def test_several_labels_may_be_one_class(tmp_path: Path) -> None:
    labels = {1: "bad", 2: "bad", 5: "good"}
    rows = read(CLS, write(tmp_path, "a.jsonl", [{"text": "t", "label": k} for k in labels]), tmp_path, labels=labels)
    assert [r.fields["label"] for r in rows] == ["bad", "bad", "good"]
    assert rows[0].choices == rows[0].classes == ("bad", "good")


@pytest.mark.parametrize(
    "labels",
    [
        {0: "부정", 1: "부정"},
        {0: {"ko": "나쁨", "en": "bad"}, 1: {"ko": "나쁨", "en": "bad"}},
    ],
)
def test_classes_need_two_words(tmp_path: Path, labels: dict[int, object]) -> None:
    source = write(tmp_path, "a.jsonl", [{"text": "t", "label": key} for key in labels])
    text = error(CLS, source, tmp_path, labels=labels, language="ko")
    assert "is the word of every class" in text
    assert "expected at least two different words" in text


def test_labels_that_merge_in_one_language_only(tmp_path: Path) -> None:
    labels = {0: {"ko": "나쁨", "en": "bad"}, 1: {"ko": "나쁨", "en": "awful"}}
    source = write(tmp_path, "a.jsonl", [{"text": "t", "label": 0}])
    assert "do not pair up one to one" in error(CLS, source, tmp_path, labels=labels, language="ko")


@pytest.mark.parametrize("raw", [{}, {"label": None}, {"label": ""}, {"label": " "}])
def test_an_optional_label_may_be_absent(tmp_path: Path, raw: dict[str, Any]) -> None:
    source = write(tmp_path, "a.jsonl", [{"text": "t", **raw}, {"text": "u", "label": 1}])
    row, _ = read(GEN, source, tmp_path, labels=SENTIMENT)
    assert row.fields == {"text": "t"}
    assert row.choices == ("negative", "positive")


def test_own_choices_need_no_labels_and_bind_them(tmp_path: Path) -> None:
    plain = write(tmp_path, "a.jsonl", [{"premise": "p", "label": "neutral"}])
    assert read(NLI, plain, tmp_path)[0].choices == ("entailment", "neutral")
    coded = write(tmp_path, "b.jsonl", [{"premise": "p", "label": 1}])
    [row] = read(NLI, coded, tmp_path, labels={1: "neutral", 0: "entailment"})
    assert (row.fields["label"], row.choices) == ("neutral", ("entailment", "neutral"))  # the task's order, not ours
    text = error(NLI, coded, tmp_path, labels={0: "entailment", 1: "neutrall"})
    assert "'neutrall' is not one of the choices of task 'nli': entailment, neutral; did you mean 'neutral'?" in text


def test_skip_labels_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", [{"premise": "p", "label": k} for k in (-1, 0, -1)])
    source = source.model_copy(update={"labels": {0: "entailment", 1: "neutral"}, "skip_labels": ["-1"]})
    counts = Counts()
    assert len(list(read_rows(NLI, source, "train", DataConfig(root=tmp_path), counts))) == 1
    assert counts == Counts(num_rows=1, num_skipped=2)


# ---------------------------------------------------------------- bad rows

GOOD = '{"document": "d", "summary": "s"}\n'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'{"document": "d" "summary": 1}',
            "a.jsonl:2: not valid JSON at column 18: Expecting ',' delimiter, found '\"sum",
        ),
        (
            b'{"document": "d"',
            "a.jsonl:2: not valid JSON at column 17: Expecting ',' delimiter, found the end of the line",
        ),
        (b'"text"', "a.jsonl:2: a JSON object was expected, found 'text'"),
        (b"[" * 100000, "a.jsonl:2: not usable JSON"),
        (b'{"document": ' + b"1" * 5000 + b"}", "a.jsonl:2: not usable JSON"),
        (
            b'{"document": "d"}',
            "a.jsonl:2: field 'summary' is missing, found document; `columns: {summary: NAME}` names",
        ),
        (b'{"document": "d", "summary": ""}', "a.jsonl:2: field 'summary' is empty, expected text"),
        (b'{"document": "d", "summary": " \\n"}', "a.jsonl:2: field 'summary' is empty, expected text"),
        (b'{"document": "d", "summary": null}', "a.jsonl:2: field 'summary' is null, expected text"),
        (b'{"document": "d", "summary": 5}', "a.jsonl:2: field 'summary' is 5, expected text, found int"),
        (b'{"document": "d", "summary": ["s"]}', "a.jsonl:2: field 'summary' is ['s'], expected text, found list"),
        (
            b'{"document": "d", "summary": "a\\ud800b"}',
            "a.jsonl:2: field 'summary' holds half of a surrogate pair at char",
        ),
        (b'{"document": "d", "summary": "s", "language": 3}', "a.jsonl:2: field 'language' is 3, expected a name"),
        (b'{"document": "d\0", "summary": "s"}', "a.jsonl:2: a NUL byte, expected text"),
        (b'{"document": "\xff", "summary": "s"}', "a.jsonl:2: byte 0xff is not valid utf-8"),
    ],
)
def test_bad_json_rows(tmp_path: Path, line: bytes, expected: str) -> None:
    source = write(tmp_path, "a.jsonl", GOOD.encode() + line + b"\n" + GOOD.encode())
    with pytest.raises(RowError) as caught:
        read(SUMM, source, tmp_path)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(expected)
    counts = Counts()
    rows = list(read_rows(SUMM, source, "train", DataConfig(root=tmp_path, on_bad_row="skip"), counts))
    assert [r.id for r in rows] == ["a.jsonl:1", "a.jsonl:3"]
    assert counts == Counts(num_rows=2, num_skipped=1)


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("a.csv", "x,y,z\n", "a.csv:3: found 3 columns, expected 2 (document, summary)"),
        ("a.csv", "x\n", "a.csv:3: found 1 columns, expected 2 (document, summary)"),
        ("a.tsv", "x\ty\tz\n", "a.tsv:3: found 3 columns, expected 2 (document, summary)"),
        ("a.csv", 'x,5" disk, 3" too\n', "a.csv:3: column 2: a quote inside a cell, found '5\" disk"),
        ("a.csv", '"x"y,"z"\n', "a.csv:3: column 1: a quote inside a cell"),
        ("a.csv", '"x\n\n\0",y\n', "a.csv:5: a NUL byte"),
    ],
)
def test_bad_table_rows(tmp_path: Path, name: str, record: str, expected: str) -> None:
    sep = "," if name == "a.csv" else "\t"
    good = f"a{sep}b\n"
    source = write(tmp_path, name, f"document{sep}summary\n{good}{record}{good}")
    assert error(SUMM, source, tmp_path).startswith(expected)
    counts = Counts()
    rows = list(read_rows(SUMM, source, "train", DataConfig(root=tmp_path, on_bad_row="skip"), counts))
    assert len(rows) == 2
    assert counts == Counts(num_rows=2, num_skipped=1)


def test_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, "a.csv", 'document,summary\na,b\n"c,d\n' + "e,f\n" * 50)
    expected = "a.csv:3: a quote is opened in this record and never closed; expected a closing quote"
    assert error(SUMM, source, tmp_path) == expected
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 40)  # rows after the limit are read again
    assert len(read(SUMM, source, tmp_path, on_bad_row="skip")) > 30


def test_label_outside_the_set(tmp_path: Path) -> None:
    source = write(tmp_path, "nli.jsonl", [{"premise": "p", "label": "entails"}])
    assert error(NLI, source, tmp_path) == (
        "nli.jsonl:1: label 'entails' is not one of entailment, neutral; did you mean 'entailment'?"
    )
    source = write(tmp_path, "cls.jsonl", [{"text": "p", "label": 2}])
    assert error(CLS, source, tmp_path, labels=SENTIMENT) == "cls.jsonl:1: label 2 is not one of 0, 1"


@pytest.mark.parametrize("task", [CLS, GEN])
def test_labels_that_nobody_named_are_a_setting_to_correct(tmp_path: Path, task: Task) -> None:
    source = write(tmp_path, "a.jsonl", [{"text": "t", "label": 1}])
    text = error(task, source, tmp_path, on_bad_row="skip")  # never skipped: all rows would be
    assert "a.jsonl:1: field 'label' is 1, but the source has no `labels:`; add them in order" in text


def test_a_language_without_a_word(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", [{"text": "t", "label": 1}])
    text = error(CLS, source, tmp_path, labels=SENTIMENT, language="fr", on_bad_row="skip")
    assert "a.jsonl:1: label '0' has no word in language 'fr', only in ko, en; add one to `labels:`" in text


def test_an_empty_label_word(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", [{"text": "t", "label": 1}])
    assert "labels: a word is empty" in error(CLS, source, tmp_path, labels={0: "a", 1: ""})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answers": []}, "a.jsonl:1: field 'answers' is empty, expected a list of at least one answer"),
        ({"answer_start": 3}, "a.jsonl:1: the row does not have the shape that task 'qa' expects (TypeError: "),
        (
            {"answer_start": [9]},
            "a.jsonl:1: the answer is said to be at characters 9 to 10 of field 'context', which has 5",
        ),
        ({"answers": ["b", 4]}, "a.jsonl:1: a reference is 4, expected text"),
        ({"context": None}, "a.jsonl:1: field 'context' is null, expected text"),
    ],
)
def test_rows_that_a_task_cannot_prepare(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    found = {"context": "a b c", "question": "?", "answers": ["b"], "answer_start": [2], **change}
    with pytest.raises(RowError) as caught:
        read(QA, write(tmp_path, "a.jsonl", [found]), tmp_path)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(expected)


def test_skip_of_a_source_wins_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", GOOD + "{\n")
    assert len(read(SUMM, source, tmp_path, on_bad_row="skip")) == 1
    strict = DataConfig(root=tmp_path, on_bad_row="skip")
    with pytest.raises(RowError):
        list(read_rows(SUMM, source.model_copy(update={"on_bad_row": "raise"}), "train", strict, Counts()))
    text = error(GEN, source, tmp_path, on_bad_row="skip")
    assert text.startswith(
        "no row of the train split of a.jsonl can be used; the first error: a.jsonl:1: field 'text' is"
    )


# ---------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.csv", "document,summary\n"), ("a.txt", "\n \n"), ("a.txt.gz", "")]
)
def test_empty_files(tmp_path: Path, name: str, content: str) -> None:
    text = error(SUMM, write(tmp_path, name, content), tmp_path, on_bad_row="skip")
    assert text == f"{name}: there are no rows in it, expected at least one"


def test_missing_file_names_the_nearest_and_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "train.jsonl", GOOD)
    source = SourceConfig(files={"train": ["trian.jsonl"]})
    assert error(SUMM, source, tmp_path) == "trian.jsonl: no such file; in its folder: did you mean 'train.jsonl'?"
    monkeypatch.chdir(tmp_path)
    text = error(SUMM, source, None)
    assert "did you mean 'train.jsonl'? (relative names start from data.root, else MULTITASK_DATA" in text
    assert "there is no folder" in error(SUMM, SourceConfig(files={"train": ["no/where.jsonl"]}), tmp_path)
    (tmp_path / "sub.jsonl").mkdir()
    assert "is a folder; expected a file" in error(SUMM, SourceConfig(files={"train": ["sub.jsonl"]}), tmp_path)


def test_root_is_the_setting_then_the_environment_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setting", "environment", "here"):
        (tmp_path / name).mkdir()
        source = write(tmp_path / name, "a.txt", name)
    monkeypatch.chdir(tmp_path / "here")
    assert read(GEN, source, None)[0].fields["text"] == "here"
    monkeypatch.setenv("MULTITASK_DATA", str(tmp_path / "environment"))
    assert read(GEN, source, None)[0].fields["text"] == "environment"
    assert read(GEN, source, tmp_path / "setting")[0].fields["text"] == "setting"


def test_unknown_extension(tmp_path: Path) -> None:
    text = error(SUMM, write(tmp_path, "a.dat", GOOD), tmp_path)
    assert "a.dat: the extension '.dat' does not tell the format; set `format:` to one of jsonl, csv, tsv, text" in text


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD.encode() * 1000)
    for name, raw in {
        "cut": whole[:-20],
        "flipped": whole[:30] + b"\xff" * 9 + whole[39:],
        "plain": GOOD.encode(),
    }.items():
        source = write(tmp_path, name, raw)
        (tmp_path / name).rename(tmp_path / "a.jsonl.gz")
        source = SourceConfig(files={"train": ["a.jsonl.gz"]})
        assert "a.jsonl.gz: the gzip data is damaged or cut off" in error(SUMM, source, tmp_path, on_bad_row="skip"), (
            name
        )


def test_headers_that_cannot_be_used(tmp_path: Path) -> None:
    assert "a.csv:1: the header names 'a' twice" in error(SUMM, write(tmp_path, "a.csv", "a,b,a\n1,2,3\n"), tmp_path)
    broken = write(tmp_path, "b.csv", b"docum\xff,summary\n1,2\n")
    assert "(in the header)" in error(SUMM, broken, tmp_path, on_bad_row="skip")  # the next row is no header


def test_damaged_parquet(tmp_path: Path) -> None:
    assert "a.parquet: not a readable Parquet file" in error(SUMM, write(tmp_path, "a.parquet", b"PAR1"), tmp_path)


def test_missing_split(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", GOOD)
    assert error(SUMM, source, tmp_path, split="test") == "a.jsonl: there is no split 'test', only train"
    assert [has_split(source, s) for s in ("train", "validation", "test")] == [True, False, False]


# ---------------------------------------------------------------- splits


def split_source(folder: Path, num_groups: int = 2000, **fractions: float) -> SourceConfig:
    rows = [{"document": f"d{i}", "summary": "s", "article": f"글 {i // 3}"} for i in range(3 * num_groups)]
    write(folder, "all.jsonl", rows)
    settings: Any = {"files": {"all": "all.jsonl"}, "split_by": {"column": "article", **fractions}}
    return SourceConfig.model_validate(settings)


def test_the_split_loses_doubles_and_crosses_nothing(tmp_path: Path) -> None:
    source = split_source(tmp_path, validation=0.1, test=0.2)
    splits = {s: [r.id for r in read(SUMM, source, tmp_path, split=s)] for s in ("train", "validation", "test")}
    lines = sorted(int(i.split(":")[1]) for ids in splits.values() for i in ids)
    assert lines == list(range(1, 6001))
    groups = [{(int(i.split(":")[1]) - 1) // 3 for i in ids} for ids in splits.values()]
    assert sum(map(len, groups)) == 2000  # three rows each, never in two splits
    shares = [len(g) / 2000 for g in groups]
    # 5 standard deviations of a binomial share of 2,000 groups: 0.051, 0.034, 0.045
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.05)


def test_the_split_is_the_documented_function(tmp_path: Path) -> None:
    # `printf '글 0' | sha256sum`: the first 16 digits as a fraction of 16^16; test up to 0.2, validation up to 0.3.
    source = split_source(tmp_path, validation=0.1, test=0.2)
    assert source.split_by is not None
    places = {g: data_sources._split_of(g, source) for g in ("글 0", "글 1", "글 2", 17, "17")}
    # 글 0: 0.886, 글 1: 0.446, 글 2: 0.125, 17: 0.270
    assert places == {"글 0": "train", "글 1": "train", "글 2": "test", 17: "validation", "17": "validation"}
    bigger = source.model_copy(update={"split_by": source.split_by.model_copy(update={"test": 0.4})})
    before = {r.id for r in read(SUMM, source, tmp_path, split="test")}
    assert before < {r.id for r in read(SUMM, bigger, tmp_path, split="test")}


def test_a_named_split_beside_one_to_be_split(tmp_path: Path) -> None:
    # Published train and test, no validation: split that off train.
    split_source(tmp_path)
    write(tmp_path, "test.jsonl", [{"document": "own", "summary": "s"}])
    settings: Any = {"files": {"all": "all.jsonl", "test": "test.jsonl"}, "split_by": {"column": "article", "test": 0}}
    source = SourceConfig.model_validate(settings)
    assert [r.fields["document"] for r in read(SUMM, source, tmp_path, split="test")] == ["own"]
    sizes = [len(read(SUMM, source, tmp_path, split=s)) for s in ("train", "validation")]
    assert sum(sizes) == 6000
    assert min(sizes) > 0
    no_test = SourceConfig.model_validate({**settings, "files": {"all": "all.jsonl"}})
    assert not has_split(no_test, "test")


def test_rows_without_a_group(tmp_path: Path) -> None:
    write(tmp_path, "all.jsonl", GOOD)
    source = SourceConfig.model_validate({"files": {"all": "all.jsonl"}, "split_by": {"column": "article"}})
    text = error(SUMM, source, tmp_path)
    assert text == "all.jsonl:1: column 'article', by which rows are split, is missing; found document, summary"


# ---------------------------------------------------------------- hub, world, presets, provenance


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceConfig:
    """A local folder in the place of a hub set, with a ClassLabel column and nested answers."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"document": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    folder = tmp_path / "org" / "reviews"
    for split, size in (("train", 5), ("test", 3)):
        rows = [{"document": f"{split} {i}", "label": i % 2} for i in range(size)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    settings: Any = {"columns": {"text": "document"}, "labels": SENTIMENT, "language": "ko"}
    return SourceConfig(hub=str(folder), **settings)


def test_hub_rows(hub: SourceConfig) -> None:
    rows = read(CLS, hub, None, split="test")
    assert [r.fields["label"] for r in rows] == ["부정", "긍정", "부정"]
    assert rows[2].where.endswith("reviews, test: row 3")
    sliced = read(CLS, hub, None, hub_splits={"train": "train[:60%]", "validation": "train[60%:]"}, split="validation")
    assert [r.fields["text"] for r in sliced] == ["train 3", "train 4"]


def test_hub_failures_name_the_next_step(hub: SourceConfig) -> None:
    text = error(CLS, hub, None, split="validation")
    assert "split 'validation': cannot be loaded: Unknown split" in text
    assert (
        "check `hub`, `hub_config`, `hub_splits`, `revision`; without a network, name local copies in `files:`" in text
    )
    assert "cannot be loaded" in error(CLS, hub, None, hub=f"{hub.hub}/no/such/folder")


def test_hub_sets_that_are_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found nsmc.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert "set `revision: refs/convert/parquet`" in error(CLS, SourceConfig(hub="e9t/nsmc"), None)


def test_hub_provenance_follows_the_content(hub: SourceConfig, tmp_path: Path) -> None:
    first = provenance(hub, "train", DataConfig())
    assert first == provenance(hub, "train", DataConfig())
    assert first["files"] == [f"{hub.hub}/train"]
    assert provenance(hub, "test", DataConfig())["sha256"] != first["sha256"]


def test_file_provenance_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    source = write(tmp_path, "a.txt", "abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, the example "abc"
    expected = {"files": ["a.txt"], "sha256": [digest], "revision": None}
    assert provenance(source, "train", DataConfig(root=tmp_path)) == expected
    (tmp_path / "a.txt").write_text("abd")
    assert provenance(source, "train", DataConfig(root=tmp_path))["sha256"] != [digest]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for `multitask.data.synthetic.dataset`."""

    def rows(fields: frozenset[str], split: str, count: int) -> Any:
        assert fields == {"text", "label"}
        for i in range(count):
            yield {"id": f"{split}-{i}", "language": ("ko", "en")[i % 2], "text": "t", "label": "cat"}

    labels = {"dog": {"ko": "개", "en": "dog"}, "cat": {"ko": "고양이", "en": "cat"}}
    fake = types.SimpleNamespace(rows=rows, LABELS=labels)
    monkeypatch.setitem(sys.modules, "multitask.data.synthetic.dataset", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(multitask.data.synthetic, "dataset", fake, raising=False)
    return fake


def test_the_synthetic_dataset_is_the_default_source(
    world: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    [source] = resolve(CLS, DataConfig())
    assert source.synthetic == {"train": 20000, "validation": 500, "test": 500}
    rows = read(CLS, source, None, split="test")
    assert len(rows) == 500
    assert [r.fields["label"] for r in rows[:2]] == ["고양이", "cat"]
    assert rows[0].choices == ("개", "고양이")
    assert rows[0].where == "synthetic:test:1"
    small = SourceConfig(synthetic={"train": 3})
    assert [has_split(small, s) for s in ("train", "test")] == [True, False]
    before = provenance(small, "train", DataConfig())
    assert before["files"] == ["synthetic:train:3"]
    monkeypatch.setattr(data_sources, "source_hash", lambda name: f"other code of {name}")
    assert provenance(small, "train", DataConfig())["sha256"] != before["sha256"]


def test_a_task_that_the_world_does_not_know() -> None:
    task = Task(name="poem", stream="{theme}<|poem|>{poem}<|end|>", target="poem")
    text = error(task, SourceConfig(synthetic={"train": 3}), None)
    assert text.startswith("task 'poem': the synthetic dataset has no rows of the fields poem, theme; it has rows of: ")
    assert text.endswith("Name files or a hub set for this task in data.sources")


def test_presets_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("files: {train: a.txt}\nlanguage: ko\n")
    own = SourceConfig(files={"train": ["b.txt"]})
    data = DataConfig(sources={"gen": ["e9t/nsmc", str(tmp_path / "mine.yaml"), own]})
    nsmc, mine, last = resolve(GEN, data)
    assert nsmc.hub == "e9t/nsmc"
    assert (mine.files, mine.language) == ({"train": ["a.txt"]}, "ko")
    assert last == own


def test_unknown_presets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.sources\.gen: there is no preset 'nsmc'; did you mean 'e9t/nsmc'\?"):
        resolve(GEN, DataConfig(sources={"gen": ["nsmc"]}))
    (tmp_path / "mine.yaml").write_text("file: {train: a.txt}\n")
    with pytest.raises(InputError, match="no such setting; did you mean 'files'"):
        resolve(GEN, DataConfig(sources={"gen": [str(tmp_path / "mine.yaml")]}))
    with pytest.raises(InputError, match=r"mein.yaml: no such file; did you mean 'mine.yaml'"):
        resolve(GEN, DataConfig(sources={"gen": [str(tmp_path / "mein.yaml")]}))


def test_rows_joined_into_documents(tmp_path: Path) -> None:
    lines = write(tmp_path, "lines.txt", "".join(f"line {n}\n" for n in range(7)).encode())
    joined = read(GEN, lines.model_copy(update={"join": 3}), tmp_path)
    assert [row.fields["text"].split("\n") for row in joined] == [
        ["line 0", "line 1", "line 2"],
        ["line 3", "line 4", "line 5"],
        ["line 6"],
    ]
    assert all(
        row.references == (row.fields["text"],) and row.where.endswith(str(n))
        for row, n in zip(joined, (1, 4, 7), strict=True)
    )
    labelled = write(tmp_path, "labelled.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    both = labelled.model_copy(update={"join": 2, "labels": SENTIMENT})
    assert error(GEN, both, tmp_path).endswith(
        "labelled.jsonl:1: `join` is for rows of text alone, found label, text; leave it out, or the other columns "
        "(`columns: {field: none}`)"
    )
    (alone,) = read(GEN, both.model_copy(update={"columns": {"label": "none"}}), tmp_path)
    assert alone.fields == {"text": "a\nb"}
