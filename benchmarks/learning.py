"""What makes a model learn more from the same tokens: one setting changed at a time, three seeds, validation rows.

`python benchmarks/learning.py` trains the new model of `configs/korean.yaml` on the same number of tokens with each of
the variants below and scores it on validation rows. Finished runs are kept as long as tokens, settings and code stay
the same. Writes `benchmarks/learning.md`:

| variant | settings | runs | validation loss | difference to base, by seed | nli | qa | summ | cls |

The loss is the mean over tasks of nats per target token, of the best validation of a run.
"""

import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click
from common import commit, processor

BATCH_TOKENS = 8192
BASE = {
    "train.batch_tokens": BATCH_TOKENS,
    "train.micro_batch_tokens": BATCH_TOKENS,
    "train.optimizer": "adamw",
    "train.learning_rate": 1.5e-3,
    "train.schedule": "cosine",
    "train.prompt_weight": 0.0,
}
HALF: dict[str, Any] = {"train.batch_tokens": 4096, "train.micro_batch_tokens": 4096}
QUARTER: dict[str, Any] = {"train.batch_tokens": 2048, "train.micro_batch_tokens": 2048}
MUON: dict[str, Any] = {"train.optimizer": "muon"}
FAST = MUON | {"train.learning_rate": 3.0e-3}
PROMPT = {"train.prompt_weight": 0.1}
MORE_QA = {"train.mixture_weights": {"nli": 15, "qa": 16, "summ": 15, "gen": 25, "cls": 29}}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "base, twice the tokens": {},
    "muon": MUON,
    "muon, twice the rate": MUON | {"train.learning_rate": 3.0e-3},
    "muon, four times the rate": MUON | {"train.learning_rate": 6.0e-3},
    "twice the rate": {"train.learning_rate": 3.0e-3},
    "half the batch": HALF,
    "a quarter of the batch": QUARTER,
    "muon, half the batch": MUON | HALF,
    "muon, a quarter of the batch": MUON | QUARTER,
    "linear to zero": {"train.schedule": "linear"},
    "cosine to a tenth": {"train.final_learning_rate": 1.5e-4},
    "short warm-up": {"train.warmup_steps": 5},
    "prompt weight 0.1": {"train.prompt_weight": 0.1},
    "prompt weight 0.3": {"train.prompt_weight": 0.3},
    "prompt weight 1": {"train.prompt_weight": 1.0},
    "equal tasks": {"train.mixing_temperature": 100},
    "by rows": {"train.mixing_temperature": 1},
    "weight decay 0.1": {"train.weight_decay": 0.1},
    "beta2 0.95": {"train.beta2": 0.95},
    "matrices 0.02": {"model.initializer_range": 0.02},
    "embeddings 0.5": {"model.embedding_range": 0.5},
    "output matrix of its own": {"model.tied": False},
    "muon, prompt weight 0.1": MUON | {"train.prompt_weight": 0.1},
    "muon, prompt weight 0.3": MUON | {"train.prompt_weight": 0.3},
    "muon, prompt weight 1": MUON | {"train.prompt_weight": 1.0},
    "A: muon, twice the rate, half the batch": FAST | HALF,
    "B: muon, twice the rate, prompt weight 0.1": FAST | PROMPT,
    "C: A and B": FAST | HALF | PROMPT,
    "C, linear to zero": FAST | HALF | PROMPT | {"train.schedule": "linear"},
    "C, a quarter of the batch": FAST | QUARTER | PROMPT,
    "C, prompt weight 0.3": FAST | HALF | {"train.prompt_weight": 0.3},
    "C, twice the tokens": FAST | HALF | PROMPT,
    "C, prompt weight 0.3, twice the tokens": FAST | HALF | {"train.prompt_weight": 0.3},
    "C, more qa, twice the tokens": FAST | HALF | PROMPT | MORE_QA,
    "C, more qa, eight heads, twice the tokens": FAST | HALF | PROMPT | MORE_QA | {"model.n_head": 8},
}
TWICE = " twice the tokens"
SCORES = {"nli": "accuracy", "qa": "f1", "summ": "rougeL", "cls": "accuracy"}


def folder_of(work: Path, name: str, seed: int) -> Path:
    """Where a variant's run lies."""
    return work / f"{re.sub('[^a-zA-Z0-9.]+', '-', name)}-{seed}"


