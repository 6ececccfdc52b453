"""Vocabulary and merges as files: whole round trip, every way of being damaged, the beginning as the smaller one."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import random_text

from multitask.errors import InputError
from multitask.tokenization.bpe import Bpe, read, write
from multitask.tokenization.tokenizer import Kind, train_bpe

SMALL = Bpe({"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "<|endoftext|>": 5}, [("a", "b"), ("ab", "c")])


def test_files_are_what_gpt2_was_released_as(tmp_path: Path) -> None:
    write(SMALL, tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == SMALL.vocabulary
    assert (tmp_path / "merges.txt").read_bytes() == b"#version: 0.2\na b\nab c\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    assert read(tmp_path) == SMALL
    # Written elsewhere: no header, Windows line ends, a byte order mark, all on one line, escapes.
    (tmp_path / "merges.txt").write_bytes(b"a b\r\nab c")
    (tmp_path / "vocab.json").write_text("\ufeff" + json.dumps(SMALL.vocabulary).replace('"ab"', r'"\u0061b"'), "utf-8")
    assert read(tmp_path) == SMALL


def test_a_merge_that_begins_with_a_number_sign_is_a_merge(tmp_path: Path) -> None:
    numbers = Bpe({"#": 0, "##": 1, "####": 2}, [("#", "#"), ("##", "##")])
    write(numbers, tmp_path)
    assert read(tmp_path) == numbers


def test_tokens_that_split_lines_elsewhere(tmp_path: Path) -> None:
    """Characters at which `str.splitlines` splits, and no others, may stand in tokens."""
    odd = Bpe({"\x1c": 0, "\u2028": 1, "\u00a0": 2, "\x1c\u2028": 3}, [("\x1c", "\u2028")])
    write(odd, tmp_path)
    assert read(tmp_path) == odd


def test_special_tokens_are_those_that_no_text_becomes() -> None:
    assert SMALL.special() == ["<|endoftext|>"]
    assert SMALL.num_characters() == 3
    assert Bpe({"a": 1, "</s>": 2, "<s>": 0}).special() == ["<s>", "</s>"]


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_the_first_merges_are_the_smaller_vocabulary(kind: Kind) -> None:
    """At every size between no merge and all, as if trained to that size."""
    rng = random.Random(3)
    texts = [random_text(rng, 12) for _ in range(150)]
    largest = train_bpe(texts, kind, 700, 2)
    least = largest.num_characters()
    assert len(largest.vocabulary) > least + 100
    for size in [least, least + 1, *rng.sample(range(least, len(largest.vocabulary)), 8), len(largest.vocabulary)]:
        alone = train_bpe(texts, kind, size, 2)
        assert len(alone.vocabulary) == size
        assert largest.cut(size) == alone


def test_two_merges_of_one_token_are_cut_where_training_would_stop() -> None:
    doubled = Bpe(
        {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}, [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    )
    assert list(doubled.cut(5).merges) == [("a", "b"), ("b", "c")]
    assert list(doubled.cut(6).merges) == [("a", "b"), ("b", "c"), ("ab", "c")]
    assert list(doubled.cut(3).merges) == []


def _vocabulary(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Damage done to `vocab.json`."""

    def damage(folder: Path) -> None:
        path = folder / "vocab.json"
        path.write_text(change(path.read_text("utf-8")), "utf-8")

    return damage


def _merges(text: str | bytes) -> Callable[[Path], None]:
    raw = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "merges.txt").write_bytes(raw) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_vocabulary(lambda text: text[:-9]), r"vocab.json:7: not valid JSON"),
        (_vocabulary(lambda text: "[1]"), r"vocab.json:1: found '\[1\]', expected an object of tokens and ids"),
        (_vocabulary(lambda text: "{}"), r"vocab.json:1: found '{}', expected an object"),
        (_vocabulary(lambda text: text.replace(": 3", ": 2")), r"vocab.json:5: token 'ab' has id 2, as 'c' has"),
        (_vocabulary(lambda text: text.replace('"ab"', '"b"')), r"vocab.json:5: token 'b' stands in the file twice"),
        (
            _vocabulary(lambda text: text.replace(": 4", ': "4"')),
            r"vocab.json:6: token 'abc' has id '4', expected a wh",
        ),
        (_vocabulary(lambda text: text.replace(": 4", ": true")), r"vocab.json:6: token 'abc' has id True, expected"),
        (_vocabulary(lambda text: text.replace(": 4", ": -4")), r"vocab.json:6: token 'abc' has id -4, expected"),
        (
            _vocabulary(lambda text: text.replace(": 5", ": 17")),
            r"vocab.json:7: 6 tokens, and '<\|endoftext\|>' has id 17; expected ids 0 to 5 .* missing is 5",
        ),
        (
            lambda folder: (folder / "vocab.json").write_bytes(b'{"a": 0,\n"\xb0": 1}'),
            r"vocab.json:2: byte 0xb0 is not",
        ),
        (lambda folder: (folder / "vocab.json").unlink(), r"vocab.json: no such file; expected vocab.json and merges"),
        (lambda folder: (folder / "merges.txt").unlink(), r"merges.txt: no such file"),
        (_merges("#version: 0.2\na b\na b c\n"), r"merges.txt:3: found 'a b c', expected two tokens"),
        (_merges("a b\n\nab  c\n"), r"merges.txt:3: found 'ab  c', expected two tokens"),
        (_merges("a b\nab x\n"), r"merges.txt:2: 'x' of the merge 'ab x' is not in vocab.json"),
        (_merges("a b\nb c\n"), r"merges.txt:2: 'bc' of the merge 'b c' is not in vocab.json"),
        (_merges("a b\nab c\na b\n"), r"merges.txt:3: the merge 'a b' stands in line 1 already"),
        (_merges(b"a b\n\xff c\n"), r"merges.txt:2: byte 0xff is not UTF-8"),
    ],
)
def test_damaged_files_are_refused_with_file_and_line(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    write(SMALL, tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/vocab.json: no such file; .*no such folder"):
        read(tmp_path / "gone")
