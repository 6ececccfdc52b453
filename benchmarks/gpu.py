"""Training speed on a GPU: packed rows of tasks, how examples are kept apart, compiled blocks, and TRL's SFTTrainer.

`python benchmarks/gpu.py` trains models of real shapes and random weights on rows made on the spot, a pass a step, in
bf16; it prints the measured peak of a matrix product, and for each arm tokens/s, milliseconds, memory, and model FLOPs
utilisation (MFU): the FLOPs that the model needs, over seconds and measured peak. Writes `benchmarks/gpu.md`:

| model | tokens a pass | arm | tokens/s | ms a step | MFU | peak memory |

`make bench-gpu` makes the environment. Arms of TRL, each in a process of its own, run where `trl` is installed; its
packing keeps examples apart by FlexAttention, as FlashAttention's package is built for few versions of torch.
"""

import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from common import commit, flops
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from multitask.batching.collate import Batch, collate
from multitask.config.model import AdapterConfig
from multitask.config.train import TrainConfig
from multitask.models.layers import attention
from multitask.models.layers.compiled import CompiledBlocks
from multitask.models.lora import add_lora
from multitask.models.loss import TokenNLL
from multitask.models.support import prepare_attention
from multitask.training.optim import make_optimizer

_LLAMA = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
_GEMMA = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 2048,
    "sliding_window": 512,
}
_GPT2 = {"n_positions": 1024, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "GPT-2 124M, full": ("gpt2", _GPT2, False),
    "SmolLM2-135M shape, LoRA 16": ("llama", _LLAMA, True),
    "Gemma 3 270M shape, LoRA 16": ("gemma3_text", _GEMMA, True),
}
LONGEST = 512


def peak_flops(device: torch.device) -> float:
    """FLOP/s of a bf16 product of random matrices, 8192 x 8192, median of ten."""
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(13):
        torch.cuda.synchronize()
        start = time.perf_counter()
        _ = left @ right
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * 8192**3 / statistics.median(times[3:])


def rows(num_tokens: int, num: int, vocab_size: int) -> list[list[tuple[Any, int]]]:
    """Rows of so many passes as tasks have them, ids and length of the prompt: median 90 tokens, at most `LONGEST`."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num):
        examples, total = [], 0
        while True:
            length = int(np.clip(rng.lognormal(4.5, 0.7), 12, LONGEST))
            if total + length - 1 > num_tokens:
                break
            examples.append((rng.integers(0, vocab_size, length), max(1, int(0.8 * length))))
            total += length - 1
        found.append(examples)
    return found


def passes(num_tokens: int, num: int, vocab_size: int) -> list[Batch]:
    """The same, packed."""
    return [collate(examples) for examples in rows(num_tokens, num, vocab_size)]


@contextmanager
def arm_of(name: str) -> Iterator[None]:
    """Length groups in place of the variable-length attention."""
    before: Callable[..., bool] = attention.has_varlen
    if name == "groups":  # whatever the card offers
        attention.has_varlen = lambda *_: False
    try:
        yield
    finally:
        attention.has_varlen = before


def measure(model: Any, batches: list[Batch], num_steps: int, compiles: bool) -> tuple[float, int, float]:
    """Median seconds of a step, peak bytes, and the last loss."""
    device = next(model.parameters()).device
    model.train()
    prepare_attention(model, LONGEST, "packed")
    forward = TokenNLL(model, CompiledBlocks(model) if compiles else None)
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-4), device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.cuda.reset_peak_memory_stats()
    times, last = [], 0.0
    for step in range(num_steps + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        batch = batches[step % len(batches)].to(device)
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = forward(batch, 1 / len(batch.targets))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        last = loss.item()
    return statistics.median(times[3:]), torch.cuda.max_memory_allocated(), last


TRL: dict[str, dict[str, Any]] = {
    "trl, padded": {"train_sampling_strategy": "group_by_length"},
    "trl, padded, Liger and compiled": {
        "train_sampling_strategy": "group_by_length",
        "use_liger_kernel": True,
        "torch_compile": True,
    },
    "trl, packed": {"packing": True},
    "trl, packed, Liger": {"packing": True, "use_liger_kernel": True},
}
"""Arms of SFTTrainer that keep examples apart; packed ones by FlexAttention."""


def run_trl(name: str, arm: str, num_tokens: int, num_steps: int) -> dict[str, float]:
    """Median seconds of a step of TRL's SFTTrainer, tokens of examples in it, and peak bytes."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    kind, shape, is_lora = MODELS[name]
    settings: dict[str, Any] = dict(TRL[arm])
    drawn = [row for batch in rows(num_tokens, num_steps + 6, 30000) for row in batch]
    mean = statistics.fmean(len(ids) for ids, _ in drawn)
    is_packed = settings.get("packing", False)
    window = 2 * LONGEST
    times, sizes, clock = [], [], [0.0]

    class Timing(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            clock[0] = time.perf_counter()
            sizes.append(0)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.perf_counter() - clock[0])

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            sizes[-1] += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().training_step(model, inputs, *rest, **named)

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="flex_attention" if is_packed else "sdpa")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Counting(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_length=window,
                max_steps=num_steps + 3,
                per_device_train_batch_size=num_tokens // window if is_packed else round(num_tokens / mean),
                gradient_checkpointing=False,
                bf16=True,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                optim="adamw_torch_fused",
                report_to="none",
                save_strategy="no",
                logging_steps=1000,
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=Dataset.from_list(
                [
                    {"input_ids": ids.tolist(), "completion_mask": [0] * num + [1] * (len(ids) - num)}
                    for ids, num in drawn
                ]
            ),
            processing_class=_any_tokenizer(PreTrainedTokenizerFast),
            callbacks=[Timing()],
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
            if is_lora
            else None,
        )
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = statistics.median(t / n for t, n in zip(times[3:], sizes[3:], strict=True))
    return {"s_per_token": seconds, "tokens": statistics.fmean(sizes[3:]), "peak": torch.cuda.max_memory_allocated()}


