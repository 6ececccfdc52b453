"""What the benchmarks share: what they ran on, and the memory of a process."""

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
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


def matrix_flops(is_bf16: bool, size: int = 2048, device: str = "cpu") -> float:
    """FLOP/s of a product of random square matrices, median of ten."""
    import torch

    from multitask.device import synchronize

    on = torch.device(device)
    left, right = (torch.randn(size, size, device=on).to(torch.bfloat16 if is_bf16 else torch.float32) for _ in "12")
    times = []
    for _ in range(13):
        synchronize(on)
        start = time.perf_counter()
        _ = left @ right
        synchronize(on)
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


def word_tokenizer(vocab_size: int) -> Any:
    """A tokenizer of transformers for the words `w1 w2 w3`, ids 1 to `vocab_size - 1`, and `<eos>`, id 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, vocab_size)}}
    made = Tokenizer(models.WordLevel(words, "<eos>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def padded_texts(
    model: Any, prompts: Sequence[Sequence[int]], end_ids: Set[int], batch_rows: int, max_new_tokens: int
) -> list[list[int]]:
    """New ids of each prompt, greedily, by transformers' `generate`: sorted by length, padded on the left."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    written: list[list[int]] = [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    for start in range(0, len(order), batch_rows):
        numbers = order[start : start + batch_rows]
        rows = [torch.tensor(prompts[n]) for n in numbers]
        masks = [torch.ones_like(row) for row in rows]
        ids, mask = (
            pad_sequence(part, batch_first=True, padding_side="left").to(model.device) for part in (rows, masks)
        )
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(end_ids),
            pad_token_id=0,
        )
        for number, new in zip(numbers, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(new) if token in end_ids), None)
            written[number] = new[:end]
    return written


def logit_gap(model: Any, prompt: Sequence[int], one: Sequence[int], other: Sequence[int], end_ids: Set[int]) -> float:
    """The difference of two texts' logits at the first id that differs, of the model alone without padding.

    A text that ended there counts with its most likely end token.
    """
    import torch

    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    with torch.no_grad():
        scores = model(torch.tensor([[*prompt, *one[:at]]], device=model.device)).logits[0, -1]
    picked = [scores[text[at]] if at < len(text) else scores[sorted(end_ids)].max() for text in (one, other)]
    return abs(float(picked[0] - picked[1]))


def machine(device: str) -> str:
    """The GPU or CPU, versions and commit."""
    from multitask.device import gpu_name

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    return f"{gpu_name(device) or processor()}, {versions}, Python {platform.python_version()}{commit()}"


class Lines:
    """Lines of a report, printed and written as they come: a benchmark that is stopped keeps what it measured."""

    def __init__(self, out: Path | None) -> None:
        self.out, self.lines = out, list[str]()

    def add(self, *lines: str) -> None:
        """Adds lines; `out` None: only prints them."""
        print(*lines, sep="\n", flush=True)
        self.lines += lines
        if self.out is not None:
            write_lines(self.out, self.lines)
