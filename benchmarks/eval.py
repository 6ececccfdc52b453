"""Scoring speed beside lm-evaluation-harness, generation speed beside transformers' `generate`, on the same rows.

`python benchmarks/eval.py --rounds 3` trains a small model for two minutes, then asks it the same questions in turns,
each arm in a process of its own, checks that the answers are equal, and writes `benchmarks/eval.md`:

| choosing among three answers, 8 demonstrations | rows/s | speed-up of ours | peak memory |

`make bench-eval` makes the environment.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import Clock, commit, logit_gap, padded_texts, processor, read_lines, run_arm, write_lines

SOURCES = {"nli": ["nli_ko_klue"], "qa": ["qa_ko_korquad"], "summ": ["summ_ko_sae4k", "summ_en_scitldr"]}
WRITTEN = ("qa", "summ")  # tasks whose answers are written; those of nli are chosen
NUM_SHOTS = 8
BATCH = 16  # rows, of every arm that counts rows
BATCH_TOKENS = 8192  # of ours where it chooses; the shipped default
MAX_NEW_TOKENS = 96
MANY = 4  # times as many rows must take no more memory
TOKENIZER_ROWS = 20000
SEED = 7
MODEL = {"vocab_size": 8000, "n_layer": 8, "n_head": 6, "n_embd": 384, "n_positions": 1024}
TRAIN = {
    "batch_tokens": 2048,
    "micro_batch_tokens": 2048,
    "learning_rate": 1.5e-3,
    "prompt_weight": 0.3,  # learns words sooner
    "mixture_weights": {"summ": 9, "qa": 1},  # examples; a row of qa has thirty times the tokens
}
NUM_STEPS = 400
MOST_NATS = 1e-4  # two log-likelihoods further apart than this are not the same
MOST_TIE = 1e-5  # two logits further apart than this are no tie
CHOOSING, WRITING = ("ours choosing", "harness"), ("ours generating", "padded generate")
LARGER = ("ours choosing, more rows", "ours generating, more rows")
ARMS = (*CHOOSING, *WRITING, *LARGER)


# ----------------------------------------------------------------------------------------------------- what all share


def prepare(work: Path, root: Path, num_rows: int, num_texts: int, num_steps: int) -> dict[str, Any]:
    """Trains the model and writes it, the prompts to choose after and the prompts to write after; returns facts."""
    from multitask import train
    from multitask.config.model import ModelConfig
    from multitask.models.build import build
    from multitask.registry import choose, load_tasks

    tasks = choose(load_tasks(), SOURCES)
    lines = [line for names in SOURCES.values() for name in names for line in read_lines(root / f"{name}.train.jsonl")]
    drawn = np.random.default_rng(SEED).permutation(len(lines))[:TOKENIZER_ROWS].tolist()
    records = (json.loads(lines[n]) for n in drawn)
    texts = (text for record in records for key, text in record.items() if key != "id" and isinstance(text, str))
    model, tokenizer, _ = build(ModelConfig(**MODEL), tasks, texts, SEED)
    model.save_pretrained(work / "empty")
    tokenizer.save_pretrained(work / "empty")
    settings = {
        "seed": SEED,
        "device": "cpu",
        "data": {
            "root": str(root),
            "sources": {name: SOURCES[name] for name in WRITTEN},
            "cache": str(work / "cache"),
        },
        "model": {"name": str(work / "empty")},
        "train": {**TRAIN, "max_steps": num_steps, "block_size": 1024, "save_every_steps": 0, "eval_max_rows": 10},
        "eval": {"max_rows": 4, "num_bootstrap": 10},
    }
    started = time.perf_counter()
    train(settings, tasks=WRITTEN, out=work / "run")
    trained_s = time.perf_counter() - started
    written = _prompts_to_write(work, root, tasks, tokenizer, num_texts)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "num_steps": num_steps,
        "trained_s": round(trained_s),
        **_prompts_to_choose(work, root, tasks["nli"], tokenizer, num_rows),
        **written,
    }
    (work / "facts.json").write_text(json.dumps(facts, ensure_ascii=False), "utf-8")
    return facts


def _prompts_to_choose(work: Path, root: Path, task: Any, tokenizer: Any, num_rows: int) -> dict[str, Any]:
    """`nli.jsonl` and, with more rows, `nli-more.jsonl`: the first training rows as demonstrations before each row."""
    from multitask.pattern import render_plain

    words = task.templates("ko")[0].words
    shown = [json.loads(line) for line in read_lines(root / "nli_ko_klue.train.jsonl")[:NUM_SHOTS]]
    beginning = "".join(
        render_plain(task, row, "ko") + words[task.choices.index(row["label"])] + "\n\n" for row in shown
    )
    rows = [json.loads(line) for line in read_lines(root / "nli_ko_klue.test.jsonl")[: MANY * num_rows]]
    asked = [
        {"prompt": beginning + render_plain(task, row, "ko"), "gold": task.choices.index(row["label"])} for row in rows
    ]
    lengths = [len(tokenizer(row["prompt"])["input_ids"]) for row in asked[:num_rows]]
    write_lines(work / "nli.jsonl", [json.dumps(row) for row in asked[:num_rows]])
    write_lines(work / "nli-more.jsonl", [json.dumps(row) for row in asked])
    return {
        "words": words,
        "num_rows": min(num_rows, len(asked)),
        "num_more_rows": len(asked),
        "prompt_tokens": _spread(lengths),
        "shown_tokens": len(tokenizer(beginning)["input_ids"]),
        "word_tokens": [len(tokenizer(word)["input_ids"]) for word in words],
    }


def _prompts_to_write(work: Path, root: Path, tasks: Any, tokenizer: Any, num_texts: int) -> dict[str, Any]:
    """`texts.jsonl` and `texts-more.jsonl`: stream prompts of test rows, as many of each set."""
    from multitask.pattern import render, text_of

    limit = MODEL["n_positions"] - MAX_NEW_TOKENS
    found: dict[str, list[str]] = {source: [] for name in WRITTEN for source in SOURCES[name]}
    lengths: dict[str, list[int]] = {source: [] for source in found}
    passages: dict[str, list[str]] = {source: [] for source in found}
    for name in WRITTEN:
        for source in SOURCES[name]:
            for line in read_lines(root / f"{source}.test.jsonl"):
                row = json.loads(line)
                prompt = text_of(render(tasks[name], row, with_target=False))
                length = len(tokenizer(prompt)["input_ids"])
                if length <= limit:
                    found[source].append(prompt)
                    lengths[source].append(length)
                    passages[source].append(row[tasks[name].truncate])
    share = num_texts // len(found)
    for file, num in (("texts.jsonl", share), ("texts-more.jsonl", MANY * share)):
        chosen = [{"set": source, "prompt": prompt} for source, prompts in found.items() for prompt in prompts[:num]]
        write_lines(work / file, [json.dumps(row) for row in chosen])
    return {
        "texts": {source: len(prompts[:share]) for source, prompts in found.items()},
        "passages": {source: len(set(texts[:share])) for source, texts in passages.items()},
        "text_tokens": {source: _spread(numbers[:share]) for source, numbers in lengths.items()},
    }


def _spread(numbers: Sequence[int]) -> dict[str, float]:
    """Minimum, quartiles, maximum and mean."""
    quantiles = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]).round().astype(int).tolist()
    names = ("min", "lower quartile", "median", "upper quartile", "max")
    return {**dict(zip(names, quantiles, strict=True)), "mean": round(statistics.mean(numbers), 1)}


# --------------------------------------------------------------------------------------------------------- one process


def ours_choosing(work: Path, file: str) -> tuple[dict[str, float], list[list[float]]]:
    """Prompt and answer strings to log-likelihoods, by this project."""
    from multitask.inference.scoring import choice_nll
    from multitask.models.io import load_trained

    model, tokenizer = load_trained(work / "run")
    words = json.loads((work / "facts.json").read_text("utf-8"))["words"]
    prompts = [json.loads(line)["prompt"] for line in read_lines(work / file)]
    clock = Clock()
    choices = [tokenizer.encode(word) for word in words]
    rows = [(np.array(tokenizer.encode(prompt), np.int32), choices) for prompt in prompts]
    nats = choice_nll(model, rows, BATCH_TOKENS)
    return clock.result("rows", len(prompts)), [[-nll for nll in row] for row in nats]


def harness(work: Path, file: str) -> tuple[dict[str, float], list[list[float]]]:
    """The same strings to log-likelihoods, by lm-evaluation-harness; building its requests is not timed."""
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    result: dict[str, float] = {}

    class Timed(HFLM):
        def loglikelihood(self, requests: Any, *rest: Any, **named: Any) -> Any:
            nonlocal result
            clock = Clock()
            found = super().loglikelihood(requests, *rest, **named)
            result = clock.result("rows", len(read_lines(work / file)))
            return found

    task = {
        "task": "multitask_nli",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(work / file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_target": "gold",
        "doc_to_choice": json.loads((work / "facts.json").read_text("utf-8"))["words"],
        "target_delimiter": "",
        "num_fewshot": 0,  # the demonstrations are part of the prompt
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (work / "tasks").mkdir(exist_ok=True)
    (work / "tasks" / "multitask_nli.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), "utf-8")
    evaluated = simple_evaluate(
        model=Timed(pretrained=str(work / "run" / "model"), batch_size=BATCH, device="cpu", dtype="float32"),
        tasks=["multitask_nli"],
        task_manager=TaskManager(include_path=str(work / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    assert evaluated is not None
    samples = sorted(evaluated["samples"]["multitask_nli"], key=lambda sample: sample["doc_id"])
    return result, [[loglikelihood for loglikelihood, _ in sample["filtered_resps"]] for sample in samples]


def _by_set(work: Path, file: str, write: Callable[[list[str]], list[list[int]]]) -> tuple[dict[str, Any], Any]:
    """One set after the other, as an evaluation does; speed of each and of all."""
    prompts: dict[str, list[str]] = defaultdict(list)
    for line in read_lines(work / file):
        row = json.loads(line)
        prompts[row["set"]].append(row["prompt"])
    whole, by_set, written = Clock(), {}, []
    for name, mine in prompts.items():
        clock = Clock()
        written += write(mine)
        by_set[name] = clock.result("rows", len(mine))
    return {**whole.result("rows", len(written)), "by_set": by_set}, written


def ours_writing(work: Path, file: str) -> tuple[dict[str, Any], list[list[int]]]:
    """Prompt strings to ids, by this project, in as many places as the other arm's batch has."""
    from multitask.inference.decoding import generate
    from multitask.models.io import load_trained

    model, tokenizer = load_trained(work / "run")

    def write(prompts: list[str]) -> list[list[int]]:
        ids = [np.array(tokenizer.encode(prompt), np.int32) for prompt in prompts]
        batch_tokens = BATCH * MODEL["n_positions"]
        written = generate(model, ids, MAX_NEW_TOKENS, {tokenizer.eos_token_id}, batch_tokens, max_rows=BATCH)
        return [new for new, _ in written]

    return _by_set(work, file, write)


