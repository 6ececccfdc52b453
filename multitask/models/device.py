"""Where and in which precision to compute, measured where it cannot be known.

On a CPU with bf16 matrix units a product is four times faster in bf16, on one without it is slower: a few milliseconds
of measuring tell.
"""

import gc
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


def choose_device(name: str) -> torch.device:
    """The named device; `auto`: the accelerator if there is one. Raises InputError when it is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there[name]:
        raise InputError(f"--device {name}: not available here; available: {', '.join(k for k in there if there[k])}")
    return torch.device(name)


def choose_precision(name: str, device: torch.device, width: int = 256) -> Precision:
    """`auto`: bf16 where it is fast, else fp16 on a GPU (with loss scaling), else fp32.

    width: the model's; on a CPU its largest kind of product is timed, (1024, width) x (width, 4 width).
    """
    if name != "auto":
        return name  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu" and _bf16_gain(width) > 1.5:
        return "bf16"
    return "fp32"


def _bf16_gain(width: int) -> float:
    """How many times faster a bf16 product is on this CPU than an fp32 one."""

    def best_s(dtype: torch.dtype) -> float:
        left, right = torch.ones(1024, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            _ = left @ right
            times.append(time.perf_counter() - start)
        return min(times[2:])

    return best_s(torch.float32) / best_s(torch.bfloat16)


def forget_peak(device: torch.device) -> None:
    """From here on `peak_memory_bytes` is of what follows; where the system cannot forget (macOS), of everything."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        _CLEAR.write_text("5", "utf-8")  # proc(5): resets the peak resident set


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held since the beginning, or since `forget_peak`: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # unlike getrusage's, this peak can be forgotten
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


def to_double(values: Tensor) -> Tensor:
    """In float64. Only CUDA and the CPU have it: from any other device (MPS), on the CPU."""
    return (values if values.device.type == "cuda" else values.cpu()).double()
