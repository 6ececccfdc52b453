"""Byte-pair encoding as data: tokens with their ids, and the merges that make them, in order; on disk two files.

    vocab.json   {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "<|endoftext|>": 5}
    merges.txt   #version: 0.2
                 a b
                 ab c

The layout is the one in which GPT-2's vocabulary was released (openai/gpt-2, `encoder.json` and `vocab.bpe`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask.errors import InputError, suggest
from multitask.files import write_text

VOCABULARY, MERGES = "vocab.json", "merges.txt"
_HEADER = "#version: 0.2"


@dataclass(frozen=True)
class Bpe:
    """A vocabulary and its merges.

    vocabulary: token -> id, from 0 without a gap.
    merges: pairs of tokens; earlier ones are applied first.
    """

    vocabulary: Mapping[str, int]
    merges: Sequence[tuple[str, str]] = ()

    def special(self) -> list[str]:
        """Tokens that no text becomes: longer than a character, and made by no merge. In order of their ids."""
        made = {left + right for left, right in self.merges}
        found = (token for token in self.vocabulary if len(token) > 1 and token not in made)
        return sorted(found, key=self.vocabulary.__getitem__)

    def num_characters(self) -> int:
        """Tokens that merging starts from."""
        return sum(len(token) == 1 for token in self.vocabulary)

    def cut(self, size: int) -> "Bpe":
        """What training to `size` tokens would have given: it is greedy, so the larger one began in the same way."""
        merges = []
        for left, right in self.merges:
            made = self.vocabulary[left + right]
            if made < size:  # two merges may make the same token
                merges.append((left, right))
            if made >= size - 1:
                break
        return Bpe({token: number for token, number in self.vocabulary.items() if number < size}, merges)


def write(bpe: Bpe, folder: Path) -> None:
    """Writes both files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = dict(sorted(bpe.vocabulary.items(), key=lambda item: item[1]))
    texts = {
        VOCABULARY: json.dumps(vocabulary, ensure_ascii=False, indent=0),
        MERGES: "\n".join([_HEADER, *(f"{left} {right}" for left, right in bpe.merges)]),
    }
    for name, text in texts.items():
        write_text(folder / name, text + "\n")


def read(folder: Path) -> Bpe:
    """Both files of a folder. Raises InputError, with file and line, for what is no vocabulary with its merges."""
    vocabulary = _vocabulary(folder / VOCABULARY)
    path, merges = folder / MERGES, []
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(_text(path).split("\n"), 1):  # splitlines() would split inside some tokens
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise InputError(f"{path}:{number}: found '{line}', expected two tokens with one space between them")
        pair = (parts[0], parts[1])
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise InputError(
                    f"{path}:{number}: '{token}' of the merge '{line}' is not in {VOCABULARY}; expected the two files "
                    "of one and the same vocabulary"
                )
        if pair in seen:
            raise InputError(f"{path}:{number}: the merge '{line}' stands in line {seen[pair]} already")
        seen[pair] = number
        merges.append(pair)
    return Bpe(vocabulary, merges)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else "no such folder"
        raise InputError(f"{path}: no such file; expected {VOCABULARY} and {MERGES} in a folder; {near}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8") from None


def _vocabulary(path: Path) -> dict[str, int]:
    text = _text(path)

    def at(token: str) -> str:
        """`vocab.json:17`, the last line that names the token."""
        places = (text.rfind(json.dumps(token, ensure_ascii=is_ascii)) for is_ascii in (False, True))
        return f"{path}:{text.count(chr(10), 0, max(0, *places)) + 1}"

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for token, number in pairs:
            if token in found:
                raise InputError(f"{at(token)}: token '{token}' stands in the file twice")
            found[token] = number
        return found

    try:
        vocabulary = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise InputError(f"{path}: not usable JSON: {error}; expected an object of tokens and ids") from None
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InputError(f"{path}:1: found {text[:20]!r}, expected an object of tokens and ids, as in {{'a': 0}}")
    owners: dict[int, str] = {}
    for token, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise InputError(f"{at(token)}: token '{token}' has id {number!r}, expected a whole number from 0 on")
        if number in owners:
            raise InputError(
                f"{at(token)}: token '{token}' has id {number}, as '{owners[number]}' has; expected another"
            )
        owners[number] = token
    highest = max(owners)
    if highest >= len(owners):
        missing = next(number for number in range(highest) if number not in owners)
        raise InputError(
            f"{at(owners[highest])}: {len(owners):,} tokens, and '{owners[highest]}' has id {highest}; expected ids "
            f"0 to {len(owners) - 1} without a gap, the first that is missing is {missing}"
        )
    return vocabulary
