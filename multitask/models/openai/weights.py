"""OpenAI's published GPT-2: its TensorFlow checkpoint, vocabulary and merges, as a Hugging Face folder.

A folder of `checkpoint`, `encoder.json`, `hparams.json`, `model.ckpt.*` and `vocab.bpe` goes in, for any of the four
sizes. Weights are copied as they are, since both sides multiply with matrices of (inputs, outputs):

    model/h0/attn/c_attn/w (1, 768, 2304)  ->  transformer.h.0.attn.c_attn.weight (768, 2304)

Names and shapes: src/model.py of github.com/openai/gpt-2. Its GELU is the tanh form, `gelu_new`; its output layer is
the token embedding, which is stored once.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import GenerationConfig, GPT2Config, GPT2TokenizerFast

from multitask.errors import InputError
from multitask.events import Json
from multitask.files import replacing
from multitask.models.cards import from_template
from multitask.models.openai.bundle import Bundle

_CARD = Path(__file__).parent / "card.md.j2"
END_OF_TEXT = "<|endoftext|>"
_NUM_SHOWN = 5  # of the names that do not fit
_LIMIT = 1 << 31  # of the numbers in hparams.json
_PREFIX = re.compile(
    rb'^[ \t]*model_checkpoint_path:[ \t]*"((?:[^"\\\n]|\\[0-3][0-7]{2}|\\[nrt\'"\\])*)"', re.MULTILINE
)


@dataclass(frozen=True)
class Shape:
    """`hparams.json`, in OpenAI's names."""

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int


def import_openai(source: Path, out: Path) -> Json:
    """Writes OpenAI's GPT-2 in `source` as the folder `out`, whole or not at all.

    Returns:
        `num_tensors` and `num_parameters` written, `num_ignored` tensors left out (optimizer state, counters), and
        `shape` as in `hparams.json`.

    Raises:
        InputError: a file of `source` is missing, damaged or does not fit the others; `out` holds files already.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists already; expected a new name or an empty folder: name another, or remove it")
    shape = read_shape(source / "hparams.json")
    vocabulary = read_vocabulary(source / "encoder.json", shape.n_vocab)
    merges = read_merges(source / "vocab.bpe", vocabulary)
    bundle = Bundle(find_prefix(source))
    variables = check(bundle, shape, source / "hparams.json")
    # Mapped, not loaded: pages of the checkpoint come and go while they are written.
    tensors = {key: torch.from_numpy(bundle.read(name).reshape(target)) for name, (key, target) in variables.items()}
    tokenizer = GPT2TokenizerFast(vocab=vocabulary, merges=merges, model_max_length=shape.n_ctx)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), vocabulary[END_OF_TEXT])
    config = GPT2Config(
        vocab_size=shape.n_vocab,
        n_positions=shape.n_ctx,
        n_embd=shape.n_embd,
        n_head=shape.n_head,
        n_layer=shape.n_layer,
        activation_function="gelu_new",
        architectures=["GPT2LMHeadModel"],
        dtype="float32",
        **ends,
    )
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    with _whole(out) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        GenerationConfig(**ends).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = from_template(_CARD, shape=shape, num_parameters=num_parameters)
        (folder / "README.md").write_text(card, "utf-8")
    return {
        "num_tensors": len(tensors),
        "num_parameters": num_parameters,
        "num_ignored": len(bundle.entries) - len(tensors),
        "shape": asdict(shape),
    }


def find_prefix(source: Path) -> Path:
    """What the checkpoint's file names begin with: as the file `checkpoint` says, else that of the only index."""
    path = source / "checkpoint"
    if path.exists():
        found = _PREFIX.search(_read(path))
        try:
            # Bytes that are not ASCII are written as octal numbers.
            named = found[1].decode("unicode_escape").encode("latin-1").decode("utf-8") if found else ""
        except UnicodeError:
            named = ""
        # The folder may have been moved since its full path was written: the last part is what counts.
        name = named.replace("\\", "/").rpartition("/")[2]
        if not name.isprintable() or name in ("", ".", ".."):
            raise InputError(
                f'{path}: no line `model_checkpoint_path: "model.ckpt"` in it; write that line with the name before '
                "`.index`, or remove the file if there is only one checkpoint"
            )
        return source / name
    found_here = sorted(source.glob("*.index")) if source.is_dir() else []
    if len(found_here) != 1:
        names = ", ".join(path.name for path in found_here[:_NUM_SHOWN]) or "none"
        raise InputError(
            f"{source}: no file `checkpoint`, and of files `*.index` one was expected, found {names}; name the folder "
            "of checkpoint, encoder.json, hparams.json, model.ckpt.index, model.ckpt.data-00000-of-00001, vocab.bpe"
        )
    return found_here[0].with_suffix("")


def read_shape(path: Path) -> Shape:
    """The model's shape; raises InputError where `hparams.json` does not say it in whole numbers above 0."""
    given = _read_json(path)
    problems = []
    for field in fields(Shape):
        value = given.get(field.name)
        if type(value) is not int or not 1 <= value < _LIMIT:
            problems.append(f"{field.name} is {_short(value)}" if field.name in given else f"{field.name} is missing")
    if problems:
        raise InputError(f"{path}: {', '.join(problems)}; expected whole numbers from 1, as OpenAI published them")
    shape = Shape(*(given[field.name] for field in fields(Shape)))
    if shape.n_embd % shape.n_head:
        raise InputError(
            f"{path}: n_embd is {shape.n_embd}, expected a multiple of n_head, which is {shape.n_head}; use "
            "the file that was published with the checkpoint"
        )
    return shape


