"""Plain prompts: which rows are drawn, what is shown of them, and that ids are those of the written text."""

import random
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import KINDS, TASKS, WORDS, metaspace, random_fields, tokenizer_of
from tokenizers import Tokenizer, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from multitask.config.evaluation import FewshotConfig
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.evaluation.prompting.demonstrations import draw
from multitask.evaluation.prompting.formats import EncodedPrompt
from multitask.evaluation.prompts import CONTENT_FREE, PlainFormat
from multitask.pattern import render_plain
from multitask.task import Prompt, Task

NLI, QA, GEN, CLS = (TASKS[name] for name in ("nli", "qa", "gen", "cls"))
LABELS = NLI.choices or ()
KNOWN = {"en": (" warm", " mat", " cat"), "ko": (" 정말", " 서울에서", " 긍정")}  # to tokenizers trained on `WORDS`
SAID = replace(NLI, prompts={name: replace(NLI.templates(name)[0], words=words) for name, words in KNOWN.items()})
OPEN = Task(
    "sums",
    "{asked}<|is|>{sum}<|end|>",
    "sum",
    prompts={"en": Prompt("Q: {asked}\nA:"), "ko": Prompt("물음: {asked}\n답:")},
    metrics=("exact_match",),
    max_new_tokens=4,
)


def plain(task: Task, tokenizer: Any, window: int, separator: str = "\n\n") -> PlainFormat:
    return PlainFormat(task, tokenizer, window, set(), FewshotConfig(separator=separator))


def encoded(made: PlainFormat, row: Row, ranking: Sequence[Row], num_shots: int) -> EncodedPrompt | None:
    (found,) = made.encode([row], [ranking], num_shots)
    return found


def row(task: Task, number: int, language: str = "en", **fields: str) -> Row:
    """A row with random fields, but for those given."""
    rng = random.Random(f"{task.name} {number} {language}")
    values = random_fields(task, rng) if task is not OPEN else {"asked": f"{number}+1", "sum": str(number + 1)}
    choices = LABELS if task.choices else ("negative", "긍정") if task.label else ()
    if task.choices:
        values["label"] = rng.choice(LABELS)
    values |= fields
    return Row(f"r{number}", values, (values[task.target],), language, choices, choices, None, f"rows:{number}")


def rows(task: Task, count: int, language: str = "en") -> list[Row]:
    return [row(task, number, language) for number in range(count)]


def ids_of(drawn: list[dict[str, list[Row]]], num_shots: int, language: str = "en") -> list[list[str]]:
    return [[each.id for each in by_language[language]][:num_shots] for by_language in drawn]


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("by", [None, "label"])
def test_a_draw_does_not_depend_on_the_order_of_rows(by: str | None) -> None:
    every = rows(NLI, 80)
    drawn = draw(every, 6, 3, 7, by)
    for seed in range(3):
        shuffled = random.Random(seed).sample(every, len(every))
        assert draw(shuffled, 6, 3, 7, by) == drawn
    sets = ids_of(drawn, 6)
    assert len({tuple(each) for each in sets}) == 3, "draws differ"
    assert ids_of(draw(every, 6, 3, 8, by), 6) != sets, "seeds differ"
    assert all(len(set(each)) == 6 for each in sets)
    assert ids_of(draw(every, 6, 2, 7, by), 6) == sets[:2], "a draw is the same beside fewer others"


def test_rows_that_are_not_drawn_change_nothing() -> None:
    """A smaller `data.limit` keeps, of those drawn, the ones that it still holds, in their order."""
    every = rows(NLI, 200)
    full = ids_of(draw(every, 200, 2, 7, None), 200)
    for limit in (20, 60, 150):
        held = {each.id for each in every[:limit]}
        expected = [[each for each in ranking if each in held][:5] for ranking in full]
        assert ids_of(draw(every[:limit], 5, 2, 7, None), 5) == expected
        assert expected != [ranking[:5] for ranking in full]


@pytest.mark.parametrize("by", [None, "label"])
def test_the_first_four_of_eight_are_the_four(by: str | None) -> None:
    every = rows(NLI, 50)
    eight = ids_of(draw(every, 8, 4, 7, by), 8)
    for fewer in (1, 4):
        assert ids_of(draw(every, fewer, 4, 7, by), fewer) == [each[:fewer] for each in eight]