def run(name: str, seed: int, work: Path, root: Path, num_tokens: int, device: str) -> str:
    """Trains and scores one variant, unless that was done; returns a line about it."""
    from multitask import train
    from multitask.source_hash import source_hash

    started, settings, out = time.perf_counter(), VARIANTS[name], folder_of(work, name, seed)
    num_tokens *= 2 if name.endswith(TWICE) else 1
    key = json.dumps([num_tokens, seed, device, settings, source_hash("multitask.training.finetune")])
    stamp = out.with_name(f"{out.name}.key")
    if (out / "results.json").exists() and stamp.exists() and stamp.read_text("utf-8") == key:
        return f"{name}, seed {seed}: kept"
    batch = settings.get("train.batch_tokens", BATCH_TOKENS)
    steps = num_tokens // batch
    own = {
        "seed": seed,
        "device": device,
        "data.root": str(root),
        "data.cache": str(work / "cache"),
        "train.max_steps": steps,
        "train.warmup_steps": 50 * BATCH_TOKENS // batch,
        "train.eval_every_steps": max(1, steps // 5),
        "train.save_every_steps": 0,
        "eval.split": "validation",
        "eval.max_rows": 400,
        "eval.num_bootstrap": 10,
    }
    flags = [f"{name}={json.dumps(value)}" for name, value in (BASE | own | settings).items()]
    stamp.unlink(missing_ok=True)
    with (
        out.with_name(f"{out.name}.log").open("w", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        train("configs/korean.yaml", out=out, overwrite=True, flags=flags)
    stamp.write_text(key, "utf-8")
    return f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s"


def best_loss(out: Path) -> dict[str, float]:
    """By task, nats per target token of the best validation."""
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["event"] == "validation"]
    found: dict[str, float] = min(records, key=lambda record: statistics.fmean(record["loss"].values()))["loss"]
    return found


def table(work: Path, seeds: Sequence[int]) -> list[str]:
    """A line for each variant, over those seeds that were run."""
    lines = [
        "| variant | settings | runs | validation loss | difference to base, by seed | "
        + " | ".join(f"{task} {metric}" for task, metric in SCORES.items())
        + " |",
        "| --- " * (5 + len(SCORES)) + "|",
    ]
    base: dict[int, float] = {}
    for name, settings in VARIANTS.items():
        outs = {seed: folder_of(work, name, seed) for seed in seeds}
        outs = {seed: out for seed, out in outs.items() if (out / "results.json").exists()}
        if not outs:
            continue
        losses = {seed: statistics.fmean(best_loss(out).values()) for seed, out in outs.items()}
        base = base or losses
        results = [json.loads((out / "results.json").read_text("utf-8")) for out in outs.values()]
        scores = [
            statistics.fmean(found["tasks"][task]["metrics"][metric]["value"] for found in results)
            for task, metric in SCORES.items()
        ]
        differences = ", ".join(f"{loss - base[seed]:+.3f}" for seed, loss in losses.items() if seed in base)
        given = ", ".join(f"`{key}={value}`" for key, value in settings.items())
        lines.append(
            f"| {name} | {given} | {len(outs)} | {statistics.fmean(losses.values()):.3f} | {differences} | "
            + " | ".join(f"{score:.3f}" for score in scores)
            + " |"
        )
    return lines


def hardware_of(work: Path) -> str:
    """The GPU of the runs, or the processor of this machine."""
    found = next(work.glob("*/results.json"), None)
    gpu = found and json.loads(found.read_text("utf-8"))["hardware"].get("gpu")
    return f"One {gpu}" if gpu else processor()


@click.command()
@click.option("--tokens", default=1_000_000, show_default=True, help="Tokens of each run.")
@click.option("--seeds", default="7,8,9", show_default=True)
@click.option("--only", help="Variants to run, with semicolons; default: all.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Runs at the same time.")
@click.option("--work", type=Path, default=Path("runs/learning"), show_default=True, help="Runs; kept.")
@click.option("--data", "root", type=Path, help="Folder of the sets.  [default: MULTITASK_DATA, else ../shared/data]")
@click.option("--out", type=Path, default=Path(__file__).with_suffix(".md"), show_default=True)
def main(
    tokens: int, seeds: str, only: str | None, device: str, jobs: int, work: Path, root: Path | None, out: Path
) -> None:
    """Trains all variants, and writes their table."""
    root = root or Path(os.environ.get("MULTITASK_DATA") or Path(__file__).parents[2] / "shared" / "data")
    numbers = [int(seed) for seed in seeds.split(",")]
    chosen = [name.strip() for name in only.split(";")] if only else list(VARIANTS)
    for name in chosen:
        if name not in VARIANTS:
            raise click.UsageError(f"no variant '{name}'; there are: {'; '.join(VARIANTS)}")
    work.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = [
            pool.submit(run, name, seed, work.resolve(), root.resolve(), tokens, device)
            for seed in numbers
            for name in chosen
        ]
        for done in as_completed(waiting):
            click.echo(done.result())
    lines = [
        "# Learning more from the same tokens",
        "",
        f"The new model of `configs/korean.yaml`, {tokens:,} tokens a run, {len(numbers)} seeds, scores of the first "
        f"400 validation rows of each task. {hardware_of(work)}{commit()}; "
        f"`python benchmarks/learning.py --tokens {tokens} --seeds {seeds} --device {device}`.",
        "",
        *table(work, numbers),
        "",
        "Losses and scores are means over runs; a difference is of runs with the same seed. Lower losses are better.",
    ]
    out.write_text("\n".join(lines) + "\n", "utf-8")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
