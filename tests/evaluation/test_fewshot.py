"""Prompting an untuned model: every number again by a plain loop with transformers, and from the predictions files."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TASKS, WORDS, metaspace, tokenizer_of
from helpers import ROOT, files, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from multitask import api
from multitask.cli import main as cli_main
from multitask.config.loading import load
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, read
from multitask.data.synthetic import dataset
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.fewshot import fewshot
from multitask.evaluation.prompting.demonstrations import domain_texts
from multitask.pattern import render_plain
from multitask.registry import load_tasks
from multitask.task import Prompt, Task

EXAMPLES = ROOT / "examples" / "tasks"
RULES = ("raw", "per_token", "per_byte", "calibrated", "batch_calibrated", "domain_calibrated")
SUMS = Task(
    "sums",
    "{asked}<|is|>{sum}<|end|>",
    "sum",
    prompts={"en": Prompt("Q: {asked}\nA:")},
    metrics=("exact_match",),
    max_new_tokens=8,
)
Made = Callable[..., GPT2LMHeadModel]
Lines = list[dict[str, Any]]


@pytest.fixture
def model(tiny_model: Made) -> GPT2LMHeadModel:
    """A GPT-2 of firm but untaught opinions."""
    tokenizer = tokenizer_of("byte-level")
    return tiny_model(vocab_size=len(tokenizer), n_positions=512, eos_token_id=tokenizer.eos_token_id)


def config_of(*tasks: str, **sections: Any) -> RunConfig:
    return load(RunConfig, settings(*tasks, **sections))


def run(
    model: Any, tokenizer: Any, tasks: Mapping[str, Task] | str, folder: Path, **sections: Any
) -> tuple[dict[str, Any], Callable[..., Lines]]:
    """The results, and what finds the lines of one predictions file."""
    chosen = {tasks: TASKS[tasks]} if isinstance(tasks, str) else tasks
    sections["fewshot"] = {"templates": "first"} | sections.get("fewshot", {})
    config = config_of(*chosen, **sections)
    out = folder / "few.json"
    results = fewshot(model, tokenizer, "a model", chosen, config, out).to_json()
    (name,) = chosen

    def lines(shots: int, draw: int = 0) -> Lines:
        path = folder / "few.json.predictions" / f"{name}.shots-{shots}.draw-{draw}.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    return results, lines


def nats(model: Any, before: list[int], after: list[int]) -> float:
    """Of ids after others, by the model's own logits."""
    with torch.no_grad():
        logs = model(torch.tensor([[*before, *after]])).logits[0].double().log_softmax(-1)
    return -sum(float(logs[len(before) - 1 + at, token]) for at, token in enumerate(after))


def words_of(task: Task, language: str) -> list[str]:
    words = task.templates(language)[0].words
    return list(words) if words else [f" {kind[language]}" for kind in dataset.LABELS.values()]


def answers(model: Any, tokenizer: Any, prompt: str, words: Iterable[str]) -> list[float]:
    before = tokenizer(prompt)["input_ids"]
    found = []
    for word in words:
        whole = tokenizer(prompt + word)["input_ids"]
        assert whole[: len(before)] == before
        found.append(nats(model, before, whole[len(before) :]))
    return found


# ---------------------------------------------------------------- closed answers


@pytest.mark.parametrize("name", ["nli", "cls"])
@pytest.mark.parametrize("shots", [0, 2])
def test_choices_are_scored_as_a_plain_loop_scores_them(
    model: GPT2LMHeadModel, tmp_path: Path, name: str, shots: int
) -> None:
    """Likelihoods of every choice, and what each of the six rules predicts of them; Korean and English."""
    tokenizer, task = tokenizer_of("byte-level"), TASKS[name]
    fields = {f"world-test-{n}": row for n, row in enumerate(dataset.rows(_fields(task), "test", 8))}
    expected: dict[str, list[str]] = {rule: [] for rule in RULES}
    gold: list[str] = []
    for rule in RULES:
        folder = tmp_path / rule
        given = {"shots": [shots], "draws": 1, "rule": rule}
        results, lines = run(model, tokenizer, name, folder, fewshot=given, eval={"max_rows": 8})
        if not gold:
            logs = [-np.array(list(line["choice_nll"].values())) for line in lines(shots)]
            logs = [each - np.logaddexp.reduce(each) for each in logs]
            languages = [line["language"] for line in lines(shots)]
            texts = domain_texts(read(task, "train", config_of(name).data, Counts()), task, 7)
            for place, line in enumerate(lines(shots)):
                language, words = line["language"], words_of(task, line["language"])
                found = answers(model, tokenizer, line["prompt"], words)
                assert list(line["choice_nll"].values()) == pytest.approx(found, abs=1e-3)
                question = render_plain(task, fields[line["id"]], language)
                assert line["prompt"].endswith(question)
                lengths = [len(tokenizer(word)["input_ids"]) for word in words]
                ways = {
                    "raw": found,
                    "per_token": [n / length for n, length in zip(found, lengths, strict=True)],
                    "per_byte": [n / len(word.encode()) for n, word in zip(found, words, strict=True)],
                    "calibrated": calibrated(model, tokenizer, task, line, question, words, found),
                    "batch_calibrated": np.mean(
                        [each for each, of in zip(logs, languages, strict=True) if of == language], 0
                    )
                    - logs[place],
                    "domain_calibrated": calibrated(
                        model, tokenizer, task, line, question, words, found, texts[language]
                    ),
                }
                classes = task.choices or tuple(kind["en"] for kind in dataset.LABELS.values())
                for way, values in ways.items():
                    expected[way].append(classes[int(np.argmin(values))])
                (reference,) = line["references"]
                assert reference == fields[line["id"]]["label"]
                gold.append(reference)
        assert [line["prediction"] for line in lines(shots)] == expected[rule]
        assert {line["num_fitted"] for line in lines(shots)} == {shots}
        found_rules = results["tasks"][name]["per_shot"][str(shots)]["rules"]
        for way in {*expected} if rule == RULES[-1] else {rule}:
            right = fmean(p == g for p, g in zip(expected[way], gold, strict=True))
            assert found_rules[way]["mean"] == pytest.approx(right, abs=1e-6)
    assert expected["raw"] != expected["calibrated"], "calibration moved something"
    assert len({tuple(each) for each in expected.values()}) >= 3


