"""The public functions: settings in, results out.

`train(tasks=["summ", "qa"], out="runs/first")["tasks"]["qa"]["metrics"]["f1"]["value"]`
"""

from multitask.api.runs import benchmark, evaluate, evaluate_text, fewshot, pretrain, preview, report, train
from multitask.api.text import generate, generator, import_openai, tokenizer

__all__ = [
    "benchmark",
    "evaluate",
    "evaluate_text",
    "fewshot",
    "generate",
    "generator",
    "import_openai",
    "pretrain",
    "preview",
    "report",
    "tokenizer",
    "train",
]
