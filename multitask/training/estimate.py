"""What a training would take, measured on three real micro-steps."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from multitask.batching.collate import collate
from multitask.batching.mixture import Mixture, sampling_rates
from multitask.batching.packing import BlockStream, micro_steps
from multitask.config.run import RunConfig
from multitask.device import choose_precision, peak_memory_bytes
from multitask.models.lora import plain_model
from multitask.models.loss import TokenNLL
from multitask.tokenization.encoded_rows import Examples


def estimate(
    model: Any, examples: Mapping[str, Examples], config: RunConfig, block_size: int, device: torch.device
) -> dict[str, Any]:
    """What training would take, measured on three real micro-steps: tokens, seconds a token, bytes, parameters."""
    train = config.train
    sizes = {name: len(rows) for name, rows in examples.items()}
    share = sampling_rates(sizes, train.mixing_temperature, train.mixture_cap, train.mixture_weights)
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
