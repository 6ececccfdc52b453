"""A plain text corpus as one long row of token ids, encoded once to a memory-mapped file.

Documents `ab` and `c`, `<end>` (id 0) after each -> `token_file(...).ids` = [5, 6, 0, 7, 0], two bytes an id.

The ids are those of each document encoded whole. Long ones are encoded in pieces, many at a time, on all cores; what is
done is kept, so that an interrupted encoding is resumed, and one process encodes while others wait.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from multitask.config.data import DataConfig, TextConfig
from multitask.data import corpus
from multitask.data.corpus import TextSplit
from multitask.errors import InputError, suggest
from multitask.events import Json, Report, ignore
from multitask.files import cache_folder, cannot_cache, replacing
from multitask.source_hash import source_hash
from multitask.tokenization.chunks import ahead, pieces
from multitask.tokenization.survey import CharacterSurvey, TextCounts, UnknownCharacter
from multitask.tokenization.tokenizer import plain_reader

Ids = npt.NDArray[np.unsignedinteger[Any]]
"""uint16 or uint32, (T,)."""

_DAMAGE = (OSError, ValueError, KeyError, TypeError)
"""What reading a truncated or damaged file raises."""

_PIECE = 1 << 15  # characters of a piece
_BATCH = _PIECE * max(32, 4 * (os.cpu_count() or 1))  # characters that are encoded at a time: some pieces for each core


class TokenFile:
    """The ids of one split of a plain text corpus.

    ids: mapped from the file. before_id, after_id: what stands before and after each document,
    None: nothing. report: counts and provenance, as `results.json` shows them.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file; raises `_DAMAGE` for one that is truncated or damaged."""
        self.path = path
        self.report: Json = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if path.stat().st_size != self.report["num_tokens"] * np.dtype(self.report["dtype"]).itemsize:
            raise ValueError(f"{path.stat().st_size:,} bytes of {self.report['num_tokens']:,} tokens")
        self.before_id: int | None = self.report["before_id"]
        self.after_id: int | None = self.report["after_id"]
        # A plain view of the mapping: slices of a memmap cost three times as much.
        self.ids: Ids = np.asarray(np.memmap(path, self.report["dtype"], "r"))

    def __len__(self) -> int:
        return len(self.ids)


def token_file(
    tokenizer: PreTrainedTokenizerFast,
    config: TextConfig,
    split: TextSplit,
    report: Report = ignore,
) -> TokenFile:
    """The ids of a split, from the cache or encoded now.

    Args:
        tokenizer: any fast tokenizer; markers in the text are plain text to it.
        config: where the text comes from, and what stands between documents.
        split: which part of it.
        report: told how far it is, after each batch: `{"event": "encoding", "split": ..., "num_characters": ...,
            "num_tokens": ..., "elapsed_s": ...}`; and by a `note` that another process is at it.

    Raises:
        InputError: what `corpus.parts` raises; a separator that is no token; a character that the tokenizer would drop
            without a trace, as it has no token for what it does not know.
    """
    encoder = _Encoder(tokenizer, config)
    provenance = corpus.provenance(config, split)
    path = cache_folder(DataConfig(cache=config.cache)) / f"text-{split}-{encoder.key(provenance)}.ids"
    if (found := _cached(path, report)) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path, split, report):
            if (found := _cached(path, ignore)) is not None:  # another process has encoded it meanwhile
                return found
            _write(path, encoder, split, provenance, report)
    except OSError as error:
        raise cannot_cache(path, error, "text.cache") from error
    return TokenFile(path)


def _cached(path: Path, report: Report) -> TokenFile | None:
    """The tokens of a file of the cache; None when it is not there, or damaged."""
    if not path.exists():
        return None
    try:
        return TokenFile(path)
    except _DAMAGE as error:
        text = f"{path}: this file of the cache is truncated or damaged ({error}); the text is encoded anew"
        report({"event": "warning", "text": text})
        return None


# ---------------------------------------------------------------- from text to ids


_Item = tuple[str, bool, bool]
"""What is encoded at once, a document or a piece of one: text, whether a document begins and ends with it."""


class _Batch(NamedTuple):
    """Many items; lists of texts and of truth values, as hundreds of thousands of small objects cost time."""

    texts: list[str]
    are_first: list[bool]
    are_last: list[bool]


class _Encoder:
    """Items to ids, with what stands between documents."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: TextConfig) -> None:
        self.config = config
        self.plain = plain_reader(tokenizer)
        self.before_id = _separator(tokenizer, config.before, "before")
        self.after_id = _separator(tokenizer, tokenizer.eos_token if config.after is None else config.after, "after")
        vocabulary = tokenizer.get_vocab()
        self.dtype = "<u2" if max(vocabulary.values()) < 1 << 16 else "<u4"
        # The model's own: GPT-2 calls its eos `unk_token`, and has no use for one.
        model = self.plain.model
        unknown = tokenizer.unk_token if isinstance(model, models.Unigram) else model.unk_token
        self.unknown_id: int | None = vocabulary.get(unknown) if unknown else None
        self.has_unknown = self.unknown_id is not None or tokenizer.unk_token is not None

    def key(self, provenance: dict[str, object]) -> str:
        """A hash of everything the ids depend on: text, tokenizer, settings and the code that encodes."""
        settings = self.config.model_dump(mode="json", include={"format", "fields", "encoding", "documents"})
        parts = [
            self.plain.to_str(),
            json.dumps([provenance, settings, self.before_id, self.after_id], sort_keys=True),
            source_hash(__name__),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]

    def encode(self, batch: _Batch) -> list[Encoding]:
        """On all cores; the fast way, as nobody looks at offsets."""
        try:
            found: list[Encoding] = self.plain.encode_batch_fast(batch.texts, add_special_tokens=False)
        except Exception as error:  # what `tokenizers` raises has no class of its own
            raise InputError(f"the tokenizer cannot encode this text: {error}") from error
        return found

    def ids(self, batch: _Batch, encodings: list[Encoding]) -> Ids:
        """The ids of a batch, (T,)."""
        before = [self.before_id] if self.before_id is not None else []
        after = [self.after_id] if self.after_id is not None else []

        def lists() -> Iterator[list[int]]:
            for encoded, is_first, is_last in zip(encodings, batch.are_first, batch.are_last, strict=True):
                if is_first:
                    yield before
                yield encoded.ids
                if is_last:
                    yield after

        return np.fromiter(chain.from_iterable(lists()), self.dtype)


