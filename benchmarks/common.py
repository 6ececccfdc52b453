"""What the benchmarks share: what they ran on, and the memory of a process."""

import platform
import resource
import subprocess
import sys
from pathlib import Path


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
