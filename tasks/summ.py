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
        "en": (
            Prompt("{document}\nTL;DR:", stop=(), sentences=3, name="tldr"),
            Prompt("Text: {document}\n\nSummary in one sentence:", stop=(), sentences=1, name="one-sentence"),
            Prompt(
                "Summarize the text below briefly.\n\nText: {document}\n\nSummary:",
                stop=(),
                sentences=2,
                name="instruction",
            ),
        ),
        "ko": (
            Prompt("{document}\n요약:", stop=(), sentences=3, name="labelled"),
            Prompt("글: {document}\n한 줄 요약:", stop=("\n",), sentences=1, name="one-line"),
            Prompt(
                "다음 글의 핵심 내용을 짧게 요약하세요.\n\n글: {document}\n\n요약:",
                stop=(),
                sentences=2,
                name="instruction",
            ),
        ),
    },
    metrics=("rougeL", "rouge1", "rouge2"),
    baselines=("lead1", "lead3"),
    max_new_tokens=96,
    columns={
        "document": ("article", "text", "dialogue", "본문", "원문", "문서", "글"),
        "summary": ("highlights", "abstract", "요약", "요약문"),
    },
)
