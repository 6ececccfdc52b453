"""Training speed on a GPU: packed rows of tasks and full blocks of plain text, beside TRL and a plain loop.

`python benchmarks/gpu.py` trains models of real shapes and random weights on rows made on the spot, a pass a step, in
bf16; it prints the measured peak of a matrix product, and for each arm tokens/s, milliseconds, memory, and model FLOPs
utilisation (MFU): the FLOPs that the model needs, over seconds and measured peak. Writes `benchmarks/gpu.md`:

| model | tokens a pass | arm | tokens/s | ms a step | MFU | peak memory |

Plain text is beside a plain loop: the same steps with transformers' own attention and loss, as it is and compiled.
Arms of TRL, each in a process of its own, run where `trl` is installed; its packing keeps examples apart by
FlexAttention, as FlashAttention's package is built for few versions of torch. `make bench-gpu` makes the environment.
`--device cpu --tiny` shows whether all arms but TRL's run.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from common import Lines, flops, machine, matrix_flops, word_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from multitask.batching.collate import Batch, collate
from multitask.config.model import AdapterConfig
from multitask.config.train import TrainConfig
from multitask.device import peak_memory_bytes, reset_peak, synchronize
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
PLAIN_TEXT = "GPT-2 124M, plain text"
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "GPT-2 124M, full": ("gpt2", _GPT2, False),
    PLAIN_TEXT: ("gpt2", _GPT2, False),
    "SmolLM2-135M shape, LoRA 16": ("llama", _LLAMA, True),
    "Gemma 3 270M shape, LoRA 16": ("gemma3_text", _GEMMA, True),
}
OURS = ("groups", "varlen", "varlen, compiled")
PLAIN = ("plain loop", "plain loop, compiled")
LONGEST = 512


class Size(NamedTuple):
    """Tokens of the longest example and of a block, ids that are drawn, width of the peak's product, other shapes."""

    longest: int = LONGEST
    block: int = 1024
    num_ids: int = 30000
    product: int = 8192
    shape: dict[str, Any] = {}  # noqa: RUF012


_NARROW = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,  # losses of smaller weights are those of a uniform distribution, whatever is computed
}
TINY = Size(24, 32, 300, 64, {"vocab_size": 300, "num_hidden_layers": 2, "layer_types": None, **_NARROW})


