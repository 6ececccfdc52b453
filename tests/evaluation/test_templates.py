"""Prompt templates: the best on validation rows, those of the settings, and what is said of bad ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TASKS, WORDS, tokenizer_of
from helpers import files, settings
from transformers import GPT2LMHeadModel

from multitask.cli import main as cli_main
from multitask.config.loading import load
from multitask.config.run import RunConfig
from multitask.errors import InputError
from multitask.evaluation.fewshot import fewshot
from multitask.evaluation.prompting import choice_rules
from multitask.evaluation.prompting.choice_rules import RULES
from multitask.task import Prompt, Task

CLS = TASKS["cls"]
SUMS = Task(
    "sums",
    "{asked}<|is|>{sum}<|end|>",
    "sum",
    prompts={"en": (Prompt("Q: {asked}\nA:"), Prompt("{asked} =", name="equals"))},
    metrics=("f1",),
    max_new_tokens=4,
)


@pytest.fixture
def model(tiny_model: Any) -> GPT2LMHeadModel:
    tokenizer = tokenizer_of("byte-level")
    made: GPT2LMHeadModel = tiny_model(vocab_size=len(tokenizer), n_positions=512, eos_token_id=tokenizer.eos_token_id)
    return made


def run(model: Any, task: Task, folder: Path, events: list[Any] | None = None, **sections: Any) -> dict[str, Any]:
    """The task's part of the results."""
    config = load(RunConfig, settings(task.name, **sections))
    report = (lambda event: None) if events is None else events.append
    results = fewshot(
        model, tokenizer_of("byte-level"), "a model", {task.name: task}, config, folder / "r.json", report
    )
    found: dict[str, Any] = results.to_json()["tasks"][task.name]
    return found


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "r.json.predictions" / name).read_text("utf-8").splitlines()]


def rows(flip: bool = False, language: str = "en", count: int = 12) -> list[dict[str, str]]:
    names = ("y", "x") if flip else ("x", "y")
    texts = [" ".join(WORDS[n % len(WORDS) : n % len(WORDS) + 2 + n % 3]) for n in range(count)]
    return [{"text": f"{t} {n}", "label": names[n % 3 % 2], "language": language} for n, t in enumerate(texts)]


def source(folder: Path, flip: bool = False, **splits: Any) -> dict[str, Any]:
    given = {"train": rows(), "validation": rows(count=20)[8:], "test": rows(flip, count=32)[20:]} | splits
    given = {name: rows for name, rows in given.items() if rows is not None}
    return files(folder, **given) | {"labels": {"x": "warm", "y": "a mat"}}


