"""Pretraining: running text, one long stream of tokens, the same loop, the same folder.

Read `pretrain` for the order of things. An empty GPT-2 of any shape, a bigram model, or any model folder reads blocks
of the text; every now and then it is asked how likely it finds text it has not read, and writes a sample.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from multitask.batching.collate import Ids
from multitask.batching.packing import SampledExample, check_window
from multitask.batching.text_blocks import TextStream
from multitask.config.evaluation import EvalConfig
from multitask.config.run import PretrainConfig
from multitask.errors import InputError
from multitask.evaluation import free_generation, metrics, results_file, tuned
from multitask.evaluation.baselines import score_of
from multitask.evaluation.schema import Cost, Data, Score, TaskScores
from multitask.events import Report, ignore
from multitask.inference.decoding import generate
from multitask.inference.scoring import example_nll
from multitask.models.attention import name_for
from multitask.models.bigram import BigramCounts, BigramLMHeadModel
from multitask.models.build import build_model
from multitask.models.io import model_folder, save_plain
from multitask.models.lora import plain_model
from multitask.pattern import markers
from multitask.task import Task
from multitask.tokenization import train as tokenization_train
from multitask.tokenization.token_file import TokenFile, token_file
from multitask.tokenization.tokenizer import load_tokenizer
from multitask.training import run_dir
from multitask.training.loop import Loop, TrainingInputs

NAME = "text"
"""What running text is called where a task's name stands."""


@dataclass(frozen=True)
class _Prepared:
    inputs: TrainingInputs
    model: Any
    tokenizer: Any
    train: TokenFile
    validation: TokenFile
    in_order: "_Blocks"


class _Blocks(Sequence[tuple[Ids, int]]):
    """Stretches of a text as examples, read from its file when they are asked for."""

    def __init__(self, stream: TextStream, limit: int | None = None) -> None:
        self.stream = stream
        self.drawn: list[SampledExample] = [d for block in stream.in_order(limit) for d in block]

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, number: Any) -> Any:
        return self.stream.ids(self.drawn[number]), 1


def pretrain(
    config: PretrainConfig,
    tasks: Mapping[str, Task],
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    report: Report = ignore,
    arm: str | None = None,
) -> dict[str, Any]:
    """Trains a model on running text and leaves a run folder; returns what `results.json` holds.

    tasks: those whose tokens a tokenizer trained here gets. arm: what a report calls the run.
    Raises InputError for settings, texts or folders that cannot be used, Interrupted after Ctrl-C or SIGTERM.
    """
    started = time.perf_counter()

    def prepare(config: PretrainConfig, out: Path, accelerator: Accelerator) -> _Prepared:
        return _prepare(config, tasks, out, resume, accelerator, report)

    def finish(config: PretrainConfig, loop: Loop, prepared: _Prepared) -> dict[str, Any]:
        return _finish(loop, prepared, config, started, arm)

    return run_dir.run_training(config, out, overwrite, resume, report, prepare, finish)


def _prepare(
    config: PretrainConfig, tasks: Mapping[str, Task], out: Path, resume: bool, accelerator: Accelerator, report: Report
) -> _Prepared:
    """Tokenizer, tokens and model, and how blocks are drawn."""
    tokenizer = _tokenizer(config, tasks, out, resume, accelerator, report)
    with accelerator.main_process_first():
        train = token_file(tokenizer, config.text, "train", report)
        validation = token_file(tokenizer, config.text, "validation", report)
    named = config.model.model_copy(update={"name": model_folder(config.model.name)})
    model, _ = build_model(named, tokenizer, [], config.seed)
    base = plain_model(model)
    if not isinstance(base, BigramLMHeadModel):
        base.config._attn_implementation = name_for(accelerator.device)
        if config.train.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    block_size = tuned.block_size_of(config.train, model)
    check_window(block_size, base.config.n_positions)
    for tokens, least in ((train, block_size + 1), (validation, 2)):
        if len(tokens) < least:
            raise InputError(
                f"{', '.join(tokens.report['files']) or 'the world'} ({tokens.report['split']}): {len(tokens)} tokens, "
                f"a block needs {least}; lower train.block_size ({block_size}), or give more text"
            )
    border = train.before_id if train.before_id is not None else train.after_id
    if config.train.document_masking and border is None:
        raise InputError(
            "train.document_masking: nothing stands between documents; name a token in text.after or text.before"
        )
    border = border if config.train.document_masking else None
    stream = TextStream(
        train.ids, block_size, config.seed, config.train.stride, config.train.blocks == "random", border
    )
    whole = TextStream(validation.ids, block_size, config.seed, border_id=border)
    inputs = TrainingInputs(
        names=[NAME],
        stream=stream,
        validation={NAME: _Blocks(whole, config.train.eval_max_blocks)},
        block_size=block_size,
        on_validation=_sampler(model, tokenizer, config, train),
        facts={"sampling_rates": {NAME: 1.0}, "data": {NAME: train.report}},
    )
    return _Prepared(inputs, model, tokenizer, train, validation, _Blocks(whole))


