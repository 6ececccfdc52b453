"""Pieces to ids: the same as the tokenizer's own reading, markers by id, cuts in one field only."""

import random
from collections import Counter
from typing import Any

import pytest
from conftest import KINDS, TASKS, byte_level, make_row, metaspace, random_fields, random_text, tokenizer_of
from tokenizers import trainers
from transformers import PreTrainedTokenizerFast

from multitask.config.data import DataConfig, SourceConfig
from multitask.errors import InputError
from multitask.pattern import markers, parse, render, text_of
from multitask.task import Task
from multitask.tokenization.row_encoder import Encoded, RowEncoder, with_answer_tokens
from multitask.tokenization.tokenizer import add_markers, lost_characters, probe_identity, whole_text


class Recorder:
    """Stands in for the encoder's plain tokenizer and remembers the texts of cut fields."""

    def __init__(self, plain: Any) -> None:
        self.plain, self.seen = plain, [""]
        self.encode_batch, self.encode_batch_fast = plain.encode_batch, plain.encode_batch_fast

    def encode(self, text: str, **options: Any) -> Any:
        self.seen.append(text)
        return self.plain.encode(text, **options)


def one(encoder: RowEncoder, fields: dict[str, str], keep: tuple[int, int] | None = None) -> Encoded:
    """The example of a row that fits."""
    (example,) = encoder.encode([make_row(encoder.task, fields, keep)])
    assert example is not None
    return example


