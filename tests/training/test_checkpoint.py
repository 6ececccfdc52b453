import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ENVIRONMENT, ROOT, furthest, lines, python, settings, weights
from safetensors import SafetensorError

from multitask import train
from multitask.errors import InputError, Interrupted
from multitask.training import checkpoint, loop

Record = dict[str, Any]

GIVEN = settings(
    "qa",
    "nli",
    data={"sources": {name: [{"synthetic": {"train": 60, "validation": 12, "test": 16}}] for name in ("qa", "nli")}},
    model={"dropout": 0.1},
    train={
        "max_steps": 24,
        "save_every_steps": 5,  # neither a multiple of the other two: sums and the best weights are under way
        "log_every_steps": 4,
        "eval_every_steps": 6,
        "micro_batch_tokens": 256,
        "packing_window": 40,
        "learning_rate": 2e-3,
    },
)


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes longer than all the rest of a tiny run."""
    monkeypatch.setattr(loop, "draw_loss", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts. It passes through its 120 rows more than once."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(GIVEN, out=out)
    window, _ = checkpoint.read_state(checkpoint.newest(out))["cursor"]
    assert window * GIVEN["train"]["packing_window"] > 120
    return out


def assert_same_run(run: Path, whole: Path, ignored: Sequence[str] = ()) -> None:
    """Bit for bit: weights, log, scores and predictions; ignored: settings below `train` that may differ."""
    assert furthest(weights(run / "model"), weights(whole / "model")) == 0
    assert lines(run) == lines(whole)
    mine, other = (json.loads((out / "results.json").read_text()) for out in (run, whole))
    for name in ignored:
        for one in (mine, other):
            del one["config"]["train"][name.removeprefix("train.")]
    for key in ("tasks", "data", "config", "seed"):
        assert mine[key] == other[key]
    for key in ("tokens", "steps", "best_step", "epochs"):
        assert mine["cost"][key] == other["cost"][key]
    for name in ("qa", "nli"):
        assert (run / "predictions" / f"{name}.jsonl").read_text() == (
            whole / "predictions" / f"{name}.jsonl"
        ).read_text()


def at(event: str, step: int, act: Callable[[], Any]) -> Callable[[Record], None]:
    """A `report` that acts at one moment of a run."""

    def report(record: Record) -> None:
        if record["event"] == event and record["step"] == step:
            act()

    return report


_KILLED = """
import json, os, signal, sys
from multitask import train
def report(record):
    if record["event"] == "step" and record["step"] == 16:
        os.kill(os.getpid(), signal.SIGKILL)
