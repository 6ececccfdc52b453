"""From pieces to ids: every field is encoded alone, markers are put in by id, long rows are truncated in one field.

`A<|sep|>B<|nli|>neutral<|end|>` -> `Encoded(input_ids=[65, 302, 66, 303, 78, ..., 301], borders=[4])`: the first four
ids are the prompt, the rest is learned. Labels are not stored: they are the ids of the targets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from multitask.config.data import DataConfig
from multitask.data.row_schema import answer_words
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.pattern import Piece, parse, render, segments
from multitask.task import Task
from multitask.tokenization.tokenizer import first_ids, plain_reader


def with_answer_tokens(
    tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerFast, data: DataConfig
) -> dict[str, Task]:
    """The tasks with as many `max_new_tokens` as the longest answer of a closed one has, `<|end|>` included."""
    plain, found = plain_reader(tokenizer), dict(tasks)
    for name, task in tasks.items():
        if words := answer_words(task, data):
            literal = parse(task.stream)[-2].literal
            encoded = plain.encode_batch([literal + word for word in words], add_special_tokens=False)
            found[name] = replace(task, max_new_tokens=max(len(one.ids) for one in encoded) + 1)
    return found


Borders = int | Sequence[int] | npt.NDArray[np.integer[Any]]
"""Where ids turn from prompt to target and back: 4 or `[4]` with 9 ids: 0 to 3 prompt, 4 to 8 target. `[4, 9, 12]` with
15: also 9 to 11 prompt, 12 to 14 target. Their number is odd, as the end is always a target."""


def target_spans(borders: Borders, length: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each target among `length` ids."""
    several = (borders,) if isinstance(borders, int) else borders
    return zip(several[::2], (*several[1::2], length), strict=True)


class Encoded(NamedTuple):
    """A row as ids.

    input_ids: what the tokenizer puts before a text, prompt, target and `<|end|>`.
    borders: where targets begin and end.
    is_truncated: the `truncate` field was shortened, or first repetitions were left out.
    """

    input_ids: list[int]
    borders: list[int]
    is_truncated: bool = False

    @property
    def num_prompt(self) -> int:
        """Ids before the last target."""
        return self.borders[-1]


class _Draft(NamedTuple):
    """A rendered row that may still be too long.

    ids: of each piece. place, num_free: of the piece to shorten, and how many ids it may have; None: none.
    """

    pieces: tuple[Piece, ...]
    ids: list[list[int]]
    is_truncated: bool = False
    place: int | None = None
    num_free: int = 0

    @property
    def long_text(self) -> str | None:
        """The text to shorten."""
        return None if self.place is None else self.pieces[self.place].literal + self.pieces[self.place].text


