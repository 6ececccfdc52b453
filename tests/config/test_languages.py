"""Languages by code and by name, and Korean text that names none."""

import json
from pathlib import Path
from typing import Any

import pytest

from multitask.config.data import DataConfig, SourceConfig
from multitask.config.languages import NAMES, language_code
from multitask.data.rows import Counts, Row, read_rows
from multitask.errors import InputError
from multitask.task import Task

GEN = Task("gen", "<|start|>{text}<|end|>", "text")


def read(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> list[Row]:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(files={"train": ["a.jsonl"]}, **settings)
    return list(read_rows(GEN, source, "train", DataConfig(root=folder), Counts()))


@pytest.mark.parametrize(
    "name", ["ko", "KO", "Ko", "kor", "ko-KR", "ko_KR", "ko-Kore", "Korean", " korean ", "한국어", "kr"]
)
def test_names_of_korean(name: str) -> None:
    assert language_code(name) == "ko"
    assert SourceConfig(files={"train": ["a"]}, language=name).language == "ko"


def test_other_languages() -> None:
    assert [language_code(name) for name in ("en-US", "eng", "fr", "zh-Hant", "jp", "no")] == [
        "en",
        "en",
        "fr",
        "zh",
        "ja",
        "no",
    ]
    assert all(language_code(code) == code for code in NAMES.values())


@pytest.mark.parametrize(
    ("name", "near"), [("koraen", "did you mean 'korean'?"), ("xx", ""), ("", ""), ("k", ""), ("ko en", "")]
)
def test_what_is_no_language(name: str, near: str) -> None:
    with pytest.raises(ValueError, match="is no language; expected a code such as ko or en") as caught:
        language_code(name)
    assert near in str(caught.value)


def test_a_row_names_its_own(tmp_path: Path) -> None:
    rows = read(tmp_path, [{"text": "가", "language": "korean"}, {"text": "a", "language": "en-GB"}, {"text": "b"}])
    assert [row.language for row in rows] == ["ko", "en", "en"]
    with pytest.raises(InputError, match=r"a\.jsonl:1: field 'language': 'kx' is no language"):
        read(tmp_path, [{"text": "가", "language": "kx"}])


def test_words_by_language(tmp_path: Path) -> None:
    labels: Any = SourceConfig(files={"train": ["a"]}, labels={"0": {"kor": "부정", "English": "bad"}}).labels
    assert labels == {"0": {"ko": "부정", "en": "bad"}}


def test_korean_text_that_names_no_language(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"a\.jsonl:2: the text is Korean, and no language is named; set `language: ko`"
    ):
        read(tmp_path, [{"text": "a"}, {"text": "오늘은 노을"}])
    assert [row.language for row in read(tmp_path, [{"text": "오늘은 노을"}], language="en")] == ["en"]
    assert len(read(tmp_path, [{"text": "He said '안녕' and left"}, {"text": "3.1 %"}])) == 2
