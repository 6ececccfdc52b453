"""The demo model: trained once, found again, trained anew when what decides it changes, resumed when stopped."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from multitask.config.loading import load, read_yaml
from multitask.config.run import RunConfig
from multitask.errors import InputError
from multitask.files import shipped
from multitask.training import demo_model

TINY: dict[str, Any] = {
    "tasks": ["gen"],
    "device": "cpu",
    "data": {
        "sources": {
            "gen": [{"synthetic": {"train": 60, "validation": 4, "test": 4}, "columns": {"text": "document"}}],
        }
    },
    "model": {"vocab_size": 400, "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 768},
    "train": {"batch_tokens": 768, "max_steps": 6, "log_every_steps": 1, "precision": "fp32", "learning_rate": 1e-2},
    "eval": {"num_bootstrap": 10},
}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`base_model` of a tiny recipe with a cache of its own; a keyword replaces a section's value."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_model, "shipped", lambda folder: tmp_path / folder)
    (tmp_path / "configs").mkdir()

    def run(report: Callable[[dict[str, Any]], None] = lambda record: None, **changes: dict[str, Any]) -> Path:
        recipe = TINY | {name: TINY[name] | change for name, change in changes.items()}
        (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
        return demo_model.demo_model("tiny", report)

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return found


def left(folder: Path) -> list[str]:
    """What lies in the cache beside encoded rows."""
    return sorted(path.name for path in folder.parent.iterdir() if path.is_dir())


def test_it_is_trained_once(make: Make) -> None:
    records: list[dict[str, Any]] = []
    folder = make(records.append)
    steps = [record["step"] for record in records if record["event"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [record["max_steps"] for record in records if record["event"] == "start"] == [6]
    assert left(folder) == [folder.name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == len(tokenizer)
    records.clear()
    assert make(records.append) == folder
    assert records == []


def test_another_recipe_is_another_base(make: Make) -> None:
    first, scored = make(), make(eval={"num_bootstrap": 20})
    assert scored == first  # how it is scored decides no weight
    second = make(train={"max_steps": 2})
    assert left(first) == sorted([first.name, second.name])


def test_changed_code_is_another_base(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(train={"max_steps": 1})
    monkeypatch.setattr(demo_model, "source_hash", lambda name: f"other code of {name}")
    assert make(train={"max_steps": 1}) != first


def test_a_stopped_training_goes_on(make: Make, tmp_path: Path) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    whole = weights(make(data={"cache": str(tmp_path / "elsewhere")}))
    with pytest.raises(KeyboardInterrupt):
        make(stop)
    (tmp,) = (tmp_path / "cache" / "multitask").glob("tiny-*")
    assert tmp.name.endswith(".stopped")
    records: list[dict[str, Any]] = []
    folder = make(records.append)
    assert [record["step"] for record in records if record["event"] == "step"] == [4, 5, 6]
    assert left(folder) == [folder.name]
    assert all(torch.equal(value, whole[name]) for name, value in weights(folder).items())


def test_a_failed_training_leaves_nothing(make: Make, tmp_path: Path) -> None:
    def fail(record: dict[str, Any]) -> None:
        if record["event"] == "step":
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        make(fail)
    assert list((tmp_path / "cache" / "multitask").glob("tiny-*")) == []


def test_a_recipe_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"demo_modle\.yaml: no such file; did you mean 'demo_model\.yaml'\?"):
        demo_model.demo_model("demo_modle")


@pytest.mark.parametrize("name", ["demo_model", "demo_model_long"])
def test_shipped_recipes_train_on_documents_alone(name: str) -> None:
    config = load(RunConfig, read_yaml(shipped("configs") / f"{name}.yaml"))
    for sources in config.data.sources.values():
        for source in sources:
            assert not isinstance(source, str)
            assert source.synthetic
            assert source.columns == {"text": "document"}
    assert set(config.data.sources) == set(config.tasks)


def test_a_damaged_demo_model_is_trained_anew_and_said(make: Make) -> None:
    folder = make()
    before = {name: value.clone() for name, value in weights(folder).items()}
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.unlink()  # a loaded model maps the file
    path.write_bytes(content[:1000])
    records: list[dict[str, Any]] = []
    assert make(records.append) == folder
    (warning,) = [record["text"] for record in records if record["event"] == "warning"]
    assert warning.startswith(f"{path}: truncated: 1,000 bytes")
    assert warning.endswith("; the demo model is trained anew")
    after = weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_cache_that_cannot_be_written_is_told(make: Make, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    said = r"tiny-\w+: the cache cannot be written \(.*; .* the environment's XDG_CACHE_HOME"
    with pytest.raises(InputError, match=said):
        make()
