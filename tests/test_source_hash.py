"""What a cache key holds of the code: all that is reached, and nothing of what only people read."""

from pathlib import Path

import pytest

from multitask import source_hash as module
from multitask.source_hash import source_hash

FILES = {
    "__init__": "",
    "first": '"""One."""\nfrom pkg.deep import second\n\n\n'
    'def run() -> int:\n    """Runs."""\n    return second.VALUE  # all\n',
    "deep/__init__": '"""Deep."""',
    "deep/second": "VALUE = 1\n\n\ndef later() -> None:\n    import pkg.third\n",
    "third": "OTHER = 2\n",
    "apart": "X = 3\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "pkg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def changed(root: Path, name: str, old: str, new: str) -> bool:
    """Whether an edit changes the hash of `pkg.first`."""
    before = source_hash("pkg.first", root=root)
    path = root / "pkg" / f"{name}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    after = source_hash("pkg.first", root=root)
    assert source_hash("pkg.first", root=root) == after
    return after != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("first", "return second.VALUE", "return second.VALUE + 1"),
        ("deep/second", "VALUE = 1", "VALUE = 2"),
        ("third", "OTHER = 2", "OTHER = 3"),  # imported inside a function of an imported module
        ("deep/__init__", '"""Deep."""', "import os"),
    ],
)
def test_code_that_is_reached_counts(root: Path, name: str, old: str, new: str) -> None:
    assert changed(root, name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("first", '"""Runs."""', '"""Runs it."""'),
        ("first", '"""One."""', '"""The first."""'),
        ("first", "# all", "# everything"),
        ("first", "\n\n\ndef", "\n\n# a comment\n\n\ndef"),
        ("deep/second", "VALUE = 1\n", 'VALUE = 1\n"""What it is."""\n'),
        ("apart", "X = 3", "X = 4"),
    ],
)
def test_words_for_people_and_other_modules_do_not(root: Path, name: str, old: str, new: str) -> None:
    assert not changed(root, name, old, new)


def test_our_own_training_reaches_the_loss_and_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Path] = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda path, mtime_ns: reached.append(path) or read(path, mtime_ns))
    source_hash("multitask.training.finetune")
    names = {str(path.relative_to(module._ROOT).with_suffix("")) for path in reached}
    assert {"multitask/models/loss", "multitask/data/readers", "multitask/batching/mixture"} <= names
    assert not [name for name in names if name.startswith(("multitask/reports", "multitask/cli", "multitask/api"))]
