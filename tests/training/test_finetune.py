import json
import math
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import FACTS, files, furthest, lines, settings, torchrun, weights
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from multitask import plots, train
from multitask.config.run import RunConfig
from multitask.config.train import TrainConfig
from multitask.errors import InputError, Interrupted
from multitask.evaluation import tuned
from multitask.training import loop
from multitask.training.optim import learning_rate


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes longer than all the rest of a tiny run."""
    monkeypatch.setattr(loop, "draw_loss", lambda *_: None)


class Ran(NamedTuple):
    """What a run came to: final weights, running means of its gradients, and its log."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    log: list[dict[str, Any]]


def left_by(out: Path) -> Ran:
    """Of a run of width 32.

    Key biases are left out: softmax ignores what is added to all scores, so their gradient is rounding noise, which
    Adam divides by its own size, and they walk at random.
    """
    final = {
        name: torch.cat([value[:32], value[64:]]) if name.endswith("c_attn.bias") else value
        for name, value in weights(out / "model").items()
    }
    moments = load_file(out / "checkpoints" / "step-6" / "optimizer.safetensors")
    return Ran(final, {name: value for name, value in moments.items() if name.endswith("exp_avg")}, lines(out))


def run(out: Path, **sections: Any) -> Ran:
    """A run on three tasks."""
    train(settings("summ", "nli", "qa", **sections), out=out)
    return left_by(out)


