r"""Plain prompts for a model that was never taught a task: solved examples, a question, and the place for an answer.

`Prompter(nli, tokenizer, ...).text("ko", [row], query)` ->
`"...\n가설: ...\n관계: 중립\n\n...\n가설: ...\n관계:"`: demonstrations first, whole, as many as fit the window.
"""

import hashlib
import heapq
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.pattern import parse, render_plain
from multitask.task import Prompt, Task
from multitask.tokenization.tokenizer import plain_reader

BREAKS = ("\n", " | ", " / ", ". ")
"""What may stand for a line break in a prompt: the first that survives the tokenizer."""
CONTENT_FREE = ("N/A", "", "[MASK]")
"""What says nothing: the answers' likelihoods after it are a prompt's own bias (Zhao et al., 2021)."""
_SPARE = 8  # demonstrations in reserve, for rows whose own duplicate was drawn


@dataclass(frozen=True)
class Prompted:
    """One query with its demonstrations, as ids.

    ids: demonstrations and query. choices: ids of each continuation. row: the query; it may be truncated.
    shown: the demonstrations. text: what `ids` say.
    """

    ids: list[int]
    choices: list[list[int]]
    row: Row
    shown: tuple[Row, ...]
    text: str
    is_truncated: bool


def draw(
    rows: Iterable[Row], num_shots: int, num_draws: int, seed: int, balanced_by: str | None
) -> list[dict[str, list[Row]]]:
    """For each draw and language, rows in the order in which they become demonstrations; `num_shots` and some spare.

    A row's place is a hash of (seed, draw, its id): a pure function of them, whatever the order of the file, and the
    first four of eight are the four. balanced_by: a field whose values take turns; None: none. One pass, and no more
    rows in memory than drawn.
    """
    most = num_shots + _SPARE
    heaps: list[dict[tuple[str, str], list[tuple[int, int, Row]]]] = [{} for _ in range(num_draws)]
    for number, row in enumerate(rows):
        kind = row.fields.get(balanced_by, "") if balanced_by else ""
        for turn, by_kind in enumerate(heaps):
            digest = hashlib.blake2b(f"{seed}|{turn}|{row.id}".encode(), digest_size=8).digest()
            entry = -int.from_bytes(digest, "big"), number, row
            heap = by_kind.setdefault((row.language, kind), [])
            if len(heap) < most:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    drawn: list[dict[str, list[Row]]] = []
    for by_kind in heaps:
        drawn.append({})
        for language in sorted({language for language, _ in by_kind}):
            queues = [sorted(heap, reverse=True) for (of, _), heap in by_kind.items() if of == language]
            queues.sort(key=lambda queue: queue[0][:2], reverse=True)
            turns = [entry[2] for entries in zip_longest(*queues) for entry in entries if entry is not None]
            drawn[-1][language] = turns[:most]
    return drawn


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


