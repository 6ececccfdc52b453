"""Natural language inference: does the premise entail the hypothesis?

Row: {"premise": str, "hypothesis": str, "label": "entailment" | "neutral" | "contradiction"}
Source: KLUE-NLI (Park et al., 2021), SNLI (Bowman et al., 2015).
"""

from multitask.task import Prompt, Task

TASK = Task(
    name="nli",
    stream="{premise}<|sep|>{hypothesis}<|nli|>{label}<|end|>",
    target="label",
    truncate="premise",
    label="label",
    choices=("entailment", "neutral", "contradiction"),
    prompts={
        "en": Prompt(
            "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:", (" True", " Neither", " False")
        ),
        "ko": Prompt("{premise}\n가설: {hypothesis}\n관계:", (" 함의", " 중립", " 모순")),
    },
    metrics=("accuracy", "macro_f1"),
    baselines=("majority",),
    max_new_tokens=8,
)
