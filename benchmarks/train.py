"""Training speed and memory beside TRL: the same model, rows, strings, precision and optimizer, arms taken in turns.

`python benchmarks/train.py --rounds 5` runs ours, TRL as it comes, TRL packed (two ways), TRL grouped by length, and
again, each time in a process of its own, and writes `benchmarks/train.md`:

| arm | useful tokens/s | speed-up of ours | peak memory |

Useful tokens are those of examples; padding is work, but not useful work. `--suite smollm2-135m` and `gemma3-270m`
train a pretrained model by LoRA instead (`multitask models get NAME` fetches it) and write `benchmarks/train-NAME.md`.
`make bench-train` makes the environment.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import Clock, commit, flops, matrix_flops, processor, run_arm


@dataclass(frozen=True)
class Suite:
    """What is trained on what.

    block: window of an example; four of them are a step. base: name of a pretrained model, trained by LoRA; None: a
    new model, fully.
    """

    sources: Mapping[str, str]
    block: int = 1024
    base: str | None = None

    @property
    def arms(self) -> list[str]:
        """Their names."""
        return [arm for arm in ARMS if self.base is None or "wrapped" not in arm]


KOREAN = {"nli": "nli_ko_klue", "qa": "qa_ko_korquad", "summ": "summ_ko_sae4k", "cls": "gen_ko_nsmc"}
ENGLISH = {"nli": "nli_en_cad", "qa": "qa_en_xquad", "summ": "summ_en_scitldr"}
SUITES = {
    "new": Suite(KOREAN),
    "smollm2-135m": Suite(ENGLISH, 512, "smollm2-135m"),
    "gemma3-270m": Suite(KOREAN, 512, "gemma3-270m"),
}
LORA = {"rank": 16, "alpha": 32}
BLOCKS_PER_STEP = 4
TOKENIZER_ROWS = 20000
GROUPED_ROWS = 8  # of one pass of TRL's group-by-length
SEED = 7
MODEL = {"vocab_size": 8000, "n_layer": 8, "n_head": 6, "n_embd": 384, "n_positions": 1024}
OPTIMIZER = {"learning_rate": 5e-4, "weight_decay": 0.01}
ARMS = {
    "ours": "packed, 4 blocks of at most BLOCK tokens per step, in one forward pass, examples masked from each other",
    "trl default": "`SFTTrainer` with its defaults: 8 rows per step, padded, gradient checkpointing",
    "trl packing": "`packing=True`, 4 blocks of at most BLOCK tokens per step, in one forward pass, no checkpointing",
    "trl packing wrapped": (
        '`packing_strategy="wrapped"`: the same without masking examples from each other, split wherever a block '
        "ends; a different training objective, but no mask is needed"
    ),
    "trl group-by-length": (
        f"about 4 blocks of tokens per step, in forward passes of {GROUPED_ROWS} rows of similar length, no "
        "checkpointing; rows are sorted over the whole round, which pads less than its own sampler would with so few "
        "rows"
    ),
}


# ----------------------------------------------------------------------------------------------------- what all share


def prepare(work: Path, root: Path, suite: Suite, num_rounds: int, num_rows: int) -> dict[str, Any]:
    """Draws rows of the tasks in proportion, trains a tokenizer, writes model, rows and strings; returns facts.

    Raises AssertionError when TRL's strings would not be read as the ids that we train on.
    """
    from multitask.batching.collate import collate
    from multitask.config.data import DataConfig
    from multitask.config.model import ModelConfig
    from multitask.device import choose_device, choose_precision
    from multitask.models.build import build
    from multitask.pattern import render, text_of
    from multitask.registry import choose, load_tasks
    from multitask.tokenization.encoded_rows import prepare as encode

    tasks = choose(load_tasks(), suite.sources)
    lines = [
        (name, line)
        for name, source in suite.sources.items()
        for line in (root / f"{source}.train.jsonl").read_text("utf-8").splitlines()
    ]
    drawn = [lines[n] for n in np.random.default_rng(SEED).permutation(len(lines)).tolist()]
    records = (json.loads(line) for _, line in drawn[:TOKENIZER_ROWS])
    texts = (text for record in records for key, text in record.items() if key != "id" and isinstance(text, str))
    settings = ModelConfig(**MODEL) if suite.base is None else ModelConfig(name=suite.base)
    model, tokenizer, _ = build(settings, tasks, texts, SEED)
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")

    lengths = defaultdict(list)
    num_left_out, needed = 0, 0.0
    for turn in range(num_rounds):
        here = work / str(turn)
        here.mkdir()
        rows = drawn[turn * num_rows : (turn + 1) * num_rows]
        _write_rows(here, suite, rows)
        pairs, too_long, packed = [], set(), []
        for name, task in tasks.items():
            examples = encode(task, "train", tokenizer, suite.block, DataConfig(**_data(here, root, suite)))
            for number, row in enumerate(examples.rows()):
                if examples.is_truncated(number):  # TRL would cut at the end of the row, where the answer is
                    too_long.add(row.id)
                    continue
                prompt = text_of(render(task, row.fields, with_target=False))
                whole = text_of(render(task, row.fields))
                assert tokenizer(whole)["input_ids"] == examples.ids(number).tolist(), (row.where, whole)
                pairs.append({"prompt": prompt, "completion": whole.removeprefix(prompt)})
                lengths[name].append(int(examples.lengths[number]))
                packed.append((examples.ids(number), examples.borders(number)))
        _write_rows(here, suite, [(name, line) for name, line in rows if str(json.loads(line)["id"]) not in too_long])
        np.random.default_rng([SEED, turn]).shuffle(pairs)
        _write_lines(here / "trl.jsonl", [json.dumps(pair) for pair in pairs])
        num_left_out += len(too_long)
        needed += flops(model, collate(packed), suite.base is not None)
    facts = {
        "rows": {name: len(found) for name, found in lengths.items()},
        "tokens": {name: sum(found) for name, found in lengths.items()},
        "longest": {name: max(found) for name, found in lengths.items()},
        "num_left_out": num_left_out,
        "flops_per_token": needed / sum(map(sum, lengths.values())),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "precision": choose_precision("auto", choose_device("cpu"), MODEL["n_embd"]),
    }
    (work / "facts.json").write_text(json.dumps(facts), "utf-8")
    return facts


def _data(work: Path, root: Path, suite: Suite) -> dict[str, Any]:
    """Settings of the data: the drawn rows, read as the shipped presets read them."""
    from multitask.config.loading import read_yaml
    from multitask.files import shipped

    sources = {}
    for name, preset in suite.sources.items():
        source = read_yaml(shipped("configs") / "data" / f"{preset}.yaml")
        files = {"train": str(work / f"{name}.jsonl"), "validation": str(root / f"{preset}.validation.jsonl")}
        sources[name] = [source | {"files": files}]
    return {"sources": sources, "cache": str(work / "cache")}


def _write_rows(folder: Path, suite: Suite, rows: list[tuple[str, str]]) -> None:
    for name in suite.sources:
        _write_lines(folder / f"{name}.jsonl", [line for task, line in rows if task == name])


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), "utf-8")


# --------------------------------------------------------------------------------------------------------- one process


class _Enough(Exception):
    """Leaves `multitask.train` from inside its progress report."""


def run_ours(work: Path, root: Path, suite: Suite, seed: int) -> dict[str, float]:
    """This project's loop as `multitask.train` runs it, over as many tokens as the round's rows have."""
    from multitask import train

    facts = json.loads((work.parent / "facts.json").read_text("utf-8"))
    clock: Clock | None = None
    result: dict[str, float] = {}
    max_steps = 0

    def report(record: Any) -> None:
        nonlocal clock, result, max_steps
        if record["event"] == "start":
            num_examples = {name: found["num_rows"] for name, found in record["data"].items()}
            assert sum(num_examples.values()) == _num_lines(work / "trl.jsonl"), num_examples
            clock, max_steps = Clock(), record["max_steps"]
        elif record["event"] == "step" and record["step"] == max_steps:
            assert clock is not None
            result = clock.result("tokens", record["tokens"], num_steps=record["step"])
            raise _Enough

    settings = {
        "seed": seed,
        "device": "cpu",
        "data": _data(work, root, suite),
        "model": {"name": str(work.parent / "model")},
        "adapter": {"kind": "none"} if suite.base is None else {"kind": "lora", **LORA},
        "train": {
            **OPTIMIZER,
            "epochs": 1,
            "block_size": suite.block,
            "batch_tokens": suite.block * BLOCKS_PER_STEP,
            "micro_batch_tokens": suite.block * BLOCKS_PER_STEP,
            "precision": facts["precision"],
            "schedule": "constant",
            "warmup_steps": 0,
            "eval_every_steps": 10**6,
            "save_every_steps": 0,
            "eval_max_rows": 10,
        },
        "eval": {"split": "validation", "max_rows": 10},
    }
    try:
        train(settings, tasks=suite.sources, out=work / "run", overwrite=True, report=report)
    except _Enough:
        return {**result, "matrix_flops": matrix_flops(facts["precision"] == "bf16")}
    raise AssertionError("the run reported no last step")


def _num_lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def run_trl(work: Path, arm: str, suite: Suite, seed: int) -> dict[str, float]:
    """One epoch of TRL's SFTTrainer."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.trainer_pt_utils import LengthGroupedSampler
    from trl import SFTConfig, SFTTrainer

    facts = json.loads((work.parent / "facts.json").read_text("utf-8"))
    clock: Clock | None = None
    result: dict[str, float] = {}
    num_tokens = 0

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            nonlocal num_tokens
            mask = inputs.get("attention_mask")
            num_tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().training_step(model, inputs, *rest, **named)

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if arm != "trl group-by-length":
                return super()._get_train_sampler(train_dataset)
            lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
            return LengthGroupedSampler(batch_size=len(lengths), lengths=lengths)

    class Timing(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            nonlocal clock
            clock = Clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal result
            assert clock is not None
            result = clock.result("tokens", num_tokens, num_steps=state.global_step)

    settings: dict[str, Any] = {}
    if arm.startswith("trl packing"):
        settings = {"packing": True, "per_device_train_batch_size": BLOCKS_PER_STEP, "gradient_checkpointing": False}
        if arm.endswith("wrapped"):
            settings["packing_strategy"] = "wrapped"
    elif arm == "trl group-by-length":
        mean_length = sum(facts["tokens"].values()) / sum(facts["rows"].values())
        settings = {
            "train_sampling_strategy": "group_by_length",
            "per_device_train_batch_size": GROUPED_ROWS,
            "gradient_accumulation_steps": max(1, round(BLOCKS_PER_STEP * suite.block / mean_length / GROUPED_ROWS)),
            "gradient_checkpointing": False,
        }
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        target_modules="all-linear",
    )
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(work.parent / "model"),
        args=SFTConfig(
            output_dir=str(work / "trl"),
            max_length=suite.block,
            num_train_epochs=1,
            use_cpu=True,
            bf16=facts["precision"] == "bf16",
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=seed,
            **OPTIMIZER,
            **settings,
        ),
        train_dataset=load_dataset(
            "json", data_files=str(work / "trl.jsonl"), split="train", cache_dir=str(work / "datasets")
        ),
        processing_class=AutoTokenizer.from_pretrained(work.parent / "model"),
        callbacks=[Timing()],
        peft_config=None if suite.base is None else lora,
    )
    trainer.train()
    return result


