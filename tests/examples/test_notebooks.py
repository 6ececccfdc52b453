"""The notebooks of `examples/notebooks`: as committed, and run anew with few rows and steps."""

import json
import re
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (extra dev)")

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "notebooks"
NAMES = ("korean_quickstart", "english_quickstart")
MAX_BYTES = 300_000
_ABSOLUTE = re.compile(r"(?<![\w.:/\]])/(?:home|root|tmp|work|Users|usr|opt|var|mnt|content|private)/|\b[A-Z]:\\\\")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
TINY = "SEED, REVIEWS, PASSAGES, STEPS = 7, 120, 60, 4"
COLAB = """
import sys
def serve_kernel_port_as_iframe(port, path="/", width="100%", height="400"):
    print("Colab shows port", port)
"""


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def texts(cell: Any) -> str:
    """All text that a cell has put out, pictures aside."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        found += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_small_and_of_no_machine(name: str) -> None:
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert path.stat().st_size <= MAX_BYTES
    assert _ABSOLUTE.findall(path.read_text("utf-8")) == []
    assert [cell.id for cell in notebook.cells if "execution" in cell.metadata] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_run_once_from_its_beginning_to_its_end(name: str) -> None:
    run = [cell for cell in read(name).cells if cell.cell_type == "code" and cell.id != "install"]
    assert [cell.execution_count for cell in run] == [*range(1, len(run) + 1)]
    assert [cell.id for cell in run for output in cell.outputs if output.output_type == "error"] == []
    assert [cell.id for cell in run if "Traceback" in texts(cell)] == []


def test_both_notebooks_have_the_same_cells() -> None:
    left, right = ([(cell.cell_type, cell.id) for cell in read(name).cells] for name in NAMES)
    assert left == right


@pytest.mark.parametrize("name", NAMES)
def test_links_of_a_notebook_exist(name: str) -> None:
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    links = [link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    assert links
    assert [link for link in links if not (FOLDER / link).is_file()] == []


def run(name: str, folder: Path, **environment: str) -> dict[str, Any]:
    """The cells of a notebook by id, run with few rows and steps."""
    pytest.importorskip("nbclient", reason="needs nbclient (extra dev)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (extra dev)")
    pytest.importorskip("uvicorn", reason="needs fastapi and uvicorn (extra serve)")
    executed = runpy.run_path(str(FOLDER / "execute.py"))["executed"]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "NO_PROXY": "127.0.0.1"}
    notebook = executed(FOLDER / f"{name}.ipynb", folder, TINY, **quiet, **environment)
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [(NAMES[0], {"긍정", "부정"}), (NAMES[1], {"positive", "negative"})])
def test_a_notebook_runs(name: str, classes: set[str], tmp_path: Path) -> None:
    cells = run(name, tmp_path)
    assert cells["install"].execution_count is None
    home = tmp_path / "runs" / name.replace("_", "-")
    results = json.loads((home / "model" / "results.json").read_text("utf-8"))
    assert results["config"]["train"]["max_steps"] == 4
    assert set(results["tasks"]) == {"cls", "qa"}
    table = cells["scores"].outputs[-1]["data"]["text/html"]
    shown = {float(number) for number in re.findall(r"<td>([\d.]+)</td>", table)}
    for task, metric in (("cls", "accuracy"), ("qa", "f1")):
        score = results["tasks"][task]["metrics"][metric]
        assert {round(score[part], 3) for part in ("value", "low", "high")} <= shown
    assert "majority" in table
    assert "random_span" in table
    assert texts(cells["evaluate"]).strip() == "True"
    assert {"<td>0</td>", "<td>4</td>"} <= set(re.findall(r"<td>\d</td>", texts(cells["fewshot"])))
    assert (home / "report" / "report.html").is_file()
    assert cells["loss"].outputs[-1]["data"]["image/png"]
    assert "<svg" in cells["report"].outputs[0]["data"]["image/svg+xml"]
    served = re.fullmatch(r"\('(\S+)',\s\{.*\}\)", texts(cells["request"]).strip(), re.DOTALL)
    generated = re.search(r"\n  (\S+)  \(", texts(cells["generate"]))  # of the same row
    assert served is not None
    assert generated is not None
    assert served[1] == generated[1]
    assert served[1] in classes
    port = re.search(r"http://127\.0\.0\.1:(\d+)\n", texts(cells["serve"]))
    assert port is not None
    assert f'src="http://127.0.0.1:{port[1]}/#task=cls"' in texts(cells["serve"])
    assert texts(cells["stop"]).strip() in ("stopped", "멈췄습니다")
    assert not is_open(int(port[1]))


@pytest.mark.slow
def test_in_colab_the_server_has_a_key_and_the_page_is_shown_by_its_module(tmp_path: Path) -> None:
    stand_in = tmp_path / "modules" / "google" / "colab"
    stand_in.mkdir(parents=True)
    (stand_in / "output.py").write_text(COLAB, "utf-8")
    (tmp_path / "work").mkdir()
    cells = run("english_quickstart", tmp_path / "work", PYTHONPATH=str(tmp_path / "modules"))
    shown = re.search(r"http://127\.0\.0\.1:(\d+)\nkey: \S{43}\nColab shows port (\d+)\n", texts(cells["serve"]))
    assert shown is not None
    assert shown[1] == shown[2]
    assert "<iframe" not in texts(cells["serve"])
    assert "positive" in texts(cells["request"])
    assert not is_open(int(shown[1]))
