"""The most similar training rows as demonstrations."""

import builtins
from pathlib import Path
from typing import Any

import pytest
from conftest import TASKS, tokenizer_of
from helpers import files, settings
from test_prompts import OPEN, row
from test_templates import lines, rows, source

from multitask.config.evaluation import FewshotConfig
from multitask.config.loading import load
from multitask.config.run import RunConfig
from multitask.errors import InputError
from multitask.evaluation.fewshot import fewshot
from multitask.evaluation.prompting.demonstrations import Nearest
from multitask.evaluation.prompts import PlainFormat

pytest.importorskip("sklearn")
TEXTS = ["the red cat sat", "a red cat", "blue boats sail", "boats on a blue sea", "ships"]


def test_similar_rows_rank_first() -> None:
    train = [row(OPEN, n, asked=text) for n, text in enumerate(TEXTS)]
    korean = [row(OPEN, 10 + n, "ko", asked=text) for n, text in enumerate(["고양이가 잔다", "배를 탔다", "배가 간다"])]
    nearest = Nearest([*train, *korean], OPEN, 2)
    assert [r.id for r in nearest.ranking(row(OPEN, 90, asked="red cats"))][:2] == ["r1", "r0"]
    assert {r.id for r in nearest.ranking(row(OPEN, 91, asked="blue boat"))[:2]} == {"r2", "r3"}
    assert nearest.ranking(row(OPEN, 92, "ko", asked="고양이는 잔다"))[0].id == "r10", "other endings"
    assert {r.language for r in nearest.ranking(row(OPEN, 93, "ko", asked="red cat"))} == {"ko"}
    assert nearest.ranking(row(OPEN, 94, "fr", asked="red cat")) == []


def test_the_answer_is_not_looked_at() -> None:
    train = [row(OPEN, n, asked=text, sum=str(n)) for n, text in enumerate(TEXTS)]
    nearest = Nearest(train, OPEN, 2)
    ids = [[r.id for r in nearest.ranking(row(OPEN, 90, asked="ships sail", sum=s))] for s in ("the red cat sat", "4")]
    assert ids[0] == ids[1]


def test_the_most_similar_stands_next_to_the_question_and_drops_out_last() -> None:
    tokenizer = tokenizer_of("byte-level")
    train = [row(OPEN, n, asked=text) for n, text in enumerate(TEXTS)]
    asked = row(OPEN, 0, asked="The red cat  sat")
    ranking = Nearest(train, OPEN, 3).ranking(asked)
    assert ranking[0].id == "r0", "itself"
    for window, expected in ((400, 3), (70, 1)):
        made = PlainFormat(OPEN, tokenizer, window, set(), FewshotConfig(demonstrations="nearest"))
        (prompt,) = made.encode([asked], [ranking], 3)
        assert prompt is not None
        shown = [r.id for r in prompt.demonstrations]
        assert shown[-1] == "r1", "never the row itself or its question"
        assert len(shown) >= 1
        assert (len(shown) == 3) == (expected == 3)
        assert prompt.text.split("\n\n")[-2].startswith("Q: a red cat")


def test_each_row_has_its_own(tiny_model: Any, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    model = tiny_model(vocab_size=len(tokenizer), n_positions=512)
    few = {"shots": [0, 2], "demonstrations": "nearest", "draws": 3}
    config = load(RunConfig, settings("cls", fewshot=few, data={"sources": {"cls": [source(tmp_path / "data")]}}))
    results = fewshot(model, tokenizer, "m", {"cls": TASKS["cls"]}, config, tmp_path / "r.json").to_json()
    shots = results["tasks"]["cls"]["per_shot"]
    assert [len(each["draws"]) for each in shots.values()] == [1, 1], "nothing is drawn"
    assert shots["2"]["selection"]["en"]["split"] == "validation"
    prompts = [line["prompt"] for line in lines(tmp_path, "cls.shots-2.draw-0.jsonl")]
    assert {line["num_fitted"] for line in lines(tmp_path, "cls.shots-2.draw-0.jsonl")} == {2}
    assert len({prompt.split("\n\n")[0] for prompt in prompts}) > 1
    assert len(rows()) > 2


def test_without_scikit_learn_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"nearest needs scikit-learn: pip install 'multitask\[nearest\]'"):
        Nearest([], OPEN, 2)
    assert files(tmp_path, test=[])
