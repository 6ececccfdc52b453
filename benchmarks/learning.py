"""What makes a model learn more from the same tokens: one setting changed at a time, three seeds, validation rows.

`python benchmarks/learning.py` trains the new model of `configs/korean.yaml` on the same number of tokens with each of
the variants below and scores it on validation rows. Finished runs are kept as long as tokens, settings and code stay
the same. Writes `benchmarks/learning.md`:

| variant | settings | validation loss | difference to base, by seed | nli | qa | summ | cls |

The loss is the mean over tasks of nats per target token, of the best validation of a run.
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from common import commit, processor

BATCH_TOKENS = 8192
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "muon": {"train.optimizer": "muon"},
    "muon, higher rate": {"train.optimizer": "muon", "train.learning_rate": 3.0e-3},
    "higher rate": {"train.learning_rate": 3.0e-3},
    "half the batch": {"train.batch_tokens": 4096, "train.micro_batch_tokens": 4096},
    "muon, half the batch": {
        "train.optimizer": "muon",
        "train.batch_tokens": 4096,
        "train.micro_batch_tokens": 4096,
    },
    "linear to zero": {"train.schedule": "linear"},
    "short warm-up": {"train.warmup_steps": 2},
    "prompt weight 0.1": {"train.prompt_weight": 0.1},
    "prompt weight 0.3": {"train.prompt_weight": 0.3},
    "equal tasks": {"train.mixing_temperature": 100},
    "weight decay 0.1": {"train.weight_decay": 0.1},
    "beta2 0.95": {"train.beta2": 0.95},
}
SCORES = {"nli": "accuracy", "qa": "f1", "summ": "rougeL", "cls": "accuracy"}


def run(out: Path, root: Path, settings: dict[str, Any], num_tokens: int, seed: int) -> None:
    """Trains and scores one variant, unless that was done."""
    from multitask import train
    from multitask.source_hash import source_hash

    key = json.dumps([num_tokens, seed, settings, source_hash("multitask.training.finetune")])
    stamp = out.with_name(f"{out.name}.key")
    if (out / "results.json").exists() and stamp.exists() and stamp.read_text("utf-8") == key:
        return
    batch = settings.get("train.batch_tokens", BATCH_TOKENS)
    steps = num_tokens // batch
    own = {
        "seed": seed,
        "device": "cpu",
        "data.root": str(root),
        "data.cache": str(out.parent / "cache"),
        "train.max_steps": steps,
        "train.warmup_steps": 100 * BATCH_TOKENS // batch // 2,
        "train.eval_every_steps": max(1, steps // 5),
        "train.save_every_steps": 0,
        "eval.split": "validation",
        "eval.max_rows": 400,
        "eval.num_bootstrap": 10,
    }
    flags = [f"{name}={json.dumps(value)}" for name, value in (own | settings).items()]
    stamp.unlink(missing_ok=True)
    train("configs/korean.yaml", out=out, overwrite=True, flags=flags)
    stamp.write_text(key, "utf-8")


def best_loss(out: Path) -> dict[str, float]:
    """By task, nats per target token of the best validation."""
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["event"] == "validation"]
    found: dict[str, float] = min(records, key=lambda record: statistics.fmean(record["loss"].values()))["loss"]
    return found


def table(work: Path, seeds: Sequence[int]) -> list[str]:
    """A line for each variant that has all seeds."""
    lines = [
        "| variant | settings | validation loss | difference to base, by seed | "
        + " | ".join(f"{task} {metric}" for task, metric in SCORES.items())
        + " | tokens/s |",
        "| --- " * (5 + len(SCORES)) + "|",
    ]
    base: list[float] = []
    for name, settings in VARIANTS.items():
        outs = [work / f"{name.replace(' ', '-').replace(',', '')}-{seed}" for seed in seeds]
        if not all((out / "results.json").exists() for out in outs):
            continue
        losses = [statistics.fmean(best_loss(out).values()) for out in outs]
        base = base or losses
        results = [json.loads((out / "results.json").read_text("utf-8")) for out in outs]
        scores = [
            statistics.fmean(found["tasks"][task]["metrics"][metric]["value"] for found in results)
            for task, metric in SCORES.items()
        ]
        differences = ", ".join(f"{loss - start:+.3f}" for loss, start in zip(losses, base, strict=True))
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        given = ", ".join(f"`{key}={value}`" for key, value in settings.items())
        speed = statistics.fmean(found["cost"]["tokens_per_s"] for found in results)
        lines.append(
            f"| {name} | {given} | {statistics.fmean(losses):.3f} ± {spread:.3f} | {differences} | "
            + " | ".join(f"{score:.3f}" for score in scores)
            + f" | {speed:,.0f} |"
        )
    return lines


@click.command()
@click.option("--tokens", default=1_000_000, show_default=True, help="Tokens of each run.")
@click.option("--seeds", default="7,8,9", show_default=True)
@click.option("--only", help="Variants to run, with semicolons; default: all.")
@click.option("--work", type=Path, default=Path("runs/learning"), show_default=True, help="Runs; kept.")
@click.option("--data", "root", type=Path, help="Folder of the sets.  [default: MULTITASK_DATA, else ../shared/data]")
@click.option("--out", type=Path, default=Path(__file__).with_suffix(".md"), show_default=True)
def main(tokens: int, seeds: str, only: str | None, work: Path, root: Path | None, out: Path) -> None:
    """Trains all variants, and writes their table."""
    root = root or Path(os.environ.get("MULTITASK_DATA") or Path(__file__).parents[2] / "shared" / "data")
    numbers = [int(seed) for seed in seeds.split(",")]
    chosen = [name.strip() for name in only.split(";")] if only else list(VARIANTS)
    for name in chosen:
        if name not in VARIANTS:
            raise click.UsageError(f"no variant '{name}'; there are: {'; '.join(VARIANTS)}")
    work.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        for seed in numbers:
            started = time.perf_counter()
            folder = work / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            run(folder, root.resolve(), VARIANTS[name], tokens, seed)
            click.echo(f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s")
    lines = [
        "# Learning more from the same tokens",
        "",
        f"The new model of `configs/korean.yaml`, {tokens:,} tokens a run, {len(numbers)} seeds, scores of the first "
        f"400 validation rows of each task. {processor()}{commit()}; `python benchmarks/learning.py --tokens {tokens} "
        f"--seeds {seeds}`.",
        "",
        *table(work, numbers),
        "",
        "± is the standard deviation over seeds; a difference is of runs with the same seed. Lower losses are better.",
    ]
    out.write_text("\n".join(lines) + "\n", "utf-8")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
