"""Abstractive summarization: say the document in fewer words.

Row: {"document": str, "summary": str}
Source: CNN/DailyMail (Hermann et al., 2015), XSum (Narayan et al., 2018), SciTLDR (Cachola et al., 2020), sae4K (Cho
et al., 2020).
"""

from multitask.task import Prompt, Task

TASK = Task(
    name="summ",
    stream="{document}<|summarize|>{summary}<|end|>",
    target="summary",
    truncate="document",
    prompts={
        "en": Prompt("{document}\nTL;DR:", stop=(), sentences=3),
        "ko": Prompt("{document}\n요약:", stop=(), sentences=3),
    },
    metrics=("rougeL", "rouge1", "rouge2"),
    baselines=("lead1", "lead3"),
    max_new_tokens=96,
)
