"""Uploads to a hub of this machine: what is sent, and that nothing is sent of a run that failed."""

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from helpers import ENVIRONMENT, FACTS, ROOT, files, learned, settings, weights
from huggingface_hub import ModelCard

from multitask import train
from multitask.api import push
from multitask.errors import InputError
from multitask.models import cards, io
from multitask.registry import choose, load_tasks


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; every file is sent inside the commit."""

    requests: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    files: ClassVar[dict[str, bytes]] = {}
    status: ClassVar[dict[str, int]] = {}
    """Answers by path that are no success."""

    def do_GET(self) -> None:
        self.answer({"type": "user", "name": "me", "auth": {"accessToken": {"displayName": "t", "role": "write"}}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                record = json.loads(line)
                if record["key"] == "file":
                    self.files[record["value"]["path"]] = base64.b64decode(record["value"]["content"])
            self.answer({"commitUrl": self.url("me/demo/commit/1"), "commitOid": "1"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        else:
            self.answer({"url": self.url("me/demo")}, json.loads(body))

    def url(self, path: str) -> str:
        return f"http://{self.headers['Host']}/{path}"

    def answer(self, record: object, body: dict[str, Any] | None = None) -> None:
        self.requests.append((f"{self.command} {self.path}", body or {}))
        content = json.dumps(record).encode()
        self.send_response(self.status.get(self.path, 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the console."""


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that accepts everything."""
    Hub.requests.clear()
    Hub.files.clear()
    Hub.status.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def command(hub: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    named = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", **environment}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)],
        env={**ENVIRONMENT, **named},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def loaded(folder: Path) -> torch.Tensor:
    """Logits of an uploaded folder, by plain transformers."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(torch.arange(40).view(2, 20)).logits
    return found


def downloaded(folder: Path) -> Path:
    folder.mkdir()
    for name, content in Hub.files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_finished_run_is_uploaded_with_its_card(hub: str, tmp_path: Path) -> None:
    done = command(hub, "push", learned(), "me/demo", "--private", "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"uploaded to {hub}/me/demo\n"
    created = next(body for path, body in Hub.requests if path == "POST /api/repos/create")
    assert (created["name"], created["organization"]) == ("demo", "me")
    assert created.get("private") is True or created.get("visibility") == "private"
    assert sum("/commit/" in path for path, _ in Hub.requests) == 1, "one commit: all files or none"
    folder = learned() / "model"
    assert set(Hub.files) == {path.name for path in folder.iterdir()}
    for name, content in Hub.files.items():
        assert name == "README.md" or content == (folder / name).read_bytes()
    card = ModelCard(Hub.files["README.md"].decode())
    assert card.data.to_dict()["license"] == "apache-2.0"
    assert "- Licence: apache-2.0\n" in card.text
    assert 'FOLDER = "me/demo"' in card.text
    assert torch.equal(loaded(downloaded(tmp_path / "down")), loaded(folder))


@pytest.mark.slow
def test_an_adapter_is_merged_into_its_base(hub: str, tmp_path: Path) -> None:
    source = files(tmp_path / "rows", train=FACTS, validation=FACTS, test=FACTS)
    base = tmp_path / "plain"
    shutil.copytree(learned() / "model", base)
    given = settings(
        "qa",
        "nli",
        data={"sources": {"qa": [source]}},
        model={"name": str(base)},
        adapter={"kind": "lora"},
        train={"max_steps": 8, "learning_rate": 2e-2},
    )
    train(given, out=tmp_path / "run")
    done = command(hub, "push", tmp_path / "run", "me/demo")
    assert done.returncode == 0, done.stderr
    assert not any(name.startswith("adapter") for name in Hub.files)
    text = Hub.files["README.md"].decode()
    assert "PeftModel" not in text
    assert ModelCard(text).data.to_dict()["library_name"] == "transformers"
    with torch.no_grad():
        expected = io.load_trained(tmp_path / "run")[0](torch.arange(40).view(2, 20)).logits
    torch.testing.assert_close(loaded(downloaded(tmp_path / "down")), expected, atol=1e-5, rtol=1e-5)
    assert "LoRA of rank 8" in text
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_train_uploads_what_it_has_finished(hub: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings("qa", train={"max_steps": 2})))
    named = ("train", "--config", tmp_path / "a.yaml", "--out", tmp_path / "run", "--push-to-hub", "me/demo")
    done = command(hub, *named)
    assert done.returncode == 0, done.stderr
    assert f"uploaded to {hub}/me/demo" in done.stdout
    assert Hub.files["model.safetensors"] == (tmp_path / "run" / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("what", ["train", "score"])
def test_nothing_is_uploaded_where_the_run_failed(what: str, hub: str, tmp_path: Path) -> None:
    rate = {"learning_rate": 1e30, "clip_norm": None} if what == "train" else {}
    given = settings("qa", train={"max_steps": 30, "log_every_steps": 1, **rate})
    if what == "score":
        given["eval"] = {"hub_metrics": ["no_such_metric_anywhere"]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(given))
    done = command(hub, "train", "--config", tmp_path / "a.yaml", "--out", tmp_path / "run", "--push-to-hub", "me/demo")
    assert done.returncode != 0
    assert {path for path, _ in Hub.requests} <= {"GET /api/whoami-v2"}
    Hub.requests.clear()
    done = command(hub, "push", tmp_path / "run", "me/demo")
    assert done.returncode == 2, done.stderr
    assert not Hub.requests


def test_what_an_upload_needs_is_checked_before_training(hub: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings("qa", train={"max_steps": 2})))
    named = ("train", "--config", tmp_path / "a.yaml", "--out", tmp_path / "run", "--push-to-hub")
    Hub.status["/api/whoami-v2"] = 401
    no_home = {"HF_TOKEN": "", "HF_HOME": str(tmp_path / "home")}
    for name, environment, message in (
        ("me/a/b", {}, "--push-to-hub me/a/b: Repo id must be"),
        ("me/demo", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, which forbids it; unset it"),
        ("me/demo", no_home, "there is no token; run `hf auth login`, or set HF_TOKEN"),
        ("me/demo", {}, "the hub answers: the token is not valid"),
        ("me/demo", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    ):
        done = command(hub, *named, name, **environment)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


def test_a_rejected_upload_leaves_the_run_and_says_how_to_repeat_it(hub: str) -> None:
    Hub.status["/api/models/me/demo/commit/main"] = 403
    done = command(hub, "push", learned(), "me/demo")
    assert done.returncode == 2
    assert "not uploaded: the hub answers: the token is not valid, or may not write there; the run is whole: try" in (
        done.stderr
    )
    assert f"`run.py push {learned()} me/demo`" in done.stderr
    assert weights(learned() / "model")


def test_only_runs_that_were_scored_are_uploaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        push(shutil.copytree(learned() / "model", tmp_path / "model"), "me/demo")
    shutil.copytree(learned(), tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(InputError, match=r"its model was not scored yet: resume with `run.py train --resume"):
        push(tmp_path / "run", "me/demo")
    with pytest.raises(InputError, match="no such folder"):
        push(tmp_path / "ran", "me/demo")


def test_the_card_of_a_merged_adapter_is_that_of_a_plain_model() -> None:
    tasks = choose(load_tasks(), ["qa"])
    adapter, plain = (cards.card(tasks, {}, base) for base in ('FOLDER + "/../base"', None))
    assert adapter != plain
    assert cards.hub_card(adapter, "me/demo", "mit", is_merged=True) == cards.hub_card(plain, "me/demo", "mit", False)
