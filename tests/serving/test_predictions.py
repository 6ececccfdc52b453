"""Predictions over HTTP: those of `generate` and of scoring, whatever else is asked at the same time; the arms."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers import FOLDER, untrained
from serving_helpers import Server, lora_run, running, tuned_run

from multitask import api
from multitask.inference.scoring import choice_nll, probabilities
from multitask.serving.predictions import PromptedArm

SAMPLED: dict[str, Any] = {"temperature": 1.1, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    plain = untrained(tmp_path_factory.mktemp("models") / "plain", n_positions=512)
    loras = [lora_run("lora-one", tuned_run()), lora_run("second-lora", tuned_run()), lora_run("other", plain)]
    with running([tuned_run(), *loras, plain]) as found:
        yield found


def examples(server: Server, task: str) -> list[dict[str, str]]:
    (found,) = (one["examples"] for one in server.get("/v1/tasks")["tasks"] if one["name"] == task)
    assert len(found) >= 3
    return found


def test_tasks_have_fields_examples_choices_and_arms(server: Server) -> None:
    found = {one["name"]: one for one in server.get("/v1/tasks")["tasks"]}
    assert list(found) == ["cls", "summ", "gen"]
    cls, gen = found["cls"], found["gen"]
    assert cls["fields"] == [{"name": "text", "is_optional": False, "is_list": False}]
    assert gen["fields"] == [{"name": "label", "is_optional": True, "is_list": False}]
    assert cls["is_closed"]
    assert cls["choices"]
    assert all(len(words) > 1 for words in cls["choices"].values())
    assert cls["pattern"] == "{text}<|classify|>{label}<|end|>"
    arms = {arm["name"]: (arm["model"], arm["kind"], arm["shots"]) for arm in cls["arms"]}
    assert arms["served"] == ("served", "tuned", 0)
    assert arms["lora-one"] == ("lora-one", "lora", 0)
    assert arms["other-base 4-shot"] == ("other-base", "prompted", 4)
    assert arms["plain 0-shot"] == ("plain", "prompted", 0)
    assert next(iter(arms)) == "served", "trained models first"
    assert "other" not in {arm["name"] for arm in found["summ"]["arms"]}, "it was trained on another task"
    assert "lora-one 0-shot" not in arms, "its base is prompted"


@pytest.mark.parametrize("task", ["cls", "summ", "gen"])
@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_a_tuned_arm_answers_as_generate_does(server: Server, task: str, options: dict[str, Any]) -> None:
    rows = examples(server, task)
    found = server.predict(task, *rows, **options)
    expected = api.generate(tuned_run(), rows, task, **options)
    assert (found["task"], found["arm"]) == (task, "served")
    for one, other in zip(found["predictions"], expected, strict=True):
        for name in ("prediction", "completion", "prompt"):
            assert one[name] == other[name]
        assert one["finish_reason"] == ("stop" if other["is_finished"] else "length")
        assert (
            one["classes"] == pytest.approx(other["probabilities"], abs=1e-4) if task == "cls" else not one["classes"]
        )
        assert one["tokens"] is None


def test_concurrent_requests_have_the_answers_that_they_have_alone(server: Server) -> None:
    calls = []
    for number in range(24):
        task = ("cls", "summ", "gen")[number % 3]
        row = examples(server, task)[number % 3]
        calls.append((task, row, {**(SAMPLED if number % 2 else {}), "seed": number, "tokens": number % 5 == 0}))
        if number % 4 == 0:
            calls.append((task, row, {"arm": "plain 4-shot"}))

    def answer(call: tuple[str, dict[str, str], dict[str, Any]]) -> Any:
        (found,) = server.predict(call[0], call[1], **call[2])["predictions"]
        return {name: found[name] for name in ("prediction", "completion", "prompt", "demonstrations", "finish_reason")}

    alone = [answer(call) for call in calls]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(answer, calls))
    assert together == alone
    assert len({one["completion"] for one in alone}) > 8


def test_tokens_add_up_to_the_completion(server: Server) -> None:
    for arm, options in (("served", {"temperature": 1.5}), ("plain 4-shot", {})):
        row = examples(server, "gen")[0]
        (found,) = server.predict("gen", row, arm=arm, tokens=True, max_new_tokens=9, **options)["predictions"]
        tokens = found["tokens"]
        assert 0 < len(tokens) <= 9
        text = re.sub(r"\\x[0-9a-f]{2}", "", "".join(token["text"] for token in tokens))  # bytes of partial characters
        assert text.strip().startswith(found["completion"].replace("\N{REPLACEMENT CHARACTER}", "").strip())
        for token in tokens:
            assert token["logprob"] <= 0
            assert len(token["top"]) == 5
            assert [one["logprob"] for one in token["top"]] == sorted(
                (o["logprob"] for o in token["top"]), reverse=True
            )
            assert options or token["top"][0] == {"text": token["text"], "logprob": token["logprob"]}, "greedy"


def test_a_prompted_arm_shows_demonstrations_of_the_training_rows(server: Server) -> None:
    row = examples(server, "cls")[0]
    (zero,) = server.predict("cls", row, arm="served 0-shot")["predictions"]
    (four,) = server.predict("cls", row, arm="plain 4-shot")["predictions"]
    assert zero["demonstrations"] == []
    arm = server.tasks["cls"].arms["plain 4-shot"]
    assert isinstance(arm, PromptedArm)
    solved = {arm._format(8).solved(one) for rows in arm.drawn.values() for one in rows}
    assert 0 < len(four["demonstrations"]) <= 4
    assert set(four["demonstrations"]) <= solved
    assert four["prompt"].startswith(four["demonstrations"][0])
    assert row["text"].split()[0] in four["prompt"]
    assert sum(four["classes"].values()) == pytest.approx(1, abs=1e-4)
    assert four["prediction"] == max(four["classes"], key=four["classes"].__getitem__)


def test_probabilities_of_a_prompted_arm_are_those_of_its_choices(server: Server) -> None:
    arm = server.tasks["cls"].arms["plain 4-shot"]
    row = examples(server, "cls")[0]
    (found,) = server.predict("cls", row, arm=arm.name)["predictions"]
    words = list(found["classes"])
    tokenizer, model = arm.model.tokenizer, arm.model.model
    ids = tokenizer(found["prompt"], add_special_tokens=False)["input_ids"]
    choices = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    (nats,) = choice_nll(model, [(ids, choices)], 8192)
    assert list(found["classes"].values()) == pytest.approx(probabilities(nats)[0], abs=1e-3)


def test_a_stream_has_the_text_part_by_part_and_the_same_prediction(server: Server) -> None:
    num_parts = 0
    for task, arm in (("summ", "served"), ("summ", "plain 4-shot"), ("cls", "plain 0-shot")):
        row = examples(server, task)[0]
        body = {"rows": [row], "arm": arm, "stream": True, "tokens": True}
        *events, last = server.events(f"/v1/tasks/{task}/predict", body)
        assert last == "[DONE]"
        *parts, final = map(json.loads, events)
        (whole,) = server.predict(task, row, arm=arm, tokens=True)["predictions"]
        assert {**final["prediction"], "ms": 0} == {**whole, "ms": 0}
        assert [part["token"]["text"] for part in parts if part["token"]] == [
            token["text"] for token in whole["tokens"]
        ]
        assert "".join(part["text"] for part in parts).startswith(whole["completion"])
        if arm == "served":
            assert "".join(part["text"] for part in parts) == whole["completion"]
        num_parts += len(parts)
    assert num_parts > 20


def test_adapters_on_one_base_share_its_weights(server: Server) -> None:
    models = server.served.models
    assert list(models) == ["served", "lora-one", "second-lora", "other", "other-base", "plain"], "a base once"
    stored = {name: {p.data_ptr(): p.numel() for p in one.model.parameters()} for name, one in models.items()}
    base = stored["served"]
    for name in ("lora-one", "second-lora"):
        own = {pointer: size for pointer, size in stored[name].items() if pointer not in base}
        assert 0 < sum(own.values()) < 0.2 * sum(base.values()), "the adapter alone"
        row = examples(server, "cls")[0]
        (found,) = server.predict("cls", row, arm=name)["predictions"]
        (expected,) = api.generate(FOLDER / name, [row], "cls")
        assert found["classes"] == pytest.approx(expected["probabilities"], abs=1e-4)
    assert set(stored["lora-one"]) & set(stored["second-lora"]) <= set(base)
    assert not set(stored["plain"]) & set(base)
