"""Device and precision, and the memory that was used.

`choose_precision("auto", torch.device("cpu"))` -> "bf16" on a CPU with bf16 matrix units, where a product is four times
faster than in fp32; "fp32" on one without, where it is slower. A few milliseconds of measurement decide.
"""

import ctypes
import gc
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from multitask.errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_NUM_KERNELS = "128"
_TRIM_EVERY_S = 10.0
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def choose_device(name: str) -> torch.device:
    """The named device; `auto`: the accelerator if there is one. Raises InputError when it is not available.

    oneDNN, which computes products on a CPU, is told before its first one to keep 128 compiled products in place of
    1,024: each takes about 0.6 MB, and packed rows bring new shapes in every pass.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _NUM_KERNELS)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[name]:
        raise InputError(
            f"--device {name}: not available here; available: {', '.join(k for k in available if available[k])}"
        )
    return torch.device(name)


def choose_precision(name: str, device: torch.device, width: int = 256) -> Precision:
    """`auto`: bf16 where it is fast, else fp16 on a GPU (with loss scaling), else fp32.

    width: of the model; on a CPU its largest product is timed, (1024, width) x (width, 4 width).
    """
    if name != "auto":
        return name  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu" and _bf16_gain(width) > 1.5:
        return "bf16"
    return "fp32"


def _bf16_gain(width: int) -> float:
    """The speedup of a bf16 product over an fp32 one on this CPU."""

    def best_s(dtype: torch.dtype) -> float:
        left, right = torch.ones(1024, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            _ = left @ right
            times.append(time.perf_counter() - start)
        return min(times[2:])

    return best_s(torch.float32) / best_s(torch.bfloat16)


def gpu_name(device: str) -> str | None:
    """Name of the GPU that a setting `device` stands for; None for a CPU."""
    return torch.cuda.get_device_name() if choose_device(device).type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class HeapTrimmer:
    """Gives the system what a process has freed of its heap (glibc), at most every ten seconds; nothing on a GPU.

    Packed rows make tensors of other sizes in every pass. These leave gaps, and without it the heap grows: from 1.3 to
    2.7 GB in 47 steps of a 17.7 M parameter GPT-2. It costs 0.1 s of those ten.
    """

    def __init__(self, device: torch.device) -> None:
        self._trim = _TRIM if device.type == "cpu" else None
        self._next_s = 0.0

    def __call__(self) -> None:
        """To be called after a step, when the tensors of its passes are freed."""
        if self._trim is not None and time.monotonic() >= self._next_s:
            self._trim(0)
            self._next_s = time.monotonic() + _TRIM_EVERY_S


def reset_peak(device: torch.device) -> None:
    """Resets the peak of `peak_memory_bytes`; systems other than Linux cannot reset that of the process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        _CLEAR.write_text("5", "utf-8")  # proc(5): resets the peak resident set


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since the start, or since `reset_peak`: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # unlike getrusage's, this peak can be reset
        peaks = [line.split()[1] for line in _STATUS.read_text("utf-8").splitlines() if line.startswith("VmHWM:")]
        if peaks:
            return int(peaks[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def used_memory_bytes(device: torch.device) -> int:
    """Memory in use now: of the GPU by this process, or of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of this machine within the limit of a container (cgroup v2)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no such file, or `max`
        free = min(free, int(_LIMIT.read_text("utf-8")) - int(_USED.read_text("utf-8")))
    return free


def logit_rows(vocab_size: int, device: torch.device) -> int:
    """How many rows of float32 logits are in memory at a time: 32 MiB of them, 512 MiB on a GPU, and at least 64 rows.

    Fewer rows make slow products.
    """
    return max(64, (1 << 27 if device.type == "cuda" else 1 << 23) // vocab_size)


def widest_float(device: torch.device) -> torch.dtype:
    """float64 wherever it exists."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_double(values: Tensor) -> Tensor:
    """The values in float64; on the CPU if they are on a device without it (MPS)."""
    return (values if values.device.type == "cuda" else values.cpu()).double()
