"""The token stream: the ids of each document encoded whole, whatever the pieces; resumed as if never stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import KINDS, WORDS, metaspace, random_text, tokenizer_of
from helpers import ENVIRONMENT
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from multitask.config.data import TextConfig
from multitask.data import corpus
from multitask.errors import InputError
from multitask.tokenization import chunks
from multitask.tokenization import token_file as tokenization_token_file
from multitask.tokenization.survey import CharacterSurvey
from multitask.tokenization.token_file import token_file
from multitask.tokenization.tokenizer import load_tokenizer, lost_characters, plain_reader

SHARED = Path(os.environ.get("MULTITASK_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data (MULTITASK_DATA)")


def characters(alphabet, unknown=None, kind="bpe"):
    """A tokenizer of characters, in two makes; without `unknown` one drops what it does not know, one fails."""
    names = [*([unknown] if unknown else []), *dict.fromkeys(alphabet), "<end>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    if kind == "bpe":
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    else:
        made = Tokenizer(models.WordLevel(vocabulary, **({"unk_token": unknown} if unknown else {})))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token=unknown)


def tokenizer_named(kind):
    alphabet = "".join(WORDS) + " \n\r\t\0.,é😀<|end>"
    return characters(alphabet, "<unk>") if kind == "characters" else tokenizer_of(kind)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces, batches and parts that are far smaller than a document."""
    monkeypatch.setattr(tokenization_token_file, "_PIECE", 90)
    monkeypatch.setattr(tokenization_token_file, "_BATCH", 300)
    monkeypatch.setattr(chunks, "_CONTEXT", 20)
    monkeypatch.setattr(corpus, "_PART", 70)


class Shelf:
    """A folder with texts, and a cache beside it."""

    def __init__(self, folder):
        self.folder, self.cache = folder, folder / "cache"

    def config(self, text, name="a.txt", **settings):
        (self.folder / name).write_text(text, "utf-8", newline="")
        files = {"train": name}
        return TextConfig(**{"files": files, "root": self.folder, "cache": self.cache, "validation": 0, **settings})

    def left(self):
        """What is in the cache, locks aside."""
        return sorted(path.suffix for path in self.cache.iterdir() if path.suffix != ".lock")


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def long_text(rng, num_lines=40):
    ends = ["\n", "\n\n", "\r\n", " \n", "\t", "\0 ", " "]
    return "".join(random_text(rng, rng.choice([2, 9, 30])) + rng.choice(ends) for _ in range(num_lines))


def in_steps(monkeypatch):
    """Counts the items of every batch that is encoded."""
    sizes = []
    encode = tokenization_token_file._Encoder.encode
    monkeypatch.setattr(
        tokenization_token_file._Encoder,
        "encode",
        lambda self, batch: sizes.append(len(batch.texts)) or encode(self, batch),
    )
    return sizes


# --- The same ids


@pytest.mark.parametrize("documents", ["file", "paragraph", "line", "jsonl"])
@pytest.mark.parametrize("kind", [*KINDS, "characters"])
def test_the_stream_is_each_document_encoded_whole(kind, documents, shelf, small_pieces, monkeypatch):
    tokenizer = tokenizer_named(kind)
    before, after = (tokenizer.convert_ids_to_tokens(i) for i in (5, len(tokenizer) - 1))
    sizes = in_steps(monkeypatch)
    rng = random.Random(5)
    for round_ in range(3):
        text = long_text(rng)
        if documents == "jsonl":
            rows = [long_text(rng, num) for num in (1, 30, 2)]
            text = "".join(json.dumps({"text": row}) + "\n" for row in rows)
            config = shelf.config(text, f"{round_}.jsonl", before=before, after=after)
        else:
            config = shelf.config(text, f"{round_}.txt", before=before, after=after, documents=documents)
        found = token_file(tokenizer, config, "train")
        every = list(corpus.documents(config, "train"))
        expected = [[5, *tokenizer(d, add_special_tokens=False)["input_ids"], len(tokenizer) - 1] for d in every]
        assert found.ids.tolist() == [i for ids in expected for i in ids]
        assert (found.before_id, found.after_id, len(found)) == (5, len(tokenizer) - 1, len(found.ids))
        whole = "".join(every)
        assert {name: found.report[name] for name in found.report if name.startswith("num_")} == {
            "num_tokens": len(found),
            "num_documents": len(every),
            "num_characters": len(whole),
            "num_bytes": len(whole.encode()),
            "num_words": sum(len(d.split()) for d in every),
            "num_unknown": sum(ids.count(tokenizer.backend_tokenizer.token_to_id("<unk>")) for ids in expected)
            if kind != "wordpiece"
            else sum(ids.count(tokenizer.unk_token_id) for ids in expected),
            "num_chars_lost": sum(found.report["chars_lost"].values()),
        }
        assert "\r" in whole or "\0" in whole
    assert len(sizes) > 9
    assert sum(sizes) > 30


