"""Free answers, sampled texts and their labels; and what a results file says beyond scores."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import FOLDER, settings

from multitask import api
from multitask.cli.main import main
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.evaluation import free_generation, metrics
from multitask.evaluation.evaluator import EncodedPrompt
from multitask.registry import choose, load_tasks
from multitask.task import Task

TASKS = load_tasks()


@pytest.fixture(scope="module")
def run() -> tuple[Path, dict[str, Any]]:
    """Labels well learned, texts roughly."""
    folder = FOLDER / "writing"
    train = {"max_steps": 60, "batch_tokens": 1024, "micro_batch_tokens": 1024, "learning_rate": 5e-3}
    made = settings("gen", "cls", "nli", train=train, eval={"num_bootstrap": 20, "max_free_rows": 10})
    return folder, api.train(made, out=folder, overwrite=True)


def test_the_judge_reads_what_the_writer_writes() -> None:
    assert free_generation.judge_of(TASKS["gen"], TASKS) is TASKS["cls"]
    assert free_generation.judge_of(TASKS["gen"], choose(TASKS, ["gen", "nli", "qa"])) is None
    assert free_generation.judge_of(TASKS["summ"], TASKS) is None
    unlabelled = Task("tell", "<|tell|>{text}<|end|>", "text")
    assert free_generation.judge_of(unlabelled, TASKS) is None


def test_sampled_texts_are_described_and_labelled(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    found = results["tasks"]["gen"]["generation"]
    assert found["num_texts"] == 10
    assert found["num_labelled"] <= 10
    assert {"distinct1", "distinct2", "repetition", "length", "corpus_distinct1", "corpus_distinct2"} <= set(found)
    assert found["length"] > 0
    assert 0 <= found["label_agreement"] <= 1
    again = api.evaluate(folder)["tasks"]["gen"]["generation"]
    assert again == found, "samples are a function of the seed"
    other = api.evaluate(folder, flags=["seed=8"])["tasks"]["gen"]["generation"]
    assert other["sample"] != found["sample"]
    alone = api.evaluate(folder, tasks=["gen"])["tasks"]["gen"]["generation"]
    assert "label_agreement" not in alone, "without cls nobody judges"


def test_agreement_is_what_the_labels_say(run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = run
    asked: list[int] = []

    def always_first(model: Any, rows: Any, batch_tokens: int) -> Any:
        asked.append(len(rows))
        return [(0, []) for _ in rows]

    monkeypatch.setattr(free_generation, "choose", always_first)
    found = api.evaluate(folder)["tasks"]["gen"]["generation"]
    lines = (folder / "predictions" / "gen.jsonl").read_text("utf-8").splitlines()[:10]
    labels = [json.loads(line)["prompt"].removeprefix("<|start|>").strip() for line in lines]
    first = sum(label in ("사람", "person") for label in labels)
    assert asked == [found["num_labelled"]], "an empty text has no label"
    assert abs(found["label_agreement"] * found["num_labelled"] - first) <= 10 - found["num_labelled"]
    assert 0 < first < 10


def test_free_answers_outside_the_set_are_counted(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run[1]
    for name in ("cls", "nli"):
        assert results["tasks"][name]["free_answers"]["num"] == 10
    words = ["person", "사람", "", "persons"]
    monkeypatch.setattr(
        free_generation, "generate", lambda model, prompts, *rest: [(n % 4, True) for n in range(len(prompts))]
    )

    class Words:
        def convert_tokens_to_ids(self, token: str) -> int:
            return 0

        def decode(self, new: int, skip_special_tokens: bool) -> str:
            return f" {words[new]} "

    prompts = [
        EncodedPrompt(
            Row("", {}, (), "ko", ("person",) if n % 4 != 1 else ("사람",), (), None, ""), [1], "", [], None, 1
        )
        for n in range(8)
    ]
    assert free_generation.num_outside(None, Words(), TASKS["cls"], prompts, 100) == (4, 8)


def test_the_confusion_matrix_is_that_of_the_predictions(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    for name in ("cls", "nli"):
        task = results["tasks"][name]
        lines = [json.loads(x) for x in (folder / "predictions" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        pairs = [(line["prediction"], line["references"]) for line in lines]
        assert task["confusion"] == metrics.confusion(pairs, task["confusion"]["classes"])
        counts = task["confusion"]["counts"]
        right = sum(row[number] for number, row in enumerate(counts))
        assert right / len(lines) == pytest.approx(task["metrics"]["accuracy"]["value"], abs=1e-6)
    assert results["tasks"]["cls"]["confusion"]["classes"] == ["person", "animal", "place", "thing"]


def test_every_task_says_how_much_of_its_test_stands_in_train(run: tuple[Path, dict[str, Any]]) -> None:
    _, results = run
    for data in results["data"].values():
        assert data["contamination"]["num_test"] == data["num_rows"]
        assert data["contamination"]["num_duplicates"] == 0
        assert 0 <= data["contamination"]["overlap"] <= 1


def test_words_have_a_perplexity_where_answers_are_open(run: tuple[Path, dict[str, Any]]) -> None:
    _, results = run
    assert results["tasks"]["gen"]["metrics"]["word_perplexity"]["value"] > 1
    assert "word_perplexity" not in results["tasks"]["cls"]["metrics"]


SCRIPT = """
import datasets
import evaluate

