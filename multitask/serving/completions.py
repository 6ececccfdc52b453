"""OpenAI's completions: free text continued by any loaded model, as `multitask generate` does without a task.

`TextCompletion(model, request, "cmpl-1")`: `encode()` gives the rows, `finish(rows)` the answer, and `part(...)` one
event of a stream. Called by the engine's thread.
"""

import copy
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial

from multitask.config.evaluation import SamplingConfig
from multitask.inference.explanation import TextStreamer
from multitask.inference.generator import Generator
from multitask.inference.prompt_input import PromptInput
from multitask.serving.batch import DecodingRow
from multitask.serving.loading import ServedModel
from multitask.serving.predictions import reason_of, token_of
from multitask.serving.schema import Choice, Completion, CompletionRequest, Logprobs, Token, Usage

_TOKENS_PER_CHARACTER = 4  # at most, in UTF-8


class TextCompletion:
    """One request. stream: called with the parts of its texts while they are generated; None: they are not."""

    def __init__(
        self,
        model: ServedModel,
        generator: Generator,
        request: CompletionRequest,
        stream: Callable[[Completion], None] | None = None,
    ) -> None:
        self.id, self.created, self.request = f"cmpl-{secrets.token_hex(12)}", int(time.time()), request
        self.model, self.stream = model, stream
        self.prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        self.num_samples = request.n or 1
        self.stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        self._generator = copy.copy(generator)
        self._generator.max_new_tokens = request.max_tokens

    @property
    def num_rows(self) -> int:
        """Texts of the answer."""
        return len(self.prompts) * self.num_samples

    def encode(self) -> list[DecodingRow]:
        """`n` rows for each prompt; raises InputError for a prompt that does not fit the window."""
        request, rows = self.request, list[DecodingRow]()
        seed = request.seed if request.seed is not None else secrets.randbits(62)
        sampling = SamplingConfig(seed=seed)
        if request.temperature is None or request.temperature > 0:
            sampling = SamplingConfig(temperature=request.temperature or 1.0, top_p=request.top_p, seed=seed)
        for number, text in enumerate(self.prompts):
            prompt = self._generator.encode(PromptInput(text, f"prompt.{number}"))
            for sample in range(self.num_samples):
                row = DecodingRow(
                    prompt.ids, prompt.max_new_tokens, frozenset(self._generator.end_ids), sampling, number, sample
                )
                row.num_top = request.logprobs
                if self.stops:
                    row.is_done = partial(self._has_stop, row)
                if self.stream is not None:
                    row.on_token = _RowStream(self, len(rows), row, self.stream).on_token
                rows.append(row)
        return rows

    def finish(self, rows: Sequence[DecodingRow]) -> Completion:
        """The answer to complete rows."""
        choices = []
        for index, row in enumerate(rows):
            text = self.text(row)
            logprobs = None if row.num_top is None else self._logprobs(row, text)
            choices.append(Choice(index=index, text=text, logprobs=logprobs, finish_reason=reason_of(row)))
        return self.part(choices, self.usage(rows))

    def part(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        """An answer, or an event of a stream."""
        return Completion(id=self.id, created=self.created, model=self.model.id, choices=choices, usage=usage)

    def usage(self, rows: Sequence[DecodingRow]) -> Usage:
        """Tokens of all prompts, each once, and of all texts."""
        prompts = sum(len(row.prompt) for row in rows[:: self.num_samples])
        new = sum(len(row.new) for row in rows)
        return Usage(prompt_tokens=prompts, completion_tokens=new, total_tokens=prompts + new)

    def decode(self, row: DecodingRow, ids: list[int]) -> str:
        """The text of generated ids behind a row's prompt."""
        return self._generator.decode(ids, row.prompt)

    def text(self, row: DecodingRow) -> str:
        """The text of a row up to the first stop."""
        text = self.decode(row, row.new)
        return text[: min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=len(text))]

    def _has_stop(self, row: DecodingRow, new: list[int]) -> bool:
        """Whether the last token completes a stop."""
        longest = max(map(len, self.stops))
        text = self.decode(row, new[-(longest * _TOKENS_PER_CHARACTER + 8) :])
        return any(stop in text for stop in self.stops)

    def _logprobs(self, row: DecodingRow, text: str) -> Logprobs:
        """Of all tokens, or of those that begin before a stop."""
        found = _no_logprobs()
        is_stopped = len(text) < len(self.decode(row, row.new))
        for number, score in enumerate(row.tokens):
            offset = num_certain(self.decode(row, row.new[:number]))
            if is_stopped and offset >= len(text):
                break
            _add(found, token_of(self.model.tokenizer, score), offset)
        return found


class _RowStream:
    """Streams the text of one row: what no later token changes, and what cannot be the beginning of a stop."""

    def __init__(
        self, completion: TextCompletion, index: int, row: DecodingRow, stream: Callable[[Completion], None]
    ) -> None:
        self.completion, self.index, self.row, self.stream = completion, index, row, stream
        self._streamer = TextStreamer(partial(completion.decode, row), set(), self._collect)
        self._certain, self._sent = "", 0

    def on_token(self, row: DecodingRow) -> None:
        """Called after each token of the row."""
        offset, is_new = num_certain(self._streamer.text), len(self._streamer.ids) < len(row.new)
        if is_new:  # it is no end token
            self._streamer.add(row.new[-1])
        if row.is_finished is None:
            text, reason = self._certain[: len(self._certain) - self._num_held()], None
        else:
            text, reason = self.completion.text(row), reason_of(row)
        is_stopped = reason is not None and len(text) < len(self._streamer.text)
        part, self._sent = text[self._sent :], max(self._sent, len(text))
        logprobs = None
        if is_new and row.num_top is not None and not (is_stopped and offset >= len(text)):
            logprobs = _no_logprobs()
            _add(logprobs, token_of(self.completion.model.tokenizer, row.tokens[-1]), offset)
        if part or reason or logprobs:
            choice = Choice(index=self.index, text=part, logprobs=logprobs, finish_reason=reason)
            self.stream(self.completion.part([choice]))

    def _collect(self, part: str) -> None:
        self._certain += part

    def _num_held(self) -> int:
        """Characters at the end that may be the beginning of a stop."""
        sizes = range(max(map(len, self.completion.stops), default=1) - 1, 0, -1)
        ends = (self._certain[-size:] for size in sizes if size <= len(self._certain))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self.completion.stops)), 0)


def num_certain(text: str) -> int:
    """Characters of a text without a partial one at its end."""
    return len(text.rstrip("\N{REPLACEMENT CHARACTER}"))


def _no_logprobs() -> Logprobs:
    return Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])


def _add(found: Logprobs, token: Token, offset: int) -> None:
    found.tokens.append(token.text)
    found.token_logprobs.append(token.logprob)
    top: dict[str, float] = {}
    for one in token.top:
        top.setdefault(one.text, one.logprob)  # two tokens may have the same text
    found.top_logprobs.append(top)
    found.text_offset.append(offset)
