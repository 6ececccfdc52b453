"""Load of `multitask serve`: concurrent clients beside requests one after the other, errors, memory.

`python benchmarks/serve.py runs/demo --clients 64 --minutes 10` starts the server and writes benchmarks/serve.md.
"""

import argparse
import asyncio
import http.client
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from common import commit, processor

ROOT = Path(__file__).parent.parent


@dataclass
class Load:
    """What the clients measured."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def rows_per_s(self) -> float:
        """Rows answered with 200."""
        return self.statuses[200] / self.elapsed_s

    def percentile(self, fraction: float) -> float:
        """Milliseconds that this fraction of the requests took at most."""
        return 1000 * sorted(self.seconds)[int(fraction * (len(self.seconds) - 1))]


def rows_of(port: int) -> list[tuple[str, dict[str, Any]]]:
    """Example rows of all tasks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/tasks")
    tasks = json.loads(connection.getresponse().read())["tasks"]
    connection.close()
    return [(task["name"], row) for task in tasks for row in task["examples"]]


async def client(port: int, requests: Sequence[bytes], number: int, ends: float, found: Load) -> None:
    """Sends one row after the other on a connection of its own; little work, as it shares the server's processor."""
    reader = writer = None
    while time.perf_counter() < ends:
        began, status = time.perf_counter(), 0
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert reader is not None
            writer.write(requests[number % len(requests)])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(None, 1)[0]))
            status = int(head.split(None, 2)[1])
        except (OSError, EOFError, ValueError):
            writer = None
        found.statuses[status] += 1
        found.seconds.append(time.perf_counter() - began)
        number += 1
    if writer is not None:
        writer.close()


def load(port: int, num_clients: int, duration_s: float) -> Load:
    """Clients that each send the example rows in turn, from another one on."""
    requests = []
    for task, row in rows_of(port):
        body = json.dumps({"rows": [row]}).encode()
        head = f"POST /v1/tasks/{task}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        requests.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    found, began = Load(), time.perf_counter()

    async def all_clients() -> None:
        ends = began + duration_s
        await asyncio.gather(*(client(port, requests, number, ends, found) for number in range(num_clients)))

    asyncio.run(all_clients())
    found.elapsed_s = time.perf_counter() - began
    return found


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", help="folder of a run, for instance runs/demo")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--alone-s", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "serve.md")
    options = parser.parse_args()
    command = [sys.executable, "run.py", "serve", options.run, "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(next(line for line in server.stdout if line.startswith("http://")).rpartition(":")[2])
        num_rows = len(rows_of(port))
        load(port, options.clients, 10.0)  # warm-up
        process = psutil.Process(server.pid)
        alone = load(port, 1, options.alone_s)
        memory, parts = [process.memory_info().rss], []
        for _ in range(10):
            parts.append(load(port, options.clients, options.minutes * 6))
            memory.append(process.memory_info().rss)
    finally:
        server.terminate()
        server.wait()
    together = Load(sum((part.statuses for part in parts), Counter()), [s for part in parts for s in part.seconds])
    together.elapsed_s = sum(part.elapsed_s for part in parts)
    ratio = together.rows_per_s / alone.rows_per_s
    lines = [
        "# Serving under load",
        "",
        f"Throughput with {options.clients} clients: **{ratio:.1f} times** that of one.",
        "",
        "| clients | rows/s | median ms | 99 % ms | requests | other than 200 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, one in ((1, alone), (options.clients, together)):
        bad = sum(one.statuses.values()) - one.statuses[200]
        lines.append(
            f"| {number} | {one.rows_per_s:.1f} | {one.percentile(0.5):.0f} | {one.percentile(0.99):.0f} | "
            f"{sum(one.statuses.values()):,} | {bad} |"
        )
    shown = ", ".join(f"{size / 2**20:.0f}" for size in memory)
    cost = json.loads((Path(options.run) / "results.json").read_text("utf-8"))["cost"]
    lines += [
        "",
        f"- Memory of the server in MiB, at the start and after each tenth: {shown}.",
        f"- One row in a request, a request after the other on one connection for each client: the {num_rows} example "
        f"rows of all tasks in turn, greedy. {options.alone_s:g} s with one client, then {options.minutes:g} minutes "
        f"with {options.clients}; 10 s before them are not counted.",
        f"- Model: the run `{Path(options.run).name}`, {cost['total_parameters']:,} parameters. On loopback; clients "
        "and server share the machine.",
        f"- Hardware: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}. "
        f"Python {platform.python_version()}, torch {torch.__version__}{commit()}.",
        f"- Command: `python benchmarks/serve.py {Path(options.run)} --clients {options.clients} "
        f"--minutes {options.minutes:g}`",
    ]
    options.out.write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
