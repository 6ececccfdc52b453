"""Continuous batching: rows of any number of requests decode together, and enter and leave between two steps.

`batch.waiting.append(row)`, then `batch.step()` until `row.is_finished is not None`: `row.new` holds the ids that
`decoding.generate` gives for this prompt alone.
"""

from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multitask.config.evaluation import SamplingConfig
from multitask.inference.decoding import IsDone, TokenPicker, generate, logits_processors_of, uniform_of
from multitask.inference.kv_cache import DecodingBatch, PrefixCache, logits, prefix_groups, supports_shared_prefix

_LENGTH_STEP = 64  # tokens by which the cache grows


class TokenScore(NamedTuple):
    """A picked token with its log-probability, and the most likely tokens, under the model's own distribution."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(eq=False)
class DecodingRow:
    """One prompt to continue, with its own settings, and what was generated so far.

    number, sample: with the seed they decide what is drawn, as in `Generator`. num_top: record the score of each token
    and so many candidates. choices: continuations of the prompt whose nats are measured. on_token: called after each
    token. is_cancelled: whether nobody waits for the row any more.
    """

    prompt: list[int]
    max_new_tokens: int
    end_ids: Set[int]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    number: int = 0
    sample: int = 0
    num_top: int | None = None
    choices: Sequence[list[int]] = ()
    is_done: IsDone = lambda new: False
    on_token: Callable[["DecodingRow"], None] = lambda row: None
    is_cancelled: Callable[[], bool] = lambda: False
    new: list[int] = field(default_factory=list)
    tokens: list[TokenScore] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    is_finished: bool | None = None
    """True: the model ended the text; False: it stopped at the limit; None: it is not complete."""

    @property
    def length(self) -> int:
        """The most tokens of the row."""
        return len(self.prompt) + self.max_new_tokens

    def add(self, token: int, score: TokenScore | None) -> None:
        """Adds a token, unless it is an end token."""
        if token in self.end_ids:
            self.is_finished = True
            return
        self.new.append(token)
        if score is not None:
            self.tokens.append(score)
        if self.is_done(self.new):
            self.is_finished = True
        elif len(self.new) == self.max_new_tokens:
            self.is_finished = False

    def uniform(self, step: int) -> float:
        """The number that draws the token of a step; independent of the batch."""
        return uniform_of(self.sampling.seed, self.number, self.sample, step)


class ContinuousBatch:
    """The rows of one model that decode together.

    Rows enter in their order of arrival while there are at most `max_rows`, and while rows times the length of the
    longest is at most `batch_tokens`. A model that does not support a `KVCache` decodes one row after the other.
    """

    def __init__(self, model: Any, max_rows: int, batch_tokens: int) -> None:
        self._is_shared = supports_shared_prefix(model, 1) and supports_shared_prefix(model, 1 << 30)
        self.model, self.batch_tokens = model, batch_tokens
        self.max_rows = max_rows if self._is_shared else 1
        self.waiting: deque[DecodingRow] = deque()
        self.rows: list[DecodingRow] = []
        self._cache = DecodingBatch(PrefixCache(model, ()), 0, 0)

    @torch.no_grad()
    def step(self) -> None:
        """One forward pass: a token for every row, new rows included."""
        self._drop(lambda row: row.is_cancelled())
        self.waiting = deque(row for row in self.waiting if not row.is_cancelled())
        entering = self._entering()
        if not self.rows and not entering:
            return
        if not self._is_shared:
            self.rows = entering
            self._decode_alone(entering[0])
            self.rows = []
            return
        last_ids = [row.new[-1] for row in self.rows]
        groups = []
        prompts = [row.prompt for row in entering]
        for numbers, common in prefix_groups(prompts, self.max_rows):
            groups.append((prompts[numbers[0]][:common], [prompts[n][common:] for n in numbers]))
            self.rows += [entering[n] for n in numbers]
        hidden = self._cache.advance(self.model, last_ids, groups)
        self._pick(logits(self.model, hidden))
        self._drop(lambda row: row.is_finished is not None)

    def clear(self) -> list[DecodingRow]:
        """Removes all rows, after an error; returns them."""
        found = [*self.rows, *self.waiting]
        self.rows, self.waiting = [], deque()
        self._cache = DecodingBatch(PrefixCache(self.model, ()), 0, 0)
        return found

    def _entering(self) -> list[DecodingRow]:
        """Waiting rows for which there is space, which the cache has then."""
        found: list[DecodingRow] = []
        longest = max((row.length for row in self.rows), default=0)
        while self.waiting and len(self.rows) + len(found) < self.max_rows:
            row = self.waiting[0]
            size = (len(self.rows) + len(found) + 1) * max(longest, row.length)
            if size > self.batch_tokens and (self.rows or found):
                break
            self.waiting.popleft()
            if not row.is_cancelled():
                found.append(row)
                longest = max(longest, row.length)
        if found:
            self._reserve(len(self.rows) + len(found), longest)
        return found

    def _reserve(self, num_rows: int, length: int) -> None:
        """Makes the cache large enough; one without rows that is far too long is replaced by a shorter one."""
        cache = self._cache
        is_fitting = cache.num_rows > 0 or cache.max_length <= 2 * length
        if num_rows <= cache.max_rows and length <= cache.max_length and is_fitting:
            return
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        num_rows = max(num_rows, min(self.max_rows, self.batch_tokens // length))
        larger = DecodingBatch(cache.prefix, num_rows, length)
        if cache.num_rows:
            larger.lengths = cache.lengths
            larger.keys = {layer: _enlarged(old, num_rows, length) for layer, old in cache.keys.items()}
            larger.values = {layer: _enlarged(old, num_rows, length) for layer, old in cache.values.items()}
        self._cache = larger

    def _pick(self, raw: Tensor) -> None:
        """The next token of each row of scores (n, V); rows of the same settings are picked together."""
        groups: dict[object, list[int]] = {}
        for place, row in enumerate(self.rows):
            config = row.sampling
            key = (config.repetition_penalty, config.temperature, config.top_k, config.top_p)
            groups.setdefault(key, []).append(place)
        scores = self._scores(raw)
        for places in groups.values():
            mine = [self.rows[place] for place in places]
            picked = _picker(mine)(raw[places], [(n, row.new) for n, row in enumerate(mine)])
            for place, row, token in zip(places, mine, picked, strict=True):
                row.add(token, scores[place](token) if place in scores else None)
                row.on_token(row)

    def _scores(self, raw: Tensor) -> dict[int, Callable[[int], TokenScore]]:
        """For each row whose tokens are recorded, the score of a token."""
        places = [place for place, row in enumerate(self.rows) if row.num_top is not None]
        if not places:
            return {}
        logprobs = raw[places].float().log_softmax(-1)
        return {place: partial(_score, logprobs[n], self.rows[place].num_top or 0) for n, place in enumerate(places)}

    def _drop(self, is_dropped: Callable[[DecodingRow], bool]) -> None:
        for place in reversed(range(len(self.rows))):
            if is_dropped(self.rows[place]):
                if self._is_shared:
                    self._cache.drop(place)
                self.rows[place] = self.rows[-1]
                self.rows.pop()

    def _decode_alone(self, row: DecodingRow) -> None:
        """Through transformers' own cache."""

        def on_tokens(at: object, picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
            score = None if row.num_top is None else _score(raw[0].float().log_softmax(-1), row.num_top, picked[0])
            row.add(picked[0], score)
            row.on_token(row)

        generate(
            self.model,
            [row.prompt],
            row.max_new_tokens,
            row.end_ids,
            self.batch_tokens,
            is_done=lambda new: row.is_finished is not None or row.is_cancelled(),
            uniform=(lambda _, step: row.uniform(step)) if row.sampling.is_sampled else None,
            processors=logits_processors_of(row.sampling),
            on_tokens=on_tokens,
        )


def _picker(rows: Sequence[DecodingRow]) -> TokenPicker:
    """Picks the tokens of rows with the same settings but the seed."""
    config = rows[0].sampling
    processors = logits_processors_of(config)
    prompts = [torch.tensor(row.prompt, dtype=torch.long) for row in rows] if processors else []
    uniform = (lambda n, step: rows[n].uniform(step)) if config.is_sampled else None
    return TokenPicker(prompts, uniform, processors, None)


def _score(logprobs: Tensor, num_top: int, token: int) -> TokenScore:
    """Of log-probabilities (V,)."""
    top = logprobs.topk(min(num_top, len(logprobs)))
    return TokenScore(token, float(logprobs[token]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def _enlarged(old: Tensor, num_rows: int, length: int) -> Tensor:
    """Keys or values (rows, H, length, D) with more rows or a greater length, zeros where there was nothing."""
    new = old.new_zeros(num_rows, old.shape[1], length, old.shape[3])
    rows, tokens = min(num_rows, old.shape[0]), min(length, old.shape[2])
    new[:rows, :, :tokens] = old[:rows, :, :tokens]
    return new
