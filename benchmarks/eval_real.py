"""A pretrained model beside lm-evaluation-harness on the same strings: scores, log-likelihoods, rows/s.

`python benchmarks/eval_real.py` prompts SmolLM2-135M with `multitask fewshot`, hands the same prompts to the harness,
and compares accuracy (NLI, 8 demonstrations, likelihood) and F1 (QA, none, generated text); then it times both on the
NLI prompts, and ours on short prompts of Gemma 3 270M, whose vocabulary of 262,144 tokens costs more than its layers.
Writes `benchmarks/eval_real.md`. `make bench-eval-real` makes the environment; the models come from `multitask models
get smollm2-135m` and `gemma3-270m`.
"""

import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import Clock, commit, processor, read_lines, run_arm, write_lines

ENGLISH, GEMMA = "smollm2-135m", "gemma3-270m"
SOURCES = {"nli": ["nli_en_cad"], "qa": ["qa_en_xquad", "qa_en_qed"]}
SHOTS = {"nli": 8, "qa": 0}
TEMPLATES = {"nli": "first", "qa": "lm-eval"}
MARKS = ["\n"]  # what ends an answer of that template
MAX_NEW_TOKENS = 32
BATCH, BATCH_TOKENS = 16, 8192
MOST_NATS, MOST_SCORE = 1e-3, 0.02
SHORT_ROWS = 300


def prepare(work: Path, root: Path, num_rows: int) -> None:
    """Scores SmolLM2 with `fewshot`, and writes the prompts that it was asked with: `nli.jsonl` and `qa.jsonl`."""
    from multitask.api import fewshot

    settings = {
        "seed": 7,
        "device": "cpu",
        "data": {"root": str(root), "sources": SOURCES},
        "eval": {"max_rows": num_rows, "num_bootstrap": 10},
    }
    for task in SOURCES:
        chosen = {"shots": [SHOTS[task]], "draws": 1, "templates": TEMPLATES[task], "chat": "off", "rule": "raw"}
        fewshot(ENGLISH, settings | {"fewshot": chosen}, tasks=[task], out=work / f"{task}-ours.json")
        name = f"{task}.shots-{SHOTS[task]}.draw-0.jsonl"
        rows = [json.loads(line) for line in read_lines(work / f"{task}-ours.json.predictions" / name)]
        asked = [{"prompt": row["prompt"], "references": row["references"]} for row in rows]
        if task == "nli":
            names = list(rows[0]["choice_nll"])
            asked = [row | {"gold": names.index(row["references"][0])} for row in asked]
            (work / "nats.json").write_text(json.dumps([list(row["choice_nll"].values()) for row in rows]), "utf-8")
        write_lines(work / f"{task}.jsonl", [json.dumps(row) for row in asked])
    lines = read_lines(root / "gen_ko_nsmc.test.jsonl")[:SHORT_ROWS]
    short = [{"prompt": f"영화평: {json.loads(line)['text']}\n느낌:"} for line in lines]
    write_lines(work / "short.jsonl", [json.dumps(row) for row in short])


def _words() -> list[str]:
    from multitask.registry import load_tasks

    words = load_tasks()["nli"].templates("en")[0].words
    assert words is not None
    return list(words)


def _choosing(name: str, prompts: list[str], words: list[str]) -> tuple[dict[str, float], list[list[float]]]:
    from multitask.inference.scoring import choice_nll
    from multitask.models.io import load_causal

    model, tokenizer = load_causal(name)
    clock = Clock()
    starts = [tokenizer.encode(prompt) for prompt in prompts]
    choices = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    nats = choice_nll(model, [(np.array(ids, np.int32), choices) for ids in starts], BATCH_TOKENS)
    embeddings = model.get_input_embeddings().weight
    layers = sum(p.numel() for p in model.parameters()) - embeddings.numel()
    tokens = sum(map(len, starts)) + len(starts) * sum(map(len, choices))
    scored = len(starts) * (1 + sum(len(ids) - 1 for ids in choices))
    flops = 2.0 * (layers * tokens + embeddings.numel() * scored)
    return clock.result("rows", len(prompts)) | {"gflops": flops / 1e9}, [[-nll for nll in row] for row in nats]


