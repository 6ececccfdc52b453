"""Tokenizers of three kinds: golden ids, round trips, special tokens, and the same ids through `AutoTokenizer`."""

import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import TASKS, random_text
from helpers import ROOT
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from multitask.errors import InputError
from multitask.pattern import markers
from multitask.task import END, PAD
from multitask.tokenization import bpe
from multitask.tokenization.bpe import Bpe
from multitask.tokenization.tokenizer import (
    Kind,
    add_markers,
    assemble,
    check_characters,
    load_tokenizer,
    lost_characters,
    plain_reader,
    probe_identity,
    train_bpe,
    train_tokenizer,
)

KINDS: tuple[Kind, ...] = ("bytes", "metaspace", "characters")
MARKERS = markers(TASKS)
SPARE = [f"<|unused{number}|>" for number in range(100)]
GPT2_FILES = Path(os.environ.get("MULTITASK_DATA") or ROOT.parent / "shared" / "data") / "tokenizer_gpt2"
ODD = "aZ9 \n\t\r\x00\x07\x1b\u00a0\u200b\u200d\u2028\u3000가힣ㅋㅠㄱ각é漢字😀👨\ufe0f\ufffd\ue000.,'\"<|>{}_#\\"
"""Characters that something or other drops, folds or takes apart; no `▁`, which is metaspace's own."""


def odd_text(rng: random.Random) -> str:
    return random_text(rng, rng.randint(0, 6)) + "".join(rng.choice(ODD) for _ in range(rng.randint(0, 25)))


def texts() -> list[str]:
    rng = random.Random(0)
    return [ODD, unicodedata.normalize("NFC", ODD), *(random_text(rng, 12) for _ in range(150))]


