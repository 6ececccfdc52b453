"""The functions from Python: arguments as people write them, results as objects and tables, progress, previews."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import FACTS, files, learned, settings

import multitask
from multitask import InputError, evaluate, preview, train
from multitask.api import progress
from multitask.api.arguments import listed, names, setting_flags
from multitask.api.results import RunResults
from multitask.config.run import PretrainConfig, RunConfig


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    folder = tmp_path_factory.mktemp("run")
    given = settings("qa", "cls", train={"max_steps": None, "epochs": 9.0})
    return train(given, tasks="qa", max_steps=2, out=folder / "run")


def test_one_task_may_be_named_as_text(found: RunResults) -> None:
    assert list(found["tasks"]) == list(found.tasks) == ["qa"]


def test_settings_of_training_are_arguments(found: RunResults, tmp_path: Path) -> None:
    assert found.cost.steps == 2
    given = settings("qa", train={"max_steps": 1})
    options = {"epochs": 0.05, "lr": 1e-5, "seed": 3, "model__n_layer": 1, "limit": 100}
    one = train(given, out=tmp_path / "run", **options)
    assert one.config["train"]["max_steps"] is None  # what was set before gives way to the epochs
    assert (one.config["train"]["epochs"], one.config["train"]["learning_rate"]) == (0.05, 1e-5)
    assert (one.seed, one.config["model"]["n_layer"], one.config["data"]["limit"]) == (3, 1, 100)


def test_an_unknown_argument_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\(\) has no argument 'epoch'; did you mean 'epochs'\?"):
        train(settings("qa"), out=tmp_path / "run", epoch=1)
    with pytest.raises(InputError, match=r"pretrain\(\) has no argument 'adapter'"):
        multitask.pretrain(out=tmp_path / "run", adapter="lora")
    with pytest.raises(InputError, match=r"train\.epochs: Input should be greater than 0, found -1"):
        train(settings("qa"), out=tmp_path / "run", epochs=-1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("summ", ["summ"]), ("summ, qa,", ["summ", "qa"]), (["summ"], ["summ"]), (("a", "b"), ["a", "b"]), (None, None)],
)
def test_names_are_one_or_several(given: Any, expected: list[str] | None) -> None:
    assert names(given) == expected


def test_values_are_one_or_several() -> None:
    assert listed("a,b.txt") == ["a,b.txt"]
    assert listed(Path("a")) == [Path("a")]
    assert listed(p for p in ("a", "b")) == ["a", "b"]


def test_flags_of_options() -> None:
    options = {"epochs": 1, "model": Path("runs/a"), "data__cache": "c", "tracker": None}
    assert setting_flags(RunConfig, "train", options) == [
        "train.epochs=1",
        'model.name="runs/a"',
        'data.cache="c"',
        "train.tracker=null",
    ]
    assert setting_flags(PretrainConfig, "pretrain", {"document_masking": True}) == ["train.document_masking=true"]


def test_results_are_a_mapping_and_an_object(found: RunResults, tmp_path: Path) -> None:
    score = found["tasks"]["qa"]["metrics"]["f1"]
    assert found.tasks["qa"].metrics["f1"].value == score["value"]
    assert (found.kind, found.arm, found.seed) == ("train", "single-qa", found["seed"])
    assert found.model == found["model"]["name"]
    assert found.data["qa"].num_rows == 16
    assert json.loads(json.dumps(found)) == found == pickle.loads(pickle.dumps(found))
    assert json.loads((Path(found.model).parent / "results.json").read_text()) == found
    assert f"  qa: f1 {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] of 16 rows" in repr(found)
    with pytest.raises(InputError, match="the main process alone"):
        _ = RunResults().tasks


def test_results_as_a_table(found: RunResults, monkeypatch: pytest.MonkeyPatch) -> None:
    table = found.to_frame()
    assert list(table.columns)[:5] == ["task", "shots", "metric", "value", "low"]
    assert set(table["metric"]) == set(found["tasks"]["qa"]["metrics"])
    row = table[table["metric"] == "f1"].iloc[0]
    assert row["value"] == found.tasks["qa"].metrics["f1"].value
    baselines = {name: one["f1"]["value"] for name, one in found["tasks"]["qa"]["baselines"].items() if "f1" in one}
    assert (row["best_baseline"], row["baseline_value"]) == max(baselines.items(), key=lambda item: item[1])
    perplexities = {
        n: b["perplexity"]["value"] for n, b in found["tasks"]["qa"]["baselines"].items() if "perplexity" in b
    }
    lowest = min(perplexities.items(), key=lambda item: item[1])
    row = table[table["metric"] == "perplexity"].iloc[0]
    assert (row["best_baseline"], row["baseline_value"]) == lowest
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"to_frame\(\) needs the package pandas, .*`pip install pandas`"):
        found.to_frame()


def test_prompted_results_as_a_table(tmp_path: Path) -> None:
    source = files(tmp_path, train=FACTS, validation=FACTS, test=FACTS)
    given = settings("qa", data={"sources": {"qa": [source]}}, fewshot={"shots": [0, 1], "draws": 1})
    found = multitask.fewshot(learned(), given)
    table = found.to_frame()
    assert set(table["shots"]) == {0, 1}
    first = table[(table["shots"] == 1) & (table["metric"] == found.tasks["qa"].per_shot[1].metric)].iloc[0]
    assert first["value"] == found["tasks"]["qa"]["per_shot"]["1"]["mean"]
    assert "qa, 1-shot: " in repr(found)


def test_the_package_shows_its_public_names_only() -> None:
    code = (
        "import multitask, multitask.cli.main; print(*dir(multitask)); from multitask import *; print(preview.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, imported = done.stdout.splitlines()
    assert shown.split() == sorted(multitask.__all__)
    assert imported == "preview"
    assert all(callable(getattr(multitask, name)) for name in multitask.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = multitask.nothing


def test_a_preview_holds_what_it_prints() -> None:
    found = preview(settings("qa", "cls"), tasks="qa", epochs=1)
    text = str(found)
    assert repr(found) == text
    assert f"{found.estimate.total_parameters:,} parameters" in text
    assert found.examples["qa"].row(0).fields["question"] in found.text(width=10_000)
    assert text.count("synthetic:train:") == 3
    assert found.text(num_rows=1).count("synthetic:train:") == 1
    row = found.rows()[0]
    assert (row.task, row.split, row.rows, row.sampling_rate) == ("qa", "train", len(found.examples["qa"]), 1.0)
    table = found.to_frame().set_index("split")
    assert list(table.index) == ["train", "validation", "test"]
    assert table["max_length"]["train"] == found.examples["qa"].lengths.max()
    assert table["also_in_train"]["test"] == found.num_in_train["test"]["qa"]


# ---------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_not_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings("qa", data={"sources": {"qa": [{"synthetic": {"train": 40, "validation": 4, "test": 4}}]}})
    run, texts = learned(), {}
    for name, stream, report in (
        ("terminal", Terminal(), None),
        ("pipe", io.StringIO(), None),
        ("off", Terminal(), False),
        ("on", io.StringIO(), True),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        evaluate(run, given, report=report)
        texts[name] = stream.getvalue()
    assert "qa: 4 rows" in texts["terminal"]
    assert "f1 " in texts["terminal"]
    assert texts["on"] == texts["terminal"]
    assert texts["pipe"] == texts["off"] == ""


def test_progress_is_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """Jupyter's."""

    class IPython:
        get_ipython = ZMQInteractiveShell

    assert not progress.is_watched(io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", IPython)  # type: ignore[arg-type]
    assert progress.is_watched(io.StringIO())


def test_a_line_is_rewritten_and_what_matters_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "70")
    train(settings("qa", train={"max_steps": 4, "log_every_steps": 2, "eval_every_steps": 4}), out=tmp_path / "run")
    lines = stream.getvalue().split("\n")
    steps = [part for part in stream.getvalue().replace("\n", "\r").split("\r") if part.startswith("step 2/4 [")]
    assert steps
    assert steps[0].startswith("step 2/4 [##########          ] loss qa ")
    assert all(len(part) <= 69 for part in steps)
    assert any(line.rpartition("\r")[2].startswith("step 4: validation loss qa ") for line in lines)
    assert lines[-2].rpartition("\r")[2] == f"written to {tmp_path / 'run'}"
    assert lines[-1] == ""


def test_disk_errors_are_the_users(tmp_path: Path) -> None:
    for error, said in (
        (OSError(28, "No space left on device"), "a file: No space left on device; free some disk space"),
        (PermissionError(13, "Permission denied", "runs/a"), "runs/a: Permission denied; free some"),
    ):
        with pytest.raises(InputError, match=said), progress.showing(False):
            raise error
    with pytest.raises(FileNotFoundError), progress.showing(False):
        raise FileNotFoundError(2, "our own failure")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 0}, r"train\(epochs=0\): train.epochs: Input should be greater than 0"),
        ({"limit": 0}, r"train\(limit=0\): data.limit"),
        ({"langage": "ko"}, "'language' is a setting of a source, in the YAML file below data.sources"),
        ({"label": ["a"]}, "'labels' is a setting of a source"),
        ({"config": "num.yaml"}, "as the first argument, without a name"),
        ({"overwrit": True}, "did you mean 'overwrite'"),
    ],
)
def test_a_wrong_argument_is_named_as_it_was_given(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        train(**given)
