"""What training would see, without training: rows by loss weight, mixture, lengths, cuts, memory and time.

A prompt is shown dim, a target bold, a marker reversed as the one token it is; `|` ends each token of a target
(`||`: a character of two).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from multitask.batching.mixture import sampling_rates
from multitask.config.run import RunConfig
from multitask.device import choose_device
from multitask.evaluation.tuned import block_size_of
from multitask.models.attention import name_for
from multitask.models.build import build
from multitask.models.lora import add_lora, plain_model
from multitask.pattern import markers
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.training.estimate import estimate
from multitask.training.finetune import tokenizer_texts

_BARS = " ▁▂▃▄▅▆▇█"


def preview(config: RunConfig, tasks: Mapping[str, Task], num_rows: int, console: Console) -> None:
    """Prints the whole preview; trains nothing, writes nothing but the cache of encoded rows."""
    device = choose_device(config.device)
    model, tokenizer, new_ids = build(config.model, tasks, tokenizer_texts(tasks, config), config.seed)
    plain_model(model).config._attn_implementation = name_for(device)
    block_size = block_size_of(config.train, model)
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
    truncated = ", truncated" if examples.is_truncated(number) else ""
    text.append(f"   {examples.row(number).where}{truncated}", "dim italic")
    return text


def histogram(lengths: Any, num_bars: int = 16) -> str:
    """Lengths as a line of bars, from 0 to the longest: `▁▃█▂`."""
    counts, _ = np.histogram(lengths, bins=num_bars, range=(0, max(1, int(max(lengths)))))
    return "".join(_BARS[int(np.ceil(8 * count / counts.max()))] for count in counts)


def _summary(examples: Mapping[str, Examples], config: RunConfig) -> Table:
    sizes = {name: len(rows) for name, rows in examples.items()}
    train = config.train
    share = sampling_rates(sizes, train.mixing_temperature, train.mixture_cap, train.mixture_weights)
    heads = ("task", "rows", "sampling rate", "truncated", "dropped", "skipped", "chars lost", "mean", "max")
    table = Table(*heads, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("lengths in tokens", no_wrap=True)
    for name, rows in examples.items():
        report = rows.report
        table.add_row(
            name,
            f"{len(rows):,}",
            f"{share[name]:.1%}",
            *(f"{report[key]:,}" for key in ("num_truncated", "num_dropped", "num_skipped", "num_chars_lost")),
            f"{rows.lengths.mean():.0f}",
            f"{rows.lengths.max()}",
            histogram(rows.lengths),
        )
    return table


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
