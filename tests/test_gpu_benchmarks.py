"""The benchmarks of a GPU on tiny models on a CPU: all arms run, and compute the same."""

import importlib.util
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import ROOT

FOLDER = ROOT / "benchmarks"


def report(monkeypatch: pytest.MonkeyPatch, name: str, out: Path, *options: str) -> list[list[str]]:
    """Cells of the table that a script writes."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script: dict[str, Any] = runpy.run_path(str(FOLDER / name))
    given = ["--device", "cpu", "--tiny", "--out", str(out), *options]
    CliRunner().invoke(script["main"], given, catch_exceptions=False)
    lines = out.read_text("utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| ---")) + 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["GPT-2 124M, plain text", "SmolLM2-135M shape, LoRA 16"])
def test_all_arms_of_training_have_the_same_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, varlen: list[int], model: str
) -> None:
    rows = report(monkeypatch, "gpu.py", tmp_path / "gpu.md", "--steps", "1", "--tokens", "96", "--models", model)
    is_text = model.endswith("plain text")
    plain = ["plain loop", "plain loop, compiled"] if is_text else []
    assert [row[2] for row in rows] == ["groups", "varlen", "varlen, compiled", *plain]
    losses = [float(row[-1]) for row in rows]
    assert losses == pytest.approx(
        [losses[0]] * len(rows), abs=0.003
    )  # bf16; without the last label of each block it is 0.005 more
    assert max(varlen) == (32 if is_text else 23)  # a block, or an example without its last id


@pytest.mark.slow
def test_texts_and_log_likelihoods_are_those_of_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = report(monkeypatch, "gpu_eval.py", tmp_path / "gpu_eval.md", "--rounds", "1")
    has_harness = importlib.util.find_spec("lm_eval") is not None
    scoring = ["ours", "harness"] if has_harness else ["ours"]
    assert [row[2] for row in rows] == ["ours", "padded generate", *scoring] * 2
    assert rows[1][-1] == "0 of 12 differ"
    shortest, *_, longest = map(int, re.findall(r"\d+", rows[0][-1]))
    assert shortest < longest
    assert ("not installed" in (tmp_path / "gpu_eval.md").read_text("utf-8")) is not has_harness
    if has_harness:
        assert float(rows[3][-1].split()[1]) < 1e-4
