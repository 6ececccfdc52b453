"""A writer of TensorFlow's checkpoint format from its description, for tests; shares no code with the reader.

`write(prefix, {"w": np.zeros(2, "f4")})` writes `prefix.index` and `prefix.data-00000-of-00001`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from transformers import GPT2LMHeadModel

MAGIC = bytes.fromhex("57fb808b247547db")
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10}
Array = np.ndarray[Any, Any]


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first."""
    out = []
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """One field of a message: a varint, or a length and bytes."""
    if isinstance(value, bytes):
        return varint(number * 8 + 2) + varint(len(value)) + value
    return varint(number * 8) + varint(value)


def masked(data: bytes) -> bytes:
    """The four bytes of a stored checksum."""
    crc = int.from_bytes(google_crc32c.Checksum(data).digest(), "big")
    rotated = ((crc >> 15) | (crc << 17)) % 2**32
    return ((rotated + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def trailer(content: bytes, compression: int = 0) -> bytes:
    """The trailer of a block."""
    return bytes([compression]) + masked(content + bytes([compression]))


def block(pairs: Iterable[tuple[bytes, bytes]], restart_interval: int) -> bytes:
    """Entries, keys without their common prefix with the one before, except at a restart; then offsets of restarts."""
    out, restarts, last = b"", [], b""
    for n, (key, value) in enumerate(pairs):
        shared = 0
        if n % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    places = restarts or [0]
    return out + b"".join(place.to_bytes(4, "little") for place in [*places, len(places)])


def table(
    pairs: list[tuple[bytes, bytes]], per_block: int = 3, restart_interval: int = 2, compression: int = 0
) -> bytes:
    """A whole index file."""
    out = b""

    def put(content: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        out += content + trailer(content, compression)
        return handle

    groups = [pairs[n : n + per_block] for n in range(0, len(pairs), per_block)]
    handles = [(group[-1][0], put(block(group, restart_interval))) for group in groups]
    meta = put(block([], 1))
    footer = meta + put(block(handles, 1))
    return out + footer.ljust(40, b"\0") + MAGIC


def header(num_shards: int = 1, endianness: int = 0, min_consumer: int = 0) -> tuple[bytes, bytes]:
    """The first entry."""
    version = field(1, 1) + (field(2, min_consumer) if min_consumer else b"")
    return b"", field(1, num_shards) + (field(2, endianness) if endianness else b"") + field(3, version)


def entry(
    dtype: int, shape: Iterable[int], size: int, checksum: bytes, shard: int = 0, offset: int = 0, more: bytes = b""
) -> bytes:
    """A tensor's message; numbers that are 0 are omitted, as in proto3."""
    numbers = b"".join(field(n, value) for n, value in ((3, shard), (4, offset), (5, size)) if value)
    dims = b"".join(field(2, field(1, size) if size else b"") for size in shape)
    return field(1, dtype) + field(2, dims) + numbers + varint(6 * 8 + 5) + checksum + more


def pairs_of(tensors: Mapping[str, Array], num_shards: int = 1) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Entries in order, and the bytes of each data file; tensors go to the data files in turn."""
    shards = [b""] * num_shards
    pairs = [header(num_shards)]
    for n, (name, array) in enumerate(sorted(tensors.items(), key=lambda item: item[0].encode())):
        raw, shard = array.tobytes(), n % num_shards
        number = NUMBERS[array.dtype.name]
        pairs.append((name.encode(), entry(number, array.shape, len(raw), masked(raw), shard, len(shards[shard]))))
        shards[shard] += raw
    return pairs, shards


def write(
    prefix: Path, tensors: Mapping[str, Array], num_shards: int = 1, per_block: int = 3, restart_interval: int = 2
) -> None:
    """A checkpoint."""
    pairs, shards = pairs_of(tensors, num_shards)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(pairs, per_block, restart_interval))
    for n, raw in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{n:05d}-of-{num_shards:05d}").write_bytes(raw)


def random_variables(n_vocab: int, n_ctx: int, n_embd: int, n_layer: int, seed: int = 0, **_: int) -> dict[str, Array]:
    """OpenAI's variables by name, in OpenAI's shapes; the variance is large enough that each changes the logits."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, center: float = 0.0) -> Array:
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= 0.4
        values += np.float32(center)
        return values

    found = {"model/wte": draw(n_vocab, n_embd), "model/wpe": draw(n_ctx, n_embd)}
    norms = ["ln_f"]
    for layer in range(n_layer):
        norms += [f"h{layer}/ln_1", f"h{layer}/ln_2"]
        for name, rows, columns in (
            ("attn/c_attn", 1, 3),
            ("attn/c_proj", 1, 1),
            ("mlp/c_fc", 1, 4),
            ("mlp/c_proj", 4, 1),
        ):
            found[f"model/h{layer}/{name}/w"] = draw(1, rows * n_embd, columns * n_embd)
            found[f"model/h{layer}/{name}/b"] = draw(columns * n_embd)
    for name in norms:
        found |= {f"model/{name}/g": draw(n_embd, center=1.0), f"model/{name}/b": draw(n_embd)}
    return found


def fill(model: GPT2LMHeadModel, variables: Mapping[str, Array]) -> GPT2LMHeadModel:
    """Puts OpenAI's variables into a model by hand, matrix by matrix, column by column."""
    import torch

    def put(parameter: Any, name: str) -> None:
        value = torch.tensor(variables[f"model/{name}"])
        if value.ndim == 3:  # a convolution of width 1
            value = torch.stack([value[0, :, column] for column in range(value.shape[2])], dim=1)
        assert parameter.shape == value.shape
        parameter.data = value

    body = model.transformer
    put(body.wte.weight, "wte")
    put(body.wpe.weight, "wpe")
    for n, layer in enumerate(body.h):
        for module, name in (
            (layer.ln_1, "ln_1"),
            (layer.ln_2, "ln_2"),
            (layer.attn.c_attn, "attn/c_attn"),
            (layer.attn.c_proj, "attn/c_proj"),
            (layer.mlp.c_fc, "mlp/c_fc"),
            (layer.mlp.c_proj, "mlp/c_proj"),
        ):
            put(module.weight, f"h{n}/{name}/{'g' if 'ln' in name else 'w'}")
            put(module.bias, f"h{n}/{name}/b")
    put(body.ln_f.weight, "ln_f/g")
    put(body.ln_f.bias, "ln_f/b")
    model.tie_weights()
    return model.eval()


def text_files(folder: Path, shape: Mapping[str, int], merges: Iterable[str] = ("t h", "th e", "Ġ the")) -> None:
    """`hparams.json`, and a vocabulary of bytes, merges, fillers and `<|endoftext|>`, `n_vocab` in all."""
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges)]
    tokens += [f"filler{n}" for n in range(shape["n_vocab"] - len(tokens) - 1)] + ["<|endoftext|>"]
    folder.joinpath("hparams.json").write_text(json.dumps(dict(shape)))
    folder.joinpath("encoder.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    folder.joinpath("vocab.bpe").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
