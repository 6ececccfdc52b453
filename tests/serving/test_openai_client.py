"""OpenAI's completions, with the `openai` client."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers import untrained
from serving_helpers import Server, running

from multitask import api
from multitask.inference.explanation import token_piece


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models") / "plain", "qa")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running([folder], api_key="a-key-of-these-tests") as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    base = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=base, api_key="a-key-of-these-tests", max_retries=0)


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "plain", "prompt": "Ada has", "temperature": 0, **options})


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["plain"]
    assert client.models.retrieve("plain").owned_by == "multitask"
    with pytest.raises(openai.NotFoundError, match="models: plain"):
        client.models.retrieve("other")


def test_a_completion_is_that_of_generate(client: openai.OpenAI, folder: Path) -> None:
    prompts = ["Ada has", "한 줄", "Ada has a red hat.<|question|>What?<|answer|>"]
    found = complete(client, prompt=prompts, max_tokens=20)
    expected = api.generate(folder, prompts, max_new_tokens=20)
    assert [choice.text for choice in found.choices] == [one["completion"] for one in expected]
    reasons = ["stop" if one["is_finished"] else "length" for one in expected]
    assert [choice.finish_reason for choice in found.choices] == reasons
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert found.usage.completion_tokens == sum(one["num_tokens"] for one in expected)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_seed_decides_the_samples(client: openai.OpenAI, folder: Path) -> None:
    options: dict[str, Any] = {
        "prompt": ["Ada has", "Ben"],
        "n": 3,
        "max_tokens": 12,
        "temperature": 1.2,
        "top_p": 0.95,
    }
    texts = [choice.text for choice in complete(client, **options, seed=3).choices]
    assert len(set(texts)) == 6
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(complete, client, **options, seed=seed) for seed in (3, 4, 3, 5, 3)]
        found = [[choice.text for choice in call.result().choices] for call in calls]
    assert found[0] == found[2] == found[4] == texts
    assert found[1] != texts
    expected = api.generate(
        folder, ["Ada has", "Ben"], num_samples=3, max_new_tokens=12, temperature=1.2, top_p=0.95, seed=3
    )
    assert texts == [one["completion"] for one in expected]
    without = [complete(client, **options).choices[0].text for _ in range(2)]
    assert without[0] != without[1], "without a seed another one each time"
    assert (
        complete(client, temperature=None, seed=1).choices[0].text
        == complete(client, temperature=1, seed=1).choices[0].text
    )


def test_log_probabilities(client: openai.OpenAI, server: Server) -> None:
    choice = complete(client, max_tokens=8, logprobs=3).choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 8
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert max(top, key=top.__getitem__) == token, "greedy"
        assert top[token] == logprob < 0
        assert 1 <= len(top) <= 3
    tokenizer = server.served.models["plain"].tokenizer
    assert set(found.tokens) <= {token_piece(tokenizer, i) for i in range(len(tokenizer))}
    assert complete(client, max_tokens=2).choices[0].logprobs is None


def test_a_stop_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=30).choices[0].text
    for start, end in ((4, 7), (10, 11), (2, 12)):
        stop = whole[start:end]
        found = complete(client, max_tokens=30, stop=[stop, "\0never"], logprobs=0).choices[0]
        assert found.text == whole[: whole.find(stop)]
        assert found.finish_reason == "stop"
        assert all(offset < len(found.text) for offset in found.logprobs.text_offset)
        events = list(complete(client, max_tokens=30, stop=stop, stream=True))
        assert "".join(event.choices[0].text for event in events) == found.text


def test_a_stream_is_the_text_in_parts(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"prompt": ["Ada has", "한 줄"], "n": 2, "temperature": 1.1, "seed": 2, "max_tokens": 15}
    whole = complete(client, **options, logprobs=2)
    events = list(complete(client, **options, logprobs=2, stream=True, stream_options={"include_usage": True}))
    assert events[-1].usage == whole.usage
    assert events[-1].choices == []
    assert len(events) > 20
    for choice in whole.choices:
        mine = [event.choices[0] for event in events[:-1] if event.choices[0].index == choice.index]
        assert "".join(part.text for part in mine) == choice.text
        assert [part.finish_reason for part in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        tokens = [token for part in mine for token in (part.logprobs.tokens if part.logprobs else [])]
        assert tokens == choice.logprobs.tokens
        offsets = [offset for part in mine for offset in (part.logprobs.text_offset if part.logprobs else [])]
        assert offsets == choice.logprobs.text_offset
    assert len({event.id for event in events}) == 1


def test_raw_events_end_with_done(server: Server) -> None:
    body = {"model": "plain", "prompt": "Ada", "max_tokens": 3, "stream": True}
    status, text, headers = server.request(
        "POST", "/v1/completions", json.dumps(body).encode(), {"Authorization": "Bearer a-key-of-these-tests"}
    )
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert text.endswith("data: [DONE]\n\n")


def test_errors_are_those_of_the_client(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'; models: plain"):
        complete(client, model="gpt-9")
    with pytest.raises(openai.BadRequestError, match="window") as caught:
        complete(client, max_tokens=4000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        complete(client, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="echo"):
        complete(client, echo=True)
    with pytest.raises(openai.BadRequestError, match="window"):
        list(complete(client, max_tokens=4000, stream=True))
    other = openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        complete(other)
