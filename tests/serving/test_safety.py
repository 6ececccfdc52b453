"""Bad input, limits, keys, hosts, full queues, clients that leave: one JSON error with its status, and no crash."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from helpers import ENVIRONMENT, ROOT, untrained
from serving_helpers import Server, running, tuned_run

from multitask.cli.main import main
from multitask.serving import middleware
from multitask.serving.middleware import Limits

COMPLETE, PREDICT = "/v1/completions", "/v1/tasks/cls/predict"
ROW = {"rows": [{"text": "A fine day."}]}
TEXT = {"model": "served", "prompt": "Ada has", "max_tokens": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running([tuned_run()], Limits(body_bytes=300_000, body_s=1.0), hosts=["127.0.0.1", "localhost"]) as found:
        yield found


BAD: dict[str, tuple[str, Any, int, str]] = {
    "unknown model": (COMPLETE, {**TEXT, "model": "gpt-9"}, 404, "models: served"),
    "unknown task": ("/v1/tasks/poetry/predict", ROW, 404, "tasks: cls, summ, gen"),
    "unknown arm": (PREDICT, {**ROW, "arm": "x"}, 404, "arms: served, served 0-shot, served 4-shot"),
    "unknown route": ("/v1/chat/completions", TEXT, 404, "Not Found"),
    "missing field": (PREDICT, {"rows": [{}]}, 400, "field 'text' is missing"),
    "empty field": (PREDICT, {"rows": [{"text": " "}]}, 400, "field 'text' is empty"),
    "extra field": (PREDICT, {"rows": [{"text": "A", "title": "B"}]}, 400, "unknown field 'title'"),
    "the target": (PREDICT, {"rows": [{"text": "A", "label": "B"}]}, 400, "unknown field 'label'"),
    "list for a text": (PREDICT, {"rows": [{"text": ["A", "B"]}]}, 400, "text"),
    "no rows": (PREDICT, {"rows": []}, 400, "rows"),
    "100 rows": (PREDICT, {"rows": ROW["rows"] * 100}, 400, "rows"),
    "stream of two": (PREDICT, {"rows": ROW["rows"] * 2, "stream": True}, 400, "stream"),
    "extra name": (PREDICT, {**ROW, "beams": 3}, 400, "beams"),
    "prompt longer than the window": (COMPLETE, {**TEXT, "prompt": "long " * 3000}, 400, "window"),
    "row longer than the window": (PREDICT, {**ROW, "max_new_tokens": 4000}, 400, "window"),
    "summary longer than the window": (
        "/v1/tasks/summ/predict",
        {"rows": [{"document": "A cat."}], "arm": "served 0-shot", "max_new_tokens": 4000},
        400,
        "window",
    ),
    "not JSON": (COMPLETE, b"{", 400, "not valid JSON"),
    "no body": (COMPLETE, b"", 400, ""),
    "a list": (COMPLETE, b"[]", 400, ""),
    "a thousand brackets": (COMPLETE, b"[" * 200_000, 400, ""),
    "wrong type": (COMPLETE, {**TEXT, "max_tokens": "five"}, 400, "max_tokens"),
    "prompt of ids": (COMPLETE, {**TEXT, "prompt": [1, 2]}, 400, "prompt"),
    "null prompt": (COMPLETE, {**TEXT, "prompt": None}, 400, "prompt"),
    "body of 10 MB": (COMPLETE, {**TEXT, "prompt": "x" * 10_000_000}, 413, "300,000 bytes"),
    "invalid UTF-8": (COMPLETE, b'{"model": "served", "prompt": "\xff"}', 400, ""),
    "half of a surrogate pair": (COMPLETE, b'{"model": "served", "prompt": "\\ud800"}', 400, "prompt"),
    "half of one in a name": (PREDICT, b'{"rows": [{"\\udc00": "A", "text": "B"}]}', 400, ""),
    "half of one in the model": (COMPLETE, b'{"model": "\\ud800", "prompt": "A"}', 404, "no model '?'"),
    "1,000 stops": (COMPLETE, {**TEXT, "stop": ["a"] * 1000}, 400, "stop"),
    "empty stop": (COMPLETE, {**TEXT, "stop": ""}, 400, "stop"),
    "negative temperature": (COMPLETE, {**TEXT, "temperature": -1}, 400, "temperature"),
    "tiny temperature": (PREDICT, {**ROW, "temperature": 1e-9}, 400, "temperature"),
    "NaN": (COMPLETE, b'{"model": "served", "prompt": "A", "temperature": NaN}', 400, "temperature"),
    "huge number": (COMPLETE, b'{"model": "served", "prompt": "A", "seed": 1' + b"0" * 400 + b"}", 400, "seed"),
    "too many digits": (COMPLETE, b'{"model": "served", "prompt": "A", "seed": 1' + b"0" * 9000 + b"}", 400, ""),
    "negative seed": (PREDICT, {**ROW, "seed": -1}, 400, "seed"),
    "top_p of 2": (PREDICT, {**ROW, "top_p": 2}, 400, "top_p"),
    "many texts": (COMPLETE, {**TEXT, "prompt": ["a"] * 20, "n": 20}, 400, "400 texts"),
    "echo": (COMPLETE, {**TEXT, "echo": True}, 400, "echo"),
    "a path as the name": ("/v1/tasks/..%2F..%2Fetc%2Fpasswd/predict", ROW, 404, ""),
}


def is_alive(server: Server) -> bool:
    return bool(server.predict("cls", *ROW["rows"])["predictions"][0]["prediction"])


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error_in_openais_shape(server: Server, case: str) -> None:
    path, body, status, part = BAD[case]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found, answer, headers = server.request("POST", path, raw)
    assert found == status, answer
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert part in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 600
    for secret in (str(ROOT), str(tuned_run()), "Traceback", ".py", "/tmp"):
        assert secret not in json.dumps([answer, headers])
    assert is_alive(server)


def test_other_content_and_methods_are_errors(server: Server) -> None:
    body = json.dumps(TEXT).encode()
    status, answer, _ = server.request("POST", COMPLETE, body, {"Content-Type": "text/plain"})
    assert status == 400, "a form of another site can send this without asking"
    assert answer["error"]["type"] == "invalid_request_error"
    assert server.request("GET", COMPLETE)[0] == 405
    assert server.request("GET", "/v1/models/none")[0] == 404


def test_a_web_page_cannot_reach_the_server_by_a_name_of_its_own(server: Server) -> None:
    assert server.request("GET", "/v1/models", headers={"Host": f"localhost:{server.port}"})[0] == 200
    status, answer, _ = server.request("GET", "/v1/models", headers={"Host": "evil.example"})
    assert (status, answer["error"]["code"]) == (421, "wrong_host")


def test_health_metrics_and_the_openapi_page(server: Server) -> None:
    assert server.get("/healthz") == {"status": "ok"}
    server.predict("cls", *ROW["rows"])
    text = server.get("/metrics")
    assert 'multitask_requests_total{method="POST",route="/v1/tasks/{task}/predict",status="200"}' in text
    assert "multitask_rows_running 0.0" in text
    assert {COMPLETE, "/v1/tasks", "/v1/models"} <= set(server.get("/openapi.json")["paths"])
    page = server.get("/docs")
    addresses = re.findall(r"(?:src|href)=\"([^\"]+)", page)
    assert len(addresses) == 3, "script, style, icon"
    assert all(server.request("GET", address)[0] == 200 for address in addresses if not address.endswith(".png"))
    assert "//" not in "".join(addresses), "they are on this server"


def test_the_pages_are_served(server: Server) -> None:
    for path in ("/", "/runs", "/page/page.js", "/page/page.css"):
        assert server.request("GET", path)[0] == 200
    assert server.request("GET", "/page/..%2Fapp.py")[0] == 404
    assert server.request("GET", "/page/../app.py")[0] == 404


def raw_answer(port: int, parts: list[bytes], pause: float) -> str:
    """What a client is answered that sends one part after the other with pauses."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        found = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except OSError:
            pass
        while data := connection.recv(65536):
            found += data
        return found.decode()