class Upper(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"same": sum(p == r for p, r in zip(predictions, references)) / len(predictions)}
"""


def test_metrics_of_the_hub_stand_beside_ours(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = run
    script = tmp_path / "upper" / "upper.py"
    script.parent.mkdir()
    script.write_text(SCRIPT, "utf-8")
    found = api.evaluate(folder, tasks=["cls"], flags=[f"eval.hub_metrics=['{script}']"])["tasks"]["cls"]
    assert found["hub_metrics"] == {
        str(script): {"same": pytest.approx(found["metrics"]["accuracy"]["value"], abs=1e-6)}
    }


def test_a_first_metric_must_know_better_from_worse(tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(
        "from multitask.task import Task\n"
        "TASK = Task('tell', '{source}<|tell|>{translation}<|end|>', 'translation', metrics=('length',))\n",
        "utf-8",
    )
    with pytest.raises(InputError, match="task 'tell': its first metric is its score, and 'length' has no better"):
        api.train(settings("tell"), tasks_dirs=[tmp_path], out=tmp_path / "run")


def test_running_text_from_the_command_line(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = run
    text, out = tmp_path / "text.txt", tmp_path / "text.json"
    text.write_text("소란은 부산에 삽니다. Soran lives in Busan.\n" * 40, "utf-8")
    command = ["evaluate", str(folder), "--text", str(text), "--stride", "32", "--out", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text("utf-8"))["text"]
    assert (found["window"], found["stride"], found["file"]) == (128, 32, str(text))
    assert f"{found['perplexity']:,.4f}" in done.output
    overlapping = api.evaluate_text(folder, text, 128, 32)["text"]["perplexity"]
    assert overlapping == found["perplexity"]
    assert api.evaluate_text(folder, text)["text"]["num_windows"] < found["num_windows"]
    for wrong in (["--window", "64"], ["--stride", "3"]):
        failed = CliRunner().invoke(main, ["evaluate", str(folder), *wrong])
        assert failed.exit_code == 2
        assert "--window and --stride belong to --text FILE" in failed.output
    for wrong in (["--set", "eval.precision=bf16"], ["--tasks", "gen"], ["--max-rows", "3"]):
        refused = CliRunner().invoke(main, [*command, "--text", str(text), *wrong])
        assert refused.exit_code == 2
        assert f"{wrong[0]} is about rows of tasks" in refused.output
    failed = CliRunner().invoke(main, [*command, "--window", "8"])
    assert failed.exit_code == 2
    assert "a stride of 32 tokens: expected 1 to 8" in failed.output
