"""Damaged files: every reader ends in what it reads or in our own error, within a second.

`python benchmarks/fuzz.py --inputs 100000` mutates small valid files of each kind (bits, spans that are truncated,
removed, doubled or taken from another file, huge numbers, deep nesting, bytes that are not UTF-8) and prints a table.
An input is a function of (seed, reader, number): `--reader csv --first 17 --inputs 18` reads number 17 again.

Each reader runs in processes of its own, as a reader in C could crash one: that would be counted, too.
"""

import argparse
import gzip
import io
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # writers of GGUF files and of OpenAI's checkpoints

from multitask.config.data import DataConfig, SourceConfig, TextConfig
from multitask.config.loading import load, read_yaml
from multitask.config.run import PretrainConfig, RunConfig
from multitask.data.rows import Counts, read_rows
from multitask.errors import InputError
from multitask.registry import load_tasks

LIMIT_S = 1.0
_MEMORY_BYTES = 16 << 30  # of address space; a reader that believes a huge number is stopped here
_CHUNK = 5000  # inputs of one process

QA = [
    {"id": f"q{n}", "context": f"{name} has a {thing}.", "question": f"What has {name}?", "answers": [f"a {thing}"]}
    for n, (name, thing) in enumerate([("Ada", "red hat"), ("민지", "고양이"), ("Cho", 'kite, "blue"')])
]
CLS = [{"text": "재밌다, 정말", "label": 1}, {"text": 'so "bad"', "label": 0}, {"text": "괜찮다\tyes", "label": 1}]
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Ada has a red hat.",
                    "qas": [{"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}],
                }
            ],
        }
    ],
}
LABELS: dict[str | int, Any] = {0: {"ko": "부정", "en": "negative"}, 1: {"ko": "긍정", "en": "positive"}}


@dataclass(frozen=True)
class Reader:
    """Valid files, and what reads one.

    file: the name that an input is written under. examples: contents. read: called with the path; others: files that
    stand beside it and stay as they are. is_binary: mutations keep to the first bytes half of the time.
    """

    file: str
    examples: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    others: Callable[[], dict[str, bytes]] = dict
    is_binary: bool = False


# ---------------------------------------------------------------- readers


_tasks = cache(load_tasks)


def _rows(task: str, **settings: Any) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        source = SourceConfig(files={"train": [str(path)]}, **settings)
        return list(read_rows(_tasks()[task], source, "train", DataConfig(), Counts()))

    return read


def _text(**settings: Any) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        from multitask.data import corpus

        config = TextConfig(files={"train": [str(path)]}, **settings)
        return [list(corpus.parts(config, split)) for split in ("train", "validation")]

    return read


def _json_lines() -> list[bytes]:
    lines = ("".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in QA) for ascii in (True, False))
    return [text.encode() for text in lines]


def _json_arrays() -> list[bytes]:
    return [json.dumps(QA, ensure_ascii=False).encode(), json.dumps(QA, indent=1).encode(), json.dumps(SQUAD).encode()]


def _tables(separator: str) -> list[bytes]:
    quoted = ['"' + str(row["text"]).replace('"', '""') + '"' if separator == "," else str(row["text"]) for row in CLS]
    lines = [f"{text.replace(chr(9), ' ')}{separator}{row['label']}" for text, row in zip(quoted, CLS, strict=True)]
    text = "\n".join([f"text{separator}label", *lines, ""])
    return [text.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), text.encode("cp949")]


def _parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for compression in ("none", "snappy"):
        with io.BytesIO() as file:
            pq.write_table(pa.Table.from_pylist(QA), file, compression=compression)
            found.append(file.getvalue())
    return found


def _settings(path: Path) -> object:
    given = read_yaml(path)
    return load(PretrainConfig if "text" in given else RunConfig, given, where=str(path))


def _yaml() -> list[bytes]:
    folder = Path(__file__).parents[1] / "configs"
    return [(folder / f"{name}.yaml").read_bytes() for name in ("demo", "pretrain", "fewshot", "korean_base")]


def _results() -> list[bytes]:
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    content = {
        "schema": 2,
        "kind": "train",
        "arm": "multitask",
        "model": {"name": "m"},
        "config": {"seed": 7},
        "seed": 7,
        "data": {"qa": {"split": "test", "num_rows": 3, "files": ["a"], "sha256": ["0"]}},
        "tasks": {"qa": {"num_examples": 3, "metrics": {"f1": score}, "baselines": {"lead3": {"f1": score}}}},
        "cost": {"wall_s": 1.5, "epochs": {"qa": 1.0}},
    }
    return [json.dumps(content, indent=1).encode(), json.dumps(content).encode()]


