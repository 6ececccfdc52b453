"""One language model, many tasks, one honest report.

`from multitask import train, evaluate, load_tasks`; nothing heavy is imported before one of them is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitask.api import benchmark as benchmark
    from multitask.api import evaluate as evaluate
    from multitask.api import evaluate_text as evaluate_text
    from multitask.api import fetch_model as fetch_model
    from multitask.api import fewshot as fewshot
    from multitask.api import generate as generate
    from multitask.api import generator as generator
    from multitask.api import import_gguf as import_gguf
    from multitask.api import import_openai as import_openai
    from multitask.api import init as init
    from multitask.api import list_models as list_models
    from multitask.api import pretrain as pretrain
    from multitask.api import preview as preview
    from multitask.api import push as push
    from multitask.api import report as report
    from multitask.api import serve as serve
    from multitask.api import tokenizer as tokenizer
    from multitask.api import train as train
    from multitask.errors import InputError as InputError
    from multitask.registry import load_tasks as load_tasks

_ELSEWHERE = {"InputError": "multitask.errors", "load_tasks": "multitask.registry"}
__all__ = [
    "InputError",
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
    "load_tasks",
    "pretrain",
    "preview",
    "push",
    "report",
    "serve",
    "tokenizer",
    "train",
]


def __getattr__(name: str) -> Any:
    """The public names, imported on first use (PEP 562)."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'multitask' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "multitask.api")), name)


def __dir__() -> list[str]:
    """The public names alone."""
    return sorted(__all__)
