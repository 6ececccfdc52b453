"""`init` writes settings that read a file as it is: task, columns, classes, encoding, language, splits."""

import json
from pathlib import Path
from typing import Any

import pytest

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
    assert "# classes: 긍정 3, 부정 3" in text
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