def _tokenizer(
    config: PretrainConfig, tasks: Mapping[str, Task], out: Path, resume: bool, accelerator: Accelerator, report: Report
) -> Any:
    """The tokenizer that is named, the model's, or one trained on the text; the main process makes it."""
    own, other = model_folder(config.model.name), model_folder(config.model.tokenizer)
    if own is not None:
        made = load_tokenizer(own, config.model.revision)
        if other is not None and load_tokenizer(other).get_vocab() != made.get_vocab():
            raise InputError(
                f"{config.model.tokenizer}: the model {config.model.name} was not trained with this tokenizer: its "
                "tokens have other ids; leave out model.tokenizer to take the model's own"
            )
        return made
    if other is not None:
        return load_tokenizer(other)
    folder = out / "model"
    if accelerator.is_main_process and not resume:
        tokenization_train.tokenizer(config.tokenizer, config.text, markers(tasks), folder, report=report)
    accelerator.wait_for_everyone()
    return load_tokenizer(str(folder))


def _sampler(model: Any, tokenizer: Any, config: PretrainConfig, train: TokenFile) -> Callable[[], dict[str, Any]]:
    """What a validation shows beside the loss: text written after a fixed prompt, sampled with fixed numbers."""
    start = next((i for i in (train.before_id, train.after_id) if i is not None), 0)
    prompt = tokenizer(config.sample_prompt, add_special_tokens=False)["input_ids"] or [start]
    ends = {i for i in (train.after_id,) if i is not None}
    room = plain_model(model).config.n_positions - len(prompt)
    if config.sample_tokens and room < 1:
        raise InputError(
            f"sample_prompt: {len(prompt)} tokens leave no room in a window of {room + len(prompt)}; shorten it"
        )

    def on_validation() -> dict[str, Any]:
        if not config.sample_tokens:
            return {}
        uniform = free_generation.numbers(config.seed)
        ((ids, _),) = generate(model, [prompt], min(config.sample_tokens, room), ends, 8192, uniform=uniform)
        return {"sample": config.sample_prompt + tokenizer.decode(ids)}

    return on_validation


def _finish(loop: Loop, prepared: _Prepared, config: PretrainConfig, started: float, arm: str | None) -> dict[str, Any]:
    """Writes the best model and how likely it finds the whole validation text; returns what `results.json` holds."""
    out, model, tokenizer = loop.out, loop.model, prepared.tokenizer
    loop.load_best()
    save_plain(model, tokenizer, out / "model", config.sample_prompt)
    train, held = (
        file.report | {"num_rows": file.report["num_documents"]} for file in (prepared.train, prepared.validation)
    )
    data = Data.model_validate(held | {"train": train})
    scores = _score(loop, prepared, config).model_copy(update=prepared.inputs.on_validation())
    cost = Cost(**loop.cost, wall_s=round(time.perf_counter() - started, 1))
    arm = arm or config.model.arch
    results = results_file.results_of(
        config, "pretrain", arm, str(out / "model"), {NAME: data}, {NAME: scores}, cost=cost
    )
    results_file.write_results(out / "results.json", results)
    return results.to_json()


def _score(loop: Loop, prepared: _Prepared, config: PretrainConfig) -> TaskScores:
    """Perplexity of the whole validation text, block by block, beside count-based baselines.

    Words and bytes are divided among blocks by their tokens, so that scores per word and per byte have intervals too.
    """
    blocks, ids = prepared.in_order, prepared.train.ids
    nats, tokens = example_nll(loop.model, blocks, config.train.micro_batch_tokens, loop.accelerator.autocast)
    counted = BigramCounts(ids[:-1], ids[1:], len(prepared.tokenizer))
    held = prepared.validation.report
    own, baselines = metrics.Numbers(), {"unigram": metrics.Numbers(), "bigram": metrics.Numbers()}
    for number, (sequence, _) in enumerate(blocks):
        sizes = {
            "tokens": float(tokens[number]),
            "words": held["num_words"] * float(tokens[number]) / len(prepared.validation),
            "bytes": held["num_bytes"] * float(tokens[number]) / len(prepared.validation),
        }
        if not math.isfinite(nats[number]):
            raise InputError(f"{loop.out}: the model finds no finite likelihood of the validation text")
        own.append({"nll": float(nats[number]), **sizes})
        before, targets = np.asarray(sequence[:-1]), np.asarray(sequence[1:])
        baselines["unigram"].append({"nll": float(counted.unigram(targets).sum()), **sizes})
        baselines["bigram"].append({"nll": float(counted.bigram(before, targets).sum()), **sizes})
    return TaskScores(
        num_examples=len(blocks),
        metrics=_finished(own, config.seed),
        baselines={name: _finished(numbers, config.seed) for name, numbers in baselines.items()},
        bigram_entropy=round(counted.entropy, 6),
    )


def _finished(numbers: metrics.Numbers, seed: int) -> dict[str, Score]:
    return {name: score_of(name, numbers, EvalConfig().num_bootstrap, seed) for name in metrics.FROM_NLL}
