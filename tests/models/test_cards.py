"""Model cards: what a run says of its model, metadata that the hub can read, licence and base, moved or not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import FACTS, files, learned, settings, untrained
from huggingface_hub import ModelCard, ModelCardData

from multitask import train
from multitask.api import pretrain
from multitask.models import cards
from multitask.models.cards import Base, CardFacts, DataFacts, License, ScoreFacts, base_of
from multitask.registry import choose, load_tasks

TASKS = choose(load_tasks(), ["qa"])


def metadata(text: str) -> dict[str, Any]:
    """The head of a card; it is whole: read by huggingface_hub and written again, it stays the same."""
    head = yaml.safe_load(text.split("---\n")[1])
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert data.to_dict() == head
    assert isinstance(head, dict)
    return head


def test_a_card_has_scores_data_and_uses_of_its_run() -> None:
    text = (learned() / "model" / "README.md").read_text("utf-8")
    results = json.loads((learned() / "results.json").read_text("utf-8"))["tasks"]["qa"]
    head = metadata(text)
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation"
    assert head["language"] == ["en"]
    assert "license" not in head
    (entry,) = head["model-index"]
    assert entry["name"] == "learned"
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "test.jsonl", "type": "test.jsonl", "split": "test"}
    values = {one["name"]: (one["type"], one["value"]) for one in result["metrics"]}
    assert {name: value for name, (_, value) in values.items()} == {
        name: round(score["value"], 6) for name, score in results["metrics"].items()
    }
    assert values["word_perplexity"][0] == "perplexity"
    for line in (
        f"| qa | f1 | {results['metrics']['f1']['value']:.3f} | ",
        "6 of test |",
        "| qa | train.jsonl | 6 |",
        "- Base: none, trained from random weights",
        "- Licence: not stated; choose one before the model is passed on",
        "Intended: the tasks below",
        "Not intended: dialogue",
    ):
        assert line in text
    assert str(learned().parent) not in text, "names of folders are nobody's business"


def test_sections_are_those_of_the_hubs_template() -> None:
    import huggingface_hub

    template = (Path(huggingface_hub.__file__).parent / "templates" / "modelcard_template.md").read_text("utf-8")
    own = [line[3:].lower() for line in cards.card(TASKS, {}).splitlines() if line.startswith("## ")]
    theirs = template.lower()
    missing = [name for name in own if f"# {name}" not in theirs]
    assert missing == []
    assert "more information needed" not in cards.card(TASKS, {}).lower()


def test_a_model_of_plain_text_has_scores_too(tmp_path: Path) -> None:
    given = {
        "text": {"synthetic": {"train": 60, "validation": 10}},
        "tokenizer": {"vocab_size": 300},
        "model": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
        "train": {"max_steps": 1, "batch_tokens": 256, "micro_batch_tokens": 256},
        "device": "cpu",
    }
    pretrain(given, out=tmp_path / "run")
    text = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert {one["name"] for one in metadata(text)["model-index"][0]["results"][0]["metrics"]} >= {"perplexity"}
    assert "Intended: continuing texts like those of the training data" in text


def test_a_card_names_base_licence_and_sets_of_the_hub() -> None:
    base = Base("openai-community/gpt2", "openai-community/gpt2", License("mit"))
    score = ScoreFacts("qa", "exact_match", 0.25, 0.1, 0.4, "validation", 40, ("squad_kor_v1",), "0.010 (random_span)")
    facts = CardFacts(
        "mine", base, ("en", "ko"), None, (DataFacts("qa", ("squad_kor_v1",), 60_407, ("squad_kor_v1",)),), (score,)
    )
    text = cards.card(TASKS, {}, None, facts)
    head = metadata(text)
    assert head["base_model"] == "openai-community/gpt2"
    assert (head["license"], head["datasets"], head["language"]) == ("mit", ["squad_kor_v1"], ["en", "ko"])
    assert "- Base: [openai-community/gpt2](https://huggingface.co/openai-community/gpt2)" in text
    assert "- Licence: mit, that of the base" in text
    assert "| qa | exact_match | 0.250 | 0.100 - 0.400 | 0.010 (random_span) | 40 of validation |" in text
    assert "| qa | squad_kor_v1 | 60,407 |" in text
    own = cards.card(TASKS, {}, None, cards.with_license(facts, "apache-2.0"))
    assert metadata(own)["license"] == "apache-2.0"
    assert "- Licence: apache-2.0\n" in own
    unknown = cards.card(TASKS, {}, None, CardFacts("mine", Base("a/b", "a/b")))
    assert "- Licence: not stated here; that of the base, see its card" in unknown
    adapter = cards.card(TASKS, {}, 'FOLDER + "/../base"', facts)
    assert metadata(adapter)["library_name"] == "peft"


def test_a_base_is_known_from_its_card(tmp_path: Path) -> None:
    assert base_of(None) is None
    assert base_of("org/name") == Base("org/name", "org/name")
    assert base_of(str(learned())) == Base("learned", None, None, learned() / "model")
    assert base_of(str(learned() / "model")) == Base("learned", None, None, learned() / "model")
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://a.b/c\nbase_model: google/gemma\n---\n# x\n"
    )
    terms = License("other", "gemma", "https://a.b/c")
    assert base_of(str(tmp_path)) == Base(tmp_path.name, "google/gemma", terms, tmp_path)
    assert terms.text() == "[gemma](https://a.b/c)"
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    found = base_of(str(tmp_path))
    assert found is not None
    assert (found.hub_id, found.license) == (None, None)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_licence_of_a_base_goes_with_the_model(adapter: str, tmp_path: Path) -> None:
    base = untrained(tmp_path / "gemma", "qa")
    (base / "README.md").write_text("---\nlicense: gemma\nbase_model: google/gemma-3-270m\n---\n# x\n")
    (base / "GEMMA_TERMS.html").write_text("terms")
    source = files(tmp_path / "rows", train=FACTS, validation=FACTS, test=FACTS)
    given = settings(
        "qa",
        data={"sources": {"qa": [source]}},
        model={"name": str(base)},
        adapter={"kind": adapter},
        train={"max_steps": 1},
    )
    train(given, out=tmp_path / "run")
    folder = tmp_path / "run" / "model"
    text = (folder / "README.md").read_text("utf-8")
    head = metadata(text)
    assert (head["license"], head["base_model"]) == ("gemma", "google/gemma-3-270m")
    assert "- Base: gemma, a local model made from google/gemma-3-270m" in text
    assert (folder / "GEMMA_TERMS.html").read_text() == "terms"
    assert ("LoRA of rank 8" in text) == (adapter == "lora")
    assert not (folder / "config.yaml").exists()