class RowEncoder:
    """Encodes rows of one task for one tokenizer and one window.

    block_size: most ids of an example.
    max_answer_tokens: None in training, where the target is known and a known answer stays inside the kept window.
        In evaluation the ids to leave free for the answer: the prompt is truncated at its end, to
        `block_size - max_answer_tokens`.
    """

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerFast, block_size: int, max_answer_tokens: int | None = None
    ) -> None:
        self.task = task
        self.block_size = block_size
        self.max_answer_tokens = max_answer_tokens
        self.marker_ids: dict[str, int] = dict(tokenizer.get_added_vocab())
        self.plain = plain_reader(tokenizer)
        self.first_ids = first_ids(tokenizer)
        once, repeated = segments(task.stream)
        self._num_pieces = len(parse(repeated)) if repeated else len(parse(once))  # that end with a target
        self._markers = {marker: [number] for marker, number in self.marker_ids.items()}

    def encode(self, rows: Sequence[Row]) -> list[Encoded | None]:
        """Rows to examples, in order; None for a row that is dropped. Raises InputError for texts without ids.

        Dropped is what is too long without a field to truncate, and what has no token of prompt or target left. Equal
        texts are encoded once, and without offsets, which take time; those of texts to shorten are looked up.
        """
        rendered = [render(self.task, row.fields, earlier=row.earlier) for row in rows]
        texts = list(dict.fromkeys([p.literal + p.text for pieces in rendered for p in pieces if not p.is_marker]))
        ids = dict(zip(texts, [one.ids for one in self._batch(self.plain.encode_batch_fast, texts)], strict=True))
        markers = self._markers
        drafts = [
            self._draft(row, pieces, [markers[p.text] if p.is_marker else ids[p.literal + p.text] for p in pieces])
            for row, pieces in zip(rows, rendered, strict=True)
        ]
        long = list(dict.fromkeys(text for draft in drafts if draft and (text := draft.long_text) is not None))
        offsets = {
            text: one.offsets for text, one in zip(long, self._batch(self.plain.encode_batch, long), strict=True)
        }
        return [
            None if draft is None else self._assemble(row, draft, offsets)
            for row, draft in zip(rows, drafts, strict=True)
        ]

    def _batch(self, encode: Callable[..., list[Encoding]], texts: list[str]) -> list[Encoding]:
        try:
            return encode(texts, add_special_tokens=False) if texts else []
        except Exception as error:  # what `tokenizers` raises has no class of its own
            raise InputError(f"the tokenizer cannot encode the text of a row: {error}") from error

    def _draft(self, row: Row, pieces: tuple[Piece, ...], ids: list[list[int]]) -> _Draft | None:
        """A row without the first repetitions if it is too long with them; None for one that is dropped."""
        if not all(ids) and not all(p for p, piece in zip(ids, pieces, strict=True) if piece.field == self.task.target):
            return None
        sizes = list(map(len, ids))
        excess = sum(sizes) + len(self.first_ids) - self.block_size
        if self.max_answer_tokens is not None:  # the last two are the target and its end
            excess += self.max_answer_tokens - sum(sizes[-2:])
        if excess <= 0:
            return _Draft(pieces, ids)
        start = stop = len(pieces) - (len(row.earlier) + 1) * self._num_pieces
        while excess > 0 and stop < len(pieces) - self._num_pieces:  # the first repetition is the first to go
            excess -= sum(sizes[stop : stop + self._num_pieces])
            stop += self._num_pieces
        pieces, ids = pieces[:start] + pieces[stop:], ids[:start] + ids[stop:]
        if excess <= 0:
            return _Draft(pieces, ids, is_truncated=True)
        places = [at for at, piece in enumerate(pieces) if piece.field and piece.field == self.task.truncate]
        return _Draft(pieces, ids, True, places[-1], len(ids[places[-1]]) - excess) if places else None

    def _assemble(self, row: Row, draft: _Draft, offsets: Mapping[str, list[tuple[int, int]]]) -> Encoded | None:
        pieces, ids = draft.pieces, draft.ids
        if draft.place is not None:
            keep = row.keep if self.max_answer_tokens is None else None
            shorter = self._shorten(pieces[draft.place], offsets[draft.long_text or ""], draft.num_free, keep)
            if shorter is None:
                return None
            ids = [*ids[: draft.place], shorter, *ids[draft.place + 1 :]]
        starts = list(accumulate(map(len, ids), initial=len(self.first_ids)))
        target = self.task.target
        at = [place for place, piece in enumerate(pieces) if piece.field == target]
        borders = [starts[border] for place in at for border in (place, place + 2)][:-1]
        if borders[0] == 0:  # the first token of an example is never learned
            return None
        return Encoded([*self.first_ids, *chain.from_iterable(ids)], borders, draft.is_truncated)

    def _shorten(
        self, piece: Piece, offsets: Sequence[tuple[int, int]], num_free: int, keep: tuple[int, int] | None
    ) -> list[int] | None:
        """The ids of a span of the piece's text that has at most `num_free` ids; None when no such span will do.

        offsets: of the whole text's ids, in characters. The text is truncated, not the ids, and encoded anew, so that
        the tokenizer reads the rendered string as we do.
        """
        text, lead, limit = piece.literal + piece.text, len(piece.literal), num_free
        first = last = 0
        if keep is not None:
            first = next((n for n, (_, end) in enumerate(offsets) if end > keep[0] + lead), 0)
            last = next((n for n, (_, end) in enumerate(offsets) if end >= keep[1] + lead), len(offsets) - 1)
        while num_free > 0:
            if last - first + 1 > num_free:
                return None
            start = 0 if last < num_free else min((first + last + 1 - num_free) // 2, len(offsets) - num_free)
            span = text[offsets[start][0] : offsets[start + num_free - 1][1]]
            if start > 0:
                span = piece.literal + span
            ids: list[int] = self.plain.encode(span, add_special_tokens=False).ids
            if len(ids) <= limit:
                return ids or None
            num_free -= len(ids) - limit
        return None
