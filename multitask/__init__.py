"""One language model, many tasks, one honest report.

`from multitask import train, evaluate, load_tasks`; nothing heavy is imported before one of them is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitask.api import evaluate as evaluate
    from multitask.api import train as train
    from multitask.registry import load_tasks as load_tasks

_HOMES = {"train": "multitask.api", "evaluate": "multitask.api", "load_tasks": "multitask.registry"}
__all__ = ["evaluate", "load_tasks", "train"]


def __getattr__(name: str) -> Any:
    """The public functions, imported on first use (PEP 562)."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'multitask' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