def assert_same(mine: Ran, other: Ran) -> None:
    """Sums of float32 taken in another order: gradients, of a norm of about 1, differ by rounding alone.

    Adam lends a gradient near zero the size of all others, so a weight may move otherwise by some part of a step; six
    steps move it by 3e-3.
    """
    assert max(float(value.abs().max()) for value in mine.gradients.values()) > 1e-2
    assert furthest(mine.gradients, other.gradients) < 1e-6
    assert furthest(mine.weights, other.weights) < 1e-5
    for line, same in zip(mine.log, other.log, strict=True):
        assert line["tokens"] == same["tokens"]
        assert line["loss"] == pytest.approx(same["loss"], abs=2e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Steps of 8 blocks, one pass each, packed."""
    return run(tmp_path_factory.mktemp("whole") / "run", train={"batch_tokens": 1024, "micro_batch_tokens": 1024})


@pytest.mark.parametrize(
    "setting",
    [
        {"micro_batch_tokens": 256},
        {"micro_batch_tokens": 128},
        {"micro_batch_tokens": 16},  # less than a block: still one at a time
        {"packing": "none"},
        {"packing": "none", "micro_batch_tokens": 200},
        {"gradient_checkpointing": True},
    ],
)
def test_how_a_step_is_divided_changes_nothing(whole: Ran, setting: dict[str, Any], tmp_path: Path) -> None:
    assert_same(run(tmp_path / "run", train={"batch_tokens": 1024, "micro_batch_tokens": 1024, **setting}), whole)


def test_another_batch_is_another_run(whole: Ran, tmp_path: Path) -> None:
    """The comparisons above can fail."""
    found = run(tmp_path / "run", train={"batch_tokens": 896, "micro_batch_tokens": 1024})
    assert furthest(found.gradients, whole.gradients) > 1e-3
    assert furthest(found.weights, whole.weights) > 1e-4


def test_the_seed_decides_everything(whole: Ran, tmp_path: Path) -> None:
    same = run(tmp_path / "same", train={"batch_tokens": 1024, "micro_batch_tokens": 1024})
    assert furthest(same.weights, whole.weights) == 0
    assert same.log == whole.log
    other = run(tmp_path / "other", seed=8, train={"batch_tokens": 1024, "micro_batch_tokens": 1024})
    assert furthest(other.weights, whole.weights) > 1e-3


_TRAIN = """
import json, sys
from multitask import train
train(json.loads(sys.argv[1]), out=sys.argv[2])
"""

_RESUME = "import sys; from multitask import train; train(resume=sys.argv[1])"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "batch_tokens", "micro_batch_tokens", "packing"),
    [(2, 384, 128, "packed"), (2, 128, 128, "packed"), (2, 384, 128, "none"), (4, 640, 640, "packed")],
)
def test_several_processes_are_one(
    size: int, batch_tokens: int, micro_batch_tokens: int, packing: str, tmp_path: Path
) -> None:
    """Three passes for two processes; one pass, so that a process never has one; rows apart; one pass made four.

    And a run continues with another number of processes.
    """
    sizes = {"batch_tokens": batch_tokens, "micro_batch_tokens": micro_batch_tokens, "packing": packing}
    given = settings("summ", "nli", "qa", train={**sizes, "save_every_steps": 2, "keep_checkpoints": 9})
    train(given, out=tmp_path / "one")
    done = torchrun(_TRAIN, json.dumps(given), str(tmp_path / "several"), size=size)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = left_by(tmp_path / "one")
    assert_same(whole, left_by(tmp_path / "several"))
    if size == 4:
        return
    train(resume=tmp_path / "several" / "checkpoints" / "step-2")
    assert_same(whole, left_by(tmp_path / "several"))
    done = torchrun(_RESUME, str(tmp_path / "one" / "checkpoints" / "step-4"), size=size)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(whole, left_by(tmp_path / "one"))


# ---------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 40 steps: warm-up is a tenth at most, 4 steps; then from step 4 (peak) to step 40 (final), after the last one.
        ("cosine", {0: 0.2, 3: 0.8, 4: 1.0, 13: 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 22: 0.55, 40: 0.1}),
        ("linear", {0: 0.2, 3: 0.8, 4: 1.0, 13: 0.775, 22: 0.55, 40: 0.1}),
        ("constant", {0: 0.2, 3: 0.8, 4: 1.0, 22: 1.0, 39: 1.0}),
    ],
)
def test_the_learning_rate_by_hand(schedule: Any, expected: dict[int, float]) -> None:
    config = TrainConfig(learning_rate=1.0, final_learning_rate=0.1, schedule=schedule, warmup_steps=100)
    assert {step: learning_rate(config, step, 40) for step in expected} == pytest.approx(expected)


def test_the_learning_rate_without_warm_up() -> None:
    config = TrainConfig(learning_rate=1.0, schedule="linear", warmup_steps=0)
    assert [learning_rate(config, step, 4) for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert learning_rate(config, 0, 1) == 1.0, "a run of one step learns"


def test_the_learning_rate_is_the_one_logged(tmp_path: Path) -> None:
    config = TrainConfig(learning_rate=1e-3, schedule="linear")
    train(settings("qa", train={"learning_rate": 1e-3, "schedule": "linear"}), out=tmp_path / "run")
    rates = {line["step"]: line["learning_rate"] for line in lines(tmp_path / "run") if line["event"] == "step"}
    assert rates == {step: learning_rate(config, step - 1, 6) for step in (2, 4, 6)}


# ---------------------------------------------------------------- which weights are kept


def validated(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Validation finds these losses, one after the other."""
    found = iter(losses)

    def nll(model: Any, examples: Any, *_: Any) -> Any:
        loss = next(found)
        return torch.full((len(examples),), loss), torch.ones(len(examples))

    monkeypatch.setattr(loop, "example_nll", nll)


SAVING = {"max_steps": 12, "eval_every_steps": 2, "save_every_steps": 2, "keep_checkpoints": 9}


@pytest.mark.parametrize(
    ("patience", "losses", "best", "last"),
    [
        (2, [3.0, 2.0, 2.5, 2.0], 4, 8),  # the same again is not better
        (2, [3.0, 2.0, 2.5, 1.0, 1.5, 1.2], 8, 12),
        (0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 12),
    ],
)
def test_the_best_weights_are_kept_and_patience_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, patience: int, losses: list[float], best: int, last: int
) -> None:
    validated(monkeypatch, losses)
    results = train(settings("qa", train={**SAVING, "patience": patience}), out=tmp_path / "run")
    assert (results["cost"]["best_step"], results["cost"]["steps"]) == (best, last)
    log = [line for line in lines(tmp_path / "run") if line["event"] == "validation"]
    assert [line["loss"]["qa"] for line in log] == losses
    assert [line["step"] for line in log if line["is_best"]][-1] == best
    kept, at_best = weights(tmp_path / "run" / "model"), weights(tmp_path / "run" / "checkpoints" / f"step-{best}")
    assert all(torch.equal(kept[name], at_best[name]) for name in at_best)
    if best != last:
        at_last = weights(tmp_path / "run" / "checkpoints" / f"step-{last}")
        assert not all(torch.equal(at_best[name], at_last[name]) for name in at_best)


