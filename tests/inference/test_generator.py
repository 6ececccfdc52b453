"""Generation: the same as plain Hugging Face code, as scoring, and in any batch; streaming, explanation, bad input."""

import io
import json
import random
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import KINDS, TASKS, make_row, random_text, tokenizer_of
from helpers import FACTS, FOLDER, learned, untrained, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from multitask import api
from multitask.cli import main as cli_main
from multitask.cli.generation import GenerationConsole
from multitask.config.evaluation import SamplingConfig
from multitask.errors import InputError
from multitask.inference import prompt_input
from multitask.inference.explanation import TextStreamer, token_text
from multitask.inference.generator import Generator
from multitask.inference.prompt_input import PromptInput
from multitask.tokenization.row_encoder import RowEncoder

SAMPLED: dict[str, Any] = {"temperature": 1.2, "top_p": 0.95}
CONTEXT = "Ada has a cat."


def command(*arguments: object, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli_main.main, ["generate", *map(str, arguments)], input=given)


def error_of(*arguments: object, given: str | bytes | None = None) -> str:
    """The message of a command that fails, on stderr, with exit code 2."""
    result = command(*arguments, given=given)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == "", "nothing is generated"
    return " ".join(result.stderr.split())


@cache
def folder() -> Path:
    """An untrained model of 128 positions with the markers of four tasks."""
    return untrained(FOLDER / "generation", "gen", "summ", "nli", "qa")


def generator(task: str | None = None, max_new_tokens: int | None = None, **sampling: Any) -> Generator:
    return api.generator(folder(), task, max_new_tokens=max_new_tokens, **sampling)


