"""Reading comprehension: answer with words of the passage.

Row: {"context": str, "question": str, "answers": [str, ...], "answer_start": [int, ...]}; `answer_start` may be absent.
`answers` may also be one text, SQuAD's `{"text": [...], "answer_start": [...]}`, or a list of such pairs.
The first answer is the target, all of them are references.
Source: SQuAD (Rajpurkar et al., 2016; 2.0: 2018), KorQuAD 1.0 (Lim et al., 2019).
"""

from typing import Any
from unicodedata import normalize

from multitask.task import NoAnswer, Prompt, Task


def prepare(row: dict[str, Any]) -> dict[str, Any]:
    """Choose the target, keep all references, and find where the passage says the answer."""
    answers, starts = _answers(row)
    if row.get("is_impossible") is True or answers == []:
        raise NoAnswer("the question has no answer (field 'answers' is empty, or 'is_impossible' is true)")
    context = row.get("context")
    if not isinstance(context, str):
        return row  # the field's own check names it
    answer = answers[0]
    start = context.find(answer)
    end = start + len(answer)
    if starts:
        start = starts[0]
        found = _end(context, start, answer)
        if found is None:
            shown = context[max(start, 0) : max(start, 0) + len(answer)]
            raise ValueError(f"field 'answer_start' {start} points at {shown!r}, expected the answer {answer!r}")
        end = found
    return {**row, "answer": answer, "references": answers, "keep": [start, end] if start >= 0 else None}


def _answers(row: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Texts and places of the answers, in any of the published forms."""
    answers, starts = row.get("answers"), row.get("answer_start")
    if isinstance(answers, str):
        answers = [answers]
    if isinstance(answers, list) and answers and all(isinstance(one, dict) for one in answers):
        starts = [one["answer_start"] for one in answers if one.get("answer_start") is not None] or starts
        answers = [one.get("text") for one in answers]
    elif isinstance(answers, dict):
        starts, answers = answers.get("answer_start", starts), answers.get("text")
        answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list):
        raise ValueError(f"field 'answers' is {_shown(answers)}, expected a list of texts, or {{text, answer_start}}")
    for one in answers:
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"field 'answers' holds {_shown(one)}, expected a text that is not empty")
    if starts is None or starts == []:
        return answers, []
    places = [_number(start) for start in (starts if isinstance(starts, list) else [starts])]
    if len(places) != len(answers):
        raise ValueError(
            f"field 'answer_start' has {len(places)} numbers, expected one for each of {len(answers)} answers"
        )
    return answers, places


def _number(start: Any) -> int:
    """4, 4.0 and "4" are 4."""
    is_number = isinstance(start, int | float | str) and not isinstance(start, bool)
    try:
        number = float(start) if is_number else -1.0
    except ValueError:
        number = -1.0
    if number < 0 or not number.is_integer():
        raise ValueError(f"field 'answer_start' holds {_shown(start)}, expected a whole number from 0")
    return int(number)


def _end(context: str, start: int, answer: str) -> int | None:
    """Where the answer at `start` ends, also where one of both is in another Unicode form; None if it is not there."""
    end = start + len(answer)
    if context[start:end] == answer:
        return end
    wanted = normalize("NFC", answer)
    ends = range(start + 1, min(len(context), start + 4 * len(answer)) + 1)
    return next((at for at in reversed(ends) if normalize("NFC", context[start:at]) == wanted), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


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
    columns={
        "context": ("passage", "paragraph", "본문", "지문", "글"),
        "question": ("query", "질문"),
        "answers": ("answer", "답", "정답", "답변"),
    },
    prepare=prepare,
)
