"""What a tokenizer loses of a long text: each kind of character is tried once."""

import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from multitask.tokenization.tokenizer import fold

_NEW, _LOST_SPACE, _KEPT_SPACE, _LOST, _KEPT = range(5)  # what becomes of a character


class CharacterSurvey:
    """Counts characters that do not survive encode and decode; looks at each kind of character once.

    `encoding.lost_characters` looks at whole texts, and for as long as it takes to encode them twice more. Here a
    character is tried alone, white space between two letters. What is lost otherwise, as a word that is too long for a
    WordPiece vocabulary, shows in `num_unknown`.
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
        num_words += np.count_nonzero(~(is_space[begins - 1] | is_space[begins]))  # a seam ends a word
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
