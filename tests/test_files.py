"""Atomic writes: the old file stays until the new one is whole."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from multitask import files
from multitask.errors import InputError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    for value in ({"a": 1}, {"b": "한"}):
        files.write_json(path, value)
    assert path.read_text("utf-8") == '{\n "b": "한"\n}\n'
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_after_a_failure_the_old_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with suppress(RuntimeError), files.replacing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    assert path.read_text() == "old"


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").write_text("")
    with files.replacing(tmp_path / "f") as aside:
        aside.mkdir()
        (aside / "new").write_text("")
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["new"]


def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.json"
    files.write_json(path, 1)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        InputError, match=r"a\.json: cannot be written \(No space left on device\); what was there before"
    ):
        files.write_json(path, 2)
    assert path.read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [path]