# ------------------------------------------------------------------------------------------------------------ all arms


def rounds(work: Path, root: Path, name: str, num_rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Every arm once, then every arm again; raises RuntimeError with the end of a process's output when it fails."""
    for turn in range(num_rounds):
        for arm in SUITES[name].arms:
            options = {"--suite": name, "--data": str(root), "--seed": str(SEED + turn)}
            result = run_arm(__file__, arm, work / str(turn), options)
            print(f"round {turn + 1} of {num_rounds}: {arm}: {json.dumps(result)}", flush=True)
            yield arm, result


def markdown(
    results: dict[str, list[dict[str, float]]],
    facts: dict[str, Any],
    suite: Suite,
    command: str,
    notes: Sequence[str],
) -> str:
    """The report: what was measured, on what, how, and what came out."""
    speed = {arm: statistics.median(r["tokens_per_s"] for r in runs) for arm, runs in results.items()}
    per_cpu = {arm: statistics.median(r["tokens_per_cpu_s"] for r in runs) for arm, runs in results.items()}
    memory = {arm: max(r["peak_bytes"] for r in runs) / 2**20 for arm, runs in results.items()}
    best = max((arm for arm in speed if arm != "ours"), key=lambda arm: speed[arm])
    num_rounds = len(results["ours"])
    by_round = [
        ours["tokens_per_s"] / max(results[arm][n]["tokens_per_s"] for arm in results if arm != "ours")
        for n, ours in enumerate(results["ours"])
    ]
    table = [
        "| arm | useful tokens/s, median [min-max] | speed-up of ours | per CPU second | peak memory |",
        "|---|---|---|---|---|",
    ]
    for arm, runs in results.items():
        low, high = min(r["tokens_per_s"] for r in runs), max(r["tokens_per_s"] for r in runs)
        ratio = "1" if arm == "ours" else f"{speed['ours'] / speed[arm]:.2f}"
        table.append(
            f"| {arm} | {speed[arm]:,.0f} [{low:,.0f}-{high:,.0f}] | {ratio} | {per_cpu[arm]:,.0f} "
            f"| {memory[arm]:,.0f} MiB |"
        )
    needed = facts["flops_per_token"]
    share = statistics.median(needed * run["tokens_per_s"] / run["matrix_flops"] for run in results["ours"])
    tokens = sum(facts["tokens"].values())
    rows = ", ".join(
        f"{name} {n:,} rows ({facts['tokens'][name] / tokens:.0%} of the tokens, longest {facts['longest'][name]})"
        for name, n in facts["rows"].items()
    )
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("multitask", "trl", "torch", "transformers", "accelerate", "datasets")
    )
    return "\n".join(
        [
            "# Training speed compared with TRL",
            "",
            f"Ours compared with TRL's fastest arm ({best}): **{speed['ours'] / speed[best]:.2f} times** its tokens/s "
            f"(by round: {', '.join(f'{r:.2f}' for r in by_round)}), {memory['ours'] / memory[best]:.2f} times its "
            "peak memory.",
            f"It computes at {share:.2f} of the rate of a large matrix product in the same process (target: 0.45).",
            "",
            *table,
            "",
            *(f"- {arm}: {ARMS[arm]}.".replace("BLOCK", f"{suite.block:,}") for arm in suite.arms),
            "",
            "## How it was measured",
            "",
            f"- n = {num_rounds} rounds, arms interleaved, each run in its own process: one epoch over the round's "
            f"{sum(facts['rows'].values()) / num_rounds:,.0f} rows, the same for all arms, different rows in each "
            f"round. "
            "Timed from the beginning of the first step to the end of the last, including collation and first-step "
            "costs; tokenization is done before. The column per CPU second divides by the process's CPU time instead, "
            "which is less affected by other work on the machine. Peak memory is the process's largest resident set, "
            "imports included, the largest of its rounds.",
            f"- The share of a large product's rate: {needed / 1e6:.0f} MFLOP a token (6 a parameter of the layers, "
            "attention within examples, the output layer at targets; LoRA: 4 a frozen one), times tokens/s, over the "
            "rate of a product of two matrices of 2,048 x 2,048 in the same process afterwards.",
            "- Useful tokens are prompt and target tokens of examples, without padding.",
            f"- Data: the training rows of {', '.join(suite.sources.values())}, sampled in proportion: {rows}. "
            f"{facts['num_left_out']} rows longer than {suite.block} tokens were left out. The loss is taken on the "
            "target.",
            f"- TRL gets the same rows as `prompt` and `completion` strings with our markers and the same tokenizer "
            f"({facts['vocabulary']:,} tokens); that its ids equal ours was checked for every row.",
            f"- Model: {_model(facts, suite)}, the same weights for all arms. Precision {facts['precision']} (autocast "
            "over fp32 weights), AdamW (fused), clipping at 1.",
            f"- Hardware: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}.",
            f"- Python {platform.python_version()}, {versions}{commit()}.",
            f"- Command: `{command}`",
            *(["", "## Observations", "", *(f"- {note}" for note in notes)] if notes else []),
            "",
        ]
    )