def rows(num_tokens: int, num: int, size: Size) -> list[list[tuple[Any, int]]]:
    """Rows of so many passes as tasks have them, ids and length of the prompt: median 90 tokens, at most `longest`."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num):
        examples, total = [], 0
        while True:
            length = int(np.clip(rng.lognormal(4.5, 0.7), 12, size.longest))
            if total + length - 1 > num_tokens:
                break
            examples.append((rng.integers(0, size.num_ids, length), max(1, int(0.8 * length))))
            total += length - 1
        found.append(examples)
    return found


def passes(num_tokens: int, num: int, size: Size, is_text: bool) -> list[Batch]:
    """The same, packed; or full blocks of plain text, of which each token is predicted."""
    if not is_text:
        return [collate(examples) for examples in rows(num_tokens, num, size)]
    drawn = np.random.default_rng(0).integers(0, size.num_ids, (num, max(1, num_tokens // size.block), size.block + 1))
    return [collate([(ids, 1) for ids in one]) for one in drawn]


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


def loss_of(model: Any, arm: str, size: Size) -> Callable[[Batch], Tensor]:
    """The mean loss of a batch, as an arm computes it. Without a GPU what is compiled is traced and runs as it is."""
    backend = "inductor" if model.device.type == "cuda" else "eager"
    if arm in OURS:
        prepare_attention(model, size.longest, "packed")
        forward = TokenNLL(model, CompiledBlocks(model, backend) if "compiled" in arm else None)
        return lambda batch: forward(batch, 1 / len(batch.targets))[0]
    own = torch.compile(model, backend=backend) if "compiled" in arm else model

    def plain(batch: Batch) -> Tensor:
        ids, following = (part.view(-1, size.block) for part in (batch.input_ids, batch.targets))
        # The id after a block is a label too, hence `shift_labels`; without `labels` there is no loss.
        loss: Tensor = own(input_ids=ids, labels=following, shift_labels=following, use_cache=False).loss
        return loss

    return plain


class Measured(NamedTuple):
    """Median seconds of a step, peak bytes, the last loss, and the FLOPs that a step needs."""

    seconds: float
    peak_bytes: int
    loss: float
    flops: float


def measure(name: str, arm: str, batches: list[Batch], num_steps: int, device: torch.device, size: Size) -> Measured:
    """Trains a new model."""
    kind, shape, is_lora = MODELS[name]
    torch.compiler.reset()  # else the same code, compiled for many models, runs as it is from the ninth time on
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**shape, **size.shape})
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device)
    if is_lora:
        model = add_lora(model, AdapterConfig(kind="lora", rank=16, alpha=32), [1, 2, 3, 4]).to(device)
    model.train()
    get_loss = loss_of(model, arm, size)
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-4), device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    reset_peak(device)
    times, last = [], 0.0
    for step in range(num_steps + 3):
        synchronize(device)
        start = time.perf_counter()
        batch = batches[step % len(batches)].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = get_loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        times.append(time.perf_counter() - start)
        last = loss.item()
    needed = statistics.fmean(flops(model, batch, is_lora) for batch in batches)
    return Measured(statistics.median(times[3:]), peak_memory_bytes(device), last, needed)


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
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    kind, shape, is_lora = MODELS[name]
    settings: dict[str, Any] = dict(TRL[arm])
    drawn = [row for batch in rows(num_tokens, num_steps + 6, Size()) for row in batch]
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
            processing_class=word_tokenizer(2),  # rows are ids already
            callbacks=[Timing()],
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
            if is_lora
            else None,
        )
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = statistics.median(t / n for t, n in zip(times[3:], sizes[3:], strict=True))
    return {"s_per_token": seconds, "tokens": statistics.fmean(sizes[3:]), "peak": torch.cuda.max_memory_allocated()}


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
@click.option("--device", default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Tiny shapes and no report, unless --out names one: do all arms run?")
@click.option("--out", type=click.Path(path_type=Path), help="Report.  [default: gpu.md here]")
def main(steps: int, tokens: str, models: str, only: str | None, device: str, tiny: bool, out: Path | None) -> None:
    """Measures all models and arms."""
    if only is not None:
        click.echo(json.dumps(run_trl(*json.loads(only))))
        return
    if device == "cuda" and not torch.cuda.is_available():
        click.echo("no GPU: nothing was measured")
        return
    size = TINY if tiny else Size()
    peak = matrix_flops(True, size.product, device)
    report = Lines(out or (None if tiny else Path(__file__).with_suffix(".md")))
    report.add(
        "# Training speed on a GPU",
        "",
        f"{machine(device)}; {peak / 1e12:.3g} TFLOP/s measured in bf16. "
        f"`python benchmarks/gpu.py --steps {steps} --tokens {tokens}`",
        "",
        "| model | tokens a pass | arm | tokens/s | ms a step | MFU | peak memory | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    )
    for name in models.split(";"):
        for num_tokens in map(int, tokens.split(",")):
            batches = passes(num_tokens, 4, size, name == PLAIN_TEXT)
            done = statistics.fmean(batch.num_tokens for batch in batches)
            per_token = 0.0
            for arm in (*OURS, *PLAIN) if name == PLAIN_TEXT else OURS:
                started = time.perf_counter()
                try:
                    with arm_of(arm):
                        found = measure(name, arm, batches, steps, torch.device(device), size)
                except Exception as error:  # out of memory, a compiler: the other arms still run
                    why = (str(error).strip().splitlines() or [""])[0]
                    report.add(
                        f"| {name} | {num_tokens:,} | {arm} | failed: {type(error).__name__}: {why[:120]} | | | | |"
                    )
                    continue
                finally:
                    torch.cuda.empty_cache()
                per_token = found.flops / done
                report.add(
                    f"| {name} | {num_tokens:,} | {arm} | {done / found.seconds:,.0f} | {found.seconds * 1e3:.1f} | "
                    f"{found.flops / found.seconds / peak:.3f} | {found.peak_bytes / 2**30:.1f} GiB | "
                    f"{found.loss:.3f} |"
                )
                click.echo(f"({time.perf_counter() - started:.0f} s in all)", err=True)
            if name != PLAIN_TEXT and not tiny and importlib.util.find_spec("trl") is not None:
                for line in trl_lines(name, num_tokens, steps, peak, per_token):
                    report.add(line)


if __name__ == "__main__":
    main()
