"""A preview shows what training would see, and refuses what training would; both before any row is encoded."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multitask import preview, train
from multitask.api.previews import show
from multitask.errors import InputError
from multitask.tokenization import encoded_rows
from multitask.training import preview as previews

SMALL = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 300}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    rows = [
        {"text": "좋아요 <|end|> 끝", "label": "긍정"},
        {"text": "별로에요", "label": "부정"},
        {"text": "그저 그래요", "label": "부정"},
    ]
    others = {"train": rows, "validation": [rows[1], {"text": "새로운", "label": "긍정"}], "test": rows}
    for split, found in others.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (tmp_path / f"{split}.jsonl").write_text(text, "utf-8")
    files = {split: str(tmp_path / f"{split}.jsonl") for split in others}
    source = {"files": files, "labels": ["긍정", "부정"], "language": "ko"}
    return {
        "tasks": ["cls"],
        "device": "cpu",
        "data": {"sources": {"cls": [source]}, "cache": str(tmp_path / "cache")},
        "model": SMALL,
        "train": {"max_steps": 1, "batch_tokens": 64, "micro_batch_tokens": 64},
    }


def shown(found: Any, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    show(found, 3, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_preview_has_its_text_in_a_notebook_too(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = preview(settings)
    text = found.text()
    assert "별로에요" in text
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # there, rich displays what it is to write
    assert found.text() == text


def test_other_splits_and_rows_that_are_in_train(settings: dict[str, Any]) -> None:
    found = preview(settings)
    assert found.num_in_train == {"validation": {"cls": 1}, "test": {"cls": 3}}
    assert {split: len(each["cls"]) for split, each in found.others.items()} == {"validation": 2, "test": 3}
    lines = [line.split() for line in shown(found).splitlines()]
    assert ["cls", "validation", "2", "0", "0", "0", "0", "1", "1"] in lines
    assert ["cls", "test", "3", "0", "0", "0", "0", "3", "3"] in lines


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_rows_that_share_their_passage_with_training_rows(
    settings: dict[str, Any], tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    """Of 3 questions of a test passage, two have that of a training row, in whatever Unicode form."""
    passages = {"train": "가가나나", "validation": "다라", "test": "가라나"}
    for split, letters in passages.items():
        rows = [
            {"context": f"{letter}람은 시인이다.", "question": f"{split} {n}?", "answers": ["시인"]}
            for n, letter in enumerate(letters)
        ]
        for row in rows if split == "test" else []:
            row["context"] = normalize(form, str(row["context"]))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, "utf-8")
    files = {split: str(tmp_path / f"{split}.jsonl") for split in passages}
    settings |= {"tasks": ["qa"]}
    settings["data"]["sources"] = {"qa": [{"files": files, "language": "ko"}]}
    found = preview(settings)
    assert found.num_in_train == {"validation": {"qa": 0}, "test": {"qa": 0}}
    assert found.num_text_in_train == {"validation": {"qa": 0}, "test": {"qa": 2}}
    text = " ".join(shown(found).split())
    assert "qa, test: 2 of 3 rows have the context of a training row; `split_by: {column: context, ...}`" in text
    assert "qa, validation:" not in text


def test_quotes_of_excel_that_are_read_as_text(settings: dict[str, Any], tmp_path: Path) -> None:
    (source,) = settings["data"]["sources"]["cls"]
    for split in source["files"]:
        path = tmp_path / f"{split}.tsv"
        path.write_text('text\tlabel\n"정말, ""최고"" 예요"\t긍정\n별로\t부정\n', "utf-8")
        source["files"][split] = str(path)
    found = preview(settings)
    assert [note.rpartition("/")[2].split(":")[0] for note in found.notes] == [
        "train.tsv",
        "validation.tsv",
        "test.tsv",
    ]
    assert "cells in quotes, as Excel writes them, are read with the quotes as text" in " ".join(shown(found).split())
    source["format"] = "excel-tab"
    found = preview(settings)
    assert found.notes == ()
    assert '정말, "최고" 예요' in shown(found)


def test_a_marker_that_a_text_spells_is_told_from_a_real_one(settings: dict[str, Any]) -> None:
    first = shown(preview(settings)).splitlines()[2]
    assert "좋아요 \\<|end|> 끝<|classify|>" in first
    assert "긍정|<|end|>" in first


def test_spaces_of_a_tokenizer_that_writes_them_as_a_sign(settings: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = ["좋아요 <|end|> 끝", "별로에요", "그저 그래요", "긍정 부정"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["<unk>", "</s>"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(
        tmp_path / "tokenizer"
    )
    settings["model"] = SMALL | {"tokenizer": str(tmp_path / "tokenizer")}
    lines = shown(preview(settings), width=400).splitlines()
    assert lines[4].startswith("그저 그래요<|classify|>")
    assert "좋아요 \\<|end|> 끝<|classify|>" in lines[2]


def changed(settings: dict[str, Any], **flags: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(settings))
    for path, value in flags.items():
        node, *parts = copy, *path.split("__")
        for part in parts[:-1]:
            node = node[int(part) if part.isdecimal() else part]
        node[parts[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data__sources__cls__0__files__validation": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"data__sources__cls__0__files__test": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"data__sources__cls__0__labels": ["긍정"]}, "label '부정' is not one of 긍정"),
        ({"eval__rouge_tokenizer": {"ko": "morphems"}}, "Input should be 'words'"),
        ({"train__mixture_weights": {"qa": 1.0}}, "qa"),
        ({"train__block_size": 128}, "128"),
    ],
)
def test_what_training_refuses_is_refused_before_encoding(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    def encode(*_: Any, **__: Any) -> None:
        raise AssertionError("rows were encoded")

    monkeypatch.setattr(encoded_rows, "_write", encode)
    settings = changed({"eval": {}, **settings}, **change)
    for refuses in (lambda: preview(settings), lambda: train(settings, out=tmp_path / "run")):
        with pytest.raises(InputError) as caught:
            refuses()
        assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_answer_as_long_as_the_window(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before encoding: once after four minutes of it."""
    monkeypatch.setattr(encoded_rows, "_write", lambda *_, **__: pytest.fail("rows were encoded"))
    long = {"labels": {"긍정": "긍정 " * 100, "부정": "부정"}}
    for name, value in long.items():
        settings["data"]["sources"]["cls"][0][name] = value
    with pytest.raises(InputError, match=r"task 'cls' may answer with \d+ tokens, the window has 64"):
        preview(settings)


