"""Prompts as a chat: turns, ids, where an answer begins and ends, and templates that cannot be used."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TASKS, WORDS, tokenizer_of
from helpers import CHATML, files, settings
from test_templates import lines, rows, source
from transformers import PreTrainedTokenizerFast

from multitask.config.evaluation import FewshotConfig
from multitask.config.loading import load
from multitask.config.run import RunConfig
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.evaluation.fewshot import fewshot
from multitask.evaluation.prompting.chat import Chat
from multitask.evaluation.prompting.templates import Style
from multitask.evaluation.prompts import PlainFormat
from multitask.task import Prompt, Task

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = CHATML.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)
SUMS = Task("sums", "{asked}<|is|>{sum}<|end|>", "sum", prompts={"en": Prompt("{asked}\nA:")}, metrics=("f1",),
            max_new_tokens=4)  # fmt: skip
Q = "<|im_start|>user\n{}<|im_end|>\n"
A = "<|im_start|>assistant\n"


def chatting(template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer_of("byte-level"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<s>"]})
    tokenizer.bos_token = "<s>"
    tokenizer.chat_template = template
    return tokenizer


def made(tokenizer: Any, task: Task = SUMS) -> PlainFormat:
    found = PlainFormat(task, tokenizer, 400, {0}, FewshotConfig(), Chat(tokenizer, "a model"))
    return found.with_styles({"en": Style(task.templates("en")[0], is_chat=True)})


def row(asked: str, answer: str) -> Row:
    return Row(asked, {"asked": asked, "sum": answer}, (answer,), "en", (), (), None, "rows:1")


def test_demonstrations_are_turns() -> None:
    tokenizer = chatting(CHATML)
    (prompt,) = made(tokenizer).encode([row("2+2", "4")], [[row("1+1", "2")]], 1)
    assert prompt is not None
    assert prompt.text == Q.format("1+1\nA:") + A + "2<|im_end|>\n" + Q.format("2+2\nA:") + A
    assert prompt.ids == tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "1+1\nA:"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "2+2\nA:"},
        ],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert prompt.target == tokenizer("4")["input_ids"], "the answer follows the header without a space"


def test_repetitions_of_a_segment_are_turns_too() -> None:
    task = Task("talk", "(<|ask|>{asked}<|is|>{sum}<|end|>)+", "sum", prompts={"en": Prompt("{asked}")},
                metrics=("f1",), max_new_tokens=4)  # fmt: skip
    tokenizer, shown = chatting(CHATML), replace(row("1+1", "2"), earlier=({"asked": "0+1", "sum": "1"},))
    asked = replace(row("4+4", "8"), earlier=({"asked": "2+2", "sum": "4"}, {"asked": "3+3", "sum": "6"}))
    (prompt,) = made(tokenizer, task).encode([asked], [[shown]], 1)
    assert prompt is not None
    turns = [("0+1", "1"), ("1+1", "2"), ("2+2", "4"), ("3+3", "6")]
    whole = "".join(f"{Q.format(question)}{A}{answer}<|im_end|>\n" for question, answer in turns)
    assert prompt.text == whole + Q.format("4+4") + A
    assert prompt.ids == tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    small = made(tokenizer, task)
    small.window = len(tokenizer(Q.format("3+3") + A + "6<|im_end|>\n" + Q.format("4+4") + A)["input_ids"]) + 4
    (prompt,) = small.encode([asked], [[shown]], 1)
    assert prompt is not None
    assert (prompt.demonstrations, prompt.is_truncated) == ((), True)
    assert prompt.text == Q.format("3+3") + A + "6<|im_end|>\n" + Q.format("4+4") + A, "the first turn is left out"


def test_an_answer_begins_and_ends_as_the_template_has_it() -> None:
    chatml, llama, thinking = (chatting(template) for template in (CHATML, LLAMA2, THINKING))
    assert Chat(chatml, "m").end_ids == {chatml.convert_tokens_to_ids("<|im_end|>")}
    assert made(chatml).end_ids == {0, chatml.convert_tokens_to_ids("<|im_end|>")}
    assert Chat(llama, "m").end_ids == {llama.eos_token_id}
    assert (Chat(llama, "m").space, Chat(chatml, "m").space) == (" ", "")
    (prompt,) = made(llama).encode([row("2+2", "4")], [[]], 0)
    assert prompt is not None
    assert prompt.text == "<s>[INST] 2+2\nA: [/INST]"
    assert prompt.ids.count(llama.bos_token_id) == 1, "not once more"
    assert [*prompt.ids, *(prompt.target or [])] == llama(prompt.text + " 4", add_special_tokens=False)["input_ids"]
    assert Chat(thinking, "m").text([], "q") == Q.format("q") + A + "<think>\n\n</think>\n\n"


def test_markers_in_a_message_stay_text() -> None:
    tokenizer = chatting(CHATML)
    (prompt,) = made(tokenizer).encode([row("2<|im_end|>", "4")], [[row("1+1", "2")]], 1)
    assert prompt is not None
    assert prompt.text.count("<|im_end|>") == 4
    assert list(prompt.ids).count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3
    assert tokenizer.decode(prompt.ids) == prompt.text


def run(model: Any, tokenizer: Any, task: Task, folder: Path, few: Any, **data: Any) -> dict[str, Any]:
    config = load(RunConfig, settings(task.name, fewshot=few, data={"sources": {task.name: [data]}}))
    results = fewshot(model, tokenizer, "some/model", {task.name: task}, config, folder / "r.json")
    found: dict[str, Any] = results.to_json()["tasks"][task.name]["per_shot"]
    return found


def test_auto_chooses_between_chat_and_text(tiny_model: Any, tmp_path: Path) -> None:
    tokenizer = chatting(CHATML)
    model = tiny_model(vocab_size=len(tokenizer), n_positions=512)
    data = source(tmp_path / "data")
    names = ["labelled", "question", "instruction"]
    chats = [f"{name} (chat)" for name in names]
    for given, expected in (("auto", [*names, *chats]), ("on", chats), ("off", names)):
        (shots,) = run(model, tokenizer, TASKS["cls"], tmp_path, {"shots": [0], "chat": given}, **data).values()
        assert list(shots["selection"]["en"]["templates"]) == expected
        is_chat = shots["selection"]["en"]["template"].endswith("(chat)")
        assert all(line["prompt"].endswith(A) == is_chat for line in lines(tmp_path, "cls.shots-0.draw-0.jsonl"))
    first = run(model, tokenizer, TASKS["cls"], tmp_path, {"shots": [0], "templates": "first"}, **data)
    assert first["0"]["selection"]["en"]["template"] == "labelled"
    assert len(rows()) > 0


def test_open_answers_end_with_the_turn(tiny_model: Any, tmp_path: Path) -> None:
    tokenizer = chatting(CHATML)
    model = tiny_model(vocab_size=len(tokenizer), n_positions=256)
    asked = [{"asked": word, "sum": word} for word in WORDS[:4]]
    data = files(tmp_path / "data", train=asked, validation=asked, test=asked)
    few = {"shots": [1], "draws": 1, "chat": "on"}
    shots = run(model, tokenizer, SUMS, tmp_path, few, **data)["1"]
    assert shots["selection"]["en"]["template"] == "prompt-1 (chat)"
    written = [line["completion"] for line in lines(tmp_path, "sums.shots-1.draw-0.jsonl")]
    assert all("<|im_end|>" not in text for text in written)
    json.dumps(written)


@pytest.mark.parametrize(
    ("template", "few", "message"),
    [
        (
            "{{ raise_exception('no system') }}",
            {},
            "some/model: its chat template cannot be used .*no system.*--chat off",
        ),
        ("{{ messages[0].role }}", {}, "it leaves out a question or an answer.*--chat off"),
        (None, {"chat": "on"}, "some/model: its tokenizer has no chat template.*--chat off"),
    ],
)
def test_templates_that_cannot_be_used(tiny_model: Any, tmp_path: Path, template: Any, few: Any, message: str) -> None:
    tokenizer = chatting(template)
    model = tiny_model(vocab_size=len(tokenizer), n_positions=256)
    with pytest.raises(InputError, match=message):
        run(model, tokenizer, TASKS["cls"], tmp_path, {"shots": [0]} | few, **source(tmp_path / "data"))
    run(model, tokenizer, TASKS["cls"], tmp_path, {"shots": [0], "chat": "off"}, **source(tmp_path / "data"))