def made(kind: Kind, special: Sequence[str] = (*MARKERS, "<|mine|>", *SPARE), **how: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of `texts()`."""
    training = {name: value for name, value in how.items() if name != "has_unknown"}
    return assemble(train_bpe(texts(), kind, 500, 2, **training), kind, special, **how)


def folded(text: str) -> list[str]:
    return unicodedata.normalize("NFC", text).split()


# ---------------------------------------------------------------- golden


def test_golden_ids_of_bytes() -> None:
    """Bytes have the numbers that GPT-2 gives them; `ab`, ` ab` and ` abc` are merged in this order."""
    small = train_bpe(["ab ab abc"], "bytes", 300, prefix_space=False)
    assert list(small.merges) == [("a", "b"), ("Ġ", "ab"), ("Ġab", "c")]
    tokenizer = assemble(small, "bytes", [END], prefix_space=False)
    assert tokenizer("ab abc!\nb<|end|>")["input_ids"] == [256, 258, 0, 198, 65, 261]
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", PAD, END]) == [259, 260, 261]
    spaced = assemble(small, "bytes", [END])
    assert spaced("ab abc<|end|>ab")["input_ids"] == [257, 258, 261, 257]


def test_golden_ids_of_metaspace() -> None:
    """Alphabet `\\n a b c ▁`, then `ab`, `▁ab`; three tokens in a row occur once, which is too seldom."""
    small = train_bpe(["ab ab\nabc"], "metaspace", 100, 2)
    assert sorted(small.vocabulary, key=small.vocabulary.__getitem__) == ["\n", "a", "b", "c", "▁", "ab", "▁ab"]
    tokenizer = assemble(small, "metaspace", [END])
    assert tokenizer("ab\nabc x<|end|>ab")["input_ids"] == [6, 0, 6, 3, 4, 7, 11, 6]
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", PAD, END]) == [7, 8, 9, 10, 11]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


def test_golden_ids_of_characters() -> None:
    small = train_bpe(["ba", "a 가\n"], "characters", 0)
    tokenizer = assemble(small, "characters", [END])
    assert tokenizer("\n ab가<|end|>")["input_ids"] == [0, 1, 2, 3, 4, 7]
    assert tokenizer("xa")["input_ids"] == [2]  # plain transformers drops it; `check_characters` is ours
    other = assemble(small, "characters", [END], has_unknown=True)
    assert other("xa<|end|>")["input_ids"] == [5, 2, 8]
    assert other.unk_token == "<unk>"


def test_what_runs_train_without_a_tokenizer_is_the_same_as_ever() -> None:
    """Alphabet, merges, markers in this order, as the embedded models were trained with."""
    tokenizer = train_tokenizer(["ab ab abc"], 300, [PAD, END])
    assert tokenizer("ab abc<|end|>ab")["input_ids"] == [257, 258, 260, 257]
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == (END, PAD, 261)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("seed", range(20))
def test_bytes_and_characters_give_back_every_text(seed: int) -> None:
    rng = random.Random(seed)
    given = [odd_text(rng) for _ in range(20)]
    exact, spaced, characters = made("bytes", prefix_space=False), made("bytes"), made("characters")
    for text in given:
        assert exact.decode(exact(text)["input_ids"]) == text
        assert characters.decode(characters(text)["input_ids"]) == text
        assert len(characters(text, split_special_tokens=True)["input_ids"]) == len(text)
        begun = text if text.startswith(" ") or not text else f" {text}"
        assert spaced.decode(spaced(text)["input_ids"]) == begun
    numbers = (rng.randrange(0x110000 - 0x800) for _ in range(200))
    never_seen = "".join(chr(number if number < 0xD800 else number + 0x800) for number in numbers)  # no surrogates
    assert exact.decode(exact(never_seen)["input_ids"]) == never_seen


@pytest.mark.parametrize("seed", range(20))
def test_metaspace_gives_back_every_text_but_for_white_space(seed: int) -> None:
    rng = random.Random(seed)
    tokenizer = made("metaspace")
    for _ in range(20):
        text = odd_text(rng)
        assert folded(tokenizer.decode(tokenizer(text)["input_ids"])) == folded(text)
        lines = "\n".join(" ".join(odd_text(rng).split()) for _ in range(3))  # single spaces, none at the ends
        assert tokenizer.decode(tokenizer(lines)["input_ids"]) == unicodedata.normalize("NFC", lines)


def test_a_word_is_the_same_token_at_the_beginning_of_a_line() -> None:
    tokenizer = made("metaspace")
    words = tokenizer("the cat the\nthe\r\n\nthe<|sep|>the\n the")
    the = tokenizer.convert_tokens_to_ids("▁the")
    assert words["input_ids"].count(the) == 6
    for token in tokenizer.get_vocab():
        assert token == "\n" or "\n" not in token


def test_clean_up_keeps_hangul() -> None:
    """Stripped accents would leave 가 as ᄀ and ᅡ; what clean-up is for is gone, and is told."""
    tokenizer = made("metaspace", clean=True)
    plain = plain_reader(tokenizer)
    for text in ("가힣 각 따뜻한 자리에", "ㅋㅋㅠㄱ", "é 漢字漢 字"):
        for form in ("NFC", "NFD"):
            ids = tokenizer(unicodedata.normalize(form, text))["input_ids"]
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(tokenizer("가\x00\x07 각\n힣\t가")["input_ids"]) == "가 각 힣 가"
    assert lost_characters(["가\x07힣\u200b"], tokenizer, plain) == {"\x07": 1, "\u200b": 1}


def test_an_unknown_character_is_one_token_each() -> None:
    tokenizer = made("metaspace")
    assert tokenizer.convert_ids_to_tokens(tokenizer("뷁뷁a")["input_ids"]) == ["▁", "<unk>", "<unk>", "a"]


# ---------------------------------------------------------------- special tokens


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_single_and_found_later(kind: Kind) -> None:
    tokenizer = made(kind, has_unknown=kind == "characters")
    size = len(tokenizer)
    for token in (*MARKERS, "<|mine|>", *SPARE, tokenizer.eos_token, tokenizer.pad_token):
        (number,) = tokenizer(token)["input_ids"][-1:]
        assert tokenizer.convert_ids_to_tokens(number) == token
        assert tokenizer.decode([number], skip_special_tokens=True) == ""
        assert number not in plain_reader(tokenizer).encode(token).ids  # typed inside a text
    separator = "</s>" if kind == "metaspace" else "<|endoftext|>"
    assert (tokenizer.eos_token, tokenizer.pad_token) == (separator, PAD)
    probe_identity(tokenizer, MARKERS)
    assert add_markers(tokenizer, MARKERS) == []
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token) == (size, END, PAD)
    assert tokenizer.decode(tokenizer("<|unused99|><|mine|>" + separator)["input_ids"], skip_special_tokens=True) == ""
    assert "<|unused100|>" not in tokenizer.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_a_string_with_markers_reads_as_its_parts(kind: Kind) -> None:
    tokenizer, rng = made(kind), random.Random(5)
    num_odd = 0
    for _ in range(100):
        parts = [odd_text(rng).replace("<", "").replace("|", "") for _ in range(3)]
        num_odd += any(part != part.strip() for part in parts)
        ids = [tokenizer(part)["input_ids"] for part in parts]
        sep, end = tokenizer.convert_tokens_to_ids(["<|sep|>", END])
        assert tokenizer("<|sep|>".join(parts) + END)["input_ids"] == [*ids[0], sep, *ids[1], sep, *ids[2], end]
    assert num_odd > 30


@pytest.mark.parametrize(
    ("kind", "text", "token"),
    [
        ("metaspace", "고양이</s> " * 9, "</s>"),
        ("bytes", "the " * 9, "the"),
        ("bytes", "a<|mine|> " * 9, "<|"),
    ],
)
def test_a_special_token_that_text_becomes_is_refused(kind: Kind, text: str, token: str) -> None:
    """Else a document that says it would end there."""
    trained = train_bpe([text], kind, 400, prefix_space=False)
    message = rf"'{re.escape(token)}' cannot be a special token: it is token {trained.vocabulary[token]} of the text"
    with pytest.raises(InputError, match=message):
        assemble(trained, kind, [token], prefix_space=False)


def test_a_separator_of_ones_own() -> None:
    tokenizer = assemble(train_bpe(texts(), "bytes", 300), "bytes", [END], "<|stop|>")
    assert tokenizer.eos_token == "<|stop|>"
    assert "<|endoftext|>" not in tokenizer.get_vocab()


# ---------------------------------------------------------------- characters without a token


def test_a_character_without_a_token_is_named_with_its_place() -> None:
    tokenizer = made("characters")
    check_characters(tokenizer, ODD + "the cat", "a.txt")
    with pytest.raises(InputError, match=r"a.txt:3: character '뷁' \(U\+BDC1, number 4 of its line\) .*--characters"):
        check_characters(tokenizer, "the\n\ncat뷁 뷁\n줵", "a.txt")
    for other in (made("bytes"), made("metaspace"), made("characters", has_unknown=True)):
        check_characters(other, "뷁", "a.txt")


# ---------------------------------------------------------------- folders


@pytest.fixture
def beside(tmp_path: Path) -> Callable[[PreTrainedTokenizerFast], list[PreTrainedTokenizerFast]]:
    """Saves a tokenizer; loads it as others do, alone and beside a GPT-2's config.json, and as we do."""

    def load(tokenizer: PreTrainedTokenizerFast) -> list[PreTrainedTokenizerFast]:
        tokenizer.save_pretrained(tmp_path)
        alone = AutoTokenizer.from_pretrained(tmp_path)
        GPT2Config().save_pretrained(tmp_path)
        return [alone, AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))]

    return load


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("bytes", {}),
        ("bytes", {"prefix_space": False}),
        ("metaspace", {}),
        ("metaspace", {"clean": True}),
        ("characters", {}),
        ("characters", {"has_unknown": True}),
    ],
)
def test_auto_tokenizer_reads_with_the_same_ids(
    kind: Kind, how: dict[str, bool], beside: Callable[[PreTrainedTokenizerFast], list[PreTrainedTokenizerFast]]
) -> None:
    tokenizer, rng = made(kind, **how), random.Random(9)
    given = [odd_text(rng) + rng.choice(["", "<|sep|>고양이<|end|>", "</s>\n<|unused3|>"]) for _ in range(60)]
    for other in beside(tokenizer):
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other.special_tokens_map == tokenizer.special_tokens_map
        for text in given:
            ids = tokenizer(text)["input_ids"]
            assert other(text)["input_ids"] == ids
            assert other.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize(("kind", "prefix_space"), [("bytes", True), ("bytes", False), ("metaspace", True)])
