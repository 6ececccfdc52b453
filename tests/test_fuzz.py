"""A short run of benchmarks/fuzz.py: damaged files of every kind end in rows or in our own error."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers import ROOT, python

from multitask.errors import InputError


def _fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


fuzz = _fuzz()


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_end_in_rows_or_in_our_error(name: str, tmp_path: Path) -> None:
    if name == "gguf":
        pytest.importorskip("gguf")
    found = fuzz.fuzz(name, 0, 20, 7, tmp_path)
    assert [failure for failure in found.failures if not failure.endswith(" s")] == []  # how long it took is not tested
    assert found.num_read + found.num_errors == 20
    assert found.num_errors > 0


def test_a_failure_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        if path.read_bytes() != b"abc":
            raise KeyError("found")
        raise InputError("ours")

    monkeypatch.setitem(fuzz.READERS, "fake", fuzz.Reader("a.txt", lambda: [b"abc"], read))
    (tmp_path / "in").mkdir()
    found = fuzz.fuzz("fake", 0, 10, 7, tmp_path / "in", tmp_path / "kept")
    assert found.failures
    assert "KeyError: 'found'" in found.failures[0]
    assert len(list((tmp_path / "kept").iterdir())) == len(found.failures)


def test_inputs_are_a_function_of_seed_reader_and_number(tmp_path: Path) -> None:
    def inputs(seed: int) -> list[bytes]:
        rng = fuzz.random.Random(f"{seed}:csv:3")
        return [fuzz.mutated([b"a,b\n1,2\n", b"c"], rng, False) for _ in range(20)]

    assert inputs(7) == inputs(7) != inputs(8)


@pytest.mark.slow
def test_the_command_counts_what_it_read() -> None:
    done = python(
        "import runpy, sys; sys.argv = ['fuzz', '--inputs', '4', '--reader', 'csv', '--reader', 'results'];"
        "runpy.run_path('benchmarks/fuzz.py', run_name='__main__')"
    )
    assert done.returncode == 0, done.stderr
    assert "| all | 4 |" in done.stdout
    assert json.dumps(7) in done.stdout
