import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import report_files

from multitask.errors import InputError
from multitask.evaluation import results_file
from multitask.reports import results
from multitask.reports.arms import Arm, arms
from multitask.reports.results import read, row_sets

GOLD = "aabbaabb"


def one(path: Path, arm: str = "tuned", said: str = GOLD, **changes: Any) -> Path:
    return report_files.write(path, arm, {"nli": report_files.answers(said, GOLD)}, **changes)


def edited(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def by_name(paths: list[Path]) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms(read(paths))}


def test_the_schema_is_the_one_that_is_written() -> None:
    assert results_file.SCHEMA in results.READABLE


def test_folders_are_searched_and_what_is_no_result_is_passed_over(tmp_path: Path) -> None:
    first, second = one(tmp_path / "a.json"), tmp_path / "deep" / "run" / "results.json"
    second.parent.mkdir(parents=True)
    one(second, arm="other")
    for other in ("arm.json", "deep/run/model/config.json", "deep/list.json", "report.json"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("[1]" if "list" in other else '{"schema": 1, "kind": "report"}')
    (tmp_path / "deep" / "run" / "model" / "broken.json").write_text("{")
    assert [run.path for run in read([tmp_path, first, second])] == [first, second], "each once"


def test_seeds_of_one_arm_are_one_arm(tmp_path: Path) -> None:
    paths = [one(tmp_path / f"{seed}.json", seed=seed, said=said) for seed, said in ((7, "aabbaabb"), (8, "aaaaaaaa"))]
    found = by_name(paths)
    assert list(found) == ["majority", "tuned"]
    score = found["tuned"].scores["nli"]["accuracy"]
    assert (score.value, score.num, score.over) == (0.75, 2, "seeds")
    assert score.sd == pytest.approx(statistics.stdev([1.0, 0.5]))
    assert (score.low, score.high) == (0, 1), "two seeds that differ by 0.5 say nothing more"
    assert len(found["tuned"].predictions("nli")) == 2
    assert found["majority"].scores["nli"]["accuracy"].num == 1, "the same baseline of two files is one"
    assert found["majority"].predictions("nli") == []


def test_arms_of_one_name_that_are_not_one_are_told_apart(tmp_path: Path) -> None:
    """Two evaluations with one seed are two models; other settings make another arm."""
    one(tmp_path / "a.json")
    one(tmp_path / "b.json")
    one(tmp_path / "c.json", seed=8, config={"train": {"learning_rate": 9}})
    assert list(by_name([tmp_path])) == ["majority", "some (a)", "some (b)", "some (c)"], "of the model `some`"


def test_half_of_an_arms_predictions_are_none(tmp_path: Path) -> None:
    paths = [one(tmp_path / f"{seed}.json", seed=seed) for seed in (7, 8)]
    (tmp_path / "8.json.predictions" / "nli.jsonl").unlink()
    assert by_name(paths)["tuned"].predictions("nli") == []


def test_numbers_of_demonstrations_are_arms(tmp_path: Path) -> None:
    said = {0: [GOLD], 4: ["aaaaaaaa", GOLD], 10: ["bbbbbbbb"] * 12}
    draws = {shots: [report_files.answers(s, GOLD) for s in sets] for shots, sets in said.items()}
    path = report_files.write_shots(tmp_path / "shots.json", draws)
    found = by_name([path])
    assert list(found) == ["0-shot", "4-shot", "10-shot"]
    four = found["4-shot"].scores["nli"]["accuracy"]
    assert (four.value, four.num, four.over) == (0.75, 2, "draws")
    assert four.sd == pytest.approx(statistics.stdev([1.0, 0.5]))
    assert found["0-shot"].scores["nli"]["accuracy"].sd is None
    names = [file.name for file in found["10-shot"].predictions("nli")]
    assert names == [f"nli.shots-10.draw-{n}.jsonl" for n in range(12)]
    report_files.write_shots(tmp_path / "more.json", {4: draws[4]}, arm="larger")
    assert list(by_name([tmp_path])) == ["larger 4-shot", "prompted 0-shot", "prompted 4-shot", "prompted 10-shot"]


def test_unigram_scores_of_other_tokens(tmp_path: Path) -> None:
    """The best baseline is kept in bits per byte; perplexities of different tokens have no mean."""
    for number, bits in enumerate((1.9, 1.7)):
        path = one(tmp_path / f"{number}.json", seed=number)
        tasks = json.loads(path.read_text())["tasks"]
        unigram = {"bits_per_byte": report_files.score(bits), "perplexity": report_files.score(90 + bits)}
        tasks["nli"]["baselines"] = {"unigram": unigram}
        edited(path, tasks=tasks)
    found = by_name([tmp_path])["unigram"].scores["nli"]
    assert {name: score.value for name, score in found.items()} == {"bits_per_byte": 1.7}


@pytest.mark.parametrize(
    ("arm", "kind", "tasks", "num"),
    [
        ("single-nli", "train", ["nli"], 1),
        ("single nli lora", "evaluate", ["nli", "qa"], 1),
        ("multitask full", "evaluate", ["nli"], 2),
        ("mine", "train", ["nli", "qa"], 2),
        ("some", "evaluate", ["nli"], None),
    ],
)
def test_how_many_tasks_an_arm_was_trained_on(tmp_path: Path, arm: str, kind: str, tasks: list[str], num: Any) -> None:
    path = one(tmp_path / "a.json", arm="tuned" if arm == "some" else arm, kind=kind, config={"tasks": tasks})
    assert by_name([path])[arm].num_tasks_trained == num


# ---------------------------------------------------------------- bad input


def rejected(*paths: Path) -> str:
    with pytest.raises(InputError) as raised:
        read(list(paths))
    return str(raised.value)


def test_another_schema(tmp_path: Path) -> None:
    path = edited(one(tmp_path / "a.json"), schema=3)
    assert f"{path}: results of schema 3, this version reads 1 and 2; score the model again" in rejected(path)
    assert "results of schema 3" in rejected(tmp_path), "also inside a folder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"schema": 1, "kind": "report"}',
            "not a results file: kind is 'report', expected one of train, pretrain, evaluate",
        ),
        ('{"vocab": {}}', "not a results file: kind is None"),
        ("[1]", "a JSON object was expected, found list"),
        ('{"schema": 1,', "not valid JSON"),
    ],
)
def test_a_file_that_holds_no_results(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert f"{path}: {message}" in rejected(path)


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "no such file or folder" in rejected(tmp_path / "a.json")
    assert f"{tmp_path}: no results in this folder; expected a run that train finished" in rejected(tmp_path)
    assert "no results were named" in rejected()
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{")
    assert "cannot be read as text" in rejected(tmp_path / "a.json")


@pytest.mark.parametrize(("number", "shown"), [("NaN", "nan"), ("Infinity", "inf"), ("-1e999", "-inf")])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, number: str, shown: str) -> None:
    path = one(tmp_path / "a.json")
    path.write_text(path.read_text().replace('{"value": 1.0', f'{{"value": {number}', 1))
    key = "tasks.nli.metrics.accuracy.value"
    assert f"{path}: {key} is {shown}, a finite number was expected" in rejected(path)


def test_a_file_without_its_parts_says_all_that_is_missing(tmp_path: Path) -> None:
    path = one(tmp_path / "a.json")
    content = json.loads(path.read_text())
    del content["seed"]
    content["tasks"]["nli"]["metrics"]["accuracy"] = {"low": 0}
    path.write_text(json.dumps(content))
    message = rejected(path)
    assert f"{path}: seed: Field required" in message
    assert f"{path}: tasks.nli.metrics.accuracy.value: Field required" in message
    assert "data.nli is missing" in rejected(edited(one(tmp_path / "b.json"), data={}))


@pytest.mark.parametrize("change", [{"sha256": ["cd"]}, {"split": "validation"}, {"num_rows": 7}])
def test_files_with_different_rows(tmp_path: Path, change: dict[str, Any]) -> None:
    first, second = one(tmp_path / "a.json"), one(tmp_path / "b.json")
    data = json.loads(second.read_text())["data"]
    edited(second, data={"nli": data["nli"] | change})
    found = row_sets(read([first, second]), "nli")
    assert list(found.values()) == [[str(first)], [str(second)]]
    assert str(next(iter(found))) == "8 rows of test (abababab)"


def test_rows_that_a_window_dropped_are_of_the_same_set(tmp_path: Path) -> None:
    first, second = one(tmp_path / "a.json"), one(tmp_path / "b.json", said=GOLD)
    data = json.loads(second.read_text())["data"]
    edited(second, data={"nli": data["nli"] | {"num_rows": 7, "num_dropped": 1}})
    assert list(row_sets(read([first, second]), "nli").values()) == [[str(first), str(second)]]


def test_rouge_counted_in_other_words(tmp_path: Path) -> None:
    for name, words in (("a", "words"), ("b", "chars")):
        path = one(tmp_path / f"{name}.json", config={"eval": {"rouge_tokenizer": {"en": words}}})
        tasks = json.loads(path.read_text())["tasks"]
        tasks["nli"]["metrics"]["rougeL"] = report_files.score(0.5)
        edited(path, tasks=tasks)
    assert "eval.rouge_tokenizer: {'en': 'words'} there, {'en': 'chars'} here" in rejected(tmp_path)