def _read_results(path: Path) -> object:
    from multitask.reports.results import read

    return read([path])


def _log(path: Path) -> object:
    from multitask.reports.results import json_lines

    return list(json_lines(path))


def _steps() -> list[bytes]:
    line = {"event": "step", "step": 20, "loss": {"qa": 1.25}, "learning_rate": 1e-3, "epochs": {"qa": 0.5}}
    return ["".join(json.dumps({**line, "step": n}) + "\n" for n in (20, 40)).encode()]


def _state() -> list[bytes]:
    content = {
        "step": 20,
        "cursor": [0, 3],
        "num_tokens": 100,
        "elapsed_s": 1.5,
        "best": {"step": 10, "selection_score": -1.0},
        "num_worse": 0,
        "sums": [[1.0, 2.0]],
        "scaler": None,
        "data": {"qa": ["0"]},
        "num_threads": 2,
        "precision": "fp32",
    }
    return [json.dumps(content, indent=1).encode()]


def _check_checkpoint(path: Path) -> object:
    from multitask.training import checkpoint

    target = path.parent / "checkpoints" / "step-20"
    if not target.exists():
        target.mkdir(parents=True)
        for file in (target / "model.safetensors", target / "optimizer.safetensors"):
            file.write_bytes(_tensors()[0])
        (target.parent / "best-10").mkdir()
        (target.parent / "best-10" / "model.safetensors").write_bytes(_tensors()[0])
    shutil.copyfile(path, target / "state.json")
    checkpoint.check(target)
    return checkpoint.read_state(target)


@cache
def _tensors() -> list[bytes]:
    import numpy as np
    from safetensors.numpy import save

    return [save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.int64)}, {"format": "pt"}), save({})]


def _check_tensors(path: Path) -> object:
    """What we say is whole, safetensors reads."""
    from safetensors import SafetensorError, safe_open

    from multitask import damage

    if problem := damage.tensors(path):
        raise InputError(problem)
    try:
        with safe_open(path, "numpy") as file:
            return [file.get_tensor(name).shape for name in file.keys()]  # noqa: SIM118  # it is no mapping
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:
        # A flipped bit in a name, shape or type of the header leaves a file of the right size: models.io catches it.
        raise InputError(str(error)) from error


def _check_model(path: Path) -> object:
    from multitask import damage

    if problem := damage.of_model(path.parent):
        raise InputError(problem)
    return None


def _weight_index() -> list[bytes]:
    content = {"metadata": {"total_size": 56}, "weight_map": {"a": "part-1.safetensors", "b": "part-1.safetensors"}}
    return [json.dumps(content, indent=2).encode()]


def _gguf() -> list[bytes]:
    files = import_module("gguf_files")
    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder, "a.gguf"), files.llama())
        return [Path(folder, "a.gguf").read_bytes()]


def _read_gguf(path: Path) -> object:
    from multitask.models.gguf.header import read_header

    return read_header(path)


