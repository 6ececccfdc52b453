"""The lower ends of the dependency ranges: `constraints-lowest.txt` names them, and a fresh environment runs them."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOWEST = ROOT / "constraints-lowest.txt"


def pins(path: Path) -> dict[str, str]:
    lines = (line.split("==") for line in path.read_text("utf-8").splitlines() if "==" in line)
    return {re.sub("[-_]", "-", name.lower()): version for name, version in lines}


def is_release(version: str, prefix: str) -> bool:
    """True when `version` is `prefix`, filled up with zeros: 8.2.0 is 8.2."""
    return re.fullmatch(rf"{re.escape(prefix)}(\.0)*", version) is not None


def test_the_file_has_the_lower_ends_and_the_torch_that_is_tested() -> None:
    ranges = dict(
        line.split(">=")
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    )
    found = pins(LOWEST)
    assert found["torch"] == pins(ROOT / "constraints.txt")["torch"]
    wrong = {
        name: (lowest, found.get(name))
        for name, lowest in ranges.items()
        if name != "torch" and not is_release(found.get(name, ""), lowest)
    }
    assert wrong == {}, "name: (pyproject.toml, constraints-lowest.txt)"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment},
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the lowest versions are those that Python 3.11 can install"
)
def test_the_lowest_versions_train_score_prompt_generate_and_report(tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", LOWEST)
    run(python, "-m", "pip", "check")
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"))
    installed = {re.sub("[-_]", "-", package["name"].lower()): package["version"] for package in listed}
    for name, version in pins(LOWEST).items():
        assert installed[name].split("+")[0] == version, name

    def command(*words: str | Path) -> str:
        return run(python, "run.py", *words, XDG_CACHE_HOME=str(tmp_path / "cache"))

    tuned, shots, report = tmp_path / "tuned", tmp_path / "shots.json", tmp_path / "report"
    sizes = [
        word for size in ("train.max_steps=4", "model.vocab_size=400", "eval.max_rows=4") for word in ("--set", size)
    ]
    command("train", "--tasks", "cls,qa,summ,gen", "--limit", "40", "--out", tuned, *sizes)
    command(
        "train",
        "--tasks",
        "cls",
        "--limit",
        "40",
        "--model",
        tuned,
        "--adapter",
        "lora",
        "--out",
        tmp_path / "lora",
        *sizes,
    )
    command("evaluate", tuned, "--max-rows", "3", "--out", tmp_path / "scores.json")
    prompted = ("--tasks", "cls,summ", "--shots", "0,1", "--draws", "1", "--max-rows", "4")
    command("fewshot", "--model", tuned, *prompted, "--out", shots)
    command("report", tuned, shots, "--out", report)
    assert "<svg" in (report / "report.html").read_text("utf-8")
    assert set(json.loads((tmp_path / "scores.json").read_text("utf-8"))["tasks"]) == {"cls", "qa", "summ", "gen"}
    text = command(
        "generate", tuned, "Bari lives in", "--max-new-tokens", "4", "--top-k", "3", "--repetition-penalty", "1.2"
    )
    assert text.startswith("Bari lives in")
    command(
        "pretrain",
        "LICENSE",
        "--set",
        "text.format=text",
        "--shape",
        "nano",
        "--set",
        "train.max_steps=2",
        "--out",
        tmp_path / "text",
    )
    # Losses, attention, decoding and readers against their references, with the lowest versions.
    files = (
        "models/test_loss.py",
        "models/layers/test_attention.py",
        "inference/test_kv_cache.py",
        "data/test_rows.py",
    )
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in files))