def read_vocabulary(path: Path, num_tokens: int) -> dict[str, int]:
    """Token -> id. Raises InputError unless ids are 0, 1, ... `num_tokens` - 1 and any text can be written."""
    given = _read_json(path)
    again = "use the file that was published with the checkpoint"
    if len(given) != num_tokens:
        raise InputError(
            f"{path}: {len(given)} tokens, expected {num_tokens}, n_vocab of {path.with_name('hparams.json')}; {again}"
        )
    # GPT-2 writes each of the 256 bytes as one printable character; tokens are strings of these.
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    seen = set()
    for token, number in given.items():
        if type(number) is not int or not 0 <= number < num_tokens or number in seen:
            raise InputError(
                f"{path}: token {_short(token)} has the id {_short(number)}, expected one of 0 to {num_tokens - 1} "
                f"that no other token has; {again}"
            )
        seen.add(number)
        if not token or not alphabet.issuperset(token):
            raise InputError(f"{path}: token {_short(token)} is not written in GPT-2's 256 byte characters; {again}")
    missing = sorted({*alphabet, END_OF_TEXT} - given.keys())
    if missing:
        names = ", ".join(map(repr, missing[:_NUM_SHOWN]))
        raise InputError(f"{path}: {len(missing)} tokens that GPT-2 cannot do without are missing: {names}; {again}")
    return given


def read_merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens, in order of their rank. Raises InputError for a line that is no pair of known tokens."""
    text = _decode(path, _read(path))
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(part in vocabulary for part in (*parts, "".join(parts))):
            raise InputError(
                f"{path}:{number}: {_short(line)} is not a merge; expected two tokens with a space between that, like "
                f"the token they make, are in {path.with_name('encoder.json')}: use the file that was published with it"
            )
        merges.append((parts[0], parts[1]))
    return merges


def variables_of(shape: Shape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """OpenAI's name of each variable -> its name here, its shape in the checkpoint."""
    n = shape.n_embd
    vector = {"g": (n,), "b": (n,)}
    parts: dict[str, tuple[int, ...]] = {"wte": (shape.n_vocab, n), "wpe": (shape.n_ctx, n)}
    for layer in range(shape.n_layer):
        for norm in ("ln_1", "ln_2"):
            parts |= {f"h{layer}/{norm}/{name}": size for name, size in vector.items()}
        for name, num_in, num_out in (
            ("attn/c_attn", n, 3 * n),
            ("attn/c_proj", n, n),
            ("mlp/c_fc", n, 4 * n),
            ("mlp/c_proj", 4 * n, n),
        ):
            parts |= {f"h{layer}/{name}/w": (1, num_in, num_out), f"h{layer}/{name}/b": (num_out,)}
    parts |= {f"ln_f/{name}": size for name, size in vector.items()}
    return {f"model/{name}": (_ours(name), size) for name, size in parts.items()}


def _ours(name: str) -> str:
    """`h0/attn/c_attn/w` -> `transformer.h.0.attn.c_attn.weight`, `wte` -> `transformer.wte.weight`."""
    *modules, last = name.split("/")
    role = {"w": "weight", "g": "weight", "b": "bias"}.get(last, f"{last}.weight")
    return ".".join(["transformer", *(re.sub(r"^h(\d+)$", r"h.\1", module) for module in modules), role])


def check(bundle: Bundle, shape: Shape, hparams: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """OpenAI's name of each variable -> its name and shape here.

    Raises InputError when variables are missing, too many, or of another shape or type than `hparams` says, all at
    once. What an optimizer stores (`beta1_power`, `model/wte/Adam`) is none of the model's.
    """
    entries = bundle.entries
    if shape.n_layer > len(entries):  # before so many names are made
        raise InputError(f"{hparams}: n_layer is {shape.n_layer}, but {bundle.index} has {len(entries)} tensors")
    expected = variables_of(shape)
    problems = [f"'{name}' is missing" for name in expected if name not in entries]
    for name, entry in entries.items():
        if name in expected:
            if entry.shape != expected[name][1]:
                problems.append(f"'{name}' has shape {entry.shape}, expected {expected[name][1]}")
            elif entry.dtype != "<f4":
                problems.append(f"'{name}' is of type {entry.dtype}, expected float32")
        elif name.startswith("model/") and name.rpartition("/")[0] not in expected:
            problems.append(f"'{name}' is not a variable of this model")
    if problems:
        more = [f"and {len(problems) - _NUM_SHOWN} more"] if len(problems) > _NUM_SHOWN else []
        raise InputError(
            f"{bundle.index}: not the model that {hparams} describes: {'; '.join([*problems[:_NUM_SHOWN], *more])}; "
            "use files that were published together"
        )
    return {name: (key, size[1:] if len(size) == 3 else size) for name, (key, size) in expected.items()}


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that appears as `out` when all of it is on disk, or never."""
    try:
        with replacing(out) as aside:
            aside.mkdir()
            yield aside
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: cannot be written ({error}); nothing was left: make room, or name another") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected it in OpenAI's folder, beside model.ckpt.index: copy "
            "or download it"
        ) from error


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 ({error.reason}); copy or download the file again") from error


def _read_json(path: Path) -> Json:
    try:
        given = json.loads(_decode(path, _read(path)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); copy or download the file again") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise InputError(f"{path}: not JSON that can be read ({error}); copy or download the file again") from error
    if not isinstance(given, dict):
        raise InputError(
            f"{path}: a mapping was expected, found {type(given).__name__}; copy or download the file again"
        )
    return given


def _short(value: object) -> str:
    """A value for a message; damaged files hold long ones."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
