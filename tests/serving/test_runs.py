"""The run page's data: what is read, and what is not."""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs fastapi (extra serve)")
from fake_server import write_run
from fastapi import FastAPI
from fastapi.testclient import TestClient

from multitask.serving import runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "demo")
    write_run(tmp_path / "runs" / "suite" / "multitask", 5, is_done=False, max_steps=200)
    (tmp_path / "runs" / "suite" / "report.html").write_text("<!doctype html>a report", "utf-8")
    write_run(tmp_path / "outside", 3)
    write_run(tmp_path / "runs" / ".hidden", 3)
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "secret.txt").write_text("secret", "utf-8")
    return tmp_path / "runs"


@pytest.fixture
def client(root: Path) -> TestClient:
    app = FastAPI()
    app.include_router(runs.make_router(root))
    return TestClient(app, raise_server_exceptions=False)


def test_runs_are_listed_with_their_progress(client: TestClient) -> None:
    found = {run["name"]: run for run in client.get("/v1/runs").json()["runs"]}
    assert set(found) == {"demo", "suite:multitask"}, "neither a hidden folder nor a link out of the folder"
    assert found["demo"] | {"idle_s": 0} == {
        "name": "demo", "tasks": ["nli", "summ", "cls"], "step": 800, "max_steps": 800, "is_done": True,
        "has_report": False, "idle_s": 0,
    }  # fmt: skip
    running = found["suite:multitask"]
    assert (running["step"], running["max_steps"], running["is_done"], running["has_report"]) == (100, 200, False, True)


def test_the_run_written_to_last_comes_first(client: TestClient, root: Path) -> None:
    for name, age_s in (("demo", 500), ("suite/multitask", 60)):
        at = time.time() - age_s
        os.utime(root / name / "metrics.jsonl", (at, at))
    found = client.get("/v1/runs").json()["runs"]
    assert [run["name"] for run in found] == ["suite:multitask", "demo"]
    assert 499 < found[1]["idle_s"] < 560


def test_a_run_has_records_results_and_samples(client: TestClient) -> None:
    found = client.get("/v1/runs/demo").json()
    assert [line["event"] for line in found["records"]].count("validation") == 4
    assert found["results"]["tasks"]["nli"]["metrics"]["accuracy"]["value"] == 0.8123
    assert [(sample["task"], sample["references"]) for sample in found["samples"]] == [
        ("gen", []), ("gen", []), ("nli", ["entailment"]), ("nli", ["neutral"]),
    ]  # fmt: skip
    running = client.get("/v1/runs/suite:multitask").json()
    assert (running["results"], running["samples"]) == (None, [])


def test_an_answer_holds_no_path(client: TestClient, root: Path) -> None:
    for address in ("/v1/runs", "/v1/runs/demo", "/v1/runs/suite:multitask"):
        text = client.get(address).text
        assert "/home" not in text
        assert str(root) not in text


@pytest.mark.parametrize(
    "name",
    [
        *("nothing", "..", "%2e%2e", "..%2foutside", "..%2fsecret.txt", "demo%2f..", "suite", ".hidden", "linked"),
        *("%00", "a" * 5000),
    ],
)
@pytest.mark.parametrize("end", ["", "/report"])
def test_a_name_that_is_no_run_is_not_found(client: TestClient, name: str, end: str) -> None:
    answer = client.get(f"/v1/runs/{name}{end}")
    assert answer.status_code == 404
    assert "secret" not in answer.text.replace("..%2fsecret.txt", "").replace("../secret.txt", "")


def test_an_unknown_run_is_an_error_in_the_shape_of_openai(client: TestClient) -> None:
    found = client.get("/v1/runs/nothing").json()["error"]
    assert found == {
        "message": "no run 'nothing'",
        "type": "invalid_request_error",
        "param": "name",
        "code": "run_not_found",
    }


