"""What the console says, and how often."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from multitask.api import previews as preview
from multitask.cli.console import ProgressConsole
from multitask.cli.tables import make_table


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


def scored(value: float, low: float, high: float, baseline: float, metric: str = "rougeL") -> dict[str, object]:
    score = {"value": value, "low": low, "high": high}
    baselines = {"lead1": {metric: {"value": baseline, "low": baseline - 0.02, "high": baseline + 0.02}}}
    return {"num_examples": 2559, "metrics": {metric: score}, "baselines": baselines}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (scored(0.04, 0.03, 0.06, 0.46), "worse"),
        (scored(0.60, 0.55, 0.65, 0.46), "better"),
        (scored(0.48, 0.46, 0.50, 0.46), "no clear difference"),
        (scored(0.49, 0.465, 0.515, 0.46), "no clear difference"),  # above the baseline's value, not above its interval
        (scored(9.0, 8.9, 9.1, 12.0, "perplexity"), "better"),
        (scored(12.0, 11.9, 12.1, 9.0, "perplexity"), "worse"),
    ],
)
def test_a_score_beside_its_baseline(
    task: dict[str, object], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    ProgressConsole().table({"tasks": {"summ": task}})
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "summ" in line]
    assert line.rstrip(" │").endswith(said)
    assert "verdict" in shown


def tables(console: ProgressConsole) -> None:
    """Every table of the console, with long names and large numbers."""
    long = {"word_perplexity": scored(5.85e6, 4.94e5, 3.97e7, 1.16e6, "word_perplexity"), "nli": scored(0.4, 0, 1, 0.3)}
    console.table({"tasks": long})
    spread = shots(20, 7)
    task = {"baselines": {"random_span": {"f1": {"value": 0.131}}}, "per_shot": {"0": spread, "8": spread}}
    console.shots({"tasks": {"arithmetic": task}})
    arms = [{"arm": "single-arithmetic-lora-seed-8", "tokens": 1_638_400, "seconds": 9999.0}]
    console.arms(arms, is_estimate=True)
    console.arms([{"arm": "multitask-lora-seed-8", "kept": False, "elapsed_s": 9.0}], is_estimate=False)
    held_out = {
        "text": "a.txt", "num_characters": 9, "num_words": 9, "num_tokens": 9, "round_trip": {"chars_lost": {"가": 3}},
        "unknown_rate": 0.5, "tokens_per_character": 0.5, "tokens_per_word": 1.5, "bytes_per_token": 2.5,
    }  # fmt: skip
    curve = [{"vocab_size": 10_000, "characters_per_token": 1.5, "bytes_per_token": 2.5}]
    found = {"kind": "bpe", "vocab_size": 10_000, "num_special": 3, "size": 10_003, "time": {"all_s": 1.0},
             "longest_tokens": ["a"], "held_out": held_out, "curve": curve}  # fmt: skip
    console.vocabulary(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", ["80", "60", "140"])
def test_tables_fit_the_terminal_and_every_column_has_a_name(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    heads: list[list[str]] = []
    monkeypatch.setattr("multitask.cli.console.make_table", lambda console, *names: seen(heads, console, *names))
    tables(ProgressConsole())
    shown = capsys.readouterr().out
    assert len(heads) == 6
    assert all(head for names in heads for head in names)
    assert "…" not in shown
    assert max(map(len, (line for line in shown.splitlines() if line[:1] in " ┃│"))) <= int(columns)
    if columns != "60":  # narrower ones fold words
        words = set(shown.split())
        assert {word for names in heads for head in names for word in head.split()} <= words


def test_a_preview_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report = {"num_truncated": 12_345, "num_dropped": 1_234, "num_skipped": 1_234, "num_chars_lost": 12_345}
    rows = SimpleNamespace(report=report, lengths=np.array([3, 900, 1024]))
    found = SimpleNamespace(examples={"summ": LongRows(rows), "arithmetic": LongRows(rows)}, rates={})
    found.rates = dict.fromkeys(found.examples, 1.0)
    Console().print(preview._summary(found))  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    words = (
        "task rows sampling rate truncated dropped skipped chars lost mean max lengths arithmetic 20,000 12,345 1,234"
    )
    assert set(words.split()) <= set(shown.split())


class LongRows(SimpleNamespace):
    """Rows of a task: only what the table shows of them."""

    def __init__(self, rows: SimpleNamespace) -> None:
        super().__init__(**vars(rows))

    def __len__(self) -> int:
        return 20_000


def seen(heads: list[list[str]], console: Any, *names: str) -> Any:
    heads.append(list(names))
    return make_table(console, *names)


@pytest.mark.parametrize(("num_rows", "said"), [(1, "no clear difference"), (9, "no clear difference"), (10, "worse")])
def test_few_rows_give_no_verdict(
    num_rows: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resamples of one row are all alike: an interval of no width is no evidence."""
    monkeypatch.setenv("COLUMNS", "140")
    task = {**scored(0.057, 0.057, 0.057, 0.211), "num_examples": num_rows}
    ProgressConsole().table({"tasks": {"summ": task}})
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "lead1" in line]
    assert line.rstrip(" │").endswith(said)
    assert ("no verdict on fewer than 10 rows: summ" in shown) == (num_rows < 10)


def test_names_of_metrics_stay_whole_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables(ProgressConsole())
    own = "my_metrics.py:recall"
    task = scored(0.4, 0.3, 0.5, 0.3, own)
    ProgressConsole().table({"tasks": {"arithmetic": task, "summ": scored(0.4, 0.3, 0.5, 0.3)}})
    words = capsys.readouterr().out.split()
    assert "word_perplexity" in words
    assert own in words