def test_markers_in_the_text_are_text(shelf, tokenizer):
    text = "the <|end|> cat <|sep|>"
    found = token_file(tokenizer, shelf.config(text), "train")
    ids = plain_reader(tokenizer).encode(text, add_special_tokens=False).ids
    assert found.ids.tolist() == [*ids, tokenizer.eos_token_id], "after each document, without a word, its eos"
    assert tokenizer.eos_token_id not in ids


def test_separators_are_tokens(shelf):
    tokenizer = characters("ab")
    plain = token_file(tokenizer, shelf.config("ab", after=""), "train")
    assert (plain.ids.tolist(), plain.before_id, plain.after_id) == ([0, 1], None, None)
    both = token_file(tokenizer, shelf.config("ab\nb\n", documents="line", before="<end>", after="a"), "train")
    assert both.ids.tolist() == [2, 0, 1, 0, 2, 1, 0]
    with pytest.raises(InputError, match=r"text\.before: '<s>' is not one token of the tokenizer; valid: <end>"):
        token_file(tokenizer, shelf.config("ab", before="<s>"), "train")
    with pytest.raises(InputError, match=r"text\.after: '<ende>' is not one token .*; did you mean '<end>'\?"):
        token_file(tokenizer, shelf.config("ab", after="<ende>"), "train")


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_two_bytes_an_id_as_long_as_they_do(size, dtype, shelf):
    vocabulary = {f"w{number}": number for number in range(size)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0")
    found = token_file(tokenizer, shelf.config(f"w1 w{size - 1} w7"), "train")
    assert found.ids.dtype == dtype
    assert found.ids.tolist() == [1, size - 1, 7]
    assert found.path.stat().st_size == 3 * np.dtype(dtype).itemsize


def test_a_share_of_the_text_is_split_by_characters(shelf, small_pieces):
    tokenizer = tokenizer_named("characters")
    text = random_text(random.Random(6), 100, odd=False)
    config = shelf.config(text, validation=0.1, after="")
    train, validation = (token_file(tokenizer, config, split) for split in ("train", "validation"))
    assert len(train) == int(0.9 * len(text))
    assert tokenizer.decode([*train.ids, *validation.ids]) == text
    assert (train.report["split"], validation.report["validation_share"]) == ("train", 0.1)


@needs_data
def test_the_verdict_with_the_real_tokenizer(shelf):
    tokenizer = load_tokenizer(str(SHARED / "tokenizer_gpt2"))
    text = (SHARED / "lm_en_the-verdict.txt").read_text("utf-8").removesuffix("\n")
    assert len(token_file(tokenizer, shelf.config(text, after=""), "train")) == 5145  # known from the textbook


@needs_data
def test_tiny_shakespeare_is_split_as_nanogpt_splits_it(shelf):
    path = SHARED / "lm_en_tinyshakespeare.txt"
    tokenizer = characters(sorted(set(path.read_text("utf-8"))))
    config = TextConfig(files={"train": str(path)}, after="", cache=shelf.cache)
    # The counts that nanoGPT's data/shakespeare_char/prepare.py prints.
    assert [len(token_file(tokenizer, config, split)) for split in ("train", "validation")] == [1003854, 111540]


# --- What is lost


def test_lost_characters_are_counted(shelf, small_pieces):
    text = "the cat\nsat ☃ 물😀 on ☃\na mat ① " * 20
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        report = token_file(tokenizer, shelf.config(text), "train").report
        # The other way decodes whole texts; of line breaks it counts those that glue words together, here all.
        assert report["chars_lost"] == dict(lost_characters([text], tokenizer, plain_reader(tokenizer))), kind
        assert report["num_chars_lost"] == sum(report["chars_lost"].values())
        assert set(report["chars_lost"]) == {
            "metaspace": {"☃", "물", "😀", "\n", "①"},
            "wordpiece": {"☃", "물", "😀", "\n", "①"},
        }.get(kind, set())


def test_decomposed_text_is_not_lost_on_a_tokenizer_that_composes(shelf):
    import unicodedata

    text = unicodedata.normalize("NFD", "고양이가 정말")
    report = token_file(tokenizer_of("metaspace"), shelf.config(text), "train").report
    assert len(text) > 10
    assert (report["num_characters"], report["num_chars_lost"], report["num_unknown"]) == (len(text), 0, 0)


@pytest.mark.parametrize("kind", ["bpe", "wordlevel"])
def test_a_character_without_a_token_is_refused(kind, shelf, small_pieces):
    tokenizer = characters("abc \n", kind=kind)
    text = "a b\n" * 100 + "a x b\n" + "c b\n" * 100
    if kind == "wordlevel":  # whose own error comes first where a document is longer than a piece
        with pytest.raises(InputError, match=r"the tokenizer cannot encode this text: WordLevel error: Missing"):
            token_file(tokenizer, shelf.config(text), "train")
    documents = "file" if kind == "bpe" else "line"
    with pytest.raises(InputError) as raised:
        token_file(tokenizer, shelf.config(text, documents=documents), "train")
    assert str(raised.value) == (
        f"{shelf.folder}/a.txt:101: the tokenizer has no token for 'x' (U+0078) and none for unknown characters, so it "
        "would drop it; train it on this text too, name the character as an extra one, or take a tokenizer with an "
        "unknown token"
    )
    assert shelf.left() == []
    with pytest.raises(InputError, match=r"a\.jsonl:2: the tokenizer has no token for '\\t'"):
        token_file(tokenizer, shelf.config('{"text": "a b"}\n{"text": "b\\tc"}\n', "a.jsonl"), "train")
    known = characters("abc \n", "<unk>", kind)
    report = token_file(known, shelf.config(text), "train").report
    assert (report["num_unknown"], report["chars_lost"]) == (1, {"x": 1})


def test_what_clean_up_takes_away_is_counted_not_refused(shelf):
    made = metaspace("always")
    made.model = models.BPE(vocab={"▁": 0, "a": 1, "b": 2, "1": 3}, merges=[])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    report = token_file(tokenizer, shelf.config("a\nb ① a"), "train").report
    assert report["chars_lost"] == {"\n": 1, "①": 1}
    with pytest.raises(InputError, match="has no token for '☃'"):
        token_file(tokenizer, shelf.config("a ☃"), "train")


def test_a_text_without_words_is_refused(shelf):
    with pytest.raises(InputError, match=r"a\.txt: has no words"):
        token_file(characters("a"), shelf.config(" \n"), "train")
    with pytest.raises(InputError, match="the validation text has no words; some text was expected"):
        token_file(characters("a "), shelf.config("a" * 90 + " " * 10, validation=0.1), "validation")
    assert shelf.left() == []


# --- Once, and to the end


class Stop(Exception):
    pass


def stop_after(count):
    """A reporter that stops the encoding after so many batches."""
    records = []

    def report(record):
        records.append(record)
        if len(records) == count:
            raise Stop

    return report


@pytest.mark.parametrize("documents", ["file", "line"])
def test_an_interrupted_encoding_goes_on(documents, shelf, small_pieces, monkeypatch):
    tokenizer = tokenizer_of("metaspace")
    config = shelf.config("☃ " + long_text(random.Random(7)), documents=documents, before="<|pad|>", validation=0.2)
    records = []
    whole = token_file(tokenizer, config, "train", records.append)
    content, facts = whole.path.read_bytes(), whole.report
    assert [record["event"] for record in records] == ["encoding"] * len(records)
    assert (records[-1]["num_tokens"], records[-1]["split"]) == (len(whole), "train")
    assert facts["chars_lost"]["☃"] == 1
    sizes = in_steps(monkeypatch)
    assert len(records) > 5
    for count in range(1, len(records)):
        shutil.rmtree(shelf.cache)
        with pytest.raises(Stop):
            token_file(tokenizer, config, "train", stop_after(count))
        assert shelf.left() == [".part", ".progress"]
        (part,) = shelf.cache.glob("*.part")
        with part.open("ab") as file:  # a batch that was written, and not yet noted
            file.write(b"\1" * (count % 7))
        sizes.clear()
        found = token_file(tokenizer, config, "train")
        assert (found.path.read_bytes(), found.report) == (content, facts)
        assert len(sizes) <= len(records) - count + 1, "what was done is not done again"
        assert shelf.left() == [".ids", ".json"]


@pytest.mark.parametrize("damage", ["no progress", "no text", "broken progress", "too short"])
def test_what_cannot_be_gone_on_with_is_begun_anew(damage, shelf, small_pieces):
    tokenizer = tokenizer_of("byte-level")
    config = shelf.config(long_text(random.Random(8)))
    content = token_file(tokenizer, config, "train").path.read_bytes()
    shutil.rmtree(shelf.cache)
    with pytest.raises(Stop):
        token_file(tokenizer, config, "train", stop_after(3))
    (part,), (progress,) = shelf.cache.glob("*.part"), shelf.cache.glob("*.progress")
    if damage == "no progress":
        progress.unlink()
    elif damage == "no text":
        part.unlink()
    elif damage == "broken progress":
        progress.write_text('{"counts": {')
    else:
        part.write_bytes(part.read_bytes()[:-1])
    assert token_file(tokenizer, config, "train").path.read_bytes() == content


def test_it_is_encoded_once(shelf, monkeypatch):
    tokenizer = tokenizer_of("byte-level")
    config = shelf.config("the cat\nsat")
    first = token_file(tokenizer, config, "train")
    sizes = in_steps(monkeypatch)
    again = token_file(tokenizer, config, "train")
    assert (again.path, again.ids.tolist(), again.report) == (first.path, first.ids.tolist(), first.report)
    assert sizes == []
    others = [
        token_file(tokenizer, shelf.config("the cat\nsat", documents="line"), "train"),
        token_file(tokenizer, shelf.config("the cat\nsat", after=""), "train"),
        token_file(tokenizer, shelf.config("the cat\nsat", validation=0.5), "train"),
        token_file(tokenizer, shelf.config("the cat\nsat", validation=0.5), "validation"),
        token_file(tokenizer, shelf.config("the cat\nsits"), "train"),
        token_file(tokenizer_of("metaspace"), config, "train"),
    ]
    assert len({found.path for found in [first, *others]}) == 7


CHILD = """
import sys
from transformers import PreTrainedTokenizerFast
from multitask.tokenization import chunks
from multitask.tokenization import token_file as tokens
from multitask.config.data import TextConfig
tokens._PIECE, tokens._BATCH, chunks._CONTEXT = 90, 300, 20
seen = []
def report(record):
    seen.append(record)
    if len(seen) == 3:
        print("three batches", flush=True)
        sys.stdin.readline()
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
tokens.token_file(tokenizer, TextConfig.model_validate_json(sys.argv[2]), "train", report)
"""


@pytest.mark.parametrize("end", ["done", "killed"])
def test_one_process_encodes_and_another_waits(end, shelf, small_pieces, monkeypatch):
    tokenizer_of("byte-level").save_pretrained(shelf.folder / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shelf.folder / "tokenizer")
    config = shelf.config(long_text(random.Random(9)))
    arguments = [sys.executable, "-c", CHILD, str(shelf.folder / "tokenizer"), config.model_dump_json()]
    pipe = subprocess.PIPE
    child = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "three batches\n"
        sizes = in_steps(monkeypatch)
        records = []

        def report(record):
            records.append(record)
            if record["event"] == "note":  # the other one has the lock, and stands still
                assert (shelf.left(), sizes) == ([".part", ".progress"], [])
                if end == "killed":
                    child.send_signal(signal.SIGKILL)
                else:
                    assert child.stdin is not None
                    child.stdin.write("go on\n")
                    child.stdin.flush()

        found = token_file(tokenizer, config, "train", report)
    finally:
        child.kill()
        child.communicate()
    assert records[0] == {"event": "note", "text": "another process encodes the train text; waiting for it"}
    content, num_rest = found.path.read_bytes(), len(sizes)
    shutil.rmtree(shelf.cache)
    sizes.clear()
    assert token_file(tokenizer, config, "train").path.read_bytes() == content
    if end == "done":
        assert num_rest == 0
    else:
        assert 0 < num_rest <= len(sizes) - 2, "what the other one had done is not done again"


def test_memory_does_not_grow_with_the_text(shelf, monkeypatch, tokenizer):
    monkeypatch.setattr(tokenization_token_file, "_PIECE", 1 << 12)
    monkeypatch.setattr(tokenization_token_file, "_BATCH", 1 << 14)
    monkeypatch.setattr(corpus, "_PART", 1 << 12)
    monkeypatch.setattr(corpus, "provenance", lambda config, split: {"size": num_words})  # it reads a megabyte at once
    peaks = []
    for num_words in (10_000, 80_000):
        config = shelf.config("the cat sat on " * num_words)
        tracemalloc.start()
        assert len(token_file(tokenizer, config, "train")) > 4 * num_words
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_cache_that_cannot_be_written_is_told(shelf, tokenizer):
    (shelf.folder / "cache").write_text("a file, not a folder")
    said = (
        r"\.ids: the cache cannot be written \((File exists|Not a directory)\); .*--set text\.cache=FOLDER.* XDG_CACHE_"
    )
    with pytest.raises(InputError, match=said):
        token_file(tokenizer, shelf.config("the cat"), "train")


@pytest.mark.parametrize("suffix", [".ids", ".json"])
@pytest.mark.parametrize("keep", [0, 10])
def test_a_damaged_cache_file_is_encoded_anew_and_said_once(shelf, tokenizer, suffix, keep):
    config = shelf.config("the cat sat on a mat\n" * 20)
    whole = token_file(tokenizer, config, "train")
    ids, report = whole.ids.tolist(), whole.report
    path = whole.path.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:keep])
    records = []
    again = token_file(tokenizer, config, "train", records.append)
    assert (again.ids.tolist(), again.report) == (ids, report)
    (warning,) = [record["text"] for record in records if record["event"] == "warning"]
    assert warning.startswith(f"{whole.path}: this file of the cache is truncated or damaged (")
    records.clear()
    token_file(tokenizer, config, "train", records.append)
    assert records == []