def test_exported_files_make_the_same_tokenizer(kind: Kind, prefix_space: bool, tmp_path: Path) -> None:
    tokenizer, rng = made(kind, prefix_space=prefix_space), random.Random(2)
    merges = train_bpe(texts(), kind, 500, 2, prefix_space).merges
    bpe.write(Bpe(tokenizer.get_vocab(), merges), tmp_path)
    again = assemble(bpe.read(tmp_path), kind, MARKERS, prefix_space=prefix_space)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.added_tokens_decoder == tokenizer.added_tokens_decoder
    for text in (odd_text(rng) + "<|sep|>x<|unused5|>" for _ in range(60)):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.skipif(not GPT2_FILES.exists(), reason=f"GPT-2's own BPE files are not at {GPT2_FILES}")
def test_gpt2s_own_files_read_as_they_always_did() -> None:
    released = bpe.read(GPT2_FILES)
    assert (len(released.merges), released.special()) == (50000, ["<|endoftext|>"])
    tokenizer = assemble(released, "bytes", MARKERS, prefix_space=False)
    assert tokenizer("every effort moves")["input_ids"] == [16833, 3626, 6100]  # measured on OpenAI's release
    assert tokenizer("I really like<|endoftext|>")["input_ids"] == [40, 1107, 588, 50256]
    verdict = (GPT2_FILES.parent / "lm_en_the-verdict.txt").read_text("utf-8").removesuffix("\n")
    assert len(tokenizer(verdict)["input_ids"]) == 5145
    with pytest.raises(InputError, match="holds all bytes in GPT-2's letters: kind bytes reads it"):
        assemble(released, "metaspace", [])


def test_the_vocabulary_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"lacks \d+ of the 256 bytes, the first being .*kind metaspace reads it"):
        assemble(train_bpe(texts(), "metaspace", 300), "bytes", [])
    lacking = Bpe({byte: n for n, byte in enumerate(sorted(train_bpe([], "bytes", 256).vocabulary)[1:])})
    with pytest.raises(InputError, match=r"lacks 1 of the 256 bytes, the first being '!', .*would lose them$"):
        assemble(lacking, "bytes", [])


def test_texts_are_read_once_as_they_come() -> None:
    """From a generator that nothing could read twice, and whose errors come through."""
    for kind in KINDS:
        given = iter(texts())
        assert train_bpe(given, kind, 400, 2) == train_bpe(texts(), kind, 400, 2)
        assert next(given, None) is None

        def broken() -> Iterator[str]:
            yield "the cat"
            raise InputError("a.txt:2: byte 0xff is not UTF-8")

        with pytest.raises(InputError, match=r"a.txt:2: byte 0xff"):
            train_bpe(broken(), kind, 400)
