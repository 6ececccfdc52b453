"""What a tokenizer loses of many texts, without encoding each of them again: each character is tried once."""

import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from multitask.tokenization.tokenizer import fold, lost_characters

_NEW, _LOST_SPACE, _KEPT_SPACE, _LOST, _KEPT = range(5)  # what becomes of a character


class CharacterSurvey:
    """Counts characters of a plain text corpus that do not survive encode and decode; tries each character once.

    A character is tried alone, white space between two letters, and no text is encoded again. What is lost otherwise,
    as a word that is too long for a WordPiece vocabulary, shows in `num_unknown`.
    """

    def __init__(self, plain: Tokenizer, has_unknown: bool) -> None:
        self.plain = plain
        self.has_unknown = has_unknown
        self.kinds = np.full(sys.maxunicode + 1, _NEW, np.uint8)
        self.letter: str | None = None  # one that survives

    def count(self, texts: Sequence[str]) -> "TextCounts":
        """What texts, none of them empty, lose after NFC, and how many words they have. Raises `UnknownCharacter`."""
        normal = [
            text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text) for text in texts
        ]
        codes = np.frombuffer("".join(normal).encode("utf-32-le"), "<u4")
        kinds = self.kinds[codes]
        if not kinds.all():
            new = map(chr, np.unique(codes[kinds == _NEW]).tolist())
            for character in sorted(new, key=str.isspace):  # letters first
                self._look(character)
            kinds = self.kinds[codes]
        is_space = kinds <= _KEPT_SPACE
        begins = np.cumsum([len(text) for text in normal[:-1]], dtype=np.intp)
        num_words = np.count_nonzero(is_space[:-1] > is_space[1:]) + int(not is_space[0])
        num_words += np.count_nonzero(~(is_space[begins - 1] | is_space[begins]))  # a split point ends a word
        lost = kinds & 1 == 1
        values, counts = np.unique(codes[lost] if lost.any() else codes[:0], return_counts=True)
        return TextCounts(Counter(dict(zip(map(chr, values.tolist()), counts.tolist(), strict=True))), int(num_words))

    def _look(self, character: str) -> None:
        if character.isspace():
            if self.letter is None:
                return  # later
            survives = self._back(self.letter + character + self.letter) == f"{self.letter} {self.letter}"
            if character == "\n" and survives:
                ids = self.plain.encode(f"{self.letter}\n{self.letter}", add_special_tokens=False).ids
                survives = "\n" in self.plain.decode(ids, skip_special_tokens=False)
        else:
            survives = self._back(character) == character
            self.letter = self.letter or (character if survives else None)
        if not survives and not self.has_unknown:
            # What clean-up takes away, or turns into something known, is not unknown.
            clean = self.plain.normalizer.normalize_str(character) if self.plain.normalizer else character
            known = fold(clean.replace("▁", " "))
            if clean and (not known or self._back(known) != known):
                raise UnknownCharacter(character)
        space, letter = (_KEPT_SPACE, _KEPT) if survives else (_LOST_SPACE, _LOST)
        self.kinds[ord(character)] = space if character.isspace() else letter

    def _back(self, text: str) -> str | None:
        try:
            ids = self.plain.encode(text, add_special_tokens=False).ids
        except Exception:  # WordLevel and WordPiece, without a token for what they do not know
            return None
        return fold(self.plain.decode(ids, skip_special_tokens=False))


class TextCounts(NamedTuple):
    """Of some texts: the characters that a tokenizer loses, and the words."""

    lost: Counter[str]
    num_words: int


class UnknownCharacter(Exception):
    """A character that a tokenizer without an unknown token would drop."""


class LostCharacters:
    """The characters that texts lose, counted as `lost_characters` counts them, mostly without encoding them again.

    A text is encoded and decoded where it holds a character (after NFC) that is lost alone or between two letters, and
    where it is one of a sample: the first call's texts and those of every `_EVERY`-th call. So what is lost whatever
    stands beside it is always counted, and exactly. Where a text of the sample loses something else, `is_certain`
    becomes False: the loss depends on neighbours, and all texts are to be counted by `lost_characters`. Missed is only
    a loss that depends on neighbours and occurs in no text of the sample. Vocabularies of words, where it would be
    common, are counted exactly from the start.

    counts: of the texts so far.
    """

    _EVERY = 64

    def __init__(self, tokenizer: PreTrainedTokenizerFast, plain: Tokenizer) -> None:
        self.counts: Counter[str] = Counter()
        self.is_certain = True
        self._tokenizer, self._plain = tokenizer, plain
        model = plain.model
        self._has_words = not isinstance(model, models.BPE | models.Unigram) or bool(
            isinstance(model, models.BPE) and (model.continuing_subword_prefix or model.end_of_word_suffix)
        )
        self._seen, self._kept = set[str](), set[str]()
        self._letter = ""  # one that survives
        self._num_calls = 0

    def add(self, texts: Sequence[str]) -> None:
        """Counts what some texts lose."""
        if self._has_words:
            self.counts.update(self._lost(texts))
            return
        joined = "".join(texts)
        normal = texts
        if not joined.isascii() and not unicodedata.is_normalized("NFC", joined):
            normal = [unicodedata.normalize("NFC", text) for text in texts]
            joined = "".join(normal)
        characters = set(joined)
        self._try(characters - self._seen)
        doubtful = characters - self._kept
        chosen = [doubtful and not doubtful.isdisjoint(text) for text in normal]
        self.counts.update(self._lost([text for text, is_chosen in zip(texts, chosen, strict=True) if is_chosen]))
        if self._num_calls % self._EVERY == 0 and self.is_certain:
            rest = [text for text, is_chosen in zip(texts, chosen, strict=True) if not is_chosen]
            self.is_certain = not self._lost(rest)
        self._num_calls += 1

    def _try(self, new: set[str]) -> None:
        """Finds out which characters survive."""
        if not new:
            return
        letters = self._survivors(sorted(c for c in new if not c.isspace()), "")
        self._letter = self._letter or next(iter(letters), "")
        if self._letter:  # else nothing is certain yet
            self._kept.update(self._survivors([*letters, *sorted(filter(str.isspace, new))], self._letter))
            self._seen |= new

    def _survivors(self, characters: list[str], beside: str) -> list[str]:
        """Those that are not lost with `beside` before and after each."""
        if not self._lost([beside + character + beside for character in characters]):
            return characters
        half = len(characters) // 2
        halves = (characters[:half], characters[half:]) if half else ()
        return [character for part in halves for character in self._survivors(part, beside)]

    def _lost(self, texts: Sequence[str]) -> Counter[str]:
        return lost_characters(texts, self._tokenizer, self._plain) if texts else Counter()