def test_classes_take_turns_when_balanced() -> None:
    """Nine rows in ten are of one class; as long as the others have rows, each third row is of theirs."""
    skewed = [row(NLI, n, label=LABELS[0] if n % 10 else LABELS[1 + n // 10 % 2]) for n in range(80)]
    for by_language in draw(skewed, 12, 3, 7, "label"):
        labels = [each.fields["label"] for each in by_language["en"]][:12]
        assert all(set(labels[at : at + 3]) == set(LABELS) for at in range(0, 12, 3))
    assert any(
        Counter(each.fields["label"] for each in by_language["en"][:12])[LABELS[0]] > 8
        for by_language in draw(skewed, 12, 3, 7, None)
    )
    few = [row(NLI, n, label=LABELS[0] if n else LABELS[1]) for n in range(20)]
    (drawn,) = draw(few, 6, 1, 7, "label")
    assert Counter(each.fields["label"] for each in drawn["en"][:6]) == {LABELS[0]: 5, LABELS[1]: 1}


def test_languages_are_drawn_apart() -> None:
    korean, english = rows(NLI, 40, "ko"), rows(NLI, 30)
    for by_language, ko, en in zip(
        draw([*korean, *english], 4, 2, 7, None), draw(korean, 4, 2, 7, None), draw(english, 4, 2, 7, None), strict=True
    ):
        assert by_language == ko | en
        assert {each.language for each in by_language["ko"]} == {"ko"}


def test_no_more_rows_are_held_than_drawn() -> None:
    made: list[weakref.ref[Row]] = []
    alive: list[int] = []

    def stream() -> Iterator[Row]:
        for number in range(3000):
            each = row(OPEN, number)
            made.append(weakref.ref(each))
            yield each
        alive.append(sum(ref() is not None for ref in made))

    drawn = draw(stream(), 4, 2, 7, None)
    assert alive[0] <= sum(len(by_language["en"]) for by_language in drawn) + 2 < 40


# ---------------------------------------------------------------- what a prompt says


def test_a_prompt_as_it_is_written() -> None:
    prompter = plain(NLI, tokenizer_of("byte-level"), 500)
    shown = row(NLI, 1, "ko", premise="해가 떴다.", hypothesis="밤이다.", label="contradiction")
    asked = row(NLI, 2, "ko", premise="비가 온다.", hypothesis="맑다.", label="neutral")
    prompted = encoded(prompter, asked, [shown], 1)
    assert prompted is not None
    assert prompted.text == "해가 떴다.\n가설: 밤이다.\n관계: 모순\n\n비가 온다.\n가설: 맑다.\n관계:"
    assert prompter.words(asked) == [" 함의", " 중립", " 모순"]
    assert plain(CLS, tokenizer_of("byte-level"), 500).words(row(CLS, 1)) == [" negative", " 긍정"]
    other = plain(OPEN, tokenizer_of("byte-level"), 500, separator="\n###\n")
    assert other.text([row(OPEN, 1), row(OPEN, 2)], row(OPEN, 3)) == "Q: 1+1\nA: 2\n###\nQ: 2+1\nA: 3\n###\nQ: 3+1\nA:"
    assert other.words(row(OPEN, 4)) == [" 5"]
    assert other.text([], row(OPEN, 3, "fr")) == "Q: 3+1\nA:", "a language without a template has the first one"


def test_neither_the_row_nor_its_question_is_shown() -> None:
    """Copies with another id, in other case and spacing, with another answer; others move up in their place."""
    asked = row(OPEN, 5, asked="What  Is cafe\u0301?")
    copies = [row(OPEN, 10 + n, asked=text) for n, text in enumerate(["what is café?", "WHAT IS CAFÉ?\n"])]
    assert copies[0].fields["sum"] != asked.fields["sum"]
    others = [row(OPEN, 20 + n) for n in range(4)]
    ranking = [asked, others[0], copies[0], others[1], copies[1], others[2], others[3]]
    prompted = encoded(plain(OPEN, tokenizer_of("byte-level"), 500), asked, ranking, 3)
    assert prompted is not None
    assert prompted.demonstrations == tuple(others[:3])
    unrelated = replace(row(OPEN, 6), id=others[0].id)  # of another file
    prompted = encoded(plain(OPEN, tokenizer_of("byte-level"), 500), unrelated, ranking, 3)
    assert prompted is not None
    assert prompted.demonstrations == tuple(ranking[:3])


def test_a_kind_alone_is_no_question() -> None:
    """Texts to be written are told apart by themselves: all rows of a kind have the same prompt."""
    ranking = [row(GEN, n, label="negative") for n in range(4)]
    asked = row(GEN, 7, label="negative", text=f" {ranking[1].fields['text'].upper()}")
    prompted = encoded(plain(GEN, tokenizer_of("byte-level"), 2000), asked, ranking, 3)
    assert prompted is not None
    assert prompted.demonstrations == (ranking[0], *ranking[2:])


def test_demonstrations_are_dropped_whole_from_the_end() -> None:
    tokenizer, ranking, seen = tokenizer_of("byte-level"), rows(QA, 8), Counter[int]()
    asked = row(QA, 90)
    for window in range(80, 1200, 40):
        prompter = plain(QA, tokenizer, window)
        prompted = encoded(prompter, asked, ranking, 8)
        if prompted is None or prompted.is_truncated:
            continue
        num = len(prompted.demonstrations)
        assert prompted.demonstrations == tuple(ranking[:num])
        assert prompted.text == prompter.text(ranking[:num], asked)
        assert len(prompted.ids) + QA.max_new_tokens <= window
        if num < 8:
            more = encoded(prompter, asked, ranking[: num + 1], num + 1)
            assert more == prompted
            longer = tokenizer(prompter.text(ranking[: num + 1], asked))["input_ids"]
            assert len(longer) + QA.max_new_tokens > window, "one more would have fitted"
        seen[num] += 1
    assert len(seen) >= 4
    assert seen[8]


def test_the_question_is_cut_only_where_it_may_be_and_only_alone() -> None:
    tokenizer, ranking = tokenizer_of("byte-level"), rows(QA, 3)
    num_truncated = 0
    for number in range(30):
        asked = row(QA, number, context=" ".join(random.Random(number).choices(WORDS, k=60)))
        room = QA.max_new_tokens
        least = len(tokenizer(render_plain(QA, asked.fields | {"context": "a"}, "en"))["input_ids"]) + room
        prompted = encoded(plain(QA, tokenizer, least + 20), asked, ranking, 3)
        assert prompted is not None
        assert prompted.is_truncated
        assert not prompted.demonstrations
        assert least <= len(prompted.ids) + room <= least + 20
        short = prompted.row.fields["context"]
        assert asked.fields["context"].startswith(short)
        assert short == short.rstrip() != ""
        assert prompted.text == render_plain(QA, asked.fields | {"context": short}, "en")
        assert prompted.row == replace(asked, fields=asked.fields | {"context": short})
        num_truncated += 1
        assert encoded(plain(QA, tokenizer, least - 2), asked, ranking, 3) is None, "the question itself is never cut"
    assert num_truncated == 30


def test_a_task_without_a_cut_field_refuses() -> None:
    tokenizer, asked = tokenizer_of("byte-level"), row(OPEN, 5)
    least = len(tokenizer(render_plain(OPEN, asked.fields, "en"))["input_ids"]) + OPEN.max_new_tokens
    assert encoded(plain(OPEN, tokenizer, least), asked, [], 0) is not None
    assert encoded(plain(OPEN, tokenizer, least - 1), asked, [], 0) is None


def test_content_free_prompts_keep_demonstrations() -> None:
    tokenizer, ranking = tokenizer_of("byte-level"), rows(NLI, 2)
    prompter = plain(NLI, tokenizer, 2000)
    prompted = encoded(prompter, row(NLI, 7), ranking, 2)
    assert prompted is not None
    before = prompted.text[: -len(prompter.question(prompted.row))]
    assert before.endswith("\n\n")
    expected = [
        f"{before}{nothing}\nQuestion: {nothing} True, False or Neither?\nAnswer:" for nothing in ("N/A", "", "[MASK]")
    ]
    assert len(CONTENT_FREE) == 3
    assert prompter.content_free(prompted) == [tokenizer(text)["input_ids"] for text in expected]
    bare = encoded(prompter, row(NLI, 7), [], 0)
    assert bare is not None
    prompter.window = len(tokenizer("\nQuestion:  True, False or Neither?\nAnswer:")["input_ids"]) + max(
        map(len, bare.choices)
    )
    assert len(prompter.content_free(bare)) == 1, "the others do not fit"


# ---------------------------------------------------------------- ids


def with_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Llama's kind: `<s>` stands before whatever is read."""
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.add_special_tokens(["<s>"])
    bos = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<|end|>")


@pytest.mark.parametrize("task", [SAID, QA, GEN, CLS, OPEN], ids=lambda task: task.name)
@pytest.mark.parametrize("kind", [*KINDS, "bos"])
def test_ids_are_the_tokenizers_reading_of_the_text(kind: str, task: Task) -> None:
    """Of the prompt, and of the prompt with each continuation behind it: the border stands where its reading has it."""
    tokenizer = with_bos(tokenizer_of("byte-level")) if kind == "bos" else tokenizer_of(kind)
    prompter = plain(task, tokenizer, 5000)
    for number in range(12):
        language = ("ko", "en")[number % 2]
        prompted = encoded(prompter, row(task, number, language), rows(task, 20, language)[15:], number % 4)
        assert prompted is not None
        assert len(prompted.demonstrations) == number % 4
        assert prompted.ids == tokenizer(prompted.text)["input_ids"]
        words = prompter.words(prompted.row)
        continuations = prompted.choices if task.is_closed else [prompted.target or []]
        assert len(continuations) == len(words) == len(prompted.row.choices if task.is_closed else [0])
        for ids, word in zip(continuations, words, strict=True):
            assert prompted.ids + ids == tokenizer(prompted.text + word)["input_ids"]
        if kind == "bos":
            assert prompted.ids.count(tokenizer.bos_token_id) == 1


def test_a_border_that_would_merge_is_kept() -> None:
    """A template that ends inside a word: the prompt's ids stay, and the continuation is read alone."""
    tokenizer = tokenizer_of("byte-level")
    glued = replace(OPEN, prompts={"en": Prompt("{asked}", ())})
    joined = tokenizer("cat")["input_ids"]
    assert len(joined) < len(tokenizer("c")["input_ids"]) + len(tokenizer("at")["input_ids"])
    assert plain(glued, tokenizer, 500)._continuation("c", "at") == tokenizer("at")["input_ids"]


def test_a_continuation_without_a_space_is_read_in_its_place() -> None:
    """KoGPT2's kind reads a text that stands alone as if a space came before it."""
    tokenizer = korean()
    ids = plain(OPEN, tokenizer, 500)._continuation("Q: 1 | 2", "4")
    assert tokenizer("Q: 1 | 2")["input_ids"] + ids == tokenizer("Q: 1 | 24")["input_ids"]
    assert ids != tokenizer("4")["input_ids"]


def test_special_tokens_in_user_text_stay_text() -> None:
    tokenizer = tokenizer_of("byte-level")
    text = "say <|nli|> or <|end|> or <|pad|>"
    prompter = plain(NLI, tokenizer, 500)
    shown, asked = row(NLI, 1, premise=text), row(NLI, 2, hypothesis=text)
    prompted = encoded(prompter, asked, [shown], 1)
    assert prompted is not None
    assert prompted.text.count(text) == 2
    assert not set(prompted.ids) & set(tokenizer.get_added_vocab().values())
    assert tokenizer.decode(prompted.ids) == prompted.text
    assert set(tokenizer(text)["input_ids"]) & set(tokenizer.get_added_vocab().values()), "read otherwise, a marker"


# ---------------------------------------------------------------- line marks and stops


def korean() -> PreTrainedTokenizerFast:
    """KoGPT2's kind, with a bar in its vocabulary."""
    made = metaspace("always")
    made.train_from_iterator(
        ["Q: A: 0 1 2 3 4 + | 답: 물음:"] * 3, trainers.BpeTrainer(special_tokens=["</s>", "<unk>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_without_newlines_gets_another_mark() -> None:
    prompter = plain(OPEN, korean(), 500)
    assert prompter.line == " | "
    text = prompter.text([row(OPEN, 1)], row(OPEN, 2))
    assert text == "Q: 1+1 | A: 2 |  | Q: 2+1 | A:"
    assert prompter.tokenizer.decode(prompter._ids(text)) == text, "nothing is lost"
    assert prompter.words(row(OPEN, 1, sum="1\n2")) == [" 1 | 2"]
    assert {kind: plain(OPEN, tokenizer_of(kind), 500).line for kind in KINDS} == {
        "byte-level": "\n",
        "our-own": "\n",
        "metaspace": ". ",
        "wordpiece": ". ",
    }


@pytest.mark.parametrize(
    ("kind", "task", "text", "answer"),
    [
        ("byte-level", QA, "a cat\nQ: who", "a cat"),
        ("byte-level", QA, "a cat | Q: who", "a cat | Q: who"),
        ("byte-level", OPEN, "12 Q: 3", "12 "),
        ("byte-level", OPEN, "Q: 3", ""),
        ("byte-level", OPEN, "FAQ: 3", "FAQ: 3"),
        ("byte-level", OPEN, "\n12", "\n12"),
        ("byte-level", OPEN, "\n\n 12\nQ: 3", "\n\n 12"),
        ("byte-level", OPEN, "\n\nQ: 3", "\n\n"),
        ("byte-level", QA, "\n", "\n"),
        ("korean", OPEN, "12 | Q: 3", "12"),
        ("korean", OPEN, "| 12", "| 12"),
        ("korean", OPEN, "| 12 | 1", "| 12"),
        ("korean", OPEN, "12", "12"),
    ],
)
def test_an_answer_ends_at_a_line_or_at_the_next_demonstration(kind: str, task: Task, text: str, answer: str) -> None:
    prompter = plain(task, korean() if kind == "korean" else tokenizer_of(kind), 500)
    assert prompter.stop("en").answer(text) == answer
    assert prompter.stop("en").is_reached(f"{text} ") == (answer != text)


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        (Prompt("{asked}", stop=()), "a\nb\n\nc", "a\nb"),
        (Prompt("{asked}", stop=("END", "\n---")), "a\nb END c", "a\nb "),
        (Prompt("{asked}", stop=("END", "\n---")), "\nEND", "\n"),
        (Prompt("{asked}", stop=(), sentences=2), "One is 3.5. Two! Three.", "One is 3.5. Two!"),
        (Prompt("{asked}", stop=(), sentences=2), "\n\nOne.\nTwo.", "\n\nOne.\nTwo."),
        (Prompt("{asked}", stop=(), sentences=3), "One.\n\nTwo. Three.", "One."),
        (Prompt("{asked}", stop=(), sentences=1), "그는 '간다.' 말했다. 그리고", "그는 '간다.'"),
        (Prompt("{asked}", sentences=2), "One. Two\nthree. Four.", "One. Two"),
        (Prompt("{asked}", stop=(), sentences=1), "no end", "no end"),
    ],
)
def test_a_template_says_where_its_answers_end(prompt: Prompt, text: str, answer: str) -> None:
    """Beside the separator; a mark in front of the first word ends nothing but what is empty anyway."""
    prompter = plain(replace(OPEN, prompts={"en": prompt}), tokenizer_of("byte-level"), 500)
    assert prompter.stop("en").answer(text) == answer


def test_a_sentence_is_whole_once_something_follows() -> None:
    prompter = plain(
        replace(OPEN, prompts={"en": Prompt("{asked}", stop=(), sentences=1)}), tokenizer_of("byte-level"), 500
    )
    said = [prompter.stop("en").is_reached(text) for text in ("It is 3.", "It is 3.5", "It is 3.5.", "It is 3.5. ")]
    assert said == [False, False, False, True]


def test_where_no_mark_survives_a_space_ends_no_answer() -> None:
    made = metaspace("always")
    made.train_from_iterator(["QA 123+ :"] * 3, trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False))
    prompter = plain(QA, PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>"), 500)
    assert prompter.line == " "
    assert prompter.stop("en").answer("two words") == "two words"


# ---------------------------------------------------------------- what cannot be asked


def closed(words: tuple[str, ...] | None, choices: tuple[str, ...]) -> tuple[Task, Row]:
    task = replace(CLS, prompts={"en": Prompt("Text: {text}\nLabel:", words)})
    return task, replace(row(CLS, 1), choices=choices, classes=choices)


@pytest.mark.parametrize(
    ("words", "choices", "message"),
    [
        (
            (" yes",),
            ("yes", "no"),
            r"rows:1: task 'cls' has 1 prompt words for 2 choices \(yes, no\); one word for each",
        ),
        (("\n", " no"), ("yes", "no"), r"task 'cls': the answer '\\n' has no tokens in this tokenizer"),
        (None, ("😀", "😡"), r"rows:1: two of the answers ' 😀', ' 😡' have the same tokens in this tokenizer"),
    ],
)
def test_choices_that_cannot_be_asked_for(words: Any, choices: tuple[str, ...], message: str) -> None:
    task, asked = closed(words, choices)
    with pytest.raises(InputError, match=message):
        encoded(plain(task, tokenizer_of("metaspace"), 500), asked, [], 0)


def test_an_open_answer_without_tokens_is_no_error() -> None:
    """One row of a file; its question can be asked all the same."""
    made = Tokenizer.from_str(tokenizer_of("wordpiece").backend_tokenizer.to_str())
    made.normalizer = normalizers.Replace("\u200b", "")
    prompter = plain(OPEN, PreTrainedTokenizerFast(tokenizer_object=made), 500)
    prompted = encoded(prompter, row(OPEN, 1, sum="\u200b"), [], 0)
    assert prompted is not None
    assert prompted.target is None
