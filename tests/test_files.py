"""Atomic writes: the old file stays until the new one is whole."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def test_files_are_moved_into_a_folder_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with files.filling(folder) as aside:
            (aside / "a").write_text(content)
            (aside / content).mkdir()
            assert not (folder / "a").exists() or (folder / "a").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "new", "old"]
    with suppress(RuntimeError), files.filling(folder) as aside:
        (aside / "a").write_text("half")
        raise RuntimeError
    assert (folder / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_device_is_written_and_stays_one() -> None:
    files.write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(InputError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        files.write_lines(Path("/dev/full"), [{"a": 1}])
    assert Path("/dev/full").is_char_device()


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    files.append_line(path, "one")
    opened = Path.open

    class Full:
        """A file on a disk that is full after three bytes."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:3])
            self.file.flush()
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *given, **named: Full(opened(*given, **named)))
        with pytest.raises(InputError, match=r"log: cannot be written \(No space left on device\).*: do this"):
            files.append_line(path, "another", "do this")
    assert path.read_text() == "one\n"


def test_a_file_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / "file" / "out.json", "cannot be written"),
        (tmp_path, "is a folder"),
        (Path("/proc/out.json"), "cannot be written"),
    ):
        with pytest.raises(InputError, match=said):
            files.check_writable(path)
    files.check_writable(tmp_path / "new" / "out.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == []


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
