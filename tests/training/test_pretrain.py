"""Pretraining: what is read and predicted, resumed as uninterrupted, documents kept apart, and honest baselines."""

import json
import math
import os
import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FOLDER, TINY, furthest, lines, python, settings, snippet, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from multitask import train
from multitask.api import evaluate, evaluate_text, pretrain, report
from multitask.config.loading import load
from multitask.config.run import PretrainConfig
from multitask.errors import InputError, Interrupted
from multitask.training import checkpoint, loop
from multitask.training.lr_finder import _steepest

SHAPE = {name: size for name, size in TINY.items() if name != "vocab_size"}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def story(num_lines: int, seed: int = 0) -> str:
    """Lines that count up or down from a number on: what comes next is known from two words, not from one."""
    rng = np.random.default_rng(seed)
    text = []
    for start, length, way in rng.integers((0, 4, 0), (10, 9, 2), (num_lines, 3)).tolist():
        text.append(" ".join(WORDS[(start + (n if way else -n)) % 10] for n in range(length)) + ".\n")
    return "".join(text)


def held_out(text: str) -> list[str]:
    """The lines that hold the last tenth of all characters, line ends not counted; the first of them may be cut."""
    lines_of = text.splitlines()
    left = sum(map(len, lines_of)) - int(0.9 * sum(map(len, lines_of)))
    held: list[str] = []
    while left:
        held.insert(0, lines_of.pop()[-left:])
        left -= len(held[0])
    return held


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_loss", lambda *_: None)


