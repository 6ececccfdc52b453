"""Perplexity of plain text: the same nats as a naive loop, ids in pieces as at once, constant memory, errors."""

import math
import random
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import KINDS, random_text, tokenizer_of
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from multitask.errors import InputError
from multitask.inference import perplexity
from multitask.inference.perplexity import perplexity_of_text
from multitask.tokenization import chunks
from multitask.tokenization.tokenizer import assemble, plain_reader, train_bpe

TEXT = random_text(random.Random(3), 120)


def naive(model, ids, window, stride):
    """The loop that Hugging Face documents: summed nats and the number of scored tokens."""
    nats, num_scored, end_before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        with torch.no_grad():
            scores = model(torch.tensor([ids[begin:end]])).logits[0].double().log_softmax(-1)
        for at in range(max(end_before, begin + 1), end):
            nats -= float(scores[at - 1 - begin, ids[at]])
            num_scored += 1
        end_before = end
        if end == len(ids):
            break
    return nats, num_scored


def other(kind, vocab_size):
    """A small causal model other than GPT-2: one with 48 positions, and one without a limit."""
    torch.manual_seed(1)
    if kind == "llama":
        shape = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(
            vocab_size=vocab_size, hidden_size=16, max_position_embeddings=48, initializer_range=0.3, **shape
        )
        return LlamaForCausalLM(config)
    return BloomForCausalLM(
        BloomConfig(vocab_size=vocab_size, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (16, 1), (17, 16), (48, 48), (2, 2)])
def test_it_is_the_naive_loop(kind, window, stride, tokenizer, tiny_model):
    model = tiny_model(vocab_size=len(tokenizer)) if kind == "gpt2" else other(kind, len(tokenizer))
    model.eval()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = perplexity_of_text(model, tokenizer, TEXT, window, stride, 100)
    nats, num_scored = naive(model, ids, window, stride)
    assert (found.num_tokens, found.num_scored) == (len(ids), num_scored)
    assert num_scored == len(ids) - (1 if stride < window else math.ceil(len(ids) / window))
    mean = nats / num_scored
    assert math.log(found.perplexity) == pytest.approx(mean, abs=1e-4)  # float32 nats
    assert found.num_words == len(TEXT.split())
    assert found.num_bytes == len(TEXT.encode())
    assert math.log(found.word_perplexity) == pytest.approx(mean * len(ids) / len(TEXT.split()), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(mean * len(ids) / math.log(2) / len(TEXT.encode()), rel=1e-4)
    assert (found.window, found.stride) == (window, stride)


def test_windows_by_hand():
    def windows(num, window, stride):
        parts = iter([range(0, 3), range(3, 3), range(3, num)])
        return [(ids.tolist(), scored) for ids, scored in perplexity._windows(parts, window, stride)]

    assert windows(10, 4, 2) == [([0, 1, 2, 3], 3), ([2, 3, 4, 5], 2), ([4, 5, 6, 7], 2), ([6, 7, 8, 9], 2)]
    assert windows(9, 4, 4) == [([0, 1, 2, 3], 3), ([4, 5, 6, 7], 3), ([8], 0)]
    assert windows(8, 4, 4) == [([0, 1, 2, 3], 3), ([4, 5, 6, 7], 3)]
    assert windows(5, 4, 3) == [([0, 1, 2, 3], 3), ([3, 4], 1)]
    assert windows(5, 9, 3) == [([0, 1, 2, 3, 4], 4)]


def test_more_context_helps_a_model_that_uses_it(tiny_model, tokenizer):
    model = tiny_model(vocab_size=len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = "the cat sat on a warm mat while two dogs ran far away " * 12
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:60]])
    for _ in range(60):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    apart, overlapping = (perplexity_of_text(model, tokenizer, text, 6, stride, 600) for stride in (6, 1))
    assert overlapping.perplexity < apart.perplexity
    assert model.training, "the mode is restored"


# --- Pieces


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_ids_of_the_whole(kind, monkeypatch):
    monkeypatch.setattr(perplexity, "_PIECE", 90)
    monkeypatch.setattr(chunks, "_CONTEXT", 20)
    tokenizer = tokenizer_of(kind)
    rng = random.Random(4)
    num_pieces = num_odd = 0
    for _ in range(60):
        text = "".join(random_text(rng, 8) + rng.choice(["\n\n", "\n \n", "\t", "<|end|> ", ""]) for _ in range(12))
        plain = plain_reader(tokenizer)
        pieces = list(chunks.pieces(iter([text[:200], text[200:]]), plain, 90))
        assert "".join(pieces) == text
        counts = perplexity._Counts()
        ids = [i for part in perplexity._ids([text], tokenizer, counts, "text") for i in part]
        assert ids == plain.encode(text, add_special_tokens=False).ids
        assert counts == perplexity._Counts(len(ids), 0, len(text.split()), len(text.encode()))
        num_pieces += len(pieces)
        num_odd += sum(piece[0] != " " for piece in pieces[1:])
        if "<|end|>" in text:
            assert tokenizer.convert_tokens_to_ids("<|end|>") not in ids, "markers in a user's text are plain text"
    assert num_pieces > 300
    assert num_odd > 0 or kind == "our-own", (
        "which puts a space where a text begins, so that only spaces are split points"
    )


