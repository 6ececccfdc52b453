"""A plain text corpus: documents as a plain reading gives them, splits exact in characters, flat memory, errors."""

import gzip
import json
import random
import re
import tracemalloc

import pytest
from conftest import random_text

from multitask.config.data import TextConfig
from multitask.config.loading import load
from multitask.config.run import PretrainConfig
from multitask.data import corpus
from multitask.data.corpus import documents, parts, place_of, provenance
from multitask.data.synthetic.documents import documents as world_documents
from multitask.errors import InputError


def config_of(folder, *names, **settings):
    """Settings of a training text without a validation text."""
    return TextConfig(**{"files": {"train": list(names)}, "root": folder, "validation": 0, **settings})


def odd_text(rng, num_words):
    """A text with everything that splits one into lines and documents, and things that must not."""
    ends = ["\n", "\n\n", "\r\n", "\r\n\r\n", "\n \n", "\n\t\n\n", " ", "\r", "\u2028", "\x0b", "\0"]
    return "".join(random_text(rng, rng.choice([0, 1, 3, 9])) + rng.choice(ends) for _ in range(num_words))


def plain_documents(text, kind):
    """What documents are, said another way than the reader does it: on the whole text."""
    if kind == "file":
        return [text]
    lines = [(line, not line.strip()) for line in text.split("\n")]
    if kind == "line":
        return [line.removesuffix("\r") for line, is_empty in lines if not is_empty]
    marked = "\n".join("" if is_empty else line for line, is_empty in lines)
    return [found.removesuffix("\r") for found in re.split(r"\n{2,}", marked.strip("\n")) if found]


