"""Tiny runs: `train(settings("qa", "cls", train={"max_steps": 4}), out=folder)` takes about a second."""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from multitask import registry
from multitask.config.model import ModelConfig
from multitask.errors import Interrupted
from multitask.models import build, io

ROOT = Path(__file__).parent.parent
_FOLDER = tempfile.TemporaryDirectory(prefix="multitask-tests-")
FOLDER = Path(_FOLDER.name)
"""Lives as long as the tests: the cache of encoded rows, and what several tests look at."""

TINY = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": 400}
SYNTHETIC = {"synthetic": {"train": 200, "validation": 12, "test": 16}}
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as many as here: another number rounds otherwise
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": str(ROOT),
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template."""


def varlen_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """Stands in for `torch.nn.attention.varlen.varlen_attn`, which has no CPU kernel; (T, H, D) each."""
    assert torch.equal(bounds, key_bounds)
    assert bounds.dtype == torch.int32
    assert longest == longest_key == int(bounds.diff().max())
    assert window_size[1] == 0
    outs = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        q, k, v = (part[start:stop].transpose(0, 1) for part in (query, key, value))
        behind = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        seen = (behind >= 0) & ((behind <= window_size[0]) if window_size[0] >= 0 else True)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs)


def settings(*tasks: str, **sections: Any) -> dict[str, Any]:
    """Settings of a tiny run of `tasks` on the synthetic dataset; each section is laid over that of the tiny run."""
    base: dict[str, Any] = {
        "tasks": list(tasks),
        "device": "cpu",
        "data": {"cache": str(FOLDER / "cache"), "sources": {name: [SYNTHETIC] for name in tasks}},
        "model": TINY,
        "train": {
            "batch_tokens": 512,
            "micro_batch_tokens": 512,
            "max_steps": 6,
            "log_every_steps": 2,
            "eval_every_steps": 6,
            "learning_rate": 5e-4,
            "precision": "fp32",
        },
        "eval": {"num_bootstrap": 20},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, Mapping) else section
    return base


@contextmanager
def stopped_before(step: int) -> Iterator[None]:
    """Training that is done meanwhile is interrupted before this step (counted from 0), as by Ctrl-C."""
    from multitask.training.loop import Loop

    optimize = Loop.optimize

    def interrupted(self: Any, rate: float | None = None) -> float:
        if self.step == step:
            raise Interrupted("stopped")
        return optimize(self, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "optimize", interrupted)
        with suppress(Interrupted):
            yield
            pytest.fail("the run was not interrupted")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSONL file; returns its name."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def files(path: Path, **splits: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A source of JSONL files, one of each split, in a folder `path`."""
    path.mkdir(parents=True, exist_ok=True)
    return {"files": {name: write_rows(path / f"{name}.jsonl", rows) for name, rows in splits.items()}}


FACTS = [
    {"context": f"{name} has a {thing}.", "question": f"What has {name}?", "answers": [f"a {thing}"]}
    for name, thing in zip(
        ["Ada", "Ben", "Cho", "Dan", "Eun", "Fay"], ["cat", "dog", "red hat", "kite", "drum", "blue boat"], strict=True
    )
]
"""Six rows of `qa`, quickly memorised."""


@cache
def learned() -> Path:
    """A run that memorised `FACTS`: train, validation and test are the same rows."""
    from multitask import train

    source = files(FOLDER / "facts", train=FACTS, validation=FACTS, test=FACTS)
    out = FOLDER / "learned"
    train(
        settings(
            "qa",
            data={"sources": {"qa": [source]}},
            train={"max_steps": 150, "learning_rate": 3e-3, "batch_tokens": 256, "eval_every_steps": 50},
        ),
        out=out,
    )
    return out


def messages(*texts: str) -> list[dict[str, str]]:
    """Turns of user and assistant, the user first."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def conversations(folder: Path) -> dict[str, Any]:
    """Settings of a tiny run on conversations whose second reply repeats the first user's word."""
    rows = []
    for number in range(60):
        word, other = f"w{number % 7}", f"v{number % 5}"
        rows.append({"id": str(number), "messages": messages(word, f"{word}!", f"again {other}", f"{word} {other}")})
    name = write_rows(folder / "rows.jsonl", rows)
    given = settings("chat", data={"root": str(folder)}, train={"max_steps": 3}, model={"n_positions": 256})
    split = {"validation": 0.2, "test": 0.2}
    given["data"]["sources"] = {"chat": [{"files": {"all": name}, "split_by": split}]}
    return given


def untrained(folder: Path, *tasks: str, **shape: Any) -> Path:
    """A model folder as a run leaves it, with random weights and a tokenizer trained on a few lines."""
    chosen = registry.choose(registry.load_tasks(), tasks)
    config = ModelConfig(**{**TINY, **shape})
    built, tokenizer, _ = build.build(config, chosen, ["Ada has a red hat. Ben has a blue boat.", "한 줄"] * 9, 7)
    for parameter in built.parameters():  # opinions strong enough that no two logits tie
        parameter.data.mul_(1 if parameter.ndim == 1 else 8)
    io.save(built, tokenizer, folder, chosen, {})
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder or checkpoint."""
    loaded: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return loaded


def furthest(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The largest difference of two sets of weights of the same names."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def lines(run: Path, *drop: str) -> list[dict[str, Any]]:
    """`metrics.jsonl` of a run without what differs from one machine's minute to the next."""
    drop = (*drop, "tokens_per_s", "peak_memory_bytes")
    records = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [{key: value for key, value in record.items() if key not in drop} for record in records]


def python(code: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Runs code in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def torchrun(code: str, *arguments: str, size: int = 2, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs code, or with a name that ends in `.py` this file, in several processes that torchrun starts."""
    path = Path(code) if code.endswith(".py") else FOLDER / "ranks" / f"{zlib.crc32(code.encode())}.py"
    if not code.endswith(".py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(path), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def snippet(folder: Path) -> str:
    """The Python code of a model card."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]
