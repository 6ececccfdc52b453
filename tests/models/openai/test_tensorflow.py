"""Checkpoints written by TensorFlow itself, with OpenAI's names: bit-identical tensors, the same logits.

TensorFlow has an environment of its own: `make test-tensorflow`.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
import torch
from bundles import Array
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from multitask.errors import InputError
from multitask.models.openai.bundle import Bundle
from multitask.models.openai.weights import import_openai

tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed; run `make test-tensorflow`")
tf = tensorflow.compat.v1

pytestmark = pytest.mark.slow

# The 124M layout at a twelfth of its width: as many layers, heads and names.
NARROW = {"n_vocab": 600, "n_ctx": 64, "n_embd": 60, "n_head": 12, "n_layer": 12}


def save(prefix: Path, variables: Mapping[str, Any], optimizer: bool = False, **options: Any) -> dict[str, Array]:
    """Saves variables of these names and values with TensorFlow's Saver, and returns their values as it reads them.

    optimizer: one step of Adam is made first, so that its state is in the checkpoint.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        made = {}
        for name, value in variables.items():
            # Fed, not built into the graph, which may have two gigabytes at most.
            initial = tf.zeros(value.shape, tensorflow.as_dtype(value.dtype)) if value.dtype != object else value
            made[name] = tf.get_variable(name, initializer=initial, use_resource=False)
        if optimizer:
            step = tf.train.AdamOptimizer(0.01).minimize(
                tf.add_n([tf.reduce_sum(tf.square(variable)) for variable in made.values()]),
                global_step=tf.train.get_or_create_global_step(),
            )
        session.run(tf.global_variables_initializer())
        for name, value in variables.items():
            if value.dtype != object:
                made[name].load(value, session)
        if optimizer:
            session.run(step)
        tf.train.Saver(**options).save(session, str(prefix), write_meta_graph=False)
        return {variable.op.name: session.run(variable) for variable in tf.global_variables()}


def assert_same(bundle: Bundle, variables: Mapping[str, Array]) -> None:
    """Type, shape and bits."""
    for name, value in variables.items():
        read = bundle.read(name)
        assert (read.dtype, read.shape, read.tobytes()) == (value.dtype, value.shape, value.tobytes()), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """OpenAI's folder after a step of Adam, and its variables."""
    folder = tmp_path_factory.mktemp("openai")
    variables = save(folder / "model.ckpt", bundles.random_variables(**NARROW), optimizer=True)
    bundles.text_files(folder, NARROW)
    return folder, variables


def test_every_tensor_is_equal_to_the_last_bit(trained: tuple[Path, dict[str, Array]]) -> None:
    folder, variables = trained
    bundle = Bundle(folder / "model.ckpt")
    assert bundle.entries.keys() == variables.keys()
    assert "model/h11/mlp/c_proj/w/Adam_1" in variables
    assert (folder / "model.ckpt.index").stat().st_size > 2 * 4096  # several blocks
    assert_same(bundle, variables)


def test_the_folder_has_the_logits_of_a_model_filled_by_hand(
    trained: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    folder, variables = trained
    done = import_openai(folder, tmp_path / "out")
    assert (done.num_tensors, done.num_ignored) == (148, len(variables) - 148)
    config = GPT2Config(
        vocab_size=600, n_positions=64, n_embd=60, n_head=12, n_layer=12, bos_token_id=599, eos_token_id=599
    )
    byhand = bundles.fill(GPT2LMHeadModel(config), variables)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([random.Random(n).choices(range(600), k=64) for n in range(2)])
    with torch.no_grad():
        logits = model(ids).logits
        assert logits.std() > 1
        assert torch.equal(logits, byhand(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the")["input_ids"] == [258 - 1]


def test_the_file_checkpoint_is_read_as_tensorflow_writes_it(tmp_path: Path) -> None:
    """Another prefix, a step in its name, Korean letters, and the folder moved afterwards."""
    (tmp_path / "before").mkdir()
    for step in (1, 2):
        variables = save(tmp_path / "before" / f"모델-{step}", bundles.random_variables(**NARROW, seed=step))
    bundles.text_files(tmp_path / "before", NARROW)
    assert "model_checkpoint_path" in (tmp_path / "before" / "checkpoint").read_text()
    (tmp_path / "before").rename(tmp_path / "after")
    import_openai(tmp_path / "after", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.transformer.wte.weight.detach().numpy().tobytes() == variables["model/wte"].tobytes()


def test_several_data_files_and_other_types(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        name: (rng.standard_normal((3, 2)) * 9).astype(name)
        for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool")
    }
    given |= {"empty": np.zeros((0, 3), "f4"), "scalar": np.array(2.5, "f4")}
    given |= {f"{'deep/' * 60}{n}": np.full((n,), n, "f4") for n in range(1, 90)}
    variables = save(tmp_path / "m", given)
    assert_same(Bundle(tmp_path / "m"), variables)
    shards = [tmp_path / f"part-{n}" for n in range(3)]
    names = sorted(given)
    for n, prefix in enumerate(shards):
        save(prefix, {name: given[name] for name in names[n::3]})
    with tf.Graph().as_default(), tf.Session() as session:
        merge = tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=[str(prefix) for prefix in shards], destination_prefix=str(tmp_path / "merged")
        )
        session.run(merge)
    assert (tmp_path / "merged.data-00002-of-00003").exists()
    assert_same(Bundle(tmp_path / "merged"), variables)


def test_slices_and_strings_are_an_error(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable("cut", [4, 2], partitioner=tf.fixed_size_partitioner(2), use_resource=False)
        tf.get_variable("words", initializer=tf.constant(["a", "bc"]), use_resource=False)
        whole = tf.get_variable("whole", initializer=tf.constant([1.0, 2.0]), use_resource=False)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "m"), write_meta_graph=False)
        expected = session.run(whole)
    bundle = Bundle(tmp_path / "m")
    assert_same(bundle, {"whole": expected})
    with pytest.raises(InputError, match="'cut' is stored in slices"):
        bundle.read("cut")
    with pytest.raises(InputError, match="'words' is of TensorFlow's type number 7"):
        bundle.read("words")


def test_tensorflow_reads_what_the_tests_write(tmp_path: Path) -> None:
    """The tests' own writer, on which all other tests of the reader depend."""
    variables = bundles.random_variables(**NARROW)
    bundles.write(tmp_path / "m", variables, num_shards=2, per_block=7)
    reader = tensorflow.train.load_checkpoint(str(tmp_path / "m"))
    assert reader.get_variable_to_shape_map().keys() == variables.keys()
    for name, value in variables.items():
        assert reader.get_tensor(name).tobytes() == value.tobytes()
