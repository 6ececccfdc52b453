"""Trivial baselines: fitted on all rows up to a number, beyond it on an evenly spaced sample whose size is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import byte_level, tokenizer_of

from multitask.config.run import RunConfig
from multitask.data import contamination
from multitask.evaluation import baselines
from multitask.evaluation.baselines import Fitted, count_target_bigrams, fit, trivial
from multitask.evaluation.tuned import fitted_baselines
from multitask.models.bigram import BigramCounts
from multitask.pattern import markers
from multitask.registry import load_tasks
from multitask.task import Task
from multitask.tokenization.encoded_rows import prepare
from multitask.tokenization.row_encoder import target_spans

TASKS = load_tasks([Path(__file__).parents[2] / "examples" / "tasks"])
CHAT = [
    {"user": ["a"] * (n % 4 + 1), "reply": ["the cat sat " * (m + n % 3 + 1) for m in range(n % 4 + 1)]}
    for n in range(50)
]
CLS = [{"text": f"the cat {n}", "label": n // 7 % 2} for n in range(50)]


def config_of(folder: Path, task: str, rows: list[dict[str, Any]]) -> RunConfig:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source: dict[str, Any] = {"files": {split: ["rows.jsonl"] for split in ("train", "test")}}
    if task == "cls":
        source["labels"] = {"0": "negative", "1": "positive"}
    return RunConfig.model_validate({"data": {"root": folder, "cache": folder / "cache", "sources": {task: [source]}}})


@pytest.mark.parametrize(("name", "rows"), [("chat", CHAT), ("cls", CLS)])
@pytest.mark.parametrize("step", [1, 4])
def test_bigrams_of_targets_in_chunks(
    name: str, rows: list[dict[str, Any]], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, tokenizer, config = TASKS[name], byte_level([], markers(TASKS)), config_of(tmp_path, name, rows)
    train = prepare(task, "train", tokenizer, 200, config.data)
    pairs = [
        (int(train.ids(n)[at - 1]), int(train.ids(n)[at]))
        for n in range(0, len(train), step)
        for start, stop in target_spans(train.borders(n), train.lengths[n])
        for at in range(start, stop)
    ]
    expected = BigramCounts(*np.array(pairs).T, len(tokenizer))
    monkeypatch.setattr(baselines, "_CHUNK", 7)
    found = count_target_bigrams(train, len(tokenizer), step)
    assert found.weight == expected.weight
    for key, array in expected.arrays().items():
        assert np.array_equal(found.arrays()[key], array)


def fitted_on(numbers: range, task: Task, config: RunConfig) -> Fitted:
    rows = list(prepare(task, "train", tokenizer_of("byte-level"), 200, config.data).rows())
    return Fitted(task, [rows[n] for n in numbers])


@pytest.mark.parametrize(("most", "step"), [(50, 1), (49, 2), (25, 2), (24, 4), (13, 4), (12, 8)])
def test_a_sample_is_every_so_many_rows(most: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tokenizer = config_of(tmp_path, "cls", CLS), tokenizer_of("byte-level")
    expected = fitted_on(range(0, 50, step), TASKS["cls"], config)
    monkeypatch.setattr(baselines, "MAX_ROWS", most)
    by_tokens = fitted_baselines(TASKS["cls"], tokenizer, 200, config, tmp_path / "kept", keeps=True)
    kept = fitted_baselines(TASKS["cls"], tokenizer, 200, config, tmp_path / "kept")
    for found in (by_tokens, kept, fit(TASKS["cls"], config)):
        assert found is not None
        assert (found.step, found.answer_words, found.classes) == (step, expected.answer_words, expected.classes)
        assert len(found.answer_words) <= most
        assert found.sample == ({} if step == 1 else {"num_baseline_rows": len(range(0, 50, step))})
        if found.bigram_counts is not None:
            train = prepare(TASKS["cls"], "train", tokenizer, 200, config.data)
            num_targets = train.num_targets[::step].sum()
            assert found.bigram_counts.arrays()["num_pairs"].sum() == num_targets


def test_results_tell_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, "cls", CLS)
    _, whole = trivial({"cls": TASKS["cls"]}, config)
    assert "num_baseline_rows" not in whole["cls"].to_json()
    monkeypatch.setattr(baselines, "MAX_ROWS", 20)
    _, sampled = trivial({"cls": TASKS["cls"]}, config)
    assert sampled["cls"].to_json()["num_baseline_rows"] == 13


def test_the_overlap_is_of_a_stated_number_of_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "MAX_TRAIN", 3)
    found = contamination.measure_contamination(
        (f"the cat sat {n}" for n in range(9)), ["the cat sat 2", "the cat sat 3"]
    )
    assert (found["num_train"], found["num_duplicates"]) == (3, 1)
