"""Conversations: every published form, every reply a target, first turns left out where the window ends."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_level
from helpers import ROOT, conversations, messages, write_rows
from torch import nn

from multitask.api import evaluate, generate, init, preview, train
from multitask.batching.collate import collate
from multitask.config.data import DataConfig, SourceConfig
from multitask.data.rows import Counts, Row, read_rows
from multitask.errors import InputError
from multitask.models.layers.attention import KERNELS
from multitask.models.loss import TokenNLL
from multitask.pattern import markers, render, render_plain, text_of
from multitask.registry import check, load_tasks
from multitask.tokenization.row_encoder import Encoded, RowEncoder, target_spans

CHAT = load_tasks([ROOT / "examples" / "tasks"])["chat"]
TOKENIZER = byte_level([], markers({"chat": CHAT}))


def read(folder: Path, *rows: dict[str, Any], **source: Any) -> list[Row]:
    name = write_rows(folder / "a.jsonl", rows)
    given = SourceConfig(files={"train": [name]}, **source)
    return list(read_rows(CHAT, given, "train", DataConfig(root=folder), Counts()))


def encoded(row: Row, block_size: int = 1000, max_answer_tokens: int | None = None) -> Encoded | None:
    (found,) = RowEncoder(CHAT, TOKENIZER, block_size, max_answer_tokens).encode([row])
    return found


FORMS = [
    {"messages": [{"role": "system", "content": "S"}, *messages("a", "b", "c", "d")]},
    {"messages": messages("a", "b", "c", "d"), "system": "S"},
    {"conversations": [{"from": "system", "value": "S"}]
     + [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate("abcd")]},
    {"messages": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages(*"abcd")],
     "system": "S"},
    {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]], "system": "S"},
    {"user": ["a", "c"], "reply": ["b", "d"], "system": "S"},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_is_the_same_row(tmp_path: Path, form: dict[str, Any]) -> None:
    (row,) = read(tmp_path, form)
    assert row.fields == {"system": "S", "user": "c", "reply": "d"}
    assert row.earlier == ({"user": "a", "reply": "b"},)
    assert row.references == ("d",)
    stream = text_of(render(CHAT, row.fields, earlier=row.earlier))
    assert stream == "S<|user|>a<|assistant|>b<|end|><|user|>c<|assistant|>d<|end|>"


def test_an_alpaca_row_is_one_turn(tmp_path: Path) -> None:
    first, second = read(
        tmp_path,
        {"instruction": "Translate", "input": "cat", "output": "고양이"},
        {"instruction": "Count", "input": None, "output": "1 2"},
    )
    assert (first.fields, first.earlier) == ({"user": "Translate\n\ncat", "reply": "고양이"}, ())
    assert second.fields == {"user": "Count", "reply": "1 2"}


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"messages": messages("a", "b", "c")}, r"a\.jsonl:1: the fields user, reply need a text each for every "
         r"repetition; user has 2, reply has 1"),
        ({"messages": messages("a", "b")[1:]}, "message 1 is of role 'assistant', expected 'user'"),
        ({"messages": [*messages("a"), *messages("b", "c")]}, "message 2 is of role 'user', expected 'assistant'"),
        ({"messages": [*messages("a"), {"role": "tool", "content": "x"}]}, "message 2 is of role 'tool'"),
        ({"messages": messages("a", " ")}, "message 2 is ' ', expected a text that is not empty"),
        ({"messages": []}, r"field 'messages' is '\[\]', expected a list of messages"),
        ({"messages": ["a", "b"]}, "message 1 is 'a', expected an object"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "expected a list of .user, reply."),
        ({"instruction": "a", "output": "b", "history": [["c", None]]}, "repetition 1: field 'reply' is null"),
        ({"instruction": "a"}, "user has 1, reply has 0|field 'reply' is missing"),
        ({"user": ["a", 3], "reply": ["b", "c"]}, "field 'user' is 3, expected text"),
        ({"user": [], "reply": []}, "user has 0, reply has 0"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_an_error_with_its_line(tmp_path: Path, row: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        read(tmp_path, row)
    good = {"messages": messages("a", "b")}
    assert len(read(tmp_path, row, good, on_bad_row="skip")) == 1


def test_every_reply_with_its_end_is_a_target(tmp_path: Path) -> None:
    turns = messages("첫 질문", "첫 답", "둘", "<|end|>라고 쓴 답", "셋", "끝")
    (row,) = read(tmp_path, {"messages": turns}, language="ko")
    found = encoded(row)
    assert found is not None
    spans = list(target_spans(found.borders, len(found.input_ids)))
    assert [TOKENIZER.decode(found.input_ids[a:b]) for a, b in spans] == [
        "첫 답<|end|>",
        "<|end|>라고 쓴 답<|end|>",
        "끝<|end|>",
    ]
    end = TOKENIZER.convert_tokens_to_ids("<|end|>")
    assert found.input_ids.count(end) == 3, "a typed marker stays text"
    whole = text_of(render(CHAT, row.fields, earlier=row.earlier))
    assert TOKENIZER.decode(found.input_ids) == whole


@pytest.mark.parametrize("layout", ["packed", "none"])
@pytest.mark.parametrize("prompt_weight", [0.0, 0.3])
def test_the_loss_is_that_of_every_reply(tiny_model: Any, tmp_path: Path, layout: Any, prompt_weight: float) -> None:
    """Against transformers' own logits of each conversation alone, masked by hand."""
    texts = [["a", "bc", "d", "e"], ["f", "g"], ["h", "ijk", "l", "m", "no", "p"]]
    examples = [
        ([i % 97 for i in one.input_ids], one.borders)
        for one in map(encoded, read(tmp_path, *({"messages": messages(*t)} for t in texts)))
        if one is not None
    ]
    model, reference = tiny_model(KERNELS["sdpa"]), tiny_model("eager")
    total = torch.zeros(())
    for ids, borders in examples:
        logits = reference(torch.tensor([ids])).logits[0, :-1]
        nll = nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        weights = torch.full((len(ids) - 1,), prompt_weight)
        for start, stop in pairwise([*borders, len(ids)]):
            if borders.index(start) % 2 == 0:
                weights[start - 1 : stop - 1] = 1.0
        total = total + (nll * weights).sum()
    total.backward()
    loss, nll = TokenNLL(model)(collate(examples, layout, prompt_weight))
    loss.backward()
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    for (name, found), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert found.grad is not None, name
        assert other.grad is not None, name
        torch.testing.assert_close(found.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_answer_tokens", [None, 4])
def test_first_turns_are_left_out_where_the_window_ends(tmp_path: Path, max_answer_tokens: int | None) -> None:
    texts = ["aaaa", "bbbb", "cccc", "dddd", "eeee", "fff"]
    (row,) = read(tmp_path, {"messages": messages(*texts), "system": "S"})
    whole = encoded(row)
    assert whole is not None
    assert not whole.is_truncated
    seen = set()
    for block_size in range(len(whole.input_ids), 0, -1):
        found = encoded(row, block_size, max_answer_tokens)
        if found is None:
            seen.add(None)
            continue
        num_turns = len(list(target_spans(found.borders, len(found.input_ids))))
        seen.add(num_turns)
        shorter = replace(row, earlier=row.earlier[3 - num_turns :])
        assert encoded(shorter) == found._replace(is_truncated=False), "as if the first turns had never been"
        assert found.is_truncated == (num_turns < 3)
        kept = found.num_prompt + 4 if max_answer_tokens else len(found.input_ids)
        assert kept <= block_size
    assert seen == {1, 2, 3, None}


def test_plain_prompts_hold_all_turns(tmp_path: Path) -> None:
    (row,) = read(tmp_path, FORMS[0])
    text = render_plain(CHAT, row.fields, "en", earlier=row.earlier)
    assert text == "S\nUser: a\nAssistant: b\nUser: c\nAssistant:"
    (row,) = read(tmp_path, {"messages": messages("a", "b")})
    assert render_plain(CHAT, row.fields, "ko") == "사용자: a\n도우미:"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"stream": "{system}(<|user|>{user}<|assistant|>{reply})+"}, "a repeated segment is"),
        ({"stream": "{system}({user}<|assistant|>{reply}<|end|>)+"}, "a repeated segment is"),
        (
            {"optional": ("system", "user")},
            "field 'user' stands in the repeated segment, where no field can be optional",
        ),
        ({"label": "reply"}, "field 'reply' stands in the repeated segment, where no field can be a label"),
    ],
)
def test_what_a_repeated_segment_cannot_be(change: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error.replace("(", r"\(")):
        check(replace(CHAT, **change), "chat", "here")


