"""Generation and few-shot scoring on a GPU, beside transformers' padded `generate` and lm-evaluation-harness.

`python benchmarks/gpu_eval.py` makes a GPT-2 of the shape of 124M, with random weights and an output layer of its own,
prompts, and a tokenizer of whole words; all arms get the same rows, in fp32 and in bf16, and their texts and
log-likelihoods are compared. Writes `benchmarks/gpu_eval.md`:

| what | precision | arm | rows/s, median [min-max] | peak memory | answers |

The harness runs in a process of its own, where `lm_eval` is installed. `make bench-gpu` makes the environment.
`--device cpu --tiny` shows whether all of it runs.
"""

import importlib.util
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import numpy as np
import torch
from common import Lines, logit_gap, machine, padded_texts, run_arm, word_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from multitask.device import peak_memory_bytes, reset_peak, synchronize
from multitask.inference.decoding import generate
from multitask.inference.scoring import choice_nll, in_precision
from multitask.models.support import scoring_tokens

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
NUM_SHOTS = 8
ANSWERS = (" w1", " w2 w3", " w4 w5 w6")
QUESTIONS = 4  # on each of the passages that rows share
Result = TypeVar("Result")


class Size(NamedTuple):
    """What is measured; passage, question and shown are the fewest and the most tokens, end_every the ids per end id.

    shown: of a text to classify, a demonstration or the question.
    """

    num_rows: int = 256
    batch_rows: int = 64
    passage: tuple[int, int] = (20, 800)
    question: tuple[int, int] = (8, 40)
    max_new_tokens: int = 128
    end_every: int = 40
    shown: tuple[int, int] = (40, 80)
    shape: dict[str, Any] = {}  # noqa: RUF012


TINY = Size(12, 4, (9, 60), (3, 9), 16, 10, (3, 9), {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2})


