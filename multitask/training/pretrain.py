"""Pretraining: a plain text corpus, one long stream of tokens, the same loop, the same folder.

`pretrain` reads top to bottom. A randomly initialised GPT-2 of any shape, a bigram model, or any model folder is
trained on blocks of the text; at each validation it is scored on text that it was not trained on, and generates a
sample.
"""

import math
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from multitask import processes
from multitask.batching.collate import Example
from multitask.batching.packing import SampledExample, check_window
from multitask.batching.text_blocks import TextStream
from multitask.config.evaluation import EvalConfig
from multitask.config.run import PretrainConfig
from multitask.errors import InputError
from multitask.evaluation import free_generation, metrics, results_file, tuned
from multitask.evaluation.baselines import score_of
from multitask.evaluation.schema import Data, Results, Score, TaskScores
from multitask.events import Report, ValidationScores, ignore
from multitask.inference.decoding import generate
from multitask.inference.scoring import Floats, example_nll
from multitask.models.bigram import BigramCounts, BigramLMHeadModel
from multitask.models.build import build_model
from multitask.models.io import save_plain, write_plain_card
from multitask.models.lora import max_positions, plain_model
from multitask.models.names import model_folder
from multitask.models.support import prepare_attention
from multitask.pattern import markers
from multitask.signals import interruptible
from multitask.task import Task
from multitask.tokenization import train as tokenization_train
from multitask.tokenization.token_file import TokenFile, token_file
from multitask.tokenization.tokenizer import load_tokenizer, whole_text
from multitask.training.loop import Loop, TrainingInputs
from multitask.training.run_dir import Run, open_run

NAME = "text"
"""What the corpus is called where a task's name stands."""


class _Blocks(Sequence[Example]):
    """Stretches of a text as examples, read from its file when they are asked for."""

    def __init__(self, stream: TextStream, limit: int | None = None) -> None:
        self.stream = stream
        self.drawn: list[SampledExample] = [d for block in stream.in_order(limit) for d in block]

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            part = copy(self)
            part.drawn = self.drawn[number]
            return part
        return self.stream.example(self.drawn[number])


@dataclass(frozen=True)
class Prepared:
    """All that a loop over a plain text corpus needs, and what only its end needs."""

    inputs: TrainingInputs
    model: Any
    tokenizer: Any
    train: TokenFile
    validation: TokenFile
    in_order: "_Blocks"
    """The whole validation text, block by block."""


def pretrain(
    config: PretrainConfig,
    tasks: Mapping[str, Task],
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool | Path = False,
    report: Report = ignore,
    arm: str | None = None,
) -> Results | None:
    """Trains a model on a plain text corpus and writes a run folder; returns the results, None in other processes.

    tasks: those whose tokens a tokenizer trained here gets. resume: True: from the newest checkpoint of `out`; a path:
    from this one. arm: what a report calls the run.
    Raises InputError for settings, texts or folders that cannot be used, Interrupted after Ctrl-C or SIGTERM.
    """
    started = time.perf_counter()
    with open_run(config, out, overwrite, resume) as run:
        config, out = run.config, run.out
        ready = prepare(run, tasks, report)
        model, tokenizer = ready.model, ready.tokenizer
        loop = Loop(config.train, config.seed, ready.inputs, out, run.accelerator, model, report)
        run.commit(loop)
        loop.run()
        with interruptible(out):
            loop.load_best()
            processes.by_main(lambda: save_plain(model, tokenizer, out / "model", config.sample_prompt))
            nats, tokens = _nll(loop, ready.in_order, config)
            if not run.accelerator.is_main_process:
                return None
            held, train = ready.validation.report, ready.train.report
            rows = {"num_rows": held["num_documents"], "train": train | {"num_rows": train["num_documents"]}}
            data = Data.model_validate(held | rows)
            scores = _score(out, ready, config, nats, tokens).model_copy(update=ready.inputs.on_validation())
            cost = loop.cost.model_copy(update={"wall_s": round(time.perf_counter() - started, 1)})
            parts = config, "pretrain", arm or config.model.arch, str(out / "model"), {NAME: data}, {NAME: scores}
            results = results_file.results_of(*parts, cost=cost)
            facts = results_file.card_facts(results, out.name, {}, config)
            write_plain_card(model, tokenizer, out / "model", config.sample_prompt, facts)
            results_file.write_results(out / "results.json", results)
        report({"event": "done", "out": str(out), "results": results.to_json()})
        return results


