"""Commands of data: settings for files of one's own, and a look at what training would see."""

import shlex
from pathlib import Path
from typing import Any

import click

from multitask.cli.options import dotted, program, shared_options


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--task", help="Name of the task; default: the one whose fields the columns have.")
@click.option("--column", "columns", multiple=True, metavar="FIELD=NAME", help="Which column a field is; repeatable.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Settings file; default: the first file's name with .yaml."
)
@click.option("--overwrite", is_flag=True, help="Replace a settings file.")
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
def init(
    files: tuple[Path, ...],
    task: str | None,
    columns: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    tasks_dirs: tuple[str, ...],
) -> None:
    """Look at data FILES (CSV, TSV, JSON, JSONL, Parquet) and write the settings that read them."""
    from multitask import api

    found, path = api.init(files, task=task, columns=columns, out=out, overwrite=overwrite, tasks_dirs=tasks_dirs)
    shown = shlex.quote(str(path))
    click.echo(found.rstrip())
    click.echo(f"\nwritten to {shown}; next: {program()} preview --config {shown}")


@click.command()
@shared_options
@click.option("--model", help="Hub name or local folder; default: a randomly initialised GPT-2.")
@click.option("--rows", default=3, show_default=True, help="Rows shown of each task.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to check as `train` would.")
@click.option("--overwrite", is_flag=True, help="As for `train`: the folder may hold a run.")
def preview(
    flags: tuple[str, ...],
    device: str | None,
    limit: int | None,
    model: str | None,
    config: Path | None,
    rows: int,
    **options: Any,
) -> None:
    """Show what training would see, without training: rows, sampling rates, lengths, truncation, memory, time."""
    from rich.console import Console

    from multitask import api
    from multitask.api.previews import show

    named = dotted(flags, device=device, data__limit=limit, model__name=model)
    show(api.preview(config, flags=named, **options), rows, Console())
