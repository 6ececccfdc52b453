"""What training would see, without training: rows by loss weight, mixture, lengths, cuts, memory and time.

A prompt is shown dim, a target bold, a marker reversed as the one token it is; `|` ends each token of a target
(`||`: a character of two).
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from multitask.batching.mixture import Mixture, shares
from multitask.batching.packing import BlockStream, collate, micro_steps
from multitask.config import RunConfig
from multitask.device import choose_device, choose_precision, peak_memory_bytes
from multitask.evaluation.evaluator import window
from multitask.models.attention import name_for
from multitask.models.build import add_lora, build
from multitask.models.loss import TokenNLL, plain_model
from multitask.pattern import markers
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.training.finetune import tokenizer_texts

_BARS = " ▁▂▃▄▅▆▇█"


def preview(config: RunConfig, tasks: Mapping[str, Task], num_rows: int, console: Console) -> None:
    """Prints the whole preview; trains nothing, writes nothing but the cache of encoded rows."""
    device = choose_device(config.device)
    model, tokenizer, new_ids = build(config.model, tasks, tokenizer_texts(tasks, config), config.seed)
    plain_model(model).config._attn_implementation = name_for(device)
    block_size = window(config.train, model)
    examples = {
        name: prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
        for name, task in tasks.items()
    }
    special = set(tokenizer.convert_tokens_to_ids(markers(tasks)))
    for name, task in tasks.items():
        console.rule(Text(f"{name}   {task.stream}"), align="left")
        for number in range(min(num_rows, len(examples[name]))):
            console.print(row_text(examples[name], number, tokenizer, special, config.train.prompt_weight))
    console.print(_summary(examples, config))
    if config.adapter.kind == "lora":
        model = add_lora(model, config.adapter, new_ids)
    console.print(_estimate(model, examples, config, block_size, device))


def row_text(examples: Examples, number: int, tokenizer: Any, special: set[int], prompt_weight: float) -> Text:
    """One row as the stream holds it, styled by loss weight."""
    text = Text(overflow="fold")
    waiting: list[int] = []  # a character of several byte tokens is shown when its last one has come
    for place, token in enumerate(examples.ids(number).tolist()):
        is_target, is_marker = place >= int(examples.num_prompts[number]), token in special
        waiting.append(token)
        word = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if word.endswith("\ufffd") and place + 1 < int(examples.lengths[number]):
            continue
        style = "bold green" if is_target else "cyan" if prompt_weight else "dim"
        text.append(word, f"{style} reverse" if is_marker else style)
        if is_target and not is_marker:
            text.append("|" * len(waiting), "dim green")
        waiting = []
    record = examples.row(number)
    text.append(f"   {record['where']}{', cut' if record['is_cut'] else ''}", "dim italic")
    return text


def histogram(lengths: Any, num_bars: int = 16) -> str:
    """Lengths as a line of bars, from 0 to the longest: `▁▃█▂`."""
    counts, _ = np.histogram(lengths, bins=num_bars, range=(0, max(1, int(max(lengths)))))
    return "".join(_BARS[int(np.ceil(8 * count / counts.max()))] for count in counts)


def _summary(examples: Mapping[str, Examples], config: RunConfig) -> Table:
    sizes = {name: len(rows) for name, rows in examples.items()}
    train = config.train
    share = shares(sizes, train.mixing_temperature, train.mixture_cap, train.mixture_weights)
    heads = ("task", "rows", "share", "cut", "refused", "skipped", "chars lost", "mean", "max")
    table = Table(*heads, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("lengths in tokens", no_wrap=True)
    for name, rows in examples.items():
        report = rows.report
        table.add_row(
            name,
            f"{len(rows):,}",
            f"{share[name]:.1%}",
            *(f"{report[key]:,}" for key in ("num_cut", "num_refused", "num_skipped", "num_chars_lost")),
            f"{rows.lengths.mean():.0f}",
            f"{rows.lengths.max()}",
            histogram(rows.lengths),
        )
    return table


def estimate(
    model: Any, examples: Mapping[str, Examples], config: RunConfig, block_size: int, device: torch.device
) -> dict[str, Any]:
    """What training would take, measured on three real micro-steps: tokens, seconds a token, bytes, parameters."""
    train = config.train
    sizes = {name: len(rows) for name, rows in examples.items()}
    share = shares(sizes, train.mixing_temperature, train.mixture_cap, train.mixture_weights)
    stream = BlockStream(examples, Mixture(sizes, share, config.seed), block_size, train.packing_window)
    rows = list(examples.values())
    precision = choose_precision(train.precision, device, plain_model(model).config.n_embd)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    wrapped = TokenNLL(model).to(device).train()
    blocks = stream.next_blocks(max(1, train.micro_batch_tokens // block_size) * 3)
    times = []
    for drawn in micro_steps(blocks, train.packing, train.micro_batch_tokens, block_size)[:3]:
        started = time.perf_counter()
        examples_drawn = [(rows[d.task].ids(d.row), d.num_prompt) for d in drawn]
        batch = collate(examples_drawn, train.packing, train.prompt_weight).to(device)
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            loss, _ = wrapped(batch, 1.0 / max(1.0, float(batch.weights.sum())))
        loss.backward()
        times.append((time.perf_counter() - started) / batch.num_tokens)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    peak = peak_memory_bytes(device) + 8 * trainable  # AdamW's two moments come with the first step
    mean = sum(share[name] * float(r.lengths.mean()) for name, r in examples.items())
    num_tokens = train.max_steps * train.batch_tokens if train.max_steps else train.epochs * sum(sizes.values()) * mean
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        "precision": precision,
        "num_tokens": num_tokens,
        "s_per_token": min(times),
        "peak_bytes": peak,
    }


def _estimate(
    model: Any, examples: Mapping[str, Examples], config: RunConfig, block_size: int, device: torch.device
) -> Text:
    found = estimate(model, examples, config, block_size, device)
    return Text(
        f"{found['total_parameters']:,} parameters, {found['trainable_parameters']:,} train; {device} "
        f"{found['precision']}, about {1 / found['s_per_token']:,.0f} tokens/s\n"
        f"memory about {found['peak_bytes'] / 2**30:.1f} GiB; {found['num_tokens']:,.0f} tokens in about "
        f"{found['num_tokens'] * found['s_per_token'] / 60:.1f} min"
    )
