"""What training would see, without training: encoded rows, the mixture, and an estimate of time and memory.

`preview(config, tasks).estimate.num_steps` -> the optimizer steps that `train` with the same settings makes.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unicodedata import normalize

import torch
from torch import Tensor

from multitask.batching.collate import collate
from multitask.batching.mixture import Mixture, sampling_rates
from multitask.batching.packing import BlockStream, SampledExample
from multitask.config.run import RunConfig
from multitask.config.train import TrainConfig
from multitask.data.rows import Row
from multitask.data.sources import quoted_files
from multitask.device import (
    choose_device,
    choose_precision,
    free_memory_bytes,
    peak_memory_bytes,
    reset_peak,
    synchronize,
    used_memory_bytes,
)
from multitask.errors import InputError
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

_FIRST_PASS = 256  # tokens
_TIMED_PASSES = 4
_MARGIN = 1.2  # for what grows faster than the number of tokens
_MICRO = "train.micro_batch_tokens"


@dataclass(frozen=True)
class Estimate:
    """What training would take, measured on real passes.

    num_tokens: of the whole run. peak_bytes: of memory, AdamW's moments included; where a whole pass does not fit,
    extrapolated from smaller ones. free_bytes: memory that this process could have. tokens_that_fit: of a pass; None:
    a whole one fits, otherwise `lower` names the settings to lower.
    """

    device: str
    precision: str
    total_parameters: int
    trainable_parameters: int
    num_steps: int
    num_tokens: float
    s_per_token: float
    peak_bytes: int
    free_bytes: int
    tokens_that_fit: int | None = None
    lower: str = _MICRO


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
    """What training would take: tokens, seconds a token, bytes, parameters, measured on real passes.

    Passes grow fourfold, from a few hundred tokens to a whole pass of training or to all rows once, and none is tried
    that would not fit the free memory. Raises InputError where not even the first one would.
    """
    train = config.train
    sizes = {name: len(rows) for name, rows in examples.items()}
    rates = rates_of(examples, config)
    stream = BlockStream(examples, Mixture(sizes, rates, config.seed), block_size, train.packing_window)
    precision = choose_precision(train.precision, device, text_config(model).hidden_size)
    layout = prepare_attention(model, block_size, train.packing)
    model.to(device)
    pass_tokens = train.micro_batch_tokens or training_tokens(
        model, device, train.batch_tokens, train.gradient_checkpointing
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    whole = _tokens_of_pass(examples, train, pass_tokens, layout, block_size)
    measured = _Passes(model, stream, config, layout, precision, device).measure(
        whole, sum(int(rows.lengths.sum()) - len(rows) for rows in examples.values()), 8 * trainable
    )
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
        s_per_token=measured.s_per_token,
        peak_bytes=measured.peak_bytes,
        free_bytes=measured.free_bytes,
        tokens_that_fit=measured.tokens_that_fit if measured.tokens_that_fit < whole else None,
        lower=f"train.block_size and {_MICRO}" if layout == "packed" and block_size > pass_tokens else _MICRO,
    )


def _tokens_of_pass(
    examples: Mapping[str, Examples], train: TrainConfig, pass_tokens: int, layout: str, block_size: int
) -> int:
    """Most tokens of a forward-backward pass of training, padding included."""
    of_step = max(1, train.batch_tokens // block_size) * block_size
    if layout == "packed":
        return min(of_step, max(1, pass_tokens // block_size) * block_size)
    longest = max(int(rows.lengths.max()) - 1 for rows in examples.values())
    return max(longest, min(of_step, pass_tokens))


class _Measured(NamedTuple):
    """peak_bytes: of a whole pass of training with AdamW's moments; free_bytes: for all of it, before any pass."""

    s_per_token: float
    peak_bytes: int
    free_bytes: int
    tokens_that_fit: int


class _Pass(NamedTuple):
    """saved_bytes: of tensors kept for the backward pass, weights among them."""

    num_tokens: int
    elapsed_s: float
    peak_bytes: int
    saved_bytes: int