def random_generator(kind: str, **shape: Any) -> Generator:
    """A randomly initialised model with one kind of tokenizer; its probabilities are far from uniform."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(kind)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64, "initializer_range": 0.5}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **(sizes | ends | shape)))
    return Generator(model, tokenizer, kind, SamplingConfig(temperature=1.5))


# ---------------------------------------------------------------- equivalence


def test_free_text_is_that_of_plain_transformers() -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder()), AutoModelForCausalLM.from_pretrained(folder())
    for prompt in ("Ada has", "한 줄", f"{CONTEXT}<|question|>What?<|answer|>"):
        inputs = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(**inputs, max_new_tokens=20, repetition_penalty=1.2)[0]
        (found,) = api.generate(folder(), prompt, max_new_tokens=20, repetition_penalty=1.2)
        new = whole[inputs["input_ids"].shape[1] :].tolist()
        ended = tokenizer.eos_token_id in new
        new = new[: new.index(tokenizer.eos_token_id)] if ended else new
        head, text = (tokenizer.decode([*inputs["input_ids"][0], *ids]) for ids in ([], new))
        assert (found["prompt"], found["completion"]) == (prompt, text[len(head) :])
        assert (found["num_tokens"], found["is_finished"]) == (len(new), ended)
        with torch.no_grad():
            scores = model(whole[None, :-1]).logits[0].log_softmax(-1)
        start = inputs["input_ids"].shape[1] - 1
        nll = -sum(float(scores[start + at, token]) for at, token in enumerate(new))
        assert found["nll"] == pytest.approx(nll, rel=1e-4)


def test_answers_are_those_of_scoring(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", FACTS)
    result = command(learned(), "--task", "qa", "--file", rows, "--out", tmp_path / "new" / "out.jsonl")
    assert result.exit_code == 0, result.output
    assert "6 texts written" in result.output
    found = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text("utf-8").splitlines()]
    scored = [json.loads(line) for line in (learned() / "predictions" / "qa.jsonl").read_text("utf-8").splitlines()]
    for key in ("prompt", "completion", "prediction"):
        assert [one[key] for one in found] == [one[key] for one in scored]
    assert [one["prediction"] for one in found] == [fact["answers"][0] for fact in FACTS]
    assert all(one["is_finished"] and not one["is_cut"] for one in found)
    assert found[0]["fields"] == {"context": FACTS[0]["context"], "question": FACTS[0]["question"]}
    assert (found[0]["task"], found[0]["seed"], found[0]["sample"]) == ("qa", 0, 0)
    assert found[0]["where"] == f"{rows}:1"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]
    fields = ("--field", f"context={FACTS[0]['context']}", "--field", f"question={FACTS[0]['question']}")
    assert command(learned(), "--task", "qa", *fields).stdout == "a cat\n"
    typed = f"{FACTS[0]['context']}<|question|>{FACTS[0]['question']}<|answer|>"
    assert command(learned(), typed).stdout == f"{typed} a cat\n", "the prompt written out is the same prompt"


def test_a_prompt_is_encoded_as_for_scoring() -> None:
    given = {"document": "A<|summarize|>B 한국어\n ", "summary": "not used"}
    made = generator("summ")
    expected = RowEncoder(TASKS["summ"], made.tokenizer, 128, 96).encode([make_row(TASKS["summ"], given)])[0]
    assert expected is not None
    ready = made.encode(PromptInput(given, "here"))
    assert ready.ids == expected.input_ids[: expected.num_prompt]
    marker = made.tokenizer.convert_tokens_to_ids("<|summarize|>")
    assert ready.ids.count(marker) == 1, "one in the text stays text"
    assert generator().encode(PromptInput("A<|summarize|>B", "here")).ids.count(marker) == 1, (
        "in free text it is a marker"
    )


def test_an_optional_field_is_left_out_with_its_space() -> None:
    made = generator("gen")
    with_label, without = (made.encode(PromptInput(given, "here")) for given in ({"label": "긍정"}, {}))
    assert without.ids == [made.tokenizer.convert_tokens_to_ids("<|start|>")]
    assert with_label.ids[:1] == without.ids
    assert with_label.text.endswith("긍정")


# ---------------------------------------------------------------- sampling


def test_a_sample_is_a_function_of_seed_prompt_and_number() -> None:
    prompts = ["Ada has", "Ben has a red hat. Ada", "한"]
    named: dict[str, Any] = {"max_new_tokens": 12, **SAMPLED}
    five = api.generate(folder(), prompts, num_samples=5, **named)
    assert len({one["completion"] for one in five}) > 10
    two = api.generate(folder(), prompts, num_samples=2, **named)
    alone = api.generate(folder(), prompts[:1], num_samples=2, **named)
    for one in (*five, *two, *alone):
        del one["nll"]  # rounded otherwise in another batch
    assert two == [one for one in five if one["sample"] < 2]
    assert alone == two[:2]
    made = generator(max_new_tokens=12, num_samples=5, **SAMPLED)
    made.batch_tokens = 40
    small = made.generate([PromptInput(prompt, f"prompt {n}") for n, prompt in enumerate(prompts, 1)])
    assert [one.completion for one in small] == [one["completion"] for one in five]
    other = api.generate(folder(), prompts, num_samples=5, seed=1, **named)
    assert not {one["completion"] for one in other} & {one["completion"] for one in five}


def test_several_beams_give_several_texts_best_first() -> None:
    found = api.generate(folder(), ["Ada has", "한 줄"], beams=4, num_samples=3, max_new_tokens=8)
    assert [(one["where"], one["sample"]) for one in found] == [(f"prompt {p}", s) for p in (1, 2) for s in range(3)]
    assert len({one["completion"] for one in found}) == 6
    for first in (0, 3):
        full = [one for one in found[first : first + 3] if not one["is_finished"]]  # of one length
        assert full == sorted(full, key=lambda one: one["nll"])


# ---------------------------------------------------------------- streaming and explanation


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_shows_no_broken_character_and_all_of_the_text(kind: str) -> None:
    made, rng, num_parts = random_generator(kind), random.Random(0), 0
    for _ in range(20):
        before, ids = (made.plain.encode(random_text(rng, 6), add_special_tokens=False).ids for _ in range(2))
        parts: list[str] = []
        streamer = TextStreamer(partial(made.decode, prompt_ids=before), made.end_ids, parts.append)
        for token in ids:
            streamer.on_tokens([(0, 0)], [token], torch.empty(0), torch.empty(0))
            assert not any("\ufffd" in part for part in parts)
        streamer.end()
        assert "".join(parts) == made.decode(ids, before)
        num_parts += len(parts)
    assert num_parts > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_text_is_the_text(kind: str) -> None:
    made = random_generator(kind)
    for number in range(5):
        parts: list[str] = []
        (found,) = made.generate([PromptInput(f"the cat {number}", "here")], stream=parts.append)
        assert "".join(parts) == found.completion
        assert len(parts) > 3 or found.num_tokens < 8


def test_free_text_keeps_its_first_space_and_an_answer_is_decoded_alone() -> None:
    made = random_generator("metaspace")
    before, ids = (made.plain.encode(text, add_special_tokens=False).ids for text in ("the cat", "sat on"))
    assert made.decode(ids, before) == " sat on"
    made.task = TASKS["summ"]
    assert made.decode(ids, before) == "sat on"


def test_the_steps_explain_what_was_picked() -> None:
    named: dict[str, Any] = {"temperature": 0.7, "top_k": 3, "max_new_tokens": 6}
    (found,) = api.generate(folder(), "Ada has", explain=5, **named)
    assert len(found["steps"]) == found["num_tokens"] + found["is_finished"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder()), AutoModelForCausalLM.from_pretrained(folder())
    ids = tokenizer("Ada has")["input_ids"]
    for step in found["steps"]:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1]
        top = scores.argsort(descending=True)[:5].tolist()
        probabilities, sharpened = scores.softmax(-1), (scores[top[:3]] / 0.7).softmax(-1).tolist()
        assert [one["id"] for one in step["candidates"]][:5] == top
        for rank, one in enumerate(step["candidates"]):
            assert one["before"] == pytest.approx(float(probabilities[one["id"]]), abs=1e-5)
            assert one["after"] == pytest.approx(sharpened[rank] if rank < 3 else 0.0, abs=1e-5)
        assert step["id"] in top[:3]
        ids.append(step["id"])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_readable(kind: str) -> None:
    made = random_generator(kind)
    shown = [token_text(made.tokenizer, number) for number in range(len(made.tokenizer))]
    assert len(set(shown)) == len(shown)
    assert not any("Ġ" in token or "▁" in token or "\ufffd" in token for token in shown)
    assert "<|end|>" in shown
    assert token_text(made.tokenizer, 10**6) == "<id 1000000>"
    if kind in ("byte-level", "our-own"):
        assert {'" 고"', r'"\xea"', r'"\n"', '"a"'} <= set(shown)


def test_an_explanation_on_the_console_and_in_a_picture(tmp_path: Path) -> None:
    sampling = ("--temperature", 0.7, "--top-k", 2, "--max-new-tokens", 3, "--top", 3)
    picture = tmp_path / "steps.png"
    result = command(folder(), "Ada has", *sampling, "--explain", "--picture", picture)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Ada has")
    cells = Counter(word for word in ("taken", "removed") for line in result.stdout.splitlines() if word in line)
    assert cells == {"taken": 4, "removed": 3}, "the heading, and one of each at every step"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "--picture draws the steps of one text" in error_of(
        folder(), "Ada", "--picture", picture, "--temperature", 1, "--num-samples", 2
    )
    assert "cannot be drawn" in command(folder(), "Ada", "--picture", tmp_path / "no" / "steps.png").stderr


def test_a_picture_without_the_needed_font_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    step = {"id": 1, "token": '"$x_1$ 서울"', "candidates": [{"id": 1, "token": '"서울"', "before": 1, "after": 1}]}
    monkeypatch.setattr("multitask.plots._HANGUL", ())
    from multitask.plots import draw_steps

    assert not draw_steps([step], tmp_path / "boxes.png")
    assert draw_steps([], tmp_path / "none.png")
    assert not recwarn.list


# ---------------------------------------------------------------- sources of prompts


def test_prompts_by_line(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("Ada has\n\n  한 줄 \r\n", "utf-8-sig")
    found = prompt_input.read_prompts(text)
    assert found == [PromptInput("Ada has", f"{text}:1"), PromptInput("  한 줄 ", f"{text}:3")]
    lines = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Ada\nhas", "more": 1}])
    assert prompt_input.read_prompts(Path(lines)) == [PromptInput("Ada\nhas", f"{lines}:1")]
    piped = prompt_input.read_prompts(io.BytesIO("Ada has\r\n\n한".encode()))
    assert piped == [PromptInput("Ada has", "standard input:1"), PromptInput("한", "standard input:3")]
    korean = tmp_path / "korean.txt"
    korean.write_bytes("한 줄".encode("cp949"))
    assert prompt_input.read_prompts(korean, encoding="cp949")[0].given == "한 줄"


@pytest.mark.parametrize("name", ["cp949", "euc-kr", "ms949", "EUC_KR", "utf-8,euc-kr", "cp949, utf-8"])
def test_an_encoding_goes_by_its_usual_names(tmp_path: Path, name: str) -> None:
    raw = "한 줄\n".encode("cp949") + ("두 줄\n".encode() if "," in name else b"")
    (tmp_path / "a.txt").write_bytes(raw)
    wanted = ["한 줄", "두 줄"] if "," in name else ["한 줄"]
    for source in (tmp_path / "a.txt", io.BytesIO(raw)):
        assert [one.given for one in prompt_input.read_prompts(source, encoding=name)] == wanted


def test_a_wrong_encoding_names_the_option(tmp_path: Path) -> None:
    korean, mixed = "한 줄\n".encode("cp949"), "한 줄\n".encode("cp949") + "두 줄\n".encode()
    for name, raw, flag in (
        ("a.txt", korean, "cp949"),
        ("a.csv", b"prompt\n" + korean, "cp949"),
        ("a.json", b'[\n{"prompt": "' + korean.strip() + b'"}]', "cp949"),
        ("b.txt", mixed, "utf-8,cp949"),
        ("-", korean, "cp949"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InputError) as raised:
            prompt_input.read_prompts(io.BytesIO(raw) if name == "-" else tmp_path / name)
        assert f"give `--encoding {flag}`" in str(raised.value)
        assert "encoding:" not in str(raised.value)
    with pytest.raises(
        InputError, match=r"--encoding latin-1: 'latin-1' is no encoding that is read; expected utf-8 or"
    ):
        prompt_input.read_prompts(tmp_path / "a.txt", encoding="latin-1")


def test_an_empty_text_is_said_to_be_empty() -> None:
    said = error_of(learned(), "--task", "summ", "")
    assert "PROMPT: field 'document' is empty; the prompt of task 'summ' needs document" in said


def test_prompts_from_standard_input_are_answered_by_line() -> None:
    rows = "".join(json.dumps({name: fact[name] for name in ("context", "question")}) + "\n" for fact in FACTS[:2])
    result = command(learned(), "-", "--task", "qa", given=rows)
    assert result.stdout == "--- standard input:1\na cat\n--- standard input:2\na dog\n"
    assert command(learned(), "--file", "-", "--task", "qa", given=rows).stdout == result.stdout
    assert command(folder(), "-", "--max-new-tokens", 3, given="Ada has\n").stdout.startswith("Ada has")


def test_a_row_without_its_answer_is_a_prompt() -> None:
    """`prepare` of this task raises for rows without answers; a prompt has none."""
    given = {"context": CONTEXT, "question": "What has Ada?"}
    found = api.generate(learned(), [given, {**given, "answers": ["wrong"]}, {**given, "answers": 3}], task="qa")
    assert [one["prediction"] for one in found] == ["a cat"] * 3


# ---------------------------------------------------------------- the window


def test_free_text_is_never_truncated_and_gets_100_tokens_or_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator()
    monkeypatch.setattr(made, "end_ids", set())
    word = next(w for w in ("a", "b", "c") if len(made.tokenizer(w)["input_ids"]) == 1)
    long = " ".join([word] * 100)
    num = len(made.tokenizer(long)["input_ids"])
    assert 100 <= num < 128
    found = made.generate([PromptInput(word, "short"), PromptInput(long, "long")])
    assert [one.num_tokens for one in found] == [100, 128 - num]
    assert not any(one.is_finished for one in found)
    message = f"the prompt has {num} tokens, max_new_tokens is 60, and the window has 128; give --max-new-tokens"
    assert f"{message} {128 - num} or less" in error_of(folder(), long, "--max-new-tokens", 60)
    assert "the prompt has" in (said := error_of(folder(), " ".join([long, long])))
    assert "and the window 128: none are left to generate" in said
    assert "max_new_tokens is 128 and the window has 128 tokens: none are left for a prompt" in error_of(
        folder(), "a", "--max-new-tokens", 128
    )


def test_an_empty_text_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"where": "PROMPT", "sample": 0, "prompt": "", "completion": " \n", "is_finished": True, "num_tokens": 0}
    GenerationConsole(None, 0, False).show([record])
    assert capsys.readouterr().err == "note: the text is empty\n"
    GenerationConsole(None, 0, False).show([record, {**record, "completion": "a"}])
    assert capsys.readouterr().err == "note: 1 of 2 texts are empty\n"


def test_an_unfinished_text_is_reported() -> None:
    result = command(folder(), "Ada has", "--max-new-tokens", 2)
    assert "note: the text is unfinished, stopped at 2 tokens" in result.stderr
    assert "unfinished" not in result.stdout
    result = command(folder(), "Ada has", "--max-new-tokens", 2, "--num-samples", 3, "--top-k", 9, "--seed", 1)
    assert result.stdout.count("--- prompt 1, sample ") == 3
    assert "of 3 texts are unfinished" in result.stderr


def test_a_long_document_is_truncated_with_a_warning() -> None:
    result = command(folder(), "--task", "summ", "--field", f"document={'Ada has a red hat. ' * 40}")
    assert result.exit_code == 0, result.output
    assert "document is truncated: the prompt had" in result.stderr
    assert "32 fit" in result.stderr  # of 128, 96 are kept for the answer
    question = "context=Ada.", f"question={'What has Ada? ' * 60}"
    said = error_of(folder(), "--task", "qa", "--field", question[0], "--field", question[1])
    assert "of the window's 128, 32 are kept for the answer, and truncating its context is not enough" in said


def test_a_run_is_prompted_with_the_window_it_was_trained_with() -> None:
    shorter = FOLDER / "shorter"
    untrained(shorter / "model", "summ")
    (shorter / "config.yaml").write_text("train: {block_size: 110}\n")
    for model in (shorter, shorter / "model"):
        assert api.generator(model, "summ").window == 110
    assert api.generator(shorter).window == 128


def test_an_empty_prompt_starts_from_bos() -> None:
    bos = generator().encode(PromptInput("", "here")).ids
    assert bos == [generator().tokenizer.convert_tokens_to_ids("<|start|>")]
    assert command(folder(), "", "--max-new-tokens", 3).exit_code == 0
    bare = untrained(FOLDER / "bare", "summ")  # its only eos is <|end|>
    assert "has no bos or eos token to start from; give at least a word" in error_of(bare, "")


def test_characters_that_the_tokenizer_drops_are_named() -> None:
    said: list[dict[str, Any]] = []
    made = random_generator("metaspace")
    made.report = said.append
    made.generate([PromptInput("the cat\nsat", "here")])
    assert [one["text"] for one in said] == ["here: 1 characters do not survive the tokenizer: '\\n' x1"]
    made.generate([PromptInput("the cat<|end|>sat", "here")])
    assert len(said) == 1, "a marker is parsed as one, and not lost"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", 0), "temperature: 0 is too cold to draw at, expected 0.001 or more; without"),
        (("--temperature", -1), "temperature: -1 is too cold"),
        (("--temperature", "nan"), "temperature: Input should be a finite number, found nan"),
        (("--top-p", 0), "top_p: Input should be greater than 0, found 0.0"),
        (("--top-p", 1.5), "top_p: Input should be less than or equal to 1, found 1.5"),
        (("--top-k", 0), "top_k: Input should be greater than or equal to 1, found 0"),
        (("--repetition-penalty", 0), "repetition_penalty: Input should be greater than 0, found 0.0"),
        (("--num-samples", 2), "num_samples: 2 texts of a prompt, and greedy texts are all alike: draw them"),
        (("--num-samples", 4, "--beams", 3), "4 texts of a prompt, and 3 beams find no more"),
        (("--beams", 3, "--top-k", 2), "beams: 3 beams draw nothing, they search for the most likely text"),
        (("--seed", -1), "seed: Input should be greater than or equal to 0, found -1"),
        (("--max-new-tokens", 0), "max_new_tokens is 0, expected at least 1"),
        (("--beams", 3, "--stream"), "--stream shows one text token by token, and beam search"),
        (("--beams", 3, "--explain"), "--explain shows one text token by token, and beam search"),
        (("--top-k", 3, "--num-samples", 3, "--stream"), "--stream shows one text, found 3"),
        (("--file", "x.txt"), "found PROMPT and --file, expected one of PROMPT (- for standard input), --file, --task"),
        (("--interactive",), "found PROMPT and --interactive, expected one of"),
        (("--task", "sum"), "unknown task 'sum'; did you mean 'summ'?"),
        (("--task", "qa"), "PROMPT: found text, expected the fields of task 'qa': context, question; give them as"),
        (("--out", "."), ".: is a folder"),
        (("--top", 3), "--top says how many candidates --explain shows; add --explain"),
        (("--force",), "--force uses the prompt of a task that the model was not trained on; name it with --task"),
    ],
)
def test_invalid_options(options: tuple[object, ...], message: str) -> None:
    assert message in error_of(folder(), "Ada", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "found none, expected one of"),
        (("--field", "document=a"), "--field gives a field of a task; name the task with --task"),
        (("--task", "summ", "--field", "documnt=a"), "has no such field; did you mean 'document'?"),
        (("--task", "summ", "--field", "document"), "--field document: expected name=text"),
        (
            ("--task", "summ", "--field", "summary=a"),
            "this is the target of task 'summ', which the model generates; leave it out",
        ),
        (("--task", "summ", "--field", "document=a", "--field", "document=b"), "found twice, expected once"),
        (("--task", "nli", "--field", "premise=a"), "field 'hypothesis' is missing, found premise; the prompt"),
        (("--task", "summ", "--field", "document= "), "field 'document' is empty; the prompt of task 'summ' needs"),
        (("--task", "summ", ""), "PROMPT: field 'document' is empty; the prompt of task 'summ' needs document"),
        (("--task", "cls", "--field", "text=a"), "no <|classify|>, a marker of task 'cls': it was not trained"),
        (("--interactive", "--out", "x.jsonl"), "--interactive writes to the terminal"),
    ],
)
def test_invalid_sources(options: tuple[object, ...], message: str) -> None:
    said = error_of(folder(), *options)
    assert message in said
    assert "classify" not in said or "fewshot --model" in said


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', None, "a.jsonl:2: field 'prompt' is 3, expected text"),
        ("a.jsonl", b'{"text": "a"}\n', None, "a.jsonl:1: field 'prompt' is missing, found text; with --task"),
        ("a.jsonl", b'{"prompt": \n', None, "a.jsonl:1: not valid JSON at column 12"),
        ("a.txt", b"fine\n\xff\n", None, "a.txt:2: byte 0xff is not valid utf-8"),
        ("a.txt", b"\n \n", None, "a.txt: found no prompts"),
        ("a.jsonl", b'{"document": "a"}\n{"doc": "b"}\n', "summ", "a.jsonl:2: field 'document' is missing, found doc"),
        ("a.jsonl", b'{"document": ["a"]}\n', "summ", "a.jsonl:1: field 'document' is ['a'], expected text"),
        ("a.jsonl", b'{"document": "\\ud800"}\n', "summ", "a.jsonl:1: character 1 is half of a surrogate pair"),
        ("a.txt", b"plain text\n", "qa", "a.txt:1: not valid JSON"),
        ("-", b'["a"]', "qa", "standard input:1: a JSON object was expected, found ['a']"),
        ("-", b"a\n\xff", None, "standard input:2: byte 0xff is not valid utf-8"),
        ("-", b"{", "summ", "standard input:1: not valid JSON"),
        ("-", b"", None, "standard input: found no prompts"),
    ],
)
def test_invalid_lines(name: str, content: bytes, task: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name if name != "-" else name
    if isinstance(path, Path):
        path.write_bytes(content)
    chosen = ("--task", task) if task else ()
    out = tmp_path / "out.jsonl"
    assert message in error_of(folder(), "--file", path, *chosen, "--out", out, given=content)
    assert not out.exists(), "completely or not at all"


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a")
    assert "did you mean 'prompts.txt'?" in error_of(folder(), "--file", tmp_path / "prompt.txt")
    assert "no such folder" in error_of(tmp_path / "nothing", "a")
    (tmp_path / "file").write_text("")
    assert "out.jsonl: cannot be written" in error_of(folder(), "a", "--out", tmp_path / "file" / "out.jsonl")


def test_errors_from_python() -> None:
    with pytest.raises(InputError, match="there are no prompts"):
        api.generate(folder(), [])
    with pytest.raises(InputError, match="sampling: topk: no such setting; did you mean 'top_k'"):
        api.generate(folder(), "a", topk=3)
    with pytest.raises(InputError, match="prompt 2: found fields, expected text; name their task with --task"):
        api.generate(folder(), ["a", {"document": "b"}])


# ---------------------------------------------------------------- conversation


def test_a_conversation_ends_with_an_empty_line_or_the_end_of_input() -> None:
    options = (folder(), "--interactive", "--max-new-tokens", 4)
    written = api.generate(folder(), ["Ada has", "한 줄"], max_new_tokens=4)
    for end in ("\nnot used\n", ""):
        result = command(*options, given="Ada has\n한 줄\n" + end)
        assert result.exit_code == 0, result.output
        for one in written:
            assert one["prompt"] + one["completion"] in result.stdout
        assert "not used" not in result.stdout
    streamed = command(*options, "--stream", given="Ada has\n한 줄\n")
    assert streamed.stdout == result.stdout


def test_a_conversation_continues_after_an_error() -> None:
    result = command(folder(), "--interactive", "--max-new-tokens", 100, given=f"{'Ada has ' * 80}\nAda has\n")
    assert result.exit_code == 0, result.output
    assert "error: prompt: the prompt has" in result.stderr
    assert "Ada has" in result.stdout.splitlines()[-2] + result.stdout.splitlines()[-1]


def test_ctrl_c_stops_a_text_and_not_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    generate, num_calls = Generator.generate, 0

    def stopped_once(self: Generator, prompts: Any, explain: int = 0, stream: Any = None) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise KeyboardInterrupt
        return generate(self, prompts, explain, stream)

    monkeypatch.setattr(Generator, "generate", stopped_once)
    result = command(folder(), "--interactive", "--max-new-tokens", 3, given="first\nAda has\n")
    assert result.exit_code == 0, result.output
    assert "(stopped)" in result.stderr
    assert "Ada has" in result.stdout
    assert num_calls == 2


def test_a_conversation_with_a_task_asks_for_its_fields() -> None:
    typed = f"{FACTS[0]['context']}\n{FACTS[0]['question']}\n{FACTS[1]['context']}\n{FACTS[1]['question']}\n\n"
    result = command(learned(), "--interactive", "--task", "qa", given=typed)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("context: ") == 3
    assert "question: a cat\n" in result.stdout
    assert "question: a dog\n" in result.stdout
