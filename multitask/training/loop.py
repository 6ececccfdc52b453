"""The one training loop: draw blocks, sum nats over micro-steps, divide by the step's whole weight, clip, step.

With 4 blocks a step on 2 processes and memory for one block at a time, each makes 2 micro-steps; the loss is that of
one process with memory for all 4: summed nats over summed weights, never an average of averages.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from multitask.batching.collate import Batch, Example, collate
from multitask.batching.packing import SampledExample, Stream, idle_warning, micro_steps
from multitask.config.train import LoopConfig
from multitask.device import HeapTrimmer, peak_memory_bytes, synchronize, widest_float
from multitask.errors import InputError, Interrupted
from multitask.evaluation.schema import Cost
from multitask.events import Json, Report, StepEvent, ValidationEvent, ValidationScores
from multitask.files import append_line
from multitask.inference.scoring import example_nll
from multitask.models.layers.compiled import CompiledBlocks, compiled_blocks
from multitask.models.layers.dropout import use_fast_dropout
from multitask.models.loss import TokenNLL
from multitask.models.support import training_tokens
from multitask.overfitting import Overfitting, Rise
from multitask.plots import draw_loss
from multitask.signals import stop_requests
from multitask.training import checkpoint
from multitask.training.optim import learning_rate, make_optimizer


@dataclass(frozen=True)
class TrainingInputs:
    """The training data, the validation examples and what is called at each validation.

    names: tasks, in the order of `SampledExample.task`, or `text`. validation: of each name examples
    that fit the window. layout, prompt_weight: as in `collate`. on_validation: called by every
    process at each validation; what it returns joins the record, and its `score` (by name, higher is better), the same
    in all of them, chooses the best weights in place of the loss. sampling_rates, data: by name, for the first record.
    """

    names: Sequence[str]
    stream: Stream
    validation: Mapping[str, Sequence[Example]]
    block_size: int
    layout: Literal["packed", "none"] = "packed"
    prompt_weight: float = 0.0
    on_validation: Callable[[], ValidationScores] = ValidationScores
    selects_by_score: bool = False
    sampling_rates: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Json] = field(default_factory=dict)


class Loop:
    """One run's state: what a checkpoint holds is what this object holds."""

    def __init__(
        self,
        config: LoopConfig,
        seed: int,
        inputs: TrainingInputs,
        out: Path,
        accelerator: Accelerator,
        model: Any,
        report: Report,
    ) -> None:
        self.config, self.seed, self.inputs, self.out = config, seed, inputs, out
        self.accelerator, self.model, self.report = accelerator, model, report
        self.stream, self.block_size = inputs.stream, inputs.block_size
        self.blocks_per_step = max(1, config.batch_tokens // self.block_size)
        num_steps = math.ceil(self.stream.num_blocks_in(config.epochs) / self.blocks_per_step)
        self.max_steps = config.max_steps or max(1, num_steps)
        parts = model, accelerator.device, config.batch_tokens, config.gradient_checkpointing
        self.pass_tokens = config.micro_batch_tokens or training_tokens(*parts)
        self.has_dropout = use_fast_dropout(model)
        self.trim_heap = HeapTrimmer(accelerator.device)
        self.forward, self.optimizer = accelerator.prepare(
            TokenNLL(model, self._compiled()), make_optimizer(model, config, accelerator.device)
        )
        self.parameters = list(self.forward.parameters())
        self.num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)  # merged, LoRA has none
        self.step = self.num_tokens = self.num_worse = 0
        self.elapsed_s = 0.0
        self.best: checkpoint.Best | None = None
        self.overfitting, self.train_loss = Overfitting(), math.inf
        # Of each name since the last log line: nats, on the device, and target tokens; the last nats are of prompts.
        kind = widest_float(accelerator.device)
        self.nats = torch.zeros(len(inputs.names) + 1, dtype=kind, device=accelerator.device)
        self.num_targets = np.zeros(len(inputs.names))

    def _compiled(self) -> CompiledBlocks | None:
        """The blocks of the model, where they are to be compiled."""
        blocks_per_pass = max(1, self.pass_tokens // self.block_size)
        num_passes = self.max_steps * -(-self.blocks_per_step // blocks_per_pass)
        parts = self.accelerator.device, self.accelerator.mixed_precision, self.inputs.layout, num_passes
        return compiled_blocks(self.model, self.config.compile, *parts)

    @property
    def _digests(self) -> dict[str, list[str] | None]:
        """By content, what the data was read from."""
        return {name: report.get("sha256") for name, report in self.inputs.data.items()}

    def run(self) -> None:
        """Trains to the last step; raises Interrupted, with everything saved, after Ctrl-C or SIGTERM."""
        self.start()
        every = self.config.eval_every_steps or max(1, self.max_steps // 10)
        with stop_requests(self.report) as stop:
            mark_s, mark_tokens = time.perf_counter(), self.num_tokens
            while self.step < self.max_steps and not self._is_out_of_patience:
                began_s = time.perf_counter()
                rate = self.optimize()
                self.trim_heap()
                self.step += 1
                is_last = self.step == self.max_steps
                pauses = is_last or self.step % self.config.log_every_steps == 0 or self.step % every == 0
                if pauses:
                    synchronize(self.accelerator.device)  # what is measured elsewhere is not what a step left to do
                self.elapsed_s += time.perf_counter() - began_s
                if self.step % self.config.log_every_steps == 0 or is_last:
                    self._log(rate, (self.num_tokens - mark_tokens) / (time.perf_counter() - mark_s))
                if self.step % every == 0 or is_last:
                    self._validate()
                    self.forward.train()
                if pauses:
                    mark_s, mark_tokens = time.perf_counter(), self.num_tokens
                interrupted = self._any(stop.is_requested)
                is_last |= self._is_out_of_patience
                if interrupted or is_last or ((s := self.config.save_every_steps) and self.step % s == 0):
                    self._save()
                if interrupted:
                    raise Interrupted(str(self.out))

    @property
    def _is_out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.num_worse >= self.config.patience

    def optimize(self, rate: float | None = None) -> float:
        """One optimizer step; returns its learning rate: the one given, or that of the schedule."""
        passes = micro_steps(
            self.stream.next_blocks(self.blocks_per_step),
            self.inputs.layout,
            self.pass_tokens,
            self.block_size,
            self.accelerator.num_processes,
        )
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        part = self.inputs.prompt_weight
        weight = sum(d.num_targets + part * (d.length - d.num_targets) for p in passes for d in p)
        rate = learning_rate(self.config, self.step, self.max_steps) if rate is None else rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        num_rounds = -(-len(passes) // world)
        for turn in range(num_rounds):
            number = turn * world + rank
            is_mine = number < len(passes)  # without a pass one of weight zero, or the other processes wait for it
            drawn = passes[number if is_mine else 0]
            if self.has_dropout:
                torch.manual_seed(hash((self.seed, self.step, number)) % 2**63)
            batch = collate(list(map(self.stream.example, drawn)), self.inputs.layout, self.inputs.prompt_weight)
            # Gradients of all processes are averaged, hence `world`; the last micro-step alone sends them around.
            quiet = self.accelerator.no_sync(self.forward) if turn < num_rounds - 1 else nullcontext()
            with quiet:
                loss, nll = self.forward(batch.to(self.accelerator.device), world / weight if is_mine else 0.0)
                self.accelerator.backward(loss)
            if is_mine:
                self._count(batch, drawn, nll)
        if self.config.clip_norm:
            self.accelerator.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_tokens += sum(d.length for p in passes for d in p)
        return rate

    def _count(self, batch: Batch, drawn: list[SampledExample], nll: Tensor) -> None:
        """Adds the nats of target tokens to their tasks; batch: as it was on the CPU."""
        task_of, num_tasks = np.array([d.task for d in drawn]), len(self.inputs.names)
        task = np.where(batch.is_target.numpy(), task_of[batch.owners.numpy()], num_tasks)
        self.num_targets += np.bincount(task, minlength=num_tasks + 1)[:num_tasks]
        place = torch.from_numpy(task)
        place = place.pin_memory() if nll.is_cuda else place
        self.nats.index_add_(0, place.to(nll.device, non_blocking=True), nll.to(self.nats.dtype))

    def _summed(self) -> Tensor:
        """Nats and target tokens of all processes since the last log line, (tasks, 2) float64."""
        counted = torch.tensor(self.num_targets, dtype=self.nats.dtype, device=self.accelerator.device)
        total: Tensor = self.accelerator.reduce(torch.stack([self.nats[:-1], counted], 1), "sum")
        return total.cpu().double()

    def take_sums(self) -> Tensor:
        """The same, and starts anew."""
        found = self._summed()
        self.nats.zero_()
        self.num_targets[:] = 0
        return found

    def _log(self, rate: float, tokens_per_s: float) -> None:
        sums = self.take_sums()
        loss = {n: round(float(s[0] / s[1]), 5) for n, s in zip(self.inputs.names, sums, strict=True) if s[1] > 0}
        self._check(loss)
        self.train_loss = sum(loss.values()) / len(loss) if loss else self.train_loss
        record: StepEvent = {
            "event": "step",
            "step": self.step,
            "max_steps": self.max_steps,
            "tokens": self.num_tokens,
            "loss": loss,
            "learning_rate": rate,
            "epochs": self.stream.epochs(),
            "tokens_per_s": round(tokens_per_s, 1),
            "peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
        }
        self._write(record)
        self.accelerator.log({f"loss/{n}": v for n, v in loss.items()} | {"learning_rate": rate}, step=self.step)

    def _check(self, loss: Mapping[str, float]) -> None:
        """Raises InputError when a loss is no finite number: nothing could be learned from there on."""
        for name, value in loss.items():
            if not math.isfinite(value):
                raise InputError(
                    f"{self.out}: the loss of '{name}' is not a finite number at step {self.step}; the weights "
                    "have diverged: lower train.learning_rate, or set train.clip_norm (1 is usual)"
                )

    def _write(self, record: StepEvent | ValidationEvent) -> None:
        if not self.accelerator.is_main_process:
            return
        append_line(
            self.out / "metrics.jsonl",
            json.dumps(record, allow_nan=False),
            f"free some disk space, then continue with --resume {self.out}",
        )
        self.report(record)

    def _validate(self) -> None:
        """Scores what validation holds; keeps the weights if they are the best so far."""
        self.forward.eval()
        loss, tokens, rises = {}, {}, {}
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for name, examples in self.inputs.validation.items():
            mine = [examples[n] for n in range(rank, len(examples), world)]
            nll, num = example_nll(self.model, mine, self.pass_tokens, self.accelerator.autocast)
            rise = self.overfitting.rise(name, nll)
            total = torch.tensor([float(nll.sum()), float(num.sum()), *rise], device=self.accelerator.device)
            nats, num_tokens, *more = self.accelerator.reduce(total, "sum").tolist()
            if num_tokens:
                loss[name] = round(nats / num_tokens, 5)
                tokens[name], rises[name] = num_tokens, Rise(*more)
        self._check(loss)
        selection_score = -sum(loss.values()) / len(loss)
        seen = self.inputs.on_validation()
        if self.inputs.selects_by_score:
            selection_score = float(torch.tensor(sum(seen["score"].values()) / len(seen["score"])))  # as in checkpoints
        is_best = self.best is None or selection_score > self.best["selection_score"]
        if is_best:
            self.best = checkpoint.Best(step=self.step, selection_score=selection_score)
            self.num_worse = 0
            if self.accelerator.is_main_process:
                weights = checkpoint.trained_weights(self.model)
                checkpoint.write_aside(self._best_folder, {"model.safetensors": weights}, {})
        else:
            self.num_worse += 1
        record: ValidationEvent = {
            "event": "validation",
            "step": self.step,
            "tokens": self.num_tokens,
            "loss": loss,
            **seen,
            "is_best": is_best,
        }
        self._write(record)
        overfits = self.overfitting.is_evident(self.step, loss, tokens, rises, self.train_loss)
        if overfits and self.accelerator.is_main_process:
            text = (
                f"the validation loss has risen since step {self.overfitting.step}, beyond noise, while the training "
                "loss fell: the model overfits; fewer steps, more data, or model.dropout; train.patience stops there"
            )
            self.report({"event": "warning", "text": text})
        self.accelerator.log({f"validation/{name}": value for name, value in loss.items()}, step=self.step)

    @property
    def _best_folder(self) -> Path:
        """Of the best weights; those of the last checkpoint's best stay until a newer checkpoint names others."""
        return self.out / "checkpoints" / f"best-{self.best['step'] if self.best else 0}"

    def load_best(self) -> None:
        """Puts the best weights back and draws the curves."""
        if self.best is not None:
            checkpoint.load_weights(self._best_folder, self.model)
        if self.accelerator.is_main_process:
            draw_loss(self.out / "metrics.jsonl", self.out / "loss.png", self.config.max_steps is None)

    @property
    def cost(self) -> Cost:
        """Seconds in the loop, tokens, tokens/s, memory, parameters."""
        return Cost(
            train_s=round(self.elapsed_s, 1),
            tokens=self.num_tokens,
            tokens_per_s=round(self.num_tokens / max(self.elapsed_s, 1e-9), 1),
            peak_memory_bytes=peak_memory_bytes(self.accelerator.device),
            trainable_parameters=self.num_trainable,
            total_parameters=sum(p.numel() for p in self.model.parameters()),
            steps=self.step,
            best_step=self.best["step"] if self.best else self.step,
            epochs=self.stream.epochs(),
        )

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        sums = self._summed().tolist()
        if self.accelerator.is_main_process:
            folder = self.out / "checkpoints"
            scaler = self.accelerator.scaler
            state: checkpoint.State = {
                "step": self.step,
                "cursor": self.stream.cursor,
                "num_tokens": self.num_tokens,
                "elapsed_s": self.elapsed_s,
                "best": self.best,
                "num_worse": self.num_worse,
                "sums": sums,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "data": self._digests,
                "num_threads": torch.get_num_threads(),
                "precision": self.config.precision,
            }
            path = checkpoint.save(folder, self.model, self.optimizer, state)
            checkpoint.prune(folder, self.config.keep_checkpoints, self._best_folder)
            draw_loss(self.out / "metrics.jsonl", self.out / "loss.png", self.config.max_steps is None)
            self.report({"event": "saved", "step": self.step, "path": str(path)})
        self.accelerator.wait_for_everyone()

    def restore(self, path: Path) -> None:
        """Continues from a checkpoint, bit for bit on a CPU with the same number of threads.

        Raises InputError when what is read is not what was read before.
        """
        state = checkpoint.read_state(path)
        if state.get("data", self._digests) != self._digests:
            raise checkpoint.other_data(self.out, state["data"], self._digests)
        checkpoint.load(path, self.model, self.optimizer)
        self.step, self.num_tokens, self.elapsed_s = state["step"], state["num_tokens"], state["elapsed_s"]
        self.best, self.num_worse = state["best"], state["num_worse"]
        self.stream.cursor = tuple(state["cursor"])
        if self.accelerator.is_main_process:
            sums = torch.tensor(state["sums"], dtype=self.nats.dtype)
            self.nats[:-1] += sums[:, 0].to(self.accelerator.device)
            self.num_targets += sums[:, 1].numpy()
            checkpoint.drop_lines_after(self.out / "metrics.jsonl", self.step)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if (threads := state["num_threads"]) != torch.get_num_threads():
            text = (
                f"{path} was written with {threads} threads, this process has {torch.get_num_threads()}: "
                f"sums round differently; OMP_NUM_THREADS={threads} continues bit for bit"
            )
            self.report({"event": "warning", "text": text})

    def start(self) -> None:
        """Before the first step: trackers and the first report; raises InputError where no step is left."""
        if self.step > self.max_steps:
            raise InputError(f"{self.out}: at step {self.step}, past {self.max_steps} of {self.config.length}")
        if self.config.tracker and self.accelerator.is_main_process:
            facts = {"tasks": ",".join(self.inputs.names), "seed": self.seed}
            self.accelerator.init_trackers("multitask", config=facts)
        self.forward.train()
        parts = self.blocks_per_step, self.block_size, self.accelerator.num_processes
        if self.inputs.layout == "packed" and self.accelerator.is_main_process and (text := idle_warning(*parts)):
            self.report({"event": "warning", "text": text})
        if self.accelerator.is_main_process:
            self.report(
                {
                    "event": "start",
                    "step": self.step,
                    "max_steps": self.max_steps,
                    "device": str(self.accelerator.device),
                    "precision": {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision),
                    "tokens_per_step": self.blocks_per_step * self.block_size,
                    "sampling_rates": self.inputs.sampling_rates,
                    "data": self.inputs.data,
                    "parameters": sum(p.numel() for p in self.model.parameters()),
                    "trainable_parameters": self.num_trainable,
                }
            )

    def _any(self, is_requested: bool) -> bool:
        """Whether any process was asked to stop."""
        if self.accelerator.num_processes == 1:
            return is_requested
        return bool(self.accelerator.reduce(torch.tensor([float(is_requested)], device=self.accelerator.device)) > 0)
