"""The public functions: settings in, results out.

`train(tasks=["summ", "qa"], out="runs/first")["tasks"]["qa"]["metrics"]["f1"]["value"]`
"""

from multitask.api.files import init
from multitask.api.hub import push
from multitask.api.runs import benchmark, evaluate, evaluate_text, fewshot, pretrain, preview, report, train
from multitask.api.serving import serve
from multitask.api.text import fetch_model, generate, generator, import_gguf, import_openai, list_models, tokenizer

__all__ = [
    "benchmark",
    "evaluate",
    "evaluate_text",
    "fetch_model",
    "fewshot",
    "generate",
    "generator",
    "import_gguf",
    "import_openai",
    "init",
    "list_models",
    "pretrain",
    "preview",
    "push",
    "report",
    "serve",
    "tokenizer",
    "train",
]
