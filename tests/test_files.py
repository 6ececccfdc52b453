"""Atomic writes: the old file stays until the new one is whole. Names of files in any Unicode form."""

import json
import os
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from multitask import files
from multitask.api import init
from multitask.config.loading import read_yaml
from multitask.config.resolve import resumed_folder, settings_of, trained_block_size
from multitask.data import corpus
from multitask.errors import InputError
from multitask.evaluation.metrics import check_function
from multitask.inference.trained_run import trained_run
from multitask.models.names import model_folder, run_of
from multitask.registry import kept_folders, load_tasks
from multitask.reports import results


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


# ---------------------------------------------------------------- digests that are kept


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`digests(path, ...)` -> the digest, and whether the files were read for it."""
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    read: list[Path] = []

    def counted(paths: Any) -> str:
        read.extend(paths := list(paths))
        return whole(paths)

    whole = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", counted)

    def found(*paths: Path) -> tuple[str, bool]:
        read.clear()
        digest = files.remembered_sha256(paths, tmp_path / "cache")
        assert digest == whole(paths)
        return digest, bool(read)

    return found


def big(path: Path, byte: bytes = b"a") -> Path:
    path.write_bytes(byte * (1 << 20))
    return path


def test_a_large_file_is_read_once(tmp_path: Path, digests: Any) -> None:
    path = big(tmp_path / "a")
    digest, was_read = digests(path)
    assert was_read
    assert digests(path) == (digest, False)
    assert digests(path, path)[0] != digest
    small = tmp_path / "small"
    small.write_text("abc")
    assert digests(small)[1]
    assert digests(small)[1], "not worth keeping"
    assert len(list((tmp_path / "cache" / "hashes").iterdir())) == 2


@pytest.mark.parametrize("change", ["content", "same time", "same size and time", "another file", "a second file"])
def test_a_changed_file_is_read_again(change: str, tmp_path: Path, digests: Any) -> None:
    path = big(tmp_path / "a")
    old = path.stat()
    first, _ = digests(path)
    if change == "content":
        big(path, b"b")
    elif change == "same time":
        path.write_bytes(b"a" * ((1 << 20) + 1))
    elif change == "same size and time":  # written in place, mtime put back: ctime tells
        with path.open("r+b") as file:
            file.write(b"b")
    elif change == "another file":
        os.replace(big(tmp_path / "b", b"b"), path)
    if change == "a second file":
        assert digests(path, big(tmp_path / "b"))[1]
        big(tmp_path / "b", b"c")
        assert digests(path, tmp_path / "b")[1]
        return
    if change != "content":
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    digest, was_read = digests(path)
    assert was_read
    assert digest != first
    assert digests(path) == (digest, False)


def test_of_a_file_that_has_just_changed_nothing_is_kept(
    tmp_path: Path, digests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one tick of the file system's clock have the same time."""
    monkeypatch.setattr(files, "_SETTLED_NS", 3600 * 10**9)
    path = big(tmp_path / "a")
    assert [digests(path)[1] for _ in range(3)] == [True] * 3
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"versions": 3, "sha256": "x"}', "null"])
def test_a_damaged_memory_is_made_anew(content: str, tmp_path: Path, digests: Any) -> None:
    path = big(tmp_path / "a")
    digests(path)
    (memory,) = (tmp_path / "cache" / "hashes").iterdir()
    kept = json.loads(memory.read_text())
    for text in (content, json.dumps(kept | {"sha256": "x"})):
        memory.write_text(text)
        assert digests(path)[1]
        assert not digests(path)[1]


def test_digests_need_no_cache(tmp_path: Path, digests: Any) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    assert digests(big(tmp_path / "a"))[1]
    with pytest.raises(InputError, match="missing: cannot be read"):
        digests(tmp_path / "missing")


# ---------------------------------------------------------------- names of files and folders on the command line


@pytest.mark.parametrize("kept", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
def test_files_and_folders_are_found_in_any_unicode_form(
    kept: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and its archives write Korean names in NFD; who types one, types NFC."""
    monkeypatch.chdir(tmp_path)
    on_disk, name = (unicodedata.normalize(form, "자료/실행") for form in (kept, typed))
    Path(on_disk).mkdir(parents=True)
    run = Path(on_disk)
    reviews = "text,label\n" + "".join(f"재밌다 {n},좋음\n별로 {n},나쁨\n" for n in range(20))
    (run / "config.yaml").write_text("tasks: [cls]\ntrain: {block_size: 64}\n", "utf-8")
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}", "utf-8")
    (run / "model" / "model.safetensors").touch()
    (run / unicodedata.normalize(kept, "글.csv")).write_text(reviews, "utf-8")
    (run / unicodedata.normalize(kept, "소설.txt")).write_text("옛날 옛적에", "utf-8")
    (run / unicodedata.normalize(kept, "척도.py")).write_text("def half(p, r):\n    return 0.5\n", "utf-8")
    (run / unicodedata.normalize(kept, "과제")).mkdir()
    inside = {
        word: f"{name}/{unicodedata.normalize(typed, word)}" for word in ("글.csv", "소설.txt", "척도.py", "과제")
    }

    assert read_yaml(Path(name) / "config.yaml")["tasks"] == ["cls"]
    assert settings_of(f"{name}/config.yaml").tasks == ["cls"]
    assert Path(model_folder(name) or "").is_dir()
    assert run_of(Path(name)) is not None
    assert trained_block_size(Path(name)) == 64
    assert trained_run(name) is not None
    assert resumed_folder(name, None, overwrite=False).is_dir()
    assert "".join(corpus.read(Path(inside["소설.txt"]))) == "옛날 옛적에"
    assert load_tasks([inside["과제"]])
    assert kept_folders([unicodedata.normalize(typed, "과제")], run / "config.yaml").lost == []
    check_function(f"{inside['척도.py']}:half")
    init(inside["글.csv"], out="글.yaml")
    with pytest.raises(InputError, match="no results in this folder"):
        results.read([Path(name)])
