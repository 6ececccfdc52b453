"""Several processes as one: what is divided, what they agree on, how long they wait, and which commands are for one."""

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from click.testing import CliRunner
from helpers import ROOT, lines, settings, torchrun, untrained

from multitask import launch, processes, train
from multitask.cli import main as cli_main
from multitask.cli.main import main
from multitask.errors import InputError
from multitask.training import run_dir

_GROUP = """
import json, os, sys
import torch
from torch.distributed.distributed_c10d import _get_default_group
from multitask import processes
from multitask.errors import InputError
from multitask.training import run_dir

def fail(unit):
    if unit == 1:
        raise InputError(f"unit {unit} is wrong")
    return unit

found = {}
with processes.together(torch.device("cpu")):
    backend = _get_default_group()._get_backend(torch.device("cpu"))
    found["timeout_s"] = backend.options._timeout.total_seconds()
    mine = []
    found["mapped"] = list(processes.mapped(lambda unit: mine.append(unit) or unit * 10, range(5)))
    found["mine"] = mine
    found["none"] = list(processes.mapped(fail, []))
    found["by_main"] = processes.by_main(lambda: f"of {processes.number()}")
    found["parts"] = [list(part) for part in processes.parts(range(5))]
    try:
        processes.mapped(fail, range(3))
    except InputError as error:
        found["error"] = str(error)
with open(f"{sys.argv[1]}/{processes.number()}.json", "w") as file:
    json.dump(found, file)
"""


def test_two_processes_divide_agree_and_wait_as_long_as_set(tmp_path: Path) -> None:
    done = torchrun(_GROUP, str(tmp_path), MULTITASK_TIMEOUT_S="4321")
    assert done.returncode == 0, done.stderr[-3000:]
    for number, mine in enumerate(([0, 2, 4], [1, 3])):
        assert json.loads((tmp_path / f"{number}.json").read_text()) == {
            "timeout_s": 4321,
            "mapped": [0, 10, 20, 30, 40],
            "mine": mine,
            "none": [],
            "by_main": "of 0",
            "parts": [[0, 1, 2], [3, 4]],
            "error": "unit 1 is wrong",
        }


_SLOW = """
import sys, time
import torch
from multitask import processes
from multitask.errors import InputError
from multitask.training import run_dir
try:
    with processes.together(torch.device("cpu")):
        if processes.is_main():
            time.sleep(30)
        processes.wait()
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.slow
def test_a_process_that_waits_too_long_says_so() -> None:
    done = torchrun(_SLOW, MULTITASK_TIMEOUT_S="2")
    assert done.returncode != 0
    assert "process 1 of 2 (counted from 0) waited 2 s for the others: one of them has failed" in done.stderr
    assert "MULTITASK_TIMEOUT_S" in done.stderr


def test_one_process_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (processes.number(), processes.size(), processes.is_main()) == (0, 1, True)
    with processes.together(torch.device("cpu")):
        done: list[int] = []
        found = processes.mapped(lambda unit: done.append(unit) or unit, range(3))
        assert (next(iter(found)), done) == (0, [0]), "one at a time: results need not be in memory together"
        assert processes.parts(range(3)) == [range(3)]
        assert processes.by_main(lambda: 5) == 5
    assert processes.timeout() == timedelta(hours=12)
    for wrong in ("soon", "0", "-3", "nan", "inf"):
        monkeypatch.setenv("MULTITASK_TIMEOUT_S", wrong)
        with pytest.raises(InputError, match=f"MULTITASK_TIMEOUT_S is '{wrong}', expected a number of seconds above 0"):
            processes.timeout()


_WORK = """
import json, os, sys
from multitask import benchmark, evaluate, fewshot, train
from multitask.api import pretrain
from multitask.evaluation import evaluator
from multitask.training import demo_model

evaluator._CHUNK = 4  # rows
out, model, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
events = []
found = {
    "evaluate": evaluate(model, given["evaluate"], out=f"{out}/scores.json", report=events.append),
    "fewshot": fewshot(model, given["fewshot"], out=f"{out}/shots.json", report=events.append),
    "train": train(given["train"], out=f"{out}/run", report=events.append),
}
text = given["pretrain"]
found["pretrain"] = pretrain(text, out=f"{out}/text", report=events.append)
for _ in range(2):
    found["rates"] = pretrain(text, out=f"{out}/rates", find_learning_rate=True, report=events.append)
