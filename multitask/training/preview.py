"""What training would see, without training: encoded rows, the mixture, and an estimate of time and memory.

`preview(config, tasks).estimate.num_steps` -> the optimizer steps that `train` with the same settings makes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from multitask.batching.collate import collate
from multitask.batching.mixture import Mixture, sampling_rates
from multitask.batching.packing import BlockStream, micro_steps
from multitask.config.run import RunConfig
from multitask.device import choose_device, choose_precision, peak_memory_bytes
from multitask.evaluation.tuned import block_size_of
from multitask.models.build import build
from multitask.models.lora import add_lora, text_config
from multitask.models.loss import TokenNLL
from multitask.models.support import prepare_attention
from multitask.task import Task
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.tokenization.row_encoder import with_answer_tokens
from multitask.training.finetune import tokenizer_texts


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
    """

    config: RunConfig
    tasks: Mapping[str, Task]
    tokenizer: Any
    block_size: int
    examples: Mapping[str, Examples]
    rates: Mapping[str, float]
    estimate: Estimate


def preview(config: RunConfig, tasks: Mapping[str, Task]) -> Preview:
    """Trains nothing, writes nothing but the cache of encoded rows; raises InputError as `train` would."""
    device = choose_device(config.device)
    model, tokenizer, new_ids = build(config.model, tasks, tokenizer_texts(tasks, config), config.seed)
    tasks = with_answer_tokens(tasks, tokenizer, config.data)
    block_size = block_size_of(config.train, model)
    examples = {
        name: prepare(task, "train", tokenizer, block_size, config.data, limit=config.data.limit)
        for name, task in tasks.items()
    }
    learning: Any = add_lora(model, config.adapter, new_ids) if config.adapter.kind == "lora" else model
    found = estimate(learning, examples, config, block_size, device)
    return Preview(config, tasks, tokenizer, block_size, examples, rates_of(examples, config), found)


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
    rows = list(examples.values())
    precision = choose_precision(train.precision, device, text_config(model).hidden_size)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    wrapped = TokenNLL(model).to(device).train()
    layout = prepare_attention(model, block_size, train.packing)
    blocks = stream.next_blocks(max(1, train.micro_batch_tokens // block_size) * 3)
    times = []
    for drawn in micro_steps(blocks, layout, train.micro_batch_tokens, block_size)[:3]:
        started = time.perf_counter()
        examples_drawn = [(rows[d.task].ids(d.row), d.num_prompt) for d in drawn]
        batch = collate(examples_drawn, layout, train.prompt_weight).to(device)
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
