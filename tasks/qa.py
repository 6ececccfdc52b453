"""Reading comprehension: answer with words of the passage.

Row: {"context": str, "question": str, "answers": [str, ...], "answer_start": [int, ...]}; `answer_start` may be absent.
The first answer is the target, all of them are references.
Source: SQuAD (Rajpurkar et al., 2016), KorQuAD 1.0 (Lim et al., 2019).
"""

from typing import Any

from multitask.task import Prompt, Task


def prepare(row: dict[str, Any]) -> dict[str, Any]:
    """Choose the target, keep all references, and find where the passage says the answer."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise ValueError(f"field 'answers' is {answers!r}, expected a list of at least one non-empty string")
    answer, context = answers[0], row.get("context") or ""
    start = context.find(answer)
    if row.get("answer_start"):
        start = row["answer_start"][0]
        if context[start : start + len(answer)] != answer:
            found = context[start : start + len(answer)]
            raise ValueError(f"field 'answer_start' {start} points at {found!r}, expected the answer {answer!r}")
    keep = [start, start + len(answer)] if start >= 0 else None
    return {**row, "answer": answer, "references": answers, "keep": keep}


TASK = Task(
    name="qa",
    stream="{context}<|question|>{question}<|answer|>{answer}<|end|>",
    target="answer",
    truncate="context",
    prompts={
        "en": (
            Prompt("{context}\nQ: {question}\nA:", name="gpt3"),
            Prompt("Background: {context}\n\nQuestion: {question}\n\nAnswer:", stop=("\n",), name="lm-eval"),
            Prompt(
                "Answer the question with a few words of the excerpt.\n"
                "Excerpt: {context}\nQuestion: {question}\nAnswer:",
                stop=("\n",),
                name="instruction",
            ),
        ),
        "ko": (
            Prompt("{context}\n질문: {question}\n답:", name="labelled"),
            Prompt("읽을 글: {context}\n\n질문: {question}\n\n정답:", stop=("\n",), name="background"),
            Prompt(
                "글에 나온 말로 질문에 짧게 답하세요.\n읽을 글: {context}\n질문: {question}\n답:",
                stop=("\n",),
                name="instruction",
            ),
        ),
    },
    metrics=("f1", "exact_match"),
    baselines=("random_span",),
    max_new_tokens=32,
    prepare=prepare,
)
