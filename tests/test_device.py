import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from multitask import device
from multitask.errors import InputError
from multitask.models.support import scoring_tokens, training_tokens


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_available_accelerator(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device.choose_device("auto").type == expected
    assert device.choose_device("cpu").type == "cpu"


def test_a_device_that_is_not_available_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: not available here; available: cpu"):
        device.choose_device("cuda")


@pytest.mark.parametrize(
    ("kind", "capability", "gain", "expected"),
    [
        ("cuda", (8, 0), None, "bf16"),
        ("cuda", (7, 5), None, "fp16"),
        ("mps", None, None, "fp32"),
        ("cpu", None, 3.0, "bf16"),
        ("cpu", None, 0.4, "fp32"),
    ],
)
def test_auto_precision_is_bf16_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, kind: str, capability: Any, gain: Any, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(device, "_bf16_gain", lambda width: gain)
    assert device.choose_precision("auto", torch.device(kind)) == expected


def test_a_named_precision_is_used_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_bf16_gain", lambda width: pytest.fail("measured"))
    assert device.choose_precision("fp16", torch.device("cpu")) == "fp16"


def test_the_gain_is_a_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 products in each precision, those of fp32 take 3 s, of bf16 1 s; the first two are not counted."""
    durations = [9.0, 9.0, *[3.0] * 6, 0.1, 0.1, *[1.0] * 6]
    ticks = iter([tick for number, took in enumerate(durations) for tick in (100.0 * number, 100.0 * number + took)])
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(ticks))
    assert device._bf16_gain(32) == pytest.approx(3)


def test_without_the_modules_of_unix() -> None:
    code = "import os, sys; sys.modules['resource'] = None; del os.getloadavg\n"
    code += "from multitask.cli.main import main\nimport multitask.device\nmain(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Commands:" in done.stdout) == (0, True), done.stderr


def test_peak_memory_where_there_is_no_resource_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows: no `resource`, no `/proc`; psutil has the peak."""
    memory = type("Memory", (), {"peak_wset": 123 << 20})
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: memory)
    monkeypatch.setattr(device, "_STATUS", tmp_path / "status")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert device.peak_memory_bytes(torch.device("cpu")) == 123 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="compared with Linux's own count")
def test_peak_memory_is_in_bytes() -> None:
    peak = device.peak_memory_bytes(torch.device("cpu"))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    assert peak == pytest.approx(int(found[1]) * 1024, rel=0.1)


@pytest.mark.skipif(not device._CLEAR.exists(), reason="only Linux can reset the peak")
def test_a_peak_can_be_reset() -> None:
    cpu = torch.device("cpu")
    large = torch.ones(60 << 20)  # 240 MiB
    with_it = device.peak_memory_bytes(cpu)
    del large
    assert device.peak_memory_bytes(cpu) > with_it - (16 << 20)  # Linux counts pages roughly
    device.reset_peak(cpu)
    assert device.peak_memory_bytes(cpu) < with_it - (200 << 20)


@pytest.mark.parametrize(
    ("free_gib", "total_gib", "layers", "width", "tokens"),
    [
        (138, 140, 12, 64, 140 * 512),  # a small model: by the card
        (30, 80, 40, 128, 30 * 2**30 // 4 // (2 * 40 * 12 * 128 * 4)),  # a large one: by its keys and values
        (2, 16, 40, 128, 8192),
    ],
)
def test_tokens_of_a_scoring_pass_fit_the_card(
    monkeypatch: pytest.MonkeyPatch, free_gib: int, total_gib: int, layers: int, width: int, tokens: int
) -> None:
    shape = {"num_attention_heads": 12, "num_hidden_layers": layers, "head_dim": width, "hidden_size": 12 * width}
    text = SimpleNamespace(**shape)
    weight = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 4)
    model = SimpleNamespace(
        parameters=lambda: iter([weight]), config=SimpleNamespace(get_text_config=lambda: text), get_base_model=None
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib * 2**30, total_gib * 2**30))
    assert scoring_tokens(model) == tokens
    weight.device = torch.device("cpu")
    assert scoring_tokens(model) == 8192


@pytest.mark.parametrize(
    ("gib", "checkpoints", "batch_tokens", "tokens"),
    [
        (139, False, 10**6, 65536),
        (139, False, 16384, 16384),
        (14, False, 10**6, 8192),
        (14, True, 10**6, 16384),
        (1, False, 10**6, 1024),
    ],
)
def test_tokens_of_a_training_pass_follow_the_free_memory_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gib: int, checkpoints: bool, batch_tokens: int, tokens: int
) -> None:
    """For the layers of GPT-2 124M, whose pass of 32,768 tokens took 26 GiB on an H200."""
    shape = SimpleNamespace(hidden_size=768, num_hidden_layers=12)
    parameter = SimpleNamespace(numel=lambda: 124_000_000, requires_grad=True)
    model: Any = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: shape),
        parameters=lambda: iter([parameter]),
        get_base_model=None,
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gib << 30, gib << 30))
    assert training_tokens(model, torch.device("cuda"), batch_tokens, checkpoints) == tokens
    assert training_tokens(model, torch.device("cpu"), batch_tokens) == 4096


_GAPS = """
import ctypes, psutil, sys, torch
from multitask import device

trim = device.HeapTrimmer(torch.device(sys.argv[1]))
allocate, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
allocate.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
parts = [allocate(100_000) for _ in range(2000)]
for part in parts:
    ctypes.memset(part, 1, 100_000)
for part in parts[:-1]:  # the last one is in use, so that the end of the heap does not move
    free(part)
before = psutil.Process().memory_info().rss
trim()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(device._TRIM is None, reason="the C library has no malloc_trim (it is glibc's)")
@pytest.mark.parametrize(("kind", "least", "most"), [("cpu", 190_000_000, 210_000_000), ("cuda", 0, 5_000_000)])
def test_freed_parts_of_the_heap_are_given_back(kind: str, least: int, most: int) -> None:
    done = subprocess.run([sys.executable, "-c", _GAPS, kind], capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


def test_the_heap_is_given_back_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, clock = list[float](), [0.0]
    monkeypatch.setattr(device, "_TRIM", lambda _: calls.append(clock[0]))
    monkeypatch.setattr(device.time, "monotonic", lambda: clock[0])
    trim = device.HeapTrimmer(torch.device("cpu"))
    for clock[0] in (100.0, 101.0, 109.9, 110.0, 119.0, 131.0):
        trim()
    assert calls == [100.0, 110.0, 131.0]


def test_few_compiled_products_are_kept_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    device.choose_device("cpu")
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    device.choose_device("cpu")
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "128"
