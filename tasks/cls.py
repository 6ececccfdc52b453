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
    prompts={"en": Prompt("Text: {text}\nLabel:"), "ko": Prompt("글: {text}\n분류:")},
    metrics=("accuracy", "macro_f1"),
    baselines=("majority",),
    max_new_tokens=8,
)
