"""What training would see, without training: encoded rows, the mixture, and an estimate of time and memory.

`preview(config, tasks).estimate.num_steps` -> the optimizer steps that `train` with the same settings makes.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch

from multitask.batching.collate import collate
from multitask.batching.mixture import Mixture, sampling_rates
from multitask.batching.packing import BlockStream, micro_steps
from multitask.config.run import RunConfig
from multitask.data.rows import Row
from multitask.data.sources import quoted_files
from multitask.device import choose_device, choose_precision, peak_memory_bytes
from multitask.evaluation.tuned import block_size_of, examples_of, text_of
from multitask.files import write_text
from multitask.models.build import build
from multitask.models.lora import add_lora, max_positions, text_config
from multitask.models.loss import TokenNLL
from multitask.models.support import prepare_attention, training_tokens
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.tokenization.row_encoder import with_answer_tokens
from multitask.training.checks import check_before_encoding, check_sizes
from multitask.training.finetune import tokenizer_texts
from multitask.training.run_dir import check_folder, estimate_file


@dataclass(frozen=True)
class Estimate:
    """What training would take, measured on three real micro-steps.

    num_tokens: of the whole run. peak_bytes: of memory, AdamW's moments included.
    """

    device: str
    precision: str
    total_parameters: int
    trainable_parameters: int
    num_steps: int
    num_tokens: float
    s_per_token: float
    peak_bytes: int


@dataclass(frozen=True)
class Preview:
    """What `train` would see.

    examples: encoded training rows of each task. rates: sampling rate of each task. tokenizer: the run's own.
    others: rows of validation, and of the split that is scored, by split and task.
    num_in_train: how many of those are a training row of the same task, by split and task.
    num_text_in_train: how many have the same text to truncate (the passage of a question) as a training row.
    notes: what to know about the files, by line.
    """

    config: RunConfig
    tasks: Mapping[str, Task]
    tokenizer: Any
    block_size: int
    examples: Mapping[str, Examples]
    rates: Mapping[str, float]
    estimate: Estimate
    others: Mapping[str, Mapping[str, Examples]]
    num_in_train: Mapping[str, Mapping[str, int]]
    num_text_in_train: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()


def preview(config: RunConfig, tasks: Mapping[str, Task], out: Path | None = None, overwrite: bool = False) -> Preview:
    """Trains nothing, writes nothing but the cache of encoded rows; raises InputError as `train` would.

    out, overwrite: the run folder that is checked as `train` would check it; None: none.
    """
    check_before_encoding(config, tasks)
    if out is not None:
        check_folder(config, out, overwrite)
    device = choose_device(config.device)
    model, tokenizer, new_ids = build(config.model, tasks, tokenizer_texts(tasks, config), config.seed)
    tasks = with_answer_tokens(tasks, tokenizer, config.data)
    block_size = block_size_of(config.train, model)
    check_sizes(tasks, block_size, max_positions(model))
    examples = {
        name: prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
        for name, task in tasks.items()
    }
    parts = tokenizer, block_size, config.data
    limits = {config.eval.split: config.eval.max_rows} | {"validation": config.train.eval_max_rows}
    others: dict[str, dict[str, Examples]] = {
        split: examples_of(tasks, split, *parts, limits[split])
        for split in ("validation", config.eval.split)
        if split != "train"
    }
    learning: Any = add_lora(model, config.adapter, new_ids) if config.adapter.kind == "lora" else model
    found = estimate(learning, examples, config, block_size, device)
    with suppress(OSError):  # the run that follows says how far off it was
        write_text(estimate_file(config), repr(found.num_tokens * found.s_per_token))
    in_train = {split: _in_train(tasks, examples, each) for split, each in others.items()}
    return Preview(
        config,
        tasks,
        tokenizer,
        block_size,
        examples,
        rates_of(examples, config),
        found,
        others,
        {split: {name: both[0] for name, both in each.items()} for split, each in in_train.items()},
        {split: {name: both[1] for name, both in each.items()} for split, each in in_train.items()},
        tuple(note for task in tasks.values() for note in quoted_files(task, config.data)),
    )


def _in_train(
    tasks: Mapping[str, Task], train: Mapping[str, Examples], other: Mapping[str, Examples]
) -> dict[str, tuple[int, int]]:
    """By task, rows of another split whose texts, in NFC, are those of a training row: all, and the one to truncate."""
    found = {}
    for name, rows in other.items():
        pairs = [_texts(row, tasks[name]) for row in rows.rows()]
        wanted = set(chain.from_iterable(pairs)) - {("", None)}
        met = {text for row in train[name].rows() for text in _texts(row, tasks[name]) if text in wanted}
        found[name] = (sum(whole in met for whole, _ in pairs), sum(shared in met for _, shared in pairs))
    return found


def _texts(row: Row, task: Task) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    """All texts of a row, and that of its `truncate` field (None: there is none), each told from the other."""
    shared = row.fields.get(task.truncate or "")
    return ("all", normalize("NFC", text_of(row))), ("", None if shared is None else normalize("NFC", shared))


def rates_of(examples: Mapping[str, Examples], config: RunConfig) -> dict[str, float]:
    """The sampling rate of each task."""
    sizes, train = {name: len(rows) for name, rows in examples.items()}, config.train
    return sampling_rates(sizes, train.mixing_temperature, train.mixture_cap, train.mixture_weights)


def estimate(
    model: Any, examples: Mapping[str, Examples], config: RunConfig, block_size: int, device: torch.device
) -> Estimate:
    """What training would take, measured on three real micro-steps: tokens, seconds a token, bytes, parameters."""
    train = config.train
    sizes = {name: len(rows) for name, rows in examples.items()}
    rates = rates_of(examples, config)
    stream = BlockStream(examples, Mixture(sizes, rates, config.seed), block_size, train.packing_window)
    precision = choose_precision(train.precision, device, text_config(model).hidden_size)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    wrapped = TokenNLL(model).to(device).train()
    layout = prepare_attention(model, block_size, train.packing)
    pass_tokens = train.micro_batch_tokens or training_tokens(
        model, device, train.batch_tokens, train.gradient_checkpointing
    )
    blocks = stream.next_blocks(max(1, pass_tokens // block_size) * 3)
    times = []
    for drawn in micro_steps(blocks, layout, pass_tokens, block_size)[:3]:
        started = time.perf_counter()
        batch = collate(list(map(stream.example, drawn)), layout, train.prompt_weight).to(device)
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            loss, _ = wrapped(batch, 1.0 / max(1.0, float(batch.weights.sum())))
        loss.backward()
        times.append((time.perf_counter() - started) / batch.num_tokens)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    peak = peak_memory_bytes(device) + 8 * trainable  # AdamW's two moments come with the first step
    mean = sum(rates[name] * float(r.lengths.mean() - 1) for name, r in examples.items())
    blocks_per_step = max(1, train.batch_tokens // block_size)
    num_blocks = train.max_steps * blocks_per_step if train.max_steps else stream.num_blocks_in(train.epochs)
    per_block = sum(sizes.values()) * mean / stream.num_blocks_in(1)
    return Estimate(
        device=str(device),
        precision=precision,
        total_parameters=total,
        trainable_parameters=trainable,
        num_steps=max(1, -int(-num_blocks // blocks_per_step)),
        num_tokens=num_blocks * per_block,
        s_per_token=min(times),
        peak_bytes=peak,
    )
