"""Files of a run that are truncated, and full disks, as the commands meet them: exit 2, the file, the remedy."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import learned

from multitask import InputError, evaluate, generate, report, train
from multitask.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(learned(), tmp_path / "run")
    return tmp_path / "run"


def error_of(*arguments: str | Path) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return done.stderr


def test_no_part_of_the_settings_of_a_run_is_taken_for_all_of_them(run: Path) -> None:
    path = run / "config.yaml"
    whole = path.read_bytes()
    for size in (0, 5, 40, 200, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        said = error_of("evaluate", run, "--tasks", "qa")
        assert f"{path}: " in said
        assert "truncated" in said or "empty" in said or "not valid YAML" in said
    said = error_of("train", "--resume", run)
    assert f"{path}: truncated" in said
    assert "results.json" in said
    with pytest.raises(InputError, match=r"config\.yaml: truncated"):
        generate(run, FIELDS, task="qa")


FIELDS = {"context": "Ada has a cat.", "question": "What has Ada?"}


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_truncated_results_are_named(fraction: float, run: Path, tmp_path: Path) -> None:
    path = run / "results.json"
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    said = error_of("report", run, "--out", tmp_path / "report")
    assert f"{path}: " in said or "no results in this folder" in said
    assert not (tmp_path / "report").exists()
    content = json.loads((learned() / "results.json").read_text())
    for changed in ({**content, "schema": 99}, {**content, "schema": None}, {**content, "tasks": 3}):
        path.write_text(json.dumps(changed))
        assert f"{path}: " in error_of("report", path, "--out", tmp_path / "report")


def test_damaged_baselines_of_a_run_are_fitted_anew(run: Path) -> None:
    before = evaluate(run)
    path = run / "baselines" / "qa.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert evaluate(run).tasks == before.tasks


def test_a_full_disk_under_the_scores_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "/dev/full: cannot be written (No space left on device)" in error_of(
        "generate", run, "Ada", "--out", "/dev/full"
    )
    (tmp_path / "file").write_text("")
    for out, said in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "file" / "a.json", "cannot be written"),
        (Path("/proc/a.json"), "cannot be written"),
    ):
        for command in (("evaluate", run), ("fewshot", "--model", run, "--tasks", "qa")):
            assert f"{out}: {said}" in error_of(*command, "--out", out), command
    moments: dict[str, Callable[[Path], bool]] = {
        "scores.json": lambda path: path.name == "scores.json",
        "qa.jsonl": lambda path: path.name == "qa.jsonl",
    }
    for name, is_full in moments.items():
        out = tmp_path / name.partition(".")[0] / "scores.json"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full_for(is_full))
            said = error_of("evaluate", run, "--out", out)
        assert f"{name}: cannot be written (No space left on device)" in said
        assert "free some disk space" in said
        assert not out.exists()
        assert not [path for path in out.parent.rglob("*") if path.name.endswith(".tmp")]


def full_for(is_full: Callable[[Path], bool]) -> Callable[[Any, Any], None]:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if is_full(Path(target)):
            raise OSError(28, "No space left on device")
        replace(source, target)

    return full


def test_a_full_disk_at_the_start_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    for name in ("config.yaml", "tokenizer.json"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full_for(lambda path, name=name: path.name == name))  # type: ignore[misc]
            said = error_of("train", "--tasks", "qa", "--limit", "50", "--out", out, "--device", "cpu")
        assert "cannot be written (No space left on device)" in said
        assert not out.exists()


def test_an_interrupted_picture_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "checkpoints")
    given = {"max_steps": 1, "out": tmp_path / "new", "tasks": "qa"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_for(lambda path: path.name == "loss.png"))
        with pytest.raises(InputError, match=r"loss\.png: cannot be written \(No space left on device\)"):
            train(run / "config.yaml", **given)
    train(resume=tmp_path / "new")
    assert (tmp_path / "new" / "loss.png").exists()


def test_a_report_on_a_full_disk_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", full_for(lambda path: path.name == "report.html"))
    with pytest.raises(InputError, match=r"cannot be written .*No space left on device"):
        report(run, tmp_path / "report")