def given(folder: Path, story_text: str | None = None, **sections: Any) -> dict[str, Any]:
    """Settings of a tiny run; each section is laid over that of the tiny run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "story.txt"
    path.write_text(story(400) if story_text is None else story_text, "utf-8")
    base: dict[str, Any] = {
        "device": "cpu",
        "text": {"files": {"train": str(path)}, "documents": "line", "cache": str(FOLDER / "cache")},
        "model": {**SHAPE, "n_positions": 96},
        "tokenizer": {"vocab_size": 280, "spare": 0},
        "train": {
            "batch_tokens": 128,
            "micro_batch_tokens": 64,
            "max_steps": 12,
            "block_size": 32,
            "log_every_steps": 2,
            "eval_every_steps": 4,
            "learning_rate": 3e-3,
            "precision": "fp32",
        },
        "sample_tokens": 5,
    }
    if sections.get("model", {}).get("arch") == "bigram":
        base["model"] = {"n_positions": 96}
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return base


def reloaded(run: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")


def test_what_a_run_leaves(tmp_path: Path) -> None:
    results = pretrain(given(tmp_path), out=tmp_path / "run")
    found = results["tasks"]["text"]
    assert set(found["metrics"]) == {"perplexity", "word_perplexity", "bits_per_byte"}
    assert set(found["baselines"]) == {"unigram", "bigram"}
    assert found["baselines"]["bigram"]["perplexity"]["value"] < found["baselines"]["unigram"]["perplexity"]["value"]
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["kind"] == "pretrain"
    validations = [line for line in lines(tmp_path / "run") if line["event"] == "validation"]
    assert [line["step"] for line in validations] == [4, 8, 12]
    assert all(line["sample"] for line in validations)
    assert results["data"]["text"]["split"] == "validation"
    assert results["data"]["text"]["num_characters"] == sum(map(len, held_out(story(400))))


def test_perplexity_is_that_of_every_validation_token_but_the_first(tmp_path: Path) -> None:
    results = pretrain(given(tmp_path), out=tmp_path / "run")
    model, tokenizer = reloaded(tmp_path / "run")
    ids = [i for line in held_out(story(400)) for i in [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]]
    total = 0.0
    for start in range(0, len(ids) - 1, 32):
        block = torch.tensor([ids[start : start + 33]])
        logits = model(block[:, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits.detach(), block[0, 1:], reduction="sum"))
    assert results["tasks"]["text"]["metrics"]["perplexity"]["value"] == pytest.approx(
        math.exp(total / (len(ids) - 1)), rel=1e-4
    )


def test_a_text_of_which_more_is_known_is_learned(tmp_path: Path) -> None:
    config = given(tmp_path, train={"max_steps": 300, "eval_every_steps": 50, "learning_rate": 1e-2})
    found = pretrain(config, out=tmp_path / "run")["tasks"]["text"]
    assert found["metrics"]["perplexity"]["high"] < found["baselines"]["bigram"]["perplexity"]["low"]
    assert any(word in found["sample"] for word in WORDS)


@pytest.mark.parametrize("way", [{"document_masking": True}, {"stride": 7}, {"blocks": "random"}])
def test_every_way_to_cut_blocks_learns(way: dict[str, Any], tmp_path: Path) -> None:
    first = lines_of_loss(tmp_path / "one", way, 30)
    assert first[-1] < first[0] - 1
    assert first == lines_of_loss(tmp_path / "two", way, 30), "the same seed, the same run"


def lines_of_loss(folder: Path, way: dict[str, Any], max_steps: int) -> list[float]:
    pretrain(given(folder, train={"max_steps": max_steps, "learning_rate": 1e-2, **way}), out=folder / "run")
    return [line["loss"]["text"] for line in lines(folder / "run") if line["event"] == "step"]


def test_isolated_documents_are_as_likely_as_each_alone(tmp_path: Path) -> None:
    config = given(tmp_path, train={"document_masking": True, "block_size": 32})
    results = pretrain(config, out=tmp_path / "run")
    model, tokenizer = reloaded(tmp_path / "run")
    documents = [[*tokenizer(line)["input_ids"], tokenizer.eos_token_id] for line in held_out(story(400))]
    ids = [i for document in documents for i in document]
    total, alone = 0.0, 0
    for start in range(0, len(ids) - 1, 32):
        block = ids[start : start + 33]
        edges = [0, *(n for n in range(1, len(block) - 1) if block[n] == tokenizer.eos_token_id), len(block) - 1]
        for one, other in pairwise(edges):
            piece = torch.tensor([block[one : other + 1]])
            total += float(model(piece, labels=piece).loss.detach()) * (other - one)
            alone += 1
    assert alone > 2 * len(ids) / 32, "documents do share blocks"
    found = results["tasks"]["text"]["metrics"]["perplexity"]["value"]
    assert found == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-4)


@pytest.mark.parametrize("change", [{"micro_batch_tokens": 32}, {"micro_batch_tokens": 4096}])
def test_how_a_step_is_divided_changes_nothing(change: dict[str, int], tmp_path: Path) -> None:
    few = {"max_steps": 4, "learning_rate": 5e-4}
    pretrain(given(tmp_path, train=few), out=tmp_path / "one")
    pretrain(given(tmp_path, train=few | change), out=tmp_path / "other")
    assert furthest(weights(tmp_path / "one" / "model"), weights(tmp_path / "other" / "model")) < 2e-5


def at(step: int, act: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    def report(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == step:
            act()

    return report


@pytest.mark.parametrize("blocks", ["grid", "random"])
def test_stopped_and_resumed_is_uninterrupted(blocks: str, tmp_path: Path) -> None:
    config = given(tmp_path, model={"dropout": 0.1}, train={"blocks": blocks, "save_every_steps": 5})
    whole = pretrain(config, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        pretrain(config, out=tmp_path / "run", report=at(6, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert checkpoint.newest(tmp_path / "run").name == "step-6"
    torch.manual_seed(5)
    again = pretrain(resume=tmp_path / "run")
    assert furthest(weights(tmp_path / "run" / "model"), weights(tmp_path / "whole" / "model")) == 0
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert again["tasks"] == whole["tasks"]


def test_a_bigram_model_comes_down_to_the_counted_entropy(tmp_path: Path) -> None:
    config = given(
        tmp_path, model={"arch": "bigram"}, train={"max_steps": 400, "learning_rate": 0.3, "schedule": "linear"}
    )
    results = pretrain(config, out=tmp_path / "run")
    found = results["tasks"]["text"]
    losses = [line["loss"]["text"] for line in lines(tmp_path / "run") if line["event"] == "step"]
    assert sum(losses[-20:]) / 20 == pytest.approx(found["bigram_entropy"], abs=0.03)
    counted = math.log(found["baselines"]["bigram"]["perplexity"]["value"])
    assert math.log(found["metrics"]["perplexity"]["value"]) == pytest.approx(counted, abs=0.05)


def test_it_goes_on_from_a_model_and_is_tuned_on_tasks(tmp_path: Path) -> None:
    first = pretrain(given(tmp_path / "a", train={"max_steps": 60}), out=tmp_path / "a" / "run")
    other = given(tmp_path / "b", story(300, seed=1), model={"name": str(tmp_path / "a" / "run")})
    second = pretrain(other, out=tmp_path / "b" / "run", flags=["train.learning_rate=1e-4"])
    began = next(line for line in lines(tmp_path / "b" / "run") if line["event"] == "step")
    assert began["loss"]["text"] < math.log(first["tasks"]["text"]["metrics"]["perplexity"]["value"]) + 0.5
    assert second["tasks"]["text"]["metrics"]["perplexity"]["value"] < 20
    config = settings("cls", model={"name": str(tmp_path / "b" / "run")}, train={"max_steps": 2})
    assert train(config, out=tmp_path / "tuned")["tasks"]["cls"]["num_examples"] == 16


def test_rates_are_tried_and_nothing_is_kept(tmp_path: Path) -> None:
    found = pretrain(given(tmp_path, train={"max_steps": 40}), out=tmp_path / "rates", find_learning_rate=True)
    assert sorted(path.name for path in (tmp_path / "rates").iterdir()) == ["learning_rate.json", "learning_rate.png"]
    rates, losses = found["learning_rate"], found["loss"]
    assert rates[0] == pytest.approx(1e-6)
    assert np.diff(np.log(rates)) == pytest.approx(math.log(1e6) / 39)
    assert 1e-4 < found["suggested"] < 0.5
    assert min(losses) < losses[0] - 0.2
    assert pretrain(given(tmp_path), out=tmp_path / "rates", find_learning_rate=True, flags=["train.max_steps=5"])
    with pytest.raises(InputError, match="expected at least 5 learning rates"):
        pretrain(given(tmp_path, train={"max_steps": 2}), out=tmp_path / "few", find_learning_rate=True)


def test_the_rate_is_sought_before_the_least_loss() -> None:
    """Behind it the weights have diverged; that they fall back steeply from there says nothing of learning."""
    losses = [9.0] * 10 + [8.5, 8.0, 7.0, 5.0, 4.0, 3.8, 3.8] + [30.0, 60.0, 60.0, 60.0, 20.0, 9.0, 9.0]
    rates = [10.0 ** (n / 4 - 6) for n in range(len(losses))]
    assert rates.index(_steepest(rates, losses)) in (12, 13)


def test_a_model_that_memorises_noise_overfits(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    noise = "".join(chr(97 + n) for n in np.random.default_rng(0).integers(0, 26, 1500))
    config = given(tmp_path, noise, train={"max_steps": 120, "eval_every_steps": 10, "learning_rate": 1e-2})
    pretrain(config | {"text": config["text"] | {"documents": "file"}}, out=tmp_path / "run", report=records.append)
    said = [record["text"] for record in records if record["event"] == "warning"]
    assert len(said) == 1
    assert "the validation loss has risen since step" in said[0]
    assert "the model overfits" in said[0]


@pytest.mark.parametrize(
    ("text", "sections", "said"),
    [
        ("", {}, r"story\.txt"),
        (
            "one two",
            {"tokenizer": {"vocab_size": None}},
            r"story\.txt.*\d+ tokens, a block needs 33; lower train\.block_size \(32\), or give more text",
        ),
        (None, {"model": {"name": "nowhere"}}, "nowhere: no such folder"),
        (None, {"train": {"block_size": 99}}, "train.block_size 99 is longer than the model's window of 96 positions"),
        (None, {"text": {"after": ""}, "train": {"document_masking": True}}, "nothing stands between documents"),
        (None, {"train": {"blocks": "random", "stride": 3}}, "stride belongs to `blocks: grid`"),
        (None, {"sample_prompt": "one two three four five " * 25}, "leave none in a window of 96"),
        (None, {"model": {"shape": "huge"}}, "model.shape"),
    ],
)
def test_bad_input(text: str | None, sections: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        pretrain(given(tmp_path, text, **sections), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Of the same size, so that only the ids tell."""
    pretrain(given(tmp_path / "a", train={"max_steps": 1}), out=tmp_path / "a" / "run")
    noise = "".join(chr(97 + n) for n in np.random.default_rng(0).integers(0, 26, 1500))
    pretrain(given(tmp_path / "b", noise, train={"max_steps": 1}), out=tmp_path / "b" / "run")
    both = {"name": str(tmp_path / "a" / "run"), "tokenizer": str(tmp_path / "b" / "run")}
    with pytest.raises(InputError, match=r"was not trained with this tokenizer: its tokens have other ids"):
        pretrain(given(tmp_path / "c", model=both), out=tmp_path / "c" / "run")
    both["tokenizer"] = both["name"]
    pretrain(given(tmp_path / "c", model=both, train={"max_steps": 1}), out=tmp_path / "c" / "run")


