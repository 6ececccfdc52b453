r"""Prompt formats: the stream of a tuned model, and plain text with demonstrations for an untuned one.

`PlainFormat(nli, tokenizer, ...).text([row], query)` ->
`"...\n가설: ...\n관계: 중립\n\n...\n가설: ...\n관계:"`: demonstrations first, whole, as many as fit the window.
"""

import hashlib
import heapq
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from multitask.config.evaluation import FewshotConfig
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.evaluation.evaluator import EncodedPrompt
from multitask.evaluation.prompting.stops import StopRule
from multitask.pattern import parse, render_plain
from multitask.task import END, Prompt, Task
from multitask.tokenization.row_encoder import Encoded, RowEncoder
from multitask.tokenization.tokenizer import plain_reader

BREAKS = ("\n", " | ", " / ", ". ")
"""What may stand for a line break in a prompt: the first that survives the tokenizer."""
CONTENT_FREE = ("N/A", "", "[MASK]")
"""What says nothing: the answers' likelihoods after it are a prompt's own bias (Zhao et al., 2021)."""
_SPARE = 8  # demonstrations in reserve, for rows whose own duplicate was drawn


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


class StreamFormat:
    """The prompts of a tuned model: as in training, without the target."""

    rule = "raw"
    has_likelihood = True

    def __init__(self, task: Task, tokenizer: Any, block_size: int) -> None:
        self.task, self.tokenizer, self.block_size = task, tokenizer, block_size
        self.encoder = RowEncoder(task, tokenizer, block_size, task.max_new_tokens)
        self.plain = self.encoder.plain
        self.end_id = int(tokenizer.convert_tokens_to_ids(END))
        self.end_ids = {self.end_id}
        self._literal = parse(task.stream)[-2].literal

    def encode(
        self, rows: Sequence[Row], rankings: Sequence[Sequence[Row]], num_shots: int
    ) -> list[EncodedPrompt | None]:
        """Rows to prompts; there are no demonstrations. None for a row that `RowEncoder` drops."""
        return [
            None if encoded is None else self._prompt(row, encoded)
            for row, encoded in zip(rows, self.encoder.encode(rows), strict=True)
        ]

    def _prompt(self, row: Row, encoded: Encoded) -> EncodedPrompt:
        ids, target = encoded.input_ids[: encoded.num_prompt], encoded.input_ids[encoded.num_prompt :]
        text = self.tokenizer.decode(ids).strip()
        choices = [self._answer_ids(word) for word in row.choices] if self.task.is_closed else []
        if choices:  # words of more tokens than `max_new_tokens` take theirs from the prompt's beginning
            ids = ids[-(self.block_size - max(map(len, choices))) :]
        fits = len(encoded.input_ids) <= self.block_size
        return EncodedPrompt(
            row, ids, text, choices, target if fits else None, len(encoded.input_ids), encoded.is_truncated
        )

    def _answer_ids(self, word: str) -> list[int]:
        """Ids of a choice as the stream holds it, end marker included."""
        return [*self.plain.encode(self._literal + word, add_special_tokens=False).ids, self.end_id]

    def stop(self, language: str) -> StopRule | None:
        """Nothing but the end marker ends an answer."""
        return None

    def completion(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def words(self, row: Row) -> Sequence[str]:
        """The choices in the row's language."""
        return row.choices

    def content_free(self, prompt: EncodedPrompt) -> list[list[int]]:
        """A tuned model is not calibrated."""
        return []

    def require_rows(self, num_kept: int, num_dropped: int, split: str) -> None:
        """Raises InputError when no row was kept."""
        if not num_kept:
            raise InputError(
                f"task '{self.task.name}', {split}: no usable row, {num_dropped} were dropped; raise train.block_size "
                "(or model.n_positions), or look at the rows with `preview`"
            )


class PlainFormat:
    """The prompts of an untuned model: plain text, demonstrations first."""

    def __init__(self, task: Task, tokenizer: Any, window: int, end_ids: set[int], config: FewshotConfig) -> None:
        if not task.prompts:
            raise InputError(
                f"task '{task.name}' has no plain prompts (`prompts` in its file); an untuned model needs one"
            )
        self.task, self.tokenizer, self.window, self.end_ids = task, tokenizer, window, end_ids
        self.rule: str = config.rule
        self.has_likelihood, separator = not task.is_closed, config.separator
        self.plain = plain_reader(tokenizer)
        letter = next(filter(self._survives, "a0가"), "a")  # a vocabulary of one language may not have the others'
        self.line = next((mark for mark in BREAKS if self._survives(f"{letter}{mark}{letter}")), " ")
        self.separator = separator.replace("\n", self.line)
        self.first_ids = self._first_ids()
        self._continuations: dict[tuple[str, str], list[int]] = {}

    def prompt(self, language: str) -> Prompt:
        """The template of a language, or the task's first one."""
        return self.task.prompts[language if language in self.task.prompts else next(iter(self.task.prompts))]

    def stop(self, language: str) -> StopRule:
        """What ends a written answer: what its template says, or else a line break or the template's first word.

        The separator, which follows the answers of demonstrations, always does.
        """
        prompt = self.prompt(language)
        marks, words = [*(prompt.stop or ()), self.separator], []
        if prompt.stop is None:
            first = parse(prompt.template)[0]
            words = (first.literal or ("" if first.field else first.text)).split()[:1]
            marks = [self.line, self.separator]
        marks = [mark.replace("\n", self.line) for mark in marks]
        # A plain space parts the words of an answer, too.
        return StopRule.of([mark for mark in marks if mark.strip(" ")], self.line, words, prompt.sentences)

    def question(self, row: Row) -> str:
        """The prompt of one row without its answer."""
        return render_plain(self.task, row.fields, row.language).replace("\n", self.line)

    def completion(self, ids: Sequence[int]) -> str:
        """The text of generated ids."""
        return str(self.tokenizer.decode(list(ids)))

    def words(self, row: Row) -> list[str]:
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
        answers = self.words(row)
        answer = answers[row.choices.index(row.fields[self.task.target])] if self.task.is_closed else answers[0]
        return self.question(row) + answer

    def text(self, shown: Sequence[Row], row: Row) -> str:
        """Demonstrations and the question."""
        return self.separator.join([*map(self.solved, shown), self.question(row)])

    def encode(
        self, rows: Sequence[Row], rankings: Sequence[Sequence[Row]], num_shots: int
    ) -> list[EncodedPrompt | None]:
        """Rows after their demonstrations, as many whole ones as fit; None for a row that does not fit alone."""
        return [self._prompt(row, ranking, num_shots) for row, ranking in zip(rows, rankings, strict=True)]

    def _prompt(self, row: Row, ranking: Sequence[Row], num_shots: int) -> EncodedPrompt | None:
        """One row. A demonstration is never the row itself, nor one with the same question.

        The row's `truncate` field is truncated, from its end, only when no demonstration fits.
        """
        asked = self._asked(row)
        others = (other for other in ranking if self._asked(other) != asked)  # ids of two files may be the same
        shown = [other for other, _ in zip(others, range(num_shots), strict=False)]
        is_truncated = False
        while True:
            text = self.text(shown, row)
            ids = [*self.first_ids, *self._ids(text)]
            words = self.words(row)
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
                return self._encoded(row, ids, text, choices, is_truncated, tuple(shown))
            if shown:
                shown.pop()
                continue
            shorter = self._shortened(row, excess)
            if shorter is None:
                return None
            row, is_truncated = shorter, True

    def _encoded(
        self, row: Row, ids: list[int], text: str, found: list[list[int]], is_truncated: bool, shown: tuple[Row, ...]
    ) -> EncodedPrompt:
        if self.task.is_closed:
            return EncodedPrompt(row, ids, text, found, None, len(ids), is_truncated, shown)
        target = found[0] if 0 < len(found[0]) <= self.window - len(ids) else None
        return EncodedPrompt(row, ids, text, [], target, len(ids), is_truncated, shown)

    def content_free(self, prompt: EncodedPrompt) -> list[list[int]]:
        """The same demonstrations before questions that say nothing; those that fit the context window."""
        found = []
        for nothing in CONTENT_FREE:
            fields = {name: nothing for name in prompt.row.fields if name != self.task.target}
            text = self.text(prompt.demonstrations, replace(prompt.row, fields=prompt.row.fields | fields))
            ids = [*self.first_ids, *self._ids(text)]
            if len(ids) + max(map(len, prompt.choices)) <= self.window:
                found.append(ids)
        return found

    def require_rows(self, num_kept: int, num_dropped: int, split: str) -> None:
        """Raises InputError when no row was kept."""
        if not num_kept:
            raise InputError(
                f"task '{self.task.name}', {split}: no question fits the model's window of {self.window} tokens, "
                f"{num_dropped} were dropped; use a model with a longer window"
            )

    def _asked(self, row: Row) -> list[str]:
        """What a row asks, whatever its case and spacing; of a text to be written from its kind alone, that text."""
        given = [text for name, text in row.fields.items() if name not in (self.task.target, self.task.label)]
        return [_fold(text) for text in given or [row.fields[self.task.target]]]

    def _shortened(self, row: Row, excess: int) -> Row | None:
        """The row with at least `excess` tokens less in its `truncate` field; None when it has none to give."""
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