class Prompter:
    """Writes and encodes the prompts of one task for one tokenizer and one window."""

    def __init__(self, task: Task, tokenizer: Any, window: int, separator: str = "\n\n") -> None:
        if not task.prompts:
            raise InputError(
                f"task '{task.name}' has no plain prompts (`prompts` in its file); an untuned model needs one"
            )
        self.task, self.tokenizer, self.window = task, tokenizer, window
        self.plain = plain_reader(tokenizer)
        letter = next(filter(self._survives, "a0가"), "a")  # a vocabulary of one language may not have the others'
        self.line = next((mark for mark in BREAKS if self._survives(f"{letter}{mark}{letter}")), " ")
        self.separator = separator.replace("\n", self.line)
        self.first_ids = self._first_ids()
        self._continuations: dict[tuple[str, str], list[int]] = {}

    def prompt(self, language: str) -> Prompt:
        """The template of a language, or the task's first one."""
        return self.task.prompts[language if language in self.task.prompts else next(iter(self.task.prompts))]

    def stop(self, language: str) -> re.Pattern[str]:
        """What ends a written answer: a line break, or the word that the next demonstration would begin with.

        To be searched in text with a space before it: of a mark with spaces, decoding drops the first one.
        """
        first = parse(self.prompt(language).template)[0]
        words = (first.literal or ("" if first.field else first.text)).split()
        marks = [re.escape(self.line)] if self.line != " " else []  # a plain space parts the words of an answer, too
        return re.compile("|".join([*marks, *(rf"(?<!\S){re.escape(word)}" for word in words[:1])]) or "(?!)")

    def question(self, row: Row) -> str:
        """The prompt of one row without its answer."""
        return render_plain(self.task, row.fields, row.language).replace("\n", self.line)

    def continuations(self, row: Row) -> list[str]:
        """What may follow: the words of a closed set, in order, or else the target alone; each with its space."""
        if not self.task.is_closed:
            return [" " + row.fields[self.task.target].replace("\n", self.line)]
        words = self.prompt(row.language).words
        if words is None:
            return [f" {choice}" for choice in row.choices]
        if len(words) != len(row.choices):
            raise InputError(
                f"{row.where}: task '{self.task.name}' has {len(words)} prompt words for {len(row.choices)} choices "
                f"({', '.join(row.choices)}); one word for each was expected"
            )
        return list(words)

    def solved(self, row: Row) -> str:
        """One demonstration: question and answer."""
        answers = self.continuations(row)
        answer = answers[row.choices.index(row.fields[self.task.target])] if self.task.is_closed else answers[0]
        return self.question(row) + answer

    def text(self, shown: Sequence[Row], row: Row) -> str:
        """Demonstrations and the question."""
        return self.separator.join([*map(self.solved, shown), self.question(row)])

    def encode(self, row: Row, ranking: Sequence[Row], num_shots: int) -> Prompted | None:
        """The row after its demonstrations, as many whole ones as fit; None if the question alone does not.

        Never shown is the row itself, or one that asks the same. Only when no demonstration fits is the row's `cut`
        field shortened, from its end.
        """
        asked = self._asked(row)
        others = (other for other in ranking if self._asked(other) != asked)  # ids of two files may be the same
        shown = [other for other, _ in zip(others, range(num_shots), strict=False)]
        is_truncated = False
        while True:
            text = self.text(shown, row)
            ids = [*self.first_ids, *self._ids(text)]
            words = self.continuations(row)
            choices = [self._continuation(text, word) for word in words]
            if len(set(map(tuple, choices))) < len(choices):
                raise InputError(
                    f"{row.where}: two of the answers {', '.join(map(repr, words))} have the same tokens in this "
                    "tokenizer, so a model cannot tell them apart; use other words in the plugin's prompts or the "
                    "source's labels"
                )
            room = max(map(len, choices)) if self.task.is_closed else self.task.max_new_tokens
            excess = len(ids) + room - self.window
            if excess <= 0:
                return Prompted(ids, choices, row, tuple(shown), text, is_truncated)
            if shown:
                shown.pop()
                continue
            shorter = self._shortened(row, excess)
            if shorter is None:
                return None
            row, is_truncated = shorter, True

    def content_free(self, prompted: Prompted) -> list[list[int]]:
        """The same demonstrations before questions that say nothing; those that fit the window."""
        found = []
        for nothing in CONTENT_FREE:
            fields = {name: nothing for name in prompted.row.fields if name != self.task.target}
            text = self.text(prompted.shown, replace(prompted.row, fields=prompted.row.fields | fields))
            ids = [*self.first_ids, *self._ids(text)]
            if len(ids) + max(map(len, prompted.choices)) <= self.window:
                found.append(ids)
        return found

    def _asked(self, row: Row) -> list[str]:
        """What a row asks, whatever its case and spacing; of a text to be written from its kind alone, that text."""
        given = [text for name, text in row.fields.items() if name not in (self.task.target, self.task.label)]
        return [_fold(text) for text in given or [row.fields[self.task.target]]]

    def _shortened(self, row: Row, excess: int) -> Row | None:
        """The row with at least `excess` tokens less in its `cut` field; None when it has none to give."""
        value = row.fields.get(self.task.truncate or "", "")
        offsets = self.plain.encode(value, add_special_tokens=False).offsets
        if self.task.truncate is None or len(offsets) <= excess:
            return None
        shorter = value[: offsets[len(offsets) - excess][0]].rstrip()
        return replace(row, fields=row.fields | {self.task.truncate: shorter}) if shorter else None

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.plain.encode_batch_fast([text], add_special_tokens=False)[0].ids  # fast: without offsets
        return ids

    def _continuation(self, text: str, word: str) -> list[int]:
        """Ids of a continuation, read together with the end of the prompt, whose ids it leaves as they are.

        Where the border would merge, the continuation is read alone. Raises InputError for a choice that has no ids.
        """
        tail = text[text.rfind(self.line) + len(self.line) :] if self.line in text else text
        if (tail, word) not in self._continuations:
            before, whole = self._ids(tail), self._ids(tail + word)
            ids = whole[len(before) :] if whole[: len(before)] == before else self._ids(word)
            if not ids and self.task.is_closed:
                raise InputError(
                    f"task '{self.task.name}': the answer {word!r} has no tokens in this tokenizer, so a model cannot "
                    "be asked for it; use other words in the plugin's prompts or the source's labels"
                )
            if len(self._continuations) > 10_000:  # of open answers, each its own
                self._continuations.clear()
            self._continuations[tail, word] = ids
        return self._continuations[tail, word]

    def _survives(self, text: str) -> bool:
        back: str = self.tokenizer.decode(self._ids(text))
        return back.strip() == text

    def _first_ids(self) -> list[int]:
        """The id that a tokenizer puts before every text, if it does."""
        bos = self.tokenizer.bos_token_id
        with_special: list[int] = self.tokenizer("a")["input_ids"]
        return [bos] if bos is not None and with_special[:1] == [bos] and self._ids("a")[:1] != [bos] else []
