"""Train a tokenizer on a plain text corpus, measure it on held-out text, save it.

`tokenizer(TokenizerConfig(kind="metaspace"), TextConfig(files={"train": ["news.txt"]}), ["<|pad|>", ...], Path("tok"))`
leaves `tok/tokenizer.json`, `tokenizer_config.json`, `tokenizer_report.json` and, when a curve is asked for,
`curve.png`; `AutoTokenizer.from_pretrained("tok")` reads with the same ids.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NotRequired, TypedDict

from transformers import PreTrainedTokenizerFast

from multitask.config.data import TextConfig
from multitask.config.model import TokenizerConfig
from multitask.data import corpus
from multitask.errors import InputError
from multitask.events import Report, ignore
from multitask.files import cannot_write, temporary
from multitask.tokenization import bpe
from multitask.tokenization.bpe import Bpe
from multitask.tokenization.tokenizer import (
    assemble,
    lost_characters,
    pad_left,
    plain_reader,
    probe_identity,
    train_bpe,
)

REPORT, CURVE = "tokenizer_report.json", "curve.png"
_FILES = ("tokenizer.json", "tokenizer_config.json", CURVE, REPORT)
_MOST = 8000
"""Tokens of a vocabulary whose size is not named."""
_STRETCH = 1 << 14  # characters that are read at a time
_MEASURED = 1 << 21  # characters of held-out text that are measured


class RoundTrip(TypedDict):
    """Characters that do not come back from ids, after NFC and white-space folding; the 20 most frequent of them."""

    num_chars_lost: int
    chars_lost: dict[str, int]


class Measured(TypedDict):
    """How a tokenizer reads held-out text. `unknown_rate` is per character; words stand between white space."""

    text: str
    num_characters: int
    num_words: int
    num_bytes: int
    num_tokens: int
    num_unknown: int
    unknown_rate: float
    tokens_per_character: float
    tokens_per_word: float
    bytes_per_token: float
    round_trip: RoundTrip


class CurvePoint(TypedDict):
    """How a vocabulary of one size reads held-out text."""

    vocab_size: int
    num_tokens: int
    characters_per_token: float
    bytes_per_token: float


class TokenizerReport(TypedDict):
    """What `tokenizer_report.json` holds."""

    schema: int
    kind: str
    settings: dict[str, object]
    source: str | None
    prefix_space: bool | None
    text: dict[str, object] | None
    vocab_size: int
    num_special: int
    size: int
    roles: dict[str, str]
    special_tokens: list[str]
    held_out: Measured
    longest_tokens: list[str]
    curve: NotRequired[list[CurvePoint]]
    time: dict[str, float]


def tokenizer(
    config: TokenizerConfig,
    text: TextConfig,
    special: Sequence[str],
    out: Path,
    *,
    source: Path | None = None,
    export: Path | None = None,
    overwrite: bool = False,
    report: Report = ignore,
) -> TokenizerReport:
    """Trains or imports a tokenizer, measures and saves it; returns what `tokenizer_report.json` holds.

    Of characters, all of the text makes the vocabulary, the end that is measured too: a model is to read it.

    Args:
        config: what is built.
        text: what it is trained on, and measured on: the validation text.
        special: the tasks' tokens; user-named and spare ones come after them.
        out: folder; it appears whole or not at all.
        source: folder with `vocab.json` and `merges.txt` to take the vocabulary from; nothing is trained then.
        export: folder for the same two files of the result.
        overwrite: replace a tokenizer that `out` holds, and files of `export`.
        report: called with progress records.

    Raises:
        InputError: text, settings, files or folders that cannot be used; the message says what to do.
    """
    _check_folders(config, out, source, export, overwrite)
    started = time.perf_counter()
    prefix_space = source is None if config.prefix_space is None else config.prefix_space
    spare = [f"<|unused{number}|>" for number in range(config.spare)]

    def assembled(vocabulary: Bpe) -> PreTrainedTokenizerFast:
        return assemble(
            vocabulary,
            config.kind,
            [*special, *config.tokens, *spare],
            config.separator,
            prefix_space=prefix_space,
            clean=config.clean,
            has_unknown=config.unknown == "unk",
        )

    if source is None:
        report({"event": "note", "text": f"training a tokenizer of {config.kind}"})
        largest = _train(config, text, prefix_space)
        vocabulary = largest if config.kind == "characters" else largest.cut(config.vocab_size or _MOST)
    else:
        largest = vocabulary = bpe.read(source)
    made = assembled(vocabulary)
    probe_identity(made, list(special))
    trained_s = time.perf_counter() - started

    held_out = _held_out(text)
    found: TokenizerReport = {
        "schema": 1,
        "kind": config.kind,
        "settings": config.model_dump(mode="json"),
        "source": str(source) if source is not None else None,
        "prefix_space": prefix_space if config.kind == "bytes" else None,
        "text": None if source is not None else corpus.provenance(text, "train"),
        "vocab_size": len(vocabulary.vocabulary) - len(vocabulary.special()),
        "num_special": len(made) - len(vocabulary.vocabulary) + len(vocabulary.special()),
        "size": len(made),
        "roles": {role: str(token) for role, token in made.special_tokens_map.items() if isinstance(token, str)},
        "special_tokens": [str(token) for token in made.added_tokens_decoder.values()],
        "held_out": measure(made, config.kind, held_out, _held_out_name(config, text, source)),
        "longest_tokens": _longest(made, vocabulary),
        "time": {},
    }
    if config.curve:
        sizes = sorted({*config.curve, len(vocabulary.vocabulary)})
        found["curve"] = [_point(assembled(largest.cut(size)), size, held_out) for size in sizes]
    found["time"] = {"train_s": round(trained_s, 2), "all_s": round(time.perf_counter() - started, 2)}
    _save(made, found, out)
    if export is not None:
        bpe.write(Bpe(made.get_vocab(), vocabulary.merges), export)
    return found


# ---------------------------------------------------------------- text


def _stretches(parts: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """The text in spans of some thousand characters, split before a space, where words end in all kinds."""
    held = ""
    for part, is_last in parts:
        held += part
        start = 0
        while len(held) - start > _STRETCH:
            space = held.rfind(" ", start + 1, start + _STRETCH)
            end = space if space > 0 else start + _STRETCH
            yield held[start:end]
            start = end
        held = held[start:]
        if is_last and held:
            yield held
            held = ""


def _held_out(text: TextConfig) -> list[str]:
    """The beginning of the validation text."""
    held: list[str] = []
    num_characters = 0
    for stretch in _stretches(corpus.parts(text, "validation")):
        held.append(stretch)
        num_characters += len(stretch)
        if num_characters >= _MEASURED:
            break
    return held


def _held_out_name(config: TokenizerConfig, text: TextConfig, source: Path | None) -> str:
    if text.synthetic is not None:
        return f"{text.synthetic.get('validation', 0):,} synthetic documents of the validation split"
    if text.files is not None and "validation" in text.files:
        return ", ".join(text.files["validation"])
    if source is not None:
        return f"the last {text.validation:.0%} of the text"
    how = "which counts for the characters too" if config.kind == "characters" else "not trained on"
    return f"the last {text.validation:.0%} of the text, {how}"


# ---------------------------------------------------------------- training


def _train(config: TokenizerConfig, text: TextConfig, prefix_space: bool) -> Bpe:
    """The vocabulary at the largest size that is asked for; smaller ones are its beginning."""
    asked = max([config.vocab_size or _MOST, *config.curve])
    is_cut_off = config.kind == "characters" and not (text.files is not None and "validation" in text.files)
    splits = [corpus.parts(text, "train"), *([corpus.parts(text, "validation")] if is_cut_off else [])]
    texts = chain([config.characters] if config.characters else [], _stretches(chain(*splits)))
    made = train_bpe(texts, config.kind, asked, config.min_frequency, prefix_space, config.clean)
    reached, least = len(made.vocabulary), made.num_characters()
    if config.kind == "characters":
        return made
    for size in [*([] if config.vocab_size is None else [config.vocab_size]), *config.curve]:
        if size < least:
            what = "bytes" if config.kind == "bytes" else "different characters of the text"
            hint = "" if config.kind == "bytes" else ", or take kind bytes"
            raise InputError(
                f"a vocabulary of {size:,} tokens: the {least:,} {what} alone are more, and each is a token; ask for "
                f"more than {least:,}{hint}"
            )
        if size > reached:
            how = (
                "no two tokens are left that occur together"
                if config.min_frequency == 1
                else f"no two tokens are left that occur together {config.min_frequency} times (min_frequency); lower "
                "that"
            )
            raise InputError(
                f"a vocabulary of {size:,} tokens: the text gives {reached:,}, then {how}; ask for at most "
                f"{reached:,}, or give more text"
            )
    if reached == 0:
        raise InputError("the text holds nothing that a token could be made of; expected some words")
    return made


# ---------------------------------------------------------------- measuring


def measure(made: PreTrainedTokenizerFast, kind: str, texts: Sequence[str], name: str = "") -> Measured:
    """How a tokenizer of a kind reads texts.

    `unknown_rate` is per character of text: what became `<unk>`, or has no token at all. Words stand between white
    space; bytes are those of UTF-8. What `round_trip` calls lost does not come back after NFC and white-space folding.
    """
    plain = plain_reader(made)
    encodings = plain.encode_batch_fast(list(texts), add_special_tokens=False)
    num_tokens = sum(map(len, encodings))
    if kind == "characters":
        known = set(made.get_vocab())
        num_unknown = sum(character not in known for text in texts for character in text)
    else:
        unknown = made.unk_token_id
        num_unknown = sum(e.ids.count(unknown) for e in encodings) if unknown is not None else 0
    lost = lost_characters(texts, made, plain)
    num_characters, num_bytes = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    if not num_words or not num_tokens:
        raise InputError("the held-out text has no words that this tokenizer reads; name another with --held-out")
    return {
        "text": name,
        "num_characters": num_characters,
        "num_words": num_words,
        "num_bytes": num_bytes,
        "num_tokens": num_tokens,
        "num_unknown": num_unknown,
        "unknown_rate": round(num_unknown / num_characters, 6),
        "tokens_per_character": round(num_tokens / num_characters, 4),
        "tokens_per_word": round(num_tokens / num_words, 4),
        "bytes_per_token": round(num_bytes / num_tokens, 4),
        "round_trip": {"num_chars_lost": lost.total(), "chars_lost": dict(lost.most_common(20))},
    }


def _point(made: PreTrainedTokenizerFast, size: int, texts: Sequence[str]) -> CurvePoint:
    """One point of the curve."""
    num_tokens = sum(map(len, plain_reader(made).encode_batch_fast(list(texts), add_special_tokens=False)))
    return {
        "vocab_size": size,
        "num_tokens": num_tokens,
        "characters_per_token": round(sum(map(len, texts)) / num_tokens, 4),
        "bytes_per_token": round(sum(len(text.encode()) for text in texts) / num_tokens, 4),
    }


def _longest(made: PreTrainedTokenizerFast, vocabulary: Bpe, count: int = 10) -> list[str]:
    """The longest tokens of text, as they are written; of bytes, only those that are whole characters."""
    special = set(vocabulary.special())
    ids = [[number] for token, number in vocabulary.vocabulary.items() if token not in special]
    written = [text for text in made.batch_decode(ids) if "\ufffd" not in text]
    return sorted(written, key=lambda text: (-len(text), text))[:count]


# ---------------------------------------------------------------- folders


def _check_folders(
    config: TokenizerConfig, out: Path, source: Path | None, export: Path | None, overwrite: bool
) -> None:
    """Raises InputError for folders that cannot be used, before anything takes time."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(
                f"{out}: already holds files; replace the tokenizer in it with --overwrite, or choose another --out"
            )
        if not (out / REPORT).exists():
            raise InputError(
                f"{out}: holds no tokenizer of ours (no {REPORT}), so --overwrite leaves it alone; choose another --out"
            )
    if config.kind == "characters" and (source is not None or export is not None):
        option = "--from" if source is not None else "--export"
        raise InputError(f"{option}: characters have no merges to read or write; expected kind bytes or metaspace")
    if source is not None and (config.vocab_size is not None or config.curve):
        raise InputError("--from brings its vocabulary, and nothing is trained; leave out --vocab-size and --curve")
    if export is not None and not overwrite:
        for name in (bpe.VOCABULARY, bpe.MERGES):
            if (export / name).exists():
                raise InputError(
                    f"{export / name}: already exists; replace it with --overwrite, or choose another folder"
                )


