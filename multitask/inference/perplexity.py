"""Perplexity of plain text by a sliding window over one stream of tokens.

Tokens 0..9, window 4, stride 2: the windows 0-3, 2-5, 4-7, 6-9 score tokens 1-3, 4-5, 6-7, 8-9. A stride as long as the
window means no overlap: 0-3, 4-7, 8-9 score 1-3, 5-7, 9, as the first token of a window without overlap has no context.

This is the strategy for models of fixed length that Hugging Face documents ("Perplexity of fixed-length models");
with it, gpt2 has a published perplexity of 29.94 on the raw test set of WikiText-2, 1024 tokens without overlap.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from multitask.batching.collate import Ids
from multitask.data import corpus
from multitask.errors import InputError
from multitask.inference.likelihood import FINISH_NLL
from multitask.inference.scoring import example_nll
from multitask.models.lora import max_positions
from multitask.tokenization.chunks import pieces
from multitask.tokenization.tokenizer import check_characters, plain_reader

_PIECE = 1 << 18  # characters tokenized at a time, and bytes read at a time


@dataclass(frozen=True)
class TextPerplexity:
    """Scores of a text and what they were computed from."""

    perplexity: float
    """Per token."""
    word_perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_scored: int
    """Tokens with context."""
    num_words: int
    num_bytes: int
    num_windows: int
    window: int
    stride: int


@dataclass
class _Counts:
    """Sums over the text so far."""

    num_tokens: int = 0
    num_scored: int = 0
    num_words: int = 0
    num_bytes: int = 0
    num_windows: int = 0


def perplexity_of_text(
    model: Any, tokenizer: Any, path_or_text: Path | str, window: int, stride: int, batch_tokens: int
) -> TextPerplexity:
    """Perplexity of a text, or of a UTF-8 file, in memory that depends on `batch_tokens` alone.

    Each window of `window` tokens scores its last `stride` tokens, the first window all. Tokens without context are
    not scored: the first of the text and, without overlap, of every window. In the scores per word and per byte they
    count with the mean nats of the others. Words are separated by white space; bytes are those of the text in UTF-8,
    without a byte order mark. Markers in the text are plain text, and no token is added at either end.

    Args:
        model: any causal language model of transformers.
        tokenizer: its fast tokenizer.
        path_or_text: a `Path` is read, a `str` is the text itself.
        window: tokens of one window, at most as many as the model has positions.
        stride: tokens between the starts of two windows, 1 to `window`; smaller gives more context and is slower.
        batch_tokens: tokens of one forward pass, at least one window.

    Raises:
        InputError: an invalid window or stride, a file that cannot be read or is not UTF-8, no text, a character
            that the tokenizer would drop silently, or a likelihood that is not finite.
    """
    limit = max_positions(model)
    if window < 2 or (limit is not None and window > limit):
        at_most = "" if limit is None else f" and at most {limit}, the model's positions"
        raise InputError(f"a window of {window} tokens: expected at least 2{at_most}")
    if not 1 <= stride <= window:
        raise InputError(f"a stride of {stride} tokens: expected 1 to {window}, the window")
    where = str(path_or_text) if isinstance(path_or_text, Path) else "the text"
    counts, nll = _Counts(), 0.0
    parts = corpus.read(path_or_text, size=_PIECE) if isinstance(path_or_text, Path) else [path_or_text]
    ids = _ids(parts, tokenizer, counts, where)
    for batch in _batches(_windows(ids, window, stride), max(1, batch_tokens // window)):
        examples = [(tokens, len(tokens) - num_scored) for tokens, num_scored in batch]
        scored = [example for example in examples if example[1] < len(example[0])]
        nll += float(example_nll(model, scored, batch_tokens)[0].sum()) if scored else 0.0
        counts.num_windows += len(batch)
        counts.num_scored += sum(num_scored for _, num_scored in batch)
    if not counts.num_words:
        raise InputError(f"{where}: has no words; expected some text")
    if not counts.num_scored:
        raise InputError(f"{where}: has {counts.num_tokens} token, and the first has no context; expected more text")
    if not math.isfinite(nll):
        raise InputError(f"{where}: the likelihood of this text is not finite: the model's weights are broken")
    sums = {
        "nll": nll * counts.num_tokens / counts.num_scored,
        "tokens": float(counts.num_tokens),
        "words": float(counts.num_words),
        "bytes": float(counts.num_bytes),
    }
    return TextPerplexity(
        perplexity=float(FINISH_NLL["perplexity"](sums)),
        word_perplexity=float(FINISH_NLL["word_perplexity"](sums)),
        bits_per_byte=float(FINISH_NLL["bits_per_byte"](sums)),
        window=window,
        stride=stride,
        **asdict(counts),
    )


def _windows(stream: Iterable[Ids], window: int, stride: int) -> Iterator[tuple[Ids, int]]:
    """Each window's ids, and how many of them are scored, at its end."""
    buffer = np.empty(0, np.int32)
    num_scored = 0  # of the tokens in the buffer
    for ids in stream:
        buffer = np.concatenate([buffer, np.asarray(ids, np.int32)])
        while len(buffer) >= window:
            yield buffer[:window], window - max(num_scored, 1)
            buffer = buffer[stride:]
            num_scored = window - stride
    if len(buffer) > num_scored:
        yield buffer, len(buffer) - max(num_scored, 1)


def _batches(windows: Iterable[tuple[Ids, int]], size: int) -> Iterator[list[tuple[Ids, int]]]:
    windows = iter(windows)
    while batch := list(islice(windows, size)):
        yield batch


def _ids(parts: Iterable[str], tokenizer: Any, counts: _Counts, where: str) -> Iterator[list[int]]:
    """The ids of the whole text, piece by piece; adds tokens, words and bytes to `counts`."""
    plain, line = plain_reader(tokenizer), 1
    for piece in pieces(parts, plain, _PIECE):
        check_characters(tokenizer, piece, where, line)
        line += piece.count("\n")
        ids: list[int] = plain.encode(piece, add_special_tokens=False).ids
        counts.num_tokens += len(ids)
        counts.num_words += len(piece.split())
        counts.num_bytes += len(piece.encode())
        yield ids
