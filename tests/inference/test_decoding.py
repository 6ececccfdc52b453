"""Decoding with logits processors: the same as transformers, independent of the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    XLNetConfig,
    XLNetLMHeadModel,
)
from transformers.modeling_outputs import CausalLMOutput

from multitask.config.evaluation import SamplingConfig
from multitask.errors import InputError
from multitask.inference.decoding import beam_search, generate, logits_processors_of
from multitask.inference.kv_cache import supports_shared_prefix
from multitask.inference.scoring import choice_nll
from multitask.models.lora import max_positions

V = 50
SMALL = {"vocab_size": V, "initializer_range": 0.3}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SHARP = SamplingConfig(temperature=0.7, top_k=12, top_p=0.8, repetition_penalty=1.3)


class BigramConfig(PreTrainedConfig):
    model_type = "bigram-of-a-test"

    def __init__(self, vocab_size: int = V, **rest: Any) -> None:
        super().__init__(**rest)
        self.vocab_size = vocab_size
        self.num_hidden_layers = 0  # transformers' `generate` needs it to make a cache


class Bigram(PreTrainedModel, GenerationMixin):
    """The next token from the current one alone: no attention, no positions, no cache."""

    config_class = BigramConfig

    def __init__(self, config: BigramConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)
        self.post_init()
        nn.init.normal_(self.table.weight, std=2.0)

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table(input_ids))


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**(SMALL | shape | changes)))


def lora() -> Any:
    model = get_peft_model(gpt2(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "lora": lora,
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, **SHAPE, num_key_value_heads=2)),
    "bigram": lambda: Bigram(BigramConfig()),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def prompts(num: int = 6) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, V, int(length)).tolist() for length in rng.integers(1, 30, num)]


def uniform(row: int, step: int) -> float:
    return float(np.random.default_rng([row, step]).random())


class Seen:
    """Records of each (row, step) the probabilities before and after the processors, and the picked token."""

    def __init__(self) -> None:
        self.probabilities: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.tokens: dict[tuple[int, int], int] = {}

    def __call__(self, at: Sequence[tuple[int, int]], picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
        for place, token, before, after in zip(at, picked, raw.softmax(-1), scores.softmax(-1), strict=True):
            assert place not in self.tokens
            self.probabilities[place], self.tokens[place] = (before, after), token


def by_transformers(model: Any, prompt: list[int], **options: Any) -> Any:
    ids = torch.tensor([prompt])
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, return_dict_in_generate=True, **options
    )


def test_both_ways_of_decoding_are_covered() -> None:
    found = {name: supports_shared_prefix(make().eval(), 12) for name, make in MODELS.items()}
    assert found == {"gpt2": True, "lora": True, "mistral": True, "bigram": False}


@pytest.mark.parametrize("max_rows", [2, None])
def test_greedy_with_a_repetition_penalty_is_that_of_transformers(model: Any, max_rows: int | None) -> None:
    given = prompts()
    processors = logits_processors_of(SamplingConfig(repetition_penalty=1.4))
    found = generate(model, given, 10, set(), 5000, max_rows=max_rows, processors=processors)
    options = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": None, "repetition_penalty": 1.4}
    for prompt, (new, finished) in zip(given, found, strict=True):
        assert by_transformers(model, prompt, **options).sequences[0, len(prompt) :].tolist() == new
        assert not finished
    assert found != generate(model, given, 10, set(), 5000), "the penalty changed something"


def test_processed_probabilities_are_those_of_transformers_at_each_step(model: Any) -> None:
    given, seen = prompts(3), Seen()
    found = generate(
        model, given, 3, set(), 5000, uniform=uniform, processors=logits_processors_of(SHARP), on_tokens=seen
    )
    options = {**SHARP.model_dump(include={"temperature", "top_k", "top_p", "repetition_penalty"})}
    num_removed = 0
    for row, (prompt, (new, _)) in enumerate(zip(given, found, strict=True)):
        for step in range(3):
            theirs = by_transformers(
                model, prompt + new[:step], max_new_tokens=1, do_sample=True, output_scores=True, **options
            )
            expected = theirs.scores[0][0].softmax(-1)
            assert (seen.probabilities[row, step][1] - expected).abs().max() < 1e-5
            num_removed += int((expected == 0).sum())
    assert 0 < num_removed < 9 * V


def test_samples_do_not_depend_on_the_batch(model: Any) -> None:
    given = prompts()
    options: dict[str, Any] = {"uniform": uniform, "processors": logits_processors_of(SHARP)}
    together = generate(model, given, 8, {7}, 5000, **options)
    assert generate(model, given, 8, {7}, 5000, max_rows=2, **options) == together
    for row, prompt in enumerate(given):
        alone = {**options, "uniform": lambda _, step, row=row: uniform(row, step)}
        assert generate(model, [prompt], 8, {7}, 5000, **alone) == [together[row]]


def test_processors_receive_ids_of_the_row_alone(model: Any) -> None:
    """Transformers before 5.23 raise for padding that is no id of the vocabulary."""
    given, seen = prompts(), set()

    def record(ids: Tensor, scores: Tensor) -> Tensor:
        seen.update(frozenset(row) for row in ids.tolist())
        return scores

    found = generate(model, given, 3, set(), 5000, processors=record)
    assert len({len(prompt) for prompt in given}) > 1, "some rows are padded"
    assert seen == {frozenset(p + n[:step]) for p, (n, _) in zip(given, found, strict=True) for step in range(3)}


def test_top_1_is_greedy(model: Any) -> None:
    given = prompts()
    drawn = generate(
        model, given, 8, {7}, 5000, uniform=uniform, processors=logits_processors_of(SamplingConfig(top_k=1))
    )
    assert drawn == generate(model, given, 8, {7}, 5000)


def test_sample_frequencies_are_the_processed_probabilities() -> None:
    torch.manual_seed(0)
    model, prompt, num = gpt2().eval(), [3, 4, 5], 4000
    with torch.no_grad():
        scores = model(torch.tensor([prompt])).logits[0, -1].double().numpy()
    for token in prompt:  # by hand, in the order of transformers
        scores[token] = scores[token] * 1.3 if scores[token] < 0 else scores[token] / 1.3
    order = np.argsort(-scores / 0.7)
    kept = order[:12]
    probabilities = np.exp(scores[kept] / 0.7)
    probabilities /= probabilities.sum()
    kept = kept[: int(np.searchsorted(np.cumsum(probabilities), 0.8)) + 1]
    expected = np.zeros(V)
    expected[kept] = np.exp(scores[kept] / 0.7) / np.exp(scores[kept] / 0.7).sum()
    rng = np.random.default_rng(1)
    found = generate(
        model,
        [prompt] * num,
        1,
        set(),
        10**6,
        uniform=lambda row, step: float(rng.random()),
        processors=logits_processors_of(SHARP),
    )
    counts = np.bincount([new[0] for new, _ in found], minlength=V)
    assert np.abs(counts / num - expected).max() < 4 * np.sqrt(0.25 / num)
    assert (counts > 0).sum() == len(kept) > 2


def test_each_row_has_its_own_limit(model: Any) -> None:
    given, limits = prompts(), [1, 4, 2, 9, 4, 1]
    found = generate(model, given, limits, {7}, 5000, max_rows=3)
    for prompt, limit, one in zip(given, limits, found, strict=True):
        assert generate(model, [prompt], limit, {7}, 5000) == [one]
        assert len(one[0]) == limit or one[1]
    assert {finished for _, finished in generate(model, given, limits, set(), 5000)} == {False}


def test_finished_rows_do_not_exceed_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = gpt2(n_positions=32).eval()
    given, limits = [[1] * 30, [2], [3] * 28], [2, 31, 4]
    expected = generate(model, given, limits, set(), 5000)
    monkeypatch.setattr("multitask.inference.decoding.supports_shared_prefix", lambda model, longest: False)
    assert generate(model, given, limits, set(), 5000) == expected


def test_the_callback_receives_each_token_once_and_end_tokens_too(model: Any) -> None:
    given, seen = prompts(), Seen()
    ends = {3, 7, 9}
    found = generate(model, given, 12, ends, 5000, max_rows=3, uniform=uniform, on_tokens=seen)
    for row, (new, finished) in enumerate(found):
        tokens = [seen.tokens[row, step] for step in range(len(new) + finished)]
        assert tokens[: len(new)] == new
        assert all(token in ends for token in tokens[len(new) :])
    assert len(seen.tokens) == sum(len(new) + finished for new, finished in found)
    assert {finished for _, finished in found} == {True, False}
    assert all(torch.equal(before, after) for before, after in seen.probabilities.values()), "there are no processors"


def test_the_generation_config_of_a_model_is_ignored(model: Any) -> None:
    given = prompts(3)
    expected = generate(model, given, 8, {7}, 5000), beam_search(model, given[0], 6, {7}, 3, 2)
    base = getattr(model, "base_model", model) if hasattr(model, "peft_config") else model
    own = GenerationConfig(repetition_penalty=3.0, do_sample=True, temperature=9.0, eos_token_id=[1, 2, 3, 4, 5])
    getattr(base, "model", base).generation_config = model.generation_config = own
    assert (generate(model, given, 8, {7}, 5000), beam_search(model, given[0], 6, {7}, 3, 2)) == expected
    assert model.generation_config is own


@pytest.mark.parametrize("name", ["gpt2", "bigram"])
def test_as_many_beams_as_tokens_find_the_most_likely_pair(name: str) -> None:
    torch.manual_seed(0)
    model, is_greedy = MODELS[name]().eval(), set()
    for last in range(8):
        with torch.no_grad():
            first = model(input_ids=torch.tensor([[3, last]])).logits[0, -1].log_softmax(-1)
            second = model(input_ids=torch.tensor([[3, last, n] for n in range(V)])).logits[:, -1].log_softmax(-1)
        best = (first[:, None] + second).flatten().argsort(descending=True)[:4].tolist()
        found = beam_search(model, [3, last], 2, set(), V, 4)
        assert found == [([n // V, n % V], False) for n in best]
        is_greedy.add(generate(model, [[3, last]], 2, set(), 5000)[0] == found[0])
    assert is_greedy == {True, False}, "beam search differs from greedy, sometimes"


def test_beams_stop_at_an_end_token() -> None:
    torch.manual_seed(0)
    model = gpt2().eval()
    ends = set(range(0, V, 5))
    found = [one for prompt in prompts() for one in beam_search(model, prompt, 6, ends, 4, 3)]
    assert {finished for _, finished in found} == {True, False}
    assert all(not ends & set(new) for new, _ in found)
    assert all(len(new) == 6 for new, finished in found if not finished)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_scores_that_are_nan_are_an_error(name: str) -> None:
    model = MODELS[name]().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[4] = torch.nan
    with pytest.raises(InputError, match="scores of the next token are NaN or infinite: its weights are broken"):
        generate(model, prompts(), 3, set(), 5000)


def gemma3() -> Gemma3ForConditionalGeneration:
    """A model of text and images: vocabulary and positions are in the settings of its text part."""
    text = {**SHAPE, "vocab_size": 300, "head_dim": 8, "num_key_value_heads": 2}
    images = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=images | {"image_size": 28, "patch_size": 14})
    )


@pytest.mark.parametrize(
    ("make", "num"),
    [
        (gpt2, 64),
        (gemma3, 131072),
        (lambda: MambaForCausalLM(MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=4)), None),
        (lambda: XLNetLMHeadModel(XLNetConfig(vocab_size=V, d_model=32, n_layer=2, n_head=4, d_inner=32)), None),
    ],
)
def test_models_whose_config_has_no_positions(make: Callable[[], Any], num: int | None) -> None:
    torch.manual_seed(0)
    model = make().eval()
    assert max_positions(model) == num
    given = prompts(2)
    found = generate(model, given, 3, set(), 5000)
    assert [len(new) for new, _ in found] == [3, 3]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([[*given[0], 4]])).logits[0, -2].float().log_softmax(-1)
    assert choice_nll(model, [(given[0], [[4]])], 5000)[0][0] == pytest.approx(-float(scores[4]), rel=1e-4)
