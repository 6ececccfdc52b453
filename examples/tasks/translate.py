"""Translation between Korean and English: the sixth task, one file and no other edit.

Row: {"source": str, "translation": str}; which language is which, the text itself shows.
Source: the synthetic dataset has such pairs; any parallel corpus does, with `columns: {source: ko, translation: en}`.

`multitask train --tasks translate --tasks-dir examples/tasks`
"""

from multitask.task import Prompt, Task

TASK = Task(
    name="translate",
    stream="{source}<|translate|>{translation}<|end|>",
    target="translation",
    truncate="source",
    prompts={"en": Prompt("English: {source}\nKorean:"), "ko": Prompt("한국어: {source}\n영어:")},
    metrics=("rougeL", "exact_match"),
    max_new_tokens=48,
)