def _save(made: PreTrainedTokenizerFast, found: TokenizerReport, out: Path) -> None:
    """Writes the folder aside and renames it; in a folder that holds one of ours, replaces our files alone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary(out)
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process that had this number
    try:
        pad_left(made)
        made.save_pretrained(aside)
        (aside / REPORT).write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        if "curve" in found:
            draw_curve(found["curve"], aside / CURVE)
        if not out.exists() or not any(out.iterdir()):
            os.replace(aside, out)  # an empty folder gives way
            return
        for name in _FILES:
            if (aside / name).exists():
                os.replace(aside / name, out / name)
            else:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def draw_curve(points: Sequence[CurvePoint], picture: Path) -> None:
    """Characters and bytes per token against vocabulary size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [point["vocab_size"] for point in points]
    lines = {
        "characters per token": [point["characters_per_token"] for point in points],
        "bytes per token": [point["bytes_per_token"] for point in points],
    }
    for color, (label, values) in enumerate(lines.items()):
        axes.plot(sizes, values, color=f"C{color}", marker="o", label=label)
    axes.set(xlabel="tokens of text in the vocabulary", ylabel="per token, held-out text", ylim=(0, None))
    axes.grid(visible=True, alpha=0.2)
    axes.legend()
    figure.savefig(picture, dpi=110)
