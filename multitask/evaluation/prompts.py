r"""Prompt formats: the stream of a tuned model, and plain text with demonstrations for an untuned one.

`PlainFormat(nli, tokenizer, ...).text([row], query)` ->
`"...\n가설: ...\n관계: 중립\n\n...\n가설: ...\n관계:"`: demonstrations first, whole, as many as fit the window.
"""

import copy
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from multitask.config.evaluation import FewshotConfig
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.evaluation.prompting.chat import Chat
from multitask.evaluation.prompting.formats import EncodedPrompt
from multitask.evaluation.prompting.stops import StopRule
from multitask.evaluation.prompting.templates import Style, templates_of
from multitask.pattern import parse, plain_turns, render_plain
from multitask.task import END, Prompt, Task
from multitask.tokenization.row_encoder import Encoded, RowEncoder
from multitask.tokenization.tokenizer import plain_reader, whole_text

BREAKS = ("\n", " | ", " / ", ". ")
"""What may stand for a line break in a prompt: the first that survives the tokenizer."""
CONTENT_FREE = ("N/A", "", "[MASK]")
"""What says nothing: the answers' likelihoods after it are a prompt's own bias (Zhao et al., 2021)."""


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


class StreamFormat:
    """The prompts of a tuned model: as in training, without the target."""

    has_likelihood = True
    is_calibrated = False
    shares_demonstrations = True

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
        text = self.tokenizer.decode(ids[len(self.encoder.first_ids) :]).strip()
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
        return whole_text(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def words(self, row: Row) -> Sequence[str]:
        """The choices in the row's language."""
        return row.choices

    def rule(self, language: str) -> str:
        """A tuned model answers by summed nats."""
        return "raw"

    def calibration(self, prompt: EncodedPrompt) -> dict[str, list[list[int]]]:
        """A tuned model is not calibrated."""
        return {}

    def require_rows(self, num_kept: int, num_dropped: int, split: str) -> None:
        """Raises InputError when no row was kept."""
        if not num_kept:
            raise InputError(
                f"task '{self.task.name}', {split}: no usable row, {num_dropped} were dropped; raise train.block_size "
                "(or model.n_positions), or look at the rows with `preview`"
            )


class PlainFormat:
    """The prompts of an untuned model: plain text, demonstrations first."""

    is_calibrated = True

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        window: int,
        end_ids: set[int],
        config: FewshotConfig,
        chat: Chat | None = None,
    ) -> None:
        self.chat = chat
        self.task, self.tokenizer, self.window = task, tokenizer, window
        self.end_ids = end_ids | (chat.end_ids if chat is not None else set())
        self.shares_demonstrations = config.demonstrations != "nearest"
        self.config, self.styles = config, dict[str, Style]()
        self.has_likelihood, separator = not task.is_closed, config.separator
        self.domain: Mapping[str, Sequence[Mapping[str, str]]] = {}
        """By language, fields of random words, for calibration."""
        self.plain = plain_reader(tokenizer)
        letter = next(filter(self._survives, "a0가"), "a")  # a vocabulary of one language may not have the others'
        self.line = next((mark for mark in BREAKS if self._survives(f"{letter}{mark}{letter}")), " ")
        self.separator = separator.replace("\n", self.line)
        self.first_ids = self._first_ids()
        self._continuations: dict[tuple[str, str], list[int]] = {}

    def with_styles(self, styles: Mapping[str, Style]) -> "PlainFormat":
        """The same with other templates and rules, by language."""
        found = copy.copy(self)
        found.styles, found._continuations = {**self.styles, **styles}, {}
        return found

    def style(self, language: str) -> Style:
        """How prompts of a language are written; unless chosen, by the first template."""
        if language not in self.styles:
            rule = "raw" if self.config.rule == "best" else self.config.rule
            self.styles[language] = Style(templates_of(self.task, language, self.config.prompts)[0], rule=rule)
        return self.styles[language]

    def prompt(self, language: str) -> Prompt:
        """The template of a language."""
        return self.style(language).prompt

    def rule(self, language: str) -> str:
        """The rule that predicts a choice in a language."""
        return self.style(language).rule

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

    def _is_chat(self, language: str) -> bool:
        return self.style(language).is_chat

    def question(self, row: Row) -> str:
        """The prompt of one row without its answer."""
        prompt = self.prompt(row.language)
        return render_plain(self.task, self._values(row), row.language, prompt, row.earlier).replace("\n", self.line)

    def turns(self, row: Row) -> tuple[list[tuple[str, str]], str]:
        """The same as a chat: questions and answers of the repetitions before the last one, and its question."""
        prompt = self.prompt(row.language)
        turns, last = plain_turns(self.task, self._values(row), row.language, prompt, row.earlier)
        fitted = [(asked.replace("\n", self.line), answer.replace("\n", self.line)) for asked, answer in turns]
        return fitted, last.replace("\n", self.line)

    def _values(self, row: Row) -> Mapping[str, str]:
        """The fields of a row, and its choices."""
        words = self.prompt(row.language).words or row.choices
        return (
            {"choices": ", ".join(word.strip() for word in words), **row.fields} if self.task.is_closed else row.fields
        )

    def completion(self, ids: Sequence[int]) -> str:
        """The text of generated ids."""
        return whole_text(self.tokenizer.decode(list(ids)))

    def words(self, row: Row) -> list[str]:
        """What may follow: the words of a closed set, in order, or else the target alone; each with its space."""
        if self.chat is not None and self._is_chat(row.language):
            return [self.chat.space + word.strip() for word in self._words(row)]
        return self._words(row)

    def _words(self, row: Row) -> list[str]:
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
        return self.question(row) + self._answer(row)

    def _answer(self, row: Row) -> str:
        answers = self.words(row)
        return answers[row.choices.index(row.fields[self.task.target])] if self.task.is_closed else answers[0]

    def text(self, shown: Sequence[Row], row: Row) -> str:
        """Demonstrations and the question; in a chat each is a turn of the user, each answer one of the assistant."""
        if self.chat is not None and self._is_chat(row.language):
            return self.chat.text(*self._chat_turns(shown, row))
        return self.separator.join([*map(self.solved, shown), self.question(row)])

    def _chat_turns(self, shown: Sequence[Row], row: Row) -> tuple[list[tuple[str, str]], str]:
        """Questions and answers of demonstrations and of the row's earlier repetitions, and the last question."""
        solved = []
        for other in shown:
            turns, last = self.turns(other)
            solved += [*turns, (last, self._answer(other).strip())]
        turns, question = self.turns(row)
        return [*solved, *turns], question

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
        if not self.shares_demonstrations:  # the most similar next to the question; the least similar drops out first
            shown.reverse()
        is_truncated = False
        while True:
            text, ids = self._text_and_ids(shown, row)
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
                shown.pop(-1 if self.shares_demonstrations else 0)
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

    def calibration(self, prompt: EncodedPrompt) -> dict[str, list[list[int]]]:
        """By rule, the same demonstrations before rows without content: `CONTENT_FREE`, or random words."""
        return {
            "calibrated": self.content_free(prompt),
            "domain_calibrated": self._around(prompt, self.domain.get(prompt.row.language, ())),
        }

    def content_free(self, prompt: EncodedPrompt) -> list[list[int]]:
        """The same demonstrations before questions that say nothing; those that fit the context window."""
        names = [name for name in prompt.row.fields if name != self.task.target]
        return self._around(prompt, [dict.fromkeys(names, nothing) for nothing in CONTENT_FREE])

    def _around(self, prompt: EncodedPrompt, rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """The prompt with other fields in place of its row's, in so far as it fits the context window."""
        found = []
        for fields in rows:
            row = replace(prompt.row, fields={**prompt.row.fields, **fields})
            _, ids = self._text_and_ids(prompt.demonstrations, row)
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
        given = [text for one in row.earlier for text in one.values()]
        given += [text for name, text in row.fields.items() if name not in (self.task.target, self.task.label)]
        return [_fold(text) for text in given or [row.fields[self.task.target]]]

    def _shortened(self, row: Row, excess: int) -> Row | None:
        """The row without its first repetition, or with `excess` tokens less in its `truncate` field; None: neither."""
        if row.earlier:
            return replace(row, earlier=row.earlier[1:])
        value = row.fields.get(self.task.truncate or "", "")
        offsets = self.plain.encode(value, add_special_tokens=False).offsets
        if self.task.truncate is None or len(offsets) <= excess:
            return None
        shorter = value[: offsets[len(offsets) - excess][0]].rstrip()
        return replace(row, fields=row.fields | {self.task.truncate: shorter}) if shorter else None

    def _text_and_ids(self, shown: Sequence[Row], row: Row) -> tuple[str, list[int]]:
        text = self.text(shown, row)
        if self.chat is None or not self._is_chat(row.language):
            return text, [*self.first_ids, *self._ids(text)]
        solved, question = self._chat_turns(shown, row)
        return text, self.chat.ids(text, [*(part for turn in solved for part in turn), question], self.plain)

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
