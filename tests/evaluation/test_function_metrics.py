"""Metrics that are functions of the user: names, numbers, errors, and a row in every table as our own metrics have."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import FACTS, files, learned, settings, untrained

from multitask import api
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.registry import fingerprint, load_tasks
from multitask.reports.arms import Score, _mean, value_range

CODE = """
import numpy as np

def length_ratio(prediction, references):
    return len(prediction) / len(references[0])

def errors(prediction, references):
    return abs(len(prediction) - len(references[0])), len(references[0])

def counts(prediction, references):
    return {"words": len(prediction.split()), "characters": len(prediction)}

def numpy_number(prediction, references):
    references.clear()
    return np.float32(0.5)

def is_right(prediction, references):
    return prediction in references

def lower(prediction, references):
    return -1

def text(prediction, references):
    return "good"

def not_a_number(prediction, references):
    return float("nan")

def nothing(prediction, references):
    pass

def three(prediction, references):
    return 1, 2, 3

def negative(prediction, references):
    return 1, -1

def broken(prediction, references):
    return 1 / (len(prediction) - len(prediction))

def one(prediction):
    return 1

CONSTANT = 3
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with `my_metrics.py` in it."""
    monkeypatch.chdir(tmp_path)
    Path("my_metrics.py").write_text(CODE, "utf-8")


PAIRS = [("abc", ["abcdef", "x"]), ("다섯 글자", ["다섯"])]


@pytest.mark.parametrize(
    ("name", "score", "is_higher_better"),
    [
        ("my_metrics.py:length_ratio", (3 / 6 + 5 / 2) / 2, True),  # a mean over rows
        ("my_metrics.py:errors", (3 + 3) / (6 + 2), True),  # sum over count of all rows, no mean of ratios
        ("my_metrics.py:errors:lower", 6 / 8, False),
        ("my_metrics.py:counts.words", (1 + 2) / 2, True),
        ("my_metrics.py:counts.characters:lower", (3 + 5) / 2, False),
        ("my_metrics.py:numpy_number", 0.5, True),
        ("my_metrics.py:is_right", 0.0, True),
        ("my_metrics.py:lower", -1.0, True),  # a function of that name, no direction
        ("os.path:commonprefix.x", None, True),
        ("operator:contains", None, True),
    ],
)
def test_scores_by_hand(name: str, score: float | None, is_higher_better: bool) -> None:
    metric = metrics.build(name, "en")
    assert (metric.name, metric.higher_is_better) == (name, is_higher_better)
    assert metrics.is_known(name)
    if score is None:  # a module: found, and what it returns is looked at
        metrics.check_function(name)
        return
    assert metrics.score(metric, [metric.per_example(*pair) for pair in PAIRS]) == pytest.approx(score)
    assert [references for _, references in PAIRS] == [["abcdef", "x"], ["다섯"]]  # not changed by the function


def test_a_module_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "installed_metrics.py").write_text(CODE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    metric = metrics.build("installed_metrics:length_ratio", "ko")
    assert metric.per_example("ab", ["abcd"]) == {"value": 0.5, "count": 1.0}
    assert metrics.source("installed_metrics:length_ratio") == metrics.source("my_metrics.py:length_ratio") == CODE


def test_a_file_that_has_changed_is_imported_again() -> None:
    metric = metrics.build("my_metrics.py:length_ratio", "en")
    assert metric.per_example("ab", ["ab"])["value"] == 1
    Path("my_metrics.py").write_text(CODE.replace("/ len(references[0])", "* 10"), "utf-8")
    os.utime("my_metrics.py", (1, 1))
    assert metric.per_example("ab", ["ab"])["value"] == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_metric.py:f", r"metric 'my_metric.py:f': no file my_metric.py in .*working directory"),
        ("my_metrics.py:length_rato", r"my_metrics.py has no function 'length_rato'; did you mean 'length_ratio'"),
        ("my_metrics.py:CONSTANT", r"my_metrics.py has no function, but a value, 'CONSTANT'"),
        ("my_metrics:length_ratio", r"module 'my_metrics' does not import.*named with its ending, `my_metrics.py:"),
        ("wrong.py:f", r"metric 'wrong.py:f': .*wrong.py does not import: ZeroDivisionError: .* \(wrong.py:2\)"),
        ("stops.py:f", r"stops.py does not import: SystemExit"),
        ("my_metrics.py:errors:lowr", r"':lowr' is no ending .* the only one is ':lower'"),
        ("my_metrics.py:counts.words:higher", r"':higher' is no ending .* the only one is ':lower'"),
        ("os.path:join:lowr", r"':lowr' is no ending .* the only one is ':lower'"),
        ("no_such_module:f", r"module 'no_such_module' does not import: ModuleNotFoundError: [^(]*$"),
    ],
)  # fmt: skip
def test_what_is_no_function(name: str, message: str) -> None:
    Path("wrong.py").write_text("\n1 / 0\n", "utf-8")
    Path("stops.py").write_text("raise SystemExit(3)\n", "utf-8")
    with pytest.raises(InputError, match=message):
        metrics.check_function(name)


_NUMBER = r"expected a finite number, or a pair \(sum, count\).*; prediction 'ab', references \['cd'\]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", f"metric 'my_metrics.py:text' returned 'good', {_NUMBER}"),
        ("not_a_number", f"returned nan, {_NUMBER}"),
        ("nothing", f"returned None, {_NUMBER}"),
        ("three", rf"returned \(1, 2, 3\), {_NUMBER}"),
        ("negative", rf"returned \(1, -1\), {_NUMBER}"),
        (
            "broken",
            r"metric 'my_metrics.py:broken' raised ZeroDivisionError: .* \(my_metrics.py:\d+\); prediction 'ab'",
        ),
        (
            "one",
            r"raised TypeError: .* \(my_metrics.py:\d+\); a metric is called with two arguments, prediction and",
        ),
        ("counts", r"returned {'words': 1, 'characters': 2}; name one of them: 'my_metrics.py:counts.words', 'my_met"),
        ("counts.word:lower", r"returned {'words.*; name one of them: 'my_metrics.py:counts.words'"),
        ("length_ratio.words", r"returned 1.0, expected a dictionary with 'words'"),
    ],
)
def test_what_a_function_may_not_return(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.build(f"my_metrics.py:{name}", "en").per_example("ab", ["cd"])


def test_names_in_tables_have_no_folders() -> None:
    assert metrics.shown("/home/me/lib/my_metrics.py:counts.words:lower") == "my_metrics.py:counts.words"
    assert [metrics.shown(name) for name in metrics.NAMES] == list(metrics.NAMES)


def test_a_function_decides_no_example_and_has_no_range() -> None:
    task = load_tasks()["qa"]
    assert fingerprint(replace(task, metrics=(*task.metrics, "my_metrics.py:errors"))) == fingerprint(task)
    assert fingerprint(replace(task, metrics=(*task.metrics, "rougeL"))) != fingerprint(task)
    several = [Score(value, value - 1, value + 1) for value in (-5.0, -4.0, 3.0)]
    found = _mean(several, value_range("my_metrics.py:errors"))
    assert found.low is not None
    assert found.low < -2  # a score of ours ends at 0
    assert _mean(several, value_range("f1")).low == 0


# ---------------------------------------------------------------- before training


def given(folder: Path, *names: str, **sections: Any) -> dict[str, Any]:
    source = files(folder / "facts", train=FACTS, validation=FACTS, test=FACTS)
    of_eval = {"metrics": {"qa": list(names)}, "num_bootstrap": 20}
    return settings("qa", **{"data": {"sources": {"qa": [source]}}, "eval": of_eval} | sections)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_metrics.py:text", r"facts/validation.jsonl:1: metric 'my_metrics.py:text' returned 'good', expected a"),
        ("my_metrics.py:none", r"\Ametric 'my_metrics.py:none': my_metrics.py has no function .*\Z"),  # one line
        ("my_metrics.py:", r"task 'qa': no metric 'my_metrics.py:'; valid: .*; a function of your own is named"),
        ("rougel", "task 'qa': no metric 'rougel'; did you mean 'rougeL'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [api.train, api.preview])
def test_it_is_found_before_any_row_is_encoded(
    name: str, message: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("finetune", "preview"):
        monkeypatch.setattr(f"multitask.training.{module}.prepare", None)
    with pytest.raises(InputError, match=message):
        command(given(tmp_path, name), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_of_a_task_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"eval.metrics: unknown task 'qaa'; did you mean 'qa'"):
        api.train(given(tmp_path) | {"eval": {"metrics": {"qaa": ["f1"]}}}, out=tmp_path / "run")


# ---------------------------------------------------------------- from end to end


def test_a_run_its_card_and_its_report_have_it(tmp_path: Path) -> None:
    names = ("my_metrics.py:length_ratio", "my_metrics.py:errors:lower", "rougeL", "f1")
    made = api.train(given(tmp_path, *names), out=tmp_path / "run", report=False)
    found = made.record.tasks["qa"]
    assert list(found.metrics)[:5] == ["f1", "exact_match", *names[:3]]  # behind the task's own, each once
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "qa.jsonl").open(encoding="utf-8")]
    pairs = [(len(one["prediction"]), len(one["references"][0])) for one in records]
    assert len(pairs) == 6
    ratio, errors = (found.metrics[name] for name in names[:2])
    assert ratio.value == pytest.approx(sum(p / r for p, r in pairs) / 6, abs=1e-6)
    assert errors.value == pytest.approx(sum(abs(p - r) for p, r in pairs) / sum(r for _, r in pairs), abs=1e-6)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < ratio.value < ratio.high  # the answers differ in length
    assert names[0] in found.baselines["random_span"]
    # Of errors the best baseline is the one with the fewest.
    fewest = min((each[names[1]].value, name) for name, each in found.baselines.items() if names[1] in each)
    (row,) = [row for row in made.rows() if row.metric == names[1]]
    assert (row.best_baseline, row.baseline_value)[::-1] == fewest
    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert f"| qa | my_metrics.py:errors | {errors.value:.3f} | {errors.low:.3f} - {errors.high:.3f} |" in card

    again = api.evaluate(tmp_path / "run", report=False)
    assert again.record.tasks["qa"].metrics == found.metrics
    written = api.report([tmp_path / "run"], tmp_path / "report")
    scores = {arm["name"]: arm["scores"]["qa"] for arm in written["arms"]}
    assert scores["single-qa"][names[0]]["value"] == ratio.value
    assert scores["random_span"][names[1]]["low"] is not None
    assert "<td>my_metrics.py:length_ratio</td>" in (tmp_path / "report" / "report.html").read_text("utf-8")


def test_a_task_scored_by_likelihood_keeps_its_score_and_its_texts(tmp_path: Path) -> None:
    run = settings("gen", eval={"metrics": {"gen": ["my_metrics.py:length_ratio"]}, "max_rows": 4, "max_free_rows": 2})
    found = api.train(run, out=tmp_path / "run", report=False).record.tasks["gen"]
    assert list(found.metrics) == [*metrics.FROM_NLL, "my_metrics.py:length_ratio"]
    assert api.report([tmp_path / "run"], tmp_path / "report")["tasks"]["gen"]["metric"] == "bits_per_byte"  # as before
    assert found.generation is not None
    assert found.generation.num_texts == 2


def test_a_finished_run_is_scored_with_another_metric() -> None:
    flags = ["eval.metrics={qa: ['my_metrics.py:is_right']}"]
    found = api.evaluate(learned(), flags=flags, report=False).record.tasks["qa"].metrics
    assert found["my_metrics.py:is_right"].value == 1.0  # it has memorised all answers


def test_prompted_and_in_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = untrained(tmp_path / "base", "qa")
    few = {"shots": [0, 1], "draws": 2, "templates": "first"}
    run = given(tmp_path, "my_metrics.py:length_ratio:lower", fewshot=few, train={"max_steps": 2})
    found = api.fewshot(base, run, report=False).record.tasks["qa"].per_shot[1].metrics
    spread = found["my_metrics.py:length_ratio:lower"]
    assert spread.low is not None
    assert spread.sd is not None

    suite = {"base": str(base), "arms": ["trivial", "prompted", "multitask"], "seeds": [1], "run": run}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite), "utf-8")
    done = api.benchmark(tmp_path / "suite.yaml", out=tmp_path / "suite", report=False)
    content = json.loads((tmp_path / "suite" / "report.json").read_text("utf-8"))
    arms = {arm["name"] for arm in content["arms"] if "my_metrics.py:length_ratio:lower" in arm["scores"]["qa"]}
    assert {"random_span", "multitask"} < arms
    assert sum("-shot" in arm for arm in arms) == 2
    assert len(done["arms"]) == 3
    monkeypatch.setattr("multitask.reports.benchmark.write_report", lambda *_, **__: None)
    again = api.benchmark(tmp_path / "suite.yaml", out=tmp_path / "suite", report=False)
    assert all(arm["kept"] for arm in again["arms"])
    Path("my_metrics.py").write_text(CODE.replace("/ len(references[0])", "* 10"), "utf-8")
    (arm,) = api.benchmark(tmp_path / "suite.yaml", out=tmp_path / "suite", arms="trivial", report=False)["arms"]
    assert not arm["kept"]  # another function makes other scores


def test_a_metric_may_be_the_score_of_a_plugin(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "examples" / "tasks" / "translate.py").read_text("utf-8")
    (tmp_path / "plugins").mkdir()
    own = text.replace('metrics=("rougeL", "exact_match")', 'metrics=("my_metrics.py:errors:lower", "rougeL")')
    assert own != text
    (tmp_path / "plugins" / "translate.py").write_text(own, "utf-8")
    rows = [{"source": fact["question"], "translation": fact["answers"][0]} for fact in FACTS]
    source = files(tmp_path / "rows", train=rows, validation=rows, test=rows)
    run = settings("translate", data={"sources": {"translate": [source]}})
    api.train(run, out=tmp_path / "run", tasks_dirs=tmp_path / "plugins", report=False)
    task = api.report([tmp_path / "run"], tmp_path / "report")["tasks"]["translate"]
    assert (task["metric"], task["higher_is_better"], task["num_paired"]) == ("my_metrics.py:errors:lower", False, 6)
