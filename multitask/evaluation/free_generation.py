"""What a tuned model writes when nothing holds it: sampled texts, described, and free answers to closed questions.

`describe(...)` -> `{"num_texts": 200, "distinct2": 0.93, "repetition": 0.01, "length": 9.4, "label_agreement": 0.88}`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multitask.data.rows import Row
from multitask.evaluation import metrics
from multitask.evaluation.evaluator import EncodedPrompt
from multitask.evaluation.schema import GeneratedTexts
from multitask.inference.decoding import Uniform, generate
from multitask.inference.scoring import choose
from multitask.pattern import fields, parse
from multitask.task import END, Task
from multitask.tokenization.row_encoder import RowEncoder
from multitask.tokenization.tokenizer import whole_text


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
    prompts: Sequence[EncodedPrompt],
    batch_tokens: int,
    block_size: int,
    seed: int,
) -> GeneratedTexts:
    """Describes one sampled text (temperature 1) for each prompt.

    label_agreement: how often the model, asked as a closed task of its own, gives a text the label that it was written
    for; left out where there is no such task or no label.
    """
    written = generate(
        model,
        [prompt.ids for prompt in prompts],
        task.max_new_tokens,
        {tokenizer.convert_tokens_to_ids(END)},
        batch_tokens,
        uniform=numbers(seed),
    )
    clean = task.parse or str.strip
    texts = [clean(whole_text(tokenizer.decode(new, skip_special_tokens=True))) for new, _ in written]
    result: dict[str, object] = {
        "num_texts": len(prompts),
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
        labelled = [(p.row, t) for p, t in zip(prompts, texts, strict=True) if p.row.fields.get(task.label) and t]
        if labelled:
            agreed = sum(_agrees(model, tokenizer, judge, task, labelled, batch_tokens, block_size))
            result["label_agreement"] = round(agreed / len(labelled), 6)
            result["num_labelled"] = len(labelled)
    return GeneratedTexts(**result)


def _agrees(
    model: Any,
    tokenizer: Any,
    judge: Task,
    task: Task,
    labelled: list[tuple[Row, str]],
    batch_tokens: int,
    block_size: int,
) -> Iterator[bool]:
    """Whether the judge's answer about each text is the label it was written for."""
    encoder, end = RowEncoder(judge, tokenizer, block_size, judge.max_new_tokens), tokenizer.convert_tokens_to_ids(END)
    literal = parse(judge.stream)[-2].literal
    asked = []
    for source, text in labelled:
        row = replace(source, fields={**source.fields, task.target: text}, references=(), classes=(), keep=None)
        (encoded,) = encoder.encode([row])
        answers = [[*encoder.plain.encode(literal + w, add_special_tokens=False).ids, end] for w in row.choices]
        asked.append((encoded.input_ids[: encoded.num_prompt], answers) if encoded is not None else None)
    found = iter(choose(model, [a for a in asked if a is not None], batch_tokens))
    for (source, _), given in zip(labelled, asked, strict=True):
        yield given is not None and source.choices[next(found)[0]] == source.fields[judge.target]


def num_outside(
    model: Any, tokenizer: Any, task: Task, prompts: Sequence[EncodedPrompt], batch_tokens: int
) -> tuple[int, int]:
    """Free answers outside the closed set, and how many were generated: one for each prompt."""
    end = tokenizer.convert_tokens_to_ids(END)
    written = generate(model, [prompt.ids for prompt in prompts], task.max_new_tokens, {end}, batch_tokens)
    clean = task.parse or str.strip
    answers = [clean(whole_text(tokenizer.decode(new, skip_special_tokens=True))) for new, _ in written]
    return sum(a not in prompt.row.choices for a, prompt in zip(answers, prompts, strict=True)), len(prompts)
