"""Encoded rows on disk: found again by content, whole or not there, counted, mapped rather than copied."""

import gc
import json
import os
import random
import threading
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import TASKS, byte_level, tokenizer_of
from transformers import PreTrainedTokenizerFast

from multitask.config.data import DataConfig, SourceConfig
from multitask.data.rows import Counts, read
from multitask.errors import InputError, RowError
from multitask.files import cache_folder
from multitask.pattern import markers
from multitask.registry import load_tasks
from multitask.task import Task
from multitask.tokenization import encoded_rows as examples_module
from multitask.tokenization.encoded_rows import Examples, prepare
from multitask.tokenization.row_encoder import RowEncoder
from multitask.tokenization.row_file import RowBatches
from multitask.tokenization.tokenizer import add_markers

ROOT = Path(__file__).parents[2]
LABELS: dict[str | int, Any] = {0: {"ko": "부정", "en": "negative"}, 1: {"ko": "긍정", "en": "positive"}}


class Shelf:
    """A folder with data and a cache, and the batches that were encoded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.num_batches = 0
        self.options: dict[str, Any] = {}
        encode = RowEncoder.encode

        def counted(encoder: RowEncoder, rows: Any) -> Any:
            self.num_batches += 1
            return encode(encoder, rows)

        monkeypatch.setattr(RowEncoder, "encode", counted)
        monkeypatch.setattr(examples_module, "_BATCH", 4)

    def write(self, name: str, rows: list[Any]) -> None:
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def prepare(
        self,
        task: str | Task = "cls",
        files: tuple[str, ...] = ("a.jsonl",),
        tokenizer: PreTrainedTokenizerFast | None = None,
        block_size: int = 64,
        labels: Any = LABELS,
        on_bad_row: str = "raise",
        **options: Any,
    ) -> Examples:
        task = TASKS[task] if isinstance(task, str) else task
        sources = [
            SourceConfig(files={"train": [name]}, labels={} if task.label in (None, *task.optional) else labels)
            for name in files
        ]
        config = DataConfig(
            root=self.folder, cache=self.folder / "cache", sources={task.name: [*sources]}, on_bad_row=on_bad_row
        )  # type: ignore[arg-type]
        return prepare(task, "train", tokenizer or tokenizer_of("byte-level"), block_size, config, **options)

    def cached(self) -> list[str]:
        return sorted(path.suffix for path in (self.folder / "cache").iterdir())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    made = Shelf(tmp_path, monkeypatch)
    made.write("a.jsonl", [{"id": f"a{n}", "text": f"the cat {n}", "label": n % 2} for n in range(10)])
    made.write("b.jsonl", [{"id": f"b{n}", "text": f"강아지 {n}", "label": 1} for n in range(3)])
    return made


def ids_of(examples: Examples) -> list[str]:
    return [row.id for row in examples.rows()]


def test_a_row_comes_back_as_it_was_written(shelf: Shelf) -> None:
    made = shelf.prepare()
    assert len(made) == len(made.lengths) == len(made.num_targets) == 10
    assert ids_of(made) == [f"a{n}" for n in range(10)]
    tokenizer = tokenizer_of("byte-level")
    for number in range(10):
        row, ids = made.row(number), made.ids(number)
        word = ("negative", "positive")[number % 2]
        assert row.fields == {"text": f"the cat {number}", "label": word}
        assert tokenizer.decode(ids) == f"the cat {number}<|classify|>{word}<|end|>"
        assert tokenizer.decode(ids[int(made.borders(number)[0]) :]) == f"{word}<|end|>"
        assert len(ids) == made.lengths[number]
        assert (row.references, row.language) == ((word,), "en")
        assert row.choices == row.classes == ("negative", "positive")
        assert row.where.endswith(f"a.jsonl:{number + 1}")
    assert [row.id for row in made.rows(limit=5)] == ["a0", "a1", "a2", "a3", "a4"]


def test_ids_are_views_of_the_mapped_file(shelf: Shelf) -> None:
    path = shelf.prepare().path
    before = pa.total_allocated_bytes()
    made = Examples(path)
    everything = [made.ids(n) for n in range(10)]
    assert pa.total_allocated_bytes() - before < sum(ids.nbytes for ids in everything)
    for ids in everything:
        assert ids.dtype == np.int32
        assert not ids.flags.owndata
        assert not ids.flags.writeable


def test_the_second_time_nothing_is_encoded(shelf: Shelf) -> None:
    first = shelf.prepare()
    assert shelf.num_batches == 3
    again = shelf.prepare()
    assert shelf.num_batches == 3
    assert again.path == first.path
    assert again.report == first.report
    assert shelf.cached() == [".arrow", ".json"]


def test_whatever_decides_the_ids_is_in_the_key(shelf: Shelf) -> None:
    shelf.write(
        "a.jsonl", [{"text": f"the cat {n} " * 20, "label": n % 2} for n in range(10)]
    )  # truncated in any window
    changed_task = Task(**{**vars(TASKS["cls"]), "stream": "{text}<|nli|>{label}<|end|>"})
    turned = dict(reversed(LABELS.items()))
    paths = [
        shelf.prepare().path,
        shelf.prepare(block_size=63).path,
        shelf.prepare(tokenizer=byte_level([], markers(TASKS))).path,
        shelf.prepare(labels=LABELS | {1: {"ko": "좋음", "en": "good"}}).path,
        shelf.prepare(labels=turned).path,  # another order of choices
        shelf.prepare(labels={"0": "no", 1: "yes"}).path,
        shelf.prepare(task=changed_task).path,
        shelf.prepare(max_answer_tokens=8).path,
        shelf.prepare(limit=4).path,
        shelf.prepare(on_bad_row="skip").path,
        shelf.prepare(files=("a.jsonl", "b.jsonl")).path,
    ]
    shelf.write("a.jsonl", [{"id": f"a{n}", "text": f"the dog {n}", "label": n % 2} for n in range(10)])
    paths.append(shelf.prepare().path)
    assert len(set(paths)) == len(paths)
    assert shelf.prepare(labels=turned).row(0).choices == ("positive", "negative")
    encoded = shelf.num_batches
    assert shelf.prepare().path == paths[-1]
    assert shelf.num_batches == encoded


def windows(shelf: Shelf, *sizes: tuple[int, int | None]) -> list[Path]:
    return [shelf.prepare(block_size=size, max_answer_tokens=answer).path for size, answer in sizes]


def test_rows_that_fit_are_encoded_once_for_all_windows(shelf: Shelf) -> None:
    longest, prompt = 0, 0
    for number, ids in enumerate(map((made := shelf.prepare()).ids, range(10))):
        longest, prompt = max(longest, len(ids)), max(prompt, int(made.borders(number)[-1]))
    encoded = shelf.num_batches
    assert set(windows(shelf, (longest, None), (999, None), (999, 9), (prompt + 9, 9))) == {made.path}
    assert shelf.num_batches == encoded
    for window in ((longest - 1, None), (prompt + 8, 9)):
        before = shelf.num_batches
        (path,) = windows(shelf, window)
        assert path != made.path
        assert Examples(path).report["num_truncated"] > 0
        assert shelf.num_batches > before
        before = shelf.num_batches
        assert windows(shelf, window) == [path]
        assert shelf.num_batches == before
    assert windows(shelf, (longest, None)) == [made.path]


def test_a_window_made_before_and_after_is_the_same(shelf: Shelf) -> None:
    """Which windows were asked for before changes nothing in what a window holds."""
    shelf.write("a.jsonl", [{"text": "the cat sat " * n, "label": n % 2} for n in range(1, 12)])
    sizes = [(20, None), (64, None), (12, None), (20, 4), (200, None), (50, 8)]
    found = []
    for order in (sizes, sizes[::-1]):
        made = {size: shelf.prepare(block_size=size[0], max_answer_tokens=size[1], limit=9) for size in order}
        found.append({size: ([one.ids(n).tolist() for n in range(len(one))], one.report) for size, one in made.items()})
        for path in (shelf.folder / "cache").iterdir():
            path.unlink()
    assert found[0] == found[1]
    assert found[0][12, None][1]["num_truncated"] > 0 == found[0][200, None][1]["num_truncated"]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_file_is_the_same_whatever_the_number_of_threads(
    num_threads: int, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "the cat 강아지 " * (n % 7 + 1), "label": n % 2} for n in range(90)]
    shelf.write("a.jsonl", [row if n % 11 else "{" for n, row in enumerate(rows)])
    options = {"files": ("a.jsonl", "b.jsonl"), "on_bad_row": "skip", "block_size": 24, "limit": 50}
    made = shelf.prepare(**options)
    content, report = made.path.read_bytes(), made.path.with_suffix(".json").read_bytes()
    made.path.unlink()
    monkeypatch.setattr(examples_module, "_THREADS", num_threads)
    again = shelf.prepare(**options)
    assert again.path == made.path
    assert (again.path.read_bytes(), again.path.with_suffix(".json").read_bytes()) == (content, report)
    assert len(again) == 50
    assert again.report["num_skipped"] > 0 < again.report["num_truncated"]


def test_what_a_thread_raises_is_told_and_nothing_is_left(shelf: Shelf) -> None:
    """WordPiece without an unknown token cannot encode a word that it does not know."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordPiece({"the": 0, "a": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    add_markers(tokenizer, markers(TASKS))
    with pytest.raises(InputError, match="the tokenizer cannot encode the text of a row: WordPiece error: Missing"):
        shelf.prepare(tokenizer=tokenizer)
    assert shelf.cached() == []


