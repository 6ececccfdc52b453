"""A server of tiny models on a free port: `with running([folder]) as server: server.post("/v1/models", {...})`."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from helpers import FOLDER, settings

from multitask import train
from multitask.serving.app import make_app
from multitask.serving.engine import Engine
from multitask.serving.loading import Served, load_served
from multitask.serving.middleware import Limits, TimedProtocol
from multitask.serving.predictions import TaskArms, task_arms

TASKS = ("cls", "summ", "gen")


@cache
def tuned_run() -> Path:
    """A run of three tasks that was trained for a few steps; its training rows are synthetic."""
    given = settings(*TASKS, model={"n_positions": 512}, train={"max_steps": 30, "learning_rate": 5e-3})
    train(given, out=FOLDER / "served")
    return FOLDER / "served"


@cache
def lora_run(name: str, base: Path) -> Path:
    """A LoRA run on a model."""
    given = settings(
        "cls",
        model={"name": str(base), "vocab_size": 2000},
        adapter={"kind": "lora", "rank": 2},
        train={"learning_rate": 1e-2},
        seed=len(name),
    )
    train(given, out=FOLDER / name)
    return FOLDER / name


@dataclass
class Server:
    """A running server."""

    port: int
    engine: Engine
    served: Served
    tasks: dict[str, TaskArms]

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text) and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text, dict(answer.headers)
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of an answer with status 200."""
        status, found, _ = self.request("GET", path)
        assert status == 200, found
        return found

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """The JSON of an answer with this status."""
        found = self.request("POST", path, json.dumps(body).encode())
        assert found[0] == status, found
        return found[1]

    def predict(self, task: str, *rows: Any, status: int = 200, **options: Any) -> Any:
        """Predictions of rows."""
        return self.post(f"/v1/tasks/{task}/predict", {"rows": list(rows), **options}, status)

    def events(self, path: str, body: Any) -> list[str]:
        """The data of server-sent events."""
        status, text, headers = self.request("POST", path, json.dumps(body).encode())
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream"), text
        return [part.removeprefix("data: ") for part in text.split("\n\n") if part]


@contextmanager
def running(
    folders: Sequence[Path],
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Sequence[str] | None = None,
    tasks_dirs: Sequence[Path] = (),
    **engine: int,
) -> Iterator[Server]:
    """Loads models and serves them in a thread."""
    served = load_served([str(folder) for folder in folders], "cpu", tasks_dirs, lambda line: None)
    tasks = task_arms(served, lambda line: None)
    worker = Engine({name: one.model for name, one in served.models.items()}, **engine)
    app = make_app(worker, served, tasks, limits, api_key, hosts)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=TimedProtocol, log_level="critical", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Server(server.servers[0].sockets[0].getsockname()[1], worker, served, tasks)
    finally:
        server.should_exit = True
        thread.join()
        assert not worker._thread.is_alive()