os.environ["XDG_CACHE_HOME"] = f"{out}/cache"
demo_model.read_yaml = lambda path: given["demo"]
found["demo"] = fewshot(settings=given["prompted"], out=f"{out}/demo.json", report=events.append)
first = benchmark(given["suite"], out=f"{out}/suite", report=events.append)["arms"]
again = benchmark(given["suite"], out=f"{out}/suite", report=events.append)["arms"]
print(json.dumps({
    "results": [name for name, results in found.items() if results],
    "events": len(events),
    "arms": [[arm["arm"], arm["kept"]] for arm in first + again],
}))
"""


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The same work by one process and by two: folders of what they wrote, and what was printed by two."""
    folder = tmp_path_factory.mktemp("work")
    model = untrained(folder / "model", "qa", "cls", n_positions=256)
    tasks = settings("qa", "cls", "summ", eval={"max_free_rows": 5})
    shots = {"shots": [0, 2], "draws": 2, "templates": "all", "rule": "best"}
    steps = {"select_by": "score", "eval_every_steps": 3, "micro_batch_tokens": 256, "eval_max_rows": 9}
    suite = {
        "base": str(model),
        "arms": ["trivial", "prompted", "multitask", "multitask-lora"],
        "seeds": [1],
        "run": settings("cls", "qa", train={"max_steps": 2}, fewshot={"shots": [1], "draws": 1}),
    }
    (folder / "text.txt").write_text("one two three. four five six seven.\n" * 99, "utf-8")
    text = {
        "device": "cpu",
        "text": {"files": {"train": str(folder / "text.txt")}, "cache": str(folder / "cache")},
        "model": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
        "tokenizer": {"vocab_size": 270, "spare": 0},
        "train": {"batch_tokens": 128, "block_size": 32, "max_steps": 6, "learning_rate": 1e-3, "precision": "fp32"},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite), "utf-8")
    given = {
        "evaluate": settings("qa", "cls", eval={"max_free_rows": 5}),
        "fewshot": settings("qa", "cls", fewshot=shots),
        "train": tasks | {"train": tasks["train"] | steps},
        "pretrain": text,
        "demo": {name: section for name, section in settings("qa").items() if name != "data"},
        "prompted": settings("cls", eval={"max_rows": 5}, fewshot={"shots": [0]}),
        "suite": str(folder / "suite.yaml"),
    }
    outs = []
    for size in (1, 2):
        (folder / str(size)).mkdir()
        done = torchrun(_WORK, str(folder / str(size)), str(model), json.dumps(given), size=size)
        assert done.returncode == 0, done.stderr[-3000:]
        outs = done.stdout.splitlines()
    return folder / "1", folder / "2", outs


