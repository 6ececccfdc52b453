"""The synthetic corpus: documents in which tasks occur as they do on the web, to pretrain the demo model on.

A document is a list of solved examples in a layout of its own, with words of its own for the parts and, now and then,
for the classes:

    Mork: Soran lives in Busan. -> tulp
    Mork: Misu eats apples. -> gem
    Mork: Kando lives in Jeju. -> tulp

How this one goes has to be worked out from what precedes. The wording of the tasks' prompts never occurs. Document i of
a split is a pure function of (split, i), and tells of that split's names only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from multitask.data.synthetic import dataset
from multitask.data.synthetic.dataset import (
    ATTRIBUTES,
    LABELS,
    LANGUAGES,
    RELATIONS,
    SORTS,
    Being,
    meet,
    passage,
    values,
)

FIELDS = frozenset({"document"})
Item = tuple[str, ...]
"""The parts of one solved example, the answer last."""
Maker = Callable[[], Item]

_CHARACTERS = {"ko": 1.5, "en": 2.2}  # a token, with the tokenizer that these documents train
_LENGTHS = (60, 60, 120, 240, 560)  # tokens of a document at most, about

_HEADS = {
    "ko": "본문 지문 이야기 내용 설명 기록 물음 문제 궁금 진술 주장 문장 결과 풀이 대꾸 판정 판단 갈래 구분 유형 줄임 "
    "한줄 낱말 뜻",
    "en": "Passage Story Context Notes Record Problem Ask Query Claim Statement Sentence Reply Response Result Verdict "
    "Decision Class Type Group Category Short Brief Gist Word Meaning",
}
_CLASSES = {
    "ko": "맞음 틀림 모름 예 아니오 글쎄 좋음 나쁨 보통 위 아래 하나 둘 셋 넷 사람 동물 장소 물건 봄 여름 가을 겨울",
    "en": "yes no maybe right wrong unknown good bad fair up down one two three four person animal place thing spring "
    "summer autumn winter x y z",
}


@dataclass(frozen=True)
class Layout:
    """How one document sets out its items.

    heads, tails: what stands before and after each part. gap: between parts. blank: between items. bullet: before an
    item, where `#` is its number.
    """

    heads: tuple[str, ...]
    tails: tuple[str, ...]
    gap: str
    blank: str
    bullet: str

    def item(self, parts: Item, number: int) -> str:
        """One item, set out."""
        laid = [head + part + tail for head, part, tail in zip(self.heads, parts, self.tails, strict=True)]
        return self.bullet.replace("#", str(number)) + self.gap.join(laid)


def invent(rng: Random, language: str) -> str:
    """A word that means nothing. Its syllables are closed as no name's are, so it is nobody's name."""
    if language == "ko":
        onsets, vowels, codas = [0, 2, 3, 5, 6, 7, 9, 12, 14, 18], [0, 2, 4, 8, 13, 20], [1, 16, 21]
        syllables = [
            (rng.choice(onsets) * 21 + rng.choice(vowels)) * 28 + rng.choice(codas) for _ in range(rng.choice([1, 2]))
        ]
        return "".join(chr(0xAC00 + syllable) for syllable in syllables)
    word = "".join(rng.choice("bcdfghjklmnpqrstvwz") + rng.choice("aeiou") for _ in range(rng.choice([1, 1, 2])))
    word += rng.choice(["b", "ck", "d", "ff", "l", "m", "p", "r", "s", "t", "x"])
    return word.capitalize() if rng.random() < 0.5 else word


def _head(rng: Random, language: str) -> str:
    return rng.choice(_HEADS[language].split()) if rng.random() < 0.5 else invent(rng, language)


def _layout(rng: Random, language: str, num_parts: int) -> Layout:
    if rng.random() < 0.25:  # one line an item
        gap, blank = " ", rng.choice(["\n", "\n\n"])
        last = rng.choice(["", "-> ", "-> ", "=> ", "= ", f"{_head(rng, language)}: "])
    else:
        gap, blank = "\n", rng.choice(["\n\n", "\n\n", "\n\n", "\n"])
        last = _head(rng, language) + rng.choice([": ", ": ", ": ", " = ", " -> "])
    others = [_head(rng, language) + ": " if rng.random() < 0.35 else "" for _ in range(num_parts - 1)]
    tails = [
        f" {_head(rng, language)}?" if n == num_parts - 2 > 0 and rng.random() < 0.2 else "" for n in range(num_parts)
    ]
    bullet = rng.choice(["#. ", "- ", "(#) "]) if rng.random() < 0.1 else ""
    return Layout((*others, last), tuple(tails), gap, blank, bullet)


def _words(rng: Random, language: str, classes: Sequence[str]) -> dict[str, str]:
    """A word for each class, of no bearing on it; one style for all."""
    speaks = language if rng.random() < 0.8 else rng.choice(LANGUAGES)
    if rng.random() < 0.5:
        found = rng.sample(_CLASSES[speaks].split(), len(classes))
    else:
        found = []
        while len(set(found)) < len(classes):
            found = [invent(rng, speaks) for _ in classes]
    return dict(zip(classes, found, strict=True))


def _cast(rng: Random, split: str) -> list[tuple[str, str]]:
    """The few names of a document: who was told of is told of again."""
    return rng.sample(dataset.names(split), rng.choice([2, 3, 4, 6]))


def _kinds(rng: Random, split: str, language: str) -> Maker:
    """Texts and their kind, in its own word or in one that this document gives it.

    Three documents in four use the kind's own word: were it mostly another, a small model would learn neither the kinds
    nor to take over words in a few million tokens.
    """
    classes, cast = rng.sample(list(LABELS), rng.choice([2, 3, 4, 4])), _cast(rng, split)
    words = {kind: LABELS[kind][language] for kind in classes}
    if rng.random() < 0.25:
        words = _words(rng, language, classes)
    length = rng.choice([1, 1, 2, 3])

    def item() -> Item:
        kind = rng.choice(classes)
        if length == 3:
            return dataset.description(rng, split, language, kind), words[kind]
        one = Being(kind, rng.choice(cast))
        return passage(rng, language, [(one, a) for a in rng.sample(ATTRIBUTES, length)]), words[kind]

    return item


def _sorts(rng: Random, split: str, language: str) -> Maker:
    """Sentences, or values alone, by what they are about: the attribute, the sort of the value, the value."""
    by = rng.choice(["attribute", "sort", "value"])
    kind, asked, cast = rng.choice(list(LABELS)), rng.choice(list(SORTS)), _cast(rng, split)
    is_bare = rng.random() < 0.5
    every = values(kind, asked)
    chosen = rng.sample(ATTRIBUTES, rng.choice([2, 3, 4])) if by == "attribute" else [asked]
    keys = {"attribute": chosen, "sort": ["first", "second"], "value": [v["en"] for v in every]}[by]
    words = _words(rng, language, keys)

    def item() -> Item:
        one, attribute = Being(kind, rng.choice(cast)), rng.choice(chosen)
        fact = one.facts[attribute]
        sort = "first" if dataset.is_first(one, attribute) else "second"
        word = words[{"attribute": attribute, "sort": sort, "value": fact["en"]}[by]]
        return fact[language] if is_bare else one.say(attribute, language), word

    return item


def _questions(rng: Random, split: str, language: str) -> Maker:
    """Passages, questions and answers; or one sentence at a time."""
    is_short, cast = rng.random() < 0.3, _cast(rng, split)

    def item() -> Item:
        if is_short:
            one, attribute = Being(rng.choice(list(LABELS)), rng.choice(cast)), rng.choice(ATTRIBUTES)
            return one.say(attribute, language), one.ask(attribute, language), one.value(attribute, language)
        row = dataset.row(frozenset({"context", "question", "answer"}), rng, split, language)
        return row["context"], row["question"], row["answer"]

    return item


def _verdicts(rng: Random, split: str, language: str) -> Maker:
    """Statements and whether they hold."""
    fields, words = frozenset({"premise", "hypothesis", "label"}), _words(rng, language, RELATIONS)
    left_out = rng.choice([None, None, *RELATIONS])

    def item() -> Item:
        row = dataset.row(fields, rng, split, language)
        while row["label"] == left_out:
            row = dataset.row(fields, rng, split, language)
        return row["premise"], row["hypothesis"], words[row["label"]]

    return item


def _digests(rng: Random, split: str, language: str) -> Maker:
    """Passages and a short version."""
    fields = frozenset({"document", "summary"})

    def item() -> Item:
        row = dataset.row(fields, rng, split, language)
        return row["document"], row["summary"]

    return item


def _pairs(rng: Random, split: str, language: str) -> Maker:
    """Sentences, or words, in both languages."""
    is_word, other = rng.random() < 0.5, LANGUAGES[1 - LANGUAGES.index(language)]

    def item() -> Item:
        one, attribute = meet(rng, split), rng.choice(ATTRIBUTES)
        if is_word:
            return one.value(attribute, language), one.value(attribute, other)
        return one.say(attribute, language), one.say(attribute, other)

    return item


def _lookups(rng: Random, split: str, language: str) -> Maker:
    """A few entries, each of them many times: nothing to know, all to look up."""
    at = LANGUAGES.index(language)
    keys = [rng.choice([invent(rng, language), name[at]]) for name in _cast(rng, split)]
    words = _words(rng, language, list(dict.fromkeys(keys)))
    return lambda: rng.choice(list(words.items()))


def _sums(rng: Random, split: str, language: str) -> Maker:
    """Sums of one digit and one."""

    def item() -> Item:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        return f"{a} + {b}", str(a + b)

    return item


_SHARES: dict[Callable[[Random, str, str], Maker], int] = {
    _kinds: 36,
    _sorts: 8,
    _questions: 32,
    _verdicts: 6,
    _digests: 7,
    _pairs: 1,
    _lookups: 8,
    _sums: 2,
}
"""Of a hundred documents."""


def _document(rng: Random, split: str, language: str) -> str:
    (topic,) = rng.choices(list(_SHARES), list(_SHARES.values()))
    make = topic(rng, split, language)
    limit = rng.choice(_LENGTHS) * rng.uniform(0.5, 1) * _CHARACTERS[language]
    first = make()
    layout = _layout(rng, language, len(first))
    text = layout.item(first, 1)
    for number in range(2, 200):
        more = text + layout.blank + layout.item(make(), number)
        if len(more) > limit:
            break
        text = more
    return text


def documents(split: str, count: int) -> Iterator[str]:
    """The first `count` documents of a split, one language after the other."""
    dataset.check_split(split)
    for index in range(count):
        yield _document(Random(f"documents {split} {index}"), split, LANGUAGES[index % 2])


def rows(split: str, count: int) -> Iterator[dataset.Row]:
    """The same as rows of the field `document`."""
    for index, text in enumerate(documents(split, count)):
        yield {"id": f"documents-{split}-{index}", "language": LANGUAGES[index % 2], "document": text}
