"""The embedded data: a small made-up world in Korean and English, told as rows of any supported field set, without end.

A being has a kind, a name of two syllables and five facts. A fact is a template and a value from a short list:

    person Soran, town: "소란은 부산에 삽니다."  "Soran lives in Busan."

`rows(frozenset({"source", "translation"}), "train", 1)` yields that pair. Row i of a split is a pure function of
(fields, split, i), and a name belongs to one split: what is asked in test was never told in training. Questions without
a passage are the exception: nobody can answer them who was not told. Nothing here is true of the towns and trades it
mentions.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from random import Random

from multitask.errors import InputError, suggest
from multitask.events import Json

Row = Json

LANGUAGES = ("ko", "en")
LABELS = {
    "person": {"ko": "사람", "en": "person"},
    "animal": {"ko": "동물", "en": "animal"},
    "place": {"ko": "장소", "en": "place"},
    "thing": {"ko": "물건", "en": "thing"},
}
"""Class of a text -> its word by language, in order. A row's `label` is the class."""

RELATIONS = ("entailment", "neutral", "contradiction")

# Attribute (of `what`: kind) -> its values, as Korean:English. The English nouns of `what` take the article "a".
_VALUES = {
    "person": "화가:painter 의사:doctor 가수:singer 농부:farmer 기자:reporter 목수:carpenter",
    "animal": "고양이:cat 강아지:dog 토끼:rabbit 염소:goat 여우:fox 곰:bear",
    "place": "카페:cafe 학교:school 도서관:library 시장:market 병원:hospital 공원:park",
    "thing": "가방:bag 컵:cup 의자:chair 시계:watch 상자:box 책상:desk",
    "town": "부산:Busan 제주:Jeju 목포:Mokpo 서울:Seoul 수원:Suwon 파주:Paju",
    "color": "노란색:yellow 하얀색:white 분홍색:pink 검은색:black 갈색:brown 남색:navy",
    "food": "사과:apples 꿀:honey 딸기:berries 치즈:cheese 김치:kimchi 멸치:anchovies",
    "day": "목요일:Thursday 금요일:Friday 토요일:Saturday 일요일:Sunday",
}
# What the first half of the values have in common, and what the second half.
SORTS = {
    "town": ("남쪽:the south", "북쪽:the north"),
    "color": ("밝은색:bright", "어두운색:dark"),
    "food": ("단 음식:something sweet", "짠 음식:something salty"),
    "day": ("평일:a weekday", "주말:the weekend"),
}