def _separator(tokenizer: PreTrainedTokenizerFast, token: str | None, name: str) -> int | None:
    """The id of a token between documents; None for none."""
    if not token:
        return None
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        known = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
        raise InputError(f"text.{name}: '{token}' is not one token of the tokenizer; {suggest(token, known)}")
    return int(vocabulary[token])


def _items(parts: Iterable[tuple[str, bool]], plain: Tokenizer, is_inside: bool) -> Iterator[_Item]:
    """Documents as they are, long ones in pieces; `is_inside`: the first part continues a document."""
    parts = iter(parts)
    is_first = not is_inside
    for text, is_last in parts:
        if is_last and len(text) <= _PIECE:
            yield text, is_first, True
        else:
            rest = () if is_last else _to_the_end(parts)
            held = ""
            for piece in pieces(chain([text], rest), plain, _PIECE):
                if held:
                    yield held, is_first, False
                    is_first = False
                held = piece
            yield held, is_first, True
        is_first = True


def _to_the_end(parts: Iterator[tuple[str, bool]]) -> Iterator[str]:
    """The parts of the document that is being read."""
    for text, is_last in parts:
        yield text
        if is_last:
            return


def _batches(items: Iterable[_Item]) -> Iterator[_Batch]:
    """Items by the number of their characters."""
    batch, size = _Batch([], [], []), 0
    for text, is_first, is_last in items:
        batch.texts.append(text)
        batch.are_first.append(is_first)
        batch.are_last.append(is_last)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = _Batch([], [], []), 0
    if batch.texts:
        yield batch


# ---------------------------------------------------------------- what a tokenizer cannot write


# ---------------------------------------------------------------- to the file