def padded_generate(work: Path, file: str) -> tuple[dict[str, Any], list[list[int]]]:
    """The same prompts to ids, by transformers' `generate`: sorted by length, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(work / "run" / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(work / "run" / "model")

    def write(prompts: list[str]) -> list[list[int]]:
        ids = tokenizer(prompts)["input_ids"]
        return padded_texts(model, ids, {tokenizer.eos_token_id}, BATCH, MAX_NEW_TOKENS)

    return _by_set(work, file, write)


RUN: dict[str, tuple[Callable[[Path, str], tuple[dict[str, Any], Any]], str]] = {
    "ours choosing": (ours_choosing, "nli.jsonl"),
    "harness": (harness, "nli.jsonl"),
    "ours generating": (ours_writing, "texts.jsonl"),
    "padded generate": (padded_generate, "texts.jsonl"),
    "ours choosing, more rows": (ours_choosing, "nli-more.jsonl"),
    "ours generating, more rows": (ours_writing, "texts-more.jsonl"),
}


# ------------------------------------------------------------------------------------------------------------ all arms


def same_choices(work: Path) -> dict[str, float]:
    """How far ours and the harness's log-likelihoods lie apart; raises AssertionError beyond `MOST_NATS`."""
    ours, theirs = (np.array(json.loads((work / f"{arm}.json").read_text("utf-8"))) for arm in CHOOSING)
    golds = np.array([json.loads(line)["gold"] for line in read_lines(work / "nli.jsonl")])
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    furthest = float(np.abs(ours - theirs).max())
    assert furthest <= MOST_NATS, f"log-likelihoods differ by {furthest}"
    differing = np.flatnonzero(ours.argmax(1) != theirs.argmax(1)).tolist()
    assert not differing, f"predictions differ in rows {differing}: {ours[differing]} and {theirs[differing]}"
    return {
        "num_pairs": ours.size,
        "furthest": furthest,
        "accuracy": float((ours.argmax(1) == golds).mean()),
        "num_classes": len(set(ours.argmax(1).tolist())),
    }