def _fields(task: Task) -> frozenset[str]:
    return frozenset({"premise", "hypothesis", "label"} if task.name == "nli" else {"text", "label"})


def calibrated(
    model: Any,
    tokenizer: Any,
    task: Task,
    line: Mapping[str, Any],
    question: str,
    words: list[str],
    found: list[float],
    texts: Iterable[Mapping[str, str]] | None = None,
) -> list[float]:
    """Zhao et al. (2021), section 5: q = W p with W the inverse of the diagonal of the content-free p; here minus q.

    texts: fields of texts without content; None: theirs.
    """
    before = line["prompt"].removesuffix(question)
    shares = []
    for fields in texts or [
        {name: nothing for name in _fields(task) - {task.target}} for nothing in ("N/A", "", "[MASK]")
    ]:
        text = before + render_plain(task, fields, line["language"])
        likely = np.exp(-np.array(answers(model, tokenizer, text, words)))
        shares.append(likely / likely.sum())
    likely = np.exp(-np.array(found))
    return (-(np.linalg.inv(np.diag(np.mean(shares, 0))) @ (likely / likely.sum()))).tolist()


def test_calibration_knows_the_language_apart(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """The same words in two languages, whose prompts differ: each is corrected by its own."""
    tokenizer, task = tokenizer_of("byte-level"), TASKS["cls"]
    source = files(
        tmp_path / "data",
        test=[{"text": WORDS[n], "label": ("x", "y")[n % 2], "language": ("ko", "en")[n // 2 % 2]} for n in range(8)],
    ) | {"labels": {"x": "warm", "y": "a mat"}}
    given: dict[str, Any] = {"fewshot": {"shots": [0], "rule": "calibrated"}, "data": {"sources": {"cls": [source]}}}
    _, lines = run(model, tokenizer, "cls", tmp_path, **given)
    words = [" warm", " a mat"]
    for line in lines(0):
        found = answers(model, tokenizer, line["prompt"], words)
        values = calibrated(model, tokenizer, task, line, line["prompt"], words, found)
        assert line["prediction"] == ("warm", "a mat")[int(np.argmin(values))]


def test_bytes_are_counted_not_characters(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """A Korean syllable is three bytes; with the leading space, as the model is asked for it."""
    tokenizer, words = tokenizer_of("byte-level"), [" a mat", " 긍정"]
    source = files(tmp_path / "data", test=[{"text": word, "label": "x"} for word in WORDS])
    source |= {"labels": {"x": "a mat", "y": "긍정"}, "language": "en"}
    given: dict[str, Any] = {"fewshot": {"shots": [0], "rule": "per_byte"}, "data": {"sources": {"cls": [source]}}}
    _, lines = run(model, tokenizer, "cls", tmp_path, **given)
    by_byte, by_character = (
        [words[int(np.argmin(np.array([*line["choice_nll"].values()]) / sizes))].strip() for line in lines(0)]
        for sizes in ([6, 7], [6, 3])
    )
    assert [line["prediction"] for line in lines(0)] == by_byte != by_character


def test_a_choice_that_begins_another(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """Nothing ends an answer of an untuned model: a sum of nats favours the shorter one always, a mean need not."""
    tokenizer = tokenizer_of("byte-level")
    source = files(tmp_path / "data", test=[{"text": f"{w} {w}", "label": "x"} for w in WORDS]) | {
        "labels": {"x": "a mat", "y": "a mat while two dogs"},
        "language": "en",
    }
    predicted = {}
    for rule in RULES:
        given: dict[str, Any] = {"fewshot": {"shots": [0], "rule": rule}, "data": {"sources": {"cls": [source]}}}
        _, lines = run(model, tokenizer, "cls", tmp_path / rule, **given)
        predicted[rule] = {line["prediction"] for line in lines(0)}
        for line in lines(0):
            short, long = line["choice_nll"].values()
            assert short < long
            before = tokenizer(line["prompt"])["input_ids"]
            assert [short, long] == pytest.approx(
                answers(model, tokenizer, line["prompt"], [" a mat", " a mat while two dogs"]), abs=1e-3
            )
            assert before == tokenizer(line["prompt"] + " a mat")["input_ids"][: len(before)]
    assert predicted["raw"] == {"a mat"}
    assert "a mat while two dogs" in predicted["per_token"] | predicted["per_byte"] | predicted["calibrated"]


# ---------------------------------------------------------------- open answers


def test_answers_are_written_as_generate_writes_them(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    tokenizer, task = tokenizer_of("byte-level"), TASKS["qa"]
    results, lines = run(model, tokenizer, "qa", tmp_path, fewshot={"shots": [0]}, eval={"max_rows": 8})
    f1s, matches, told, tokens = [], [], 0.0, 0
    rows = list(dataset.rows(frozenset({"context", "question", "answer"}), "test", 8))
    for line, row in zip(lines(0), rows, strict=True):
        language = row["language"]
        prompt = render_plain(task, row, language)
        assert line["prompt"] == prompt
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=task.max_new_tokens, do_sample=False,
            pad_token_id=0, eos_token_id=tokenizer.eos_token_id,
        )[0, ids.shape[1] :]  # fmt: skip
        new = [token for token in written.tolist() if token != tokenizer.eos_token_id]
        text = tokenizer.decode(new)
        lead = text[: len(text) - len(text.lstrip())]
        assert line["completion"] == lead + text[len(lead) :].split("\n")[0]
        assert line["prediction"] == line["completion"].strip()
        for name, into in (("f1", f1s), ("exact_match", matches)):
            numbers = metrics.build(name, language).per_example(line["prediction"], [row["answer"]])
            assert line["scores"][name] == numbers
            into.append(numbers[name])
        after = tokenizer(f"{prompt} {row['answer']}")["input_ids"][ids.shape[1] :]
        told, tokens = told + nats(model, ids[0].tolist(), after), tokens + len(after)
    found = results["tasks"]["qa"]["per_shot"]["0"]["metrics"]
    assert found["f1"]["mean"] == pytest.approx(fmean(f1s), abs=1e-6)
    assert found["exact_match"]["mean"] == pytest.approx(fmean(matches), abs=1e-6)
    assert found["perplexity"]["mean"] == pytest.approx(math.exp(told / tokens), rel=1e-4)
    size = sum(len(row["answer"].encode()) for row in rows)
    assert found["bits_per_byte"]["mean"] == pytest.approx(told / math.log(2) / size, rel=1e-4)
    assert results["tasks"]["qa"]["per_shot"]["0"]["metric"] == "f1"


def scripted(tokenizer: PreTrainedTokenizerFast, script: list[int], num_positions: int = 64) -> GPT2LMHeadModel:
    """A GPT-2 without an eos that writes `script` over and over, by position alone."""
    from transformers import GPT2Config

    torch.manual_seed(0)
    size = len(tokenizer)
    shape = GPT2Config(vocab_size=size, n_layer=1, n_head=1, n_embd=32, n_positions=num_positions)
    shape.eos_token_id = shape.bos_token_id = None
    made = GPT2LMHeadModel(shape)
    made.generation_config.eos_token_id = made.generation_config.bos_token_id = None
    for name, weight in made.named_parameters():
        if "c_proj" in name:  # what blocks would add
            weight.data.zero_()
    said = torch.nn.functional.normalize(torch.randn(size, 32), dim=-1)
    made.transformer.wte.weight.data = said
    made.transformer.wpe.weight.data = 50 * said[torch.tensor(script)[torch.arange(num_positions) % len(script)]]
    return made.eval()


def numbers_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Reads digits and a few letters; without an eos. KoGPT2's kind drops newlines."""
    texts = ["Q: A: 0 1 2 3 4 5 6 7 8 9 + | a\n"] * 3
    if kind == "metaspace":
        made = metaspace("always")
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    made.train_from_iterator(texts, trainers.BpeTrainer(show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made)


SUM_ROWS = [{"asked": f"{n} + {n}", "sum": str(2 * n)} for n in range(1, 5)]


@pytest.mark.parametrize(
    ("kind", "script", "completions"),
    [
        ("byte-level", " 4\n", {" 4", "4", "\n 4"}),
        ("byte-level", " 4 Q: 5", {" 4 ", "4 ", " ", "", " 5 4 ", "5 4 ", ": 5 4 "}),
        ("metaspace", " 4 | 5", {"4", "5", "| 5 4", "| 5", "5 4", "54"}),
    ],
)
def test_a_model_without_an_eos_stops_at_the_line(
    tmp_path: Path, kind: str, script: str, completions: set[str]
) -> None:
    """Wherever in the script an answer begins; one that begins with a line break is what follows it."""
    tokenizer = numbers_tokenizer(kind)
    assert tokenizer.eos_token_id is None
    model = scripted(tokenizer, tokenizer(script)["input_ids"])
    source = files(tmp_path / "data", test=SUM_ROWS + [{"asked": "1 + 1 + " + "1 " * n, "sum": "9"} for n in range(6)])
    given: dict[str, Any] = {"fewshot": {"shots": [0]}, "data": {"sources": {"sums": [source]}}}
    results, lines = run(model, tokenizer, {"sums": SUMS}, tmp_path, **given)
    found = [line["completion"] for line in lines(0)]
    assert {*found} <= completions
    assert len(set(found)) > 1
    empty = [line for line in lines(0) if not line["prediction"]]
    assert bool(empty) == ("Q:" in script), "what begins with the next demonstration is empty, and counted"
    assert all(line["scores"] == {"exact_match": {"exact_match": 0.0, "count": 1.0}} for line in empty)
    assert results["tasks"]["sums"]["per_shot"]["0"]["num_unfinished"] == 0
    assert results["tasks"]["sums"]["per_shot"]["0"]["num_empty"] == len(empty)
    for line in lines(0):
        assert ("\n" in line["prompt"]) == (kind == "byte-level")
        assert (" | A:" in line["prompt"]) == (kind == "metaspace")
    assert results["tasks"]["sums"]["separator"] == ("\n\n" if kind == "byte-level" else " |  | ")
    json.dumps(results, allow_nan=False)


def test_an_answer_that_goes_on_is_counted(tmp_path: Path) -> None:
    tokenizer = numbers_tokenizer("byte-level")
    model = scripted(tokenizer, tokenizer("44")["input_ids"])
    given: dict[str, Any] = {"fewshot": {"shots": [0]}, "data": {"sources": {"sums": [files(tmp_path, test=SUM_ROWS)]}}}
    results, lines = run(model, tokenizer, {"sums": SUMS}, tmp_path, **given)
    assert {line["completion"] for line in lines(0)} == {"4" * 8}
    assert results["tasks"]["sums"]["per_shot"]["0"]["num_unfinished"] == 4


# ---------------------------------------------------------------- draws, means, intervals


def test_two_uncertainties_by_hand(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """The sd is over draws, the interval over rows, each row resampled with what all draws gave it."""
    given: dict[str, Any] = {"fewshot": {"shots": [0, 1], "draws": 3}, "eval": {"max_rows": 16, "num_bootstrap": 50}}
    results, lines = run(model, tokenizer_of("byte-level"), "cls", tmp_path, **given)
    for shots, draws in ((0, 1), (1, 3)):
        found = results["tasks"]["cls"]["per_shot"][str(shots)]
        right = np.array([[r["scores"]["accuracy"]["correct"] for r in lines(shots, d)] for d in range(draws)])
        by_draw = right.mean(1)
        assert found["metric"] == "accuracy"
        assert found["mean"] == pytest.approx(by_draw.mean(), abs=1e-6)
        assert found["sd"] == (pytest.approx(stdev(by_draw.tolist()), abs=1e-6) if draws > 1 else None)
        rng = np.random.default_rng(7)
        means = [right[:, rng.integers(16, size=16)].mean() for _ in range(50)]
        assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=1e-6)
        assert [(each["seed"], each["value"]) for each in found["draws"]] == [
            (turn, pytest.approx(value, abs=1e-6)) for turn, value in enumerate(by_draw)
        ]
        again = {key: found["metrics"]["accuracy"][key] for key in ("mean", "sd", "low", "high")}
        assert again == {key: found[key] for key in again}
        macro = [
            metrics.score(metrics.build("macro_f1", "en"), [r["scores"]["macro_f1"] for r in lines(shots, d)])
            for d in range(draws)
        ]
        assert found["metrics"]["macro_f1"]["mean"] == pytest.approx(fmean(macro), abs=1e-6)
    assert len(set(by_draw.tolist())) > 1
    assert all(a["prompt"] != b["prompt"] for a, b in zip(lines(1, 0), lines(1, 1), strict=True))


def test_rows_whose_answer_does_not_fit_stay_in_their_place(tiny_model: Made, tmp_path: Path) -> None:
    """Longer demonstrations leave less room, so other rows go unscored in each draw; a row stays one row."""
    tokenizer = tokenizer_of("byte-level")
    model = tiny_model(vocab_size=len(tokenizer), n_positions=64)
    task = replace(TASKS["gen"], max_new_tokens=4)
    rows = [{"text": " ".join(WORDS[n : n + 1 + 5 * (n % 4)]), "label": "x"} for n in range(16)]
    source = files(tmp_path / "data", train=rows[::-1], test=rows) | {"labels": {"x": "warm"}, "language": "en"}
    given: dict[str, Any] = {
        "fewshot": {"shots": [1], "draws": 3},
        "data": {"sources": {"gen": [source]}},
        "eval": {"num_bootstrap": 30},
    }
    results, lines = run(model, tokenizer, {"gen": task}, tmp_path, **given)
    found = results["tasks"]["gen"]["per_shot"]["1"]
    told = np.array([[line["nll"].get("nll", 0.0) for line in lines(1, d)] for d in range(3)])
    tokens = np.array([[line["nll"].get("tokens", 0.0) for line in lines(1, d)] for d in range(3)])
    missing = tokens == 0
    assert found["num_unscored"] == missing.sum() > 0
    assert len({tuple(each) for each in missing.tolist()}) > 1, "not the same rows in each draw"
    assert found["mean"] == pytest.approx(np.exp(told.sum(1) / tokens.sum(1)).mean(), rel=1e-5)
    rng = np.random.default_rng(7)
    means = []
    for _ in range(30):
        drawn = rng.integers(16, size=16)
        means.append(np.exp(told[:, drawn].sum(1) / np.maximum(tokens[:, drawn].sum(1), 1)).mean())
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), rel=1e-5)


def test_a_row_is_prompted_alike_whatever_is_beside_it(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """Fewer rows, smaller batches, other numbers of shots and draws: the same prompts, the same answers."""
    tokenizer = tokenizer_of("byte-level")
    shots = {"shots": [0, 1, 3], "draws": 2}
    many, all_lines = run(model, tokenizer, "nli", tmp_path / "many", fewshot=shots, eval={"max_rows": 12})
    fewer: dict[str, Any] = {"fewshot": {"shots": [3], "draws": 1}, "eval": {"max_rows": 5, "batch_tokens": 64}}
    few, lines = run(model, tokenizer, "nli", tmp_path / "few", **fewer)
    for one, other in zip(lines(3), all_lines(3), strict=False):
        assert one["choice_nll"] == pytest.approx(other["choice_nll"], abs=1e-3)
        assert {**one, "choice_nll": 0} == {**other, "choice_nll": 0}
    assert len(lines(3)) == few["data"]["nli"]["num_rows"] == 5
    assert many["data"]["nli"]["num_rows"] == 12
    for two in zip(all_lines(1), all_lines(3), strict=True):
        first, third = (line["prompt"].split("\n\n") for line in two)
        assert first[0] == third[0]
        assert first[-1] == third[-1]


def test_balanced_demonstrations_show_every_class(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    shown = {}
    for way in ("balanced", "random"):
        given: dict[str, Any] = {"fewshot": {"shots": [3], "draws": 4, "demonstrations": way}, "eval": {"max_rows": 4}}
        _, lines = run(model, tokenizer_of("byte-level"), "nli", tmp_path / way, **given)
        shown[way] = [
            len({part.splitlines()[-1] for part in line["prompt"].split("\n\n")[:-1]})
            for draw in range(4)
            for line in lines(3, draw)
        ]
    assert set(shown["balanced"]) == {3}
    assert min(shown["random"]) < 3


def test_demonstrations_come_from_train_and_never_from_the_row(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """Train and test are one file, each question once more in other case: no prompt holds its question twice."""
    rows = [{"id": f"i{n}", "asked": f"{word} is", "sum": word} for n, word in enumerate(["cat", "mat", "dogs", "ran"])]
    copies = [{"id": f"c{n}", "asked": row["asked"].upper(), "sum": "other"} for n, row in enumerate(rows)]
    source = files(tmp_path / "data", train=rows + copies, test=rows)
    given: dict[str, Any] = {"fewshot": {"shots": [8], "draws": 2}, "data": {"sources": {"sums": [source]}}}
    results, lines = run(model, tokenizer_of("byte-level"), {"sums": SUMS}, tmp_path, **given)
    for line in (*lines(8, 0), *lines(8, 1)):
        questions = [part.splitlines()[0].casefold() for part in line["prompt"].split("\n\n")]
        assert len(questions) == 7, "eight rows but for itself and its copy, and the question"
        assert questions.count(questions[-1]) == 1
        assert line["num_fitted"] == 6
    assert [draw["num_fitted"] for draw in results["tasks"]["sums"]["per_shot"]["8"]["draws"]] == [6, 6]


# ---------------------------------------------------------------- what does not fit


def test_refused_rows_are_counted(tiny_model: Made, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    model = tiny_model(vocab_size=len(tokenizer), n_positions=40)
    rows = [{"asked": "cat " * (1 + 40 * (n % 2)), "sum": "mat"} for n in range(6)]
    given: dict[str, Any] = {"data": {"sources": {"sums": [files(tmp_path / "data", train=rows, test=rows)]}}}
    results, lines = run(model, tokenizer, {"sums": SUMS}, tmp_path, fewshot={"shots": [0, 2], "draws": 1}, **given)
    data = results["data"]["sums"]
    assert (data["num_rows"], data["num_dropped"], data["num_truncated"]) == (3, 3, 0)
    assert len(lines(0)) == len(lines(2)) == results["tasks"]["sums"]["num_examples"] == 3
    with pytest.raises(
        InputError, match="sums', test: no question fits the model's window of 12 tokens, 6 were dropped"
    ):
        run(tiny_model(vocab_size=len(tokenizer), n_positions=12), tokenizer, {"sums": SUMS}, tmp_path,
            fewshot={"shots": [0]}, **given)  # fmt: skip
    with pytest.raises(
        InputError, match="task 'sums' may answer with 8 tokens, the model's window has 8: no tokens are left"
    ):
        run(tiny_model(n_positions=8), tokenizer, {"sums": SUMS}, tmp_path, **given)


def test_questions_are_cut_and_demonstrations_dropped(tiny_model: Made, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    model = tiny_model(vocab_size=len(tokenizer), n_positions=90)
    rows = [
        {"context": " ".join((WORDS * 3)[: 6 + 60 * (n == 3)]), "question": f"{word}?", "answers": [word]}
        for n, word in enumerate(WORDS[:6])
    ]
    given: dict[str, Any] = {"data": {"sources": {"qa": [files(tmp_path / "data", train=rows, test=rows)]}}}
    results, lines = run(model, tokenizer, "qa", tmp_path, fewshot={"shots": [4], "draws": 2}, **given)
    assert results["data"]["qa"]["num_truncated"] == 1
    (cut,) = (line for line in lines(4) if line["is_cut"])
    assert (cut["where"], cut["num_fitted"]) == (f"{tmp_path}/data/test.jsonl:4", 0)
    for draw, shown in enumerate(results["tasks"]["qa"]["per_shot"]["4"]["draws"]):
        assert shown["num_fitted"] == pytest.approx(fmean(line["num_fitted"] for line in lines(4, draw)), abs=1e-3)
        assert 0 < shown["num_fitted"] < 4
        assert all(len(tokenizer(line["prompt"])["input_ids"]) + 32 <= 90 for line in lines(4, draw))


@pytest.mark.parametrize(
    ("task", "sources", "message"),
    [
        (TASKS["cls"], {"test": []}, "there are no rows in it"),
        (SUMS, {"test": SUM_ROWS}, r"task 'sums' has no training rows to draw demonstrations from; give `files"),
        (SUMS, {"train": SUM_ROWS}, r"task 'sums' has no rows of the split 'test'; give `files: \{test: ...\}`"),
        (
            SUMS,
            {"train": SUM_ROWS, "test": [{**SUM_ROWS[0], "language": "ko"}]},
            r"test.jsonl:1: language 'ko', and no training row of task 'sums' has it",
        ),
        (replace(TASKS["nli"], prompts={}), {}, "task 'nli' has no plain prompts"),
        (replace(TASKS["nli"], metrics=("perplexity",)), {}, "closed answer set and no metric of what is chosen"),
        (replace(TASKS["nli"], metrics=("acuracy",)), {}, "task 'nli': no metric 'acuracy'; did you mean 'accuracy'"),
    ],
)
def test_what_cannot_be_prompted_says_so(
    model: GPT2LMHeadModel, tmp_path: Path, task: Task, sources: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"data": {"sources": {task.name: [files(tmp_path, **sources)]}}} if sources else {}
    shots = [0] if task.name == "cls" else [2]
    with pytest.raises(InputError, match=message):
        run(model, tokenizer_of("byte-level"), {task.name: task}, tmp_path, fewshot={"shots": shots}, **given)


@pytest.mark.parametrize("name", ["nli", "qa", "gen"])
def test_a_model_of_broken_weights_is_refused(model: GPT2LMHeadModel, tmp_path: Path, name: str) -> None:
    model.transformer.wte.weight.data[5] = float("nan")
    with pytest.raises(InputError, match="synthetic:test:1: the model gives no finite likelihood of this row's"):
        run(model, tokenizer_of("byte-level"), name, tmp_path, fewshot={"shots": [0]})


# ---------------------------------------------------------------- the results file


def test_the_results_file(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    def no_nan(found: str) -> None:
        raise AssertionError(found)

    chosen = {name: TASKS[name] for name in ("nli", "qa", "gen")}
    config = config_of(*chosen, fewshot={"shots": [0, 2], "draws": 2}, eval={"max_rows": 4})
    events: list[dict[str, Any]] = []
    results = fewshot(
        model, tokenizer_of("byte-level"), "a model", chosen, config, tmp_path / "r.json", events.append
    ).to_json()
    assert json.loads((tmp_path / "r.json").read_text("utf-8"), parse_constant=no_nan) == results
    assert {
        "schema", "kind", "arm", "model", "config", "versions", "seed", "data", "tasks", "cost"
    } <= results.keys()  # fmt: skip
    assert (results["schema"], results["kind"], results["model"]) == (2, "fewshot", {"name": "a model"})
    for name in chosen:
        data, task = results["data"][name], results["tasks"][name]
        assert {"files", "sha256", "revision", "split", "num_rows", "num_truncated", "num_dropped", "num_skipped"} <= {
            *data
        }
        assert data["num_chars_lost"] == 0
        assert len(data["sha256"]) == len(data["files"]) == 1
        assert task["num_examples"] == 4
        assert list(task["per_shot"]) == ["0", "2"]
        for shots, found in task["per_shot"].items():
            assert {"metric", "mean", "sd", "low", "high", "draws"} <= found.keys()
            assert found["metric"] == TASKS[name].metrics[0]
            assert len(found["draws"]) == (2 if shots == "2" else 1)
            assert all({"seed", "value", "num_fitted"} <= draw.keys() for draw in found["draws"])
            assert found["low"] <= found["high"]
    assert {"majority"} == set(results["tasks"]["nli"]["baselines"])
    assert set(results["cost"]) >= {"wall_s", "tokens", "tokens_per_s", "total_parameters"}
    assert {path.name for path in (tmp_path / "r.json.predictions").iterdir()} == {
        f"{name}.shots-{arm}.jsonl" for name in chosen for arm in ("0.draw-0", "2.draw-0", "2.draw-1")
    }
    assert [event["task"] for event in events if event["event"] == "task"] == ["nli", "qa", "gen"]


def test_characters_that_a_tokenizer_loses_are_counted(tmp_path: Path) -> None:
    tokenizer = numbers_tokenizer("metaspace")
    rows = [{"asked": "1 + 1 😀", "sum": "2"}, {"asked": "2 + 2", "sum": "4"}]
    given: dict[str, Any] = {"fewshot": {"shots": [0]}, "data": {"sources": {"sums": [files(tmp_path, test=rows)]}}}
    results, _ = run(scripted(tokenizer, [5]), tokenizer, {"sums": SUMS}, tmp_path, **given)
    assert results["data"]["sums"]["num_chars_lost"] >= 1


# ---------------------------------------------------------------- from a folder, from the command line


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of another architecture, whose tokenizer puts `<s>` before what it reads."""
    folder = tmp_path_factory.mktemp("llama")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=700, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_another_architecture_from_its_folder(llama: Path, tmp_path: Path) -> None:
    from multitask.models.io import load_causal

    given = settings("nli", "qa", fewshot={"shots": [0, 2], "draws": 1, "templates": "first"}, eval={"max_rows": 4})
    results = api.fewshot(llama, given, out=tmp_path / "r.json")
    assert results["model"]["name"] == str(llama)
    model, tokenizer = load_causal(str(llama))
    for shots in (0, 2):
        path = tmp_path / "r.json.predictions" / f"nli.shots-{shots}.draw-0.jsonl"
        for line in map(json.loads, path.read_text("utf-8").splitlines()):
            assert tokenizer(line["prompt"])["input_ids"][0] == tokenizer.bos_token_id
            found = answers(model, tokenizer, line["prompt"], words_of(TASKS["nli"], line["language"]))
            assert list(line["choice_nll"].values()) == pytest.approx(found, abs=1e-3)
            assert line["num_fitted"] == shots


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli_main.main, ["fewshot", *map(str, arguments)])


def test_the_command(llama: Path, tmp_path: Path) -> None:
    given = ("--model", llama, "--tasks", "cls,arithmetic,closed_qa", "--tasks-dir", EXAMPLES, "--set", "device=cpu")
    out = tmp_path / "out" / "few.json"
    few = ("--shots", "0,2", "--draws", "2", "--max-rows", "8", "--set", "eval.num_bootstrap=20", "--balanced")
    result = command(*given, *few, "--out", out)
    assert result.exit_code == 0, result.output
    for shown in ("sd over draws", "95 % over rows", "arithmetic", "closed_qa", "majority"):
        assert shown in result.output
    results = json.loads(out.read_text("utf-8"))
    assert list(results["tasks"]) == ["cls", "arithmetic", "closed_qa"]
    assert results["config"]["fewshot"]["demonstrations"] == "balanced"
    for name in results["tasks"]:
        assert results["tasks"][name]["num_examples"] == 8
        assert (out.parent / "few.json.predictions" / f"{name}.shots-2.draw-1.jsonl").exists()
    lines = (out.parent / "few.json.predictions" / "arithmetic.shots-2.draw-0.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["prompt"].count("더하기") for line in lines] == [3, 0] * 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--shots", "0,two"), "fewshot.shots.1: Input should be a valid integer"),
        (("--shots", "-1"), "a number of demonstrations cannot be negative, found -1"),
        (("--shots", ""), "fewshot.shots: List should have at least 1 item"),
        (("--draws", "0"), "fewshot.draws: Input should be greater than or equal to 1"),
        (("--tasks", "nil"), "unknown task 'nil'; did you mean 'nli'?"),
        (("--set", "fewshot.rule=row"), "fewshot.rule: Input should be 'best', 'raw', 'per_token'"),
        (("--set", "fewshot.shot=[0]"), "fewshot.shot: no such setting; did you mean 'shots'?"),
    ],
)
def test_wrong_words_end_with_a_message(given: tuple[str, ...], message: str, llama: Path) -> None:
    result = command("--model", llama, *given)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    result = command("--model", tmp_path / "nowhere", "--tasks", "nli", "--shots", "0")
    assert result.exit_code == 2
    assert f"{tmp_path / 'nowhere'}: no such folder" in result.stderr


# ---------------------------------------------------------------- the two experiments


def test_no_sum_of_test_is_in_train() -> None:
    fields = frozenset({"first", "second", "sum"})
    pairs = {
        split: {frozenset((row["first"], row["second"])) for row in dataset.rows(fields, split, 2000)}
        for split in ("train", "validation", "test")
    }
    assert all(len(each) > 300 for each in pairs.values())
    for one, other in pairwise((*pairs.values(), pairs["train"])):
        assert not one & other
    for row in dataset.rows(fields, "test", 200):
        assert len(row["first"]) == len(row["second"]) == 2
        assert int(row["first"]) + int(row["second"]) == int(row["sum"])


def test_closed_questions_ask_of_those_whom_train_tells_of() -> None:
    fields = frozenset({"question", "answer"})
    asked = {
        split: {row["question"]: row["answer"] for row in dataset.rows(fields, split, 1000)}
        for split in ("train", "validation", "test")
    }
    for one, other in pairwise((*asked.values(), asked["train"])):
        assert not one.keys() & other.keys()
    for question, answer in list(asked["test"].items())[:100]:
        facts = [
            one.value(attribute, language)
            for name in dataset.names("train")
            if name[0] in question or name[1] in question
            for one in (dataset.Being(kind, name) for kind in dataset.LABELS)
            for attribute in dataset.ATTRIBUTES
            for language in dataset.LANGUAGES
            if one.ask(attribute, language) == question
        ]
        assert facts == [answer], "one being of train, one fact"


def test_files_of_qa_serve_without_their_passages(tmp_path: Path) -> None:
    task = load_tasks([EXAMPLES])["closed_qa"]
    rows = [
        {
            "context": "Ada has a cat.",
            "question": "What has Ada?",
            "answers": ["a cat", "cat"],
            "answer_start": [8, 10],
        },
        {"question": "What has Ben?", "answer": "a dog"},
    ]
    source = files(tmp_path / "data", test=rows)
    tokenizer = tokenizer_of("byte-level")
    given: dict[str, Any] = {"fewshot": {"shots": [0]}, "data": {"sources": {"closed_qa": [source]}}}
    _, lines = run(scripted(tokenizer, [5]), tokenizer, {"closed_qa": task}, tmp_path, **given)
    assert [line["prompt"] for line in lines(0)] == ["Q: What has Ada?\nA:", "Q: What has Ben?\nA:"]
    assert [line["references"] for line in lines(0)] == [["a cat", "cat"], ["a dog"]]
    other = files(tmp_path / "other", test=[{"question": "Who?", "text": "Ada"}]) | {"columns": {"answer": "text"}}
    given["data"] = {"sources": {"closed_qa": [other]}}
    assert run(scripted(tokenizer, [5]), tokenizer, {"closed_qa": task}, tmp_path, **given)[1](0)[0]["references"] == [
        "Ada"
    ]
    given["data"] = {"sources": {"closed_qa": [files(tmp_path / "bad", test=[{"question": "Who?", "answers": []}])]}}
    with pytest.raises(InputError, match=r"test.jsonl:1: field 'answers' \(or 'answer'\) is \[\], expected a text or"):
        run(scripted(tokenizer, [5]), tokenizer, {"closed_qa": task}, tmp_path, **given)


def test_prompting_in_half_precision_is_near(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    tokenizer, found = tokenizer_of("byte-level"), {}
    for precision in ("fp32", "bf16"):
        few = {"shots": [0], "templates": "first"}
        results, lines = run(
            model, tokenizer, "cls", tmp_path / precision, fewshot=few, eval={"precision": precision, "max_rows": 8}
        )
        assert results["config"]["eval"]["precision"] == precision
        assert next(model.parameters()).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        found[precision] = [list(line["choice_nll"].values()) for line in lines(0)]
    assert found["bf16"] != found["fp32"]
    for ours, exact in zip(found["bf16"], found["fp32"], strict=True):
        assert ours == pytest.approx(exact, rel=0.05)
