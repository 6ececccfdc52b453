"""Killed runs: SIGKILL at random moments, resume, and compare with a run that nothing stopped, bit for bit.

`python benchmarks/kill.py --kills 50` trains tiny models (full fine-tuning, LoRA, pretraining) on synthetic data. Each
run is killed once, anywhere between its first checkpoint and its last line, and resumed. Some more are killed before
their first checkpoint and begin anew with `overwrite`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
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


def train(kind: str, out: Path, how: str) -> None:
    """One run in this process; how: new, resume or overwrite."""
    import multitask

    settings = json.loads(json.dumps(KINDS[kind]))
    settings["text" if "text" in settings else "data"]["cache"] = str(out.with_suffix(".cache"))
    run = multitask.pretrain if "text" in settings else multitask.train
    if how == "resume":
        run(resume=out, report=False)
    else:
        run(settings, out=out, overwrite=how == "overwrite", report=False)


def start(kind: str, out: Path, how: str) -> int:
    """A process that trains: a copy of this one, in which all is imported and nothing was computed; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        train(kind, out, how)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def is_done(number: int) -> bool:
    """Whether a process has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def finish(number: int) -> str:
    """Waits for the end; what is wrong, empty when nothing is."""
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    return "" if code == 0 else f"exit code {code}"


def has_checkpoint(out: Path) -> bool:
    """Whether a run can be resumed."""
    return any((out / "checkpoints").glob("step-*"))


def wait_for_checkpoint(number: int, out: Path) -> None:
    """Returns when a run has its first checkpoint, or has ended."""
    while not has_checkpoint(out) and not is_done(number):
        time.sleep(0.002)


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


def trial(kind: str, out: Path, wait_s: float, is_early: bool, whole: dict[str, object]) -> tuple[str, str]:
    """Kills a run so many seconds after its first checkpoint (early: its start), and lets it end.

    Returns how (resume, overwrite, new; done: it was faster than the kill), and what is wrong.
    """
    process = start(kind, out, "new")
    if not is_early:
        wait_for_checkpoint(process, out)
    time.sleep(wait_s)
    if is_done(process):
        how, errors = "done", finish(process)
    else:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        how = "resume" if has_checkpoint(out) else "overwrite" if (out / "config.yaml").exists() else "new"
        errors = finish(start(kind, out, how))
    if not errors and (differences := differing(out, whole)):
        errors = f"differs in {', '.join(differences)}"
    if not errors:
        shutil.rmtree(out)
        shutil.rmtree(out.with_suffix(".cache"), ignore_errors=True)
    return how, errors


def trials(kind: str, work: Path, num_late: int, num_early: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How killed runs of a kind ended, and what is wrong; as many as asked for are killed after their checkpoint."""
    rng = random.Random(f"{seed}:{kind}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    started_s = time.perf_counter()
    process = start(kind, work / "whole", "new")
    wait_for_checkpoint(process, work / "whole")
    saved_s = time.perf_counter()
    if errors := finish(process):
        raise RuntimeError(f"{kind}: {errors}")
    early_s, late_s = saved_s - started_s, time.perf_counter() - saved_s
    whole, counts, failures = content(work / "whole"), Counter[str](), []
    number = 0
    while counts["resume"] < num_late or counts["anew"] < num_early:
        number += 1
        is_early = counts["resume"] >= num_late
        wait_s = rng.random() * (early_s if is_early else late_s)
        how, errors = trial(kind, work / f"run-{number}", wait_s, is_early, whole)
        counts[how if how in ("resume", "done") else "anew"] += 1
        counts["same"] += not errors and how != "done"
        if errors:
            failures.append(f"{kind}, {work / f'run-{number}'}: {errors}")
    return counts, failures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50, help="after the first checkpoint, of all kinds")
    parser.add_argument("--early", type=int, default=9, help="before it, of all kinds")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("runs/kill"), help="folder; what fails stays in it")
    given = parser.parse_args()
    import torch

    from multitask.training import finetune, pretrain  # noqa: F401  # before the processes are copied

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of other packages
    names, failures = given.kind or list(KINDS), []
    print(
        "| run | killed and resumed | killed early, begun anew | the same, bit for bit |\n| --- | ---: | ---: | ---: |"
    )
    for place, kind in enumerate(names):
        late, early = (num // len(names) + (place < num % len(names)) for num in (given.kills, given.early))
        counts, wrong = trials(kind, given.work.resolve() / kind.replace(" ", "-"), late, early, given.seed)
        failures += wrong
        killed = counts["resume"] + counts["anew"]
        print(f"| {kind} | {counts['resume']} | {counts['anew']} | {counts['same']} of {killed} |", flush=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