def prepare(run: Run[PretrainConfig], tasks: Mapping[str, Task], report: Report) -> Prepared:
    """Tokenizer, tokens and model, and how blocks are drawn."""
    config, accelerator = run.config, run.accelerator
    tokenizer = _tokenizer(config, tasks, run.out, bool(run.resumes), accelerator, report)
    with accelerator.main_process_first():
        train = token_file(tokenizer, config.text, "train", report)
        validation = token_file(tokenizer, config.text, "validation", report)
    model = _model(config, tokenizer, accelerator)
    block_size = tuned.block_size_of(config.train, model)
    check_window(block_size, max_positions(model))
    is_bigram = isinstance(plain_model(model), BigramLMHeadModel)
    layout = "packed" if is_bigram else prepare_attention(model, block_size, "packed")
    _check_lengths(train, validation, block_size)
    border = _border(config, train)
    stream = TextStream(
        train.ids, block_size, config.seed, config.train.stride, config.train.blocks == "random", border
    )
    whole = TextStream(validation.ids, block_size, config.seed, border_id=border)
    inputs = TrainingInputs(
        names=[NAME],
        stream=stream,
        validation={NAME: _Blocks(whole, config.train.eval_max_blocks)},
        block_size=block_size,
        layout=layout,
        on_validation=_Sampler(model, tokenizer, config, train).sample,
        sampling_rates={NAME: 1.0},
        data={NAME: train.report},
    )
    return Prepared(inputs, model, tokenizer, train, validation, _Blocks(whole))


def _model(config: PretrainConfig, tokenizer: Any, accelerator: Accelerator) -> Any:
    named = config.model.model_copy(update={"name": model_folder(config.model.name)})
    model, _ = build_model(named, tokenizer, [], config.seed)
    if config.train.gradient_checkpointing and not isinstance(model, BigramLMHeadModel):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _check_lengths(train: TokenFile, validation: TokenFile, block_size: int) -> None:
    """Raises InputError for a text of less than a block."""
    for tokens, least in ((train, block_size + 1), (validation, 2)):
        if len(tokens) < least:
            files = ", ".join(tokens.report["files"]) or "the synthetic corpus"
            raise InputError(
                f"{files} ({tokens.report['split']}): {len(tokens)} tokens, a block needs {least}; lower "
                f"train.block_size ({block_size}), or give more text"
            )


def _border(config: PretrainConfig, train: TokenFile) -> int | None:
    """With document masking, the token between documents; raises InputError where there is none."""
    if not config.train.document_masking:
        return None
    border = train.before_id if train.before_id is not None else train.after_id
    if border is None:
        raise InputError(
            "train.document_masking: nothing stands between documents; name a token in text.after or text.before"
        )
    return border


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


class _Sampler:
    """What a validation shows beside the loss: text generated after a fixed prompt, sampled with fixed numbers."""

    def __init__(self, model: Any, tokenizer: Any, config: PretrainConfig, train: TokenFile) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        start = next((i for i in (train.before_id, train.after_id) if i is not None), 0)
        self.prompt = tokenizer(config.sample_prompt, add_special_tokens=False)["input_ids"] or [start]
        self.end_ids = {i for i in (train.after_id,) if i is not None}
        window = max_positions(model)
        self.num_left = config.sample_tokens if window is None else window - len(self.prompt)
        if config.sample_tokens and self.num_left < 1:
            raise InputError(f"sample_prompt: {len(self.prompt)} tokens leave none in a window of {window}; shorten it")

    def sample(self) -> ValidationScores:
        """What joins the record of a validation."""
        if not self.config.sample_tokens:
            return {}
        limit, uniform = min(self.config.sample_tokens, self.num_left), free_generation.numbers(self.config.seed)
        ((ids, _),) = generate(self.model, [self.prompt], limit, self.end_ids, 8192, uniform=uniform)
        return {"sample": self.config.sample_prompt + whole_text(self.tokenizer.decode(ids))}


def _nll(loop: Loop, blocks: _Blocks, config: PretrainConfig) -> tuple[Floats, Floats]:
    """Nats and target tokens of each block, (N,) both, in every process; each scores a part of the blocks."""
    parts = processes.mapped(
        lambda part: example_nll(loop.model, part, loop.pass_tokens, loop.accelerator.autocast),
        processes.parts(blocks),
    )
    nats, tokens = zip(*parts, strict=True)
    return np.concatenate(nats), np.concatenate(tokens)


def _score(out: Path, ready: Prepared, config: PretrainConfig, nats: Floats, tokens: Floats) -> TaskScores:
    """Perplexity of the whole validation text, block by block, beside count-based baselines.

    Words and bytes are divided among blocks by their tokens, so that scores per word and per byte have intervals too.
    """
    blocks, ids = ready.in_order, ready.train.ids
    counted = BigramCounts(ids[:-1], ids[1:], len(ready.tokenizer))
    held = ready.validation.report
    own, baselines = metrics.Numbers(), {"unigram": metrics.Numbers(), "bigram": metrics.Numbers()}
    for number, (sequence, _) in enumerate(blocks):
        sizes = {
            "tokens": float(tokens[number]),
            "words": held["num_words"] * float(tokens[number]) / len(ready.validation),
            "bytes": held["num_bytes"] * float(tokens[number]) / len(ready.validation),
        }
        if not math.isfinite(nats[number]):
            raise InputError(f"{out}: the model finds no finite likelihood of the validation text")
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
