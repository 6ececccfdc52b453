"""GGUF files as Hugging Face folders: equal logits, equal ids, and messages for files that cannot be read."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import snippet
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from multitask import api
from multitask.cli.main import main
from multitask.errors import InputError
from multitask.models.io import load_causal

if importlib.util.find_spec("gguf") is None:
    pytest.skip("needs gguf: pip install 'multitask[gguf]'", allow_module_level=True)

import gguf_files
from gguf_files import llama, write

from multitask.models.gguf import convert
from multitask.models.gguf.convert import import_gguf
from multitask.models.gguf.header import read_header

IDS = torch.tensor([[5, 300, 17, 17, 2, 42, 299, 8]])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A whole file, in a folder of its own."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "m.gguf", llama())
    return tmp_path / "in" / "m.gguf"


def refused(path: Path, out: Path) -> str:
    """The message of a file that cannot be converted; nothing may be written."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InputError) as caught:
        import_gguf(path, out)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_the_folder_computes_what_the_weights_of_the_file_compute(tmp_path: Path, kind: str) -> None:
    expected = write(tmp_path / "m.gguf", llama(), kind)
    found = api.import_gguf(tmp_path / "m.gguf", tmp_path / "new" / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "out").eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        logits, right = model(IDS).logits, expected(IDS).logits
        assert np.ptp(right.numpy()) > 5
        assert torch.equal(logits, right)
        assert torch.equal(load_causal(str(tmp_path / "new" / "out"))[0].eval()(IDS).logits, right)
        assert torch.equal(llama()(IDS).logits, right) == (kind == "F32")  # the others are rounded
    facts = ("llama", 20, sum(p.numel() for p in expected.parameters()))
    assert (found["architecture"], found["num_tensors"], found["num_parameters"]) == facts
    assert (found["quantization"], found["license"], found["author"]) == (kind, "apache-2.0", "nobody")
    assert found["name"] == "Tiny | model of tests"
    assert "lm_head.weight" not in load_file(tmp_path / "new" / "out" / "model.safetensors")  # tied: stored once


def test_config_generation_settings_and_tokenizer_name_the_same_ends(source: Path, tmp_path: Path) -> None:
    import_gguf(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for ends in (config, generation):
        assert (ends["bos_token_id"], ends["eos_token_id"]) == (1, 2)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (1, 2, 64)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "cat"}], tokenize=False) == "cat"


@pytest.mark.parametrize("text", [*gguf_files.TEXTS[:4], "a\n\n12", "고양이 😀\t</s> 3.5"])
def test_ids_are_those_of_the_tokenizer_that_was_written(source: Path, tmp_path: Path, text: str) -> None:
    import_gguf(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == gguf_files.bpe().encode(text).ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("add_bos", [False, True, None])
def test_the_first_token_is_put_in_front_when_the_file_says_so(tmp_path: Path, add_bos: bool | None) -> None:
    write(tmp_path / "m.gguf", llama(), add_bos=add_bos)
    import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = tokenizer("the cat", add_special_tokens=False).input_ids
    assert tokenizer("the cat").input_ids == ([1] if add_bos else []) + plain
    pair = tokenizer("the", "cat").input_ids
    assert pair.count(1) == (2 if add_bos else 0)


def test_digits_of_smollm_are_split_as_llama_cpp_splits_them(tmp_path: Path) -> None:
    tokens = {}
    for pre in ("gpt-2", "smollm"):
        write(tmp_path / f"{pre}.gguf", llama(), pre=pre)
        assert import_gguf(tmp_path / f"{pre}.gguf", tmp_path / pre).note == ""
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / pre)
        tokens[pre] = tokenizer.convert_ids_to_tokens(tokenizer("\n\n19").input_ids)
    # GPT-2's pattern leaves the last newline before a digit apart.
    assert tokens == {"gpt-2": ["Ċ", "Ċ", "19"], "smollm": ["ĊĊ", "1", "9"]}