def test_a_text_without_a_split_point_is_one_piece():
    plain = plain_reader(tokenizer_of("byte-level"))
    for text in ("가나다" * 200, "\n" * 500, "a"):
        assert list(chunks.pieces([text], plain, 90)) == [text]


def test_memory_does_not_grow_with_the_file(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(perplexity, "_PIECE", 1 << 12)
    found = lambda model, examples, batch_tokens: (np.ones(len(examples)), None)  # noqa: E731
    monkeypatch.setattr(perplexity, "example_nll", found)
    model = other("bloom", 8)
    peaks = []
    for num_lines in (2_000, 20_000):
        (tmp_path / "a.txt").write_text("the cat sat on a warm mat\n" * num_lines, "utf-8")
        tracemalloc.start()
        assert perplexity_of_text(model, tokenizer, tmp_path / "a.txt", 64, 64, 256).num_words == 7 * num_lines
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# --- Files


def test_a_file_is_its_text(tmp_path, tokenizer, monkeypatch):
    model = other("llama", len(tokenizer))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    at_once = perplexity_of_text(model, tokenizer, TEXT.replace("\n", "\r\n"), 16, 7, 100)
    monkeypatch.setattr(perplexity, "_PIECE", 31)  # characters of several bytes are split between reads
    assert perplexity_of_text(model, tokenizer, tmp_path / "a.txt", 16, 7, 100) == at_once


def test_invalid_text_windows_and_strides_are_errors(tmp_path, tokenizer, monkeypatch):
    model = other("llama", len(tokenizer))

    def error_of(content, window=16, stride=16):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(InputError) as raised:
            perplexity_of_text(model, tokenizer, tmp_path / "a.txt", window, stride, 100)
        return str(raised.value).removeprefix(f"{tmp_path}/")

    assert error_of(b"") == error_of(b" \n\n ") == "a.txt: has no words; expected some text"
    assert error_of(b"t") == "a.txt: has 1 token, and the first has no context; expected more text"
    assert error_of(b"a b", 49) == "a window of 49 tokens: expected at least 2 and at most 48, the model's positions"
    assert error_of(b"a b", 1) == "a window of 1 tokens: expected at least 2 and at most 48, the model's positions"
    assert error_of(b"a b", 16, 17) == "a stride of 17 tokens: expected 1 to 16, the window"
    assert error_of(b"a b", 16, 0) == "a stride of 0 tokens: expected 1 to 16, the window"
    for piece in (1 << 18, 5):
        monkeypatch.setattr(perplexity, "_PIECE", piece)
        cp949 = "첫 줄\n둘째 줄\n".encode() + "셋째".encode("cp949")
        assert error_of(cp949).startswith("a.txt:3: byte 0xbc is not UTF-8; convert the file")
        assert error_of("한 줄\n가".encode()[:-1]).startswith("a.txt:2: byte 0xea is not UTF-8")
    with pytest.raises(InputError, match=r"b\.txt: no such file; did you mean 'a\.txt'\?"):
        perplexity_of_text(model, tokenizer, tmp_path / "b.txt", 16, 16, 100)
    with pytest.raises(InputError, match="is a folder; expected a file"):
        perplexity_of_text(model, tokenizer, tmp_path, 16, 16, 100)


def test_broken_weights_are_an_error(tokenizer):
    model = other("llama", len(tokenizer))
    model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(InputError, match="the text: the likelihood of this text is not finite"):
        perplexity_of_text(model, tokenizer, "the cat sat", 16, 16, 100)


def test_a_character_that_the_tokenizer_would_drop_is_named(tiny_model, tmp_path) -> None:
    text = "abc\n" * 40
    made = assemble(train_bpe([text], "characters", 0), "characters", [])
    path = tmp_path / "text.txt"
    path.write_text(text + "abñ\n", "utf-8")
    with pytest.raises(InputError, match=r"text\.txt:41: character 'ñ' \(U\+00F1, number 3 of its line\)"):
        perplexity_of_text(tiny_model(), made, path, 16, 16, 256)
    assert perplexity_of_text(tiny_model(), made, text, 16, 16, 256).num_tokens == len(text)
