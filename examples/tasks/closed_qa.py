"""Closed-book question answering: answer from memory, without a passage.

Row: {"question": str, "answer": str}, or {"question": str, "answers": [str, ...]} as in the files of `qa`, whose
passages are left out; the first answer is the target, all of them are references.
Source: the experiment is that of GPT-3 (Brown et al., 2020, section 3.2) and of Roberts et al. (2020); any set of
questions and answers serves.

A score is knowledge only where the model has read the fact before. Questions of SQuAD's kind were written beside their
passage, and many mean nothing without it. In the synthetic dataset everybody asked about, in test too, is one whom its
training text tells of, but no question of test is one of train; a model that never read that text can only guess
among four or six values.

`multitask fewshot --tasks closed_qa --tasks-dir examples/tasks --shots 0,1,4,8`
"""

from typing import Any

from multitask.task import Prompt, Task


def prepare(row: dict[str, Any]) -> dict[str, Any]:
    """Choose the target and keep all references."""
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise ValueError(
            f"field 'answers' (or 'answer') is {answers!r}, expected a text or a list of at least one non-empty text"
        )
    return {**row, "answer": answers[0], "references": answers}


TASK = Task(
    name="closed_qa",
    stream="<|question|>{question}<|answer|>{answer}<|end|>",
    target="answer",
    prompts={"en": Prompt("Q: {question}\nA:"), "ko": Prompt("질문: {question}\n답:")},
    metrics=("exact_match", "f1"),
    max_new_tokens=32,
    prepare=prepare,
)
