r"""Where a generated answer ends.

With the default marks, `"\n\nSeoul\nQ: Where"` is the answer `"\n\nSeoul"`: a mark counts only behind the first word,
since untuned models often begin an answer with a line break.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SENTENCE = r"\S.*?[.!?。…]+[\"'”’)\]]*(?=\s)"


@dataclass(frozen=True)
class StopRule:
    """Marks that end an answer, and how many sentences of it are taken.

    marks: searched behind the leading blanks, in text with a space before and behind it: of a mark with spaces,
        decoding drops the first one.
    blank: what is skipped before a mark counts.
    sentences: so many sentences are the answer; None: all of them (Radford et al., 2019, section 3.6, take the first
        three sentences of a summary).
    """

    marks: re.Pattern[str]
    blank: re.Pattern[str]
    sentences: int | None = None

    @classmethod
    def of(cls, marks: Sequence[str], line: str, words: Sequence[str] = (), sentences: int | None = None) -> "StopRule":
        """A rule of literal marks and of words (which end an answer where a word begins); line: the line break."""
        found = [*map(re.escape, marks), *(rf"(?<!\S){re.escape(word)}" for word in words)]
        blank = rf"(?:\s|{re.escape(line.strip())}(?!\S))*" if line.strip() else r"\s*"
        return cls(re.compile("|".join(found) or "(?!)"), re.compile(blank), sentences)

    def _end(self, text: str, is_whole: bool) -> int | None:
        """Where the answer ends; None: not in this text. is_whole: nothing follows the text."""
        start = self.blank.match(f" {text}")
        assert start is not None
        begin = max(0, start.end() - 1)
        behind = " " if is_whole else ""
        found = self.marks.search(f" {text[begin:]}{behind}")
        ends = [begin + max(0, found.start() - 1)] if found else []
        if self.sentences is not None:
            counted = re.match(rf"\s*(?:{_SENTENCE}\s*){{{self.sentences}}}", f"{text[begin:]}{behind}", re.DOTALL)
            ends += [begin + len(counted[0].rstrip())] if counted else []
        return min(ends) if ends else None

    def is_reached(self, text: str) -> bool:
        """Whether the text so far holds a whole answer; of a mark with spaces the last may not have been generated."""
        return self._end(text, is_whole=False) is not None

    def answer(self, text: str) -> str:
        """The text up to where the answer ends; leading blanks are kept."""
        return text[: self._end(text, is_whole=True)]