def test_other_text_does_not_go_on(tmp_path: Path) -> None:
    config = given(tmp_path, train={"save_every_steps": 4})
    pretrain(config, out=tmp_path / "run")
    given(tmp_path, story(300, seed=2))
    with pytest.raises(InputError, match=r"not what this run was started with: the data of text has another sha256"):
        pretrain(resume=tmp_path / "run", flags=["train.max_steps=14"])
    given(tmp_path)
    assert pretrain(resume=tmp_path / "run", flags=["train.max_steps=14"])["cost"]["steps"] == 14


def test_a_missing_text_leaves_the_run_that_it_would_replace(tmp_path: Path) -> None:
    pretrain(given(tmp_path, train={"max_steps": 1}), out=tmp_path / "run")
    with pytest.raises(InputError, match="no such file"):
        pretrain(given(tmp_path), files=[tmp_path / "nothing.txt"], out=tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"arch": "bigram", "n_layer": 2}, "n_layer: of arch gpt2, not of bigram, which has `hidden`: leave it out"),
        ({"arch": "bigram", "shape": "mini"}, "n_layer, n_head, n_embd: of arch gpt2"),
        ({"arch": "bigram", "dropout": 0.1}, "dropout: of arch gpt2"),
        ({"hidden": [8]}, "hidden: layers of arch bigram"),
    ],
)
def test_a_setting_of_the_other_kind_of_model_is_an_error(tmp_path: Path, model: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        pretrain(given(tmp_path, model=model), out=tmp_path / "run")


def test_files_alone_need_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given(tmp_path)
    flags = ["train.max_steps=2", "train.block_size=16", "sample_tokens=0", "device=cpu", "train.precision=fp32"]
    results = pretrain(files=[tmp_path / "story.txt"], out=tmp_path / "run", flags=flags)
    assert results["config"]["tokenizer"]["vocab_size"] is None
    assert results["data"]["text"]["files"] == [str(tmp_path / "story.txt")]


def test_a_named_shape_wins_over_sizes_of_a_file(tmp_path: Path) -> None:
    config = load(PretrainConfig, given(tmp_path), ["model.shape=mini", "model.n_layer=1"])
    assert (config.model.n_embd, config.model.n_positions, config.model.n_layer) == (256, 512, 1)


def test_runs_of_the_other_kind_are_named(tmp_path: Path) -> None:
    pretrain(given(tmp_path, train={"max_steps": 1}), out=tmp_path / "run")
    for other in (lambda: train(resume=tmp_path / "run"), lambda: evaluate(tmp_path / "run")):
        with pytest.raises(InputError, match=r"settings of `pretrain`.*`evaluate RUN --text FILE`"):
            other()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.yaml").write_text("tasks: [qa]\n")
    with pytest.raises(InputError, match="settings of `train`; for a plain text corpus a section `text` was expected"):
        pretrain(resume=tmp_path / "tuned")


def test_the_best_weights_are_kept_and_scored_on_the_whole_text(tmp_path: Path) -> None:
    """A text that is memorised: the end is not the best; during training one block is looked at, at the end all are."""
    noise = "".join(chr(97 + n) for n in np.random.default_rng(0).integers(0, 26, 1500))
    learns = {"max_steps": 120, "eval_every_steps": 20, "learning_rate": 1e-2, "schedule": "constant"}
    config = given(tmp_path, noise, train=learns, tokenizer={"vocab_size": None})
    config["text"]["documents"] = "file"
    found = pretrain(config, out=tmp_path / "run")
    losses = [line["loss"]["text"] for line in lines(tmp_path / "run") if line["event"] == "validation"]
    assert min(losses) < losses[-1] - 0.1
    perplexity = found["tasks"]["text"]["metrics"]["perplexity"]["value"]
    assert perplexity == pytest.approx(math.exp(min(losses)), rel=1e-3)
    few = pretrain(config, out=tmp_path / "few", flags=["train.eval_max_blocks=1", "train.max_steps=20"])
    (first,) = [line["loss"]["text"] for line in lines(tmp_path / "few") if line["event"] == "validation"]
    assert few["tasks"]["text"]["num_examples"] > 2
    assert first != pytest.approx(math.log(few["tasks"]["text"]["metrics"]["perplexity"]["value"]), abs=1e-3)


def test_scores_per_word_and_byte_are_of_the_whole_text(tmp_path: Path) -> None:
    text = "".join(f"가나다 {WORDS[n % 10]} 라마.\n" for n in range(300))
    results = pretrain(given(tmp_path, text), out=tmp_path / "run")
    held, scores = held_out(text), results["tasks"]["text"]["metrics"]
    report_ = results["data"]["text"]
    assert report_["num_bytes"] == sum(len(line.encode()) for line in held)
    assert report_["num_words"] == sum(len(line.split()) for line in held)
    nats = math.log(scores["perplexity"]["value"]) * report_["num_tokens"]
    assert scores["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / report_["num_bytes"], rel=1e-4)
    assert math.log(scores["word_perplexity"]["value"]) == pytest.approx(nats / report_["num_words"], rel=1e-4)


def test_samples_are_drawn_by_the_seed_and_end_where_documents_do(tmp_path: Path) -> None:
    told = [
        pretrain(given(tmp_path, seed=seed), out=tmp_path / str(seed))["tasks"]["text"]["sample"] for seed in (1, 2)
    ]
    assert told[0] != told[1]
    config = given(
        tmp_path, "a\n" * 2000, train={"max_steps": 60, "learning_rate": 1e-2}, tokenizer={"vocab_size": None}
    )
    config |= {"sample_prompt": "a", "sample_tokens": 40}
    assert pretrain(config, out=tmp_path / "short")["tasks"]["text"]["sample"].strip() == "a"


@pytest.mark.slow
def test_the_card_s_snippet_runs(tmp_path: Path) -> None:
    codes = []
    for arch in ("gpt2", "bigram"):
        pretrain(given(tmp_path, model={"arch": arch}, train={"max_steps": 1}), out=tmp_path / arch)
        codes.append(snippet(tmp_path / arch / "model").replace('"."  #', f'"{tmp_path / arch / "model"}"  #'))
    done = python("\n".join(codes))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) >= 2


def test_a_report_takes_texts(tmp_path: Path) -> None:
    """Two tokenizers, so bits per byte; a text scored in windows has other rows and stands apart."""
    for name, size in (("small", 260), ("large", 285)):
        pretrain(
            given(tmp_path / name, tokenizer={"vocab_size": size}, train={"max_steps": 20}),
            out=tmp_path / "runs" / name,
        )
        (tmp_path / "runs" / name / "results.json").write_text(
            (tmp_path / "runs" / name / "results.json").read_text().replace('"arm": "gpt2"', f'"arm": "{name}"')
        )
    told = report([tmp_path / "runs"], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert told["tasks"]["text"]["metric"] == "bits_per_byte"
    assert all(f"| {name} |" in page for name in ("small", "large", "bigram", "unigram"))
    held = tmp_path / "held.txt"
    held.write_text("\n".join(held_out(story(400))), "utf-8")
    for name in ("small", "large"):
        evaluate_text(tmp_path / "runs" / name, held, out=tmp_path / "texts" / f"{name}.json")
    told = report([tmp_path / "texts"], tmp_path / "report2")
    assert [arm["name"] for arm in told["arms"]] == ["large", "small"]
