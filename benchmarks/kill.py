"""Killed runs: SIGKILL at random moments, resume, and compare with a run that nothing stopped, bit for bit.

`python benchmarks/kill.py --kills 50` trains tiny models (full fine-tuning, LoRA, pretraining) on synthetic data, each
in a process that is killed once, anywhere between its imports and its last line, and prints a table. A run that is
killed before its first checkpoint begins anew with `overwrite`; every other one continues with `resume`.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

_SYNTHETIC = {"synthetic": {"train": 120, "validation": 12, "test": 16}}
_MODEL = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "dropout": 0.1}
_LOOP = {
    "batch_tokens": 512,
    "micro_batch_tokens": 256,
    "max_steps": 60,
    "log_every_steps": 4,
    "eval_every_steps": 6,
    "save_every_steps": 5,  # neither a multiple of the other two
    "learning_rate": 2e-3,
    "precision": "fp32",
}
_ROWS: dict[str, Any] = {
    "tasks": ["qa", "nli"],
    "device": "cpu",
    "data": {"sources": {name: [_SYNTHETIC] for name in ("qa", "nli")}},
    "model": {**_MODEL, "vocab_size": 400},
    "train": {**_LOOP, "packing_window": 40},
    "eval": {"num_bootstrap": 20},
}
KINDS: dict[str, dict[str, Any]] = {
    "full fine-tuning": _ROWS,
    "LoRA": {**_ROWS, "adapter": {"kind": "lora", "dropout": 0.1}},
    "pretraining": {
        "device": "cpu",
        "text": {"synthetic": {"train": 200, "validation": 20}},
        "tokenizer": {"vocab_size": 400},
        "model": _MODEL,
        "train": {**_LOOP, "block_size": 64},
        "sample_tokens": 8,
    },
}
"""Settings of each kind of run; what has a section `text` is pretraining."""

_ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(Path(__file__).parents[1]),
}
_READY = "imported"


def train(kind: str, out: Path, how: str) -> None:
    """One run in this process; how: new, resume or overwrite."""
    import multitask
    from multitask.training import finetune, pretrain  # noqa: F401  # so that they are not what is killed

    print(_READY, flush=True)
    settings = json.loads(json.dumps(KINDS[kind]))
    settings["text" if "text" in settings else "data"]["cache"] = str(out.with_suffix(".cache"))
    run = multitask.pretrain if "text" in settings else multitask.train
    if how == "resume":
        run(resume=out, report=False)
    else:
        run(settings, out=out, overwrite=how == "overwrite", report=False)


def start(kind: str, out: Path, how: str) -> "subprocess.Popen[str]":
    """A process that trains; returns once its imports are done."""
    command = [sys.executable, __file__, "--child", kind, how, str(out)]
    process = subprocess.Popen(command, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line.strip() != _READY:
        pass
    return process


def finish(process: "subprocess.Popen[str]") -> str:
    """Waits for the end; the last lines of its errors, empty when there were none."""
    _, errors = process.communicate()
    return "" if process.returncode == 0 else errors[-2000:] or f"exit code {process.returncode}"


def content(run: Path) -> dict[str, object]:
    """All that has to be the same: weights, log, scores, predictions, samples."""
    results = json.loads((run / "results.json").read_text("utf-8"))
    varying = ("tokens_per_s", "peak_memory_bytes")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    cost = {key: results["cost"][key] for key in ("tokens", "steps", "best_step", "epochs")}
    config = json.dumps(results["config"]).replace(str(run.with_suffix("")), "")
    found: dict[str, object] = {
        "config": config,
        "log": [{key: value for key, value in line.items() if key not in varying} for line in log],
        "cost": cost,
        **{key: results[key] for key in ("tasks", "seed")},
        "rows": {name: data["num_rows"] for name, data in results["data"].items()},
    }
    for path in sorted([*run.glob("model/*.safetensors"), *run.glob("predictions/*.jsonl")]):
        found[str(path.relative_to(run))] = path.read_bytes()
    return found


def differing(run: Path, whole: dict[str, object]) -> list[str]:
    """What is not as in the run that nothing stopped."""
    found = content(run)
    return [name for name in {**whole, **found} if found.get(name) != whole.get(name)]


def trial(kind: str, work: Path, number: int, wait_s: float, whole: dict[str, object]) -> tuple[str, str]:
    """Kills a run after so many seconds, lets it end; how it went on (resumed, begun anew, done), and what is wrong."""
    out = work / f"run-{number}"
    process = start(kind, out, "new")
    time.sleep(wait_s)
    was_done = process.poll() is not None
    process.kill()
    process.communicate()
    is_begun = any((out / "checkpoints").glob("step-*"))
    how = "done" if was_done else "resume" if is_begun else "overwrite" if (out / "config.yaml").exists() else "new"
    errors = "" if was_done else finish(start(kind, out, how))
    if not errors and (differences := differing(out, whole)):
        errors = f"differs in {', '.join(differences)}"
    if not errors:
        shutil.rmtree(out)
        shutil.rmtree(out.with_suffix(".cache"), ignore_errors=True)
    return how, errors


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50, help="of all kinds")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("runs/kill"), help="folder; what fails stays in it")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        train(given.child[0], Path(given.child[2]), given.child[1])
        return
    rng, names = random.Random(given.seed), given.kind or list(KINDS)
    print("| run | SIGKILLs | resumed | begun anew | the same, bit for bit |\n| --- | ---: | ---: | ---: | ---: |")
    failures = []
    for place, kind in enumerate(names):
        work = given.work.resolve() / kind.replace(" ", "-")
        shutil.rmtree(work, ignore_errors=True)
        process = start(kind, work / "whole", "new")
        started_s = time.perf_counter()
        if errors := finish(process):
            raise RuntimeError(f"{kind}: {errors}")
        whole_s, whole = time.perf_counter() - started_s, content(work / "whole")
        num = given.kills // len(names) + (place < given.kills % len(names))
        counts = {"resume": 0, "overwrite": 0, "new": 0}
        same = number = 0
        while sum(counts.values()) < num:
            number += 1
            how, errors = trial(kind, work, number, rng.random() * whole_s, whole)
            if how == "done" and not errors:  # it was faster than the first one; nothing was killed
                continue
            counts[how] = counts.get(how, 0) + 1
            same += not errors
            if errors:
                failures.append(f"{kind}, {work / f'run-{number}'}: {errors}")
        anew = counts["overwrite"] + counts["new"]
        print(f"| {kind} | {num} | {counts['resume']} | {anew} | {same} |", flush=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