def test_a_stopped_run_stays_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Killed while the final scores were taken, it has nothing left to learn."""
    validated(monkeypatch, [3.0, 4.0, 5.0])
    train(settings("qa", train={**SAVING, "patience": 2}), out=tmp_path / "run")
    before = weights(tmp_path / "run" / "model")
    results = train(resume=tmp_path / "run")
    assert results["cost"]["steps"] == 6
    assert furthest(before, weights(tmp_path / "run" / "model")) == 0


def test_select_by_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scores = iter([0.1, 0.7, 0.2, 0.7, 0.6, 0.5])
    monkeypatch.setattr(tuned, "first_metrics", lambda *_: {"qa": next(scores)})
    results = train(settings("qa", train={**SAVING, "select_by": "score"}), out=tmp_path / "run")
    assert results["cost"]["best_step"] == 4
    log = [line for line in lines(tmp_path / "run") if line["event"] == "validation"]
    assert log[1]["score"] == {"qa": 0.7}


def test_the_score_is_each_tasks_first_metric(tmp_path: Path) -> None:
    given = settings("gen", "cls", "qa", eval={"split": "validation", "num_bootstrap": 10}, train={"max_steps": 2})
    given["train"] |= {"select_by": "score", "eval_every_steps": 2}
    results = train(given, out=tmp_path / "run")
    (record,) = [line for line in lines(tmp_path / "run") if line["event"] == "validation"]
    first = {"gen": "perplexity", "cls": "accuracy", "qa": "f1"}
    expected = {name: results["tasks"][name]["metrics"][first[name]]["value"] for name in first}
    expected["gen"] = -math.log(expected["gen"])  # nats, beside shares of 1; larger is better
    assert record["score"] == pytest.approx(expected)


def test_a_validation_row_that_exceeds_the_window_is_left_out(tmp_path: Path) -> None:
    """In evaluation a prompt is cut so that `max_new_tokens` fit behind it; the known answer may be longer."""
    long = {**FACTS[0], "answers": ["word " * 300]}
    runs = []
    for name, validation in (("long", [long, *FACTS[1:]]), ("without", FACTS[1:])):
        source = files(tmp_path / name, train=FACTS, validation=validation, test=FACTS)
        runs.append(tmp_path / f"{name}-run")
        train(settings("qa", data={"sources": {"qa": [source]}}, train={"max_steps": 2}), out=runs[-1])
    assert lines(runs[0]) == lines(runs[1])


def test_validation_without_a_row_that_fits_says_so(tmp_path: Path) -> None:
    long = {**FACTS[0], "answers": ["word " * 300]}
    source = files(tmp_path, train=FACTS, validation=[long], test=FACTS)
    with pytest.raises(InputError, match=r"no validation row of any task fits .*train.block_size"):
        train(settings("qa", data={"sources": {"qa": [source]}}), out=tmp_path / "run")


# ---------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loss of 'qa' is not a finite number .*lower train.learning_rate"):
        train(settings("qa", train={"learning_rate": 1e30, "clip_norm": 0, "warmup_steps": 0}), out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "the first line would hold a NaN"


def test_runs_of_other_precision_follow_each_other_in_one_process(tmp_path: Path) -> None:
    for precision in ("bf16", "fp32"):
        results = train(settings("qa", train={"precision": precision, "max_steps": 2}), out=tmp_path / precision)
        assert results["config"]["train"]["precision"] == precision
    found = [weights(tmp_path / precision / "model") for precision in ("bf16", "fp32")]
    assert 0 < furthest(*found) < 1e-2


def test_the_precision_that_was_measured_is_the_runs_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured again on a busier machine, a resumed run would go on in another one."""
    monkeypatch.setattr("multitask.device._bf16_gain", lambda width: 9.0)
    train(settings("qa", train={"precision": "auto", "max_steps": 2}), out=tmp_path / "run")
    monkeypatch.setattr("multitask.device._bf16_gain", lambda width: 0.1)
    given = settings("qa", train={"precision": "auto", "max_steps": 2})
    results = train(given, resume=tmp_path / "run")
    assert results["config"]["train"]["precision"] == "bf16"


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train.tracker: no tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        train(settings("qa", train={"tracker": "tensorbord"}), out=tmp_path / "run")
    with pytest.raises(InputError, match=r"train.tracker: 'aim' is not installed; .*pip install"):
        train(settings("qa", train={"tracker": "aim"}), out=tmp_path / "run")


