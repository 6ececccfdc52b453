"""Inputs and clients that affect other clients, the counters, or the way an error is shown."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import uvicorn
from click.testing import CliRunner
from helpers import untrained
from serving_helpers import Server, running, tuned_run
from uvicorn.server import ServerState

from multitask.cli.main import main
from multitask.serving import middleware
from multitask.serving.batch import ContinuousBatch, DecodingRow
from multitask.serving.engine import Engine, Job
from multitask.serving.middleware import TimedProtocol

COMPLETE, PREDICT = "/v1/completions", "/v1/tasks/cls/predict"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running([tuned_run()]) as found:
        yield found


def raw_answer(port: int, *parts: bytes, pause: float = 0.0) -> tuple[str, bytes]:
    """First line and body of the last answer on a connection that sends these parts with pauses."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        found = b""
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        while data := connection.recv(65536):
            found += data
    head, _, body = found[found.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0].decode(), body


def test_a_repetition_penalty_that_overflows_is_an_error_of_its_own_request(server: Server) -> None:
    for penalty in (1e-300, 1e-40, 0.001):
        found = server.predict("cls", {"text": "A"}, repetition_penalty=penalty, status=400)
        assert found["error"]["param"] == "repetition_penalty"


@pytest.mark.parametrize("body", [{"rows": [{"k" * 100_000: 5}]}, {"rows": [{"text": "A"}], "z" * 100_000: 1}])
def test_an_error_does_not_repeat_a_long_name(server: Server, body: object) -> None:
    assert len(json.dumps(server.post(PREDICT, body, 400))) < 2000


def test_an_error_of_the_json_names_no_parameter(server: Server) -> None:
    status, answer, _ = server.request("POST", COMPLETE, b'{"model": }')
    assert (status, answer["error"]["param"]) == (400, None)


def test_too_many_repetitions_are_an_error(server: Server) -> None:
    found = server.predict("cls", {"text": ["a"] * 129}, status=400)
    assert "at most 128" in found["error"]["message"]
    found = server.predict("cls", *[{"text": ["a"] * 33}] * 64, status=400)
    assert "2,048" in found["error"]["message"]


def test_a_language_is_a_text_in_any_spelling_or_an_error(server: Server) -> None:
    for arm in ("served", "served 0-shot"):
        for wrong in ("xx", "no language", ["ko"]):
            found = server.predict("cls", {"text": "A", "language": wrong}, arm=arm, status=400)
            assert "language" in found["error"]["message"]
        plain, *others = (
            server.predict("cls", {"text": "A", "language": name}, arm=arm)["predictions"][0]
            for name in ("ko", "korean", "ko-KR")
        )
        for other in others:
            assert (other["prompt"], other["classes"]) == (plain["prompt"], plain["classes"])
        assert server.predict("cls", {"text": "A", "language": ""}, arm=arm)["predictions"]


def test_a_request_cannot_add_methods_to_the_metrics(server: Server) -> None:
    for number in range(3):
        assert server.request(f"METHOD{number}", "/healthz")[0] == 405
    text = server.get("/metrics")
    assert "METHOD" not in text
    assert 'method="other",route="/healthz",status="405"' in text


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"BLAH\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_answered_in_the_same_shape(server: Server, request_bytes: bytes) -> None:
    status, body = raw_answer(server.port, request_bytes)
    assert status == "HTTP/1.1 400 Bad Request"
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_slow_headers_of_a_second_request_are_408(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "HEADER_S", 0.4)
    first = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    status, body = raw_answer(server.port, first, first[:5], pause=0.2)
    assert status == "HTTP/1.1 408 Request Timeout"
    assert json.loads(body)["error"]["code"] == "header_timeout"


def test_rows_that_nobody_waits_for_leave_the_queue(server: Server) -> None:
    batch = ContinuousBatch(server.served.models["served"].model, 1, 64)
    batch.waiting.append(DecodingRow([1], 5, frozenset()))
    batch.waiting.extend(DecodingRow([1], 5, frozenset(), is_cancelled=lambda: True) for _ in range(3))
    batch.step()
    assert (len(batch.rows), len(batch.waiting)) == (1, 0)