def same_texts(work: Path) -> dict[str, Any]:
    """Rows that the two wrote otherwise, and how long answers are.

    Raises AssertionError for a row that differs without a tie: at the first id that differs, the model alone, asked
    without padding, must find the two ids' logits within `MOST_TIE`.
    """
    from multitask.models.io import load_trained

    ours, theirs = (json.loads((work / f"{arm}.json").read_text("utf-8")) for arm in WRITING)
    rows = [json.loads(line) for line in read_lines(work / "texts.jsonl")]
    model, tokenizer = load_trained(work / "run")
    end = tokenizer.eos_token_id
    lengths: dict[str, list[int]] = defaultdict(list)
    num_ties = 0
    for row, one, other in zip(rows, ours, theirs, strict=True):
        lengths[row["set"]].append(len(one))
        if one == other:
            continue
        apart = logit_gap(model, tokenizer.encode(row["prompt"]), one, other, {end})
        assert apart <= MOST_TIE, f"{row['prompt']!r}: {one} and {other} differ, by a logit of {apart}"
        num_ties += 1
    return {
        "num_ties": num_ties,
        "lengths": {name: _spread(found) for name, found in lengths.items()},
        "num_unfinished": sum(length == MAX_NEW_TOKENS for found in lengths.values() for length in found),
        "num_different": len({tuple(new) for new in ours}),
    }