def _model(facts: dict[str, Any], suite: Suite) -> str:
    if suite.base is not None:
        return (
            f"{suite.base} ({facts['parameters'] / 1e6:.1f} M parameters), LoRA of rank {LORA['rank']} in all linear "
            "layers (TRL: through peft)"
        )
    return (
        f"a randomly initialised GPT-2 of {facts['parameters'] / 1e6:.1f} M parameters ({MODEL['n_layer']} layers, "
        f"width {MODEL['n_embd']}, {MODEL['n_head']} heads, `gelu_pytorch_tanh`; seed {SEED})"
    )


@click.command()
@click.option("--suite", "suite_name", type=click.Choice(list(SUITES)), default="new", show_default=True)
@click.option("--rounds", "num_rounds", default=5, show_default=True, help="How often each arm runs.")
@click.option("--rows", "num_rows", default=1200, show_default=True, help="Rows of a round, drawn from all sets.")
@click.option("--data", "root", type=Path, help="Folder of the sets.  [default: MULTITASK_DATA, else ../shared/data]")
@click.option("--out", type=Path, help="Report.  [default: train.md or train-SUITE.md here]")
@click.option("--note", "notes", multiple=True, help="A remark for the report; may be given several times.")
@click.option("--smoke", is_flag=True, help="One round of few rows: does it run at all?")
@click.option("--arm", type=click.Choice(list(ARMS)), hidden=True)
@click.option("--work", type=Path, hidden=True)
@click.option("--seed", default=SEED, hidden=True)
def main(
    suite_name: str,
    num_rounds: int,
    num_rows: int,
    root: Path | None,
    out: Path | None,
    notes: tuple[str, ...],
    smoke: bool,
    arm: str | None,
    work: Path | None,
    seed: int,
) -> None:
    """Useful tokens per second and peak memory of this project's training loop and of TRL's SFTTrainer."""
    suite = SUITES[suite_name]
    out = out or Path(__file__).with_name("train.md" if suite.base is None else f"train-{suite_name}.md")
    root = root or Path(os.environ.get("MULTITASK_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if arm is not None:
        assert work is not None
        result = run_ours(work, root, suite, seed) if arm == "ours" else run_trl(work, arm, suite, seed)
        print(json.dumps(result))
        return
    missing = [f"{name}.train.jsonl" for name in suite.sources.values() if not (root / f"{name}.train.jsonl").exists()]
    if missing:
        raise click.UsageError(f"{root}: no {', '.join(missing)}; name the folder of the sets with --data")
    if smoke:
        num_rounds, num_rows = 1, 200
    command = f"python benchmarks/train.py --suite {suite_name} --rounds {num_rounds} --rows {num_rows}"
    with tempfile.TemporaryDirectory() as folder:
        facts = prepare(Path(folder), root.resolve(), suite, num_rounds, num_rows)
        print(json.dumps(facts), flush=True)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in suite.arms}
        for name, result in rounds(Path(folder), root.resolve(), suite_name, num_rounds):
            results[name].append(result)
    out.write_text(markdown(results, facts, suite, command, notes), "utf-8")
    print(f"wrote {out.name}")


if __name__ == "__main__":
    main()
