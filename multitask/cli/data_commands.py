"""Commands of data: settings for files of one's own, and a look at what training would see."""

import shlex
from pathlib import Path
from typing import Any

import click

from multitask.cli.options import program, shared_options, training_options, training_settings


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
@training_options
@click.option("--rows", default=3, show_default=True, help="Rows shown of each task.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to check as `train` would.")
@click.option("--overwrite", is_flag=True, help="As for `train`: the folder may hold a run.")
def preview(flags: tuple[str, ...], config: Path | None, rows: int, **options: Any) -> None:
    """Show what training would see, without training: rows, sampling rates, lengths, truncation, memory, time."""
    from rich.console import Console

    from multitask import api
    from multitask.api.previews import show

    named = training_settings(flags, options)
    show(api.preview(config, flags=named, **options), rows, Console())
