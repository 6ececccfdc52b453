"""What the benchmarks share: what they ran on, and the memory of a process."""

import json
import os
import platform
import resource
import statistics
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


def matrix_flops(is_bf16: bool, size: int = 2048) -> float:
    """FLOP/s of a product of random square matrices on this CPU, median of ten."""
    import torch

    left, right = (torch.randn(size, size).to(torch.bfloat16 if is_bf16 else torch.float32) for _ in range(2))
    times = []
    for _ in range(13):
        start = time.perf_counter()
        _ = left @ right
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[3:])


def flops(model: Any, batch: Any, is_lora: bool) -> float:
    """FLOPs that one step needs: products forward, gradients of activations, and of weights where they are trained."""
    from multitask.models.lora import plain_model

    base = plain_model(model)
    config = base.config
    outer = ("embed", "wte", "wpe", "lm_head")
    kept = {n: p.numel() for n, p in base.named_parameters() if p.ndim == 2 and not any(part in n for part in outer)}
    adapters = sum(size for n, size in kept.items() if "lora" in n)
    matrices = sum(kept.values()) - adapters
    head = config.vocab_size * config.hidden_size
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    assert batch.segment_lengths is not None
    pairs = float((batch.segment_lengths.astype("f8") ** 2).sum()) / 2
    attended = 4 * pairs * width * config.num_hidden_layers * 3
    products = matrices * batch.num_tokens + head * len(batch.targets)
    return float((4 if is_lora else 6) * products + 6 * adapters * batch.num_tokens + attended)
