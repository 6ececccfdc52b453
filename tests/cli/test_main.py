import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from click.testing import CliRunner, Result
from helpers import FACTS, ROOT, SYNTHETIC, files, learned, python, settings, untrained

import multitask
from multitask import evaluate, load_tasks, train
from multitask.cli import main as cli_main
from multitask.cli.options import dotted
from multitask.config.loading import load
from multitask.config.resolve import settings_of
from multitask.config.run import RunConfig
from multitask.errors import InputError, Interrupted
from multitask.training import finetune, loop, run_dir

TRANSLATE = ROOT / "examples" / "tasks"


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes longer than all the rest of a tiny run."""
    monkeypatch.setattr(loop, "draw_loss", lambda *_: None)


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli_main.main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """What a command that cannot be carried out says, on stderr, with exit code 2."""
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def config(folder: Path, *tasks: str, **sections: Any) -> Path:
    """A settings file of a tiny run."""
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings(*tasks, **sections), allow_unicode=True), "utf-8")
    return path


# ---------------------------------------------------------------- the main job


def test_a_task_is_learned_by_heart_and_scored(tmp_path: Path) -> None:
    """Train, evaluate, and the same through Python."""
    source = files(tmp_path, train=FACTS, validation=FACTS, test=FACTS)
    path = config(tmp_path, "qa", data={"sources": {"qa": [source]}}, train={"eval_every_steps": 75})
    learning = ("--set", "train.max_steps=150", "--set", "train.learning_rate=3e-3", "--set", "train.batch_tokens=256")
    result = command("train", "--tasks", "qa", "--config", path, *learning, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for shown in (
        "qa: 6 rows, 0 truncated, 0 dropped",
        "step 150/150",
        "validation qa",
        "exact_match",
        "no verdict on fewer than 10 rows: qa",
        "written",
    ):
        assert shown in result.output
    result = command("evaluate", tmp_path / "run", "--split", "train", "--out", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["tasks"]["qa"]["metrics"]["exact_match"]["value"] == 1.0
    assert scores["data"]["qa"]["split"] == "train"
    again = evaluate(tmp_path / "run")
    assert again["tasks"] == json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]


def test_the_sixth_task_is_one_file(tmp_path: Path) -> None:
    path = config(tmp_path, "translate", data={"sources": {}, "limit": 60}, eval={"max_rows": 6, "num_bootstrap": 10})
    given = ("--tasks-dir", TRANSLATE, "--config", path, "--set", "train.eval_max_rows=4")
    result = command("train", "--tasks", "translate", *given, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    records = [
        json.loads(line) for line in (tmp_path / "run" / "predictions" / "translate.jsonl").open(encoding="utf-8")
    ]
    assert {record["language"] for record in records} == {"ko", "en"}
    assert all(record["prompt"].endswith("<|translate|>") and not record["is_cut"] for record in records)
    assert "`{source}<\\|translate\\|>`" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert command("evaluate", tmp_path / "run").exit_code == 0  # the run remembers the folder
    assert command("evaluate", tmp_path / "run", "--tasks-dir", TRANSLATE).exit_code == 0


def test_python_returns_what_the_results_file_holds(tmp_path: Path) -> None:
    assert {"evaluate", "load_tasks", "train"} < set(multitask.__all__)
    given = settings("cls", data={"sources": {"nli": [SYNTHETIC]}})
    results = train(given, tasks=["nli"], flags=["train.max_steps=2"], out=tmp_path / "run")
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["tasks"]) == ["nli"]
    assert set(load_tasks()) >= {"gen", "summ", "nli", "qa", "cls"}
    with pytest.raises(AttributeError, match="'multitask' has no attribute 'fewshoot'; it has"):
        _ = multitask.fewshoot


def test_lora_and_merge_by_flag(tmp_path: Path) -> None:
    path = config(tmp_path, "qa", train={"max_steps": 1})
    lora = ("--adapter", "lora", "--model", learned() / "model", "--config", path)
    assert command("train", *lora, "--out", tmp_path / "adapter").exit_code == 0
    assert (tmp_path / "adapter" / "model" / "adapter_config.json").exists()
    assert command("train", *lora, "--merge", "--out", tmp_path / "merged").exit_code == 0
    assert not (tmp_path / "merged" / "model" / "adapter_config.json").exists()


# ---------------------------------------------------------------- exit codes and messages


def test_help_is_quick() -> None:
    """It imports nothing heavy, nor do errors in names and settings."""
    code = "import sys; from multitask.cli.main import main\ntry: main(sys.argv[1:])\nfinally: print([*sys.modules])"
    for arguments in (["--help"], ["train", "--help"], ["tasks"], ["train", "--tasks", "sum"]):
        done = python(code, *arguments)
        assert done.returncode == (2 if "sum" in arguments else 0)
        assert not {"'torch'", "'transformers'", "'datasets'", "'matplotlib'"} & set(
            done.stdout.rsplit("[", 1)[1].replace("]", "").strip().split(", ")
        )


def test_tasks_are_listed(tmp_path: Path) -> None:
    result = command("tasks", "--tasks-dir", TRANSLATE)
    assert result.exit_code == 0
    for shown in ("{premise}<|sep|>{hypothesis}<|nli|>{label}<|end|>", "f1, exact_match", "translate", "nli.py"):
        assert shown in result.output


def test_version_and_usage() -> None:
    assert command("--version").output.strip().endswith(importlib.metadata.version("multitask"))
    assert command("trian").exit_code == 2
    assert command("train", "--limit", "x").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "sum"], "error: unknown task 'sum'; did you mean 'summ'?"),
        (["--tasks", ""], "tasks: List should have at least 1 item"),
        (["--set", "train.learning_rat=1"], "no such setting; did you mean 'learning_rate'?"),
        (["--set", "train.learning_rate"], "--set train.learning_rate: expected name=value"),
        (["--set", "train.packing=pakced"], "train.packing: Input should be 'packed' or 'none', found 'pakced'"),
        (["--limit", "0"], "data.limit: Input should be greater than or equal to 1, found 0"),
        (["--config", "no.yaml"], "no.yaml: no such file"),
        (["--resume", "nothing"], "nothing: not a run folder (no config.yaml)"),
        (["--resume", "a", "--overwrite"], "--resume continues a run, --overwrite replaces it; give one of the two"),
        (
            ["--resume", "a", "--out", "b"],
            "--resume a continues in that folder, --out b names another; leave out --out",
        ),
        (["--tasks-dir", "nothing"], "nothing: no such folder of task plugins"),
        (["--device", "cuda"], "--device cuda: not available here; available: cpu"),
        (["--model", "no/such"], "no/such: no such folder"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    path = () if {"--config", "--resume"} & set(arguments) else ("--config", config(tmp_path, "qa"))
    assert message in refused("train", *path, *arguments)


def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    source = files(tmp_path, train=[*FACTS, {"context": "a", "question": "b"}], validation=FACTS, test=FACTS)
    path = config(tmp_path, "qa", data={"sources": {"qa": [source]}})
    errors = refused("train", "--config", path, "--out", tmp_path / "run")
    assert errors.startswith(f"error: {tmp_path / 'train.jsonl'}:7: field 'answers' is None")


def test_unknown_metrics_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    plugin = (TRANSLATE / "translate.py").read_text("utf-8").replace('"rougeL"', '"rougel"')
    (tmp_path / "translate.py").write_text(plugin, "utf-8")
    given = ("--tasks", "translate", "--tasks-dir", tmp_path, "--out", tmp_path / "run")
    message = "task 'translate': no metric 'rougel'; did you mean 'rougeL'?"
    assert message in refused("train", *given)
    assert not (tmp_path / "run").exists()
    model = untrained(tmp_path / "model", "qa")
    assert message in refused("evaluate", model, *given[:4])


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted(str(tmp_path / "a run"))

    monkeypatch.setattr("multitask.api.train", stopped)
    monkeypatch.setattr(sys, "argv", ["multitask"])
    result = command("train", "--tasks-dir", TRANSLATE)
    assert result.exit_code == 130
    assert result.stderr == f"saved; resume with: multitask train --resume '{tmp_path / 'a run'}'\n"
    monkeypatch.setattr("multitask.api.evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command("evaluate", "x").exit_code == 130


# ---------------------------------------------------------------- where a run is written


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    path = config(tmp_path, "qa", train={"max_steps": 1})
    run = tmp_path / "run"
    assert command("train", "--config", path, "--out", run).exit_code == 0
    before = (run / "results.json").read_text()
    errors = refused("train", "--config", path, "--out", run)
    assert f"{run}: already holds files; continue with --resume {run}, replace them with --overwrite, or" in errors
    assert (run / "results.json").read_text() == before
    (run / "notes.txt").write_text("mine")
    (run / "predictions" / "nli.jsonl").write_text("of the run before")
    assert command("train", "--config", path, "--out", run, "--overwrite").exit_code == 0
    assert (run / "notes.txt").read_text() == "mine", "what no run writes, no run removes"
    assert not (run / "predictions" / "nli.jsonl").exists()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def again(tmp_path: Path) -> tuple[str | Path, ...]:
    """The command that would replace the run in `tmp_path / "run"`, with a row that is wrong."""
    assert command(
        "train", "--config", config(tmp_path, "qa", train={"max_steps": 1}), "--out", tmp_path / "run"
    ).stdout
    (tmp_path / "run" / "replaced").mkdir()
    (tmp_path / "run" / "replaced" / "notes.txt").write_text("mine")
    broken = files(tmp_path, train=[*FACTS, {"context": "a", "question": "b"}], validation=FACTS, test=FACTS)
    path = config(tmp_path, "qa", data={"sources": {"qa": [broken]}}, train={"max_steps": 1})
    return ("train", "--config", path, "--out", tmp_path / "run", "--overwrite")


def replaces(tmp_path: Path, again: tuple[str | Path, ...], before: dict[str, bytes]) -> None:
    """With the row put right the same command works, and leaves nothing of the run before."""
    files(tmp_path, train=FACTS)
    assert command(*again).exit_code == 0
    found = contents(tmp_path / "run")
    assert found.keys() == before.keys()
    assert found["results.json"] != before["results.json"]
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt, MemoryError])
def test_a_run_is_replaced_only_by_one_that_begins(
    tmp_path: Path, again: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, fault: type[BaseException] | None
) -> None:
    before = contents(tmp_path / "run")
    if fault is None:
        assert "train.jsonl:7" in refused(*again)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(finetune, "_model", Mock(side_effect=fault))
            assert command(*again).exit_code == (130 if fault is KeyboardInterrupt else 1)
    assert contents(tmp_path / "run") == before
    replaces(tmp_path, again, before)


def test_nor_by_one_that_cannot_write_its_settings(
    tmp_path: Path, again: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "written_yaml", Mock(return_value=None))  # what is no text cannot be written
        assert command(*again).exit_code == 1
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("moved", [2, 100])
def test_nor_by_one_that_was_killed(tmp_path: Path, again: tuple[str | Path, ...], moved: int) -> None:
    """In the middle of moving the run before, or while it read its rows."""
    run = tmp_path / "run"
    before = contents(run)
    (run / run_dir._REPLACED).mkdir()
    for name in list(reversed(run_dir._WRITTEN))[:moved]:
        if (run / name).exists():
            (run / name).rename(run / run_dir._REPLACED / name)
    if moved == 100:
        (run / "config.yaml").write_text("of the next one")
        (run / run_dir._REMOVED).mkdir()
    assert "train.jsonl:7" in refused(*again)
    assert contents(run) == before
    replaces(tmp_path, again, before)


def test_a_folder_that_is_no_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    errors = refused("train", "--config", config(tmp_path, "qa"), "--out", tmp_path / "photos", "--overwrite")
    assert "photos: not a run folder (no config.yaml), so --overwrite leaves it alone" in errors
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "a cat"
    (tmp_path / "file").write_text("")
    assert "file: a file, not a folder" in refused(
        "train", "--config", tmp_path / "settings.yaml", "--out", tmp_path / "file"
    )


def test_a_run_that_never_began_is_no_run(tmp_path: Path) -> None:
    """A row was wrong: once it is right, the same command works."""
    broken = files(tmp_path, train=[*FACTS, {"context": "a", "question": "b"}], validation=FACTS, test=FACTS)
    path = config(tmp_path, "qa", data={"sources": {"qa": [broken]}}, train={"max_steps": 1})
    refused("train", "--config", path, "--out", tmp_path / "run")
    files(tmp_path, train=FACTS)
    result = command("train", "--config", path, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output


def test_without_out_the_folder_is_named_after_tasks_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("train", "--config", config(tmp_path, "qa", "nli", train={"max_steps": 1})).exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("qa-nli-20")


def test_an_error_of_ours_is_no_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multitask.api.train", lambda *_, **__: 1 / 0)
    result = command("train")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_source_of_an_unknown_task_is_an_error_not_the_world() -> None:
    with pytest.raises(InputError, match=r"data\.sources: unknown task 'nil'; did you mean 'nli'\?"):
        train({"tasks": ["nli"], "data": {"sources": {"nil": ["nli_ko_klue"]}}})


def test_names_that_look_like_numbers_stay_names() -> None:
    flags = dotted((), model__name="2024", data__limit=3, adapter__merge=True)
    config = load(RunConfig, {}, [*flags, 'model.revision="1234567"', "train.learning_rate=3e-4"])
    assert (config.model.name, config.model.revision) == ("2024", "1234567")
    assert (config.data.limit, config.adapter.merge, config.train.learning_rate) == (3, True, 3e-4)


def test_a_shipped_configuration_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_of("configs/korean.yaml").tasks == ["nli", "qa", "summ", "gen", "cls"]
    with pytest.raises(InputError, match="corean"):
        settings_of("corean.yaml")


def test_a_plain_text_has_no_tasks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    said = refused("evaluate", tmp_path, "--text", tmp_path / "a.txt", "--tasks", "nli")
    assert said == "error: --tasks is about rows of tasks, --text FILE is a plain text: leave out one of the two\n"


def test_a_wrong_name_after_set_is_not_blamed_on_a_file_that_nobody_named() -> None:
    assert refused("train", "--set", "trian.lr=1").startswith("error: --set trian.lr=1: trian: no such setting")


@pytest.mark.parametrize(("first", "is_said"), [("import multitask.cli.main", False), ("", True)])
def test_default_ids_of_a_small_model_are_no_noise(first: str, is_said: bool) -> None:
    code = f"{first}\nfrom transformers import GPT2Config\nGPT2Config(vocab_size=100, n_layer=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("Model config: bos_token_id" in done.stdout + done.stderr) == is_said


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("train", ("--epochs", "0"), "--epochs 0: train.epochs: Input should be greater than 0, found 0.0"),
        ("train", ("--lr", "0"), "--lr 0: train.learning_rate: Input should be greater than 0"),
        ("train", ("--batch-tokens", "0"), "--batch-tokens 0: train.batch_tokens: Input should be"),
        ("train", ("--limit", "0"), "--limit 0: data.limit: Input should be"),
        ("preview", ("--lr", "-1"), "--lr -1: train.learning_rate: Input should be"),
        ("fewshot", ("--draws", "0"), "--draws 0: fewshot.draws: Input should be"),
        ("fewshot", ("--shots", "x"), "--shots x: fewshot.shots"),
        ("fewshot", ("--max-rows", "0"), "--max-rows 0: eval.max_rows: Input should be"),
    ],
)
def test_an_error_names_what_was_typed(command: str, given: tuple[str, ...], message: str) -> None:
    assert refused(command, *given).startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("train", ("--epochs", "2", "--set", "train.epochs=5"), "--epochs 2 and --set train.epochs=5 give the same"),
        ("preview", ("--limit", "2", "--set", "data.limit=5"), "--limit 2 and --set data.limit=5 give the same"),
        ("fewshot", ("--shots", "0,1", "--set", "fewshot.shots=[4]"), "--shots 0,1 and --set fewshot.shots=[4] give"),
        ("pretrain", ("--shape", "nano", "--set", "model.shape=mini"), "--shape nano and --set model.shape=mini give"),
        ("train", ("--private",), "--private belongs to --push-to-hub NAME"),
        ("fewshot", ("--balanced", "--demonstrations", "random"), "--balanced is --demonstrations balanced"),
    ],
)
def test_options_that_contradict_one_another(command: str, given: tuple[str, ...], message: str) -> None:
    assert message in refused(command, *given)


def test_a_line_of_train_can_be_previewed(tmp_path: Path) -> None:
    path = config(tmp_path, "qa")
    given = ("--epochs", "2", "--lr", "1e-3", "--batch-tokens", "128", "--adapter", "lora", "--merge")
    shown = command("preview", "--config", path, *given)
    assert shown.exit_code == 0, shown.output


def test_a_finished_run_names_the_option_that_would_continue_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = config(tmp_path, "qa", train={"epochs": 2.0, "max_steps": None, "batch_tokens": 128, "save_every_steps": 1})
    assert command("train", "--config", path, "--out", run).exit_code == 0
    errors = refused("train", "--resume", run, "--epochs", "0.2")
    assert re.search(r"at step \d+, past \d+ of train.epochs 0.2$", errors.strip())
