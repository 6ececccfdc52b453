"""OpenAI's checkpoints without TensorFlow: the bundle format, and its conversion to a Hugging Face folder."""

import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
import torch
from bundles import Array, entry, field, header, masked, table, varint
from helpers import ROOT, snippet
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from multitask.errors import InputError
from multitask.models.io import load_causal
from multitask.models.openai import text_files, weights
from multitask.models.openai.bundle import Bundle
from multitask.models.openai.text_files import Shape
from multitask.models.openai.weights import Imported, import_openai

GPT2_FILES = Path(os.environ.get("MULTITASK_DATA") or ROOT.parent / "shared" / "data") / "tokenizer_gpt2"
TINY = {"n_vocab": 270, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2}
SIZES = {  # hparams.json as published, and the number of parameters in transformers
    "124M": (Shape(50257, 1024, 768, 12, 12), 124_439_808),
    "355M": (Shape(50257, 1024, 1024, 16, 24), 354_823_168),
    "774M": (Shape(50257, 1024, 1280, 20, 36), 774_030_080),
    "1558M": (Shape(50257, 1024, 1600, 25, 48), 1_557_611_200),
}


# The bundle.


def some_tensors() -> dict[str, Array]:
    """Names with long common prefixes, all types, no dimension, no elements, and unaligned offsets."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {
        "a": np.array([True, False, True]),
        "global_step": np.array(1234567890123),
        "model/empty": np.zeros((0, 4), "f4"),
        "model/가": np.arange(5, dtype="u1"),
        "model/double": np.array([math.pi, -0.0, np.inf]),
    }
    for n in range(12):
        tensors[f"model/{'h' * 150}{n}/w"] = rng.standard_normal((1, n + 1, 3)).astype("f4")
    return tensors


def assert_equal(bundle: Bundle, tensors: Mapping[str, Array]) -> None:
    """The same names, types, shapes and bits."""
    assert bundle.entries.keys() == tensors.keys()
    for name, array in tensors.items():
        read = bundle.read(name)
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(("per_block", "restart_interval"), [(1, 1), (2, 16), (5, 2), (100, 16), (100, 1)])
def test_reads_what_was_written(tmp_path: Path, num_shards: int, per_block: int, restart_interval: int) -> None:
    tensors = some_tensors()
    bundles.write(tmp_path / "model.ckpt", tensors, num_shards, per_block, restart_interval)
    size = (tmp_path / "model.ckpt.index").stat().st_size
    assert (size < 2000) == (
        per_block == 100 and restart_interval == 16
    )  # long common prefixes are stored once, or not
    bundle = Bundle(tmp_path / "model.ckpt")
    assert_equal(bundle, tensors)
    assert any(found.offset % 4 for name, found in bundle.entries.items() if name.endswith("w"))


def test_writing_to_a_tensor_does_not_change_its_file(tmp_path: Path) -> None:
    bundles.write(tmp_path / "m", {"w": np.ones(3, "f4")})
    Bundle(tmp_path / "m").read("w")[:] = 2
    assert Bundle(tmp_path / "m").read("w").tolist() == [1, 1, 1]


SMALL = {"model/h0/b": np.arange(3, dtype="f4"), "model/h0/w": np.arange(6, dtype="f4").reshape(1, 2, 3)}


def read_all(prefix: Path) -> dict[str, bytes] | None:
    """The bytes of each tensor; None for an InputError that names a file of the checkpoint. Others are not caught."""
    try:
        bundle = Bundle(prefix)
        return {name: bundle.read(name).tobytes() for name in bundle.entries}
    except InputError as error:
        return None if str(prefix) in str(error) else {"not named": b""}


def test_an_index_damaged_at_any_byte_but_its_padding_is_an_error(tmp_path: Path) -> None:
    bundles.write(tmp_path / "m", SMALL, per_block=2)
    path = tmp_path / "m.index"
    whole, right = path.read_bytes(), read_all(tmp_path / "m")
    assert right is not None
    assert len(right) == 2
    rng, harmless = random.Random(0), set()
    for place in range(len(whole)):
        for flip in {1, 0x80, 0xFF, rng.randrange(1, 256), rng.randrange(1, 256)}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            found = read_all(tmp_path / "m")
            assert found in (None, right)
            if found is not None:
                harmless.add(place)
    first_zero = whole.rindex(whole[:-8].rstrip(b"\0")[-1:], 0, -8) + 1
    # The number before the padding may also take one of its zeros as a last, empty, group of bits.
    assert set(range(first_zero, len(whole) - 8)) <= harmless <= set(range(first_zero - 1, len(whole) - 8))
    assert len(harmless) > 20


def test_an_index_truncated_anywhere_is_an_error(tmp_path: Path) -> None:
    bundles.write(tmp_path / "m", SMALL)
    path = tmp_path / "m.index"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_all(tmp_path / "m") is None
    path.write_bytes(whole)
    assert read_all(tmp_path / "m")


def test_damage_with_valid_checksums_is_an_error_or_read(tmp_path: Path) -> None:
    """Blocks changed before their checksum: only InputError, no endless loop, no memory for false sizes."""
    bundles.write(tmp_path / "m", SMALL)
    pairs, _ = bundles.pairs_of(SMALL)
    contents = [bundles.block(pairs, 2), bundles.block([], 1)]
    rng, num_errors, read = random.Random(1), 0, 0
    for _ in range(3000):
        changed = [bytearray(content) for content in contents]
        handles = varint(0) + varint(len(contents[0]))
        changed.append(bytearray(bundles.block([(b"z", handles)], 1)))
        which = changed[rng.choice([0, 0, 0, 1, 2])]
        for _ in range(rng.randint(1, 4)):
            which[rng.randrange(len(which))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        data, places = b"", []
        for content in changed:
            places.append(varint(len(data)) + varint(len(content)))
            data += content + bundles.trailer(bytes(content))
        (tmp_path / "m.index").write_bytes(data + (places[1] + places[2]).ljust(40, b"\0") + bundles.MAGIC)
        if read_all(tmp_path / "m") is None:
            num_errors += 1
        else:
            read += 1
    assert num_errors > 1000
    assert read > 10


def test_data_damaged_or_truncated_anywhere_is_an_error(tmp_path: Path) -> None:
    bundles.write(tmp_path / "m", SMALL)
    path = tmp_path / "m.data-00000-of-00001"
    whole, rng = path.read_bytes(), random.Random(2)
    for place in range(len(whole)):
        name = "model/h0/b" if place < 12 else "model/h0/w"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ rng.randrange(1, 256)]) + whole[place + 1 :])
        with pytest.raises(
            InputError, match=rf"{path}: damaged: the checksum of tensor '{name}' is 0x\w+, expected 0x"
        ):
            Bundle(tmp_path / "m").read(name)
        path.write_bytes(whole[:place])
        with pytest.raises(
            InputError, match=rf"{path}: truncated: {place} bytes, expected at least \d+, .*'{name}' ends"
        ):
            Bundle(tmp_path / "m").read(name)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path}: cannot be read .No such file.*'model/h0/b' is in it"):
        Bundle(tmp_path / "m").read("model/h0/b")


def one(**changes: Any) -> list[tuple[bytes, bytes]]:
    """An index of one tensor of eight bytes, changed."""
    given: dict[str, Any] = {"dtype": 1, "shape": (2,), "size": 8, "checksum": masked(bytes(8))}
    return [header(), (b"w", entry(**given | changes))]


def made_of(content: bytes, *handles: bytes) -> bytes:
    """An index of one block of entries, and a table of blocks that names it, or others."""
    data = content + bundles.trailer(content)
    named = enumerate(handles or [varint(0) + varint(len(content))])
    places = []
    for more in (bundles.block([], 1), bundles.block([(bytes([n + 1]), handle) for n, handle in named], 1)):
        places.append(varint(len(data)) + varint(len(more)))
        data += more + bundles.trailer(more)
    return data + b"".join(places).ljust(40, b"\0") + bundles.MAGIC


BLOCK = bundles.block(one(), 1)
HANDLE = varint(0) + varint(len(BLOCK))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (table([header(endianness=1)]), "big-endian; only little-endian"),
        (table([header(min_consumer=2)]), "needs a reader of version 2; this one has 1"),
        (table(one(), compression=1), r"compressed \(snappy\); only uncompressed"),
        (table(one(), compression=7), r"compressed \(number 7\)"),
        (table(one()[1:]), "its first entry is not the header"),
        (table([]), "its first entry is not the header"),
        (table([header(), one()[1], (b"v", one()[1][1])]), "entry 'v' is out of order"),
        (table([header(), one()[1], one()[1]]), "entry 'w' is out of order"),
        (made_of(BLOCK, HANDLE, HANDLE), "the block at byte 0 overlaps"),
        (made_of(BLOCK, varint(0) + varint(10_000)), "a block of 10000 bytes at byte 0 does not fit into the file"),
        (made_of(BLOCK, varint(1) + varint(len(BLOCK))), r"checksum of the block at byte 1 is 0x\w{8}, expected 0x"),
        (made_of(BLOCK[:-1] + b"\x10"), "counts 268435458 restarts"),
        (made_of(b"\x05\x01\x00x" + bytes(4)), "the entry after '' does not fit into its block"),
        (made_of(b"\x00\x01\x09x" + bytes(4)), "the entry after '' does not fit into its block"),
        (table(one(more=field(7, b""))), "tensor 'w' is stored in slices, expected whole"),
        (table(one(dtype=7)), "tensor 'w' is of TensorFlow's type number 7"),
        (table(one(dtype=2)), r"tensor 'w' has 8 bytes, expected 16 for float64 of shape \(2,\)"),
        (table(one(shape=(2**62,), size=2**63)), "tensor 'w' has the impossible shape"),
        (table(one(shape=(0, 2**60), size=0)), "tensor 'w' has the impossible shape"),
        (table(one(shape=(1,) * 40)), "tensor 'w' has the impossible shape"),
        (table(one(shape=(2**40,), size=2**42)), "truncated: 8 bytes, expected at least 4398046511104"),
        (table(one(offset=2**63)), "truncated: 8 bytes"),
        (table(one(shard=1)), "tensor 'w' is in data file number 1, expected one below 1"),
        (table([header(num_shards=2**63), one()[1]]), "data-00000-of-9223372036854775808: cannot be read"),
        (table([header(), (b"w", field(1, b"text"))]), "text where a number is expected"),
        (table([header(), (b"w", field(2, 5))]), "a number where a message is expected"),
        (table([header(), (b"w", b"\x0b")]), "a field of unknown kind 3"),
        (table([header(), (b"w", b"\x12\x7f")]), "a message is truncated"),
        (table([header(), (b"w", b"\x08" + b"\xff" * 10)]), "a number is truncated or has more than 64 bits"),
        (table([header(), (b"w" * 5000, one()[1][1])]), "the entry after '' does not fit"),
        (b"", "does not end with the magic number"),
        (b"\0" * (2**26 + 1), "more than 67108864 bytes"),
    ],
)
def test_errors_of_the_index(tmp_path: Path, index: bytes, message: str) -> None:
    (tmp_path / "m.index").write_bytes(index)
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(8))
    with pytest.raises(InputError, match=rf"{tmp_path}.*{message}.*[;:] (copy|save|put)"):
        Bundle(tmp_path / "m").read("w")


def test_tensors_that_are_not_read_may_be_unsupported(tmp_path: Path) -> None:
    pairs = [header(), (b"s", entry(7, (), 3, b"1234")), (b"t\xff", entry(1, (9,), 0, b"1234", more=field(7, b"")))]
    (tmp_path / "m.index").write_bytes(table([*pairs, (b"w", one()[1][1])]))
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(8))
    bundle = Bundle(tmp_path / "m")
    assert list(bundle.entries) == ["s", "t\\xff", "w"]
    assert bundle.read("w").tolist() == [0, 0]


# The model.


def folder_of(path: Path, shape: Mapping[str, int], extra: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """OpenAI's folder, of random weights; returns them."""
    path.mkdir(exist_ok=True)
    variables = bundles.random_variables(**shape)
    bundles.write(path / "model.ckpt", variables | dict(extra or {}), per_block=9)
    bundles.text_files(path, shape)
    (path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n')
    return variables


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder_of(tmp_path / "117M", TINY)
    return tmp_path / "117M"


def config(shape: Mapping[str, int]) -> GPT2Config:
    return GPT2Config(
        vocab_size=shape["n_vocab"],
        n_positions=shape["n_ctx"],
        n_embd=shape["n_embd"],
        n_head=shape["n_head"],
        n_layer=shape["n_layer"],
    )


def forward(variables: Mapping[str, Array], shape: Mapping[str, int], ids: list[int]) -> Array:
    """Logits (T, V) in float64 as in OpenAI's code, without transformers."""
    v = {name.removeprefix("model/"): value.astype("f8").squeeze() for name, value in variables.items()}

    def norm(x: Array, name: str) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * v[f"{name}/g"] + v[f"{name}/b"]

    def linear(x: Array, name: str) -> Array:
        return x @ v[f"{name}/w"] + v[f"{name}/b"]

    x = v["wte"][ids] + v["wpe"][: len(ids)]
    width = shape["n_embd"] // shape["n_head"]
    for n in range(shape["n_layer"]):
        query, key, value = np.split(linear(norm(x, f"h{n}/ln_1"), f"h{n}/attn/c_attn"), 3, axis=-1)
        heads = []
        for start in range(0, shape["n_embd"], width):
            q, k, w = (part[:, start : start + width] for part in (query, key, value))
            score = np.where(np.tri(len(ids)) > 0, q @ k.T / math.sqrt(width), -np.inf)
            attention = np.exp(score - score.max(-1, keepdims=True))
            heads.append(attention / attention.sum(-1, keepdims=True) @ w)
        x = x + linear(np.concatenate(heads, -1), f"h{n}/attn/c_proj")
        h = linear(norm(x, f"h{n}/ln_2"), f"h{n}/mlp/c_fc")
        h = h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"h{n}/mlp/c_proj")
    logits: Array = norm(x, "ln_f") @ v["wte"].T
    return logits


