import importlib.metadata
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tokenizer_of
from helpers import FACTS, FOLDER, files, learned, settings, untrained
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from multitask import evaluate, train
from multitask.config.run import RunConfig
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.evaluation import baselines, evaluator, results_file, tuned
from multitask.evaluation.baselines import Fitted
from multitask.evaluation.schema import Score, TaskScores
from multitask.inference.decoding import generate
from multitask.inference.scoring import choice_nll, choose
from multitask.models.bigram import BigramCounts
from multitask.models.io import load_trained
from multitask.pattern import parse
from multitask.registry import load_tasks
from multitask.tokenization.row_encoder import RowEncoder

ALL = ("gen", "summ", "nli", "qa", "cls")


@pytest.fixture(scope="module")
def run() -> tuple[Path, dict[str, Any]]:
    """A run of all five tasks and its results. Its steps are shorter than the model's window."""
    given = settings(*ALL, train={"max_steps": 2, "batch_tokens": 120, "eval_every_steps": 2})
    return FOLDER / "five", train(given, out=FOLDER / "five")


@pytest.fixture(scope="module")
def wild() -> GPT2LMHeadModel:
    """A random model of 50 tokens with strong opinions, so that no two logits tie."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(**shape, initializer_range=0.5, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def plain_nll(model: Any, ids: list[int], num_prompt: int) -> float:
    """Nats of everything after the prompt, by the model's own loss."""
    input_ids = torch.tensor([ids])
    labels = input_ids.clone()
    labels[:, :num_prompt] = -100
    with torch.no_grad():
        return float(model(input_ids, labels=labels).loss) * (len(ids) - num_prompt)


# ---------------------------------------------------------------- the same figures, however one comes to them