def test_the_best_on_validation_is_used_on_test(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """Each template and rule has the score that it has when validation is scored with it alone; test has no say."""
    data = {"sources": {"cls": [source(tmp_path / "data")]}}
    few: dict[str, Any] = {"shots": [2], "draws": 2}
    shots = run(model, CLS, tmp_path / "best", fewshot=few, data=data)["per_shot"]["2"]
    chosen = shots["selection"]["en"]
    by_pair = {}
    for name in ("labelled", "question", "instruction"):
        only = few | {"draws": 1, "templates": name, "rule": "raw"}
        alone = run(model, CLS, tmp_path / name, fewshot=only, data=data, eval={"split": "validation"})
        by_pair |= {(name, rule): each["mean"] for rule, each in alone["per_shot"]["2"]["rules"].items()}
    best = max(by_pair.values())
    assert chosen["rules"] == {rule: by_pair[chosen["template"], rule] for rule in RULES}
    assert by_pair[chosen["template"], chosen["rule"]] == best
    assert chosen["templates"] == {
        name: max(v for (of, _), v in by_pair.items() if of == name) for name in chosen["templates"]
    }
    assert list(chosen["templates"]) == ["labelled", "question", "instruction"]
    assert (chosen["split"], chosen["num_rows"]) == ("validation", 12)
    assert len(set(by_pair.values())) > 2
    named = few | {"templates": chosen["template"], "rule": chosen["rule"]}
    same = run(model, CLS, tmp_path / "same", fewshot=named, data=data)["per_shot"]["2"]
    assert same["mean"] == shots["mean"]
    assert lines(tmp_path / "same", "cls.shots-2.draw-1.jsonl") == lines(tmp_path / "best", "cls.shots-2.draw-1.jsonl")
    other = {"sources": {"cls": [source(tmp_path / "flipped", flip=True)]}}
    again = run(model, CLS, tmp_path / "again", fewshot=few, data=other)["per_shot"]["2"]
    assert again["selection"] == shots["selection"]
    assert again["mean"] != shots["mean"]


def test_of_open_answers_the_best_too(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    asked = [{"asked": word, "sum": word} for word in WORDS[:8]]
    data = {"sources": {"sums": [files(tmp_path / "data", train=asked, validation=asked[:5], test=asked[3:])]}}
    shots = run(model, SUMS, tmp_path, fewshot={"shots": [0], "templates": "all"}, data=data)["per_shot"]["0"]
    chosen = shots["selection"]["en"]
    assert set(chosen["templates"]) == {"prompt-1", "equals"} == set(shots["by_template"])
    assert chosen["templates"][chosen["template"]] == max(chosen["templates"].values())
    assert "rules" not in chosen or chosen["rules"] == {}
    assert shots["by_template"][chosen["template"]]["mean"] == shots["mean"]
    assert {path.name for path in (tmp_path / "r.json.predictions").iterdir()} == {
        "sums.shots-0.draw-0.jsonl",
        "sums.template-prompt-1.shots-0.draw-0.jsonl",
        "sums.template-equals.shots-0.draw-0.jsonl",
    }


def test_languages_choose_apart_and_few_rows_are_looked_at(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    splits = {name: rows() + rows(language="ko") for name in ("train", "validation", "test")}
    data = {"sources": {"cls": [source(tmp_path / "data", **splits)]}}
    few = {"shots": [0], "max_validation_rows": 7}
    chosen = run(model, CLS, tmp_path, fewshot=few, data=data)["per_shot"]["0"]["selection"]
    assert {of: each["num_rows"] for of, each in chosen.items()} == {"en": 7, "ko": 7}


def test_rows_that_are_scored_are_not_chosen_on(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    data = {"sources": {"cls": [source(tmp_path / "data")]}}
    few = {"shots": [0]}
    scored = run(model, CLS, tmp_path, fewshot=few, data=data, eval={"split": "validation"})
    assert scored["per_shot"]["0"]["selection"]["en"]["split"] == "train"
    first = run(model, CLS, tmp_path, fewshot=few | {"templates": "first"}, data=data)["per_shot"]["0"]
    assert first["selection"]["en"] == {"template": "labelled", "rule": "raw", "split": None, "num_rows": 0,
                                        "templates": {}, "rules": {}}  # fmt: skip
    events: list[Any] = []
    data = {"sources": {"cls": [source(tmp_path / "test", train=None, validation=None)]}}
    none = run(model, CLS, tmp_path, events, fewshot=few, data=data)["per_shot"]["0"]["selection"]["en"]
    assert (none["template"], none["rule"], none["split"]) == ("labelled", "raw", None)
    assert [e["text"] for e in events if e["event"] == "warning"] == [
        "task 'cls' has no validation rows to choose a prompt template on: the first one is used"
    ]


# ---------------------------------------------------------------- templates of the settings


def test_templates_of_the_settings_stand_first(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    asked = [{"asked": word, "sum": word} for word in WORDS[:6]]
    data = {"sources": {"sums": [files(tmp_path / "data", train=asked, validation=asked, test=asked)]}}
    mine = {"sums": {"en": [{"template": "Say {asked}:", "stop": ["!"], "sentences": 1}]}}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(mine), "utf-8")
    for given in (mine, str(path)):
        few = {"shots": [0], "prompts": given, "templates": "first"}
        shots = run(model, SUMS, tmp_path, fewshot=few, data=data)["per_shot"]["0"]
        assert shots["selection"]["en"]["template"] == "settings-1"
        assert lines(tmp_path, "sums.shots-0.draw-0.jsonl")[0]["prompt"] == f"Say {WORDS[0]}:"
    shots = run(model, SUMS, tmp_path, fewshot=few | {"templates": "best"}, data=data)["per_shot"]["0"]
    assert list(shots["selection"]["en"]["templates"]) == ["settings-1", "prompt-1", "equals"]
    mine["sums"]["en"][0]["name"] = "equals"
    shots = run(model, SUMS, tmp_path, fewshot=few | {"templates": "best", "prompts": mine}, data=data)["per_shot"]["0"]
    assert list(shots["selection"]["en"]["templates"]) == ["equals", "prompt-1"]
    bare = replace(SUMS, prompts={})
    shots = run(model, bare, tmp_path, fewshot=few | {"prompts": mine}, data=data)["per_shot"]["0"]
    assert shots["selection"]["en"]["template"] == "equals"


def test_words_of_the_settings_bring_their_space(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    prompts = {
        "nli": {"ko": [{"template": "{premise} {hypothesis} {choices}\n답:", "words": ["예", "글쎄", " 아니요"]}]}
    }
    run(model, TASKS["nli"], tmp_path, fewshot={"shots": [1], "draws": 1, "templates": "first", "prompts": prompts})
    korean = [line for line in lines(tmp_path, "nli.shots-1.draw-0.jsonl") if line["language"] == "ko"]
    assert korean
    assert all(line["completion"] in (" 예", " 글쎄", " 아니요") for line in korean)
    assert all("예, 글쎄, 아니요\n답: " in line["prompt"] for line in korean)


@pytest.mark.parametrize(
    ("few", "message"),
    [
        ({"prompts": {"nli": {"en": [{"template": "{premis}"}]}}},
         r"fewshot.prompts.nli.en.0 \(settings-1\): names 'premis'; did you mean 'premise'"),
        ({"prompts": {"nli": {"en": [{"template": "no field"}]}}}, "names no field"),
        ({"prompts": {"nli": {"en": [{"template": "{premise}", "words": ["a", "b"]}]}}}, "has 2 words for 3 choices"),
        ({"prompts": {"nli": {"fr": [{"template": "{premise}"}]}}},
         "nli.fr: no prompt and no source of the task has this language; valid: en, ko"),
        ({"prompts": {"nli": {"en": [{"template": "{premise}", "name": "a"}] * 2}}}, "two templates have the same"),
        ({"prompts": {"nli": {"en": [{"tempate": "{premise}"}]}}}, "fewshot.prompts.nli.en.0.tempate: no such setting"),
        ({"prompts": "nowhere.yaml"}, "fewshot.prompts: nowhere.yaml: no such file"),
        ({"templates": "gpt4"}, "fewshot.templates: task 'nli' has no template 'gpt4'; did you mean 'gpt3'"),
    ],
)  # fmt: skip
def test_bad_templates_are_named(model: GPT2LMHeadModel, tmp_path: Path, few: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(model, TASKS["nli"], tmp_path, fewshot={"shots": [0]} | few)


def test_a_task_without_prompts_is_named(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="task 'nli' has no plain prompts"):
        run(model, replace(TASKS["nli"], prompts={}), tmp_path, fewshot={"shots": [0]})


def test_words_of_an_open_task_are_named(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    few = {"shots": [0], "prompts": {"qa": {"en": [{"template": "{context}", "words": ["a"]}]}}}
    with pytest.raises(InputError, match="has words, and the answers of task 'qa' are open"):
        run(model, TASKS["qa"], tmp_path, fewshot=few)


def test_the_command_names_unknown_tasks(tmp_path: Path) -> None:
    given = ["fewshot", "--tasks", "nli", "--set", "fewshot.prompts={nil: {en: []}}"]
    result = CliRunner().invoke(cli_main.main, given)
    assert result.exit_code == 2
    assert "fewshot.prompts: unknown task 'nil'; did you mean 'nli'?" in result.stderr


# ---------------------------------------------------------------- rules


def test_batch_calibration_by_hand() -> None:
    """Of both rows the first choice is likelier; less so than on average in the second one. Groups do not mix."""
    nats = [[0.1, 3.0], [0.1, 1.0], [5.0, 1.0], [5.0, 3.0]]
    assert choice_rules.batch_calibrated(nats, ["en", "en", "ko", "ko"]) == [0, 1, 1, 0]
    assert choice_rules.batch_calibrated(nats[:1], ["en"]) == [0], "alone nothing is left: the first"