def test_the_folder_gives_the_logits_and_ids_of_the_checkpoint(tmp_path: Path) -> None:
    steps = {"beta1_power": np.array(0.9, "f4"), "model/wte/Adam": np.zeros((270, 8), "f4"), "step": np.array(3)}
    variables = folder_of(tmp_path / "in", TINY, steps)
    done = import_openai(tmp_path / "in", tmp_path / "new" / "out")
    assert done == Imported(28, sum(value.size for value in variables.values()), 3, Shape(**TINY))
    ids = random.Random(0).choices(range(270), k=16)
    byhand = bundles.fill(GPT2LMHeadModel(config(TINY)), variables)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "out").eval()
    ours, tokenizer = load_causal(str(tmp_path / "new" / "out"))
    assert isinstance(model, GPT2LMHeadModel)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.transformer.wte.weight
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
        assert torch.equal(logits, byhand(torch.tensor([ids])).logits[0])
        assert torch.equal(logits, ours.eval()(torch.tensor([ids])).logits[0])
    expected = forward(variables, TINY, ids)
    assert np.ptp(expected) > 5  # a large range, so that an exchanged matrix changes the logits visibly
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)  # float32 against float64
    auto = AutoTokenizer.from_pretrained(tmp_path / "new" / "out")
    text = "the 고양이 then\n<|endoftext|> the"
    assert auto(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert auto.decode(auto(text)["input_ids"]) == text
    assert auto.convert_ids_to_tokens(auto("the the")["input_ids"]) == ["the", "Ġthe"]
    assert (auto.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id) == (269, 269, 269)
    assert (model.config.activation_function, auto.model_max_length) == ("gelu_new", 32)


def test_the_snippet_of_the_card_runs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import_openai(source, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    exec(snippet(tmp_path / "out").replace("max_new_tokens=20", "max_new_tokens=2"), {})
    assert capsys.readouterr().out.startswith("Every effort moves")


def test_weights_are_bit_identical(source: Path, tmp_path: Path) -> None:
    variables = bundles.random_variables(**TINY)
    odd = variables["model/wte"].view("u4")
    odd[0, :4] = [0x7FC00001, 0x80000000, 0x00000001, 0xFF800000]  # NaN with a payload, -0, the smallest, -inf
    bundles.write(source / "model.ckpt", variables, num_shards=2)
    import_openai(source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.transformer.wte.weight.detach().numpy().view("u4").tolist() == odd.tolist()
    weight = model.transformer.h[1].attn.c_attn.weight.detach().numpy()
    assert weight.tobytes() == variables["model/h1/attn/c_attn/w"].tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_of_every_published_size(size: str) -> None:
    shape, num_parameters = SIZES[size]
    variables = weights.variables_of(shape)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config(vars(shape)))
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}  # the tied head once
    assert {key: size[-2:] if len(size) == 3 else size for key, size in variables.values()} == theirs
    assert all(size[0] == 1 for _, size in variables.values() if len(size) == 3)
    assert sum(math.prod(size) for _, size in variables.values()) == num_parameters


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('model_checkpoint_path: "model.ckpt"', "model.ckpt"),
        ('\n  model_checkpoint_path:"/gone/place/model-5"\n', "model-5"),
        ('all_model_checkpoint_paths: "b"\nmodel_checkpoint_path: "C:\\\\runs\\\\a.b"\n', "a.b"),
        (r'model_checkpoint_path: "\352\260\200"', "가"),
        ('model_checkpoint_path: "가"', "가"),
    ],
)
def test_the_file_checkpoint_names_the_checkpoint(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / "other.index").touch()
    (tmp_path / "checkpoint").write_text(content, "utf-8")
    assert text_files.find_prefix(tmp_path) == tmp_path / name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"model.ckpt",
        b'model_checkpoint_path: ""',
        b'model_checkpoint_path: "a/.."',
        b'model_checkpoint_path: "a\\000"',
        b'model_checkpoint_path: "\\377"',
        b'model_checkpoint_path: "\xff"',
        b'model_checkpoint_path: "a',
        b"\n" * 100_000,
    ],
)
def test_a_file_checkpoint_without_a_name_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(InputError, match=rf"{tmp_path}/checkpoint: no line .*; write that line"):
        text_files.find_prefix(tmp_path)