@pytest.mark.parametrize("name", TASKS)
def test_the_tokenizer_reads_the_rendered_string_as_we_do(any_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    task, rng = TASKS[name], random.Random(name)
    encoder = RowEncoder(task, any_tokenizer, block_size=500)
    for _ in range(40):
        fields = random_fields(task, rng)
        if task.optional and rng.random() < 0.5:
            del fields[task.optional[0]]
        pieces = render(task, fields)
        example = one(encoder, fields)
        assert example.input_ids == any_tokenizer(text_of(pieces), add_special_tokens=False)["input_ids"]
        prompt = text_of(render(task, fields, with_target=False))
        assert example.input_ids[: example.num_prompt] == any_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert not example.is_truncated


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.truncate])
def test_the_tokenizer_reads_cut_rows_as_we_do(any_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    task, rng = TASKS[name], random.Random(name)
    assert task.truncate is not None
    for max_answer_tokens in (None, 12):
        encoder = RowEncoder(task, any_tokenizer, block_size=90, max_answer_tokens=max_answer_tokens)
        encoder.plain = recorder = Recorder(encoder.plain)  # type: ignore[assignment]
        num_truncated = 0
        for _ in range(30):
            fields = random_fields(task, rng, cut_words=200)
            (example,) = encoder.encode([make_row(task, fields)])
            if example is None:  # the other fields alone fill the window
                continue
            assert example.is_truncated
            num_truncated += 1
            assert recorder.seen[-1] in fields[task.truncate]
            rendered = text_of(render(task, fields | {task.truncate: recorder.seen[-1]}))
            assert example.input_ids == any_tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert num_truncated >= 20


@pytest.mark.parametrize("name", TASKS)
def test_markers_typed_into_texts_stay_text(any_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    task, rng = TASKS[name], random.Random(name)
    special = [*markers(TASKS), *filter(None, [any_tokenizer.unk_token, "</s>"])]
    for cut_words, block_size in [(4, 2000), (400, 1000)]:
        fields = {
            field: value if field == task.label else " ".join([value, *rng.sample(special, len(special))])
            for field, value in random_fields(task, rng, cut_words).items()
        }
        (example,) = RowEncoder(task, any_tokenizer, block_size).encode([make_row(task, fields)])
        assert example is not None
        ids = Counter(example.input_ids)
        expected = Counter(piece.text for piece in parse(task.stream) if piece.is_marker)
        for marker in markers(TASKS):
            assert ids[any_tokenizer.convert_tokens_to_ids(marker)] == expected[marker], marker
        assert ids[any_tokenizer.convert_tokens_to_ids("</s>")] == 0 or "</s>" not in any_tokenizer.get_vocab()


def test_bytes_come_back_as_they_were(tokenizer: PreTrainedTokenizerFast) -> None:
    fields = {"text": "줄\n바꿈  <|end|>😀", "label": "긍정"}
    example = one(RowEncoder(TASKS["cls"], tokenizer, 100), fields)
    assert tokenizer.decode(example.input_ids) == text_of(render(TASKS["cls"], fields))
    assert tokenizer.decode(example.input_ids[example.num_prompt :]) == "긍정<|end|>"


def test_truncation_and_padding_left_on_by_others_do_not_reach_rows() -> None:
    used = byte_level([], markers(TASKS))
    used(["a", "a longer one"], padding=True, truncation=True, max_length=3)
    fields = {"text": "twenty letters, or more", "label": "긍정"}
    fresh = byte_level([], markers(TASKS))
    assert one(RowEncoder(TASKS["cls"], used, 100), fields) == one(RowEncoder(TASKS["cls"], fresh, 100), fields)


def test_a_row_without_a_prompt_or_a_target_is_refused() -> None:
    tokenizer = tokenizer_of("metaspace")
    pair = Task("pair", "{a} {b}<|end|>", "b", cut="a")
    encoder = RowEncoder(pair, tokenizer, 50)
    assert encoder.encode([make_row(pair, {"a": "\n", "b": "the cat"})]) == [None]  # nothing is left of the prompt
    cls = RowEncoder(TASKS["cls"], tokenizer, 50)
    assert cls.encode([make_row(TASKS["cls"], {"text": "the cat", "label": "\n"})]) == [None]


# ---------------------------------------------------------------- cuts


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.truncate])
def test_only_the_cut_field_gets_shorter(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    task, rng = TASKS[name], random.Random(name)
    assert task.truncate is not None
    for _ in range(30):
        fields = random_fields(task, rng, cut_words=80)
        whole = one(RowEncoder(task, tokenizer, 10_000), fields)
        cut = one(RowEncoder(task, tokenizer, 128), fields)
        assert (whole.is_truncated, cut.is_truncated) == (False, True)
        assert 128 - 4 <= len(cut.input_ids) <= 128, "the window is used: a cut inside a character costs its bytes"
        # In all four patterns the field to cut is the first.
        at = whole.input_ids.index(tokenizer.convert_tokens_to_ids(next(p.text for p in parse(task.stream)[1:])))
        rest = whole.input_ids[at:]
        assert cut.input_ids[-len(rest) :] == rest
        assert tokenizer.decode(cut.input_ids[: -len(rest)]) in fields[task.truncate]
        assert len(cut.input_ids) - cut.num_prompt == len(whole.input_ids) - whole.num_prompt > 1


@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_the_answer_inside_the_window_wherever_it_lies(kind: str) -> None:
    tokenizer, rng, task = tokenizer_of(kind), random.Random(3), TASKS["qa"]
    encoder = RowEncoder(task, tokenizer, block_size=100)
    at_marker = tokenizer.convert_tokens_to_ids("<|question|>")
    num_moved = num_at_start = num_first = 0
    for turn in range(150):
        context = random_text(rng, 200, odd=kind == "byte-level")
        length = rng.randint(1, 25)
        # Also at both ends; an answer may begin and end inside a word.
        start = [0, len(context) - length, rng.randrange(len(context) - length)][min(turn, 2)]
        answer = context[start : start + length]
        if not answer.strip():
            continue
        fields = {"context": context, "question": "the cat", "answer": answer}
        example = one(encoder, fields, (start, start + length))
        kept = tokenizer.decode(example.input_ids[: example.input_ids.index(at_marker)])
        squeeze = (lambda text: text) if kind == "byte-level" else (lambda text: "".join(text.split()))
        assert squeeze(answer) in squeeze(kept)
        assert len(example.input_ids) <= 100
        if squeeze(context).startswith(squeeze(kept)):
            num_at_start += 1
        else:
            num_moved += 1
            num_first += squeeze(kept).startswith(squeeze(answer))
    assert num_moved > 80
    assert num_at_start > 10
    assert num_first < num_moved / 5, "there is text before it: the place must not give the answer away"


def test_text_before_the_cut_field_stays_when_its_beginning_goes(tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task("t", "<|start|>Passage: {context}<|answer|>{answer}<|end|>", "answer", cut="context")
    context = "the cat sat on a mat " * 30 + "두 마리"
    example = one(
        RowEncoder(task, tokenizer, 60), {"context": context, "answer": "두"}, (len(context) - 4, len(context))
    )
    text = tokenizer.decode(example.input_ids)
    assert text.startswith("<|start|>Passage: ")
    assert text.endswith("두 마리<|answer|>두<|end|>")


def test_an_answer_longer_than_the_window_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    context = "the cat sat on a mat " * 30
    row = make_row(TASKS["qa"], {"context": context, "question": "?", "answer": "cat"}, (0, 400))
    assert RowEncoder(TASKS["qa"], tokenizer, 40).encode([row]) == [None]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.truncate])