@dataclass
class _Passes:
    """Forward-backward passes of a model over rows that training would draw."""

    model: Any
    stream: BlockStream
    config: RunConfig
    layout: Literal["packed", "none"]
    precision: str
    device: torch.device

    def measure(self, whole: int, all_rows: int, moments: int) -> _Measured:
        """whole: tokens of a pass of training; all_rows: tokens of all rows; moments: bytes of AdamW's."""
        self.wrapped = TokenNLL(self.model).to(self.device).train()
        self._draw(whole)
        held = used_memory_bytes(self.device)
        free = held + free_memory_bytes(self.device)
        gradients = moments // 2
        self._check_free(held + 2 * gradients, free, moments)  # a second time while they are summed
        most, times = min(whole, all_rows), []
        size = min(_FIRST_PASS, most)
        before = self._run(max(1, size // 2))  # makes the gradients, which stay
        per_token = before.saved_bytes / before.num_tokens
        while True:
            found = self._run(size)
            times.append(found.elapsed_s / found.num_tokens)
            if (more := found.num_tokens - before.num_tokens) > 0:
                # A peak hides what was freed before and is taken again; the tensors kept for the backward pass do not.
                per_token = (found.saved_bytes - before.saved_bytes) / more
                if len(times) > 1:
                    per_token = max(per_token, (found.peak_bytes - before.peak_bytes) / more)
            fixed, before = found.peak_bytes - per_token * found.num_tokens, found
            following = min(most, 2 * size if len(times) == 1 else 4 * size)
            if size >= most or fixed + _MARGIN * per_token * following > free:
                break
            size = following
        s_per_token = min(times)
        if size >= most:  # rows of other lengths in each pass, as in training: sizes that were not computed before
            again = []
            for _ in range(_TIMED_PASSES):
                self._draw(whole)
                again.append(self._run(size))
            s_per_token = sum(one.elapsed_s for one in again) / sum(one.num_tokens for one in again)
        fits = int((free - moments - fixed) / per_token) if per_token else whole
        peak_bytes = max(before.peak_bytes, int(fixed + per_token * whole)) + moments
        return _Measured(s_per_token, peak_bytes, free, whole if peak_bytes <= free else max(16, fits))

    def _draw(self, whole: int) -> None:
        """Draws the next examples of a pass of training."""
        blocks = self.stream.next_blocks(max(1, whole // self.stream.block_size))
        self.drawn = [d for block in blocks for d in block]

    def _check_free(self, wanted: int, free: int, moments: int) -> None:
        if wanted > free:
            raise InputError(
                f"memory: parameters, gradients and AdamW's moments take {gib(wanted + moments)}, {gib(free)} are "
                "free; lowering train.micro_batch_tokens cannot help: take a smaller model, or adapter.kind lora"
            )

    def _run(self, most: int) -> _Pass:
        """A pass of at most so many tokens, padding included, and at least one row."""
        reset_peak(self.device)
        chosen = self._choose(most)
        started = time.perf_counter()
        batch = collate(list(map(self.stream.example, chosen)), self.layout, self.config.train.prompt_weight)
        batch = batch.to(self.device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32"),
        ):
            loss, _ = self.wrapped(batch, 1.0 / max(1.0, float(batch.weights.sum())))
        loss.backward()
        synchronize(self.device)
        elapsed_s = time.perf_counter() - started
        return _Pass(batch.input_ids.numel(), elapsed_s, peak_memory_bytes(self.device), sum(saved.values()))

    def _choose(self, most: int) -> list[SampledExample]:
        """Drawn examples that fill a pass: the longest that fit, as training's own passes have rows of one length."""
        fitting = [d for d in self.drawn if d.length <= most] or [min(self.drawn, key=lambda d: d.length)]
        if self.layout == "none":
            fitting.sort(key=lambda d: -d.length)
            return fitting[: max(1, most // fitting[0].length)]
        chosen: list[SampledExample] = []
        length = 0
        for drawn in fitting:
            if not chosen or length + drawn.length <= most:
                chosen.append(drawn)
                length += drawn.length
        return chosen


def gib(num_bytes: float) -> str:
    """`1.5 GiB`."""
    return f"{num_bytes / 2**30:.1f} GiB"