def test_without_the_file_checkpoint_the_only_index_is_used(source: Path, tmp_path: Path) -> None:
    (source / "checkpoint").unlink()
    assert text_files.find_prefix(source) == source / "model.ckpt"
    import_openai(source, tmp_path / "out")
    (source / "model-7.index").touch()
    with pytest.raises(InputError, match=r"117M: no file `checkpoint`, .* found model-7\.index, model\.ckpt\.index"):
        import_openai(source, tmp_path / "out2")
    with pytest.raises(InputError, match=r"found none; name the folder"):
        text_files.find_prefix(tmp_path / "nowhere")


def nothing_written(tmp_path: Path, out: str = "out") -> bool:
    """Whether the folder has no output, not even hidden."""
    return not (tmp_path / out).exists() and not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_other_shapes_is_an_error_with_the_names(source: Path, tmp_path: Path) -> None:
    variables = bundles.random_variables(**TINY)
    del variables["model/h1/mlp/c_fc/b"]
    variables["model/ln_f/g"] = np.ones(9, "f4")
    variables["model/h0/attn/c_attn/w"] = variables["model/h0/attn/c_attn/w"][0]
    variables["model/h0/ln_1/b"] = np.ones(8)
    variables["model/h2/ln_1/b"] = np.ones(8, "f4")
    bundles.write(source / "model.ckpt", variables)
    with pytest.raises(InputError) as caught:
        import_openai(source, tmp_path / "out")
    assert str(caught.value) == (
        f"{source}/model.ckpt.index: not the model that {source}/hparams.json describes: 'model/h1/mlp/c_fc/b' is "
        "missing; 'model/h0/attn/c_attn/w' has shape (8, 24), expected (1, 8, 24); 'model/h0/ln_1/b' is of type <f8, "
        "expected float32; 'model/h2/ln_1/b' is not a variable of this model; 'model/ln_f/g' has shape (9,), expected "
        "(8,); use files that were published together"
    )
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 3}, "'model/h2/ln_1/g' is missing; .*; and 7 more; use files"),
        ({"n_layer": 1}, "'model/h1/attn/c_attn/b' is not a variable of this model; .*; and 7 more"),
        ({"n_layer": 2**30}, r"hparams\.json: n_layer is 1073741824, but .*index has 28 tensors"),
        ({"n_embd": 16}, r"has shape \(24,\), expected \(48,\)"),
        ({"n_ctx": 17}, r"'model/wpe' has shape \(32, 8\), expected \(17, 8\)"),
        ({"n_vocab": 271}, r"encoder\.json: 270 tokens, expected 271, n_vocab of .*hparams\.json"),
        ({"n_head": 3}, "n_embd is 8, expected a multiple of n_head, which is 3"),
        ({"n_head": 0}, "n_head is 0; expected whole numbers"),
        ({"n_head": -2, "n_ctx": True}, "n_ctx is True, n_head is -2; expected whole numbers"),
        ({"n_embd": 8.0, "n_layer": "2"}, "n_embd is 8.0, n_layer is '2'; expected"),
        ({"n_embd": 2**31}, "n_embd is 2147483648; expected"),
        ({"n_vocab": None}, "n_vocab is missing; expected"),
    ],
)
def test_hparams_that_do_not_match_are_an_error(
    source: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {name: value for name, value in (TINY | changes).items() if value is not None}
    (source / "hparams.json").write_text(json.dumps(given))
    with pytest.raises(InputError, match=message):
        import_openai(source, tmp_path / "out")
    assert nothing_written(tmp_path)


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Changes a JSON file of the folder."""

    def edited(source: Path) -> None:
        given = json.loads((source / name).read_text())
        change(given)
        (source / name).write_text(json.dumps(given))

    return edited


def put(name: str, content: bytes) -> Callable[[Path], Any]:
    """Replaces a file of the folder."""
    return lambda source: (source / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda source: (source / "hparams.json").unlink(), r"hparams\.json: cannot be read \(No such file"),
        (lambda source: (source / "encoder.json").unlink(), r"encoder\.json: cannot be read \(No such file"),
        (lambda source: (source / "vocab.bpe").unlink(), r"vocab\.bpe: cannot be read \(No such file"),
        (lambda source: (source / "model.ckpt.index").unlink(), r"model\.ckpt\.index: cannot be read \(No such file"),
        (put("hparams.json", b'{"n_vocab": 1,\n'), r"hparams\.json:2: not JSON"),
        (put("hparams.json", b"[1]"), r"hparams\.json: expected a mapping, found list"),
        (put("hparams.json", b"[" * 100_000), r"hparams\.json: not JSON that can be read"),
        (put("hparams.json", b'{"n_vocab": ' + b"9" * 5000 + b"}"), r"hparams\.json: not JSON that can be read"),
        (put("encoder.json", b"\n\xff"), r"encoder\.json:2: not UTF-8"),
        (edit("encoder.json", lambda v: v.update(filler0="x")), "'filler0' has the id 'x', expected one of 0 to 269 "),
        (edit("encoder.json", lambda v: v.update(filler0=True)), "'filler0' has the id True"),
        (edit("encoder.json", lambda v: v.update(filler0=-1)), "'filler0' has the id -1"),
        (edit("encoder.json", lambda v: v.update(filler0=270)), "'filler0' has the id 270"),
        (edit("encoder.json", lambda v: v.update(filler0=5)), "'filler0' has the id 5, .* that no other token has"),
        (edit("encoder.json", lambda v: v.update({"": v.pop("filler0")})), "token '' is not written in GPT-2's 256"),
        (edit("encoder.json", lambda v: v.update({"a b": v.pop("filler0")})), "token 'a b' is not written"),
        (edit("encoder.json", lambda v: v.update({"\ud800": v.pop("filler0")})), r"token '\\ud800' is not written"),
        (edit("encoder.json", lambda v: v.update(filler=v.pop("Ġ"))), "1 tokens that .* are missing: 'Ġ'"),
        (edit("encoder.json", lambda v: v.update(filler=v.pop("<|endoftext|>"))), "missing: '<|endoftext|>'"),
        (edit("encoder.json", lambda v: v.pop("the")), "269 tokens, expected 270"),
        (edit("encoder.json", lambda v: v.update(filler=v.pop("the"))), r"vocab\.bpe:3: 'th e' is not a merge"),
        (put("vocab.bpe", b"#version: 0.2\nt h\nth\n"), r"vocab\.bpe:3: 'th' is not a merge; expected two tokens"),
        (put("vocab.bpe", b"t h e\n"), r"vocab\.bpe:1: 't h e' is not a merge"),
        (put("vocab.bpe", b"t h\n\nt  h"), r"vocab\.bpe:3: 't  h' is not a merge"),
        (put("vocab.bpe", b"#version: 0.2\nt h\n#version: 0.2\n"), r"vocab\.bpe:3: '#version: 0\.2' is not a merge"),
        (put("vocab.bpe", b"t h\n\xc4\n"), r"vocab\.bpe:2: not UTF-8"),
    ],
)
def test_text_files_that_do_not_match_are_an_error(
    source: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(source)
    with pytest.raises(InputError, match=message) as caught:
        import_openai(source, tmp_path / "out")
    assert str(caught.value).startswith(str(source))
    assert re.search("(copy|use the file|expected whole)", str(caught.value))
    assert nothing_written(tmp_path)


def test_windows_line_ends_and_a_byte_order_mark_are_read(source: Path, tmp_path: Path) -> None:
    for name in ("encoder.json", "hparams.json", "vocab.bpe"):
        raw = (source / name).read_bytes()
        (source / name).write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
    import_openai(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer("the the")["input_ids"]) == ["the", "Ġthe"]


@pytest.mark.parametrize("name", ["checkpoint", "encoder.json", "hparams.json", "vocab.bpe"])
def test_a_text_file_damaged_anywhere_is_an_error_or_read(source: Path, tmp_path: Path, name: str) -> None:
    whole, rng, num_errors = (source / name).read_bytes(), random.Random(3), 0
    for n in range(60):
        place = rng.randrange(len(whole))
        kept = whole[place + 1 :] if n % 3 else b""
        (source / name).write_bytes(whole[:place] + bytes([rng.randrange(256)]) * (n % 2) + kept)
        try:
            import_openai(source, tmp_path / "out")
        except InputError:
            num_errors += 1
            assert nothing_written(tmp_path)
        else:
            shutil.rmtree(tmp_path / "out")
    assert num_errors > 10


def test_nothing_is_written_for_damaged_weights(source: Path, tmp_path: Path) -> None:
    path = source / "model.ckpt.data-00000-of-00001"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="the checksum of tensor 'model/wte' is"):
        import_openai(source, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_nothing_is_written_on_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "from_template", full)  # the last thing that is written
    with pytest.raises(InputError, match=r"out: cannot be written \(.*No space left.*nothing was written: free some"):
        import_openai(source, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_an_existing_folder_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    import_openai(source, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "file"):
        with pytest.raises(InputError, match=rf"{tmp_path}/{name}: exists already; expected a new name"):
            import_openai(source, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not GPT2_FILES.is_dir(), reason=f"no {GPT2_FILES}; set MULTITASK_DATA")
def test_the_published_vocabulary_gives_the_published_ids(tmp_path: Path) -> None:
    shape = {"n_vocab": 50257, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 1}
    folder_of(tmp_path / "in", shape)
    shutil.copy(GPT2_FILES / "vocab.json", tmp_path / "in" / "encoder.json")
    shutil.copy(GPT2_FILES / "merges.txt", tmp_path / "in" / "vocab.bpe")
    import_openai(tmp_path / "in", tmp_path / "out")
    model, ours = load_causal(str(tmp_path / "out"))
    for tokenizer in (ours, AutoTokenizer.from_pretrained(tmp_path / "out")):
        assert tokenizer("every effort moves")["input_ids"] == [16833, 3626, 6100]
        ids = tokenizer("The quick brown fox jumps over the lazy dog")["input_ids"]
        assert ids == [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290]
        assert (len(tokenizer), tokenizer.eos_token_id, tokenizer("<|endoftext|>")["input_ids"]) == (
            50257,
            50256,
            [50256],
        )
    assert (model.config.eos_token_id, model.config.bos_token_id) == (50256, 50256)