def test_garbage_is_collected_as_before_afterwards(shelf: Shelf) -> None:
    before = gc.get_threshold()
    shelf.prepare()
    assert gc.get_threshold() == before


def test_skipped_rows_do_not_stay_in_memory(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that a frame holds, and that holds the frame, is a cycle."""
    monkeypatch.setattr(examples_module, "_LIVE_OBJECTS", 2000)
    monkeypatch.setattr(examples_module, "_BATCH", 1000)
    good = json.dumps({"text": "the cat", "label": 1})
    most = {}
    for num in (2000, 20_000):
        shelf.write(f"{num}.jsonl", [good, *["{"] * num])
        tracemalloc.start()
        assert len(shelf.prepare(files=(f"{num}.jsonl",), on_bad_row="skip")) == 1
        most[num] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most[20_000] < 1.5 * most[2000]


def test_ctrl_c_ends_the_threads_and_leaves_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(RowBatches, "of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shelf.prepare()
    assert threading.active_count() == before
    assert shelf.cached() == []
    assert len(shelf.prepare()) == 10


def test_a_conversation_comes_back_with_all_its_turns(shelf: Shelf) -> None:
    task = load_tasks([ROOT / "examples" / "tasks"])["chat"]
    shelf.write("chat.jsonl", [{"user": ["a", "b", "c"], "reply": ["d", "e", "f"]}, {"user": "g", "reply": "h"}])
    tokenizer = byte_level([], markers({"chat": task}))
    made = shelf.prepare(task, ("chat.jsonl",), tokenizer)
    assert [(row.fields, row.earlier) for row in made.rows()] == [
        ({"user": "c", "reply": "f"}, ({"user": "a", "reply": "d"}, {"user": "b", "reply": "e"})),
        ({"user": "g", "reply": "h"}, ()),
    ]
    assert [made.borders(n).tolist() for n in range(2)] == [[3, 5, 8, 10, 13], [3]]
    assert made.num_targets.tolist() == [6, 2]


def test_code_is_in_the_key(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    was = shelf.prepare().path
    with monkeypatch.context() as patch:
        patch.setattr(examples_module, "source_hash", lambda name: f"{name}, another version")
        assert shelf.prepare().path != was
    assert shelf.prepare().path == was


def test_after_a_failure_midway_there_is_no_file(shelf: Shelf) -> None:
    good = (shelf.folder / "a.jsonl").read_text("utf-8")
    (shelf.folder / "a.jsonl").write_text(good + '{"text": "half', "utf-8")
    with pytest.raises(RowError, match=r"a\.jsonl:11: not valid JSON"):
        shelf.prepare()
    assert shelf.num_batches >= 1, "it failed midway"
    assert shelf.cached() == []
    (shelf.folder / "a.jsonl").write_text(good, "utf-8")
    assert len(shelf.prepare()) == 10


def test_a_limit_takes_from_each_source_in_turn(shelf: Shelf) -> None:
    both = ("a.jsonl", "b.jsonl")
    assert ids_of(shelf.prepare(files=both, limit=5)) == ["a0", "b0", "a1", "b1", "a2"]
    assert ids_of(shelf.prepare(files=both, limit=8)) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "a4"]
    everything = ids_of(shelf.prepare(files=both))
    assert everything[:8] == ids_of(shelf.prepare(files=both, limit=8))
    assert sorted(everything) == sorted([f"a{n}" for n in range(10)] + ["b0", "b1", "b2"])
    assert ids_of(shelf.prepare(files=both, limit=99)) == everything


def test_rows_cut_refused_and_skipped_are_counted(shelf: Shelf) -> None:
    long = "the cat sat on a mat " * 20
    rows = [
        {"context": "the cat", "question": "who", "answers": ["cat"]},
        {"context": long + "두 마리", "question": "who", "answers": ["두"], "answer_start": [len(long)]},
        {"context": "the cat", "question": long, "answers": ["cat"]},  # no room for its other fields
        {"context": "the cat", "question": "who", "answers": []},
        "{",
    ]
    shelf.write("qa.jsonl", rows)
    made = shelf.prepare("qa", ("qa.jsonl",), block_size=32, on_bad_row="skip")
    counted = {name: made.report[name] for name in ("num_rows", "num_truncated", "num_dropped", "num_skipped")}
    assert counted == {"num_rows": 2, "num_truncated": 1, "num_dropped": 1, "num_skipped": 2}
    assert [made.is_truncated(n) for n in range(len(made))] == [False, True]
    assert "두 마리<|question|>" in tokenizer_of("byte-level").decode(made.ids(1))
    assert made.report["files"] == ["qa.jsonl"]
    assert len(made.report["sha256"][0]) == 64
    assert made.report["split"] == "train"
    assert (made.report["num_chars_lost"], made.report["chars_lost"]) == (0, {})


def test_texts_too_long_to_generate_are_refused_and_counted(shelf: Shelf) -> None:
    shelf.write("gen.jsonl", [{"text": "the cat " * (30 if n % 3 else 1)} for n in range(9)])
    made = shelf.prepare("gen", ("gen.jsonl",), block_size=32)
    assert (made.report["num_rows"], made.report["num_truncated"], made.report["num_dropped"]) == (3, 0, 6)
    assert made.lengths.max() <= 32


def test_counts_stop_where_the_limit_stops(shelf: Shelf) -> None:
    texts = ["the cat", "the cat " * 30, "the cat", "the cat " * 30]
    shelf.write("gen.jsonl", [{"text": text} for text in texts] + ['{"text": ""}'] * 3)
    made = shelf.prepare("gen", ("gen.jsonl",), block_size=32, on_bad_row="skip", limit=2)
    assert [row.where.rpartition(":")[2] for row in made.rows()] == ["1", "3"]
    assert (made.report["num_rows"], made.report["num_dropped"], made.report["num_skipped"]) == (2, 1, 0)


def test_a_whole_batch_may_be_refused(shelf: Shelf) -> None:
    shelf.write("gen.jsonl", [{"text": "the cat " * (30 if n < 8 else 1)} for n in range(10)])
    made = shelf.prepare("gen", ("gen.jsonl",), block_size=32)
    assert made.report["num_dropped"] == 8
    assert [row.fields["text"] for row in made.rows()] == ["the cat "] * 2
    assert made.ids(0).tolist() == made.ids(1).tolist()


def test_no_usable_row_is_an_error_that_says_what_to_do(shelf: Shelf) -> None:
    shelf.write("gen.jsonl", [{"text": "the cat " * 30}] * 5)
    for _ in range(2):  # from the cache too
        with pytest.raises(InputError, match=r"task 'gen', train: no usable row: .*\"num_dropped\": 5.*block_size"):
            shelf.prepare("gen", ("gen.jsonl",), block_size=32)
    config = DataConfig(sources={"gen": [SourceConfig(files={"train": ["gen.jsonl"]})]}, root=shelf.folder)
    with pytest.raises(InputError, match=r"task 'gen' has no test rows: none of its sources has that split"):
        prepare(TASKS["gen"], "test", tokenizer_of("byte-level"), 32, config)


def test_lost_characters_are_reported(shelf: Shelf) -> None:
    shelf.write("a.jsonl", [{"text": "the cat\nsat 😀", "label": 0}] * 6)
    made = shelf.prepare(tokenizer=tokenizer_of("metaspace"))
    assert made.report["num_chars_lost"] == 12
    assert made.report["chars_lost"] == {"\n": 6, "😀": 6}


def test_a_loss_that_depends_on_neighbours_is_counted_in_all_rows(shelf: Shelf) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    made = Tokenizer(models.BPE({c: n for n, c in enumerate("abcdefghijklmnopqrstuvwxyz 0123456789")}, []))
    made.normalizer = normalizers.Replace(Regex("(?<=f)b"), "")
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    add_markers(tokenizer, markers(TASKS))
    shelf.write("a.jsonl", ["{", *[{"text": f"fb {n} fb" if n % 3 == 0 else "b", "label": 0} for n in range(30)]])
    made_rows = shelf.prepare(tokenizer=tokenizer, on_bad_row="skip", limit=20)
    assert made_rows.report["chars_lost"] == {"b": 14}
    assert made_rows.report["num_skipped"] == 1


def test_the_cache_lies_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path / "multitask"
    assert cache_folder(DataConfig(cache=tmp_path / "own")) == tmp_path / "own"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path / ".cache" / "multitask"


def test_reading_ends_with_the_longest_source(shelf: Shelf) -> None:
    sources = [SourceConfig(files={"train": [name]}, labels=LABELS) for name in ("b.jsonl", "a.jsonl")]
    config = DataConfig(root=shelf.folder, sources={"cls": [*sources]})
    counts = Counts()
    found = [row.id for row in read(TASKS["cls"], "train", config, counts)]
    assert found[:7] == ["b0", "a0", "b1", "a1", "b2", "a2", "a3"]
    assert counts.num_rows == len(found) == 13


# ---------------------------------------------------------------- damaged and unwritable caches, moved files


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_damaged_cache_file_is_encoded_anew_and_said_once(suffix: str, keep: float, shelf: Shelf) -> None:
    whole = shelf.prepare()
    rows, report, num_batches = list(whole.rows()), whole.report, shelf.num_batches
    path = whole.path.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.warns(
        UserWarning, match=r"this file of the cache is truncated or damaged \(.*; the rows are encoded anew"
    ):
        again = shelf.prepare()
    assert (list(again.rows()), again.report) == (rows, report)
    assert shelf.num_batches == 2 * num_batches
    shelf.prepare()
    assert shelf.num_batches == 2 * num_batches
    assert shelf.cached() == [".arrow", ".json"]


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"paths": 3}', '{"paths": [], "num_rows": 10}'])
def test_a_damaged_report_of_the_cache_is_encoded_anew(content: str, shelf: Shelf) -> None:
    whole = shelf.prepare()
    whole.path.with_suffix(".json").write_text(content)
    with pytest.warns(UserWarning, match="truncated or damaged"):
        assert shelf.prepare().report == whole.report


def test_bytes_that_changed_in_the_cache_never_end_in_a_traceback(shelf: Shelf) -> None:
    whole = shelf.prepare()
    content, rows = whole.path.read_bytes(), list(whole.rows())
    rng = random.Random(7)
    num_found = 0
    for _ in range(60):
        changed = bytearray(content)
        for place in rng.sample(range(len(content)), 8):
            changed[place] ^= 1 << rng.randrange(8)
        whole.path.unlink()  # the mapped file of before stays as it was
        whole.path.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = shelf.prepare()
        assert len(found) == len(rows)
        num_found += bool(caught)
    assert num_found > 10


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), OSError(28, "No space left on device")])
def test_a_cache_that_cannot_be_written_is_told(error: OSError, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    said = rf"cls-train-\w+\.arrow: the cache cannot be written \({error.strerror}\); .*--set data\.cache=FOLDER"
    with monkeypatch.context() as patch:
        patch.setattr(pa, "OSFile", fails)
        with pytest.raises(InputError, match=said + ".*XDG_CACHE_HOME"):
            shelf.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(InputError, match=said):
            shelf.prepare()
    assert shelf.cached() == []
    shelf.prepare()
    monkeypatch.setattr(os, "replace", fails)  # what is in a read-only cache is read
    assert len(shelf.prepare()) == 10


def test_a_cache_folder_that_cannot_be_made_is_told(shelf: Shelf) -> None:
    (shelf.folder / "cache").write_text("a file, not a folder")
    with pytest.raises(
        InputError, match=r"the cache cannot be written \((File exists|Not a directory)\); .*data\.cache"
    ):
        shelf.prepare()


def test_rows_show_the_folder_that_they_are_in_now(shelf: Shelf, tmp_path: Path) -> None:
    """The cache is found by content: the same files in another folder are not encoded again."""
    before = [row.where for row in shelf.prepare(files=("a.jsonl", "b.jsonl")).rows()]
    num_batches, cache = shelf.num_batches, shelf.folder / "cache"
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).rename(moved / name)
    sources = [SourceConfig(files={"train": [name]}, labels=LABELS) for name in ("a.jsonl", "b.jsonl")]
    config = DataConfig(root=moved, cache=cache, sources={"cls": [*sources]})
    made = prepare(TASKS["cls"], "train", tokenizer_of("byte-level"), 64, config)
    assert shelf.num_batches == num_batches
    assert [row.where for row in made.rows()] == [where.replace(str(tmp_path), str(moved)) for where in before]
    assert before[0] == f"{tmp_path}/a.jsonl:1"
    assert "paths" not in made.report