def test_evaluating_a_run_gives_what_training_gave(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, trained = run
    for model in (folder, folder / "model"):
        again = evaluate(model, out=tmp_path / "again.json")
        assert again["tasks"] == trained["tasks"]
    for name in ALL:
        predictions = (tmp_path / "again.json.predictions" / f"{name}.jsonl").read_text()
        assert predictions == (folder / "predictions" / f"{name}.jsonl").read_text()


def test_scoring_in_half_precision_is_near(run: tuple[Path, dict[str, Any]]) -> None:
    folder, trained = run
    halved = evaluate(folder, flags=["eval.precision=bf16"])
    assert halved["config"]["eval"]["precision"] == "bf16"
    for name in ALL:
        ours, exact = (results["tasks"][name]["metrics"]["perplexity"]["value"] for results in (halved, trained))
        assert ours != exact
        assert ours == pytest.approx(exact, rel=0.03)


def test_evaluating_a_run_does_not_encode_its_training_rows_again(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trained = run

    def encode(*_: Any, **__: Any) -> None:
        raise AssertionError("training rows are encoded")

    with monkeypatch.context() as patch:
        patch.setattr(tuned, "prepare", encode)
        assert evaluate(folder)["tasks"] == trained["tasks"]
        with pytest.raises(AssertionError, match="training rows are encoded"):
            evaluate(folder, flags=["data.limit=100"])  # baselines of other rows
    fewer = evaluate(folder, flags=["data.limit=100"])["tasks"]
    assert fewer["qa"]["baselines"]["bigram"] != trained["tasks"]["qa"]["baselines"]["bigram"]


def test_batches_and_chunks_change_nothing(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And no more rows than a chunk are in memory at a time."""
    folder, trained = run
    sizes: list[int] = []

    def counted(model: Any, rows: Any, batch_tokens: int) -> Any:
        sizes.append(len(rows))
        return choice_nll(model, rows, batch_tokens)

    monkeypatch.setattr(evaluator, "_CHUNK", 5)
    monkeypatch.setattr(evaluator, "choice_nll", counted)
    again = evaluate(folder, flags=["eval.batch_tokens=150"])
    assert max(sizes) == 5
    assert sum(sizes) == 16 * len(ALL)
    for name in ALL:
        for metric, score in trained["tasks"][name]["metrics"].items():
            # Sums of float32 in another order.
            assert again["tasks"][name]["metrics"][metric]["value"] == pytest.approx(score["value"], rel=1e-5)


def test_perplexity_is_the_models_own_loss(run: tuple[Path, dict[str, Any]]) -> None:
    folder, trained = run
    _, tokenizer = load_trained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    for name in ("nli", "qa"):
        assert trained["data"][name]["num_truncated"] == 0
        nats, tokens, num_bytes = 0.0, 0, 0
        for line in (folder / "predictions" / f"{name}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            answer = record["references"][0]
            prompt = tokenizer(record["prompt"])["input_ids"]
            ids = [*prompt, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            nll = plain_nll(plain, ids, len(prompt))
            assert record["nll"]["nll"] == pytest.approx(nll, rel=1e-4)
            assert record["nll"]["tokens"] == len(ids) - len(prompt)
            nats, tokens = nats + nll, tokens + len(ids) - len(prompt)
            num_bytes += len(answer.encode())
        metrics = trained["tasks"][name]["metrics"]
        assert metrics["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert metrics["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)


def test_choices_are_what_full_logits_pick(wild: GPT2LMHeadModel) -> None:
    """One of them the beginning of another: the end marker (49) decides between the two."""
    choices = [[6, 49], [6, 40, 49], [7, 8, 49]]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 49, int(length)).tolist() for length in rng.integers(1, 40, 60)]
    found = choose(wild, [(prompt, choices) for prompt in prompts], 100)
    for prompt, (chosen, nats) in zip(prompts, found, strict=True):
        expected = [plain_nll(wild, [*prompt, *choice], len(prompt)) for choice in choices]
        assert nats == pytest.approx(expected, rel=1e-4)
        assert chosen == int(np.argmin(expected))
    assert {chosen for chosen, _ in found} == {0, 1, 2}, "without the end marker the longer one is never chosen"


def test_rows_may_have_other_choices(wild: GPT2LMHeadModel) -> None:
    rows = [([1, 2], [[3, 49], [4, 49]]), ([1, 2], [[4, 49], [3, 49], [5, 49]])]
    (first, two), (second, three) = choose(wild, rows, 1000)
    assert two == pytest.approx([three[1], three[0]], rel=1e-5)
    assert len(three) == 3
    assert (first, second) == (int(np.argmin(two)), int(np.argmin(three)))


@pytest.mark.parametrize("kind", [list, lambda ids: np.array(ids, np.int32)])
def test_batched_decoding_is_one_by_one(wild: GPT2LMHeadModel, kind: Any) -> None:
    rng = np.random.default_rng(1)
    prompts = [kind(rng.integers(0, 50, int(length)).tolist()) for length in rng.integers(1, 52, 24)]
    together = generate(wild, prompts, 12, {7}, 100000)
    alone = [generate(wild, [prompt], 12, {7}, 1)[0] for prompt in prompts]
    assert together == alone == generate(wild, prompts, 12, {7}, 200)
    assert {finished for _, finished in alone} == {True, False}
    for prompt, (ids, finished) in zip(prompts, together, strict=True):
        everything = [int(i) for i in prompt]
        for _ in range(len(ids) + finished):  # greedy, by full logits
            with torch.no_grad():
                everything.append(int(wild(torch.tensor([everything])).logits[0, -1].argmax()))
        assert everything[len(prompt) :] == [*ids, *([7] if finished else [])]
        assert finished or len(ids) == 12


def test_decoding_leaves_the_model_as_it_was(wild: GPT2LMHeadModel) -> None:
    wild.train()
    wild.config._attn_implementation = "eager"
    generate(wild, [[1, 2]], 2, {7}, 100)
    assert wild.training
    assert wild.config._attn_implementation == "eager"
    wild.eval()


# ---------------------------------------------------------------- what a results file says


def test_the_results_file(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, trained = run
    evaluated = evaluate(folder, tasks=["nli", "qa"], out=tmp_path / "deep" / "er.json")
    assert json.loads((tmp_path / "deep" / "er.json").read_text("utf-8")) == evaluated
    assert json.loads((folder / "results.json").read_text("utf-8")) == trained
    assert list(evaluated["tasks"]) == ["nli", "qa"]
    for results, kind in ((trained, "train"), (evaluated, "evaluate")):
        assert {"schema", "kind", "arm", "model", "config", "versions", "seed", "data", "tasks", "cost"} <= set(results)
        assert (results["schema"], results["kind"], results["seed"]) == (2, kind, 7)
        assert {"wall_s", "tokens", "tokens_per_s", "peak_memory_bytes"} <= set(results["cost"])
        assert {"trainable_parameters", "total_parameters"} <= set(results["cost"])
        assert results["versions"]["torch"] == importlib.metadata.version("torch")
        for name, task in results["tasks"].items():
            data = results["data"][name]
            assert {"files", "sha256", "revision", "split", "num_rows", "num_truncated", "num_dropped"} <= set(data)
            assert {"num_skipped", "num_chars_lost"} <= set(data)
            assert (data["split"], data["num_rows"], task["num_examples"]) == ("test", 16, 16)
            first, *_ = load_tasks()[name].metrics
            assert {first, "perplexity", "bits_per_byte"} <= set(task["metrics"])
            assert task["baselines"].keys() == {*load_tasks()[name].baselines, "unigram", "bigram"}
            for scores in (task["metrics"], *task["baselines"].values()):
                for score in scores.values():
                    assert score["low"] <= score["value"] <= score["high"]
    parameters = sum(p.numel() for p in load_trained(folder)[0].parameters())
    assert trained["cost"]["total_parameters"] == evaluated["cost"]["total_parameters"] == parameters


def test_predictions(run: tuple[Path, dict[str, Any]]) -> None:
    folder, trained = run
    tasks = load_tasks()
    for name in ALL:
        records = [json.loads(line) for line in (folder / "predictions" / f"{name}.jsonl").open(encoding="utf-8")]
        assert [record["id"] for record in records] == [f"world-test-{n}" for n in range(16)]
        for record in records:
            assert {"id", "prompt", "completion", "prediction", "references", "scores"} <= set(record)
            *_, marker, _, _ = parse(tasks[name].stream)
            assert record["prompt"].endswith(marker.text) or name == "gen"
            if name in ("nli", "cls"):
                words = record["choice_nll"]
                assert record["completion"] == min(words, key=words.__getitem__)
                assert record["scores"]["accuracy"]["correct"] == (record["prediction"] in record["references"])
        if name in ("nli", "cls"):
            right = sum(record["scores"]["accuracy"]["correct"] for record in records)
            assert trained["tasks"][name]["metrics"]["accuracy"]["value"] == pytest.approx(right / 16)
    # Classes are compared by their name in any language: a Korean row's word and an English row's word are one class.
    records = [json.loads(line) for line in (folder / "predictions" / "cls.jsonl").open(encoding="utf-8")]
    assert {record["references"][0] for record in records} == {"person", "animal", "place", "thing"}
    assert {record["language"] for record in records} == {"ko", "en"}


def test_what_was_learned_by_heart_is_scored_so() -> None:
    results = json.loads((learned() / "results.json").read_text())["tasks"]["qa"]
    assert results["metrics"]["exact_match"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert results["metrics"]["perplexity"]["value"] < 1.1
    assert results["num_unfinished"] == 0


# ---------------------------------------------------------------- rows that do not fit


def test_a_target_longer_than_the_window_is_counted(tmp_path: Path) -> None:
    """Its prompt is answered and measured; its likelihood cannot be taken, and is left out rather than cut."""
    rows = [
        {"document": "One. Two.", "summary": "One."},
        {"document": "Three. Four.", "summary": "word " * 200},
        {"document": "Five. Six. " * 100, "summary": "Six."},
    ]
    model = untrained(tmp_path / "model", "summ")
    source = files(tmp_path, train=rows[:1], test=rows)
    given = settings("summ", data={"sources": {"summ": [source]}})
    results = evaluate(model, given, out=tmp_path / "out.json")
    task = results["tasks"]["summ"]
    assert (task["num_examples"], task["num_unscored"], results["data"]["summ"]["num_truncated"]) == (3, 1, 1)
    records = [json.loads(line) for line in (tmp_path / "out.json.predictions" / "summ.jsonl").open()]
    assert [bool(record["nll"]) for record in records] == [True, False, True]
    assert all("rougeL" in record["scores"] for record in records)
    without = files(tmp_path / "without", train=rows[:1], test=[rows[0], rows[2]])
    same = evaluate(model, settings("summ", data={"sources": {"summ": [without]}}))
    assert same["tasks"]["summ"]["metrics"]["perplexity"] == task["metrics"]["perplexity"]


def test_labels_of_more_tokens_than_an_answer_may_have(tmp_path: Path) -> None:
    """The prompt is truncated so that the longest label fits behind it, whatever the task's own `max_new_tokens`."""
    words = {"a": "a label of many bytes", "b": "b"}
    rows = [{"text": "One. Two. " * n, "label": label} for n in (1, 50) for label in "ab"]
    source = {**files(tmp_path, train=rows, test=rows), "labels": words}
    model = untrained(tmp_path / "model", "cls", n_positions=64)
    results = evaluate(model, settings("cls", data={"sources": {"cls": [source]}}))
    assert results["data"]["cls"]["num_truncated"] == 2
    assert results["tasks"]["cls"]["num_examples"] == 4
    assert results["tasks"]["cls"]["num_unscored"] == 0


def test_a_task_that_leaves_no_room_for_a_prompt_is_refused(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", "summ", n_positions=64)
    with pytest.raises(InputError, match=r"may answer with 96 tokens, the window has 64: .*raise train.block_size"):
        evaluate(model, settings("summ"))


# ---------------------------------------------------------------- baselines


def evaluated(tmp_path: Path, name: str, train_rows: Any, test_rows: Any, **source: Any) -> dict[str, Any]:
    """What a model that knows nothing scores, and what no model scores."""
    model = untrained(tmp_path / "model", name)
    given = {**files(tmp_path, train=train_rows, test=test_rows), **source}
    found: dict[str, Any] = evaluate(model, settings(name, data={"sources": {name: [given]}}))["tasks"][name]
    return found


def values(scores: dict[str, Any]) -> dict[str, float]:
    return {name: score["value"] for name, score in scores.items()}


def test_majority_by_hand(tmp_path: Path) -> None:
    """Of training, not of test: three `bad` there, and here 1 of 4. F1: bad 2*1/(4+1), good 0, mean 0.2."""
    rows = [{"text": f"row {n}", "label": label} for n, label in enumerate("0001")]
    test = [{"text": f"test {n}", "label": label} for n, label in enumerate("0111")]
    found = evaluated(tmp_path, "cls", rows, test, labels={0: "bad", 1: "good"})
    assert values(found["baselines"]["majority"]) == pytest.approx({"accuracy": 0.25, "macro_f1": 0.2})


def test_lead_by_hand(tmp_path: Path) -> None:
    """The first sentence has 2 of the 4 words of the summary: precision 1, recall 1/2; the first three have all."""
    row = {"document": "Red cat. Blue dog! Is it? Green fox.", "summary": "red cat blue dog"}
    found = evaluated(tmp_path, "summ", [row], [row])
    assert found["baselines"]["lead1"]["rouge1"]["value"] == pytest.approx(2 / 3)
    assert found["baselines"]["lead3"]["rouge1"]["value"] == pytest.approx(2 * (4 / 6) / (4 / 6 + 1))


@pytest.mark.parametrize(
    ("text", "num", "expected"),
    [
        ("One. Two. Three. Four.", 3, "One. Two. Three."),
        ("1.5 is a number. So is 2.", 1, "1.5 is a number."),
        ("왔다. 갔다? 봤다!", 2, "왔다. 갔다?"),
        ("一。二。三。", 2, "一。二。三。"),  # no white space behind: one sentence
        ("a heading\n\nA text.", 1, "a heading"),
        ("", 3, ""),
    ],
)
def test_sentences(text: str, num: int, expected: str) -> None:
    assert baselines.lead(text, num) == expected


def test_random_spans_are_drawn_from_the_seed() -> None:
    text = "a b c d e f g h"
    spans = [baselines.random_span(text, 3, number) for number in range(100)]
    assert spans == [baselines.random_span(text, 3, number) for number in range(100)]
    assert set(spans) == {text[n : n + 5] for n in range(0, 12, 2)}, "every place comes up"
    assert baselines.random_span("a b", 5, 0) == "a b"
    assert baselines.random_span("", 5, 0) == ""


def test_counted_floors_by_hand(tmp_path: Path) -> None:
    found = evaluated(tmp_path, "qa", FACTS[:4], FACTS[4:])
    _, tokenizer = load_trained(tmp_path / "model")
    encoder = RowEncoder(load_tasks()["qa"], tokenizer, 128)

    def targets(rows: Any) -> list[int]:
        return [target for _, target in pairs(rows)]

    def pairs(rows: Any) -> list[tuple[int, int]]:
        found = []
        for row in rows:
            fields = {"context": row["context"], "question": row["question"], "answer": row["answers"][0]}
            (example,) = encoder.encode([Row("1", fields, (), "en", (), (), None, "here:1")])
            assert example is not None
            found += list(pairwise(example.input_ids))[example.num_prompt - 1 :]
        return found

    seen, asked = Counter(targets(FACTS[:4])), targets(FACTS[4:])
    total = sum(seen.values()) + len(tokenizer)
    nats = sum(-math.log((seen[token] + 1) / total) for token in asked)
    assert found["baselines"]["unigram"]["perplexity"]["value"] == pytest.approx(math.exp(nats / len(asked)), rel=1e-5)
    counted = BigramCounts(*map(np.array, zip(*pairs(FACTS[:4]), strict=True)), len(tokenizer))
    nats = float(counted.bigram(*map(np.array, zip(*pairs(FACTS[4:]), strict=True))).sum())
    assert found["baselines"]["bigram"]["perplexity"]["value"] == pytest.approx(math.exp(nats / len(asked)), rel=1e-5)


def test_a_set_for_testing_only_has_no_baselines(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", "qa")
    given = settings("qa", data={"sources": {"qa": [files(tmp_path, test=FACTS)]}})
    assert evaluate(model, given)["tasks"]["qa"]["baselines"] == {}


def test_a_broken_training_file_is_no_set_for_testing_only(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", "qa")
    source = files(tmp_path, test=FACTS, train=[*FACTS, {"context": "", "question": "?", "answers": ["a"]}])
    with pytest.raises(InputError, match=r"train.jsonl:7: field 'context' is empty"):
        evaluate(model, settings("qa", data={"sources": {"qa": [source]}}))


# ---------------------------------------------------------------- what cannot be scored


def test_a_model_without_the_tasks_markers_is_refused(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", "qa")
    with pytest.raises(InputError, match=r"model: its tokenizer has no <\|sep\|>, .* of task 'nli'; .*was trained on"):
        evaluate(model, settings("nli"))


def test_a_model_of_broken_weights_is_refused(tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", "qa")
    model, _ = load_trained(folder)
    model.transformer.wte.weight.data[:] = math.nan
    model.save_pretrained(folder)
    with pytest.raises(InputError, match="the model gives no finite likelihood"):
        evaluate(folder, settings("qa"), out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_no_results_file_holds_a_nan(tmp_path: Path) -> None:
    scores = {"qa": TaskScores(metrics={"f1": Score(value=math.nan)})}
    results = results_file.results_of(RunConfig(), "evaluate", "tuned", "m", {}, scores)
    with pytest.raises(ValueError, match="not JSON compliant"):
        results_file.write_results(tmp_path / "out.json", results)
    assert not (tmp_path / "out.json").exists()


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        evaluate(tmp_path / "nothing", settings("qa"))


def test_the_majority_of_a_file_sorted_by_class() -> None:
    words = ["a"] * 8000 + ["b"] * 9000
    rows = (Row("", {"label": w}, (w,), "en", ("a", "b"), ("A", "B"), None, "") for w in words)
    assert Fitted(load_tasks()["cls"], rows).majority == "B"


def test_a_model_without_a_number_of_positions(tmp_path: Path) -> None:
    """ALiBi has no limit: the block size is that of the settings."""
    tokenizer = tokenizer_of("byte-level")
    shape = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)
    assert not hasattr(shape, "max_position_embeddings")
    torch.manual_seed(0)
    BloomForCausalLM(shape).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    results = evaluate(tmp_path / "bloom", settings("nli", "qa", eval={"max_rows": 3}))
    assert results["tasks"]["nli"]["num_examples"] == 3
    assert results["tasks"]["qa"]["metrics"]["perplexity"]["value"] > 1
