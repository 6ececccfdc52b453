"""Model cards, from `card.md.j2`: each task's prompt string and a snippet of plain Hugging Face code.

A test executes the snippet.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multitask.pattern import fields, render, text_of
from multitask.task import END, Task


def card(tasks: Mapping[str, Task], examples: Mapping[str, Mapping[str, str]], base: str | None = None) -> str:
    """The card of a model that was tuned on tasks.

    examples: one row's fields of each task. base: with LoRA, where the base is, as a Python expression.
    """
    name, task = next(iter(tasks.items()))
    example = examples.get(name) or {field: "" for field in fields(task.stream)}
    rows = [
        {
            "name": name,
            "prompt": prompt_text(task, {field: f"{{{field}}}" for field in fields(task.stream)}),
            "target": task.target,
        }
        for name, task in tasks.items()
    ]
    return _rendered(tasks=rows, prompt=prompt_text(task, example), max_new_tokens=task.max_new_tokens, base=base)


def plain_card(prompt: str, max_new_tokens: int, needs_import: bool) -> str:
    """The card of a model of plain text; prompt: what the snippet continues."""
    return _rendered(prompt=prompt, max_new_tokens=max_new_tokens, needs_import=needs_import)


def _rendered(prompt: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["bars"] = lambda text: text.replace("|", "\\|")
    given = {"tasks": [], "base": None, "needs_import": False, "end": END, **values}
    return environment.get_template("card.md.j2").render(prompt=json.dumps(prompt, ensure_ascii=False), **given)


def prompt_text(task: Task, values: Mapping[str, str]) -> str:
    """The prompt string; the literal text before the target belongs to the target."""
    return text_of(render(task, values, with_target=False))
