"""The small files of OpenAI's folder: `checkpoint`, `hparams.json`, `encoder.json` and `vocab.bpe`.

`read_shape(Path("117M/hparams.json"))` -> `Shape(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)`.
"""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from tokenizers import pre_tokenizers

from multitask.errors import InputError
from multitask.events import Json

END_OF_TEXT = "<|endoftext|>"
_NUM_SHOWN = 5  # names in an error message
_LIMIT = 1 << 31  # of the numbers in hparams.json
_PREFIX = re.compile(
    rb'^[ \t]*model_checkpoint_path:[ \t]*"((?:[^"\\\n]|\\[0-3][0-7]{2}|\\[nrt\'"\\])*)"', re.MULTILINE
)


@dataclass(frozen=True)
class Shape:
    """`hparams.json`, in OpenAI's names."""

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int


def find_prefix(source: Path) -> Path:
    """The prefix of the checkpoint's files: from the file `checkpoint`, else from the only index."""
    path = source / "checkpoint"
    if path.exists():
        found = _PREFIX.search(_read(path))
        try:
            # Bytes that are not ASCII are octal escapes.
            named = found[1].decode("unicode_escape").encode("latin-1").decode("utf-8") if found else ""
        except UnicodeError:
            named = ""
        # The folder may have been moved since its full path was written: only the last part is used.
        name = named.replace("\\", "/").rpartition("/")[2]
        if not name.isprintable() or name in ("", ".", ".."):
            raise InputError(
                f'{path}: no line `model_checkpoint_path: "model.ckpt"` in it; write that line with the name before '
                "`.index`, or remove the file if there is only one checkpoint"
            )
        return source / name
    found_here = sorted(source.glob("*.index")) if source.is_dir() else []
    if len(found_here) != 1:
        names = ", ".join(path.name for path in found_here[:_NUM_SHOWN]) or "none"
        raise InputError(
            f"{source}: no file `checkpoint`, and of files `*.index` one was expected, found {names}; name the folder "
            "of checkpoint, encoder.json, hparams.json, model.ckpt.index, model.ckpt.data-00000-of-00001, vocab.bpe"
        )
    return found_here[0].with_suffix("")


def read_shape(path: Path) -> Shape:
    """The model's shape; raises InputError unless all of `hparams.json` is positive integers."""
    given = _read_json(path)
    problems = []
    for field in fields(Shape):
        value = given.get(field.name)
        if type(value) is not int or not 1 <= value < _LIMIT:
            problems.append(f"{field.name} is {_short(value)}" if field.name in given else f"{field.name} is missing")
    if problems:
        raise InputError(f"{path}: {', '.join(problems)}; expected whole numbers from 1, as OpenAI published them")
    shape = Shape(*(given[field.name] for field in fields(Shape)))
    if shape.n_embd % shape.n_head:
        raise InputError(
            f"{path}: n_embd is {shape.n_embd}, expected a multiple of n_head, which is {shape.n_head}; use "
            "the file that was published with the checkpoint"
        )
    return shape


def read_vocabulary(path: Path, num_tokens: int) -> dict[str, int]:
    """Token -> id. Raises InputError unless ids are 0, 1, ... `num_tokens` - 1 and all bytes have a token."""
    given = _read_json(path)
    advice = "use the file that was published with the checkpoint"
    if len(given) != num_tokens:
        raise InputError(
            f"{path}: {len(given)} tokens, expected {num_tokens}, n_vocab of {path.with_name('hparams.json')}; {advice}"
        )
    # GPT-2 writes each of the 256 bytes as one printable character; tokens are strings of these.
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    seen = set()
    for token, number in given.items():
        if type(number) is not int or not 0 <= number < num_tokens or number in seen:
            raise InputError(
                f"{path}: token {_short(token)} has the id {_short(number)}, expected one of 0 to {num_tokens - 1} "
                f"that no other token has; {advice}"
            )
        seen.add(number)
        if not token or not alphabet.issuperset(token):
            raise InputError(f"{path}: token {_short(token)} is not written in GPT-2's 256 byte characters; {advice}")
    missing = sorted({*alphabet, END_OF_TEXT} - given.keys())
    if missing:
        names = ", ".join(map(repr, missing[:_NUM_SHOWN]))
        raise InputError(f"{path}: {len(missing)} tokens that GPT-2 needs are missing: {names}; {advice}")
    return given


def read_merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens, in order of their rank. Raises InputError for a line that is not a pair of known tokens."""
    text = _decode(path, _read(path))
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(part in vocabulary for part in (*parts, "".join(parts))):
            raise InputError(
                f"{path}:{number}: {_short(line)} is not a merge; expected two tokens with a space between that, like "
                f"the token they make, are in {path.with_name('encoder.json')}: use the file that was published with it"
            )
        merges.append((parts[0], parts[1]))
    return merges


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected it in OpenAI's folder, beside model.ckpt.index: copy "
            "or download it"
        ) from error


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 ({error.reason}); copy or download the file again") from error


def _read_json(path: Path) -> Json:
    try:
        given = json.loads(_decode(path, _read(path)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); copy or download the file again") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deeply nested brackets
        raise InputError(f"{path}: not JSON that can be read ({error}); copy or download the file again") from error
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected a mapping, found {type(given).__name__}; copy or download the file again")
    return given


def _short(value: object) -> str:
    """A value for a message, shortened: damaged files may have long ones."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