train(json.loads(sys.argv[1]), out=sys.argv[2], report=report)
"""


def test_a_resumed_run_keeps_the_settings_that_decide_its_weights(tmp_path: Path) -> None:
    train(settings("qa", train={"max_steps": 2}), out=tmp_path / "run")
    said = r"--resume .*run: train\.learning_rate, tasks, seed cannot change .*; what may change: device, .*max_steps"
    with pytest.raises(InputError, match=said):
        train(resume=tmp_path / "run", tasks=["nli"], flags=["seed=8", "train.learning_rate=0.1"])
    assert train(resume=tmp_path / "run", flags=["train.max_steps=3"])["cost"]["steps"] == 3


def test_killed_and_resumed_is_uninterrupted(whole: Path, tmp_path: Path) -> None:
    """Killed in the middle of an epoch, a step after a checkpoint and past a log line that it does not know of."""
    done = python(_KILLED, json.dumps(GIVEN), str(tmp_path / "run"))
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    run = tmp_path / "run"
    assert checkpoint.newest(run).name == "step-15"
    assert not (run / "results.json").exists()
    with (run / "metrics.jsonl").open("a") as file:  # half a line, as a killed process may leave
        file.write('{"event": "step", "ste')
    torch.manual_seed(99)  # whatever the resumed process drew before
    train(resume=run)
    assert_same_run(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_the_run_goes_on(number: int, whole: Path, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=str(tmp_path / "run")):
        train(GIVEN, out=tmp_path / "run", report=at("step", 8, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) is before
    assert checkpoint.newest(tmp_path / "run").name == "step-8"
    train(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(GIVEN, out=tmp_path / "run", report=at("step", 8, twice))
    assert checkpoint.newest(tmp_path / "run").name == "step-5"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
@pytest.mark.parametrize("nth", [3, 4, 5])  # of the files written: the best weights of step 6, then step 10's two
def test_a_full_disk_leaves_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch, whole: Path, tmp_path: Path, error: Exception, nth: int
) -> None:
    run, count = tmp_path / "run", 0
    save_file = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        nonlocal count
        count += 1
        if count == nth:
            path.write_bytes(b"half of it")
            raise error
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        name = "best-6" if nth == 3 else "step-10"
        with pytest.raises(InputError, match=rf"{name}: cannot be written .*No space left.* --resume {run}$"):
            train(GIVEN, out=run)
    assert checkpoint.newest(run).name == "step-5"
    assert not list((run / "checkpoints").glob(".*"))
    if nth != 4 or isinstance(error, OSError):
        return  # resuming is the same for all of them
    train(resume=run)
    assert_same_run(run, whole)


def test_what_a_killed_write_left_is_no_checkpoint(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="out of power"):
        train(GIVEN, out=run, report=at("saved", 15, lambda: (_ for _ in ()).throw(RuntimeError("out of power"))))
    for name in (".step-16.123.tmp", ".best-16.123.tmp"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "model.safetensors").write_bytes(b"half of it")
    assert checkpoint.newest(run).name == "step-15"
    train(resume=run)
    assert_same_run(run, whole)
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(keep: int, tmp_path: Path) -> None:
    given = {**GIVEN, "train": {**GIVEN["train"], "keep_checkpoints": keep}}
    found: list[set[str]] = []

    def on_validation(record: Record) -> None:
        if record["event"] == "saved":
            folder = tmp_path / "run" / "checkpoints"
            found.append({path.name for path in folder.iterdir()})
            best = checkpoint.read_state(checkpoint.newest(tmp_path / "run"))["best"]
            # What the newest checkpoint calls the best is there whenever the run may be killed.
            assert best is None or f"best-{best['step']}" in found[-1]

    train(given, out=tmp_path / "run", report=on_validation)
    assert [step for step, _ in checkpoint.steps(tmp_path / "run" / "checkpoints")] == [10, 15, 20, 24][-keep:]
    assert {name for name in found[-1] if name.startswith("best-")} == {
        f"best-{checkpoint.read_state(path)['best']['step']}"  # type: ignore[index]
        for _, path in checkpoint.steps(tmp_path / "run" / "checkpoints")
    }


def test_the_best_weights_survive_a_kill_before_the_next_checkpoint(tmp_path: Path) -> None:
    """Newer best weights do not take the place of those that the checkpoint names."""
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="out of power"):
        train(GIVEN, out=run, report=at("validation", 18, lambda: (_ for _ in ()).throw(RuntimeError("out of power"))))
    assert checkpoint.newest(run).name == "step-15"
    assert {path.name for path in (run / "checkpoints").glob("best-*")} == {
        "best-6",  # of the checkpoint before
        "best-12",
        "best-18",
    }


def test_another_number_of_threads_is_warned_of(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(GIVEN, out=run, report=at("step", 8, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    path = checkpoint.newest(run) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_threads": 99}))
    records: list[Record] = []
    train(resume=run, report=records.append)
    (warning,) = [record["text"] for record in records if record["event"] == "warning"]
    assert "written with 99 threads, this process has " in warning
    assert "OMP_NUM_THREADS=99 continues bit for bit" in warning


def test_weights_of_another_model_are_refused(whole: Path, tmp_path: Path) -> None:
    other = torch.nn.Linear(3, 4)
    with pytest.raises(InputError, match=r"step-24: weights of another model \(\d+ differ, first '"):
        checkpoint.load_weights(checkpoint.newest(whole), other)


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        train(resume=tmp_path)
    (tmp_path / "config.yaml").write_text("tasks: [qa]\n")
    with pytest.raises(InputError, match=r"no checkpoint to resume from .*; start anew with --overwrite"):
        train(resume=tmp_path)


def test_a_run_with_lora_resumes_too(tmp_path: Path) -> None:
    given = {**GIVEN, "adapter": {"kind": "lora", "dropout": 0.1}}
    train(given, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(given, out=tmp_path / "run", report=at("step", 8, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    train(resume=tmp_path / "run")
    last = [checkpoint.newest(tmp_path / name) for name in ("whole", "run")]
    assert furthest(weights(last[0]), weights(last[1])) == 0
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_command_exits_130_and_says_how_to_go_on(number: int, tmp_path: Path) -> None:
    given = settings("qa", train={"max_steps": 100000, "log_every_steps": 1, "eval_every_steps": 100000})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    run = tmp_path / "a run"
    command = [sys.executable, "run.py", "train", "--config", str(tmp_path / "config.yaml"), "--out", str(run)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        while not (run / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors[-2000:]
    assert f"saved; resume with: python run.py train --resume '{run}'" in errors
    saved = int(checkpoint.newest(run).name.removeprefix("step-"))
    if number == signal.SIGTERM:
        return  # resuming is the same for both
    results = train(resume=run, flags=[f"train.max_steps={saved + 2}"])
    assert results["cost"]["steps"] == saved + 2


def test_data_that_is_new_or_missing_on_resume_is_named(tmp_path: Path) -> None:
    train(settings("qa", "cls", train={"save_every_steps": 2}), out=tmp_path / "run")
    path = checkpoint.newest(tmp_path / "run") / "state.json"
    state = json.loads(path.read_text())
    for name, problem in (("qa", "qa is new"), ("nli", "nli is missing")):
        changed = {k: v for k, v in state["data"].items() if k != name} | ({name: ["0"]} if name == "nli" else {})
        path.write_text(json.dumps({**state, "data": changed}))
        with pytest.raises(InputError, match=f"is not what this run was started with: {problem}; put the files back"):
            train(resume=tmp_path / "run", flags=["train.max_steps=8"])


# ---------------------------------------------------------------- damaged files


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def interrupted(out: Path) -> Path:
    """A run stopped at step 16, with checkpoints of the steps 10, 15 and 16 and the best weights of step 12."""
    given = {**GIVEN, "train": {**GIVEN["train"], "keep_checkpoints": 3}}
    with pytest.raises(Interrupted):
        train(given, out=out, report=at("step", 16, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert [step for step, _ in checkpoint.steps(out / "checkpoints")] == [10, 15, 16]
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_loss", lambda *_: None)
        return interrupted(tmp_path_factory.mktemp("stopped") / "run")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_named_and_an_older_one_offered(
    name: str, stopped: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    shutil.copytree(stopped, run)
    halve(run / "checkpoints" / "step-16" / name)
    older = run / "checkpoints" / "step-15"
    with pytest.raises(InputError, match=rf"step-16/{name}: truncated.*an older one is whole: .*--resume '{older}'$"):
        train(resume=run)
    assert (run / "checkpoints" / "step-16").is_dir()  # nothing is removed by an error
    if name != "state.json":
        return  # resuming is the same for all of them
    halve(older / name)
    with pytest.raises(InputError, match=r"--resume '.*step-10'$"):
        train(resume=run)
    records: list[Record] = []
    train(resume=run / "checkpoints" / "step-10", flags=["train.keep_checkpoints=2"], report=records.append)
    said = [record["text"] for record in records if record["event"] == "warning"]
    assert said == ["resumed from step 10; newer checkpoints removed: step-15, step-16"]
    assert_same_run(run, whole, ignored=["train.keep_checkpoints"])
    assert [step for step, _ in checkpoint.steps(run / "checkpoints")] == [20, 24]


def test_without_a_whole_checkpoint_resuming_says_so(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for _, path in checkpoint.steps(run / "checkpoints"):
        (path / "state.json").write_text('{"step": 3}')
    with pytest.raises(
        InputError, match=r"it does not say where the run was: .*no older one is whole: start anew with"
    ):
        train(resume=run)
    with pytest.raises(InputError, match=r"step-15/state\.json: .*this checkpoint is damaged; name another one below"):
        train(resume=run / "checkpoints" / "step-15")
    with pytest.raises(InputError, match=r"step-17: no such checkpoint; did you mean 'step-1[56]'\?"):
        train(resume=run / "checkpoints" / "step-17")
    with pytest.raises(InputError, match=r"best-12: not a checkpoint; expected a folder such as"):
        train(resume=run / "checkpoints" / "best-12")


def test_damaged_best_weights_are_named(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    halve(run / "checkpoints" / "best-12" / "model.safetensors")
    with pytest.raises(InputError, match=r"best-12/model\.safetensors: truncated"):
        train(resume=run)


@pytest.mark.parametrize(
    "rest", ['{"event": "step", "step": 9, "loss": {"qa": 1.0}', "\ufffd", "[]", "7", '{"step": {}}']
)
def test_what_a_killed_process_left_of_a_line_is_dropped(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n' + rest)
    checkpoint.drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_full_disk_under_the_log_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    opened = Path.open

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    def full(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        is_late = path.name == "metrics.jsonl" and mode == "a" and path.exists() and path.stat().st_size > 1000
        return Full() if is_late else opened(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=rf"metrics\.jsonl: cannot be written \(No space left.* --resume {run}$"):
        train(GIVEN, out=run)
    assert lines(run)


@pytest.mark.parametrize("moment", ["model", "results.json", "predictions"])
def test_a_full_disk_at_the_end_of_a_run_leaves_nothing_half_written(
    moment: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        ended = (run / "checkpoints" / "step-24").exists()
        if ended and (target == run / moment or target.parent == run / moment):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match=rf"{moment}\S*: cannot be written \(No space left on device\)"):
            train(GIVEN, out=run)
    assert not (run / "results.json").exists()
    assert not [path for path in run.rglob(".*") if path.name.endswith(".tmp")]
    train(resume=run)
    assert_same_run(run, whole)


@pytest.mark.slow
def test_the_benchmark_of_kills_compares_whole_runs(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/kill.py", "--kills", "2", "--early", "0", "--work", str(tmp_path)]
    done = subprocess.run(
        [*command, "--kind", "pretraining"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| pretraining \| 2 \| (\d) \| (\d) of \2 \|", done.stdout)