def markdown(
    results: dict[str, list[dict[str, Any]]], facts: dict[str, Any], command: str, notes: Sequence[str]
) -> str:
    """The report: what was measured, on what, how, and what came out."""
    choices, texts = facts["choices"], facts["written"]
    num_texts = sum(facts["texts"].values())
    harness_version = importlib.metadata.version("lm_eval")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("multitask", "lm_eval", "torch", "transformers", "tokenizers", "datasets")
    )
    both = [results[arm] for arm in WRITING]
    sets = {name: [[run["by_set"][name] for run in runs] for runs in both] for name in facts["texts"]}
    ties = f" but {texts['num_ties']}, ties within {MOST_TIE:.0e}" if texts["num_ties"] else ""
    trained_on = ", ".join(f"{source}.train" for name in WRITTEN for source in SOURCES[name])
    return "\n".join(
        [
            "# Speed of scoring and generation",
            "",
            f"- Choosing among three answers after {NUM_SHOTS} demonstrations: "
            f"{_times(*(results[arm] for arm in CHOOSING))} the rows/s of lm-evaluation-harness {harness_version}. "
            f"All {choices['num_pairs']:,} log-likelihoods are equal within {choices['furthest']:.0e}, all predictions "
            "are equal.",
            f"- Greedy generation: {_times(*both)} the rows/s of transformers' padded `generate`; "
            + "; ".join(f"{name}: {_times(*runs)}" for name, runs in sets.items())
            + f". The same text for all {num_texts} rows{ties}.",
            f"- Memory with {MANY} times the rows: "
            + "; ".join(
                _memory(results, arm, larger) for arm, larger in zip((CHOOSING[0], WRITING[0]), LARGER, strict=True)
            )
            + ".",
            "",
            *_table("choosing", results, CHOOSING),
            "",
            *_table("generation", results, WRITING),
            "",
            f"- ours choosing: `multitask.inference.scoring.choice_nll`, {BATCH_TOKENS:,} tokens per forward pass.",
            f"- harness: `lm_eval.simple_evaluate`, `HFLM` with batch size {BATCH}, a custom task of the same strings.",
            f"- ours generating: `multitask.inference.decoding.generate`, a decoding batch of "
            f"{BATCH} rows, each until it ends.",
            f"- padded generate: `model.generate`, batches of {BATCH} rows sorted by length, left-padded, each until "
            "its longest answer ends.",
            "",
            "## How it was measured",
            "",
            f"- n = {len(both[0])} rounds, arms interleaved, each run in its own process, fp32 throughout. Timed "
            "from strings to log-likelihoods, and from strings to ids: tokenization is included; imports, loading "
            "and, for the harness, building requests and averaging are not. The column per CPU second divides by the "
            "process's "
            "CPU time instead, which is less affected by other work on the machine. Peak memory is the process's "
            "largest "
            "resident set, imports included, the largest of its rounds.",
            f"- Choosing: the first {facts['num_rows']} rows of nli_ko_klue.test, `nli`'s plain Korean prompt, the "
            f"first {NUM_SHOTS} training rows as demonstrations, blank lines between. Tokens: {facts['shown_tokens']} "
            f"of demonstrations, prompts {_words(facts['prompt_tokens'])}; answers "
            f"{', '.join(map(str, facts['word_tokens']))}. The model was not trained on this prompt: it "
            f"chose {choices['num_classes']} of the three answers at least once; {choices['accuracy']:.0%} of its "
            f"choices were "
            "correct.",
            f"- Generation: test rows, prompts in the pattern of training, at most {MAX_NEW_TOKENS} new tokens.",
            *(
                f"  - {name}: {num} rows on {facts['passages'][name]} passages. Tokens of prompts: "
                f"{_words(facts['text_tokens'][name])}; of answers: {_words(texts['lengths'][name])}."
                for name, num in facts["texts"].items()
            ),
            f"  - {texts['num_unfinished']} answers did not end; {texts['num_different']} are different.",
            f"- Model: a GPT-2 of {facts['parameters'] / 1e6:.1f} M parameters ({MODEL['n_layer']} layers, width "
            f"{MODEL['n_embd']}, {MODEL['n_head']} heads, window {MODEL['n_positions']:,}, {facts['vocabulary']:,} "
            f"tokens), trained by `multitask.train` for {facts['num_steps']} steps of {TRAIN['batch_tokens']:,} tokens "
            f"of {trained_on} ({facts['trained_s']} s, seed {SEED}), so that answers end, and at different lengths.",
            f"- Hardware: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}.",
            f"- Python {platform.python_version()}, {versions}{commit()}.",
            f"- Command: `{command}`",
            *(["", "## Observations", "", *(f"- {note}" for note in notes)] if notes else []),
            "",
        ]
    )


