"""Names of models: what is a path, what is a hub name, and what a folder without a finished model is called."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import ENVIRONMENT, learned, settings

from multitask import train
from multitask.cli import main as cli_main
from multitask.errors import InputError, Interrupted
from multitask.models.names import checked_name, model_folder
from multitask.tokenization.tokenizer import not_found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run `runs/demo`, a folder of models and one called as somebody on the hub."""
    for name in ("runs/demo/model", "models/gemma3", "google/own"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/demo/config.yaml", "runs/demo/model/model.safetensors", "models/gemma3/config.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/dmo", "no such folder; did you mean 'runs/demo'?"),
        ("runs/dmo/model", "no such folder; did you mean 'runs/demo/model'?"),
        ("runs/demo/modle", "no such folder; did you mean 'runs/demo/model'?"),
        ("./runs/dmo", "no such folder; did you mean 'runs/demo'?"),
        ("../nothing", "no such folder; folders in '..': "),
        ("/nothing/at/all", "no such folder; folders in '/': "),
        ("~/nothing-of-this-name", "no such folder; "),
        ("models/gema3", "no such folder; did you mean 'models/gemma3'?"),
        ("outputs/x", "no such folder; folders in '.': google, models, runs"),
        ("a/b/c", "no such folder; folders in '.': google, models, runs"),
        (r"runs\demo", "no such folder; "),
        (r"C:\models\gemma3", "no such folder; "),
        ("실행/데모", "no such folder; "),
        ("runs/데모", "no such folder; folders in 'runs': demo"),
        ("my model", "no such folder; "),
        ("google/", "did you mean"),
        ("model.gguf", "no such folder; "),
        ("google/gemma", "fetch it with `hf download google/gemma` first"),
        ("runs", "not a run or model folder (no config.json); folders in it: demo"),
        ("runs/demo/config.yaml", "a file, expected a run or model folder; name the folder that it is in"),
    ],
)
def test_a_local_path_without_a_model_is_an_error(name: str, message: str, here: Path) -> None:
    if name == "google/":
        shutil.rmtree(here / "google")
        (here / "googl").mkdir()
    with pytest.raises(InputError) as error:
        model_folder(name)
    assert message in str(error.value)
    assert str(error.value).startswith(name)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "skt/kogpt2-base-v2", "Qwen/Qwen2.5-0.5B"])
def test_a_hub_name_is_left_to_the_hub(name: str, here: Path) -> None:
    assert model_folder(name) == name


