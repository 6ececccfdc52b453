"""What many tests share: a two-layer GPT-2, tokenizers of three kinds, rows. No network, no cache outside `tmp`."""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported
os.environ.pop("COLUMNS", None)  # pytest-xdist sets 80: tables are as wide as without it

import pytest
import torch
from helpers import varlen_on_cpu
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from multitask.data.rows import Row
from multitask.models.layers import attention
from multitask.pattern import markers
from multitask.registry import load_tasks
from multitask.task import Task
from multitask.tokenization.tokenizer import add_markers, train_tokenizer

TASKS = load_tasks()
KINDS = ("byte-level", "our-own", "metaspace", "wordpiece")
WORDS = (  # noqa: SIM905
    "the cat sat on a warm mat while two dogs ran far away 1 23 456 it's U.S. well-known negative "
    "고양이가 따뜻한 자리에 앉았고 강아지 두 마리는 멀리 달아났다 서울에서 부산까지 읽었습니다 영화 정말 재밌다 긍정"
).split()
"""What tokenizers are trained on and random texts are made of."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MULTITASK_DATA", raising=False)
        yield


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Packed rows go through the variable-length attention of GPUs, written out; holds the longest of each call."""
    calls: list[int] = []

    def counted(*parts: Any, **named: Any) -> Tensor:
        calls.append(parts[5])
        return varlen_on_cpu(*parts, **named)

    monkeypatch.setattr(attention, "_varlen_attn", counted)
    monkeypatch.setattr(attention, "has_varlen", lambda _, dropout, rule: not dropout and rule.softcap is None)
    return calls


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the markers of the shipped tasks: GPT-2's kind, ours, KoGPT2's kind, or WordPiece."""
    texts = [" ".join(random.Random(n).sample(WORDS, 12)) for n in range(200)]
    if kind == "byte-level":
        return byte_level(texts, markers(TASKS))
    if kind == "our-own":
        return train_tokenizer(texts, 500, markers(TASKS))
    if kind == "metaspace":
        made = metaspace("always")
        made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>", "<unk>", "<pad>"]))
        wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[PAD]"]))
        wrapped = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")
    add_markers(wrapped, markers(TASKS))
    return wrapped


def byte_level(texts: list[str], special: list[str]) -> PreTrainedTokenizerFast:
    """GPT-2's kind, which gives back every text as it was; without texts, ids are bytes and then markers."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made)
    add_markers(wrapped, special)
    return wrapped


def metaspace(prepend_scheme: str) -> Tokenizer:
    """An untrained tokenizer of KoGPT2's kind: the normalizer drops newlines, unknown characters vanish."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex("\n"), "")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return made


@pytest.fixture(params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return tokenizer_of(request.param)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of("byte-level")


@pytest.fixture
def tiny_model() -> Callable[..., GPT2LMHeadModel]:
    """Makes a GPT-2 of 97 tokens and 64 positions, float32, without dropout; the same weights each time."""

    def make(attention: str = "sdpa", **changes: Any) -> GPT2LMHeadModel:
        torch.manual_seed(0)
        shape = {"vocab_size": 97, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        # Wide initial weights: attention that is nearly uniform would hide a leak.
        config = GPT2Config(**(shape | dropout | {"initializer_range": 0.2} | changes))
        config._attn_implementation = attention
        return GPT2LMHeadModel(config)

    return make


def make_row(task: Task, fields: Mapping[str, str], keep: tuple[int, int] | None = None, number: int = 0) -> Row:
    """A row as `data.read_rows` gives it."""
    return Row(f"r{number}", dict(fields), (fields[task.target],), "en", (), (), keep, f"rows.jsonl:{number + 1}")


def random_text(rng: random.Random, num_words: int, odd: bool = True) -> str:
    """Korean and English words; `odd` adds newlines, runs of spaces, an emoji, an accent, spaces at the ends."""
    gaps = [" "] * 8 + (["\n", "  ", ", ", " é", "😀 ", "..."] if odd else [])
    text = "".join(rng.choice(WORDS) + rng.choice(gaps) for _ in range(num_words))
    return rng.choice(["", " "]) + text if odd else text.strip()


def random_fields(task: Task, rng: random.Random, cut_words: int = 6, odd: bool = True) -> dict[str, str]:
    """Values of all fields of a task; the class is a plain word, the `cut` field has `cut_words` words."""
    from multitask.pattern import fields

    return {
        name: rng.choice(["긍정", "negative"])
        if name == task.label
        else random_text(rng, cut_words if name == task.truncate else rng.randint(1, 6), odd)
        for name in fields(task.stream)
    }
