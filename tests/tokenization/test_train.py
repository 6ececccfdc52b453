"""`run.py tokenizer`: trained on what it should be, measured on the rest, saved whole, used by `train`."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import TASKS, WORDS
from helpers import settings
from transformers import AutoTokenizer

from multitask import api
from multitask.cli import main as cli_main
from multitask.config import resolve
from multitask.config.data import TextConfig
from multitask.errors import InputError
from multitask.pattern import markers
from multitask.tokenization import train
from multitask.tokenization.bpe import Bpe
from multitask.tokenization.tokenizer import Kind, assemble, plain_reader, train_bpe

KINDS: tuple[Kind, ...] = ("bytes", "metaspace", "characters")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 300 lines; of its last tenth, `뷁` and `zebra` stand nowhere else."""
    rng = random.Random(1)
    words = [rng.choice(WORDS) + rng.choice(WORDS) for _ in range(400)]
    lines = [" ".join(rng.sample(words, 10)) for _ in range(300)]
    lines[-1] += " 뷁 zebra zebra zebra"
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli_main.main, ["tokenizer", *map(str, arguments)])


def made(*arguments: str | Path) -> dict[str, Any]:
    """The report of a command that does its work."""
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    out = Path(str(arguments[arguments.index("--out") + 1]))
    found: dict[str, Any] = json.loads((out / "tokenizer_report.json").read_text("utf-8"))
    return found


def refused(*arguments: str | Path) -> str:
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