# Language -> kind -> attribute -> statement and question of {n}, a name, and {v}, a value; `particles` settles 은(는).
_FACTS = {
    "ko": {
        "person": {
            "what": ("{n}은(는) {v}입니다.", "{n}의 직업은 무엇입니까?"),
            "town": ("{n}은(는) {v}에 삽니다.", "{n}은(는) 어디에 삽니까?"),
            "color": ("{n}은(는) {v} 신발을 신습니다.", "{n}의 신발은 무슨 색입니까?"),
            "food": ("{n}은(는) {v}을(를) 먹습니다.", "{n}은(는) 무엇을 먹습니까?"),
            "day": ("{n}은(는) {v}에 쉽니다.", "{n}은(는) 언제 쉽니까?"),
        },
        "animal": {
            "what": ("{n}은(는) {v}입니다.", "{n}은(는) 무슨 동물입니까?"),
            "town": ("{n}은(는) {v}에서 잡니다.", "{n}은(는) 어디에서 잡니까?"),
            "color": ("{n}은(는) {v} 리본을 달았습니다.", "{n}의 리본은 무슨 색입니까?"),
            "food": ("{n}은(는) {v}을(를) 좋아합니다.", "{n}은(는) 무엇을 좋아합니까?"),
            "day": ("{n}은(는) {v}에 목욕합니다.", "{n}은(는) 언제 목욕합니까?"),
        },
        "place": {
            "what": ("{n}은(는) {v}입니다.", "{n}은(는) 어떤 곳입니까?"),
            "town": ("{n}은(는) {v}에 있습니다.", "{n}은(는) 어디에 있습니까?"),
            "color": ("{n}은(는) {v} 지붕을 얹었습니다.", "{n}의 지붕은 무슨 색입니까?"),
            "food": ("{n}은(는) {v}을(를) 팝니다.", "{n}은(는) 무엇을 팝니까?"),
            "day": ("{n}은(는) {v}에 문을 닫습니다.", "{n}은(는) 언제 문을 닫습니까?"),
        },
        "thing": {
            "what": ("{n}은(는) {v}입니다.", "{n}은(는) 어떤 물건입니까?"),
            "town": ("{n}은(는) {v}에서 나왔습니다.", "{n}은(는) 어디에서 나왔습니까?"),
            "color": ("{n}은(는) {v} 끈이 달렸습니다.", "{n}의 끈은 무슨 색입니까?"),
            "food": ("{n}은(는) {v} 냄새가 납니다.", "{n}은(는) 무슨 냄새가 납니까?"),
            "day": ("{n}은(는) {v}에 팔렸습니다.", "{n}은(는) 언제 팔렸습니까?"),
        },
    },
    "en": {
        "person": {
            "what": ("{n} is a {v}.", "What is the job of {n}?"),
            "town": ("{n} lives in {v}.", "Where does {n} live?"),
            "color": ("{n} wears {v} shoes.", "What color are the shoes of {n}?"),
            "food": ("{n} eats {v}.", "What does {n} eat?"),
            "day": ("{n} rests on {v}.", "When does {n} rest?"),
        },
        "animal": {
            "what": ("{n} is a {v}.", "What animal is {n}?"),
            "town": ("{n} sleeps in {v}.", "Where does {n} sleep?"),
            "color": ("{n} has a {v} ribbon.", "What color is the ribbon of {n}?"),
            "food": ("{n} likes {v}.", "What does {n} like?"),
            "day": ("{n} bathes on {v}.", "When does {n} bathe?"),
        },
        "place": {
            "what": ("{n} is a {v}.", "What kind of place is {n}?"),
            "town": ("{n} stands in {v}.", "Where does {n} stand?"),
            "color": ("{n} has a {v} roof.", "What color is the roof of {n}?"),
            "food": ("{n} sells {v}.", "What does {n} sell?"),
            "day": ("{n} closes on {v}.", "When does {n} close?"),
        },
        "thing": {
            "what": ("{n} is a {v}.", "What kind of thing is {n}?"),
            "town": ("{n} comes from {v}.", "Where does {n} come from?"),
            "color": ("{n} has a {v} string.", "What color is the string of {n}?"),
            "food": ("{n} smells of {v}.", "What does {n} smell of?"),
            "day": ("{n} was sold on {v}.", "When was {n} sold?"),
        },
    },
}
ATTRIBUTES = ("what", "town", "color", "food", "day")
_NEAR = {"ko": "{n} 옆에 {v} {m}이(가) 있습니다.", "en": "Next to {n} is the {v} {m}."}
_WHO = {"ko": "{town}의 {what} {n}", "en": "The {what} {n} of {town}"}

# Letter -> place in Unicode's composition of Hangul syllables (The Unicode Standard, section 3.12).
_ONSETS = {"g": 0, "n": 2, "d": 3, "r": 5, "m": 6, "b": 7, "s": 9, "j": 12, "k": 15, "t": 16, "p": 17, "h": 18}
_VOWELS = {"a": 0, "e": 5, "o": 8, "u": 13, "i": 20}
_CODAS = {"": 0, "n": 4}
_SHARES = {"train": 80, "validation": 90, "test": 100}
_WORDS = re.findall(r"\w+", " ".join(_VALUES.values()))


def particles(text: str) -> str:
    """Settle 은(는), 이(가), 을(를) by whether the syllable before ends in a consonant: 말은(는) -> 말은, 소는."""
    return re.sub(r"([가-힣])(은|이|을)\((는|가|를)\)", lambda m: m[1] + m[2 if (ord(m[1]) - 0xAC00) % 28 else 3], text)


@cache
def names(split: str) -> list[tuple[str, str]]:
    """Every name of a split as (Korean, Latin): 80, 10 and 10 percent of all, told apart by a hash of the name.

    Values such as 부산 (Busan) are nobody's name.
    """
    found = []
    for a, b, c, d, coda in product(_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS):
        latin = (a + b + c + d + coda).capitalize()
        if next(name for name, end in _SHARES.items() if zlib.crc32(latin.encode()) % 100 < end) == split:
            syllables = (_ONSETS[a] * 21 + _VOWELS[b]) * 28, (_ONSETS[c] * 21 + _VOWELS[d]) * 28 + _CODAS[coda]
            found.append(("".join(chr(0xAC00 + syllable) for syllable in syllables), latin))
    return [name for name in found if name[0] not in _WORDS]