@cache
def _openai() -> dict[str, bytes]:
    import numpy as np

    bundles = import_module("bundles")
    shape = {"n_vocab": 280, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles.write(folder / "model.ckpt", {f"model/{n}": np.ones((2, n), np.float32) for n in range(1, 9)})
        bundles.text_files(folder, shape)
        (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _read_bundle(path: Path) -> object:
    from multitask.models.openai.bundle import Bundle

    bundle = Bundle(path.with_suffix(""))
    return [bundle.read(name).shape for name in bundle.entries]


def _read_vocabulary(path: Path) -> object:
    from multitask.models.openai import text_files

    shape = text_files.read_shape(path.parent / "hparams.json")
    vocabulary = text_files.read_vocabulary(path.parent / "encoder.json", shape.n_vocab)
    return text_files.read_merges(path.parent / "vocab.bpe", vocabulary), text_files.find_prefix(path.parent)


def _tokenizer() -> dict[str, bytes]:
    return {"vocab.json": _openai()["encoder.json"], "merges.txt": _openai()["vocab.bpe"]}


def _read_bpe(path: Path) -> object:
    from multitask.tokenization import bpe

    return bpe.read(path.parent)


def _read_prompts(path: Path) -> object:
    from multitask.inference.prompt_input import prompt_values, read_prompts

    task = _tasks()["qa"]
    with path.open("rb") as stream:
        given = [*read_prompts(path, task), *read_prompts(stream, task)]
    return [prompt_values(task, prompt) for prompt in given]


def _of_openai(name: str) -> Reader:
    return Reader(
        name,
        lambda: [_openai()[name]],
        _read_vocabulary,
        lambda: {other: content for other, content in _openai().items() if other != name},
    )


READERS = {
    "jsonl": Reader("a.jsonl", _json_lines, _rows("qa")),
    "jsonl.gz": Reader("a.jsonl.gz", lambda: [gzip.compress(t, mtime=0) for t in _json_lines()], _rows("qa")),
    "json": Reader("a.json", _json_arrays, _rows("qa", on_bad_row="skip")),
    "csv": Reader("a.csv", lambda: _tables(","), _rows("cls", labels=LABELS)),
    "csv, bad rows skipped": Reader("a.csv", lambda: _tables(","), _rows("cls", labels=LABELS, on_bad_row="skip")),
    "tsv": Reader("a.tsv", lambda: _tables("\t"), _rows("cls", labels=LABELS)),
    "tsv, cp949": Reader("a.tsv", lambda: _tables("\t"), _rows("cls", labels=LABELS, encoding="cp949")),
    "text": Reader("a.txt", lambda: ["고양이가 앉았다\nthe cat sat\n".encode()], _rows("gen")),
    "parquet": Reader("a.parquet", _parquet, _rows("qa"), is_binary=True),
    "plain text corpus": Reader("a.txt", lambda: ["고양이\n\nthe cat\r\nsat ".encode() * 4], _text(documents="line")),
    "jsonl corpus": Reader("a.jsonl", _json_lines, _text(fields=["context", "question"])),
    "prompts": Reader("a.jsonl", _json_lines, _read_prompts),
    "yaml settings": Reader("a.yaml", _yaml, _settings),
    "results": Reader("results.json", _results, _read_results),
    "metrics.jsonl": Reader("metrics.jsonl", _steps, _log),
    "checkpoint state": Reader("state.json", _state, _check_checkpoint),
    "safetensors": Reader("model.safetensors", _tensors, _check_tensors, is_binary=True),
    "safetensors index": Reader(
        "model.safetensors.index.json", _weight_index, _check_model, lambda: {"part-1.safetensors": _tensors()[0]}
    ),
    "gguf": Reader("a.gguf", _gguf, _read_gguf, is_binary=True),
    "checkpoint index": Reader(
        "model.ckpt.index",
        lambda: [_openai()["model.ckpt.index"]],
        _read_bundle,
        lambda: {name: content for name, content in _openai().items() if ".data-" in name},
        is_binary=True,
    ),
    "encoder.json": _of_openai("encoder.json"),
    "vocab.bpe": _of_openai("vocab.bpe"),
    "hparams.json": _of_openai("hparams.json"),
    "checkpoint": _of_openai("checkpoint"),
    "vocab.json": Reader(
        "vocab.json",
        lambda: [_tokenizer()["vocab.json"]],
        _read_bpe,
        lambda: {"merges.txt": _tokenizer()["merges.txt"]},
    ),
}
"""A reader is added by one line: a file name, valid contents, a function of a path."""


# ---------------------------------------------------------------- mutations


_INSERTS = [
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\0",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"\\",
    b"\\ud800",
    b"\n",
    b"\r",
    b"\t",
    "\u2028\u0130".encode(),
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"-0",
    b"null",
    b"[]",
    b"{}",
    b"true",
    b": *a",
    b"&a [*a, *a]",
    b"!!python/object:os.system ls",
    b"<<: {a: b}\n",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
]


def mutated(examples: list[bytes], rng: random.Random, is_binary: bool) -> bytes:
    """One of the valid contents with one to four changes."""
    content = bytearray(rng.choice(examples))
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = min(len(content), 400) if is_binary and rng.random() < 0.5 else len(content)
        at = rng.randrange(end + 1)
        span = rng.choice((1, 2, 8, 40, 300))
        kind = rng.randrange(9)
        if kind == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + span]
        elif kind == 3:
            content[at:at] = content[at : at + span]
        elif kind == 4:
            other = rng.choice(examples)
            start = rng.randrange(len(other) + 1)
            content[at : at + span] = other[start : start + span]
        elif kind == 5:
            content[at:at] = rng.choice(_INSERTS)
        elif kind == 6:
            insert = rng.choice(_INSERTS)
            content[at : at + len(insert)] = insert
        elif kind == 7:
            content[at : at + span] = rng.randbytes(span)
        else:  # a number or a word gives way to another
            start = content.find(rng.choice((b":", b",", b" ", b"[")), at)
            content[start + 1 : start + 1 + rng.randrange(6)] = rng.choice(_INSERTS)
    return bytes(content)


# ---------------------------------------------------------------- one input, and many


class _TooSlow(BaseException):
    """Raised by the alarm."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Found:
    """How inputs of a reader ended: read, our error, or a failure."""

    num_read: int = 0
    num_errors: int = 0
    slowest_s: float = 0.0  # of the CPU
    failures: list[str] = field(default_factory=list)
    """`number: what happened`, each."""

    def add(self, other: "Found") -> None:
        """Counts of further inputs."""
        self.num_read += other.num_read
        self.num_errors += other.num_errors
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.failures += other.failures


def fuzz(name: str, first: int, last: int, seed: int, folder: Path, keep: Path | None = None) -> Found:
    """Reads the mutated inputs `first` to `last` of a reader below `folder`; failing ones are copied to `keep`."""
    reader, found = READERS[name], Found()
    examples = reader.examples()
    path = folder / reader.file
    for other, content in reader.others().items():
        (folder / other).write_bytes(content)
    path.write_bytes(examples[0])
    with suppress(InputError):
        reader.read(path)  # imports are not counted
    for number in range(first, last):
        path.write_bytes(mutated(examples, random.Random(f"{seed}:{name}:{number}"), reader.is_binary))
        (folder / ".number").write_text(str(number))
        failure, started_s = "", time.process_time()
        try:
            with _within(10 * LIMIT_S):
                reader.read(path)
            found.num_read += 1
        except InputError:
            found.num_errors += 1
        except _TooSlow:
            failure = f"not done after {10 * LIMIT_S:.0f} s"
        except Exception as error:  # whatever it is, it is a failure
            failure = f"{type(error).__name__}: {str(error)[:200]}"
        elapsed_s = time.process_time() - started_s  # of the CPU: other programs may hold it
        found.slowest_s = max(found.slowest_s, elapsed_s)
        if failure or elapsed_s > LIMIT_S:
            found.failures.append(f"{number}: {failure or f'{elapsed_s:.1f} s'}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, keep / f"{name.replace(' ', '-')}-{number}-{reader.file}")
    return found


def _in_a_process(name: str, first: int, last: int, seed: int, keep: Path) -> Found:
    """The same in processes of their own; one that dies is a failure of the input that it was at."""
    found = Found()
    while first < last:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            span = ["--first", str(first), "--inputs", str(min(first + _CHUNK, last))]
            command = [sys.executable, __file__, "--child", folder, "--reader", name, *span, "--seed", str(seed)]
            done = subprocess.run([*command, "--keep", str(keep)], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode == 0:
                found.add(Found(**json.loads(done.stdout.splitlines()[-1])))
                first += _CHUNK
                continue
            number = int(Path(folder, ".number").read_text())
            keep.mkdir(parents=True, exist_ok=True)
            file = READERS[name].file
            shutil.copyfile(Path(folder, file), keep / f"{name.replace(' ', '-')}-{number}-{file}")
            found.failures.append(f"{number}: the process died ({done.returncode})")
            found.num_read += number - first  # how these ended is not known; none failed
            first = number + 1
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers; with --first, the last of one")
    parser.add_argument("--first", type=int, help="number of the first input")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder of the inputs that fail")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.reader or list(READERS)
    if given.child is not None:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        print(json.dumps(vars(fuzz(names[0], given.first, given.inputs, given.seed, given.child, given.keep))))
        return
    started_s, total = time.perf_counter(), Counter[str]()
    print(
        "| reader | inputs | read | our error | failures | slowest (CPU) |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    failures = []
    for name in names:
        last = given.inputs if given.first is not None else -(-given.inputs // len(names))
        found = _in_a_process(name, given.first or 0, last, given.seed, given.keep)
        num = last - (given.first or 0)
        total += Counter(inputs=num, read=found.num_read, errors=found.num_errors, failures=len(found.failures))
        cells = f"{num:,} | {found.num_read:,} | {found.num_errors:,} | {len(found.failures)}"
        print(f"| {name} | {cells} | {1000 * found.slowest_s:,.0f} ms |", flush=True)
        failures += [f"{name} {failure}" for failure in found.failures]
    cells = f"{total['inputs']:,} | {total['read']:,} | {total['errors']:,} | {total['failures']}"
    print(f"| all | {cells} | |\n\n{time.perf_counter() - started_s:.0f} s, seed {given.seed}")
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
