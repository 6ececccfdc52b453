"""Files of a model that are truncated, damaged, missing, or a Git LFS pointer: an error with file and remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import settings, untrained
from safetensors.torch import load_file, save_file

from multitask import damage, train
from multitask.cli.main import main
from multitask.config.model import ModelConfig
from multitask.errors import InputError
from multitask.models import build, io
from multitask.registry import choose, load_tasks

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 497774208\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return untrained(tmp_path / "model", "qa")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def point(path: Path) -> None:
    path.write_bytes(POINTER)


def shards(folder: Path) -> Path:
    """The weights in two files with an index; returns the second one."""
    tensors = load_file(folder / "model.safetensors")
    names = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        part = {name: tensor for name, tensor in tensors.items() if names[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (halve, r"model\.safetensors: truncated: [\d,]+ bytes of [\d,]+; copy or download the file again"),
        (point, r"model\.safetensors: a Git LFS pointer of 82 bytes in place of the file; `git lfs pull` in "),
        (lambda path: path.write_bytes(b""), r"model\.safetensors: empty; copy or download"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), r"truncated: 50 bytes, and its header alone has"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), r"damaged: [\d,]+ bytes, expected "),
        (lambda path: path.write_bytes(b"\x10" + bytes(7) + b"x" * 30), r"damaged: its header is not what safetensors"),
    ],
)
def test_damaged_weights_are_named(act: Callable[[Path], object], said: str, folder: Path) -> None:
    act(folder / "model.safetensors")
    tasks = choose(load_tasks(), ["qa"])
    for load in (
        lambda: io.load_causal(str(folder)),
        lambda: build.build(ModelConfig(name=str(folder)), tasks, [], 7),
    ):
        with pytest.raises(InputError, match=said):
            load()


@pytest.mark.parametrize("act", [halve, point])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_settings_of_a_model_are_named(name: str, act: Callable[[Path], None], folder: Path) -> None:
    act(folder / name)
    with pytest.raises(InputError, match=rf"{name}: (truncated or damaged: not valid JSON|a Git LFS pointer)"):
        io.load_causal(str(folder))


@pytest.mark.parametrize("is_tokenizer_whole", [True, False])
def test_a_model_without_its_settings(folder: Path, is_tokenizer_whole: bool) -> None:
    (folder / "config.json").unlink()
    if not is_tokenizer_whole:
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: missing beside model\.safetensors; copy or download"):
        io.load_causal(str(folder))


def test_weights_in_several_files(folder: Path) -> None:
    second = shards(folder)
    assert damage.of_model(folder) is None
    io.load_causal(str(folder))
    halve(second)
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors: truncated"):
        io.load_causal(str(folder))
    second.unlink()
    said = (
        r"index\.json: names the file model-00002-of-00002\.safetensors, which is not in the folder; copy or download"
    )
    with pytest.raises(InputError, match=said):
        io.load_causal(str(folder))
    index = folder / "model.safetensors.index.json"
    for content in ("[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        with pytest.raises(InputError, match=r"index\.json: damaged: it has no weight_map"):
            io.load_causal(str(folder))
    halve(index)
    with pytest.raises(InputError, match=r"index\.json: truncated or damaged"):
        io.load_causal(str(folder))


def test_tensors_that_are_missing_are_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.0.attn.c_attn.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError, match=r"its files lack 1 of the tensors .*'transformer\.h\.0\.attn\.c_attn\.weight'"
    ):
        io.load_causal(str(folder))


def test_weights_of_another_shape_are_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 64}))
    with pytest.raises(InputError, match="no model could be loaded from this folder"):
        io.load_causal(str(folder))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("lora") / "run"
    train(settings("qa", adapter={"kind": "lora"}, train={"max_steps": 1}), out=run)
    return run


@pytest.mark.parametrize("act", [halve, point])
@pytest.mark.parametrize(
    "name", ["model/adapter_model.safetensors", "model/adapter_config.json", "base/model.safetensors"]
)
def test_a_damaged_adapter_or_base_is_named(
    name: str, act: Callable[[Path], None], adapted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    act(run / name)
    with pytest.raises(InputError, match=rf"{name}: (truncated|a Git LFS pointer)"):
        io.load_trained(run)


def test_a_missing_adapter_is_an_error(adapted: Path, tmp_path: Path) -> None:
    for name in ("model", "base"):
        shutil.copytree(adapted / name, tmp_path / name)
    (tmp_path / "model" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no adapter could be loaded"):
        io.load_trained(tmp_path / "model")


@pytest.mark.parametrize("command", ["generate", "evaluate", "train", "fewshot"])
def test_commands_exit_with_2(command: str, folder: Path, tmp_path: Path) -> None:
    halve(folder / "model.safetensors")
    small: list[str] = ["--tasks", "qa", "--device", "cpu"]
    arguments: dict[str, list[Any]] = {
        "generate": [folder, "text"],
        "evaluate": [folder, *small],
        "train": ["--model", folder, "--out", tmp_path / "run", *small],
        "fewshot": ["--model", folder, *small],
    }
    done = CliRunner().invoke(main, [command, *map(str, arguments[command])])
    assert done.exit_code == 2, done.output
    assert "model.safetensors: truncated" in done.output
    assert "Traceback" not in done.output