@pytest.mark.parametrize("content", ["[]", "null", '{"counts": 3}', '{"counts"'])
def test_damaged_notes_of_progress_are_ignored(shelf, tokenizer, content):
    config = shelf.config("the cat sat on a mat")
    path = token_file(tokenizer, config, "train").path
    ids = path.read_bytes()
    path.unlink()
    path.with_suffix(".part").write_bytes(b"1234")
    path.with_suffix(".progress").write_text(content)
    assert token_file(tokenizer, config, "train").path.read_bytes() == ids


def test_a_full_disk_under_the_cache_is_told(shelf, tokenizer, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"\.ids: the cache cannot be written \(No space left on device\)"):
        token_file(tokenizer, shelf.config("the cat"), "train")


SPACES = [chr(n) for n in range(sys.maxunicode + 1) if chr(n).isspace()]


@pytest.mark.parametrize("seed", range(20))
def test_words_are_those_of_split(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = ["a", "é", "e\u0301", "한", "\u1112\u1161\u11ab", "😀", *rng.sample(SPACES, 4)]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(50)]
    survey = CharacterSurvey(plain_reader(tokenizer_of("byte-level")), has_unknown=False)
    assert survey.count(texts).num_words == sum(len(text.split()) for text in texts)
    assert survey.count(texts).num_words == sum(len(text.split()) for text in texts), "of characters that are known"


def test_white_space_alone_has_no_words() -> None:
    survey = CharacterSurvey(plain_reader(tokenizer_of("byte-level")), has_unknown=False)
    assert survey.count([" ", "\n\t"]).num_words == 0
    assert survey.count(["a", " "]).num_words == 1
