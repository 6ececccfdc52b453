"""From pieces to ids: every field is encoded alone, markers are put in by id, long rows are truncated in one field.

`A<|sep|>B<|nli|>neutral<|end|>` -> `Encoded(input_ids=[65, 302, 66, 303, 78, ..., 301], borders=[4])`: the first four
ids are the prompt, the rest is learned. Labels are not stored: they are the ids of the targets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from multitask.config.data import DataConfig
from multitask.data.row_schema import answer_words
from multitask.data.rows import Row
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


@dataclass(frozen=True)
class Encoded:
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

    def encode(self, rows: Sequence[Row]) -> list[Encoded | None]:
        """Rows to examples, in order; None for a row to refuse.

        Dropped is what is too long without a field to truncate, and what has no token of prompt or target left.
        """
        rendered = [render(self.task, row.fields, earlier=row.earlier) for row in rows]
        texts = [p.literal + p.text for pieces in rendered for p in pieces if not p.is_marker]
        encodings = iter(self.plain.encode_batch(texts, add_special_tokens=False))
        return [
            self._assemble(row, list(pieces), [None if p.is_marker else next(encodings) for p in pieces])
            for row, pieces in zip(rows, rendered, strict=True)
        ]

    def _assemble(self, row: Row, pieces: list[Piece], encodings: list[Encoding | None]) -> Encoded | None:
        ids = [
            [self.marker_ids[piece.text]] if encoding is None else encoding.ids
            for piece, encoding in zip(pieces, encodings, strict=True)
        ]
        if not all(part for part, piece in zip(ids, pieces, strict=True) if piece.field == self.task.target):
            return None
        blind = self.max_answer_tokens is not None
        limit = self.block_size - len(self.first_ids) - (self.max_answer_tokens or 0)
        excess = sum(map(len, ids[:-2] if blind else ids)) - limit  # the last two are the target and its end
        is_truncated = excess > 0
        for number in reversed(range(len(row.earlier))):  # the first repetition is the first to go
            if excess <= 0:
                break
            start = len(pieces) - (number + 2) * self._num_pieces
            stop = start + self._num_pieces
            excess -= sum(map(len, ids[start:stop]))
            del pieces[start:stop], encodings[start:stop], ids[start:stop]
        if excess > 0:
            places = [n for n, piece in enumerate(pieces) if piece.field and piece.field == self.task.truncate]
            at_cut = places[-1] if places else None
            if at_cut is None:
                return None
            encoding = encodings[at_cut]
            assert encoding is not None
            shorter = self._shorten(pieces[at_cut], encoding, len(ids[at_cut]) - excess, None if blind else row.keep)
            if shorter is None:
                return None
            ids[at_cut] = shorter
        starts = list(accumulate(map(len, ids), initial=len(self.first_ids)))
        targets = [at for at, piece in enumerate(pieces) if piece.field == self.task.target]
        borders = [starts[border] for at in targets for border in (at, at + 2)][:-1]
        if borders[0] == 0:  # the first token of an example is never learned
            return None
        return Encoded([*self.first_ids, *(i for part in ids for i in part)], borders, is_truncated)

    def _shorten(self, piece: Piece, encoding: Encoding, room: int, keep: tuple[int, int] | None) -> list[int] | None:
        """The ids of a stretch of the piece's text that has at most `room` ids; None when no such stretch will do.

        The text is truncated, not the ids, and encoded anew, so that the tokenizer reads the rendered string as we do.
        """
        text, lead, limit = piece.literal + piece.text, len(piece.literal), room
        offsets = encoding.offsets
        first = last = 0
        if keep is not None:
            first = next((n for n, (_, end) in enumerate(offsets) if end > keep[0] + lead), 0)
            last = next((n for n, (_, end) in enumerate(offsets) if end >= keep[1] + lead), len(offsets) - 1)
        while room > 0:
            if last - first + 1 > room:
                return None
            start = 0 if last < room else min((first + last + 1 - room) // 2, len(offsets) - room)
            stretch = text[offsets[start][0] : offsets[start + room - 1][1]]
            if start > 0:
                stretch = piece.literal + stretch
            ids: list[int] = self.plain.encode(stretch, add_special_tokens=False).ids
            if len(ids) <= limit:
                return ids or None
            room -= len(ids) - limit
        return None
