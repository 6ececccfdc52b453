"""Many short rows: rate of encoding, seconds to the first training step, memory, and how all of it grows.

`python benchmarks/scale.py` makes 100,000 and 1,000,000 labelled sentences, and for each number of rows encodes their
texts with `tokenizers` alone and with ours, and trains a tiny model, first without and then with what the cache holds,
each time in a process of its own. It writes `benchmarks/scale.md`:

| rows | encoding, of raw | first step, cold | first step, warm | peak memory |
"""

import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from common import Clock, commit, peak_bytes, processor, read_lines, run_arm

SEED = 17
BATCH = 1000  # rows of one call of `encode_batch`, as many as ours encodes at a time
TEXTS = {"negative": "0", "positive": "1"}
ARMS = {
    "raw": "`encode_batch` of the `tokenizers` library over the same texts and labels, 1,000 rows at a time, all in "
    "memory; reading them, taking ids from its encodings and writing are not included",
    "ours": "`multitask.tokenization.encoded_rows.prepare` with an empty cache: reading and checking rows, encoding, "
    "looking for lost characters, writing",
    "cold": "`multitask.api.train` with an empty cache, imports and training of the tokenizer included",
    "warm": "the same again with the cache of the cold run",
}


def make_rows(path: Path, num_rows: int, seed: int) -> None:
    """Sentences of 6 to 14 words, frequent ones more often (Zipf), with one of two labels."""
    rng = random.Random(SEED)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ol", "us")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(10, 10 + len(words))]
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(0, num_rows, BATCH):
            drawn = iter(rng.choices(words, weights, k=14 * BATCH))
            for _ in range(min(BATCH, num_rows)):
                text = " ".join(next(drawn) for _ in range(rng.randint(6, 14)))
                file.write(json.dumps({"text": text, "label": rng.randrange(2)}) + "\n")


def settings(work: Path) -> dict[str, Any]:
    """A tiny model, three steps of short rows, 200 rows scored."""
    files = {split: [f"{split}.jsonl"] for split in ("train", "validation", "test")}
    source = {"files": files, "labels": {label: word for word, label in TEXTS.items()}}
    return {
        "data": {"root": work, "cache": work / "cache", "sources": {"cls": [source]}},
        "model": {"vocab_size": 4000, "n_layer": 2, "n_embd": 64, "n_positions": 128},
        "train": {"max_steps": 3, "batch_tokens": 2048, "log_every_steps": 1, "eval_max_rows": 200},
        "eval": {"max_rows": 200, "num_bootstrap": 100},
        "seed": SEED,
    }