class Being:
    """Somebody or something: a kind, a name, and facts that are the same wherever it is told of."""

    def __init__(self, kind: str, name: tuple[str, str]) -> None:
        self.kind, self.name = kind, dict(zip(LANGUAGES, name, strict=True))
        rng = Random(f"{kind} {name[1]}")
        self.facts = {attribute: rng.choice(values(kind, attribute)) for attribute in ATTRIBUTES}

    def value(self, attribute: str, language: str) -> str:
        """The word for one fact."""
        return self.facts[attribute][language]

    def say(self, attribute: str, language: str, name: str = "", value: str = "") -> str:
        """A sentence that states a fact; `name` and `value` may stand in for the true ones."""
        template = _FACTS[language][self.kind][attribute][0]
        return particles(template.format(n=name or self.name[language], v=value or self.value(attribute, language)))

    def ask(self, attribute: str, language: str) -> str:
        """The question that the fact answers."""
        return particles(_FACTS[language][self.kind][attribute][1].format(n=self.name[language]))


@cache
def values(kind: str, attribute: str) -> list[dict[str, str]]:
    """All values that an attribute can have, each by language."""
    return [_by_language(pair) for pair in _VALUES[kind if attribute == "what" else attribute].split()]


def _by_language(pair: str) -> dict[str, str]:
    return dict(zip(LANGUAGES, pair.split(":"), strict=True))


def meet(rng: Random, split: str, kind: str | None = None) -> Being:
    """Somebody or something of that split, at random."""
    return Being(kind or rng.choice(list(LABELS)), rng.choice(names(split)))


def passage(rng: Random, language: str, facts: list[tuple[Being, str]]) -> str:
    """The facts as sentences, in any order."""
    return " ".join(being.say(a, language) for being, a in rng.sample(facts, len(facts)))


def description(rng: Random, split: str, language: str, kind: str) -> str:
    """Told of one being; the last sentence names another one, of another kind, beside it."""
    one = meet(rng, split, kind)
    other = meet(rng, split, rng.choice([k for k in LABELS if k != kind]))
    near = _NEAR[language].format(n=one.name[language], v=other.value("what", language), m=other.name[language])
    return " ".join([passage(rng, language, [(one, a) for a in rng.sample(ATTRIBUTES, 2)]), particles(near)])