def _any_tokenizer(kind: Any) -> Any:
    """A tokenizer, which the trainer asks for and rows of ids do not need."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return kind(tokenizer_object=Tokenizer(WordLevel({"<eos>": 0}, "<eos>")), eos_token="<eos>", pad_token="<eos>")


def trl_lines(name: str, num_tokens: int, num_steps: int, peak: float, per_token: float) -> Iterator[str]:
    """Lines of the table of TRL's arms; what fails says why. per_token: FLOPs that a token needs."""
    for arm in TRL:
        command = [sys.executable, __file__, "--only", json.dumps([name, arm, num_tokens, num_steps])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["?"])[-1]
            yield f"| {name} | {num_tokens:,} | {arm} | failed: {why[:160]} | | | | |"
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rate = 1 / found["s_per_token"]
        yield (
            f"| {name} | {found['tokens']:,.0f} | {arm} | {rate:,.0f} | {found['tokens'] / rate * 1e3:.1f} | "
            f"{per_token * rate / peak:.3f} | {found['peak'] / 2**30:.1f} GiB | |"
        )


@click.command()
@click.option("--steps", default=10, show_default=True, help="Steps of each arm that are timed; three come before.")
@click.option("--tokens", default="8192,32768", show_default=True, help="Tokens of a pass.")
@click.option("--models", default=";".join(MODELS), show_default=True, help="Models, with semicolons between.")
@click.option("--only", help="One arm of TRL, as JSON; for the process of its own.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).with_suffix(".md"), show_default=True)
def main(steps: int, tokens: str, models: str, only: str | None, out: Path) -> None:
    """Measures all models and arms."""
    if only is not None:
        click.echo(json.dumps(run_trl(*json.loads(only))))
        return
    if not torch.cuda.is_available():
        click.echo("no GPU: nothing was measured")
        return
    device = torch.device("cuda")
    peak = peak_flops(device)
    lines = [
        "# Training speed on a GPU",
        "",
        f"{torch.cuda.get_device_name()}, {peak / 1e12:.0f} TFLOP/s measured in bf16; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}{commit()}. "
        f"`python benchmarks/gpu.py --steps {steps} --tokens {tokens}`",
        "",
        "| model | tokens a pass | arm | tokens/s | ms a step | MFU | peak memory | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    click.echo("\n".join(lines))

    def add(line: str) -> None:
        click.echo(line)
        lines.append(line)
        out.write_text("\n".join(lines) + "\n", "utf-8")

    for name in models.split(";"):
        kind, shape, is_lora = MODELS[name]
        for num_tokens in map(int, tokens.split(",")):
            batches = passes(num_tokens, 4, 30000)
            for arm in ("groups", "varlen", "varlen, compiled"):
                torch.manual_seed(0)
                model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).to(device)
                if is_lora:
                    model = add_lora(model, AdapterConfig(kind="lora", rank=16, alpha=32), [1, 2, 3, 4])
                    model.to(device)
                started = time.perf_counter()
                with arm_of(arm):
                    seconds, memory, loss = measure(model, batches, steps, "compiled" in arm)
                started = time.perf_counter() - started
                needed = statistics.fmean(flops(model, batch, is_lora) for batch in batches)
                done = statistics.fmean(batch.num_tokens for batch in batches)
                add(
                    f"| {name} | {num_tokens:,} | {arm} | {done / seconds:,.0f} | {seconds * 1e3:.1f} | "
                    f"{needed / seconds / peak:.3f} | {memory / 2**30:.1f} GiB | {loss:.3f} |"
                )
                click.echo(f"({started:.0f} s in all)", err=True)
                del model
                torch.cuda.empty_cache()
            if importlib.util.find_spec("trl") is not None:
                for line in trl_lines(name, num_tokens, steps, peak, needed / done):
                    add(line)


if __name__ == "__main__":
    main()
