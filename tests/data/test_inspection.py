"""`init` writes settings that read a file as it is: task, columns, classes, encoding, language, splits."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows

from multitask.api import init
from multitask.config.loading import load, read_yaml
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row, read
from multitask.errors import InputError
from multitask.registry import load_tasks
from multitask.training.checks import check_before_encoding

TASKS = load_tasks()
REVIEWS = [
    ("재밌다, 정말", "긍정"),
    ("별로", "부정"),
    ("최고", "긍정"),
    ("지루하다", "부정"),
    ("좋아", "긍정"),
    ("그저", "부정"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MULTITASK_DATA", "/nowhere")


def made(*files: str, **given: Any) -> tuple[RunConfig, str]:
    """The settings that were written, and their text; training could begin with them."""
    text, path = init(files, overwrite=True, **given)
    assert path.read_text("utf-8") == text
    config = load(RunConfig, read_yaml(path))
    check_before_encoding(config, {name: TASKS[name] for name in config.tasks or ()})
    return config, text


def rows(config: RunConfig) -> list[Row]:
    """All rows, of every split."""
    (name,) = config.tasks or ()
    return [row for split in ("train", "validation", "test") for row in read(TASKS[name], split, config.data, Counts())]


def write(name: str, text: str, encoding: str = "utf-8") -> None:
    Path(name).write_bytes(text.encode(encoding))


def csv(header: str, pairs: list[tuple[str, str]]) -> str:
    return header + "\n" + "".join(f'"{text}",{label}\n' for text, label in pairs)


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
@pytest.mark.parametrize("header", ["리뷰,평가", "text,label", "content,category", "x1,x2"])
def test_a_table_of_texts_and_classes(encoding: str, header: str) -> None:
    write("reviews.csv", csv(header, REVIEWS), encoding)
    config, text = made("reviews.csv")
    assert config.tasks == ["cls"]
    assert "# classes: 긍정 (3 rows), 부정 (3 rows)" in text
    found = rows(config)
    assert sorted((row.fields["text"], row.fields["label"]) for row in found) == sorted(REVIEWS)
    assert {row.language for row in found} == {"ko"}


def test_a_file_that_mixes_encodings() -> None:
    lines = csv("text,label", REVIEWS * 3).splitlines(keepends=True)
    Path("a.csv").write_bytes(b"".join(line.encode(("utf-8", "cp949")[n % 2]) for n, line in enumerate(lines)))
    assert len(rows(made("a.csv")[0])) == 18


@pytest.mark.parametrize(
    "labels", [("0", "1"), ("0.0", "1.0"), ("yes", "no"), ("010", "011"), ("true", "false"), ("1e3", "-1")]
)
def test_classes_that_yaml_could_read_as_something_else(labels: tuple[str, str]) -> None:
    write("a.csv", csv("text,label", [(f"글 {n}", labels[n % 2]) for n in range(60)]))
    found = rows(made("a.csv")[0])
    assert len(found) == 60
    assert len({row.fields["label"] for row in found}) == 2


def test_english_and_splits_by_name_of_file() -> None:
    for split in ("train", "valid", "test"):
        rows_of = [{"text": f"a text {n} of {split}", "label": "ab"[n % 2]} for n in range(8)]
        write(f"data.{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows_of))
    config, text = made("data.train.jsonl", "data.valid.jsonl", "data.test.jsonl")
    assert "split_by" not in text
    assert "language: en" in text
    assert len(rows(config)) == 24
    for two in (("train", "test"), ("train", "valid")):
        config, text = made(*(f"data.{split}.jsonl" for split in two))
        assert len(rows(config)) == 16
        assert "split_by" in text


def test_tabs_named_txt() -> None:
    write("ratings.txt", "id\tdocument\tlabel\n" + "".join(f"{n}\t재밌다 {n}\t{n % 2}\n" for n in range(30)))
    config, text = made("ratings.txt")
    assert "format: tsv" in text
    assert len(rows(config)) == 30


def test_questions_with_and_without_an_answer() -> None:
    nested = {
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": "가람은 부산에서 태어났다.",
                        "qas": [
                            {
                                "id": f"{n}",
                                "question": f"어디 {n}?",
                                "answers": [{"text": "부산", "answer_start": 4}][: n % 3],
                            }
                            for n in range(30)
                        ],
                    }
                ],
            }
        ]
    }
    write("dev.json", json.dumps(nested, ensure_ascii=False, indent=2))
    write("train.json", json.dumps(nested, ensure_ascii=False))
    config, text = made("train.json", "dev.json")
    assert config.tasks == ["qa"]
    assert "no_answer: skip  # 20 of the first rows have no answer" in text
    assert {row.fields["answer"] for row in rows(config)} == {"부산"}


def test_numbers_for_the_choices_of_a_task() -> None:
    pairs = [{"premise": f"전제 {n}", "hypothesis": f"가설 {n}", "label": n % 4 - 1} for n in range(40)]
    write("nli.json", json.dumps(pairs, ensure_ascii=False))
    config, text = made("nli.json")
    assert config.tasks == ["nli"]
    assert "labels: {0: entailment, 1: neutral, 2: contradiction}  # CHECK the order" in text
    assert "skip_labels: ['-1']" in text
    assert len(rows(config)) == 30


def test_columns_that_are_named() -> None:
    write("a.csv", "a,b,c\n" + "".join(f"글 {n},요약 {n},{n}\n" for n in range(30)))
    with pytest.raises(InputError, match="no task fits the columns a, b, c; name one with --task"):
        init("a.csv")
    with pytest.raises(InputError, match="task 'summ': no column for document, summary; found a, b, c"):
        init("a.csv", task="summ")
    config, _ = made("a.csv", task="summ", columns=["document=a", "summary=b"])
    assert {row.fields["document"][:1] for row in rows(config)} == {"글"}
    with pytest.raises(InputError, match=r"--column: no column 'aa'; did you mean 'a'\?"):
        init("a.csv", task="summ", columns=["document=aa"], overwrite=True)
    with pytest.raises(InputError, match=r"no task 'sum'; did you mean 'summ'\?"):
        init("a.csv", task="sum", overwrite=True)


def test_what_cannot_be_read_is_told_and_nothing_is_written() -> None:
    write("a.csv", csv("text,label", REVIEWS) + "x,y,z\n")
    with pytest.raises(InputError, match=r"a\.csv:8: found 3 columns, expected 2"):
        init("a.csv")
    write("b.csv", "text,label\n")
    with pytest.raises(InputError, match=r"b\.csv: there are no rows in it"):
        init("b.csv")
    with pytest.raises(InputError, match=r"c\.csv: no such file; did you mean"):
        init("c.csv")
    Path("d.csv").write_bytes(b"text,label\n\xff\xfe\xff,1\n")
    with pytest.raises(InputError, match=r"d\.csv: neither utf-8 nor cp949 text"):
        init("d.csv")
    assert sorted(path.name for path in Path().iterdir()) == ["a.csv", "b.csv", "d.csv"]
    write("e.csv", csv("text,label", REVIEWS))
    init("e.csv")
    with pytest.raises(InputError, match=r"e\.yaml: exists; replace it with --overwrite"):
        init("e.csv")


# ---------------------------------------------------------------- rows that share a passage


def questions(num_passages: int, num_each: int, column: str = "context") -> list[dict[str, Any]]:
    return [
        {
            "id": f"{number}-{each}",
            column: f"가람 {number}번은 부산에서 태어났다.",
            "question": f"{number}번은 어디서 태어났나 {each}?",
            "answers": ["부산"],
        }
        for number in range(num_passages)
        for each in range(num_each)
    ]


def nested(num_passages: int, num_each: int) -> dict[str, Any]:
    def paragraph(number: int) -> dict[str, Any]:
        found = [row for row in questions(num_passages, num_each) if row["id"].startswith(f"{number}-")]
        qas = [
            {"id": row["id"], "question": row["question"], "answers": [{"text": "부산", "answer_start": 8}]}
            for row in found
        ]
        for one in qas:
            one["answers"][0]["answer_start"] = found[0]["context"].index("부산")
        return {"context": found[0]["context"], "qas": qas}

    return {
        "version": "1",
        "data": [{"title": f"t{n // 3}", "paragraphs": [paragraph(n)]} for n in range(num_passages)],
    }


def passages(config: RunConfig, field: str = "context") -> dict[str, set[str]]:
    (name,) = config.tasks or ()
    return {
        split: {row.fields[field] for row in read(TASKS[name], split, config.data, Counts())}
        for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize("form", ["jsonl", "renamed", "nested", "indented"])
@pytest.mark.parametrize("num_passages", [9, 40, 300])
def test_a_passage_stays_in_one_split(form: str, num_passages: int) -> None:
    column = "지문" if form == "renamed" else "context"
    if form in ("nested", "indented"):
        found = nested(num_passages, 6)
        write("a.json", json.dumps(found, ensure_ascii=False, indent=2 if form == "indented" else None))
    else:
        write(
            "a.json", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions(num_passages, 6, column))
        )
    config, text = made("a.json")
    assert f"split_by: {{column: {column}, " in text
    assert f"# {6 * num_passages:,} rows share {num_passages} texts of '{column}'" in text
    held = passages(config)
    assert all(held.values())
    assert not held["train"] & (held["validation"] | held["test"])
    assert not held["validation"] & held["test"]
    assert sum(map(len, held.values())) == num_passages


@pytest.mark.parametrize("task", ["summ", "nli", "cls"])
def test_a_text_that_rows_share_stays_in_one_split(task: str) -> None:
    columns = {"summ": ("document", "summary"), "nli": ("premise", "hypothesis"), "cls": ("text", "movie")}[task]
    label = {"label": "entailment"} if task == "nli" else {"label": "good"} if task == "cls" else {}
    pairs = [
        {columns[0]: f"text {n // 2}", columns[1]: f"other {n}", **label}
        | ({"label": "bad"} if task == "cls" and n % 3 else {})
        for n in range(200)
    ]
    write("a.jsonl", "".join(json.dumps(row) + "\n" for row in pairs))
    config, text = made("a.jsonl", task=task)
    assert f"split_by: {{column: {columns[0]}, " in text
    held = passages(config, columns[0])
    assert sum(map(len, held.values())) == 100


def test_rows_with_an_empty_text_are_split_by_text_too() -> None:
    """NSMC has reviews twice, with other ids, and empty ones."""
    lines = [f"{n}\t{'' if n == 7 else f'글 {n // 2}'}\t{n % 2}\n" for n in range(200)]
    write("ratings.txt", "id\tdocument\tlabel\n" + "".join(lines))
    text, _ = init("ratings.txt")
    assert "split_by: {column: document, " in text


def test_a_row_without_the_column_cannot_be_split_by_it() -> None:
    pairs = [{"text": f"text {n // 2}", "label": "ab"[n % 2]} for n in range(200)]
    for row in pairs[50:60]:
        del row["text"]
    write("a.jsonl", "".join(json.dumps(row) + "\n" for row in pairs))
    assert "# by row; `column: NAME` keeps" in init("a.jsonl")[0]


def test_one_passage_is_split_by_row_and_the_settings_say_so() -> None:
    write("a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions(1, 60)))
    _, text = made("a.jsonl")
    assert "column:" not in text
    assert "by row: 60 rows share 1 texts of 'context', too few to keep each in one split" in text


def test_rows_that_share_nothing_are_split_by_row() -> None:
    write("a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions(60, 1)))
    assert "# by row; `column: NAME` keeps" in made("a.jsonl")[1]


# ---------------------------------------------------------------- tables as Excel writes them

QUOTED = 'text\tlabel\n"정말, ""최고"" 예요"\t긍정\n별로\t부정\n' + "".join(
    f"글 {n}\t긍정\n말 {n}\t부정\n" for n in range(20)
)


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv", "noending"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp949"])
def test_a_table_with_tabs_whose_cells_are_in_quotes(name: str, encoding: str) -> None:
    write(name, QUOTED, encoding)
    config, text = made(name)
    assert "format: excel-tab  # tabs, with cells in quotes as Excel writes them" in text
    assert '정말, "최고" 예요' in {row.fields["text"] for row in rows(config)}


@pytest.mark.parametrize(
    "cell",
    ['"재밌다"', '"최고', '그는 "최고" 라고', '"그냥" 그래, "좋다"', '"a"b"', "'재밌다, 정말'"],
)
def test_quotes_that_are_only_quotes_stay(cell: str) -> None:
    write("a.tsv", QUOTED.replace('"정말, ""최고"" 예요"', cell))
    config, text = made("a.tsv")
    assert "format:" not in text
    assert cell in {row.fields["text"] for row in rows(config)}


def test_a_cell_over_two_lines() -> None:
    write("a.tsv", QUOTED.replace("정말, ", "정말\n"))
    config, _ = made("a.tsv")
    assert '정말\n"최고" 예요' in {row.fields["text"] for row in rows(config)}


# ---------------------------------------------------------------- files that are not what they seem


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        (
            "a.csv",
            "리뷰;평가\n좋아;1\n".encode(),
            "'리뷰;평가', are separated by ';', expected commas; save the table with commas",
        ),
        ("a.csv", "리뷰;평가\n좋아, 아주;1\n".encode("cp949"), "are separated by ';', expected commas"),
        ("a.csv", b"text|label\nx|1\n", "are separated by '|', expected commas"),
        ("a.tsv", b"text,label\nx,1\n", "are separated by ',', expected tabs; set `format: csv`"),
        ("a.csv", "리뷰,평가\n좋아,1\n".encode("utf-16"), "utf-16 text (Excel calls it Unicode text), expected utf-8"),
        (
            "a.txt",
            "리뷰\t평가\n좋아\t1\n".encode("utf-16"),
            "utf-16 text (Excel calls it Unicode text), expected utf-8",
        ),
        ("a.jsonl", '\ufeff{"text": "a"}\n'.encode("utf-16-be"), "utf-16 text"),
        ("a.csv", "리뷰,평가\r좋아,1\r별로,0\r".encode(), "lines end with a carriage return alone (old Mac files)"),
        ("a.tsv", b"text\tlabel\ra\t1\rb\t0\r", "lines end with a carriage return alone"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "lines end with a carriage return alone"),
        ("a.xlsx", b"PK\x03\x04\0\0", "a workbook of a spreadsheet; save its sheet as CSV"),
        ("a.xls", b"text", "a workbook of a spreadsheet; save its sheet as CSV"),
        (
            "noending",
            b"\0\1\2",
            "neither its name nor its beginning tells the format; give it a name that ends in .jsonl",
        ),
        ("a.dat", b"words alone\n", "neither its name nor its beginning tells the format"),
    ],
)
def test_a_file_that_is_no_table_of_ours_is_told(name: str, raw: bytes, message: str) -> None:
    Path(name).write_bytes(raw)
    with pytest.raises(InputError) as raised:
        init(name)
    assert message in str(raised.value)
    assert not list(Path().glob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("reviews", csv("text,label", REVIEWS * 5)),
        ("reviews.dat", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in REVIEWS)),
        ("reviews.data", "".join(json.dumps({"text": t, "label": w}) + "\n" for t, w in REVIEWS)),
        ("reviews.csv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in REVIEWS)),
    ],
)
def test_the_beginning_tells_a_format_that_the_name_does_not(name: str, text: str) -> None:
    write(name, text)
    config, written = made(name)
    assert "format: " in written
    assert {row.fields["text"] for row in rows(config)} == {text for text, _ in REVIEWS}


def test_a_folder_in_place_of_files() -> None:
    Path("d").mkdir()
    Path("d/a.csv").touch()
    with pytest.raises(InputError, match=r"^d: a folder, expected data files; in it: a\.csv$"):
        init("d")
    with pytest.raises(InputError, match=r"^e/a\.csv: no such file; there is no folder e$"):
        init("e/a.csv")
    with pytest.raises(InputError, match=r"^d/b\.csv: no such file; did you mean 'a\.csv'\?$"):
        init("d/b.csv")


def test_files_of_several_kinds() -> None:
    write("a.jsonl", "".join(json.dumps({"document": f"d {n}", "summary": f"s {n}"}) + "\n" for n in range(30)))
    write("b.json", json.dumps(nested(3, 3), ensure_ascii=False))
    with pytest.raises(
        InputError, match=r"b\.json: columns title, context, id, .*; a\.jsonl has document, summary; files"
    ):
        init(["a.jsonl", "b.json"])
    write("c.jsonl", "".join(json.dumps({"document": f"d {n}", "id": n}) + "\n" for n in range(30)))
    for two in (["a.jsonl", "c.jsonl"], ["c.jsonl", "a.jsonl"]):
        with pytest.raises(InputError, match=r"c\.jsonl: columns document, id; a\.jsonl has document, summary"):
            init(two)


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        (["txt=document"], None, r"--column txt=document: no task has a field 'txt'; did you mean 'text'\?"),
        (["txt=document"], "cls", r"--column txt=document: task 'cls' has no field 'txt'; did you mean 'text'\?"),
        (["zzz=document"], None, r"--column zzz=document: no task has a field 'zzz'; valid: .*text"),
        (["summary=document"], "cls", r"--column summary=document: task 'cls' has no field 'summary'; valid"),
        (
            ["contxt=document"],
            "qa",
            r"--column contxt=document: task 'qa' has no field 'contxt'; did you mean 'context'",
        ),
        (
            ["text=document", "text=label"],
            None,
            r"--column text=label: 'text' is column 'document' already; give it once",
        ),
    ],
)
def test_a_field_that_no_task_has(columns: list[str], task: str | None, message: str) -> None:
    write("a.csv", "document,label\n" + "".join(f"글 {n},{n % 2}\n" for n in range(40)))
    with pytest.raises(InputError, match=message):
        init("a.csv", columns=columns, task=task)


def test_columns_of_further_names_are_written() -> None:
    write("a.csv", "글,label,no\n" + "".join(f"글 {n},{n % 2},r{n}\n" for n in range(40)))
    config, _ = made("a.csv", columns=["id=no", "text=글"])
    assert {row.id for row in rows(config)} == {f"r{n}" for n in range(40)}


def test_settings_work_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data").mkdir()
    Path("other").mkdir()
    write("data/a.csv", csv("text,label", [(f"글 {n}", "ab"[n % 2]) for n in range(60)]))
    _, path = init("data/a.csv", out="other/a.yaml")
    path = path.absolute()
    for folder in (".", "data", "other"):
        monkeypatch.chdir(tmp_path / folder)
        assert len(rows(load(RunConfig, read_yaml(path)))) == 60


def test_rows_in_two_languages_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    both = [("The goat eats honey at home.", "A goat eats."), ("염소는 집에서 꿀을 먹는다.", "염소가 먹는다.")]
    rows = [{"document": f"{d} {n}", "summary": f"{s} {n}"} for n in range(20) for d, s in both]
    write_rows(tmp_path / "both.jsonl", rows)
    text, _ = init("both.jsonl")
    assert "language: ko  # 20 of the first 40 rows have no Hangul; a column `language` (ko, en) names" in text
    write_rows(tmp_path / "named.jsonl", [{**row, "language": ("en", "ko")[n % 2]} for n, row in enumerate(rows)])
    write_rows(tmp_path / "korean.jsonl", rows[1::2])
    for name in ("named", "korean"):
        assert "language: ko\n" in init(f"{name}.jsonl")[0]


def test_comments_are_in_the_language_of_the_rows() -> None:
    for number, (word, language) in enumerate((("글", "ko"), ("word", "en"))):
        write(f"{number}.csv", "text,label\n" + "".join(f"{word} {n},{n % 2}\n" for n in range(240)))
        _, text = made(f"{number}.csv")
        assert "# classes: 0 (120 rows), 1 (120 rows)" in text
        assert ("{0: 부정, 1: 긍정}" in text) == (language == "ko")
        assert ("skt/kogpt2-base-v2" in text) == (language == "ko")
        assert ("openai-community/gpt2" in text) == (language == "en")