def test_evaluation_is_blind_and_leaves_room_for_the_answer(any_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    task, rng = TASKS[name], random.Random(name)
    assert task.truncate is not None
    encoder = RowEncoder(task, any_tokenizer, block_size=100, max_answer_tokens=30)
    num_truncated = 0
    for _ in range(30):
        fields = random_fields(task, rng, cut_words=rng.choice([3, 80]))
        end = len(fields[task.truncate])
        blind = one(encoder, fields)
        whole = one(RowEncoder(task, any_tokenizer, 10_000), fields)
        assert one(encoder, fields, (end - 1, end)) == blind
        other = one(encoder, fields | {task.target: "another, much longer answer " * 9})
        assert other.input_ids[: other.num_prompt] == blind.input_ids[: blind.num_prompt]
        assert blind.num_prompt <= 100 - 30
        num_truncated += blind.is_truncated
        if blind.is_truncated:
            assert blind.num_prompt > 100 - 30 - 8, "little more is cut than must be"
            assert blind.input_ids[:20] == whole.input_ids[:20], "cut at the end"
    assert 5 < num_truncated < 25


def test_the_target_is_never_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    summary = "the dogs ran far away " * 10
    fields = {"document": "the cat sat " * 50, "summary": summary}
    fits = one(RowEncoder(TASKS["summ"], tokenizer, 90), fields)
    assert tokenizer.decode(fits.input_ids[fits.num_prompt :]) == f"{summary}<|end|>"
    num_target = len(fits.input_ids) - fits.num_prompt
    row = make_row(TASKS["summ"], fields)
    assert RowEncoder(TASKS["summ"], tokenizer, num_target + 1).encode([row]) == [None]
    # Blind evaluation knows no target, so a long one stays whole; whether it can be scored is for the scorer to say.
    blind = one(RowEncoder(TASKS["summ"], tokenizer, num_target, max_answer_tokens=10), fields)
    assert blind.input_ids[blind.num_prompt :] == fits.input_ids[fits.num_prompt :]


def test_a_text_too_long_to_generate_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [make_row(TASKS["gen"], {"text": text}, number=n) for n, text in enumerate(["the cat", "the cat " * 50])]
    short, long = RowEncoder(TASKS["gen"], tokenizer, 40).encode(rows)
    assert short is not None
    assert long is None


# ---------------------------------------------------------------- what a tokenizer loses


def lost(kind: str, *texts: str) -> dict[str, int]:
    tokenizer = tokenizer_of(kind)
    return dict(lost_characters(texts, tokenizer, RowEncoder(TASKS["cls"], tokenizer, 10).plain))


def test_characters_that_vanish_without_an_unknown_token_are_named() -> None:
    text = "the cat\nsat 😀 on a mat 😀"
    tokenizer = tokenizer_of("metaspace")
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], "counting unknown ids would show nothing"
    assert lost("metaspace", text, "the cat") == {"\n": 1, "😀": 2}
    assert lost("metaspace", "the cat\n sat", "the\ncat") == {"\n": 2}, "also beside a space"
    assert lost("metaspace", "the cat\n", "\nthe cat") == {}, "at the ends nothing is missed"