def test_a_client_that_does_not_receive_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "SEND_S", 0.02)
    config = uvicorn.Config(lambda *_: None, log_level="critical")
    config.load()

    async def aborts(is_resumed: bool) -> int:
        protocol, transport = TimedProtocol(config, ServerState(), {}), Mock(asyncio.Transport)
        transport.get_extra_info.return_value = None
        protocol.connection_made(transport)
        protocol.pause_writing()
        if is_resumed:
            protocol.resume_writing()
        await asyncio.sleep(0.1)
        protocol.connection_lost(None)
        return transport.abort.call_count

    assert asyncio.run(aborts(False)) == 1
    assert asyncio.run(aborts(True)) == 0


def test_rows_are_freed_when_nobody_waits_and_nothing_else_runs() -> None:
    with running([tuned_run()], max_waiting_rows=4, max_rows=1) as server:
        engine = server.engine

        def encode() -> list[DecodingRow]:
            rows = [DecodingRow([1], 400, frozenset()) for _ in range(4)]
            rows[0].on_token = lambda _: job.result.cancel()
            return rows

        job: Job[int] = Job("served", encode, len, 4)
        engine.submit(job)
        ends = time.monotonic() + 10
        while engine.num_waiting + engine.num_running and time.monotonic() < ends:
            time.sleep(0.01)
        assert (engine.num_waiting, engine.num_running) == (0, 0)
        assert server.predict("cls", *[{"text": "A"}] * 4)["predictions"], "the queue is not full for ever"


def test_a_row_that_is_being_encoded_is_counted_once(server: Server) -> None:
    seen: list[int] = []
    engine: Engine = server.engine
    row = DecodingRow([1], 1, frozenset())

    def last() -> list[DecodingRow]:
        seen.append(engine.num_waiting)
        return []

    with engine._condition:  # both are taken from the queue together
        jobs = [Job("served", lambda: [row], len, 1), Job("served", last, len, 1)]
        engine._queue.extend(jobs)
        engine._condition.notify()
    assert [job.result.result(30) for job in jobs] == [1, 0]
    assert seen == [2]


def test_the_openapi_page_shows_the_errors_that_there_are(server: Server) -> None:
    schema = server.get("/openapi.json")
    for path in (COMPLETE, "/v1/tasks/{task}/predict"):
        responses = schema["paths"][path]["post"]["responses"]
        assert "422" not in responses
        assert responses["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
        assert "text/event-stream" in responses["200"]["content"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]


@pytest.mark.parametrize("seconds", ["inf", "nan"])
def test_a_time_without_end_is_an_error(tmp_path: Path, seconds: str) -> None:
    folder = untrained(tmp_path / "model", "cls")
    result = CliRunner().invoke(main, ["serve", str(folder), "--port", "0", "--timeout", seconds])
    assert result.exit_code == 2
    assert "timeout" in result.stderr


def test_a_second_server_on_a_port_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are bound before one of them listens, while models are loaded."""
    from multitask.serving import predictions

    other = socket.socket()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.bind(("127.0.0.1", 0))
    monkeypatch.setattr(predictions, "task_arms", lambda *_: other.listen() or {})
    folder = untrained(tmp_path / "model", "cls")
    with other:
        result = CliRunner().invoke(main, ["serve", str(folder), "--port", str(other.getsockname()[1])])
    assert result.exit_code == 2
    assert "cannot listen there" in result.stderr


@pytest.mark.parametrize("key", ["0123456789abcdef ", " 0123456789abcdef", "0123456789abcdef\n"])
def test_a_key_that_no_header_can_hold_is_an_error(tmp_path: Path, key: str) -> None:
    folder = untrained(tmp_path / "model", "cls")
    result = CliRunner().invoke(main, ["serve", str(folder), "--port", "0", "--api-key", key, "--timeout", "inf"])
    assert result.exit_code == 2
    assert "API key" in result.stderr