@pytest.mark.parametrize("size", [5, 40, 1 << 18])
@pytest.mark.parametrize("kind", ["file", "paragraph", "line"])
def test_documents_are_those_of_the_whole_text(kind, size, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PART", size)
    rng = random.Random(1)
    num_documents = num_parts = 0
    for _ in range(40):
        text = "a" + odd_text(rng, 12)
        (tmp_path / "a.txt").write_text(text, "utf-8", newline="")
        config = config_of(tmp_path, "a.txt", documents=kind)
        found = list(documents(config, "train"))
        if size > 5 or kind != "line":  # of a line that is longer than a part only its words are sure
            assert found == plain_documents(text, kind)
        assert [d.split() for d in found] == [d.split() for d in plain_documents(text, kind)]
        pieces = list(parts(config, "train"))
        assert all(text for text, _ in pieces)
        assert max(len(text) for text, _ in pieces) <= 3 * size + 3
        num_documents += len(found)
        num_parts += len(pieces)
    assert num_parts > num_documents or size > 40
    assert num_documents > 100 or kind == "file"


def test_files_are_found_by_name_pattern_and_root(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "deep/c.txt", "[x].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(documents(config_of(tmp_path, "b.txt", "a.txt"), "train")) == ["b.txt", "a.txt"]
    assert list(documents(config_of(tmp_path, "?.txt"), "train")) == ["a.txt", "b.txt"]
    assert list(documents(config_of(tmp_path, "[x].txt"), "train")) == ["[x].txt"], "a name goes before a pattern"
    assert list(documents(config_of(None, str(tmp_path / "deep/*")), "train")) == ["deep/c.txt"]
    monkeypatch.setenv("MULTITASK_DATA", str(tmp_path))
    config = TextConfig(files={"train": "**/*.txt", "validation": "a.txt"})
    assert list(documents(config, "train")) == ["[x].txt", "a.txt", "b.txt", "deep/c.txt"]
    assert list(documents(config, "validation")) == ["a.txt"]
    assert provenance(config, "train")["files"] == ["[x].txt", "a.txt", "b.txt", "deep/c.txt"]
    with pytest.raises(InputError, match=r"/\*\.md: no file has a name of this pattern"):
        list(parts(config_of(tmp_path, "*.md"), "train"))
    with pytest.raises(InputError, match=r"aa\.txt: no such file; in its folder: did you mean 'a\.txt'\?"):
        list(parts(config_of(tmp_path, "aa.txt"), "train"))


def test_encodings_and_compression(tmp_path):
    text = "첫 줄\r\n둘째 줄\n" * 30
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "old.txt").write_bytes(text.encode("cp949"))
    (tmp_path / "small.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "old.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode("cp949"))
    for name in ("bom.txt", "small.txt.gz"):
        assert list(documents(config_of(tmp_path, name), "train")) == [text]
    for name in ("old.txt", "old.jsonl"):
        assert list(documents(config_of(tmp_path, name, encoding="cp949"), "train")) == [text]


def test_rows_of_jsonl_are_documents(tmp_path, monkeypatch):
    rows = [{"title": "T", "text": "one\n\ntwo"}, {"title": "", "text": " "}, {"text": "\0 é" * 9, "title": "둘"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.setattr(corpus, "_PART", 4)
    assert list(documents(config_of(tmp_path, "a.jsonl"), "train")) == ["one\n\ntwo", "\0 é" * 9]
    found = list(documents(config_of(tmp_path, "a.jsonl", fields=["title", "text"]), "train"))
    assert found == ["T\none\n\ntwo", "둘\n" + "\0 é" * 9]
    assert {len(text) for text, _ in parts(config_of(tmp_path, "a.jsonl"), "train")} == {4, 3}


def test_the_worlds_documents():
    config = TextConfig(synthetic={"train": 5, "validation": 3})
    assert list(documents(config, "train")) == list(world_documents("train", 5))
    assert list(documents(config, "validation")) == list(world_documents("validation", 3))
    found = provenance(config, "validation")
    assert found["files"] == ["documents:validation:3"]
    assert found["validation_share"] is None
    text = "".join(world_documents("train", 5))
    shared = TextConfig(synthetic={"train": 5}, validation=0.25)
    assert "".join(documents(shared, "validation")) == text[int(0.75 * len(text)) :]


# --- Splits


@pytest.mark.parametrize("share", [0.1, 0.5, 0.03])
@pytest.mark.parametrize("kind", ["file", "line"])
def test_a_share_is_exact_in_characters(kind, share, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PART", 20)
    rng = random.Random(2)
    num_truncated = 0
    for _ in range(40):
        names = [f"{n}.txt" for n in range(3)]
        for name in names:
            (tmp_path / name).write_text("가" + odd_text(rng, 3), "utf-8", newline="")
        every = list(documents(config_of(tmp_path, *names, documents=kind), "train"))
        config = config_of(tmp_path, *names, documents=kind, validation=share)
        before, after = list(documents(config, "train")), list(documents(config, "validation"))
        whole = "".join(every)
        border = int(len(whole) * (1 - share))  # as nanoGPT and the textbook count
        assert ("".join(before), "".join(after)) == (whole[:border], whole[border:])
        is_truncated = len(before) + len(after) > len(every)
        if is_truncated:
            assert [*before[:-1], before[-1] + after[0], *after[1:]] == every
        else:
            assert before + after == every
        num_truncated += is_truncated
    assert num_truncated > 10


def test_a_share_must_leave_something(tmp_path):
    (tmp_path / "a.txt").write_text("ab")
    (tmp_path / "b.txt").write_text("a")
    with pytest.raises(InputError, match=r"a share of 0\.1 of 1 characters leaves nothing for train; expected a"):
        parts(config_of(tmp_path, "b.txt", validation=0.1), "validation")
    with pytest.raises(InputError, match=r"a share of 1e-20 of 2 characters leaves nothing for validation; expected"):
        parts(config_of(tmp_path, "a.txt", validation=1e-20), "train")
    with pytest.raises(InputError, match=r"text\.validation is 0 and no validation text is named: there is none"):
        parts(config_of(tmp_path, "a.txt"), "validation")
    config = config_of(tmp_path, files={"train": "a.txt", "validation": "b.txt"}, validation=0.9)
    assert list(documents(config, "train")) == ["ab"], "text of its own goes before a share"


def test_provenance_follows_the_content(tmp_path):
    (tmp_path / "a.txt").write_text("ab")
    first = provenance(config_of(tmp_path, "a.txt", validation=0.5), "train")
    assert first["files"] == ["a.txt"]
    assert first["sha256"] == ["fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"]  # of `sha256sum`
    assert (first["split"], first["validation_share"]) == ("train", 0.5)
    (tmp_path / "a.txt").write_text("abc")
    assert provenance(config_of(tmp_path, "a.txt", validation=0.5), "train")["sha256"] != first["sha256"]


def test_where_a_character_stands(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes("가\n나\r\n\n다e\u0301\n".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "a\\nb"}\n{"text": "c\\nd"}\n')
    config = config_of(tmp_path, "a.txt", "b.jsonl")
    for size in (2, 1 << 18):
        monkeypatch.setattr(corpus.read, "__defaults__", ("utf-8", size))
        assert place_of("가", config, "train") == f"{tmp_path}/a.txt:1"
        assert place_of("다", config, "train") == f"{tmp_path}/a.txt:4"
    assert place_of("é", config, "train") == f"{tmp_path}/a.txt:4", "after NFC"
    assert place_of("d", config, "train") == f"{tmp_path}/b.jsonl:2"


# --- Memory


@pytest.mark.parametrize("kind", ["file", "paragraph", "line"])
def test_memory_does_not_grow_with_a_document(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PART", 1 << 12)
    peaks = []
    for num_words in (20_000, 200_000):
        (tmp_path / "a.txt").write_text("the cat sat on " * num_words)  # one line
        config = config_of(tmp_path, "a.txt", documents=kind, validation=0.1)
        tracemalloc.start()
        assert sum(len(text) for text, _ in parts(config, "train")) == int(15 * num_words * 0.9)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# --- What cannot be read


def test_what_is_no_text_is_refused(tmp_path, monkeypatch):
    def refusal(content, name="a.txt", **settings):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as raised:
            list(parts(config_of(tmp_path, name, **settings), "train"))
        return str(raised.value).removeprefix(f"{tmp_path}/")

    assert refusal(b"") == refusal(b" \n\n ") == "a.txt: has no words; some text was expected"
    assert refusal(b" \r\n\n ", documents="line") == refusal(b"", documents="paragraph") == refusal(b"")
    assert refusal(b'{"text": " "}\n', "a.jsonl") == "a.jsonl: has no words; some text was expected"
    for size in (1 << 18, 5):
        monkeypatch.setattr(corpus, "_PART", size)
        old = "첫 줄\n둘째 줄\n".encode() + "셋째".encode("cp949")
        assert refusal(old) == (
            "a.txt:3: byte 0xbc is not UTF-8; convert the file, e.g. `iconv -f CP949 -t UTF-8 a.txt`, or say "
            "`encoding: cp949` in its settings"
        )
        assert refusal("한 줄\n가".encode()[:-1]).startswith("a.txt:2: byte 0xea is not UTF-8")
        new = "가\n나".encode("cp949") + b"\n\xff\n"
        assert refusal(new, encoding="cp949") == (
            "a.txt:3: byte 0xff is not CP949; expected that encoding; if the text is UTF-8, say `encoding: utf-8`"
        )
    assert refusal(gzip.compress(b"text " * 99)[:-9], "a.txt.gz").startswith("a.txt.gz: the gzip data is damaged")
    assert refusal(b"text", "a.doc") == (
        "a.doc: a corpus is read from plain text and JSONL, and the extension '.doc' tells neither; set "
        "`text.format` to text or jsonl"
    )
    assert list(parts(config_of(tmp_path, "a.doc", format="text"), "train")) == [("text", True)]


def test_rows_that_are_no_text_are_refused(tmp_path):
    def refusal(line, **settings):
        (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line)
        with pytest.raises(InputError) as raised:
            list(parts(config_of(tmp_path, "a.jsonl", **settings), "train"))
        return str(raised.value).removeprefix(f"{tmp_path}/")

    assert refusal('{"text": "a"').startswith("a.jsonl:2: not valid JSON at column 13: Expecting ',' delimiter")
    assert refusal("[1]") == "a.jsonl:2: a JSON object was expected, found [1]"
    missing = "field 'text' is missing, found body, id; `fields:` names those that hold text"
    assert refusal('{"body": "b", "id": 1}') == f"a.jsonl:2: {missing}"
    assert refusal('{"text": null}') == "a.jsonl:2: field 'text' is None, expected text, found NoneType"
    assert refusal('{"text": 5}') == "a.jsonl:2: field 'text' is 5, expected text, found int"
    assert refusal('{"text": "a\\ud800"}').startswith("a.jsonl:2: field 'text' holds half of a surrogate pair at char")
    assert refusal('{"text": "a"}', fields=["text", "b"]).startswith("a.jsonl:1: field 'b' is missing, found text;")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(("\ufeff" * (encoding != "utf-16") + "한 줄\n").encode(encoding))
    with pytest.raises(InputError, match=r"a\.txt: utf-16 text .* expected utf-8; save it as utf-8"):
        list(documents(config_of(tmp_path, "a.txt"), "train"))


def test_settings_that_cannot_be():
    def refusal(**settings):
        with pytest.raises(InputError) as raised:
            load(PretrainConfig, {"text": settings})
        return str(raised.value).removeprefix("settings: ")

    assert refusal() == "text: exactly one of files, synthetic is needed, found none"
    both = {"files": {"train": "a"}, "synthetic": {"train": 1}}
    assert refusal(**both) == "text: exactly one of files, synthetic is needed, found files, synthetic"
    assert refusal(files={"validation": "a"}) == "text: files: there is nothing for train; expected at least one"
    empty = {"train": "a", "validation": []}
    assert refusal(files=empty) == "text: files: there is nothing for validation; expected at least one"
    assert refusal(synthetic={"train": 0}).startswith("text.synthetic.train: Input should be greater than 0, found 0")
    assert refusal(files={"train": "a"}, validation=1) == "text.validation: Input should be less than 1, found 1"
