"""What the console says, and how often."""

import pytest

from multitask.cli.console import ProgressConsole


def test_a_long_encoding_is_spoken_of_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    console = ProgressConsole()
    for split in ("train", "validation"):
        for second in range(13):
            counts = {"num_characters": 1_000_000 * second, "num_tokens": 0, "elapsed_s": float(second)}
            console({"event": "encoding", "split": split, **counts})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "encoding the train text: 6,000,000 characters so far, 0:06"
    assert [line.split()[2] for line in said] == ["train"] * 2 + ["validation"] * 2


def test_a_short_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressConsole()({"event": "encoding", "split": "train", "num_characters": 10, "num_tokens": 5, "elapsed_s": 0.1})
    assert capsys.readouterr().out == ""


def test_an_unknown_event_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressConsole()({"event": "of another day"})
    assert capsys.readouterr().out == ""


def shots(num_unfinished: int, num_empty: int) -> dict[str, object]:
    spread = {"mean": 0.5, "sd": None, "low": 0.4, "high": 0.6}
    return spread | {
        "metric": "f1",
        "draws": [{"num_fitted": 1.0}],
        "num_unfinished": num_unfinished,
        "num_empty": num_empty,
    }


@pytest.mark.parametrize(("empty", "is_shown"), [(7, True), (0, False)])
def test_answers_without_an_end_or_a_text_are_shown(
    empty: int, is_shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    chosen = {"ko": {"template": "gpt3", "rule": "raw", "split": "validation"}, "en": {"template": "a", "split": None}}
    task = {"baselines": {}, "per_shot": {"0": shots(0, empty) | {"selection": chosen}}}
    ProgressConsole().shots({"tasks": {"qa": task}})
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "qa, 0-shot: ko template gpt3, rule raw" + "; 7 answers empty" * is_shown
    assert "unfinished" not in said
