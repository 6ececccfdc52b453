"""The command `serve`."""

from typing import Any

import click


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="RUN_OR_MODEL...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; another needs --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option(
    "--api-key",
    envvar="MULTITASK_API_KEY",
    help="What requests must send, 16 characters or more; or set MULTITASK_API_KEY, which `ps` does not show.",
)
@click.option(
    "--max-rows", type=click.IntRange(min=1), default=64, show_default=True, help="Rows that decode together."
)
@click.option(
    "--batch-tokens", type=click.IntRange(min=16), default=32_768, show_default=True, help="Their tokens (memory)."
)
@click.option(
    "--max-waiting-rows", type=click.IntRange(min=1), default=256, show_default=True, help="More are answered with 429."
)
@click.option(
    "--max-body-bytes", type=click.IntRange(min=1024), default=1 << 20, show_default=True, help="Of a request."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="Seconds of a request.",
)
@click.option("--runs", default="runs", show_default=True, help="Folder whose runs the page /runs shows.")
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to compute.")
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve runs and models: a playground in the browser, predictions and OpenAI's completions over HTTP.

    The tasks that the runs were trained on are answered by each of the models: by a run in the way it was trained, by
    any model prompted with 0 or 4 demonstrations in plain text.
    """
    from multitask import api

    api.serve(models, **options, report=click.echo)
