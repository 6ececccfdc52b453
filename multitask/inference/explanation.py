r"""What a user sees of generation while it runs: the candidates of each step, and the text part by part.

`Explanation` and `TextStreamer` are callbacks of `decoding.generate`. A step as JSON: `{"id": 7, "token": "\" cat\"",
"candidates": [{"id": 7, "token": "\" cat\"", "before": 0.4, "after": 0.6}, ...]}`.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from multitask.inference.decoding import OnTokens

_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}


@dataclass(frozen=True)
class Candidate:
    """A token that could have been picked, with its probability before and after the logits processors."""

    id: int
    token: str
    before: float
    after: float


@dataclass(frozen=True)
class Step:
    """The token that was picked, and the most likely ones; the picked token is always among them."""

    id: int
    token: str
    candidates: list[Candidate]


class Explanation:
    """Collects the steps of `num_rows` texts, with the `top` most likely tokens of each step."""

    def __init__(self, tokenizer: Any, num_rows: int, top: int) -> None:
        self.tokenizer, self.top = tokenizer, top
        self.steps: list[list[Step]] = [[] for _ in range(num_rows)]

    def on_tokens(self, at: Sequence[tuple[int, int]], picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
        """Called by `decoding.generate` with (row, step) of each row, and scores (n, V) before and after processing."""
        before, after = raw.softmax(-1), scores.softmax(-1)
        top = before.topk(min(self.top, before.shape[-1])).indices.tolist()
        for n, ((row, _), token) in enumerate(zip(at, picked, strict=True)):
            ids = top[n] if token in top[n] else [*top[n], token]
            candidates = [
                Candidate(i, token_text(self.tokenizer, i), b, a)
                for i, b, a in zip(ids, before[n, ids].tolist(), after[n, ids].tolist(), strict=True)
            ]
            self.steps[row].append(Step(token, token_text(self.tokenizer, token), candidates))


def token_text(tokenizer: Any, token: int) -> str:
    r"""A readable token: text in quotes, `\xed` for a byte that is part of a character, or a special token's name."""
    piece = _piece(tokenizer, token)
    if piece is None or token in tokenizer.added_tokens_decoder:
        return piece or f"<id {token}>"
    return _with_bytes(json.dumps(piece, ensure_ascii=False))


def token_piece(tokenizer: Any, token: int) -> str:
    """The same without quotes: pieces of whole characters, one after the other, are the text."""
    return _with_bytes(_piece(tokenizer, token) or f"<id {token}>")


def _piece(tokenizer: Any, token: int) -> str | None:
    """Text of a token, bytes of a partial character as surrogates; None: an embedding row without a token."""
    piece: str | None = tokenizer.convert_ids_to_tokens(token)
    if piece is None or token in tokenizer.added_tokens_decoder:
        return piece
    if "ByteLevel" in str(tokenizer.backend_tokenizer.decoder) and set(piece) <= set(_BYTES):
        piece = bytes(_BYTES[char] for char in piece).decode(errors="surrogateescape")
    return piece.replace("▁", " ")


def _with_bytes(text: str) -> str:
    return re.sub("[\udc80-\udcff]", lambda half: f"\\x{ord(half[0]) - 0xDC00:02x}", text)


class TextStreamer:
    """Streams the part of a growing text that later tokens do not change.

    That is the common prefix of the texts with and without the last token: a character may need several tokens, and a
    decoder may join a token to the one before it.

    Args:
        decode: gives the text of ids.
        end_ids: ids that are not part of the text.
        stream: called with each part; together they are the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], end_ids: set[int], stream: Callable[[str], None]) -> None:
        self.decode, self.end_ids, self.stream = decode, end_ids, stream
        self.ids: list[int] = []
        self.text = self.streamed = ""

    def on_tokens(self, at: Sequence[tuple[int, int]], picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
        """Called by `decoding.generate` with the next token of the one row."""
        self.add(picked[0])

    def add(self, token: int) -> None:
        """The next token."""
        if token not in self.end_ids:
            self.ids.append(token)
            last, self.text = self.text, self.decode(self.ids)
            equal = takewhile(lambda pair: pair[0] == pair[1], zip(last, self.text, strict=False))
            self._stream_up_to("".join(char for char, _ in equal).rstrip("\N{REPLACEMENT CHARACTER}"))

    def end(self) -> None:
        """Streams the rest."""
        self._stream_up_to(self.text)

    def _stream_up_to(self, text: str) -> None:
        if len(text) > len(self.streamed) and text.startswith(self.streamed):
            self.stream(text[len(self.streamed) :])
            self.streamed = text


def call_all(callbacks: Sequence[OnTokens]) -> OnTokens | None:
    """One callback that calls all of them; None where there are none."""

    def on_tokens(at: Sequence[tuple[int, int]], picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
        for callback in callbacks:
            callback(at, picked, raw, scores)

    return on_tokens if callbacks else None
