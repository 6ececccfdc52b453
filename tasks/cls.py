"""Classification: which of the data's labels fits the text?

Row: {"text": str, "label": a key of the source's `labels`}
Source: NSMC (Park, 2016), KLUE-YNAT (Park et al., 2021).
"""

from multitask.task import Prompt, Task

TASK = Task(
    name="cls",
    stream="{text}<|classify|>{label}<|end|>",
    target="label",
    truncate="text",
    label="label",
    prompts={
        "en": (
            Prompt("Text: {text}\nLabel:", name="labelled"),
            Prompt("{text}\nQuestion: Which of these fits the text? {choices}\nAnswer:", name="question"),
            Prompt("Classify the text. Labels: {choices}\nText: {text}\nLabel:", name="instruction"),
        ),
        "ko": (
            Prompt("글: {text}\n분류:", name="labelled"),
            Prompt("{text}\n질문: 다음 중 이 글에 맞는 것은 무엇입니까? {choices}\n답:", name="question"),
            Prompt("글을 다음 중 하나로 분류하세요: {choices}\n글: {text}\n분류:", name="instruction"),
        ),
    },
    metrics=("accuracy", "macro_f1"),
    baselines=("majority",),
    max_new_tokens=8,
    columns={
        "text": (
            "document",
            "sentence",
            "review",
            "comment",
            "content",
            "title",
            "리뷰",
            "문장",
            "댓글",
            "글",
            "본문",
            "내용",
            "제목",
        ),
        "label": (),
    },
)
