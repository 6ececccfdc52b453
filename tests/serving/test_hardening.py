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


def test_rows_that_nobody_waits_for_leave_the_queue(server: Server) -> None:
    batch = ContinuousBatch(server.served.models["served"].model, 1, 64)
    batch.waiting.append(DecodingRow([1], 5, frozenset()))
    batch.waiting.extend(DecodingRow([1], 5, frozenset(), is_cancelled=lambda: True) for _ in range(3))
    batch.step()
    assert (len(batch.rows), len(batch.waiting)) == (1, 0)


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
