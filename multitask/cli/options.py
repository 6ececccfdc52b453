"""Options that several commands have, and how they become dotted settings."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def split_names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """A callback: names between commas."""
    return [name.strip() for name in value.split(",") if name.strip()] if value is not None else None


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every command with settings has."""
    options = [
        click.option(
            "--tasks", callback=split_names, metavar="A,B", help="Task names; default: those of the settings."
        ),
        click.option("--config", type=click.Path(path_type=Path), help="Settings file (YAML)."),
        click.option("--set", "flags", multiple=True, metavar="A.B=C", help="One setting by dotted name; repeatable."),
        click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute."),
        click.option("--limit", type=int, help="Use the first N training rows of each task."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def dotted(flags: tuple[str, ...], **named: Any) -> list[str]:
    """Dotted settings of the options that were given."""
    given = {name.replace("__", "."): value for name, value in named.items() if value is not None}
    return [*(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()), *flags]


def program() -> str:
    """How this program was called, for messages."""
    return "python run.py" if Path(sys.argv[0]).name == "run.py" else "multitask"
