"""Answers in the forms in which they are published, and questions without one."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from multitask.config.data import DataConfig, SourceConfig
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row, read_rows
from multitask.errors import InputError
from multitask.evaluation.baselines import measure_with
from multitask.registry import load_tasks

QA = load_tasks()["qa"]
CONTEXT = "가람은 부산에서 태어났다."


def read(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[list[Row], Counts]:
    rows = [{"context": CONTEXT, "question": "어디?"} | row for row in rows]
    (folder / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    counts = Counts()
    source = SourceConfig(files={"train": ["a.jsonl"]}, language="ko", **settings)
    return list(read_rows(QA, source, "train", DataConfig(root=folder), counts)), counts


@pytest.mark.parametrize(
    "given",
    [
        {"answers": ["부산"]},
        {"answers": "부산"},
        {"answers": ["부산"], "answer_start": [4]},
        {"answers": ["부산"], "answer_start": 4},
        {"answers": ["부산"], "answer_start": ["4"]},
        {"answers": ["부산"], "answer_start": [4.0]},
        {"answers": {"text": ["부산"], "answer_start": [4]}},
        {"answers": {"text": "부산", "answer_start": 4}},
        {"answers": [{"text": "부산", "answer_start": 4}]},
        {"answers": [{"text": "부산"}]},
        {"answers": ["부산"], "answer_start": None},
    ],
)
def test_one_answer_in_every_published_form(tmp_path: Path, given: dict[str, Any]) -> None:
    [row], _ = read(tmp_path, [given])
    assert (row.fields["answer"], row.references, row.keep) == ("부산", ("부산",), (4, 6))


def test_a_place_of_zero_and_several_answers(tmp_path: Path) -> None:
    [row], _ = read(tmp_path, [{"answers": {"text": ["가람", "가람은"], "answer_start": [0, 0]}}])
    assert (row.references, row.keep) == (("가람", "가람은"), (0, 2))


@pytest.mark.parametrize("context", ["NFC", "NFD"])
@pytest.mark.parametrize("answer", ["NFC", "NFD"])
def test_an_answer_in_another_unicode_form(tmp_path: Path, context: Any, answer: Any) -> None:
    text = unicodedata.normalize(context, CONTEXT)
    start = len(unicodedata.normalize(context, "가람은 "))
    given = {"context": text, "answers": [unicodedata.normalize(answer, "부산")], "answer_start": [start]}
    [row], _ = read(tmp_path, [given])
    assert row.keep is not None
    assert unicodedata.normalize("NFC", text[slice(*row.keep)]) == "부산"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"answers": None}, "field 'answers' is None (NoneType), expected a list of texts"),
        ({"answers": 3}, "field 'answers' is 3 (int), expected a list of texts"),
        ({"answers": [""]}, "field 'answers' holds '' (str), expected a text that is not empty"),
        ({"answers": ["부산", 4]}, "field 'answers' holds 4 (int), expected a text"),
        ({"answers": [{"txt": "부산"}]}, "field 'answers' holds None (NoneType), expected a text"),
        (
            {"answers": ["부산"], "answer_start": [-1]},
            "field 'answer_start' holds -1 (int), expected a whole number from 0",
        ),
        ({"answers": ["부산"], "answer_start": ["x"]}, "field 'answer_start' holds 'x' (str), expected a whole number"),
        (
            {"answers": ["부산"], "answer_start": [4.5]},
            "field 'answer_start' holds 4.5 (float), expected a whole number",
        ),
        (
            {"answers": ["부산"], "answer_start": [True]},
            "field 'answer_start' holds True (bool), expected a whole number",
        ),
        (
            {"answers": ["부산"], "answer_start": [[4]]},
            "field 'answer_start' holds [4] (list), expected a whole number",
        ),
        (
            {"answers": ["부산"], "answer_start": [9]},
            "field 'answer_start' 9 points at '태어', expected the answer '부산'",
        ),
        ({"answers": ["부산"], "answer_start": [10**30]}, "points at '', expected the answer '부산'"),
        (
            {"answers": ["부산", "부"], "answer_start": [4]},
            "field 'answer_start' has 1 numbers, expected one for each of 2",
        ),
        ({"answers": ["부산"], "context": 7}, "field 'context' is 7, expected text, found int"),
        ({"answers": ["부산"], "context": None}, "field 'context' is null, expected text"),
    ],
)
def test_what_is_wrong_is_named_with_its_type(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, [given])
    assert message in str(caught.value)
    assert "a.jsonl:1: " in str(caught.value)


NO_ANSWER: list[dict[str, Any]] = [{"answers": []}, {"answers": {"text": [], "answer_start": []}}]


@pytest.mark.parametrize("given", [*NO_ANSWER, {"answers": ["부산"], "is_impossible": True}])
def test_a_question_without_an_answer(tmp_path: Path, given: dict[str, Any]) -> None:
    rows = [given, {"answers": ["부산"]}]
    with pytest.raises(InputError, match=r"a\.jsonl:1: the question has no answer.*`no_answer: skip`.*: WORD`"):
        read(tmp_path, rows)
    found, counts = read(tmp_path, rows, no_answer="skip")
    assert [row.fields["answer"] for row in found] == ["부산"]
    assert (counts.num_rows, counts.num_skipped) == (1, 1)
    found, counts = read(tmp_path, rows, no_answer="답 없음")
    assert [row.fields["answer"] for row in found] == ["답 없음", "부산"]
    assert [row.accepted for row in found] == [[""], ["부산"]]
    assert counts.num_skipped == 0


@pytest.mark.parametrize(
    ("prediction", "without", "with_answer"),
    [("답 없음", 1.0, 0.0), ("부산", 0.0, 1.0), ("답", 0.0, 0.0), ("", 0.0, 0.0), ("부산 답", 0.0, 0.8)],
)
def test_no_answer_scores_as_squad_2_does(tmp_path: Path, prediction: str, without: float, with_answer: float) -> None:
    """Right or wrong where there is no answer, whatever words are shared; elsewhere a predicted "none" is wrong."""
    found, _ = read(tmp_path, [NO_ANSWER[0], {"answers": ["부산"]}], no_answer="답 없음")
    measure = measure_with(["f1", "exact_match"], RunConfig(tasks=["qa"]))
    f1 = [measure(row, prediction, row.accepted)["f1"]["f1"] for row in found]
    assert f1 == pytest.approx([without, with_answer])
    exact = [measure(row, prediction, row.accepted)["exact_match"]["exact_match"] for row in found]
    assert exact == [without, float(with_answer == 1.0)]
