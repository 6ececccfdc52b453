"""The command `push`."""

from pathlib import Path

import click


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
