"""Generation with a run: plain text for tasks of one field, the data's columns, probabilities of answers, its tasks."""

import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TASKS
from helpers import FOLDER, SYNTHETIC, learned, settings, untrained, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from multitask import api, train
from multitask.cli import main as cli_main
from multitask.errors import InputError
from multitask.inference.prompt_input import PromptInput, flag_fields, plain_field, prompt_values, read_prompts, renamed
from multitask.inference.scoring import probabilities
from multitask.inference.trained_run import Choices, trained_run

REVIEWS = [
    {"review": f"{name} {text}", "score": label}
    for name in ("영화가", "배우가", "노래가", "음식이", "그림이")
    for text, label in (("정말 좋다", 1), ("너무 싫다", 0))
]
"""Rows of a user's own data: other column names, numbers as labels."""


def command(*arguments: object, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli_main.main, ["generate", *map(str, arguments)], input=given)


def error_of(*arguments: object, given: str | bytes | None = None) -> str:
    result = command(*arguments, given=given)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.split())


@cache
def reviews() -> Path:
    """A run that learned `REVIEWS`; its tokenizer has the markers of two more tasks."""
    folder = FOLDER / "reviews"
    base = untrained(folder / "base", "cls", "summ", "qa")
    rows = write_rows(folder / "rows.jsonl", REVIEWS)
    source = {
        "files": {"train": rows, "validation": rows, "test": rows},
        "columns": {"text": "review", "label": "score"},
        "labels": {0: "부정", 1: "긍정"},
        "language": "ko",
    }
    given = settings(
        "cls",
        data={"sources": {"cls": [source]}},
        model={"name": str(base)},
        train={"max_steps": 60, "learning_rate": 3e-3, "batch_tokens": 256, "eval_every_steps": 30},
    )
    train(given, out=folder / "run")
    return folder / "run"


# ---------------------------------------------------------------- plain text


def test_tasks_of_one_field_take_plain_text() -> None:
    fields = {name: plain_field(task) for name, task in TASKS.items()}
    assert fields == {"cls": "text", "gen": "label", "nli": None, "qa": None, "summ": "document"}