@contextmanager
def _alone(path: Path, split: TextSplit, report: Report) -> Iterator[None]:
    """One process at a time; the lock of one that was killed is free."""
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        report({"event": "note", "text": f"another process encodes the {split} text; waiting for it"})
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Progress:
    """What is written so far, kept beside the unfinished file after each batch."""

    def __init__(self, aside: Path, itemsize: int) -> None:
        self.path = aside.with_suffix(".progress")
        self.counts = dict.fromkeys(
            ("num_tokens", "num_documents", "num_characters", "num_bytes", "num_words", "num_unknown"), 0
        )
        self.lost: Counter[str] = Counter()
        self.is_inside = False  # a document
        try:
            kept = json.loads(self.path.read_text("utf-8"))
            is_whole = aside.stat().st_size >= kept["counts"]["num_tokens"] * itemsize
        except (OSError, ValueError, KeyError, TypeError):
            return
        if is_whole:
            self.counts, self.lost, self.is_inside = kept["counts"], Counter(kept["lost"]), kept["is_inside"]

    def add(self, batch: _Batch, ids: Ids, found: TextCounts, unknown_id: int | None) -> None:
        counts = self.counts
        counts["num_tokens"] += len(ids)
        if unknown_id is not None:
            counts["num_unknown"] += int(np.count_nonzero(ids == unknown_id))
        self.lost.update(found.lost)
        text = "".join(batch.texts)
        counts["num_words"] += found.num_words
        counts["num_characters"] += len(text)
        counts["num_bytes"] += len(text.encode())
        counts["num_documents"] += sum(batch.are_last)
        self.is_inside = not batch.are_last[-1]

    def keep(self) -> None:
        kept = {"counts": self.counts, "lost": self.lost, "is_inside": self.is_inside}
        with replacing(self.path) as aside:
            aside.write_text(json.dumps(kept), "utf-8")


def _write(path: Path, encoder: _Encoder, split: TextSplit, provenance: dict[str, object], report: Report) -> None:
    """Encodes what is missing; the file appears under its name only when it is whole."""
    aside = path.with_suffix(".part")
    aside.touch()
    progress = _Progress(aside, np.dtype(encoder.dtype).itemsize)
    try:
        _go_on(aside, progress, encoder, split, report)
    except InputError:  # with text or settings put right it would be another file
        aside.unlink()
        progress.path.unlink(missing_ok=True)
        raise
    result = {
        **provenance,
        **progress.counts,
        "num_chars_lost": sum(progress.lost.values()),
        "chars_lost": dict(progress.lost.most_common(20)),
        "before_id": encoder.before_id,
        "after_id": encoder.after_id,
        "dtype": encoder.dtype,
    }
    with replacing(path.with_suffix(".json")) as written:
        written.write_text(json.dumps(result, ensure_ascii=False), "utf-8")
    os.replace(aside, path)
    progress.path.unlink(missing_ok=True)


def _go_on(aside: Path, progress: _Progress, encoder: _Encoder, split: TextSplit, report: Report) -> None:
    """Encodes from where an earlier process stopped to the end."""
    started = time.perf_counter()
    rest = corpus.parts(encoder.config, split)
    if done := progress.counts["num_characters"]:
        rest = corpus.between(rest, done)
    items = _items(rest, encoder.plain, progress.is_inside)
    survey = CharacterSurvey(encoder.plain, encoder.has_unknown)
    with aside.open("r+b") as file:
        file.truncate(progress.counts["num_tokens"] * np.dtype(encoder.dtype).itemsize)
        file.seek(0, os.SEEK_END)
        try:
            for batch, ids, found in _encoded(_batches(items), encoder, survey):
                file.write(ids.tobytes())
                file.flush()
                os.fsync(file.fileno())
                progress.add(batch, ids, found, encoder.unknown_id)
                progress.keep()
                report(
                    {
                        "event": "encoding",
                        "split": split,
                        "num_characters": progress.counts["num_characters"],
                        "num_tokens": progress.counts["num_tokens"],
                        "elapsed_s": time.perf_counter() - started,
                    }
                )
        except UnknownCharacter as error:
            character = str(error)
            where = corpus.place_of(character, encoder.config, split)
            raise InputError(
                f"{where}: the tokenizer has no token for {character!r} (U+{ord(character):04X}) and none for unknown "
                "characters, so it would drop it; train it on this text too, name the character as an extra one, or "
                "take a tokenizer with an unknown token"
            ) from None
    if not progress.counts["num_words"] or not progress.counts["num_tokens"]:
        raise InputError(f"the {split} text has no words; some text was expected")


def _encoded(
    batches: Iterable[_Batch], encoder: _Encoder, survey: CharacterSurvey
) -> Iterator[tuple[_Batch, Ids, TextCounts]]:
    """Batches, their ids, what was counted; while one is encoded, the one before is written and the next is read."""
    counted = ((batch, survey.count(batch.texts)) for batch in batches)
    for (batch, found), encodings in ahead(lambda item: encoder.encode(item[0]), counted):
        yield batch, encoder.ids(batch, encodings), found
