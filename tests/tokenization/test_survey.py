"""Lost characters of many texts: the same counts as by encoding each text, with few texts encoded."""

import random
import unicodedata
from collections import Counter

import pytest
from conftest import KINDS, random_text, tokenizer_of
from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from multitask.tokenization import survey
from multitask.tokenization.survey import LostCharacters
from multitask.tokenization.tokenizer import lost_characters, plain_reader

ODD = [
    "①",
    "ﬁ",
    "\u200b",
    "e\u0301",
    "\u0301",
    "▁",
    "##",
    "\n",
    "\t",
    "\u00a0",
    "<|end|>",
    "😀",
    "각".encode().decode(),
]


def counted(tokenizer: PreTrainedTokenizerFast, calls: list[list[str]]) -> LostCharacters:
    found = LostCharacters(tokenizer, plain_reader(tokenizer))
    for texts in calls:
        found.add(texts)
    return found


def odd_texts(seed: int, num: int) -> list[str]:
    rng = random.Random(seed)
    made = [random_text(rng, rng.randint(1, 9)) for _ in range(num)]
    made += ["".join(rng.choices([*ODD, "the", " ", "고양이"], k=rng.randint(1, 8))) for _ in range(num)]
    made += [unicodedata.normalize("NFD", text) for text in made[::5]]
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_encoding_every_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    calls = [odd_texts(seed, 20) for seed in range(6)]
    found = counted(tokenizer, calls)
    exact: Counter[str] = Counter()
    for texts in calls:
        exact.update(lost_characters(texts, tokenizer, plain_reader(tokenizer)))
    assert found.is_certain
    assert found.counts == exact
    assert bool(exact) == (kind in ("metaspace", "wordpiece"))


def test_few_texts_are_encoded_where_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(texts: list[str], *parts: object) -> Counter[str]:
        seen.append(len(texts))
        return lost_characters(texts, *parts)  # type: ignore[arg-type]

    monkeypatch.setattr(survey, "lost_characters", watched)
    calls = [["the cat sat on a warm mat"] * 10 for _ in range(LostCharacters._EVERY + 1)]
    assert counted(tokenizer_of("our-own"), calls).counts == {}
    assert seen.count(10) >= 2, "two samples"
    assert sum(seen) < 100


def without_pairs() -> PreTrainedTokenizerFast:
    """Drops `b` after `f`: what is lost depends on the neighbour."""
    made = Tokenizer(models.BPE({c: n for n, c in enumerate("abcdefx \n")}, []))
    made.normalizer = normalizers.Replace(Regex("(?<=f)b"), "")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_a_loss_that_depends_on_the_neighbour_is_found_in_the_sample() -> None:
    assert not counted(without_pairs(), [["acfb"]]).is_certain
    calls = [["abcdef"], *[["cde"]] * (LostCharacters._EVERY - 1), ["fab", "fb"]]
    assert not counted(without_pairs(), calls).is_certain, "in the second sample"
    assert counted(without_pairs(), [*calls[:-1], ["fab"]]).is_certain


def test_without_any_character_that_survives_every_text_is_encoded() -> None:
    made = Tokenizer(models.BPE({"x": 0}, []))
    made.decoder = decoders.Fuse()
    found = counted(PreTrainedTokenizerFast(tokenizer_object=made), [["a b"], ["b\na"], ["a x"]])
    assert found.counts == {"a": 3, "b": 2, " ": 2, "\n": 1}
    assert found.is_certain
