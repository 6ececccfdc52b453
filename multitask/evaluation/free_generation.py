"""What a tuned model writes when nothing holds it: sampled texts, described, and free answers to closed questions.

`describe(...)` -> `{"num_texts": 200, "distinct2": 0.93, "repetition": 0.01, "length": 9.4, "label_agreement": 0.88}`.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from multitask.config.evaluation import EvalConfig
from multitask.data.rows import Row
from multitask.evaluation import metrics
from multitask.inference.decoding import Uniform, generate
from multitask.inference.scoring import choose
from multitask.pattern import fields, parse
from multitask.task import END, Task
from multitask.tokenization.encoded_rows import Examples
from multitask.tokenization.row_encoder import RowEncoder


def numbers(*seed: int) -> Uniform:
    """Numbers in [0, 1) to sample with: each a function of the seed, the row and the step."""
    return lambda row, step: float(np.random.default_rng([*seed, row, step]).random())


def judge_of(task: Task, tasks: Mapping[str, Task]) -> Task | None:
    """The closed task that reads what this one writes and answers with its label, as `cls` reads what `gen` writes."""
    asked = set(fields(task.stream))
    return next(
        (t for t in tasks.values() if t.is_closed and t.target == task.label and set(fields(t.stream)) == asked), None
    )


def describe(
    model: Any,
    tokenizer: Any,
    task: Task,
    tasks: Mapping[str, Task],
    rows: Examples,
    config: EvalConfig,
    block_size: int,
    seed: int,
) -> dict[str, Any]:
    """Describes one sampled text (temperature 1) for each of the first `eval.max_free_rows` prompts.

    label_agreement: how often the model, asked as a closed task of its own, gives a text the label that it was written
    for; left out where there is no such task or no label.
    """
    num = min(len(rows), config.max_free_rows)
    prompts = [rows.ids(n)[: rows.num_prompts[n]] for n in range(num)]
    written = generate(
        model,
        prompts,
        task.max_new_tokens,
        {tokenizer.convert_tokens_to_ids(END)},
        config.batch_tokens,
        uniform=numbers(seed),
    )
    clean = task.parse or str.strip
    texts = [clean(tokenizer.decode(new, skip_special_tokens=True)) for new, _ in written]
    result: dict[str, Any] = {
        "num_texts": num,
        "num_unfinished": sum(not finished for _, finished in written),
        "sample": texts[:3],
    }
    for name in metrics.DESCRIPTORS:
        metric = metrics.build(name, "en")
        result[name] = round(metrics.score(metric, [metric.per_example(text, []) for text in texts]), 6)
    for n in (1, 2):
        corpus = metrics.CorpusDistinct(n)
        for text in texts:
            corpus.add(text)
        result[f"corpus_distinct{n}"] = round(corpus.value(), 6)
    judge = judge_of(task, tasks)
    if judge is not None and task.label is not None:
        records = [rows.row(n) for n in range(num)]
        labelled = [(r, t) for r, t in zip(records, texts, strict=True) if r["fields"].get(task.label) and t]
        if labelled:
            agreed = sum(_agrees(model, tokenizer, judge, task, labelled, config, block_size))
            result["label_agreement"] = round(agreed / len(labelled), 6)
            result["num_labelled"] = len(labelled)
    return result


def _agrees(
    model: Any,
    tokenizer: Any,
    judge: Task,
    task: Task,
    labelled: list[tuple[dict[str, Any], str]],
    config: EvalConfig,
    block_size: int,
) -> Iterator[bool]:
    """Whether the judge's answer about each text is the label it was written for."""
    encoder, end = RowEncoder(judge, tokenizer, block_size, judge.max_new_tokens), tokenizer.convert_tokens_to_ids(END)
    literal = parse(judge.stream)[-2].literal
    asked = []
    for record, text in labelled:
        values = {**record["fields"], task.target: text}
        row = Row(record["id"], values, (), record["language"], tuple(record["choices"]), (), None, record["where"])
        (encoded,) = encoder.encode([row])
        answers = [[*encoder.plain.encode(literal + w, add_special_tokens=False).ids, end] for w in record["choices"]]
        asked.append((encoded.input_ids[: encoded.num_prompt], answers) if encoded is not None else None)
    found = iter(choose(model, [a for a in asked if a is not None], config.batch_tokens))
    for (record, _), given in zip(labelled, asked, strict=True):
        yield given is not None and record["choices"][next(found)[0]] == record["fields"][judge.target]


def num_outside(model: Any, tokenizer: Any, task: Task, rows: Examples, config: EvalConfig) -> tuple[int, int]:
    """Free answers outside the closed set, and how many were written: one for each of the first rows."""
    num = min(len(rows), config.max_free_rows)
    prompts = [rows.ids(n)[: rows.num_prompts[n]] for n in range(num)]
    end = tokenizer.convert_tokens_to_ids(END)
    written = generate(model, prompts, task.max_new_tokens, {end}, config.batch_tokens)
    clean = task.parse or str.strip
    answers = [clean(tokenizer.decode(new, skip_special_tokens=True)) for new, _ in written]
    choices = (rows.row(n)["choices"] for n in itertools.count())
    return sum(answer not in words for answer, words in zip(answers, choices, strict=False)), num