def ours(work: Path) -> tuple[dict[str, float], Any]:
    """Prompt and answer strings to log-likelihoods, by this project."""
    return _choosing(ENGLISH, [json.loads(line)["prompt"] for line in read_lines(work / "nli.jsonl")], _words())


def short(work: Path) -> tuple[dict[str, float], Any]:
    """The same on short Korean prompts of Gemma."""
    return _choosing(
        GEMMA, [json.loads(line)["prompt"] for line in read_lines(work / "short.jsonl")], [" 긍정", " 부정"]
    )


def _harness(work: Path, task: str, more: dict[str, Any]) -> tuple[dict[str, float], list[Any]]:
    """What the harness answers, in the order of the rows; the time of its model calls alone."""
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from multitask.models.names import model_folder

    result: dict[str, float] = {}

    class Timed(HFLM):
        def loglikelihood(self, requests: Any, *rest: Any, **named: Any) -> Any:
            nonlocal result
            clock = Clock()
            found = super().loglikelihood(requests, *rest, **named)
            result = clock.result("rows", len(read_lines(work / f"{task}.jsonl")))
            return found

    settings = {
        "task": f"real_{task}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(work / f"{task}.jsonl")}},
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": "",
        "num_fewshot": 0,  # demonstrations are part of the prompt
        **more,
    }
    (work / "tasks").mkdir(exist_ok=True)
    (work / "tasks" / f"real_{task}.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), "utf-8")
    evaluated = simple_evaluate(
        model=Timed(pretrained=model_folder(ENGLISH), batch_size=BATCH, device="cpu", dtype="float32"),
        tasks=[f"real_{task}"],
        task_manager=TaskManager(include_path=str(work / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    assert evaluated is not None
    samples = sorted(evaluated["samples"][f"real_{task}"], key=lambda sample: sample["doc_id"])
    return result, [sample["filtered_resps"] for sample in samples]


def harness(work: Path) -> tuple[dict[str, float], Any]:
    """The NLI prompts, by lm-evaluation-harness."""
    task = {
        "output_type": "multiple_choice",
        "doc_to_target": "gold",
        "doc_to_choice": _words(),
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    result, found = _harness(work, "nli", task)
    return result, [[loglikelihood for loglikelihood, _ in row] for row in found]


def harness_answers(work: Path) -> tuple[dict[str, float], Any]:
    """The QA prompts, by lm-evaluation-harness."""
    task = {
        "output_type": "generate_until",
        "doc_to_target": "{{references[0]}}",
        "generation_kwargs": {"until": MARKS, "max_gen_toks": MAX_NEW_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    result, found = _harness(work, "qa", task)
    return result, [row[0] for row in found]


RUN: dict[str, Callable[[Path], tuple[dict[str, float], Any]]] = {
    "ours": ours,
    "harness": harness,
    "harness answers": harness_answers,
    "short": short,
}


def compared(work: Path) -> dict[str, float]:
    """Scores of both on the same rows; raises AssertionError where they are too far apart."""
    from multitask.evaluation import metrics

    golds = np.array([json.loads(line)["gold"] for line in read_lines(work / "nli.jsonl")])
    reported = -np.array(json.loads((work / "nats.json").read_text("utf-8")))
    theirs = np.array(json.loads((work / "harness.json").read_text("utf-8")))
    furthest = float(np.abs(reported - theirs).max())
    assert furthest <= MOST_NATS, f"log-likelihoods differ by {furthest}"
    found = {task: json.loads((work / f"{task}-ours.json").read_text("utf-8"))["tasks"][task] for task in SOURCES}
    scores = {task: found[task]["per_shot"][str(SHOTS[task])] for task in SOURCES}
    f1 = metrics.build("f1", "en")
    answers = json.loads((work / "harness answers.json").read_text("utf-8"))
    sums = metrics.Numbers(
        f1.per_example(answer.strip(), json.loads(line)["references"])
        for line, answer in zip(read_lines(work / "qa.jsonl"), answers, strict=True)
    )
    result = {
        "num_rows": len(golds),
        "num_questions": len(answers),
        "furthest": furthest,
        "accuracy": scores["nli"]["mean"],
        "their_accuracy": float((theirs.argmax(1) == golds).mean()),
        "f1": scores["qa"]["mean"],
        "their_f1": metrics.score(f1, sums),
    }
    assert abs(result["accuracy"] - result["their_accuracy"]) <= MOST_SCORE, result
    assert abs(result["f1"] - result["their_f1"]) <= MOST_SCORE, result
    return result


def peak_gflops() -> float:
    """GFLOP/s of an fp32 product of random matrices, 2048 x 2048, the best of five."""
    import torch

    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    clocks = []
    for _ in range(5):
        clock = Clock()
        _ = left @ right
        clocks.append(clock.result("products", 1)["elapsed_s"])
    return 2 * 2048**3 / 1e9 / max(min(clocks), 1e-3)


@click.command()
@click.option("--root", envvar="MULTITASK_DATA", type=click.Path(path_type=Path), help="The data.")
@click.option("--rows", default=200, show_default=True, help="Test rows of each task.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Keep intermediate files here.")
@click.option("--arm", help="Run one arm; of the benchmark itself.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).with_suffix(".md"), show_default=True)
def main(root: Path | None, rows: int, rounds: int, work: Path | None, arm: str | None, out: Path) -> None:
    """Compares and times all arms."""
    if arm is not None:
        assert work is not None
        result, found = RUN[arm](work)
        (work / f"{arm}.json").write_text(json.dumps(found), "utf-8")
        click.echo(json.dumps(result))
        return
    if root is None:
        raise click.UsageError("no data; name the folder of the sets with --root, or in MULTITASK_DATA")
    with tempfile.TemporaryDirectory() as folder:
        work = work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / f"rows-{rows}").exists():
            prepare(work, root, rows)
            (work / f"rows-{rows}").touch()
        run_arm(__file__, "harness answers", work)
        timed: dict[str, list[dict[str, float]]] = {"ours": [], "harness": [], "short": []}
        for _ in range(rounds):
            for name, found in timed.items():
                found.append(run_arm(__file__, name, work))
        facts = compared(work)
    rate = {name: [each["rows_per_s"] for each in found] for name, found in timed.items()}
    ratios = [one / other for one, other in zip(rate["ours"], rate["harness"], strict=True)]
    seconds = [each["elapsed_s"] for each in timed["short"]]
    per_s = [each["gflops"] / each["elapsed_s"] for each in timed["short"]]
    peak = peak_gflops()
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("lm_eval", "torch", "transformers"))
    lines = [
        "# A pretrained model beside lm-evaluation-harness",
        "",
        f"SmolLM2-135M in fp32, prompts of `multitask fewshot`, the same strings for both. {processor()}, {versions}"
        f"{commit()}; `python benchmarks/eval_real.py --rows {rows} --rounds {rounds}`.",
        "",
        "| rows | what | ours | harness |",
        "| --- | --- | --- | --- |",
        f"| {facts['num_rows']} of nli_en_cad, 8 demonstrations | accuracy | {facts['accuracy']:.3f} | "
        f"{facts['their_accuracy']:.3f} |",
        f"| {facts['num_questions']} of qa_en_xquad and qa_en_qed, none | F1 | {facts['f1']:.3f} | "
        f"{facts['their_f1']:.3f} |",
        "",
        f"All {3 * int(facts['num_rows'])} log-likelihoods are equal within {facts['furthest']:.0e} nats.",
        "",
        "| choosing among three words after 8 demonstrations | rows/s by round | peak memory |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {', '.join(f'{value:.2f}' for value in rate[name])} | "
            f"{max(each['peak_bytes'] for each in timed[name]) / 2**20:,.0f} MiB |"
            for name in ("ours", "harness")
        ),
        "",
        f"Ours is {', '.join(f'{ratio:.1f}' for ratio in ratios)} times as fast (by round).",
        "",
        f"{SHORT_ROWS} short prompts of gen_ko_nsmc, two answers each, on Gemma 3 270M: "
        f"{', '.join(f'{value:.1f}' for value in seconds)} s, "
        f"{', '.join(f'{value / peak:.2f}' for value in per_s)} of the {peak:,.0f} GFLOP/s of a large fp32 product.",
    ]
    out.write_text("\n".join(lines) + "\n", "utf-8")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
