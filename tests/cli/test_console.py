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
