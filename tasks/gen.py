"""Generation: write a text, of a kind if a label says so.

Row: {"text": str, "label": a key of the source's `labels`, or absent}
Source: NSMC (Park, 2016), StyleKQC (Cho et al., 2021).
"""

from multitask.task import Prompt, Task

TASK = Task(
    name="gen",
    stream="<|start|>{label} {text}<|end|>",
    target="text",
    label="label",
    optional=("label",),
    prompts={
        "en": (
            Prompt("Write a text.\nKind: {label}\nText:", name="instruction"),
            Prompt("Label: {label}\nText:", name="labelled"),
            Prompt("Here is a text that somebody wrote.\nIt is of this kind: {label}\nIt says:", name="sentence"),
        ),
        "ko": (
            Prompt("글을 쓰세요.\n종류: {label}\n글:", name="instruction"),
            Prompt("분류: {label}\n글:", name="labelled"),
            Prompt("다음은 누군가가 쓴 글입니다.\n글의 종류: {label}\n그 글:", name="sentence"),
        ),
    },
    metrics=("perplexity", "bits_per_byte"),
    max_new_tokens=64,
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