def _labelled(rng: Random, split: str, index: int, language: str) -> Row:
    kind = list(LABELS)[index // 2 % len(LABELS)]
    return {"text": description(rng, split, language, kind), "label": kind}


def _inference(rng: Random, split: str, index: int, language: str) -> Row:
    """Who lives in Busan lives in the south: entailed if told, contradicted by Seoul, neutral if no town is told.

    The hypothesis is drawn without a look at the label, so alone it tells nothing. It names the first sort three times
    in four: were both as likely, neither side alone would hint at the label, and a small model that has to learn the
    comparison from nothing (an exclusive or) sits on a plateau for most of a short training.
    """
    relation, asks_first = RELATIONS[index // 2 % len(RELATIONS)], rng.random() < 0.75
    asked, spare = rng.sample(list(SORTS), 2)
    others = rng.sample([a for a in ATTRIBUTES if a not in (asked, spare)], rng.choice([0, 1, 2]))
    one = meet(rng, split)
    while relation != "neutral" and is_first(one, asked) != (asks_first == (relation == "entailment")):
        one = meet(rng, split)
    premise = passage(rng, language, [(one, a) for a in (spare if relation == "neutral" else asked, *others)])
    sort = _by_language(SORTS[asked][0 if asks_first else 1])[language]
    return {"premise": premise, "hypothesis": one.say(asked, language, value=sort), "label": relation}


def is_first(one: Being, attribute: str) -> bool:
    """True when the fact is of the first of the attribute's two sorts."""
    every = values(one.kind, attribute)
    return every.index(one.facts[attribute]) < len(every) // 2


def _question(rng: Random, split: str, index: int, language: str) -> Row:
    """A question about one being of whom two or three facts are told; in every sixth row, two beings differ in it."""
    one = other = meet(rng, split)
    asked, *others = rng.sample(ATTRIBUTES, rng.choice([2, 3]))
    facts = [(one, a) for a in (asked, *others)]
    if index // 2 % 6 == 5:
        while other.facts[asked] == one.facts[asked]:
            other = meet(rng, split, one.kind)
        facts = [(one, asked), (one, others[0]), (other, asked)]
    context, told, answer = passage(rng, language, facts), one.say(asked, language), one.value(asked, language)
    start = context.index(told) + told.rindex(answer)
    question = one.ask(asked, language)
    return {"context": context, "question": question, "answer": answer, "answers": [answer], "answer_start": [start]}


def _summary(rng: Random, split: str, index: int, language: str) -> Row:
    """The rule: where, what, who and when in one sentence; colors and food are left out."""
    one = meet(rng, split)
    document = passage(rng, language, [(one, a) for a in ("what", "town", "day", rng.choice(["color", "food"]))])
    who = _WHO[language].format(
        n=one.name[language], what=one.value("what", language), town=one.value("town", language)
    )
    return {"document": document, "summary": one.say("day", language, name=who)}


def _pair(rng: Random, split: str, index: int, language: str) -> Row:
    one, attribute = meet(rng, split), rng.choice(ATTRIBUTES)
    other = "en" if language == "ko" else "ko"
    return {"source": one.say(attribute, language), "translation": one.say(attribute, other)}


def _is_in(key: str, split: str) -> bool:
    """Whether what is asked belongs to the split, in shares as those of names."""
    return next(name for name, end in _SHARES.items() if zlib.crc32(key.encode()) % 100 < end) == split


def _sum(rng: Random, split: str, index: int, language: str) -> Row:
    """Of two numbers of two digits each; a pair belongs to one split, in either order."""
    first, second = rng.randint(10, 99), rng.randint(10, 99)
    while not _is_in(f"{min(first, second)} {max(first, second)}", split):
        first, second = rng.randint(10, 99), rng.randint(10, 99)
    return {"first": str(first), "second": str(second), "sum": str(first + second)}


def _recall(rng: Random, split: str, index: int, language: str) -> Row:
    """Questions about beings of train in every split: of others nobody could know. A question belongs to one split."""
    one, asked = meet(rng, "train"), rng.choice(ATTRIBUTES)
    while not _is_in(f"{one.kind} {one.name['en']} {asked}", split):
        one, asked = meet(rng, "train"), rng.choice(ATTRIBUTES)
    return {"question": one.ask(asked, language), "answer": one.value(asked, language)}


def _conversation(rng: Random, split: str, index: int, language: str) -> Row:
    """One to three questions about a being of whom all facts are told first; each reply is a value."""
    one, asked = meet(rng, split), rng.sample(ATTRIBUTES, rng.randint(1, 3))
    return {
        "system": passage(rng, language, [(one, attribute) for attribute in ATTRIBUTES]),
        "user": [one.ask(attribute, language) for attribute in asked],
        "reply": [one.value(attribute, language) for attribute in asked],
    }


_MAKERS: dict[frozenset[str], Callable[[Random, str, int, str], Row]] = {
    frozenset({"first", "second", "sum"}): _sum,
    frozenset({"question", "answer"}): _recall,
    frozenset({"text", "label"}): _labelled,
    frozenset({"premise", "hypothesis", "label"}): _inference,
    frozenset({"context", "question", "answer"}): _question,
    frozenset({"document", "summary"}): _summary,
    frozenset({"source", "translation"}): _pair,
    frozenset({"system", "user", "reply"}): _conversation,
}


def row(fields: frozenset[str], rng: Random, split: str, language: str) -> Row:
    """One row that holds these fields, its label drawn too."""
    return _MAKERS[fields](rng, split, rng.randrange(2**16), language)


def rows(fields: frozenset[str], split: str, count: int) -> Iterator[Row]:
    """The first `count` rows of a split that hold these fields, one language after the other, and labels in turn.

    Raises:
        InputError: the dataset has no rows of these fields, or no such split.
    """
    if fields not in _MAKERS:
        known = "; ".join(", ".join(sorted(each)) for each in _MAKERS)
        raise InputError(
            f"the synthetic dataset has no rows of the fields {', '.join(sorted(fields))}; it has rows of: {known}. "
            "Name files or a hub set for this task in data.sources"
        )
    check_split(split)
    for index in range(count):
        rng, language = Random(f"rows {'+'.join(sorted(fields))} {split} {index}"), LANGUAGES[index % 2]
        yield {"id": f"world-{split}-{index}", "language": language, **_MAKERS[fields](rng, split, index, language)}


def texts(split: str, count: int) -> Iterator[str]:
    """The first `count` paragraphs of plain text of a split, one language after the other."""
    check_split(split)
    for index in range(count):
        rng = Random(f"texts {split} {index}")
        yield description(rng, split, LANGUAGES[index % 2], rng.choice(list(LABELS)))


def check_split(split: str) -> None:
    """Raises InputError for a split that the dataset does not have."""
    if split not in _SHARES:
        raise InputError(f"the synthetic dataset has no split '{split}'; {suggest(split, _SHARES)}")