def scores(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    return {"data": found["data"], "tasks": found["tasks"]}


@pytest.mark.slow
def test_two_processes_score_as_one(one_and_two: tuple[Path, Path, list[str]]) -> None:
    """Bit for bit, but of prompted closed tasks: each process calibrates in the batch of its first rows."""
    one, two, _ = one_and_two
    for name in ("scores.json", "shots.json"):
        assert scores(one / name) == scores(two / name)
        mine, other = (
            {path.name: path.read_text("utf-8").splitlines() for path in (out / f"{name}.predictions").iterdir()}
            for out in (one, two)
        )
        assert mine.keys() == other.keys()
        for file, written in mine.items():
            assert len(written) > 8, "more than a chunk for each process"
            if name == "shots.json" and file.startswith("cls"):
                for line, same in zip(map(json.loads, written), map(json.loads, other[file]), strict=True):
                    assert line.pop("choice_nll") == pytest.approx(same.pop("choice_nll"), rel=1e-6)
                    assert line == same
            else:
                assert written == other[file]


@pytest.mark.slow
def test_two_processes_train_and_compare_arms_as_one(one_and_two: tuple[Path, Path, list[str]]) -> None:
    one, two, printed = one_and_two
    mine, other = (lines(out / "run") for out in (one, two))
    seen = [line["score"] for line in mine if line["event"] == "validation"]
    assert len(seen) == 2
    assert all(set(score) == {"qa", "cls", "summ"} for score in seen)
    for line, same in zip(mine, other, strict=True):
        assert line.get("score") == same.get("score")
        assert line["loss"] == pytest.approx(same["loss"], abs=2e-5)
    runs = [one / "run" / "results.json", two / "run" / "results.json"]
    assert scores(runs[0])["data"] == scores(runs[1])["data"]
    assert (one / "run" / "predictions" / "qa.jsonl").exists()
    main, further = sorted(map(json.loads, printed), key=lambda found: -found["events"])
    assert main["results"] == ["evaluate", "fewshot", "train", "pretrain", "rates", "demo"]
    assert (further["results"], further["events"]) == ([], 0)
    arms = ["trivial", "prompted", "multitask-seed-1", "multitask-lora-seed-1"]
    assert main["arms"] == further["arms"] == [[arm, kept] for kept in (False, True) for arm in arms]
    assert (two / "suite" / "report.html").exists()
    texts = [scores(out / "text" / "results.json")["tasks"]["text"] for out in (one, two)]
    ours, other_ones = (found["metrics"]["perplexity"]["value"] for found in texts)
    assert ours == pytest.approx(other_ones, rel=1e-4)
    names = {path.relative_to(out) for out in (one, two) for path in out.rglob("*")}
    assert all((out / name).exists() for out in (one, two) for name in names), "no file of a process of its own"
    for arm in ("trivial", "prompted"):
        found = scores(one / "suite" / "arms" / arm / "results.json")
        assert found == scores(two / "suite" / "arms" / arm / "results.json")


@pytest.mark.slow
def test_torchrun_on_the_command_line(tmp_path: Path) -> None:
    """One table, one results file; a step of one block for three processes; an error that all processes have."""
    given = settings("qa", train={"batch_tokens": 128, "micro_batch_tokens": 128, "max_steps": 2}, eval={"max_rows": 9})
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(given), "utf-8")
    command = ["train", "--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "run")]
    trained = torchrun(str(ROOT / "run.py"), *command, size=3)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert trained.stdout.count("scored qa: 9 rows") == 1
    assert trained.stderr.count("3 processes, which are idle for 67% of the time") == 1
    out = tmp_path / "scores.json"
    scored = torchrun(str(ROOT / "run.py"), "evaluate", str(tmp_path / "run"), "--out", str(out))
    assert scored.returncode == 0, scored.stderr[-3000:]
    assert scored.stdout.count("scored qa: 9 rows") == scored.stdout.count("exact_match") == 1
    assert scores(out)["tasks"] == scores(tmp_path / "run" / "results.json")["tasks"]
    wrong = torchrun(str(ROOT / "run.py"), "evaluate", str(tmp_path / "run"), "--out", str(tmp_path))
    assert wrong.returncode != 0
    assert f"error: {tmp_path}: is a folder; name a file" in wrong.stderr


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "tensor or context parallelism"),
    ],
)
def test_sharded_models_are_an_error_before_anything_is_written(
    variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    expected = f"{name} was asked for, and each process trains a whole copy of the model .DDP.: start with torchrun"
    with pytest.raises(InputError, match=expected):
        train(settings("qa"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not AcceleratorState._shared_state, "the next run is not one of a sharded model"


def test_a_sharded_accelerator_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accelerate made of a settings file of its own."""
    monkeypatch.setattr(run_dir, "Accelerator", lambda **_: SimpleNamespace(distributed_type=DistributedType.FSDP))
    with pytest.raises(InputError, match="FSDP was asked for, and each process trains a whole copy"):
        train(settings("qa"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "runs/demo", "A cat"],
        ["preview"],
        ["report", "runs", "--out", "report"],
        ["init", "rows.csv"],
        ["tokenizer", "text.txt", "--out", "tokenizer"],
        ["push", "runs/demo", "me/demo"],
        ["models", "list"],
        ["tasks"],
        ["import-gguf", "pyproject.toml", "a"],
        ["import-openai", "tests", "a"],
        ["evaluate", "runs/demo", "--text", "a.txt"],
    ],
)
def test_commands_for_one_process_say_so(
    arguments: list[str], second_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_main, "_AFTER_MAIN_S", 0.0)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    name = "evaluate --text" if "--text" in arguments else arguments[0]
    assert f"error: {name} runs in one process, and 2 were started: start it without torchrun" in done.stderr


def test_processes_of_a_launcher_are_counted(monkeypatch: pytest.MonkeyPatch, second_of_two: None) -> None:
    assert launch.launched() == (1, 2)
    assert not launch.is_main_launched()
    monkeypatch.delenv("LOCAL_RANK")  # a cluster's variables without a launcher's
    assert launch.launched() == (0, 1)