def test_from_conversations_to_a_score_and_a_reply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, folder = conversations(tmp_path), ROOT / "examples" / "tasks"
    found = preview(given, tasks_dirs=folder)
    assert found is not None
    capsys.readouterr()
    results = train(given, out=tmp_path / "run", tasks_dirs=folder)
    (line,) = (tmp_path / "run" / "predictions").glob("chat*.jsonl")
    first = json.loads(line.read_text("utf-8").splitlines()[0])
    assert first["prompt"].count("<|user|>") == 2
    assert results.to_frame().loc[lambda frame: frame.metric == "rougeL"].shape[0] == 1
    evaluate(tmp_path / "run", out=tmp_path / "again.json")
    answers = {
        json.dumps(prompt): generate(tmp_path / "run", [prompt], task="chat", max_new_tokens=4)
        for prompt in (
            {"messages": messages("w1", "w1!", "again v2")},
            {"user": ["w1", "again v2"], "reply": ["w1!"]},
            {"user": ["w1", "again v2"], "reply": ["w1!", "the target, which is not part of the prompt"]},
        )
    }
    assert len({str(answer) for answer in answers.values()}) == 1
    with pytest.raises(InputError, match="the last reply left out; user has 3, reply has 1"):
        generate(tmp_path / "run", [{"user": ["a", "b", "c"], "reply": ["d"]}], task="chat")
    with pytest.raises(InputError, match=r"field 'user' is missing.*message 1 is of role 'assistant'"):
        generate(tmp_path / "run", [{"messages": messages("a", "b")[1:]}], task="chat")


def test_init_finds_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for form in FORMS:
        write_rows(tmp_path / "talk.jsonl", [{**form, "id": str(n)} for n in range(40)])
        text, _ = init("talk.jsonl", overwrite=True, tasks_dirs=ROOT / "examples" / "tasks")
        assert "tasks: [chat]" in text
        assert "tasks_dirs: [" in text
    preview("talk.yaml")
