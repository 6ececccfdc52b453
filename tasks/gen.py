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
    prompts={"en": Prompt("Write a text.\nKind: {label}\nText:"), "ko": Prompt("글을 쓰세요.\n종류: {label}\n글:")},
    metrics=("perplexity", "bits_per_byte"),
    max_new_tokens=64,
)