def test_problems_of_several_splits_are_told_at_once(settings: dict[str, Any]) -> None:
    files = settings["data"]["sources"]["cls"][0]["files"]
    files["validation"], files["test"] = "one.jsonl", "two.jsonl"
    with pytest.raises(InputError) as caught:
        preview(settings)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["one.jsonl", "two.jsonl"]


def test_a_class_that_no_training_row_has(settings: dict[str, Any]) -> None:
    settings["data"]["sources"]["cls"][0]["labels"] = ["긍정", "부정", "중립"]
    found = preview(settings)
    assert found.examples["cls"].report["unused_labels"] == ["중립"]
    assert "cls: no training row has the class 중립" in shown(found)


def test_the_run_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("tasks: [cls]\n")
    with pytest.raises(InputError, match="already holds files; continue with --resume"):
        preview(settings, out=tmp_path / "run")
    preview(settings, out=tmp_path / "run", overwrite=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"], "nothing is written or moved"


@pytest.mark.parametrize("path", ["file/x", "file/x/y", "/proc/foo", "/proc/foo/run", "a" * 300])
def test_a_run_folder_that_cannot_be_made(settings: dict[str, Any], tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    for refuses in (preview, train):
        with pytest.raises(InputError, match="cannot be made"):
            refuses(settings, out=tmp_path / path)


def test_a_run_folder_that_can_be_made_is_not(settings: dict[str, Any], tmp_path: Path) -> None:
    preview(settings, out=tmp_path / "some" / "run")
    assert not (tmp_path / "some").exists()


def test_memory_is_estimated_from_passes_that_fit(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes 1 GiB and 1 MiB a token; 1.5 GiB are free. None is tried that would not fit."""
    settings["train"] = {"max_steps": 1, "batch_tokens": 4096, "micro_batch_tokens": 4096, "block_size": 64}
    settings["model"] = SMALL
    path = Path(settings["data"]["sources"]["cls"][0]["files"]["train"])
    row = path.read_text("utf-8").splitlines()[0] + "\n"
    path.write_text("".join(row.replace("끝", f"끝 {n}") for n in range(400)), "utf-8")
    tried: list[int] = []
    monkeypatch.setattr(previews, "free_memory_bytes", lambda _: 3 * 2**29)
    monkeypatch.setattr(previews, "used_memory_bytes", lambda _: 0)
    monkeypatch.setattr(previews, "peak_memory_bytes", lambda _: 2**30 + 2**20 * tried[-1])
    collate = previews.collate

    def collated(*given: Any) -> Any:
        batch = collate(*given)
        tried.append(batch.input_ids.numel())
        return batch

    monkeypatch.setattr(previews, "collate", collated)
    found = preview(settings)
    assert max(tried) <= 512
    assert len(tried) == 3, "one that makes the gradients, two that are measured"
    assert found.estimate.peak_bytes == pytest.approx(5 * 2**30, rel=0.02)
    assert found.estimate.tokens_that_fit is not None
    assert 450 <= found.estimate.tokens_that_fit <= 512
    said = " ".join(shown(found).split())
    assert "a pass of training takes 5.0 GiB of memory, 1.5 GiB are free: set train.micro_batch_tokens to 256" in said


def test_a_pass_is_no_larger_than_all_rows(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings["train"] = {"max_steps": 1, "batch_tokens": 4096, "micro_batch_tokens": 4096}
    sizes: list[int] = []
    collate = previews.collate

    def collated(*given: Any) -> Any:
        batch = collate(*given)
        sizes.append(batch.input_ids.numel())
        return batch

    monkeypatch.setattr(previews, "collate", collated)
    found = preview(settings)
    assert max(sizes) <= int(found.examples["cls"].lengths.sum())


def test_a_model_that_does_not_fit_is_an_error(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "free_memory_bytes", lambda _: 0)
    monkeypatch.setattr(previews, "collate", lambda *_: pytest.fail("a pass was tried"))
    with pytest.raises(InputError, match=r"memory: parameters, gradients and AdamW's moments take .* are free"):
        preview(settings)


@pytest.mark.parametrize(("train_settings", "is_said"), [({"epochs": 3.0}, True), ({"max_steps": 1}, False)])
def test_too_few_steps_are_told(
    settings: dict[str, Any], tmp_path: Path, train_settings: dict[str, Any], is_said: bool
) -> None:
    settings["train"] = {"batch_tokens": 64, "micro_batch_tokens": 64, **train_settings}
    note = "hardly learns from fewer than 20; lower train.batch_tokens (now 64) or raise train.epochs"
    assert (note in " ".join(shown(preview(settings)).split())) == is_said
    events: list[Any] = []
    train(settings, out=tmp_path / "run", report=events.append)
    assert any(note in event.get("text", "") for event in events) == is_said


def test_a_task_without_a_source_beside_one_with_a_source(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"tasks": ["cls", "qa"], "eval": {"max_rows": 4}}
    settings["data"] |= {"limit": 20}
    settings["model"] = SMALL | {"n_positions": 256}
    settings["train"] = {"max_steps": 1, "batch_tokens": 256, "eval_max_rows": 4}
    note = "qa: no source is named in data.sources: the synthetic dataset is used"
    said = shown(preview(settings))
    assert note in said
    assert "cls: no source" not in said
    events: list[Any] = []
    train(settings, out=tmp_path / "run", report=events.append)
    assert any(note == event.get("text") for event in events)


def test_lora_on_a_new_model_is_told(settings: dict[str, Any]) -> None:
    note = "LoRA on a randomly initialised model"
    assert note not in shown(preview(settings))
    assert note in shown(preview({**settings, "adapter": {"kind": "lora"}}))


def test_words_of_the_estimate(settings: dict[str, Any]) -> None:
    said = shown(preview(settings))
    assert "; 1 step, " in said
    assert " in about 1 s" in said
    assert "a | after each of its tokens" in said


def test_a_run_says_how_far_off_the_estimate_was(settings: dict[str, Any], tmp_path: Path) -> None:
    def notes(name: str) -> list[str]:
        seen: list[Any] = []
        train(settings, out=tmp_path / name, report=seen.append)
        return [e["text"] for e in seen if e["event"] == "note" and "preview had estimated" in e["text"]]

    assert notes("before") == [], "nothing was estimated"
    preview(settings)
    (note,) = notes("after")
    assert re.fullmatch(
        r"the steps took [\d.]+ min, (\d+% (more|less) than|as) preview had estimated \([\d.]+ min\)", note
    )
    settings["train"]["max_steps"] = 2
    assert notes("other") == [], "another run"
