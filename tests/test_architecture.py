"""docs/architecture.md: the calls that it names are those that a training and a scoring make, in that order."""

import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import FACTS, ROOT, files, learned, settings

from multitask import evaluate, train
from multitask.training import finetune

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CALL = re.compile(r"^\| \d+ \| `([\w/]+\.py)` `([\w.]+)` \|", re.MULTILINE)


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def calls(title: str) -> list[tuple[str, str]]:
    """(file, qualified name) of the rows of a section's table."""
    return CALL.findall(section(title))


class Trace:
    """First calls of functions of the package, in order: `with Trace() as trace: ...`, then `trace.first`."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, str], int] = {}

    def __enter__(self) -> "Trace":
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT / "multitask")):
            path = str(Path(code.co_filename).relative_to(ROOT / "multitask"))
            self.first.setdefault((path, code.co_qualname), len(self.first))


def check(trace: Trace, named: list[tuple[str, str]]) -> None:
    assert named, "the page names no calls"
    assert len(named) <= 8
    missing = [call for call in named if call not in trace.first]
    assert not missing, f"named in docs/architecture.md and not called: {missing}"
    places = [trace.first[call] for call in named]
    assert places == sorted(places), f"called in another order: {sorted(named, key=lambda call: trace.first[call])}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return files(tmp_path_factory.mktemp("rows"), train=FACTS, validation=FACTS, test=FACTS)


def test_a_row_reaches_a_loss_by_the_calls_named(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "check_before_encoding", lambda *_: None)  # reads first rows by the same calls
    given = settings(
        "qa",
        model={"name": str(learned()), "vocab_size": 2000},
        data={"sources": {"qa": [source]}, "cache": str(tmp_path / "cache")},
        train={"max_steps": 1},
    )
    with Trace() as trace:
        train(given, out=tmp_path / "run")
    check(trace, calls("From a row to a loss"))


def test_a_row_reaches_a_score_by_the_calls_named(source: dict[str, Any]) -> None:
    run = learned()
    with Trace() as trace:
        evaluate(run)
    check(trace, calls("From a row to a score"))


def test_every_file_and_name_on_the_page_exists() -> None:
    for path in re.findall(r"`((?:multitask|tasks|docs)/[\w/.]*)`", PAGE):
        assert (ROOT / path).exists(), path
    for title in ("From a row to a loss", "From a row to a score"):
        for path, name in calls(title):
            text = (ROOT / "multitask" / path).read_text("utf-8")
            assert re.search(rf"(def|class) {name.partition('.')[0]}\b", text), f"{path}: {name}"
    for path, name in re.findall(r"`([A-Za-z_.]+)` (?:and `\w+` )?in `(multitask/[\w/.]+\.py)`", PAGE):
        assert path.partition(".")[0] in (ROOT / name).read_text("utf-8"), f"{name}: {path}"