def test_blocks_longer_than_the_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train.block_size 256 is longer than the model's window of 128"):
        train(settings("qa", train={"block_size": 256}), out=tmp_path / "run")


# ---------------------------------------------------------------- what a run is


def test_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_loss", plots.draw_loss)
    records: list[dict[str, Any]] = []
    results = train(settings("qa", "cls"), out=tmp_path / "run", report=records.append)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml", "model", "baselines", "checkpoints", "metrics.jsonl", "loss.png", "results.json", "predictions"
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert RunConfig.model_validate(results["config"]).tasks == ["qa", "cls"]
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    steps = [line for line in lines(tmp_path / "run") if line["event"] == "step"]
    assert [line["step"] for line in steps] == [2, 4, 6]
    assert steps[-1]["tokens"] == results["cost"]["tokens"]
    assert set(steps[0]["loss"]) == {"qa", "cls"}
    events = [record["event"] for record in records]
    assert events[0] == "start"
    assert events[-1] == "done"
    assert results["arm"] == "multitask"


def test_epochs_become_steps(tmp_path: Path) -> None:
    """The steps hold as many tokens as 40 passes over the rows, whatever blocks leave free."""
    source = files(tmp_path, train=FACTS, validation=FACTS, test=FACTS)
    given = settings("qa", data={"sources": {"qa": [source]}}, train={"max_steps": None, "epochs": 40})
    records: list[dict[str, Any]] = []
    results = train(given, out=tmp_path / "run", report=records.append)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    rows = ["{context}<|question|>{question}<|answer|>".format(**row) + row["answers"][0] + "<|end|>" for row in FACTS]
    tokens = 40 * sum(len(tokenizer(row)["input_ids"]) - 1 for row in rows)  # the last token of a row is a label alone
    assert tokens <= results["cost"]["tokens"] <= tokens + 512
    assert results["cost"]["epochs"]["qa"] == pytest.approx(40, abs=40 * 512 / tokens)


def test_what_the_last_scoring_would_refuse_is_said_before_training(tmp_path: Path) -> None:
    rows = ['{"text": "good", "label": "a"}'] * 30
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "test.jsonl").write_text("\n".join([*rows, "{"]))
    files = {"train": "train.jsonl", "validation": "train.jsonl", "test": "test.jsonl"}
    source = {"files": files, "labels": {"a": "a", "b": "b"}}
    given = settings("cls", data={"sources": {"cls": [source]}, "root": str(tmp_path)})
    seen: list[str] = []
    with pytest.raises(InputError, match=r"test\.jsonl:31"):
        train(given, out=tmp_path / "run", report=lambda record: seen.append(record["event"]))
    assert "step" not in seen


def test_overwrite_does_not_remove_the_model_it_starts_from(tmp_path: Path) -> None:
    train(settings("qa", train={"max_steps": 1}), out=tmp_path / "run")
    given = settings("qa", model={"name": str(tmp_path / "run" / "model")}, train={"max_steps": 1})
    with pytest.raises(InputError, match=r"would remove .*which this run starts from"):
        train(given, out=tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_the_configuration_that_began_a_run_resumes_it(tmp_path: Path) -> None:
    given = settings("qa", train={"max_steps": 2, "precision": "auto", "learning_rate": None})
    train(given, out=tmp_path / "run")
    assert train(given, resume=tmp_path / "run", flags=["train.max_steps=3"])["cost"]["steps"] == 3


def test_an_interrupt_while_the_model_is_scored_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("multitask.evaluation.tuned.score_tasks", interrupted)
        with pytest.raises(Interrupted, match="run"):
            train(settings("qa", train={"max_steps": 2}), out=tmp_path / "run")
    assert train(resume=tmp_path / "run")["tasks"]["qa"]["num_examples"] > 0