def test_nothing_is_lost_on_bytes_or_by_folding() -> None:
    assert lost("byte-level", "줄\n바꿈  😀 e\u0301 <|end|>", " the cat ") == {}
    assert lost("our-own", "줄\n바꿈  😀 e\u0301 <|end|>", " the cat ") == {}
    assert lost("metaspace", "  the cat  sat\u00a0on ", "고양이가") == {}
    assert lost("wordpiece", "the  cat sat") == {}
    assert lost("wordpiece", "the 😀\ncat") == {"😀": 1, "\n": 1}


def test_a_tokenizer_that_reads_text_after_a_marker_otherwise_is_refused() -> None:
    made = {}
    for scheme in ("first", "always"):
        raw = metaspace(scheme)
        raw.train_from_iterator(["한 줄 text two 세 번째"] * 9, trainers.BpeTrainer(special_tokens=["</s>"]))
        made[scheme] = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
        add_markers(made[scheme], markers(TASKS))
    probe_identity(made["always"], markers(TASKS))
    with pytest.raises(InputError, match=r"otherwise than the same text alone.*use another tokenizer"):
        probe_identity(made["first"], markers(TASKS))


# ---------------------------------------------------------------- tokens of a closed answer


def test_a_closed_answer_has_the_tokens_of_its_longest_label(tokenizer: PreTrainedTokenizerFast) -> None:
    """Labels of more tokens than the task's own budget were cut in half in free answers."""
    words = {"0": "긍정", "1": {"ko": "긍정 아님", "en": "not"}, "2": {"ko": "긍정도 부정도 아님", "en": "neither"}}
    data = DataConfig(sources={"cls": [SourceConfig(files={"train": ["a"]}, labels=words)]})
    found = with_answer_tokens(TASKS, tokenizer, data)
    plain, end = RowEncoder(TASKS["cls"], tokenizer, 10).plain, tokenizer.convert_tokens_to_ids("<|end|>")
    longest = plain.encode("긍정도 부정도 아님", add_special_tokens=False).ids
    assert found["cls"].max_new_tokens == len(longest) + 1 > TASKS["cls"].max_new_tokens
    fields = {"text": "the cat", "label": "긍정도 부정도 아님"}
    target = one(RowEncoder(TASKS["cls"], tokenizer, 200), fields)
    assert target.input_ids[target.num_prompt :] == [*longest, end], "as training has it"
    own = with_answer_tokens({"nli": TASKS["nli"]}, tokenizer, DataConfig())["nli"].max_new_tokens
    assert own == max(len(plain.encode(word, add_special_tokens=False).ids) for word in TASKS["nli"].choices or ()) + 1
    assert {name: found[name] for name in ("summ", "qa", "gen")} == {n: TASKS[n] for n in ("summ", "qa", "gen")}


def test_half_a_character_at_the_end_is_left_out() -> None:
    tokenizer = tokenizer_of("byte-level")
    ids = tokenizer("the cat 힣")["input_ids"]
    texts = [whole_text(tokenizer.decode(ids[: len(ids) - n])) for n in range(4)]
    assert texts[0] == "the cat 힣"
    assert set(texts[1:]) <= {"the cat ", "the cat"}
    assert any("\ufffd" in tokenizer.decode(ids[: len(ids) - n]) for n in range(4))