def test_an_unknown_pre_tokenizer_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", llama(), pre="no-such")
    note = "pre-tokenizer 'no-such', which transformers does not know"
    assert note in import_gguf(tmp_path / "m.gguf", tmp_path / "out").note
    assert note in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_the_card_names_the_source_and_its_snippet_runs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = import_gguf(source, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: apache-2.0\n---\n")
    for row in ("author | nobody", "licence | apache-2.0", "file | m.gguf", f"SHA-256 | {done.sha256}"):
        assert f"| {row} |" in card
    assert "# Tiny | model of tests\n" in card
    monkeypatch.chdir(tmp_path / "out")
    exec(snippet(tmp_path / "out").replace("max_new_tokens=20", "max_new_tokens=2"), {})
    assert capsys.readouterr().out.startswith("The capital of France is")


def test_files_beside_the_gguf_file_are_not_read(source: Path, tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json", "generation_config.json"):
        (source.parent / name).write_text("not JSON")
    import_gguf(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


# Bad input.


def test_a_file_truncated_anywhere_is_an_error(source: Path, tmp_path: Path) -> None:
    whole = source.read_bytes()
    places = [0, 3, 4, 6, 8, 16, 23, 24, 30, 60, *range(100, len(whole), len(whole) // 40), len(whole) - 1]
    kinds = set()
    for place in places:
        source.write_bytes(whole[:place])
        message = refused(source, tmp_path / "out")
        assert message.startswith(str(source))
        assert "download" in message
        kinds.add("truncated or damaged" in message)
    assert kinds == {True, False}


def test_a_damaged_header_is_an_error_or_read(source: Path) -> None:
    whole, rng, num_errors = source.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        place = int(rng.integers(4, 900))
        source.write_bytes(whole[:place] + bytes([int(rng.integers(256))]) + whole[place + 1 :])
        try:
            read_header(source)
        except InputError:  # no other exception
            num_errors += 1
    assert num_errors > 5


def test_paths_that_are_no_gguf_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert re.search(r"none.gguf: cannot be read \(No such file", refused(tmp_path / "none.gguf", out))
    assert re.search(r"is a folder, expected a GGUF file", refused(tmp_path, out))
    (tmp_path / "text.gguf").write_text("hello")
    assert re.search(r"starts with b'hell', expected b'GGUF'", refused(tmp_path / "text.gguf", out))
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(b"GGUF")
    assert re.search(r"is one of 3 parts.*llama-gguf-split --merge", refused(tmp_path / "m-00001-of-00003.gguf", out))


def test_a_part_that_was_renamed(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", llama(), change=lambda writer, _: writer.add_uint16("split.count", 2))
    assert "is one of 2 parts" in refused(tmp_path / "m.gguf", tmp_path / "out")


def drop(name: str) -> Any:
    return lambda _, named: named.pop(name)


def add(name: str) -> Any:
    return lambda _, named: named.update({name: np.ones(8, "f4")})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architecture": "nosuch"}, "does not read this model of the architecture 'nosuch' .*not supported"),
        ({"change": drop("blk.1.ffn_up.weight")}, "lacks 1 of the model's weights, .*layers.1.mlp.up_proj"),
        ({"change": add("rope_freqs.weight")}, "has the tensor 'rope_freqs.weight' .stretched positions"),
        ({"bos": 4000}, "tokenizer.ggml.bos_token_id is 4000, expected an id below 320, the number"),
    ],
    ids=["architecture", "missing", "positions", "bos"],
)
def test_models_that_are_not_converted(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    write(tmp_path / "m.gguf", llama(), **given)
    assert re.search(message, refused(tmp_path / "m.gguf", tmp_path / "out"))


def test_an_existing_folder_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    import_gguf(source, tmp_path / "empty")
    assert f"{tmp_path}/empty: exists already; expected a new name" in refused(source, tmp_path / "empty")


def test_nothing_is_written_on_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        convert, "_encode", lambda tokenizer, calls=[]: calls.append(1) or (full() if calls[1:] else [])
    )
    assert re.search(r"out: cannot be written \(.*No space left", refused(source, tmp_path / "out"))


@pytest.mark.parametrize(("name", "message"), [("_logits", "other logits"), ("_encode", "other ids")])
def test_a_folder_that_differs_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    results = iter([torch.zeros(1), torch.ones(1)] if name == "_logits" else [[[1]], [[2]]])
    monkeypatch.setattr(convert, name, lambda *_: next(results))
    with pytest.raises(InputError, match=f"{message} than the one that was read, .*upgrade it"):
        import_gguf(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_without_the_package(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # importing it raises ImportError
    message = refused(source, tmp_path / "out")
    assert re.search(r"need the package gguf, which is not installed; run `pip install 'multitask\[gguf\]'`", message)


def test_the_command(source: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["import-gguf", str(source), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert re.search(
        r"Tiny \| model of tests \(llama, F32\): [\d,]+ parameters written to .*/out\nlicence: apache", done.output
    )
    again = CliRunner().invoke(main, ["import-gguf", str(source), str(tmp_path / "out")])
    assert again.exit_code == 2
    assert again.stderr.startswith("error: ")
    assert "exists already" in again.stderr
