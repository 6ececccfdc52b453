"""Suites: which arms there are, what is kept, what is run anew, and that baselines are the same everywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import FOLDER, settings

from multitask import api
from multitask.config.loading import load, read_yaml
from multitask.config.run import BenchmarkConfig, RunConfig
from multitask.errors import InputError, Interrupted
from multitask.evaluation import baselines
from multitask.files import shipped
from multitask.registry import choose, load_tasks
from multitask.reports import benchmark


def suite(**changes: Any) -> dict[str, Any]:
    run = settings("qa", "cls", train={"max_steps": 2}, fewshot={"shots": [0, 1], "draws": 2})
    lora = {"train": {"learning_rate": 1e-3}}
    return {
        "base": None,
        "arms": ["trivial", "single", "multitask"],
        "seeds": [1, 2],
        "run": run,
        "lora": lora,
    } | changes


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite(**changes)), "utf-8")
    return path


@pytest.fixture(scope="module")
def base() -> Path:
    """A trained model of its own, to be prompted and tuned."""
    folder = FOLDER / "suite-base"
    api.train(settings("gen", train={"max_steps": 2}), out=folder)
    return folder / "model"


def test_the_arms_of_a_suite() -> None:
    every = ["trivial", "prompted", "single", "single-lora", "multitask", "multitask-lora"]
    config = load(BenchmarkConfig, suite(base="x", arms=every, single={"train": {"max_steps": 1}}))
    planned = benchmark.plan(config, ["qa", "cls"], "here")
    assert [arm.folder for arm in planned] == [
        "trivial",
        "prompted",
        "multitask-seed-1",
        "multitask-seed-2",
        "multitask-lora-seed-1",
        "multitask-lora-seed-2",
        "single-qa-seed-1",
        "single-cls-seed-1",
        "single-qa-seed-2",
        "single-cls-seed-2",
        "single-qa-lora-seed-1",
        "single-cls-lora-seed-1",
        "single-qa-lora-seed-2",
        "single-cls-lora-seed-2",
    ]
    by_name = {arm.folder: arm for arm in planned}
    one, lora, both = (by_name[f"{n}-seed-2"].config for n in ("single-qa", "multitask-lora", "single-qa-lora"))
    assert (one.tasks, one.seed, one.train.max_steps, one.adapter.kind) == (["qa"], 2, 1, "none")
    assert (lora.tasks, lora.train.max_steps, lora.adapter.kind, lora.train.learning_rate) == (
        ["qa", "cls"],
        2,
        "lora",
        1e-3,
    )
    assert (both.train.max_steps, both.adapter.kind, both.train.learning_rate) == (1, "lora", 1e-3)


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped("configs").glob("benchmark_*.yaml")))
def test_shipped_suites_can_be_planned(name: str) -> None:
    path = shipped("configs") / f"{name}.yaml"
    config = load(BenchmarkConfig, read_yaml(path), where=name)
    planned = benchmark.plan(config, load(RunConfig, config.run).tasks, name)
    assert {arm.kind for arm in planned} == set(config.arms)


def test_arms_are_chosen_by_any_of_their_names() -> None:
    planned = benchmark.plan(load(BenchmarkConfig, suite()), ["qa", "cls"], "here")
    assert [a.folder for a in benchmark.chosen(planned, ["single-qa", "trivial"])] == [
        "trivial",
        "single-qa-seed-1",
        "single-qa-seed-2",
    ]
    assert [a.folder for a in benchmark.chosen(planned, ["multitask-seed-2"])] == ["multitask-seed-2"]
    with pytest.raises(InputError, match=r"--arms: no arm 'multitaks' in this suite; did you mean 'multitask'"):
        benchmark.chosen(planned, ["multitaks"])


def test_nothing_can_be_prompted_without_a_model() -> None:
    with pytest.raises(InputError, match="arm 'prompted' needs a model to prompt; set base"):
        benchmark.plan(load(BenchmarkConfig, suite(arms=["prompted"])), ["qa"], "here")


def test_a_suite_names_its_own_wrong_settings(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("bas: x\nseeds: []\n", "utf-8")
    with pytest.raises(InputError, match=r"seeds: List should have(.|\n)*bas: no such setting; did you mean 'base'"):
        api.benchmark(path)
    path.write_text("run: {train: {epoch: 1}}\n", "utf-8")
    with pytest.raises(InputError, match=r"run: train.epoch: no such setting; did you mean 'epochs'"):
        api.benchmark(path)


@pytest.mark.slow
def test_a_suite_keeps_what_has_not_changed(tmp_path: Path, base: Path) -> None:
    everything = ["trivial", "prompted", "single", "multitask", "multitask-lora"]
    changes = {"base": str(base), "arms": everything, "seeds": [1]}
    path, out = write(tmp_path, **changes), tmp_path / "out"
    first = api.benchmark(path, out=out)
    assert [arm["kept"] for arm in first["arms"]] == [False] * 6
    results = {
        arm["arm"]: json.loads((Path(arm["folder"]) / "results.json").read_text("utf-8")) for arm in first["arms"]
    }
    assert [r["arm"] for r in results.values()] == [
        "trivial",
        "prompted",
        "multitask",
        "multitask-lora",
        "single-qa",
        "single-cls",
    ]
    assert (out / "report.html").exists()
    for name in ("qa", "cls"):  # the baseline is one and the same, whoever reports it
        baselines = [r["tasks"][name]["baselines"] for r in results.values() if name in r["tasks"]]
        values = [
            {
                n: {m: s["value"] for m, s in scores.items()}
                for n, scores in baseline.items()
                if n not in ("unigram", "bigram")
            }
            for baseline in baselines
        ]
        assert values == [values[0]] * len(values)
        assert values[0]

    again = api.benchmark(path, out=out)
    assert all(arm["kept"] for arm in again["arms"])

    shutil.rmtree(out / "arms" / "single-qa-seed-1")
    write(tmp_path, **changes | {"lora": {"train": {"learning_rate": 2e-3}}})
    changed = api.benchmark(path, out=out)
    assert [arm["arm"] for arm in changed["arms"] if not arm["kept"]] == ["multitask-lora-seed-1", "single-qa-seed-1"]


def test_other_rows_are_another_arm(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    line = {"text": "좋다", "label": "a"}
    rows.write_text("".join(json.dumps(line | {"id": str(n)}) + "\n" for n in range(6)), "utf-8")
    source = {
        "files": dict.fromkeys(("train", "validation", "test"), str(rows)),
        "language": "ko",
        "labels": {"a": "a", "b": "b"},
    }
    run = settings("cls", data={"cache": str(tmp_path / "cache"), "sources": {"cls": [source]}})
    path, out = write(tmp_path, run=run, arms=["trivial"], report={"language": "ko"}), tmp_path / "out"
    assert [arm["kept"] for arm in api.benchmark(path, out=out)["arms"]] == [False]
    assert "## 점수" in (out / "report.md").read_text("utf-8"), "in the language of the suite"
    assert [arm["kept"] for arm in api.benchmark(path, out=out)["arms"]] == [True]
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | {"id": "7"}) + "\n")
    assert [arm["kept"] for arm in api.benchmark(path, out=out)["arms"]] == [False]


@pytest.mark.slow
def test_a_stopped_arm_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings("cls", train={"max_steps": 6, "save_every_steps": 2})
    path, out = write(tmp_path, run=run, arms=["multitask"], seeds=[3]), tmp_path / "out"
    whole = api.benchmark(path, out=tmp_path / "whole")
    stop_at = {4}

    def report(record: dict[str, Any]) -> None:
        if record["event"] == "saved" and record["step"] in stop_at:
            stop_at.clear()
            raise Interrupted("")

    with pytest.raises(Interrupted, match=str(out)):
        api.benchmark(path, out=out, report=report)
    steps: list[int] = []
    done = api.benchmark(path, out=out, report=lambda r: steps.append(r["step"]) if r["event"] == "start" else None)
    assert steps == [4]
    assert [arm["kept"] for arm in done["arms"]] == [False]
    ours, theirs = (Path(found["arms"][0]["folder"]) / "model" / "model.safetensors" for found in (done, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_dry_run_lists_and_estimates(tmp_path: Path, base: Path) -> None:
    path, out = write(tmp_path, base=str(base), arms=["trivial", "prompted", "multitask-lora"]), tmp_path / "out"
    found = api.benchmark(path, out=out, dry_run=True)["arms"]
    assert [arm["arm"] for arm in found] == ["trivial", "prompted", "multitask-lora-seed-1", "multitask-lora-seed-2"]
    assert [arm["seconds"] > 0 for arm in found] == [False, True, True, True]
    assert not out.exists()


def test_baselines_without_a_model_are_those_beside_one(tmp_path: Path) -> None:
    run = load(RunConfig, settings("summ", "qa", "cls"))
    tasks = choose(load_tasks(), run.tasks)
    beside = api.train(run, out=tmp_path / "run")
    data, scores = baselines.trivial(tasks, run)
    for name in tasks:
        expected = {k: v for k, v in beside["tasks"][name]["baselines"].items() if k not in ("unigram", "bigram")}
        assert scores[name].to_json()["baselines"] == expected
        assert expected
        for key in ("files", "sha256", "split", "num_rows"):
            assert data[name].to_json()[key] == beside["data"][name][key]
