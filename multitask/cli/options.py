"""Options that several commands have, and how they become dotted settings."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from multitask.config.base import Flag
from multitask.errors import InputError

_OPTIONS = {
    "train.learning_rate": "--lr",
    "model.name": "--model",
    "adapter.kind": "--adapter",
}
"""Options that are not called like the setting that they give."""


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


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that decide what is trained, of `train` and of `preview`, which shows the same."""
    options = [
        click.option("--model", help="Hub name or local folder; default: a randomly initialised GPT-2."),
        click.option("--adapter", type=click.Choice(["none", "lora"]), help="Train all weights, or LoRA."),
        click.option("--merge", is_flag=True, default=None, help="With LoRA: write a plain model."),
        click.option("--epochs", type=float, help="Passes over the rows (train.epochs)."),
        click.option("--lr", type=float, help="Peak learning rate (train.learning_rate)."),
        click.option("--batch-tokens", type=int, help="Tokens of one step (train.batch_tokens)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def training_settings(flags: tuple[str, ...], options: dict[str, Any]) -> list[str]:
    """Dotted settings of `shared_options` and `training_options`, which are taken out of the options of a command."""
    return dotted(
        flags,
        device=options.pop("device"),
        data__limit=options.pop("limit"),
        model__name=options.pop("model"),
        adapter__kind=options.pop("adapter"),
        adapter__merge=options.pop("merge"),
        train__epochs=options.pop("epochs"),
        train__learning_rate=options.pop("lr"),
        train__batch_tokens=options.pop("batch_tokens"),
    )


def dotted(flags: tuple[str, ...], **named: Any) -> list[str]:
    """Dotted settings of the options that were given, each with the option's own words.

    Raises InputError for a setting that both an option and `--set` give.
    """
    given: list[str] = []
    for name, value in named.items():
        if value is None:
            continue
        path = name.replace("__", ".")
        option = _OPTIONS.get(path, f"--{path.rpartition('.')[2].replace('_', '-')}")
        written = (
            ",".join(map(str, value))
            if isinstance(value, list)
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        shown = option if value is True else f"{option} {written}"
        for flag in flags:
            if flag.partition("=")[0].strip() == path:
                raise InputError(f"{shown} and --set {flag} give the same setting, {path}: leave out one of the two")
        given.append(Flag(f"{path}={json.dumps(value, ensure_ascii=False)}", shown))
    return [*given, *flags]


def program() -> str:
    """How this program was called, for messages."""
    return "python run.py" if Path(sys.argv[0]).name == "run.py" else "multitask"