def run_raw(work: Path) -> dict[str, Any]:
    """The tokenizer alone, over texts in memory."""
    from multitask.tokenization.tokenizer import load_tokenizer, plain_reader

    plain = plain_reader(load_tokenizer(str(work / "run" / "model")))
    words = {label: word for word, label in TEXTS.items()}
    rows = map(json.loads, read_lines(work / "train.jsonl"))
    texts = [text for row in rows for text in (row["text"], words[str(row["label"])])]
    clock = Clock()
    for first in range(0, len(texts), 2 * BATCH):
        plain.encode_batch(texts[first : first + 2 * BATCH], add_special_tokens=False)
    return clock.result("rows", len(texts) // 2)


def run_ours(work: Path) -> dict[str, Any]:
    """The same texts from the file to the file of encoded rows."""
    from multitask.config.run import RunConfig
    from multitask.registry import load_tasks
    from multitask.tokenization.encoded_rows import prepare
    from multitask.tokenization.tokenizer import load_tokenizer

    config = RunConfig.model_validate(settings(work)).data.model_copy(update={"cache": work / "other"})
    tokenizer = load_tokenizer(str(work / "run" / "model"))
    clock = Clock()
    examples = prepare(load_tasks()["cls"], "train", tokenizer, 128, config)
    found = clock.result("rows", len(examples), num_tokens=int(examples.lengths.sum()))
    shutil.rmtree(work / "other")
    return found


def run_train(work: Path, is_warm: bool) -> dict[str, Any]:
    """Seconds from the start of the process to the first step, and from the last step to the results."""
    from multitask import api

    started = float(os.environ["SCALE_STARTED"])
    if not is_warm:
        shutil.rmtree(work / "cache", ignore_errors=True)
    steps: list[float] = []

    def report(event: Any) -> None:
        if event["event"] == "step":
            steps.append(time.time() - started)

    api.train(settings(work), tasks="cls", out=work / "run", overwrite=True, report=report)
    after_s = time.time() - started - steps[-1]
    return {"first_step_s": round(steps[0], 2), "after_s": round(after_s, 2), "peak_bytes": peak_bytes()}


def measure(work: Path, num_rows: int, num_rounds: int) -> dict[str, list[dict[str, Any]]]:
    """All arms, in turns; the tokenizer is that of the first run."""
    for seed, (split, num) in enumerate({"train": num_rows, "validation": BATCH, "test": BATCH}.items()):
        make_rows(work / f"{split}.jsonl", num, seed)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for arm in ["cold", "warm", *["raw", "ours"] * num_rounds, "raw"]:
        result = run_arm(__file__, arm, work, variables={"SCALE_STARTED": str(time.time())})
        print(f"{num_rows:,} rows, {arm}: {json.dumps(result)}", file=sys.stderr, flush=True)
        found[arm].append(result)
    return found


def _median(results: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(result[key] for result in results))


def markdown(results: dict[int, dict[str, list[dict[str, Any]]]], command: str, notes: tuple[str, ...]) -> str:
    """The report."""
    table, fractions = [], {}
    for num, arms in results.items():
        rates = {arm: _median(arms[arm], "rows_per_s") for arm in ("ours", "raw")}
        fractions[num] = rates["ours"] / rates["raw"]
        cold, warm = arms["cold"][0], arms["warm"][0]
        peak = max(result["peak_bytes"] for arm in ("ours", "cold", "warm") for result in arms[arm])
        table.append(
            f"| {num:,} | {rates['ours']:,.0f} | {rates['raw']:,.0f} | **{fractions[num]:.2f}** | "
            f"{_median(arms['ours'], 'rows_per_cpu_s') / _median(arms['raw'], 'rows_per_cpu_s'):.2f} | "
            f"{cold['first_step_s']:.1f} | **{warm['first_step_s']:.1f}** | {cold['after_s']:.1f} | "
            f"{peak / 2**20:,.0f} MiB |"
        )
    few, many = min(results), max(results)
    growth = [
        results[many]["cold"][0]["first_step_s"] / results[few]["cold"][0]["first_step_s"],
        _median(results[many]["ours"], "elapsed_s") / _median(results[few]["ours"], "elapsed_s"),
    ]
    per_round = {num: len(arms["ours"]) for num, arms in results.items()}
    return "\n".join(
        [
            "# Many short rows",
            "",
            "| rows | rows/s encoded | rows/s of raw `encode_batch` | of raw (target: 0.6) | of raw per CPU second | "
            "first step, cold (s) | first step, warm (s; target: 8) | after the last step (s) | "
            "peak memory (target: 1,024 MiB) |",
            "|---|---|---|---|---|---|---|---|---|",
            *table,
            "",
            f"From {few:,} to {many:,} rows, {many / few:.0f} times as many: encoding takes {growth[1]:.1f} times as "
            f"long, the first step of a cold start {growth[0]:.1f} times.",
            "",
            *(f"- {arm}: {text}." for arm, text in ARMS.items()),
            "- First step: from the start of the process to the end of the first optimizer step. After the last step: "
            "the final model, baselines, 200 rows scored, overlap with the training rows, results.",
            "",
            "## How it was measured",
            "",
            f"- n = {', '.join(f'{n} of {num:,} rows' for num, n in per_round.items())} for encoding (medians; raw one "
            "more, in turns), 1 for each start. Each in a process of its own, the only one: peak memory is its "
            "largest resident set, mapped files included.",
            "- Rows: 6 to 14 words of 20,000 made ones, drawn by Zipf's law, and one of two labels; seeds "
            f"{SEED}, 0, 1, 2. Tokenizer: byte-level BPE of 4,000 tokens trained by the cold run.",
            "- Model: GPT-2 of 2 layers, width 64; 3 steps of 2,048 tokens.",
            f"- Hardware: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}.",
            f"- Python {platform.python_version()}, tokenizers {version('tokenizers')}, transformers "
            f"{version('transformers')}, torch {version('torch')}{commit()}.",
            f"- Command: `{command}`",
            *(["", "## Observations", "", *(f"- {note}" for note in notes)] if notes else []),
            "",
        ]
    )


@click.command()
@click.option("--rows", "nums", multiple=True, type=int, default=(100_000, 1_000_000), show_default=True)
@click.option("--out", type=Path, default=Path(__file__).with_name("scale.md"), help="Report.")
@click.option("--note", "notes", multiple=True, help="A remark for the report; may be given several times.")
@click.option("--arm", type=click.Choice(list(ARMS)), hidden=True)
@click.option("--work", type=Path, hidden=True)
def main(nums: tuple[int, ...], out: Path, notes: tuple[str, ...], arm: str | None, work: Path | None) -> None:
    """Rate of encoding, seconds to the first step and memory of many short rows."""
    if arm is not None:
        assert work is not None
        run = {"raw": run_raw, "ours": run_ours}.get(arm)
        print(json.dumps(run(work) if run else run_train(work, arm == "warm")))
        return
    results = {}
    for num in nums:
        with tempfile.TemporaryDirectory() as folder:
            results[num] = measure(Path(folder), num, 3 if num <= 100_000 else 1)
    command = "python benchmarks/scale.py" + "".join(f" --rows {num}" for num in nums if nums != (100_000, 1_000_000))
    out.write_text(markdown(results, command, notes), "utf-8")
    print(f"wrote {out.name}")


if __name__ == "__main__":
    main()