# ---------------------------------------------------------------- the main job


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_trained_measured_and_loaded(kind: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    size = [] if kind == "characters" else ["--vocab-size", "350"]
    found = made(text, "--out", out, "--kind", kind, *size, "--token", "<|mine|>", "--spare", "3")
    assert sorted(path.name for path in out.iterdir()) == [
        "tokenizer.json", "tokenizer_config.json", "tokenizer_report.json"
    ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert found["size"] == len(tokenizer) == found["vocab_size"] + found["num_special"]
    if kind != "characters":
        assert found["vocab_size"] == 350
    built_in = [*markers(TASKS), "<|mine|>", "<|unused0|>", "<|unused1|>", "<|unused2|>"]
    assert set(built_in) <= set(found["special_tokens"])
    assert "<|unused3|>" not in tokenizer.get_vocab()
    held = found["held_out"]
    last = text.read_text("utf-8")[int(len(text.read_text("utf-8")) * 0.9) :]
    assert (held["num_characters"], held["num_words"]) == (len(last), len(last.split()))
    assert held["num_tokens"] == len(plain_reader(tokenizer).encode(last).ids)
    assert held["tokens_per_word"] == pytest.approx(held["num_tokens"] / held["num_words"], abs=1e-4)
    assert held["bytes_per_token"] == pytest.approx(len(last.encode()) / held["num_tokens"], abs=1e-4)
    assert found["text"]["files"] == [str(text)]
    if kind == "metaspace":  # what stands in the last tenth alone was not learned
        lost = set("뷁zebra") - set(text.read_text("utf-8")[: -len(last)])
        assert {"뷁", "z"} <= lost
        assert held["num_unknown"] == sum(map(last.count, lost))
        assert set(held["round_trip"]["chars_lost"]) == lost
        assert held["unknown_rate"] == pytest.approx(held["num_unknown"] / len(last), abs=1e-6)
        assert "not trained on" in held["text"]
    else:
        assert (held["num_unknown"], held["round_trip"]["num_chars_lost"]) == (0, 0)
    if kind == "characters":
        assert found["vocab_size"] == len(set(text.read_text("utf-8")))
        assert "counts for the characters too" in held["text"]
        assert held["tokens_per_character"] == 1
    assert all(word.strip() in text.read_text("utf-8") for word in found["longest_tokens"])


def test_what_is_printed(text: Path, tmp_path: Path) -> None:
    result = command(text, "--out", tmp_path / "made", "--kind", "metaspace", "--vocab-size", "300", "--curve", "200")
    assert result.exit_code == 0, result.output
    for shown in (
        "metaspace: 300 tokens of text and 112 special ones, 412 in all", "the last 10% of the text, not trained on",
        "unknown characters", "tokens per word", "'뷁' x1", "characters per token", "longest tokens: '", "written to",
    ):  # fmt: skip
        assert shown in result.output, shown


def test_the_embedded_world_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_DOCUMENTS", {"train": 60, "validation": 10})
    found = made("--out", tmp_path / "made", "--tasks", "nli", "--spare", "0")
    assert found["held_out"]["text"] == "10 synthetic documents of the validation split"
    assert found["special_tokens"] == ["<|endoftext|>", "<|pad|>", "<|end|>", "<|sep|>", "<|nli|>"]
    assert 256 < found["vocab_size"] < 8000  # as many as the text gives
    assert made("--out", tmp_path / "none", "--tasks", "none", "--spare", "0")["num_special"] == 3


def test_held_out_text_is_measured_and_all_files_are_trained_on(text: Path, tmp_path: Path) -> None:
    """JSONL with two fields, gzip, cp949; the held-out text has what they do not."""
    rows = [{"title": "Qq", "body": "qqq ddd"}, {"title": "제목", "body": "본문"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"title": "J", "body": "j"}\n'))
    held = tmp_path / "held.jsonl"
    held.write_text('{"title": "Qj", "body": "제목 XY"}', "utf-8")
    given = (tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", "--field", "title", "--field", "body")
    found = made(*given, "--out", tmp_path / "made", "--kind", "characters", "--held-out", held)
    tokens = set(AutoTokenizer.from_pretrained(tmp_path / "made").get_vocab()) - set(found["special_tokens"])
    assert tokens == set("Qqd 제목본문Jj\n")
    assert found["held_out"]["text"] == str(held)
    assert found["held_out"]["num_unknown"] == 2
    assert found["held_out"]["round_trip"]["chars_lost"] == {"X": 1, "Y": 1}
    (tmp_path / "korean.txt").write_bytes("똠방각하 고양이".encode("cp949"))
    found = made(tmp_path / "korean.txt", "--encoding", "cp949", "--kind", "characters", "--out", tmp_path / "cp949")
    assert found["vocab_size"] == len(set("똠방각하 고양이"))


def test_extra_and_unknown_characters(text: Path, tmp_path: Path) -> None:
    given = (text, "--kind", "characters", "--characters", "@€", "--unknown", "unk")
    made(*given, "--out", tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.convert_ids_to_tokens(tokenizer("@€£")["input_ids"]) == ["@", "€", "<unk>"]


def test_the_curve(text: Path, tmp_path: Path) -> None:
    """Each point is that of a tokenizer trained to this size."""
    given = (text, "--kind", "metaspace", "--min-frequency", "1")
    found = made(*given, "--vocab-size", "300", "--curve", "400,150,200", "--out", tmp_path / "made")
    assert [point["vocab_size"] for point in found["curve"]] == [150, 200, 300, 400]
    for point in found["curve"]:
        size = point["vocab_size"]
        alone = made(*given, "--vocab-size", str(size), "--out", tmp_path / str(size))["held_out"]
        assert point["num_tokens"] == alone["num_tokens"]
        assert point["bytes_per_token"] == alone["bytes_per_token"]
        assert point["characters_per_token"] == pytest.approx(1 / alone["tokens_per_character"], rel=1e-3)
    per_token = [point["bytes_per_token"] for point in found["curve"]]
    assert per_token == sorted(set(per_token))
    assert found["vocab_size"] == 300
    assert (tmp_path / "made" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_export_and_import(text: Path, tmp_path: Path) -> None:
    made(text, "--vocab-size", "350", "--out", tmp_path / "first", "--export", tmp_path / "files")
    again = ("--from", tmp_path / "files", "--prefix-space", "--out", tmp_path / "second")
    found = made(text, *again, "--export", tmp_path / "more")
    assert found["source"] == str(tmp_path / "files")
    first, second = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert first.get_vocab() == second.get_vocab()
    for line in text.read_text("utf-8").split("\n"):
        assert first(line + "<|sep|>x")["input_ids"] == second(line + "<|sep|>x")["input_ids"]
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()
    unspaced = made(text, "--from", tmp_path / "files", "--out", tmp_path / "third")
    assert (found["prefix_space"], unspaced["prefix_space"]) == (True, False)  # by default as GPT-2's own


def test_train_uses_it(text: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        out = tmp_path / kind
        found = made(text, "--kind", kind, "--out", out, "--spare", "2")
        given = settings("nli", model={"tokenizer": str(out)}, train={"max_steps": 1}, eval={"max_rows": 2})
        api.train(given, out=tmp_path / f"run-{kind}")
        model = tmp_path / f"run-{kind}" / "model"
        assert json.loads((model / "config.json").read_text())["vocab_size"] == found["size"]  # nothing was added
        saved, ours = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(out)
        assert saved("the cat\n고양이<|sep|>a")["input_ids"] == ours("the cat\n고양이<|sep|>a")["input_ids"]
        assert (saved.eos_token, saved.pad_token) == ("<|end|>", "<|pad|>")


# ---------------------------------------------------------------- stretches


@pytest.mark.parametrize("kind", KINDS)
def test_text_in_stretches_reads_as_the_whole(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lost or doubled, documents apart, bounded, no word cut in two."""
    monkeypatch.setattr(train, "_STRETCH", 80)
    rng = random.Random(4)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(1, 200))) for _ in range(20)]
    parts = [
        (document[at : at + 37], at + 37 >= len(document))
        for document in documents
        for at in range(0, len(document), 37)
    ]
    stretches = list(train._stretches(iter(parts)))
    assert "".join(stretches) == "".join(documents)
    assert 40 < max(map(len, stretches)) <= 80
    assert len(stretches) > 100
    reader = assemble(train_bpe(documents, kind, 500), kind, [])
    assert [i for text in stretches for i in reader(text)["input_ids"]] == [
        i for text in documents for i in reader(text)["input_ids"]
    ]
    unbroken = list(train._stretches([("x" * 1000, True), ("y", False), ("z", True)]))
    assert [len(text) for text in unbroken] == [80] * 12 + [40, 2]


def test_only_the_beginning_of_a_long_text_is_measured(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_STRETCH", 100)
    monkeypatch.setattr(train, "_MEASURED", 500)
    held = train._held_out(TextConfig(files={"train": [str(text)]}))
    assert 500 <= sum(map(len, held)) <= 600


# ---------------------------------------------------------------- what cannot be


def test_a_vocabulary_that_the_text_cannot_give(text: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "made")
    message = refused(text, *out, "--vocab-size", "5000")
    reached = int(message.split("the text gives ")[1].split(",")[0])
    assert "a vocabulary of 5,000 tokens" in message
    assert "occur together 2 times (min_frequency); lower that; ask for at most" in message
    assert made(text, *out, "--vocab-size", str(reached))["vocab_size"] == reached
    once = refused(text, "--out", tmp_path / "b", "--vocab-size", "50000", "--min-frequency", "1")
    assert "min_frequency" not in once
    assert int(once.split("the text gives ")[1].split(", then")[0].replace(",", "")) > reached
    assert "a vocabulary of 4,999 tokens" in refused(text, "--out", tmp_path / "b", "--curve", "300,4999")
    assert "the 256 bytes alone are more" in refused(text, "--out", tmp_path / "b", "--vocab-size", "200")
    few = refused(text, "--out", tmp_path / "b", "--vocab-size", "20", "--kind", "metaspace")
    assert "different characters of the text alone are more" in few
    assert "or take kind bytes" in few


def test_files_that_cannot_be_read(text: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "made")
    (tmp_path / "empty.txt").write_text("")
    assert f"{tmp_path}/empty.txt: has no words" in refused(tmp_path / "empty.txt", "--held-out", text, *out)
    (tmp_path / "white.txt").write_text(" \n ")
    assert "has no words" in refused(text, "--held-out", tmp_path / "white.txt", *out)
    (tmp_path / "bad.txt").write_bytes(b"a\n\xff\n")
    assert "bad.txt:2: byte 0xff is not UTF-8" in refused(tmp_path / "bad.txt", "--held-out", text, *out)
    assert "no such file; in its folder: did you mean 'text.txt'?" in refused(tmp_path / "texd.txt", *out)
    (tmp_path / "rows.jsonl").write_text('{"txt": "a"}\n')
    missing = refused(tmp_path / "rows.jsonl", "--held-out", text, *out)
    assert "rows.jsonl:1: field 'text' is missing" in missing
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "metaspace", "--prefix-space"], "prefix_space belongs to kind bytes, found kind metaspace"),
        (["--kind", "bytes", "--clean"], "clean belongs to kind metaspace"),
        (["--characters", "ab"], "characters belongs to kind characters"),
        (["--unknown", "unk"], "unknown belongs to kind characters"),
        (["--kind", "characters", "--vocab-size", "300"], "leave out vocab_size and curve"),
        (["--kind", "characters", "--curve", "300"], "leave out vocab_size and curve"),
        (["--token", "x"], "'x' cannot be a special token: expected two characters or more"),
        (["--separator", " </s>"], "' </s>' cannot be a special token"),
        (["--curve", "1000,many"], "curve"),
        (["--curve", "1"], "curve: a vocabulary of 1"),
        (["--spare", "-1"], "spare"),
        (["--min-frequency", "0"], "min_frequency"),
        (["--tasks", "nly"], "unknown task 'nly'; did you mean 'nli'?"),
        (["--kind", "characters", "--export", "x"], "--export: characters have no merges"),
        (["--kind", "characters", "--from", "x"], "--from: characters have no merges"),
        (["--from", "x", "--vocab-size", "400"], "leave out --vocab-size and --curve"),
        (["--from", "gone"], "vocab.json: no such file"),
    ],
)
def test_settings_that_cannot_be(options: list[str], message: str, text: Path, tmp_path: Path) -> None:
    assert message in refused(text, "--out", tmp_path / "made", *options)
    assert not (tmp_path / "made").exists()


def test_held_out_text_alone_is_refused(text: Path, tmp_path: Path) -> None:
    assert "name the files that the tokenizer is trained on" in refused("--out", tmp_path / "a", "--held-out", text)


# ---------------------------------------------------------------- folders


def test_a_folder_is_replaced_only_when_asked_and_ours(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    out.mkdir()  # an empty one is as good as none
    made(text, "--out", out, "--vocab-size", "300", "--curve", "280")
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "already holds files; replace the tokenizer in it with --overwrite" in refused(text, "--out", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert made(text, "--out", out, "--vocab-size", "310", "--overwrite")["vocab_size"] == 310
    assert AutoTokenizer.from_pretrained(out).convert_ids_to_tokens(310) == "<|endoftext|>"
    assert {path.name for path in out.iterdir()} == set(before) - {"curve.png"}
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    assert "holds no tokenizer of ours" in refused(text, "--out", other, "--overwrite")
    assert "is a file; --out names a folder" in refused(text, "--out", text)
    exported = ("--export", tmp_path / "files", "--vocab-size", "300")
    made(text, "--out", tmp_path / "a", *exported)
    assert "vocab.json: already exists; replace it with --overwrite" in refused(
        text, "--out", tmp_path / "b", *exported
    )
    made(text, "--out", tmp_path / "b", *exported, "--overwrite")


def test_a_folder_is_whole_or_not_there(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "draw_curve", stop)
    before = sorted(tmp_path.iterdir())
    assert command(text, "--out", tmp_path / "made", "--curve", "300").exit_code == 130
    assert sorted(tmp_path.iterdir()) == before


def test_a_held_out_text_that_nothing_reads() -> None:
    reader = assemble(Bpe({"a": 0}), "characters", [])
    with pytest.raises(InputError, match="has no words that this tokenizer reads"):
        train.measure(reader, "characters", ["뷁"])
