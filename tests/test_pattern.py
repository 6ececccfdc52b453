"""Patterns to pieces: markers, fields with the literal before them, optional fields, plain prompts."""

import pytest
from conftest import TASKS

from multitask.pattern import Piece, fields, markers, parse, render, render_plain, text_of
from multitask.task import Prompt, Task


def test_a_row_becomes_markers_and_fields_in_the_order_of_the_pattern() -> None:
    pieces = render(TASKS["nli"], {"premise": "A", "hypothesis": "B", "label": "neutral"})
    assert [(p.text, p.field, p.is_marker) for p in pieces] == [
        ("A", "premise", False),
        ("<|sep|>", None, True),
        ("B", "hypothesis", False),
        ("<|nli|>", None, True),
        ("neutral", "label", False),
        ("<|end|>", None, True),
    ]
    assert text_of(pieces) == "A<|sep|>B<|nli|>neutral<|end|>"


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("gen", {"label": "긍정", "text": "재밌다"}, "<|start|>긍정 재밌다<|end|>"),
        ("gen", {"text": "재밌다"}, "<|start|>재밌다<|end|>"),
        ("summ", {"document": "D", "summary": "S"}, "D<|summarize|>S<|end|>"),
        ("qa", {"context": "C", "question": "Q", "answer": "A"}, "C<|question|>Q<|answer|>A<|end|>"),
        ("cls", {"text": "T", "label": "L"}, "T<|classify|>L<|end|>"),
    ],
)
def test_the_patterns_are_those_promised(name: str, values: dict[str, str], text: str) -> None:
    assert text_of(render(TASKS[name], values)) == text
    target = TASKS[name].target
    without_target = {k: v for k, v in values.items() if k != target}
    prompt = text_of(render(TASKS[name], without_target, with_target=False))
    assert text.startswith(prompt)
    assert text.removeprefix(prompt).strip() == f"{values[target]}<|end|>"


def test_the_space_of_a_label_belongs_to_the_text() -> None:
    target = render(TASKS["gen"], {"label": "긍정", "text": "재밌다"})[2]
    assert target == Piece("재밌다", "text", " ")


def test_an_absent_optional_field_takes_the_text_around_it_along() -> None:
    before = Task("t", "<|a|>Kind: {kind}\n{text}<|b|>{out}<|end|>", "out", optional=("kind",))
    after = Task("t", "{kind} says: <|a|>{text}<|b|>{out}<|end|>", "out", optional=("kind",))
    values = {"text": "T", "out": "O"}
    assert text_of(render(before, values)) == "<|a|>T<|b|>O<|end|>"
    assert text_of(render(after, values)) == "<|a|>T<|b|>O<|end|>"
    assert text_of(render(after, {"kind": "K", **values})) == "K says: <|a|>T<|b|>O<|end|>"
    with pytest.raises(KeyError, match="text"):
        render(before, {"out": "O"})


def test_braces_and_markers_in_values_are_text() -> None:
    pieces = render(TASKS["cls"], {"text": "{label} <|end|> {}", "label": "L"})
    assert [p.is_marker for p in pieces] == [False, True, False, True]
    assert pieces[0].text == "{label} <|end|> {}"


def test_markers_of_several_tasks_stand_once_in_a_stable_order() -> None:
    chosen = {name: TASKS[name] for name in ("qa", "nli")}
    assert markers(chosen) == ["<|pad|>", "<|end|>", "<|sep|>", "<|nli|>", "<|question|>", "<|answer|>"]
    assert markers(chosen) == markers(dict(reversed(chosen.items())))
    assert len(markers(TASKS)) == len(set(markers(TASKS))) == 9


def test_parse_keeps_every_character_of_the_pattern() -> None:
    for pattern in [task.stream for task in TASKS.values()] + ["a {b} c<|d|> e {f}{g} h"]:
        rebuilt = "".join(p.literal + (f"{{{p.field}}}" if p.field else p.text) for p in parse(pattern))
        assert rebuilt == pattern
    assert fields("a {b} c<|d|> e {f}{g} h") == ("b", "f", "g")


def test_plain_prompts_come_in_the_language_of_the_row() -> None:
    values = {"text": "재밌다", "label": "긍정"}
    assert render_plain(TASKS["cls"], values, "ko") == "글: 재밌다\n분류:"
    assert render_plain(TASKS["cls"], values, "en") == "Text: 재밌다\nLabel:"
    only = Task("t", "{a}<|b|>{c}<|end|>", "c", prompts={"ko": Prompt("{a} ->")})
    assert render_plain(only, {"a": "{c}"}, "de") == "{c} ->"