def test_plain_text_as_an_argument_a_file_and_standard_input(tmp_path: Path) -> None:
    texts = ["영화가 정말 좋다", "배우가 너무 싫다"]
    expected = api.generate(reviews(), [{"text": text} for text in texts], task="cls")
    assert [one["prediction"] for one in expected] == ["긍정", "부정"]
    assert api.generate(reviews(), texts, task="cls") == expected
    for text, one in zip(texts, expected, strict=True):
        assert command(reviews(), text, "--task", "cls").stdout.splitlines()[0] == one["prediction"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
    (tmp_path / "texts.cp949").write_text("\n\n".join(texts), "cp949")
    for source, more in (("texts.txt", ()), ("texts.cp949", ("--encoding", "cp949"))):
        out = tmp_path / "out.jsonl"
        result = command(reviews(), "--task", "cls", "--file", tmp_path / source, "--out", out, *more)
        assert result.exit_code == 0, result.output
        written = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        assert [{**one, "where": ""} for one in written] == [{**one, "where": ""} for one in expected]
    shown = command(reviews(), "-", "--task", "cls", given="\n".join(texts)).stdout
    assert shown.splitlines()[0] == "--- standard input:1"
    assert shown.splitlines()[1] == "긍정"


def test_rows_of_tables_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('review,score\n"영화가 정말 좋다",1\n', "utf-8")
    (tmp_path / "rows.tsv").write_text("review\tscore\n영화가 정말 좋다\t1\n", "utf-8")
    (tmp_path / "rows.jsonl").write_text(json.dumps(REVIEWS[0]) + "\n", "utf-8")
    for name in ("rows.csv", "rows.tsv", "rows.jsonl"):
        result = command(reviews(), "--task", "cls", "--file", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[0] == "긍정"


def test_a_first_line_that_begins_with_a_brace_is_json(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('\n{"text": "a"}\n{"text": "b"}\n')
    given = [PromptInput({"text": "a"}, f"{path}:2"), PromptInput({"text": "b"}, f"{path}:3")]
    assert read_prompts(path, TASKS["cls"]) == given
    path.write_text('plain\n{"text": "b"}\n')
    assert read_prompts(path, TASKS["cls"])[1] == PromptInput('{"text": "b"}', f"{path}:2")


def test_tasks_of_several_fields_name_them() -> None:
    said = error_of(learned(), "Ada has a cat.", "--task", "qa")
    assert "found text, expected the fields of task 'qa': context, question; give them as --field context=..." in said
    assert "standard input:1: not valid JSON" in error_of(learned(), "-", "--task", "qa", given="Ada\n")
    assert "field 'text' is empty" in error_of(reviews(), " ", "--task", "cls")


# ---------------------------------------------------------------- columns


def test_fields_by_the_columns_of_the_data() -> None:
    own = command(reviews(), "--task", "cls", "--field", "text=영화가 정말 좋다")
    theirs = command(reviews(), "--task", "cls", "--field", "review=영화가 정말 좋다")
    assert own.exit_code == theirs.exit_code == 0
    assert own.stdout == theirs.stdout
    (row,) = api.generate(reviews(), REVIEWS[1], task="cls")
    assert (row["prediction"], row["fields"]) == ("부정", {"text": "영화가 너무 싫다"})
    task = ("--task", "cls", "--field")
    assert "has no such field; did you mean 'review'?" in error_of(reviews(), *task, "reveiw=a")
    assert "--field score: this is the target of task 'cls'" in error_of(reviews(), *task, "score=1")
    assert "--field review: found twice" in error_of(reviews(), *task, "text=a", "--field", "review=a")
    with pytest.raises(InputError, match=r"'text' is missing, found body; .* needs text \(or its column review\)"):
        api.generate(reviews(), {"body": "a"}, task="cls")


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        ({"premise": "s1", "hypothesis": "s2"}, {"s1": "a", "s2": "b"}, ("a", "b")),
        ({"premise": "s1", "hypothesis": "s2"}, {"premise": "a", "hypothesis": "b"}, ("a", "b")),
        ({"premise": "s1", "hypothesis": "s2"}, {"premise": "a", "s2": "b"}, ("a", "b")),
        ({"premise": "hypothesis", "hypothesis": "premise"}, {"premise": "a", "hypothesis": "b"}, ("b", "a")),
        ({"premise": "pair.first", "hypothesis": "pair.second"}, {"pair": {"first": "a", "second": "b"}}, ("a", "b")),
        ({"premise": "pair.first", "hypothesis": "x"}, {"pair.first": "a", "x": "b"}, ("a", "b")),
        ({"premise": "s1"}, {"s1": "a", "premise": "other", "hypothesis": "b"}, ("a", "b")),
        ({"label": "gold"}, {"premise": "a", "hypothesis": "b"}, ("a", "b")),
    ],
)
def test_columns_are_renamed_as_in_training(
    columns: dict[str, str], given: dict[str, Any], expected: tuple[str, str]
) -> None:
    found = renamed(TASKS["nli"], given, [columns])
    assert (found["premise"], found["hypothesis"]) == expected
    if not any(isinstance(value, dict) for value in given.values()):
        flags = [f"{name}={text}" for name, text in given.items() if text != "other"]
        assert flag_fields(TASKS["nli"], flags, [columns]) == {k: v for k, v in given.items() if v != "other"}


def test_names_of_columns_are_compared_in_nfc() -> None:
    columns = [{"text": "리뷰"}]
    theirs = unicodedata.normalize("NFD", "리뷰")
    assert theirs != "리뷰"
    assert prompt_values(TASKS["cls"], PromptInput({theirs: "좋다"}, "here"), columns)[0] == {"text": "좋다"}
    assert flag_fields(TASKS["cls"], [f"{theirs}=좋다"], columns) == {"리뷰": "좋다"}


def test_a_field_that_training_left_out_is_no_column(tmp_path: Path) -> None:
    source = {"files": {"train": "a.jsonl"}, "columns": {"text": "body", "label": "none"}}
    (tmp_path / "config.yaml").write_text(json.dumps({"tasks": ["gen"], "data": {"sources": {"gen": [source]}}}))
    run = trained_run(tmp_path)
    assert run is not None
    assert run.columns(TASKS["gen"]) == ({"text": "body"},)


def test_each_source_has_its_own_columns() -> None:
    columns = [{"premise": "s1", "hypothesis": "s2"}, {"premise": "문장1", "hypothesis": "문장2"}]
    found = renamed(TASKS["nli"], {"문장1": "가", "문장2": "나"}, columns)
    assert (found["premise"], found["hypothesis"]) == ("가", "나")


# ---------------------------------------------------------------- probabilities


def test_probabilities_of_choices() -> None:
    among, total = probabilities([-torch.tensor(p).log().item() for p in (0.5, 0.25, 0.05)])
    assert among == pytest.approx([0.625, 0.3125, 0.0625])
    assert total == pytest.approx(0.8)
    among, total = probabilities([1000.0, 1001.0])  # far below the smallest float
    assert among == pytest.approx([0.731059, 0.268941], abs=1e-6)
    assert total == 0


def test_a_closed_task_prints_the_probabilities_of_its_answers() -> None:
    """As plain transformers computes them: the product over an answer's tokens and `<|end|>`."""
    tokenizer = AutoTokenizer.from_pretrained(reviews() / "model")
    model = AutoModelForCausalLM.from_pretrained(reviews() / "model")
    prompt = "영화가 정말 싫다<|classify|>"
    nats = []
    for word in ("부정", "긍정"):
        before = tokenizer(prompt)["input_ids"]
        answer = [*tokenizer(word, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            scores = model(torch.tensor([[*before, *answer]])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        nats.append(-float(scores[range(len(answer)), answer].sum()))
    likelihoods = torch.tensor(nats).neg().exp()
    (found,) = api.generate(reviews(), "영화가 정말 싫다", task="cls")
    assert found["probabilities"] == pytest.approx(
        dict(zip(("부정", "긍정"), (likelihoods / likelihoods.sum()).tolist(), strict=True)), abs=1e-4
    )
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found["total_probability"] == pytest.approx(float(likelihoods.sum()), abs=1e-4)
    assert list(found["probabilities"]) == sorted(found["probabilities"], key=lambda w: -found["probabilities"][w])
    assert found["prediction"] == next(iter(found["probabilities"]))
    result = command(reviews(), "영화가 정말 싫다", "--task", "cls")
    lines = [f"  {value:.3f}  {word}" for word, value in found["probabilities"].items()]
    assert result.stdout.splitlines() == [found["prediction"], *lines]
    assert "note: probabilities among the answers of this task, which add up to 1" in result.stderr


def test_a_sampled_answer_is_the_sampled_text() -> None:
    texts = api.generate(reviews(), "영화가", task="cls", temperature=50.0, num_samples=4)
    assert all(one["prediction"] == one["completion"].strip() for one in texts)
    assert len({json.dumps(one["probabilities"]) for one in texts}) == 1


def test_an_open_task_and_a_model_of_no_run_have_none(tmp_path: Path) -> None:
    (found,) = api.generate(learned(), {"context": "Ada has a cat.", "question": "What has Ada?"}, task="qa")
    assert "probabilities" not in found
    (found,) = api.generate(untrained(tmp_path / "alone", "cls"), "a", task="cls")
    assert "probabilities" not in found


def test_many_answers_are_shortened_on_the_console() -> None:
    from multitask.cli.generation import GenerationConsole

    found = {f"class {n}": p for n, p in enumerate([0.5, *[0.04] * 12, 0.02])}
    record = {
        "sample": 0,
        "prompt": "",
        "completion": "",
        "prediction": "class 0",
        "probabilities": found,
        "total_probability": 0.9,
    }
    with CliRunner().isolation() as (out, *_):
        GenerationConsole(TASKS["cls"], 0, None).show([record])
        lines = out.getvalue().decode().splitlines()
    assert len(lines) == 1 + 10 + 1
    assert lines[-1] == "  0.140  4 others"


def test_answers_are_those_of_the_language_in_which_they_are_most_likely(tmp_path: Path) -> None:
    """Labels with words in two languages: classes of one language are never compared with those of the other."""
    folder = untrained(tmp_path / "run" / "model", "cls")
    (tmp_path / "run" / "config.yaml").write_text(
        json.dumps({"tasks": ["cls"], "data": {"sources": {"cls": [SYNTHETIC]}}})
    )
    run = trained_run(folder)
    assert run is not None
    choices = run.choices(TASKS["cls"])
    assert {one.language for one in choices} == {"en", "ko"}
    for language, words in choices:
        (found,) = api.generate(folder, {"text": "Ada", "language": language}, task="cls")
        assert set(found["probabilities"]) == set(words)
    by_language = {
        language: api.generate(folder, {"text": "Ada", "language": language}, task="cls")[0] for language, _ in choices
    }
    (free,) = api.generate(folder, "Ada", task="cls")
    assert free["total_probability"] == max(one["total_probability"] for one in by_language.values())


# ---------------------------------------------------------------- tasks of a run


def test_a_task_that_the_model_was_not_trained_on_is_an_error() -> None:
    said = error_of(reviews(), "Ada has a cat.", "--task", "summ")
    assert "trained on cls, not on 'summ'; choose a task that it was trained on, or give --force" in said
    assert "trained on cls" in error_of(reviews() / "model", "Ada has a cat.", "--task", "summ")
    assert command(reviews(), "Ada has a cat.", "--task", "summ", "--force").exit_code == 0
    with pytest.raises(InputError, match="trained on cls, not on 'summ'"):
        api.generate(reviews(), "a", task="summ")
    assert api.generate(reviews(), "a", task="summ", force=True, max_new_tokens=2)
    said = error_of(reviews(), "Ada", "--task", "gen", "--force")
    assert "no <|start|>, a marker of task 'gen'" in said


def test_free_text_for_a_run_of_tasks_says_how_to_name_one() -> None:
    said = "note: the prompt is continued as free text; for the prompt of a task give --task cls\n"
    assert said in command(reviews(), "영화가", "--max-new-tokens", 2).stderr
    assert said not in command(reviews(), "영화가<|classify|>", "--max-new-tokens", 2).stderr
    assert said not in command(reviews(), "영화가", "--task", "cls").stderr
    assert said not in command(reviews().parent / "base", "영화가", "--max-new-tokens", 2).stderr


def test_tasks_of_the_run_before_count(tmp_path: Path) -> None:
    later = tmp_path / "later"
    later.mkdir()
    (later / "config.yaml").write_text(json.dumps({"tasks": ["summ"], "model": {"name": str(reviews())}}))
    run = trained_run(later)
    assert run is not None
    assert run.tasks == ("cls", "summ")
    run.check_trained("later", "cls")
    (later / "config.yaml").write_text(json.dumps({"text": {}, "model": {}}))
    plain = trained_run(later)
    assert plain is not None
    with pytest.raises(InputError, match="a model of plain text, trained on no task, not on 'cls'"):
        plain.check_trained("later", "cls")
    (later / "config.yaml").write_text(json.dumps({"tasks": ["summ"], "model": {"name": str(later)}}))
    circle = trained_run(later)
    assert circle is not None
    assert circle.tasks == ("summ",)


def test_a_settings_file_that_is_gone_costs_the_columns_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"tasks": ["cls"], "data": {"sources": {"cls": ["gone.yaml"]}}}))
    run = trained_run(tmp_path)
    assert run is not None
    assert (run.columns(TASKS["cls"]), run.choices(TASKS["cls"])) == ((), ())
    assert run.tasks == ("cls",)


def test_choices_of_a_task_and_of_labels() -> None:
    run = trained_run(reviews())
    assert run is not None
    assert run.choices(TASKS["cls"]) == (Choices("ko", ("부정", "긍정")),)
    assert run.choices(TASKS["qa"]) == ()
    assert run.choices(TASKS["nli"])[0].words == ("entailment", "neutral", "contradiction")