def _times(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """`**20.31 times** (by round: 20.10, 20.52)` of the medians of rows per second."""
    medians = [statistics.median(run["rows_per_s"] for run in runs) for runs in (ours, theirs)]
    by_round = ", ".join(f"{a['rows_per_s'] / b['rows_per_s']:.2f}" for a, b in zip(ours, theirs, strict=True))
    return f"**{medians[0] / medians[1]:.2f} times** (by round: {by_round})"


def _memory(results: dict[str, list[dict[str, Any]]], arm: str, larger: str) -> str:
    peaks = [f"{results[a][0]['num_rows']:,} rows {_peak(results[a]):,.0f} MiB" for a in (arm, larger)]
    return f"{arm}, {', '.join(peaks)}"


def _peak(runs: list[dict[str, Any]]) -> float:
    return float(max(run["peak_bytes"] for run in runs) / 2**20)


def _words(spread: dict[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in spread.items())


def _table(title: str, results: dict[str, list[dict[str, Any]]], pair: tuple[str, str]) -> list[str]:
    lines = [
        f"| {title} | rows/s, median [min-max] | speed-up of ours | per CPU second | peak memory |",
        "|---|---|---|---|---|",
    ]
    for arm in pair:
        runs = results[arm]
        speeds = [run["rows_per_s"] for run in runs]
        per_cpu = statistics.median(run["rows_per_cpu_s"] for run in runs)
        ratio = statistics.median(run["rows_per_s"] for run in results[pair[0]]) / statistics.median(speeds)
        lines.append(
            f"| {arm} | {statistics.median(speeds):,.2f} [{min(speeds):,.2f}-{max(speeds):,.2f}] "
            f"| {'1' if arm == pair[0] else f'{ratio:.2f}'} | {per_cpu:,.2f} | {_peak(runs):,.0f} MiB |"
        )
    return lines


@click.command()
@click.option("--rounds", "num_rounds", default=3, show_default=True, help="How often each arm runs.")
@click.option("--rows", "num_rows", default=500, show_default=True, help="Rows to choose answers for.")
@click.option("--texts", "num_texts", default=360, show_default=True, help="Prompts to write answers to.")
@click.option("--data", "root", type=Path, help="Folder of the sets.  [default: MULTITASK_DATA, else ../shared/data]")
@click.option("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="Report.  [default: eval.md here]")
@click.option("--note", "notes", multiple=True, help="A remark for the report; may be given several times.")
@click.option("--smoke", is_flag=True, help="One round of few rows: does it run at all?")
@click.option("--arm", type=click.Choice(ARMS), hidden=True)
@click.option("--work", type=Path, hidden=True)
def main(
    num_rounds: int,
    num_rows: int,
    num_texts: int,
    root: Path | None,
    out: Path,
    notes: tuple[str, ...],
    smoke: bool,
    arm: str | None,
    work: Path | None,
) -> None:
    """Rows per second of choosing and of writing answers, beside lm-evaluation-harness and transformers' `generate`."""
    if arm is not None:
        assert work is not None
        run, file = RUN[arm]
        result, answers = run(work, file)
        (work / f"{arm}.json").write_text(json.dumps(answers), "utf-8")
        print(json.dumps(result))
        return
    root = (root or Path(os.environ.get("MULTITASK_DATA") or Path(__file__).parents[2] / "shared" / "data")).resolve()
    files = [f"{name}.{split}.jsonl" for names in SOURCES.values() for name in names for split in ("train", "test")]
    missing = [name for name in files if not (root / name).exists()]
    if missing:
        raise click.UsageError(f"{root}: no {', '.join(missing)}; name the folder of the sets with --data")
    num_steps = NUM_STEPS
    if smoke:
        num_rounds, num_rows, num_texts, num_steps = 1, 16, 64, 40
    command = f"python benchmarks/eval.py --rounds {num_rounds} --rows {num_rows} --texts {num_texts}"
    with tempfile.TemporaryDirectory() as folder:
        facts = prepare(Path(folder), root, num_rows, num_texts, num_steps)
        print(json.dumps(facts, ensure_ascii=False), flush=True)
        results: dict[str, list[dict[str, float]]] = defaultdict(list)
        turns = [arm for _ in range(num_rounds) for arm in (*CHOOSING, *WRITING)]
        for arm in (*turns, *LARGER):
            results[arm].append(run_arm(__file__, arm, Path(folder)))
            print(f"{arm}, {len(results[arm])}: {json.dumps(results[arm][-1])}", flush=True)
        facts |= {"choices": same_choices(Path(folder)), "written": same_texts(Path(folder))}
    out.write_text(markdown(results, facts, command, notes), "utf-8")
    print(f"wrote {out.name}")


if __name__ == "__main__":
    main()