def test_the_report_of_a_suite_is_that_of_its_runs(client: TestClient, root: Path) -> None:
    answer = client.get("/v1/runs/suite:multitask/report")
    assert (answer.status_code, answer.text) == (200, "<!doctype html>a report")
    assert client.get("/v1/runs/demo/report").status_code == 404
    (root / "demo" / "report.html").symlink_to(root.parent / "secret.txt")
    assert client.get("/v1/runs/demo/report").status_code == 404


def test_files_that_link_out_of_the_folder_are_not_read(client: TestClient, root: Path) -> None:
    secret = root.parent / "outside" / "metrics.jsonl"
    line = {"event": "step", "step": 1, "prediction": "secret", "loss": {}}
    secret.write_text(json.dumps(line), "utf-8")
    (root / "demo" / "metrics.jsonl").unlink()
    (root / "demo" / "metrics.jsonl").symlink_to(secret)
    assert client.get("/v1/runs/demo").status_code == 404
    write_run(root / "other", 2)
    (root / "other" / "predictions" / "other.jsonl").symlink_to(secret)
    found = client.get("/v1/runs/other")
    assert found.status_code == 200
    assert "secret" not in found.text


def test_damaged_and_half_written_files_are_left_out(client: TestClient, root: Path) -> None:
    with (root / "demo" / "metrics.jsonl").open("ab") as stream:
        stream.write(
            b'{"event": "step", "step": 820, "loss": {"nli": NaN, "summ": 1e999}}\n[1]\n\xff\xfe\n{"event": "step", "st'
        )
    (root / "demo" / "results.json").write_text('{"tasks": [', "utf-8")
    (root / "demo" / "predictions" / "deep.jsonl").write_text("[" * 100000, "utf-8")
    found = client.get("/v1/runs/demo")
    assert found.status_code == 200
    last = [line for line in found.json()["records"] if line["event"] == "step"][-1]
    assert last == {"event": "step", "step": 820, "loss": {"nli": None, "summ": None}}
    assert found.json()["results"] is None


def test_a_long_run_is_thinned_out(root: Path) -> None:
    records: list[dict[str, Any]] = [{"event": "step", "step": step} for step in range(1, 50_001)]
    records.insert(77, {"event": "validation", "step": 77})
    found = runs.thinned(records)
    assert len(found) == 1001
    assert (found[0]["step"], found[-1]["step"]) == (1, 50_000)
    assert records[77] in found
    steps = [line["step"] for line in found if line["event"] == "step"]
    gaps = {later - earlier for earlier, later in itertools.pairwise(steps)}
    assert gaps <= {49, 50, 51}


def test_a_folder_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(runs.make_router(tmp_path / "absent"))
    assert TestClient(app).get("/v1/runs").json() == {"runs": []}


def test_texts_of_pretraining_come_newest_first(root: Path, client: TestClient) -> None:
    lines = [
        {"event": "validation", "step": step, "loss": {"text": 3.0}, "sample": f"text {step}"} for step in range(1, 9)
    ]
    write_run(root / "pretrained", 1, is_done=False)
    (root / "pretrained" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = client.get("/v1/runs/pretrained").json()["samples"]
    assert [(sample["step"], sample["text"]) for sample in found] == [
        (step, f"text {step}") for step in (8, 7, 6, 5, 4)
    ]


def test_texts_that_are_not_unicode_do_not_break_the_list_of_runs(tmp_path: Path) -> None:
    for name in ("good", os.fsdecode(b"bad\xff")):
        try:
            (tmp_path / name).mkdir()
        except OSError:
            pytest.skip("this file system has UTF-8 names only")
        line = '{"event": "sample", "step": 2, "sample": "a\\ud800b", "loss": {"\\udc00": 1, "\\ud83d\\ude00": 2}}\n'
        (tmp_path / name / "metrics.jsonl").write_text(line, "ascii")
    assert list(runs.find_runs(tmp_path)) == ["good"]
    found = runs.details("good", tmp_path / "good", tmp_path)
    assert found.samples[0].text == "a?b"
    assert found.tasks == ["?", "\N{GRINNING FACE}"]
    assert found.model_dump_json()