def prompts(size: Size, vocab_size: int) -> list[list[int]]:
    """A passage and a question each; half of the rows share their passage with others."""
    rng = np.random.default_rng(0)

    def drawn(least: int, most: int) -> list[int]:
        found: list[int] = rng.integers(1, vocab_size, rng.integers(least, most + 1)).tolist()
        return found

    found: list[list[int]] = []
    while len(found) < size.num_rows:
        passage = drawn(*size.passage)
        found += [passage + drawn(*size.question) for _ in range(QUESTIONS if len(found) < size.num_rows // 2 else 1)]
    return found


def shots(size: Size, vocab_size: int) -> list[str]:
    """Questions after the same demonstrations."""
    rng = np.random.default_rng(1)

    def text() -> str:
        return " ".join(f"w{number}" for number in rng.integers(7, vocab_size, rng.integers(*size.shown)))

    beginning = "".join(text() + ANSWERS[n % len(ANSWERS)] + " " for n in range(NUM_SHOTS))
    return [beginning + text() for _ in range(size.num_rows)]


class Timed(NamedTuple):
    """Seconds of each round, and peak bytes."""

    seconds: list[float]
    peak_bytes: int

    def columns(self, num_rows: int) -> str:
        """Rows per second, median and range; memory."""
        rates = [num_rows / seconds for seconds in self.seconds]
        spread = f"{statistics.median(rates):,.1f} [{min(rates):,.1f}-{max(rates):,.1f}]"
        return f"{spread} | {self.peak_bytes / 2**30:.2f} GiB"


def timed(run: Callable[[], Result], device: str, num_rounds: int) -> tuple[Timed, Result]:
    """The last result, and the rounds that follow a first one, which is not timed."""
    on = torch.device(device)
    result = run()
    reset_peak(on)
    seconds = []
    for _ in range(num_rounds):
        synchronize(on)
        start = time.perf_counter()
        result = run()
        synchronize(on)
        seconds.append(time.perf_counter() - start)
    return Timed(seconds, peak_memory_bytes(on)), result


def generation(model: Any, precision: str, size: Size, device: str, num_rounds: int, report: Lines) -> None:
    """Greedy texts of both arms, from ids to ids, as many rows in a batch."""
    asked, ends = prompts(size, model.config.vocab_size), set(range(0, model.config.vocab_size, size.end_every))

    def ours() -> list[list[int]]:
        batch_tokens = size.batch_rows * model.config.n_positions
        found = generate(model, asked, size.max_new_tokens, ends, batch_tokens, max_rows=size.batch_rows)
        return [new for new, _ in found]

    def padded() -> list[list[int]]:
        return padded_texts(model, asked, ends, size.batch_rows, size.max_new_tokens)

    clock, one = timed(ours, device, num_rounds)
    lengths = np.quantile([len(new) for new in one], [0, 0.25, 0.5, 0.75, 1]).astype(int).tolist()
    spread = f"{', '.join(map(str, lengths))} tokens (minimum, quartiles, maximum)"
    report.add(f"| generation | {precision} | ours | {clock.columns(len(asked))} | {spread} |")
    clock, other = timed(padded, device, num_rounds)
    gaps = [logit_gap(model, row, a, b, ends) for row, a, b in zip(asked, one, other, strict=True) if a != b]
    differing = f"{len(gaps)} of {len(asked)} differ" + (f", at logits within {max(gaps):.0e}" if gaps else "")
    report.add(f"| generation | {precision} | padded generate | {clock.columns(len(asked))} | {differing} |")


def scoring(
    model: Any, precision: str, size: Size, device: str, num_rounds: int, report: Lines, folder: Path, harness: bool
) -> None:
    """Log-likelihoods of three answers, from strings, tokenized by both arms; folder: of the model and tokenizer."""
    tokenizer, asked = word_tokenizer(model.config.vocab_size), shots(size, model.config.vocab_size)

    def ours() -> list[list[float]]:
        choices = tokenizer(list(ANSWERS))["input_ids"]
        rows = [(ids, choices) for ids in tokenizer(asked)["input_ids"]]
        return choice_nll(model, rows, scoring_tokens(model))

    clock, nats = timed(ours, device, num_rounds)
    report.add(f"| scoring | {precision} | ours | {clock.columns(len(asked))} | |")
    if not harness:
        return
    facts = {"prompts": asked, "dtype": DTYPES[precision], "batch_rows": size.batch_rows, "num_rounds": num_rounds}
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")
    found = run_arm(__file__, "harness", folder, {"--device": device})
    furthest = float(np.abs(np.array(found["answers"]) + np.array(nats).ravel()).max())
    report.add(
        f"| scoring | {precision} | harness | {Timed(*found['timed']).columns(len(asked))} | "
        f"within {furthest:.0e} nats |"
    )


def run_harness(folder: Path, device: str) -> dict[str, Any]:
    """The same by `HFLM.loglikelihood` of lm-evaluation-harness; building its requests is not timed."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    model = HFLM(
        pretrained=str(folder),
        batch_size=facts["batch_rows"],
        device=device,
        dtype=facts["dtype"],
        softmax_dtype="float32",  # else log-likelihoods of bf16 are rounded to 8 bits
    )
    pairs = itertools.product(facts["prompts"], ANSWERS)
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    clock, found = timed(lambda: model.loglikelihood(requests, disable_tqdm=True), device, facts["num_rounds"])
    return {"timed": clock, "answers": [log_likelihood for log_likelihood, _ in found]}


@click.command()
@click.option("--rounds", default=3, show_default=True, help="How often each arm is timed; one more comes before.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Tiny shapes and no report, unless --out names one: do all arms run?")
@click.option("--out", type=click.Path(path_type=Path), help="Report.  [default: gpu_eval.md here]")
@click.option("--arm", hidden=True)
@click.option("--work", type=click.Path(path_type=Path), hidden=True)
def main(rounds: int, device: str, tiny: bool, out: Path | None, arm: str | None, work: Path | None) -> None:
    """Rows per second of generation and of few-shot scoring, beside padded `generate` and lm-evaluation-harness."""
    if arm is not None:
        assert work is not None
        click.echo(json.dumps(run_harness(work, device)))
        return
    if device == "cuda" and not torch.cuda.is_available():
        click.echo("no GPU: nothing was measured")
        return
    size = TINY if tiny else Size()
    torch.manual_seed(0)
    # Tied to the embeddings, a random output layer repeats ids: few texts would end.
    config = GPT2Config(tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, **size.shape)
    model = GPT2LMHeadModel(config).eval()
    has_harness = importlib.util.find_spec("lm_eval") is not None
    report = Lines(out or (None if tiny else Path(__file__).with_suffix(".md")))
    report.add(
        "# Generation and few-shot scoring on a GPU",
        "",
        f"{machine(device)}. GPT-2 of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M random parameters, "
        f"{size.num_rows} rows, {size.batch_rows} in a batch. Generation: passages of {size.passage} tokens, half of "
        f"the rows share theirs with others; at most {size.max_new_tokens} new tokens, one id of {size.end_every} ends "
        f"a text. Scoring: three answers after {NUM_SHOTS} demonstrations. `python benchmarks/gpu_eval.py --rounds "
        f"{rounds}`" + ("" if has_harness else "; lm-evaluation-harness is not installed, its arm did not run"),
        "",
        "| what | precision | arm | rows/s, median [min-max] | peak memory | answers |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        word_tokenizer(model.config.vocab_size).save_pretrained(folder)
        model.to(device)
        for precision in ("fp32", "bf16"):
            in_precision(model, precision)
            generation(model, precision, size, device, rounds, report)
            scoring(model, precision, size, device, rounds, report, Path(folder), has_harness)


if __name__ == "__main__":
    main()
