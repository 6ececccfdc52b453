"""The wheel: the command, all plugins and configs, from any folder, and nothing else in site-packages."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT, cwd=tmp_path)
    wheel = next(tmp_path.glob("multitask-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    beside = [path for kind in ("*.j2", "*.yaml") for path in (ROOT / "multitask").rglob(kind)]
    templates = {path.relative_to(ROOT).as_posix() for path in beside}
    reports = "multitask/reports/rendering"
    assert {f"{reports}/report.html.j2", f"{reports}/report.md.j2", f"{reports}/words.yaml"} <= templates <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"multitask"}
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    run(tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    # Dependencies come from the environment of the tests; its own (editable) multitask is not reached by a plain path.
    home = next((tmp_path / "venv/lib").glob("python*")) / "site-packages"
    (home / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = tmp_path / "venv/bin/multitask"
    assert str(home) in run(
        tmp_path / "venv/bin/python", "-c", "import multitask; print(multitask.__file__)", cwd=elsewhere
    )
    listed = run(command, "tasks", cwd=elsewhere)
    assert all(name in listed for name in ("cls", "gen", "nli", "qa", "summ"))
    configs = "from multitask.files import shipped; print(*(p.name for p in shipped('configs').rglob('*.yaml')))"
    found = run(tmp_path / "venv/bin/python", "-c", configs, cwd=elsewhere).split()
    assert sorted(found) == sorted(p.name for p in (ROOT / "configs").rglob("*.yaml"))
    sizes = ["--set", "train.max_steps=2", "--set", "model.vocab_size=400", "--set", "eval.max_rows=4", "--limit", "50"]
    said = run(command, "train", "--tasks", "cls,qa", "--out", "run", *sizes, cwd=elsewhere)
    assert "written to run" in said
    assert (elsewhere / "run" / "results.json").exists()