def test_a_hub_name_in_the_cache_wins_over_a_folder_of_its_first_word(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    (here / "cache" / "models--google--gemma").mkdir(parents=True)
    assert model_folder("google/gemma") == "google/gemma"


def test_folders_that_exist_are_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_folder("runs/demo") == str(Path("runs/demo/model"))
    assert model_folder("./models/gemma3") == "./models/gemma3"
    monkeypatch.setenv("HOME", str(here))
    assert model_folder("~/models/gemma3") == str(here / "models" / "gemma3")
    assert checked_name("~/models") == str(here / "models"), "a tokenizer has other files"


def test_a_hub_that_cannot_be_reached_is_an_error_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("multitask.models.names.getproxies", dict)
    with pytest.raises(InputError, match=rf"the hub \(http://127.0.0.1:{port}\) cannot be reached .*did you mean") as e:
        model_folder("demo")
    assert "did you mean 'runs/demo'?" in str(e.value)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert model_folder("demo") == "demo"


COMMANDS = [
    ("train", "--model", "runs/dmo"),
    ("train", "--set", "model.tokenizer=runs/dmo"),
    ("pretrain", "--model", "runs/dmo"),
    ("pretrain", "--tokenizer", "runs/dmo"),
    ("preview", "--model", "runs/dmo"),
    ("fewshot", "--model", "runs/dmo"),
    ("evaluate", "runs/dmo"),
    ("evaluate", "runs/dmo", "--text", "a.txt"),
    ("generate", "runs/dmo", "a"),
    ("import-openai", "runs/dmo", "out"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_names_the_nearest_folder(command: tuple[str, ...], here: Path) -> None:
    result = CliRunner().invoke(cli_main.main, list(command))
    assert result.exit_code == 2, result.output
    assert result.stderr == "error: runs/dmo: no such folder; did you mean 'runs/demo'?\n"
    assert sorted(p.name for p in here.iterdir()) == ["google", "models", "runs"], "nothing was written"
    assert [p.name for p in (here / "runs").iterdir()] == ["demo"]


def test_import_gguf_names_the_nearest_file(here: Path) -> None:
    (here / "smol.gguf").write_bytes(b"")
    result = CliRunner().invoke(cli_main.main, ["import-gguf", "smoll.gguf", "out"])
    assert (result.exit_code, result.stderr) == (2, "error: smoll.gguf: no such file; did you mean 'smol.gguf'?\n")
    result = CliRunner().invoke(cli_main.main, ["generate", "smol.gguf", "a"])
    assert "a file, expected a run or model folder; convert it with `import-gguf`" in result.stderr


def test_a_benchmark_names_the_nearest_folder(here: Path) -> None:
    (here / "suite.yaml").write_text("base: runs/dmo\nrun: {tasks: [qa]}\n")
    result = CliRunner().invoke(cli_main.main, ["benchmark", "--config", "suite.yaml"])
    assert (result.exit_code, result.stderr) == (2, "error: runs/dmo: no such folder; did you mean 'runs/demo'?\n")


def test_wrong_names_are_found_before_anything_heavy_is_imported(here: Path) -> None:
    code = (
        "import sys; from multitask import api; from multitask.errors import InputError\n"
        "try: api.generate('runs/dmo', 'a')\n"
        "except InputError: print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# ---------------------------------------------------------------- unfinished runs


def interrupted(out: Path) -> Path:
    """A run of `train` that is stopped after its first checkpoint."""

    def stop(record: object) -> None:
        if isinstance(record, dict) and record.get("event") == "validation":
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(
            settings("qa", train={"max_steps": 4, "save_every_steps": 1, "eval_every_steps": 2}), out=out, report=stop
        )
    return out


def test_an_unfinished_run_says_how_to_resume_it(tmp_path: Path) -> None:
    run = interrupted(tmp_path / "my run")
    assert any((run / "checkpoints").glob("step-*"))
    checkpoint = max((run / "checkpoints").glob("step-*"))
    for model in (run, run / "model", checkpoint):
        for command in (("generate", model, "a"), ("evaluate", model), ("train", "--model", model, "--out", "x")):
            result = CliRunner().invoke(cli_main.main, list(map(str, command)))
            assert result.exit_code == 2, result.output
            assert f"this run is unfinished (last checkpoint: step {checkpoint.name[5:]}): resume with" in result.stderr
            assert f"`run.py train --resume '{run}'`" in result.stderr
    assert CliRunner().invoke(cli_main.main, ["train", "--resume", str(run)]).exit_code == 0
    assert CliRunner().invoke(cli_main.main, ["generate", str(run), "a", "--max-new-tokens", "2"]).exit_code == 0
    with pytest.raises(InputError, match="a checkpoint, expected a model; name its run, "):
        model_folder(str(max((run / "checkpoints").glob("step-*"))))


def test_an_unfinished_run_without_a_checkpoint_is_started_again(here: Path) -> None:
    (here / "runs" / "demo" / "model" / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"has no checkpoint; start it again with `run.py train --config runs/demo/con"
    ):
        model_folder("runs/demo")
    (here / "runs" / "demo" / "config.yaml").write_text("text: {synthetic: {train: 3}}")
    (here / "runs" / "demo" / "checkpoints" / "step-20").mkdir(parents=True)
    with pytest.raises(InputError, match=r"step 20\): resume with `run.py pretrain --resume runs/demo`"):
        model_folder("runs/demo/model")


def test_a_finished_run_is_loaded_from_both_of_its_folders() -> None:
    assert model_folder(str(learned())) == model_folder(str(learned() / "model")) == str(learned() / "model")


def test_files_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nosuch.csv", "nosuch.json", "nosuch1"):
        (tmp_path / name).write_text("")
    error = not_found("nosuch", "tokenizer", OSError("offline"))
    assert str(error).startswith("nosuch: no such folder, and the hub did not give a tokenizer of that name: offline")
    (tmp_path / "no_such").mkdir()
    assert "no such folder (did you mean 'no_such'?), and" in str(not_found("nosuch", "model", OSError("offline")))
