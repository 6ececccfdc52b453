"""What the benchmarks share: what they ran on, and the memory of a process."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Largest resident set of this program.

    Linux hands getrusage's figure on to every program that a process starts, so there the program's own is read.
    """
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Clock:
    """Seconds of wall clock and of CPU since it was made, and what a process prints at its end."""

    def __init__(self) -> None:
        self.start_s, self.start_cpu_s = time.perf_counter(), time.process_time()

    def result(self, unit: str, num: int, **more: int) -> dict[str, float]:
        """Speed and memory of `num` tokens or rows; `more` is handed on."""
        elapsed_s, cpu_s = time.perf_counter() - self.start_s, time.process_time() - self.start_cpu_s
        return {
            f"{unit}_per_s": round(num / elapsed_s, 3),
            f"{unit}_per_cpu_s": round(num / cpu_s, 3),
            "elapsed_s": round(elapsed_s, 2),
            f"num_{unit}": num,
            "peak_bytes": peak_bytes(),
            **more,
        }


def processor() -> str:
    """Name of the CPU and its bf16 units."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text("utf-8").splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    units = [flag for flag in values.get("flags", "").split() if flag in ("amx_bf16", "avx512_bf16", "avx512f")]
    return f"{values.get('model name', platform.machine())} ({', '.join(units) or 'no AVX-512'})"


def commit() -> str:
    """The commit that runs, as the end of a sentence; nothing outside a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""


def run_arm(
    script: str, arm: str, work: Path, options: Mapping[str, str] = {}, variables: Mapping[str, str] = {}
) -> dict[str, Any]:
    """One arm of a benchmark in its own process; raises RuntimeError with the end of its output when it fails.

    options: further ones of the script. variables: of the environment.
    """
    given = {"--arm": arm, "--work": str(work), **options}
    command = [sys.executable, script, *(part for pair in given.items() for part in pair)]
    fixed = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "datasets")}
    environment = {**fixed, **variables}
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment, check=False
        )
        errors.seek(0)
        if done.returncode:
            raise RuntimeError(f"{arm}: exit code {done.returncode}\n{errors.read()[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def read_lines(path: Path) -> list[str]:
    """The lines of a text file."""
    return path.read_text("utf-8").splitlines()


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes a text file."""
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
