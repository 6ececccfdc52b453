import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FACTS, FOLDER, ROOT, TINY, files, learned, python, settings, snippet, untrained
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from multitask import train
from multitask.config.model import AdapterConfig, ModelConfig
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.inference.decoding import generate
from multitask.models import build, cards, io
from multitask.models import lora as models_lora
from multitask.models.lora import plain_model
from multitask.pattern import markers
from multitask.registry import choose, load_tasks
from multitask.task import END, PAD
from multitask.tokenization.row_encoder import RowEncoder
from multitask.tokenization.tokenizer import add_markers, load_tokenizer
from multitask.training import loop

TASKS = choose(load_tasks(), ["qa", "nli"])
QA = choose(load_tasks(), ["qa"])
TEXTS = ["The cat has a red hat. What has the cat?", "고양이는 빨간 모자가 있습니다.", *(str(row) for row in FACTS)] * 4
GPT2_FILES = Path(os.environ.get("MULTITASK_DATA") or ROOT.parent / "shared" / "data") / "tokenizer_gpt2"


def save_gpt2(folder: Path, num_rows: int, seed: int = 0, **config: Any) -> None:
    """A GPT-2 of another source, with weights large enough to be distinguished."""
    torch.manual_seed(seed)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": num_rows}
    made = GPT2LMHeadModel(GPT2Config(**{**shape, "bos_token_id": 0, "eos_token_id": 0, **config}))
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def base() -> Path:
    """A pretrained GPT-2 with a byte-level tokenizer of its own, whose `<|endoftext|>` is bos, eos and unk."""
    folder = FOLDER / "base"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    roles = {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    save_gpt2(folder, tokenizer.get_vocab_size())
    return folder


@pytest.fixture(scope="module")
def korean() -> Path:
    """A model like KoGPT2: SentencePiece-like BPE in `tokenizer.json`, a config of type gpt2, nothing else."""
    folder = FOLDER / "korean"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["</s>", "<pad>", "<unk>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    save_gpt2(folder, tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def built(name: Path, tasks: Any = TASKS) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[int]]:
    return build.build(ModelConfig(name=str(name)), tasks, iter(()), 7)


def rows_of(task: str) -> Iterator[Row]:
    fields = {
        "qa": {"context": "고양이 Ada has a hat.", "question": "What has Ada?", "answer": "a hat"},
        "nli": {"premise": "Ada has a hat.", "hypothesis": "고양이 a hat.", "label": "neutral"},
        "gen": {"label": "good", "text": "A hat is red."},
        "cls": {"text": "A hat is 빨간.", "label": "good"},
        "summ": {"document": "Ada has a hat. Ben has a boat.", "summary": "Both have."},
    }[task]
    yield Row("1", fields, (), "en", (), (), None, "here:1")


# ---------------------------------------------------------------- a pretrained base


def test_markers_are_added_to_a_pretrained_model(base: Path) -> None:
    ours, tokenizer, new_ids = built(base)
    old = GPT2LMHeadModel.from_pretrained(base).get_input_embeddings().weight
    rows = ours.get_input_embeddings().weight
    assert new_ids == list(range(len(old), len(rows)))
    assert tokenizer.convert_ids_to_tokens(new_ids) == markers(TASKS)
    assert ours.lm_head.weight is rows
    assert torch.equal(rows[: len(old)], old)
    # The mean of the old rows plus noise with the initialiser's standard deviation, no two equal.
    noise = rows[len(old) :] - old.mean(0)
    assert 0.01 < float(noise.detach().std()) < 0.04
    assert len({tuple(row) for row in noise.tolist()}) == len(new_ids)


def test_end_and_pad_are_eos_and_pad(base: Path) -> None:
    before = AutoTokenizer.from_pretrained(base)
    ours, tokenizer, _ = built(base)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    for config in (ours.config, ours.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    # The base's eos is still a special token with its id, and still bos.
    assert before.eos_token == tokenizer.bos_token == "<|endoftext|>"
    ids = tokenizer("a<|endoftext|>b", add_special_tokens=False)["input_ids"]
    assert ids[1] == before.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_start_is_bos_only_where_there_is_none(base: Path) -> None:
    gen = choose(load_tasks(), ["gen"])
    assert built(base, gen)[1].bos_token == "<|endoftext|>"
    assert build.build(ModelConfig(**TINY), gen, TEXTS, 7)[1].bos_token == "<|start|>"


def test_unused_rows_of_a_base_are_new_too(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    save_gpt2(tmp_path, 500)  # a vocabulary that is rounded up, as in many bases
    ours, tokenizer, new_ids = built(tmp_path)
    assert ours.config.vocab_size == 500
    assert new_ids == tokenizer.convert_tokens_to_ids(markers(TASKS))


def test_another_activation_is_the_same_function(base: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(base).eval()
    assert theirs.config.activation_function == "gelu_new"
    ours = built(base)[0].eval()
    assert ours.config.activation_function == "gelu_pytorch_tanh"
    ids = torch.arange(60).view(2, 30)
    num_old = theirs.config.vocab_size
    with torch.no_grad():  # the same formula in one kernel: float32 rounding alone
        torch.testing.assert_close(ours(ids).logits[..., :num_old], theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_dropout_is_that_of_the_settings(base: Path) -> None:
    config = build.build(ModelConfig(name=str(base), dropout=0.25), TASKS, iter(()), 7)[0].config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.25, 0.25, 0.25)


# ---------------------------------------------------------------- tokenizers


def test_a_korean_tokenizer_is_read_from_its_file(korean: Path, tmp_path: Path) -> None:
    text = "고양이는 빨간 모자가 있습니다."
    truth = Tokenizer.from_file(str(korean / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(korean)(text)["input_ids"] != truth, "transformers loads it correctly now"
    tokenizer = load_tokenizer(str(korean))
    assert tokenizer(text)["input_ids"] == truth
    assert tokenizer.decode(truth) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("</s>", "</s>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<pad>", "<unk>")
    # What we save of it is loaded correctly by plain transformers.
    ours, tokenizer, _ = built(korean)
    io.save(ours, tokenizer, tmp_path, TASKS, {})
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text, add_special_tokens=False)["input_ids"] == truth
    assert (again.eos_token, again.pad_token) == (END, PAD)


@pytest.mark.skipif(not GPT2_FILES.exists(), reason=f"GPT-2's own BPE files are not at {GPT2_FILES}")
def test_gpt2_gives_its_published_ids() -> None:
    tokenizer = load_tokenizer(str(GPT2_FILES))
    golden = {  # measured on OpenAI's released vocabulary
        "every effort moves": [16833, 3626, 6100],
        "I really like": [40, 1107, 588],
        "The quick brown fox jumps over the lazy dog": [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290],
    }
    for text, ids in golden.items():
        assert tokenizer(text)["input_ids"] == ids
    verdict = (GPT2_FILES.parent / "lm_en_the-verdict.txt").read_text("utf-8").removesuffix("\n")
    assert (len(verdict), len(tokenizer(verdict)["input_ids"])) == (20479, 5145)
    add_markers(tokenizer, markers(TASKS))
    assert tokenizer("I really like<|end|>")["input_ids"] == [40, 1107, 588, tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", ["trained here", "base", "korean"])
@pytest.mark.parametrize("name", ["gen", "summ", "nli", "qa", "cls"])
def test_the_cards_prompt_is_what_was_trained(kind: str, name: str, request: pytest.FixtureRequest) -> None:
    tasks = choose(load_tasks(), [name])
    config = ModelConfig(**TINY) if kind == "trained here" else ModelConfig(name=str(request.getfixturevalue(kind)))
    _, tokenizer, _ = build.build(config, tasks, TEXTS, 7)
    (row,) = rows_of(name)
    (example,) = RowEncoder(tasks[name], tokenizer, 128).encode([row])
    assert example is not None
    card = cards.card(tasks, {name: row.fields})
    prompt = card.split("inputs = tokenizer(")[1].split(", return_tensors")[0]
    assert tokenizer(eval(prompt))["input_ids"] == example.input_ids[: example.num_prompt]


def test_a_tokenizer_that_encodes_text_after_a_marker_differently_is_an_error(korean: Path, tmp_path: Path) -> None:
    shutil.copytree(korean, tmp_path, dirs_exist_ok=True)
    tokenizer = Tokenizer.from_file(str(korean / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="reads text after a special token otherwise"):
        built(tmp_path)


# ---------------------------------------------------------------- errors


def test_an_unknown_folder_names_the_nearest(base: Path) -> None:
    with pytest.raises(InputError, match=r"bose: no such folder; did you mean '.*base'\?"):
        built(base.parent / "bose")


def test_a_folder_without_safetensors_says_what_to_do(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no model could be loaded .*save_pretrained"):
        built(tmp_path)
    with pytest.raises(InputError, match=r"no model could be loaded .*save_pretrained"):
        io.load_trained(tmp_path)


def test_a_folder_without_anything_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run or model folder \(no config.json\); folders in it: none"):
        built(tmp_path)


# ---------------------------------------------------------------- LoRA


def lora(base: Path | str, out: Path, monkeypatch: pytest.MonkeyPatch, **adapter: Any) -> Any:
    """A run with LoRA on six rows; returns the model as it was when training ended."""
    finished = []
    load_best = loop.Loop.load_best

    def spy(self: loop.Loop) -> None:
        load_best(self)
        finished.append(self.model)

    monkeypatch.setattr(loop.Loop, "load_best", spy)
    source = files(out.parent / "facts", train=FACTS, validation=FACTS, test=FACTS)
    given = settings(
        "qa",
        data={"sources": {"qa": [source]}},
        model={"name": str(base)},
        adapter={"kind": "lora", **adapter},
        train={"max_steps": 25, "learning_rate": 2e-2, "batch_tokens": 256, "eval_every_steps": 25},
    )
    finished.append(train(given, out=out))
    return finished[0]


@pytest.fixture(scope="module")
def adapted(base: Path) -> Iterator[tuple[Path, Any]]:
    """A run folder with an adapter, and the PEFT model it was written from."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield FOLDER / "lora" / "run", lora(base, FOLDER / "lora" / "run", monkeypatch)


def logits(of: Any) -> torch.Tensor:
    """Of the last ids, the new ones among them."""
    num_rows = plain_model(of).config.vocab_size
    with torch.no_grad():
        found: torch.Tensor = of.eval()(torch.arange(num_rows - 60, num_rows).view(2, 30)).logits
    return found


def test_lora_at_the_start_is_its_base(base: Path) -> None:
    ours, _, new_ids = built(base)
    before = logits(ours)
    wrapped = models_lora.add_lora(ours, AdapterConfig(kind="lora"), new_ids)
    torch.testing.assert_close(logits(wrapped), before, atol=1e-6, rtol=0)


def test_lora_trains_only_updates_and_new_rows(base: Path, adapted: tuple[Path, Any]) -> None:
    _, finished = adapted
    before, _, new_ids = built(base, QA)
    old = before.config.vocab_size - len(new_ids)
    plain = finished.get_base_model()
    trained = {name for name, p in finished.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trained)
    wrapped = (".base_layer", ".original_module", ".token_adapter")
    frozen = {re.sub("|".join(wrapped), "", n): p for n, p in plain.named_parameters() if not p.requires_grad}
    own = dict(before.named_parameters())
    assert frozen.keys() == own.keys()
    for name, value in frozen.items():
        assert torch.equal(value, own[name]), name
    # All new rows have changed, and the tied head uses them.
    merged = plain.transformer.wte.token_adapter.get_merged_weights(["default"])
    assert torch.equal(merged[:old], own["transformer.wte.weight"][:old])
    moved = (merged[old:] - own["transformer.wte.weight"][old:]).abs().amax(1)
    assert bool((moved > 1e-3).all())
    with torch.no_grad():
        ids = torch.arange(20).view(1, 20)
        hidden = plain.transformer(ids).last_hidden_state
        torch.testing.assert_close(plain(ids).logits, hidden @ merged.T, atol=1e-5, rtol=1e-5)


def test_merged_is_unmerged(base: Path, adapted: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run, finished = adapted
    out = FOLDER / "lora" / "merged"
    lora(base, out, monkeypatch, merge=True)
    assert not (out / "model" / "adapter_config.json").exists()
    assert not (out / "base").exists(), "a plain model needs no base"
    unmerged, merged = (json.loads((f / "results.json").read_text())["cost"] for f in (run, out))
    assert merged["trainable_parameters"] == unmerged["trainable_parameters"] > 0
    plain = AutoModelForCausalLM.from_pretrained(out / "model")
    assert float((logits(plain) - logits(built(base, QA)[0])).abs().max()) > 0.1, "training changed nothing"
    torch.testing.assert_close(logits(plain), logits(finished), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(io.load_trained(run)[0]), logits(finished), atol=1e-5, rtol=1e-5)


def test_a_moved_run_finds_its_base(adapted: tuple[Path, Any], tmp_path: Path) -> None:
    run, finished = adapted
    shutil.copytree(run, tmp_path / "moved")
    shutil.move(run, tmp_path / "away")
    try:
        moved, _ = io.load_trained(tmp_path / "moved")
    finally:
        shutil.move(tmp_path / "away", run)
    torch.testing.assert_close(logits(moved), logits(finished), atol=1e-5, rtol=1e-5)


_MOVED = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM
run, ids = sys.argv[1], torch.arange(int(sys.argv[2])).view(2, -1)
exec(sys.argv[3].replace("moved/run", run))
print(model(ids).logits.sum().item())
import os
os.chdir(run + "/model")  # the base is named relative to the adapter's folder
print(AutoPeftModelForCausalLM.from_pretrained(".")(ids).logits.sum().item())
print(len(AutoTokenizer.from_pretrained(".")) == model.get_input_embeddings().weight.shape[0])
code = open("README.md", encoding="utf-8").read().split("```python\\n")[1].split("```")[0]
os.chdir("/")
exec(code.replace('FOLDER = "."', f'FOLDER = "{run}/model"'))
assert not any(name.startswith("multitask") for name in sys.modules)
"""


def test_a_moved_run_is_loaded_by_transformers_and_peft_alone(adapted: tuple[Path, Any], tmp_path: Path) -> None:
    run, finished = adapted
    named = json.loads((run / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "../base"
    assert str(run) not in "".join(p.read_text("utf-8") for p in run.glob("model/*") if p.suffix in (".json", ".md"))
    pages = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text("utf-8"), re.DOTALL)
    (documented,) = [code for code in pages if "PeftModel" in code]
    shutil.copytree(run, tmp_path / "moved")
    shutil.move(run, tmp_path / "away")
    try:
        done = python(_MOVED, str(tmp_path / "moved"), "40", documented, cwd=tmp_path)
    finally:
        shutil.move(tmp_path / "away", run)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, fits, answer = done.stdout.splitlines()
    with torch.no_grad():
        expected = float(finished.eval()(torch.arange(40).view(2, -1)).logits.sum())
    assert float(first) == float(second) == pytest.approx(expected, abs=0.05)
    assert fits == "True"
    assert answer


def test_a_copied_run_uses_its_own_base(adapted: tuple[Path, Any], tmp_path: Path) -> None:
    """At the path where the adapter was trained there may be another run."""
    run, finished = adapted
    shutil.copytree(run, tmp_path / "copy")
    shutil.copytree(run, tmp_path / "kept")
    try:
        save_gpt2(run / "base", finished.get_base_model().config.vocab_size, seed=1)
        copied, _ = io.load_trained(tmp_path / "copy")
    finally:
        shutil.rmtree(run)
        shutil.move(tmp_path / "kept", run)
    torch.testing.assert_close(logits(copied), logits(finished), atol=1e-5, rtol=1e-5)


def test_a_base_that_was_not_resized_is_named(base: Path, adapted: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(adapted[0] / "model", tmp_path / "model")
    config = tmp_path / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace('"../base"', json.dumps(str(base))))
    with pytest.raises(InputError, match=rf"base {base} has \d+ token rows, its tokenizer \d+; the base was not resiz"):
        io.load_trained(tmp_path)


@pytest.mark.parametrize("named", ["../base", "/nothing/of/this/name"])
def test_a_base_that_is_gone_is_named(named: str, adapted: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(adapted[0] / "model", tmp_path / "model")
    config = tmp_path / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace('"../base"', json.dumps(named)))
    with pytest.raises(InputError, match=rf"the adapter's base '{named}' is not there; put it back, or copy the base"):
        io.load_trained(tmp_path / "model")


def test_an_adapter_as_a_base_is_an_error(adapted: tuple[Path, Any]) -> None:
    with pytest.raises(InputError, match=r"this is an adapter, not a model; name its base, or .* --merge"):
        built(adapted[0] / "model")


def test_lora_on_the_model_of_a_run_needs_no_copy_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = lora(learned() / "model", tmp_path / "run", monkeypatch)
    assert not (tmp_path / "run" / "base").exists()
    again, _ = io.load_trained(tmp_path / "run")
    torch.testing.assert_close(logits(again), logits(finished), atol=1e-5, rtol=1e-5)


def test_unknown_target_modules_are_an_error(base: Path) -> None:
    ours, _, new_ids = built(base)
    with pytest.raises(InputError, match=r"no linear layer 'c_atn' in this model; did you mean 'c_attn'\?"):
        models_lora.add_lora(ours, AdapterConfig(kind="lora", target_modules=["c_atn"]), new_ids)


# ---------------------------------------------------------------- without this package

_ALONE = """
import json, os, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
plain, run, base, prompts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
written = []
for folder, adapter in ((plain, None), (base, run)):
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1]:]
        written.append(ids.tolist())
for folder in (plain, run):
    os.chdir(folder)
    code = open("README.md", encoding="utf-8").read().split("```python\\n")[1].split("```")[0]
    exec(code)
assert not any(name.startswith("multitask") for name in sys.modules)
print(json.dumps(written))
"""


def test_run_outputs_work_with_transformers_and_peft_alone(adapted: tuple[Path, Any]) -> None:
    plain, run = learned() / "model", adapted[0] / "model"
    prompts = ["{context}<|question|>{question}<|answer|>".format(**row) for row in FACTS]
    done = python(_ALONE, str(plain), str(run), str(adapted[0] / "base"), json.dumps(prompts), cwd=FOLDER)
    assert done.returncode == 0, done.stderr[-2000:]
    *answers, written = done.stdout.strip().splitlines()
    assert answers[0] == FACTS[0]["answers"][0], "the card's snippet has the prompt of the first row"
    assert len(answers) == 2
    expected = []
    for folder in (learned(), adapted[0]):
        ours, tokenizer = io.load_trained(folder)
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        end = tokenizer.eos_token_id
        for new, finished in generate(ours, ids, 20, {end}, 4096):
            expected.append([*new, end] if finished else new)
    assert json.loads(written) == expected
    _, tokenizer = io.load_trained(learned())
    for ids, row in zip(expected, FACTS, strict=False):
        assert tokenizer.decode(ids).strip() == row["answers"][0] + END


def test_the_example_of_the_card_leaves_tokens_for_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"context": "Ada has a hat. " * 60, "question": "What has Ada?", "answers": ["a hat"]}
    source = files(tmp_path / "rows", train=FACTS, validation=[long, FACTS[1]], test=FACTS[:1])
    train(settings("qa", data={"sources": {"qa": [source]}}, train={"max_steps": 1}), out=tmp_path / "run")
    assert FACTS[1]["question"] in snippet(tmp_path / "run" / "model")
    monkeypatch.chdir(tmp_path / "run" / "model")
    exec(snippet(tmp_path / "run" / "model"), {})


def test_a_padded_batch_is_generated_as_its_rows_alone() -> None:
    """With plain transformers: padding on the left, where no generated token has to continue it."""
    tokenizer = AutoTokenizer.from_pretrained(learned() / "model")
    model = AutoModelForCausalLM.from_pretrained(learned() / "model")
    assert tokenizer.padding_side == "left"
    prompts = ["{context}<|question|>{question}<|answer|>".format(**row) for row in FACTS]
    prompts.append(f"Cho has a dog. {prompts[0]}")
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 2, "lengths differ"
    found = model.generate(**batch, max_new_tokens=12)[:, batch["input_ids"].shape[1] :]
    for prompt, row in zip(prompts, found, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        alone = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(row, skip_special_tokens=True) == tokenizer.decode(alone, skip_special_tokens=True)


def test_the_saved_config_names_no_attention_of_this_package(tmp_path: Path) -> None:
    folder = untrained(tmp_path, "qa")
    assert "multitask" not in (folder / "config.json").read_text()


def test_an_untied_head(tmp_path: Path) -> None:
    """Saved, loaded, resized in both matrices; with LoRA, new rows are trained in both."""
    tasks = choose(load_tasks(), ["qa"])
    shape = ModelConfig(**TINY, tied=False, embedding_range=1.0)
    built, tokenizer, _ = build.build(shape, {}, ["a text of some words " * 20], 7)
    rows, head = built.transformer.wte.weight.detach(), built.lm_head.weight.detach()
    assert rows.data_ptr() != head.data_ptr()
    assert rows.std() == pytest.approx(1.0, abs=0.05)
    assert head.std() < 0.3
    io.save(built, tokenizer, tmp_path / "model", {}, {})
    named = ModelConfig(name=str(tmp_path / "model"))
    grown, longer, new_ids = build.build(named, tasks, [], 7)
    assert len(new_ids) == len(longer) - len(tokenizer) > 0
    for before, after in ((rows, grown.transformer.wte.weight.detach()), (head, grown.lm_head.weight.detach())):
        torch.testing.assert_close(after[: len(before)], before)
        assert len(after) == len(longer)
        assert (after[len(before) :] - before.mean(0)).abs().max() < 1
    learner = models_lora.add_lora(grown, AdapterConfig(kind="lora"), new_ids)
    trained = [name for name, p in learner.named_parameters() if p.requires_grad and "token" in name]
    assert [name.split(".token_adapter")[0].rsplit(".", 1)[-1] for name in trained] == ["wte", "lm_head"]