def test_a_client_that_sends_slowly_is_answered_408(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 900\r\n\r\n"
    found = raw_answer(server.port, [head, *[b" "] * 8], 0.2)
    assert found.startswith("HTTP/1.1 408")
    assert json.loads(found.partition("\r\n\r\n")[2])["error"]["code"] == "body_timeout"
    monkeypatch.setattr(middleware, "HEADER_S", 0.5)
    found = raw_answer(server.port, [bytes([byte]) for byte in head[:5]], 0.2)
    assert found.startswith("HTTP/1.1 408")
    assert json.loads(found.partition("\r\n\r\n")[2])["error"]["code"] == "header_timeout"
    assert is_alive(server)


def test_a_key_is_required_of_data_alone() -> None:
    with running([tuned_run()], api_key="0123456789abcdef") as server:
        for headers in (
            {},
            {"Authorization": "Bearer 0123456789abcdeX"},
            {"Authorization": "Bearer 열쇠".encode().decode("latin-1")},
        ):
            for path in ("/v1/models", "/metrics", "/v1/tasks"):
                status, answer, sent = server.request("GET", path, headers=headers)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                assert "0123456789" not in json.dumps([answer, sent])
        assert server.get("/healthz") == {"status": "ok"}
        assert server.request("GET", "/v1/models", headers={"Authorization": "bearer 0123456789abcdef"})[0] == 200


# ---------------------------------------------------------------- a model that waits for the test


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Decoding steps wait for this."""
    from multitask.serving.batch import ContinuousBatch

    event, step = threading.Event(), ContinuousBatch.step

    def waiting(self: ContinuousBatch) -> None:
        event.wait()
        step(self)

    monkeypatch.setattr(ContinuousBatch, "step", waiting)
    yield event
    event.set()


@contextmanager
def set_at_end(event: threading.Event) -> Iterator[None]:
    """Before the server is stopped, which waits for what is running."""
    try:
        yield
    finally:
        event.set()


def until(is_true: Callable[[], object]) -> None:
    ends = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_full_queue_is_429_and_what_was_accepted_is_answered(held: threading.Event) -> None:
    with (
        running([tuned_run()], max_waiting_rows=4, max_rows=2) as server,
        ThreadPoolExecutor(8) as pool,
        set_at_end(held),
    ):
        accepted = [pool.submit(server.predict, "cls", *ROW["rows"] * 2) for _ in range(2)]
        until(lambda: server.engine.num_waiting == 4)
        status, answer, headers = server.request("POST", PREDICT, json.dumps(ROW).encode())
        assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")
        held.set()
        assert [len(call.result()["predictions"]) for call in accepted] == [2, 2]
        assert is_alive(server)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_frees_its_rows(held: threading.Event, is_stream: bool) -> None:
    with running([tuned_run()]) as server, set_at_end(held):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps({**TEXT, "max_tokens": 400, "temperature": 9, "n": 8, "stream": is_stream})
        connection.request("POST", COMPLETE, body, {"Content-Type": "application/json"})
        until(lambda: server.engine.num_waiting == 8)
        until(lambda: [*server.engine._queue, *server.engine._active])  # not between the two
        (job,) = [*server.engine._queue, *server.engine._active]
        connection.close()
        until(job.result.cancelled)
        held.set()
        until(lambda: server.engine.num_waiting + server.engine.num_running == 0)
        assert all(len(row.new) < 400 for row in job.rows)
        assert is_alive(server)


def test_a_request_that_takes_too_long_is_408_and_frees_its_rows(held: threading.Event) -> None:
    with running([tuned_run()], Limits(request_s=0.5)) as server, set_at_end(held):
        assert server.predict("cls", *ROW["rows"], status=408)["error"]["code"] == "timeout"
        assert server.post(COMPLETE, {**TEXT, "stream": True}, 408)["error"]["code"] == "timeout"
        held.set()
        until(lambda: server.engine.num_waiting + server.engine.num_running == 0)
        assert is_alive(server)


def test_an_error_of_the_model_is_500_without_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    from multitask.serving.batch import ContinuousBatch

    def broken(*_: Any) -> None:
        raise RuntimeError("/secret/path is broken")

    with running([tuned_run()]) as server:
        with monkeypatch.context() as patch:
            patch.setattr(ContinuousBatch, "_pick", broken)
            answer = server.post(COMPLETE, TEXT, 500)
            assert answer["error"] == {
                "message": "internal error",
                "type": "server_error",
                "param": None,
                "code": "internal_error",
            }
            assert "secret" not in json.dumps(server.post(COMPLETE, {**TEXT, "stream": True}, 500))
        assert is_alive(server)
        assert server.engine.num_running == 0


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--api-key", "short"], "at least 16"),
        (["--max-waiting-rows", "63"], "max_waiting_rows is 63, expected at least 64"),
        (["--host", "no such host", "--api-key", "0123456789abcdef"], "cannot listen there"),
        (["--host", "192.0.2.1", "--api-key", "0123456789abcdef"], "cannot listen there"),
    ],
)
def test_what_the_command_does_not_accept(tmp_path: Path, arguments: list[str], part: str) -> None:
    folder = untrained(tmp_path / "model", "cls")
    result = CliRunner().invoke(main, ["serve", str(folder), "--port", "0", *arguments])
    assert result.exit_code == 2
    assert part in result.stderr


def test_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("multitask.serving", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(main, ["serve", str(untrained(tmp_path / "model", "cls")), "--port", "0"])
    assert result.exit_code == 2
    assert "pip install 'multitask[serve]'" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGTERM cannot be handled there")
def test_sigterm_finishes_what_is_running() -> None:
    command = [sys.executable, "run.py", "serve", str(tuned_run()), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = next(line.strip() for line in process.stdout if line.startswith("http://"))
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        body = {**TEXT, "max_tokens": 300, "temperature": 9, "seed": 1, "stream": True}
        connection.request("POST", COMPLETE, json.dumps(body), {"Content-Type": "application/json"})
        with urlopen(f"{address}/v1/runs") as page:
            assert "runs" in json.load(page)
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
