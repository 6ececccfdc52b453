"""Our scores beside those of lm-evaluation-harness: the same folder, rows and strings, the same numbers.

Runs where the harness is installed, in the environment of the benchmarks:
`make .venv-eval/installed && .venv-eval/bin/python -m pytest -m slow tests/evaluation/test_peers.py`.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import settings

from multitask import evaluate, train
from multitask.config.run import RunConfig
from multitask.evaluation.tuned import examples_of
from multitask.models.io import load_trained
from multitask.pattern import parse, render, text_of
from multitask.registry import choose, load_tasks
from multitask.task import END

pytestmark = pytest.mark.slow
TASKS = ("nli", "qa")
ROWS = 40
MOST_NATS = 1e-4


def harness(folder: Path, rows: list[dict[str, Any]], work: Path, **kind: Any) -> dict[str, Any]:
    """Results and samples of lm-evaluation-harness on rows of `prompt`, `choices`, `gold` and `target`."""
    lm_eval = pytest.importorskip(
        "lm_eval",
        reason="lm-evaluation-harness is not installed; "
        "`make .venv-eval/installed && .venv-eval/bin/python -m pytest -m slow tests/evaluation/test_peers.py`",
    )
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    work.mkdir()
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = {
        "task": "multitask_peers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(work / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": "",
        "num_fewshot": 0,
        **kind,
    }
    (work / "multitask_peers.yaml").write_text(yaml.safe_dump(task), "utf-8")
    evaluated: dict[str, Any] = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(folder), batch_size=16, device="cpu", dtype="float32"),
        tasks=["multitask_peers"],
        task_manager=TaskManager(include_path=str(work), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = sorted(evaluated["samples"]["multitask_peers"], key=lambda sample: sample["doc_id"])
    return {
        "scores": evaluated["results"]["multitask_peers"],
        "nats": [[-loglikelihood for loglikelihood, _ in sample["filtered_resps"]] for sample in samples],
    }


def metric(name: str, higher_is_better: bool, aggregation: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short run on the synthetic dataset: its folder, its results and predictions, and its rows as strings."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; see this file's beginning")
    work = tmp_path_factory.mktemp("peers")
    source = {"synthetic": {"train": 200, "validation": 12, "test": ROWS}}
    given = settings(*TASKS, data={"sources": {name: [source] for name in TASKS}}, train={"max_steps": 60})
    train(given, out=work / "run")
    results = evaluate(work / "run", given, out=work / "results.json")
    config, tasks = RunConfig(**given), choose(load_tasks(), TASKS)
    _, tokenizer = load_trained(work / "run")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, examples in examples_of(tasks, "test", tokenizer, 128, config.data, None).items():
        task = tasks[name]
        literal = parse(task.stream)[-2].literal
        rows[name] = []
        for number, row in enumerate(examples.rows()):
            assert not examples.is_truncated(number)  # the harness would read a longer prompt
            choices = [literal + word + END for word in row.choices]
            target = literal + row.fields[task.target] + END
            gold = choices.index(target) if choices else 0
            prompt = text_of(render(task, row.fields, with_target=False))
            rows[name].append({"prompt": prompt, "choices": choices, "gold": gold, "target": target})
    predictions = {
        name: [
            json.loads(line)
            for line in (work / "results.json.predictions" / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in TASKS
    }
    return {"folder": work / "run" / "model", "results": results, "predictions": predictions, "rows": rows}


def test_accuracy_is_the_harness_s(ours: dict[str, Any], tmp_path: Path) -> None:
    rows = ours["rows"]["nli"]
    theirs = harness(
        ours["folder"],
        rows,
        tmp_path / "harness",
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="gold",
        metric_list=metric("acc", True, "mean"),
    )
    nats = [list(line["choice_nll"].values()) for line in ours["predictions"]["nli"]]
    assert len(nats) == len(rows) == ROWS
    for found, expected in zip(nats, theirs["nats"], strict=True):
        assert found == pytest.approx(expected, abs=MOST_NATS)
    assert len({found.index(min(found)) for found in nats}) > 1, "the model says the same of all rows"
    accuracy = ours["results"]["tasks"]["nli"]["metrics"]["accuracy"]["value"]
    assert accuracy == pytest.approx(theirs["scores"]["acc,none"], abs=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_perplexity_is_the_harness_s(ours: dict[str, Any], tmp_path: Path, name: str) -> None:
    theirs = harness(
        ours["folder"],
        ours["rows"][name],
        tmp_path / "harness",
        output_type="loglikelihood",
        doc_to_target="target",
        metric_list=metric("perplexity", False, "perplexity"),
    )
    lines = [line["nll"] for line in ours["predictions"][name]]
    assert [line["nll"] for line in lines] == pytest.approx([nats for (nats,) in theirs["nats"]], abs=MOST_NATS)
    # The harness averages over rows, we over tokens: the same nats, divided by what each counts.
    total = sum(line["nll"] for line in lines)
    assert math.exp(total / ROWS) == pytest.approx(theirs["scores"]["perplexity,none"], rel=1e-5)
    num_tokens = sum(line["tokens"] for line in lines)
    perplexity = math.exp(sum(nats for (nats,) in theirs["nats"]) / num_tokens)
    assert ours["results"]["tasks"][name]["metrics"]["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-5)
