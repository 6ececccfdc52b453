"""The command line: a thin layer over `multitask.api`. Reads flags, shows progress, turns errors into exit codes.

0: done. 1: our own failure. 2: wrong usage or input. 130: interrupted, everything saved.
"""

import io
import logging
import os
import shlex
import sys
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import click

from multitask.cli.console import ProgressConsole
from multitask.cli.data_commands import init, preview
from multitask.cli.model_commands import import_gguf, import_openai, models, push
from multitask.cli.options import (
    dotted,
    program,
    shared_options,
    split_names,
    training_options,
    training_settings,
)
from multitask.cli.serve_command import serve
from multitask.cli.text_commands import generate, tokenizer
from multitask.errors import InputError, Interrupted
from multitask.launch import is_main_launched, require_one_process

# Threads that wait spinning starve each other as soon as another program uses a core. A 1 M-parameter model on two
# cores, tokens/s with both free and with one busy: GNU OpenMP's default 17,000 and 450, a short spin 13,500 and 2,900,
# no spin 9,000 and 9,800. It has to be set before torch is loaded.
load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
if load > (os.cpu_count() or 1) - 0.5:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
else:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# peft asks transformers by the old name; nothing that a user could do about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
# Small models are often saved with GPT-2's default ids (50256) beside a smaller vocabulary: `bos_token_id must be ...
# within the vocabulary`. Runs take these ids from the tokenizer, so they are never used.
logging.getLogger("transformers.configuration_utils").addFilter(
    lambda record: not record.getMessage().startswith("Model config: ")
)

_MANY = 1e7  # a perplexity from here on is shown as a power of ten


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line on stderr, without the place in the code that only developers need."""
    if is_main_launched():  # of several processes
        click.echo(f"warning: {message}", err=True)


_DIVIDED = ("benchmark", "evaluate", "fewshot", "pretrain", "train")
"""Commands whose work several processes divide among them."""
_AFTER_MAIN_S = 2.0


class _Commands(click.Group):
    """Turns our errors into messages and exit codes."""

    def invoke(self, context: click.Context) -> Any:
        warnings.showwarning = _show_warning
        try:
            return super().invoke(context)
        except InputError as error:
            if not is_main_launched():  # where the main process says the same, the launcher ends this one meanwhile
                time.sleep(_AFTER_MAIN_S)
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except Interrupted as stopped:
            command = context.invoked_subcommand
            if is_main_launched():
                click.echo(f"saved; resume with: {program()} {command} --resume {stopped}", err=True)
            sys.exit(130)
        except KeyboardInterrupt:
            if is_main_launched():
                click.echo("interrupted", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="multitask")
@click.pass_context
def main(context: click.Context) -> None:
    """One language model, many tasks, one honest report."""
    if context.invoked_subcommand not in _DIVIDED:
        require_one_process(str(context.invoked_subcommand))
    if not is_main_launched():
        context.with_resource(redirect_stdout(io.StringIO()))  # the main process prints the same


@main.command()
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
def tasks(tasks_dirs: tuple[str, ...]) -> None:
    """List the tasks: pattern, target, metrics, where the plugin was found."""
    from rich.text import Text

    from multitask.cli.tables import make_console, make_table
    from multitask.registry import find_tasks

    console = make_console(160)
    table = make_table(console, "task", "pattern", "target", "metrics", "found in")
    for name, (task, origin) in find_tasks(tasks_dirs).items():
        table.add_row(*(Text(cell) for cell in (name, task.stream, task.target, ", ".join(task.metrics), origin)))
    console.print(table)


@main.command()
@shared_options
@training_options
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default: runs/<tasks>-<date>-<time>.")
@click.option("--overwrite", is_flag=True, help="Replace a run that the folder holds.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Continue an interrupted run (or from RUN/checkpoints/step-N).",
)
@click.option("--push-to-hub", metavar="NAME", help="Upload the finished model to the Hugging Face hub, as `push`.")
@click.option("--private", is_flag=True, default=None, help="With --push-to-hub: others cannot see it.")
def train(flags: tuple[str, ...], config: Path | None, **options: Any) -> None:
    """Train one model on several tasks; with no options, a small GPT-2 on the synthetic dataset."""
    from multitask import api

    if options["private"] and options["push_to_hub"] is None:
        raise InputError("--private belongs to --push-to-hub NAME: nothing is uploaded without it")
    named = training_settings(flags, options)
    console = ProgressConsole()
    try:
        api.train(config, flags=named, report=console, **options)
    except Interrupted as stopped:
        raise Interrupted(shlex.quote(str(stopped))) from None
    finally:
        console.close()


@main.command()
@click.argument("files", nargs=-1, type=click.Path())
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings file (YAML); default: the synthetic documents."
)
@click.option("--set", "flags", multiple=True, metavar="A.B=C", help="One setting by dotted name; repeatable.")
@click.option("--model", help="Continue training this model: a folder, a run or a hub name; default: a new one.")
@click.option("--tokenizer", help="Folder or hub name; default: the model's, or one trained on the text.")
@click.option("--shape", help="Size of a new model: nano, mini, gpt2, medium, large, xl.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default: runs/pretrain-<date>-<time>.")
@click.option("--overwrite", is_flag=True, help="Replace a run that the folder holds.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Continue an interrupted run (or from RUN/checkpoints/step-N).",
)
@click.option("--find-lr", "find_learning_rate", is_flag=True, help="Try rising learning rates; train nothing.")
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute.")
def pretrain(
    config: Path | None,
    flags: tuple[str, ...],
    model: str | None,
    tokenizer: str | None,
    shape: str | None,
    device: str | None,
    find_learning_rate: bool,
    **options: Any,
) -> None:
    """Train a language model on a plain text corpus: FILES, or what the settings name."""
    from multitask import api

    named = dotted(flags, device=device, model__name=model, model__tokenizer=tokenizer, model__shape=shape)
    console = ProgressConsole()
    try:
        found = api.pretrain(config, flags=named, report=console, find_learning_rate=find_learning_rate, **options)
    except Interrupted as stopped:
        raise Interrupted(shlex.quote(str(stopped))) from None
    finally:
        console.close()
    if find_learning_rate and found:
        click.echo(f"the loss falls fastest at a learning rate of {found['suggested']:.1e}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@shared_options
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Rows to score on.")
@click.option("--max-rows", type=int, help="Score the first N rows of each task.")
@click.option("--text", type=click.Path(path_type=Path), help="Instead of tasks: perplexity of this plain text file.")
@click.option("--window", type=int, help="With --text: tokens of a window; default: the model's positions.")
@click.option("--stride", type=int, help="With --text: tokens between windows; default: the window, no overlap.")
@click.option("--out", type=click.Path(path_type=Path), help="Results file (JSON); predictions go beside it.")
def evaluate(
    model: Path,
    flags: tuple[str, ...],
    device: str | None,
    limit: int | None,
    split: str | None,
    max_rows: int | None,
    text: Path | None,
    window: int | None,
    stride: int | None,
    config: Path | None,
    **options: Any,
) -> None:
    """Score a MODEL folder or run on its tasks, beside trivial baselines; or the perplexity of a plain text."""
    from multitask import api

    if text is not None:
        require_one_process("evaluate --text")
        of_rows = {
            "--set": flags,
            "--tasks": options["tasks"],
            "--config": config,
            "--limit": limit,
            "--split": split,
            "--max-rows": max_rows,
        }
        for name, given in of_rows.items():
            if given:
                raise InputError(
                    f"{name} is about rows of tasks, --text FILE is a plain text: leave out one of the two"
                )
        found = api.evaluate_text(model, text, window, stride, out=options["out"], device=device or "auto")
        for name, value in found["text"].items():
            is_large = isinstance(value, float) and value >= _MANY
            shown = f"{value:.4g}" if is_large else f"{value:,.4f}" if isinstance(value, float) else value
            shown = f"{shown:,}" if isinstance(shown, int) else shown
            click.echo(f"{name:16} {shown}")
        return
    if window is not None or stride is not None:
        raise InputError("--window and --stride belong to --text FILE")
    named = dotted(flags, device=device, data__limit=limit, eval__split=split, eval__max_rows=max_rows)
    console = ProgressConsole()
    results = api.evaluate(model, config, flags=named, report=console, **options)
    if results:
        console.table(results)


@main.command()
@shared_options
@click.option("--model", help="Hub name or folder of any causal model; default: the demo model, trained once.")
@click.option("--shots", callback=split_names, metavar="0,1,4,8", help="Numbers of solved examples before a question.")
@click.option("--draws", type=int, help="Sets of examples drawn from the training rows.")
@click.option("--templates", help="Prompt template: best (on validation rows), first, all, or its name.")
@click.option("--chat", type=click.Choice(["auto", "on", "off"]), help="Use the tokenizer's chat template.")
@click.option("--prompts", help="YAML or JSON file of further templates, by task and language.")
@click.option(
    "--demonstrations",
    type=click.Choice(["random", "balanced", "nearest"]),
    help="Examples: drawn, drawn from the classes in turns, or most like each question.",
)
@click.option("--balanced", is_flag=True, default=None, help="Old form of --demonstrations balanced.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Rows to score on.")
@click.option("--max-rows", type=int, help="Score the first N rows of each task.")
@click.option("--out", type=click.Path(path_type=Path), help="Results file (JSON); predictions go beside it.")
def fewshot(
    flags: tuple[str, ...],
    device: str | None,
    limit: int | None,
    model: str | None,
    shots: list[str] | None,
    draws: int | None,
    templates: str | None,
    chat: str | None,
    prompts: str | None,
    demonstrations: str | None,
    balanced: bool | None,
    split: str | None,
    max_rows: int | None,
    config: Path | None,
    **options: Any,
) -> None:
    """Prompt a model with zero, one or a few solved examples; nothing is trained."""
    from multitask import api

    if balanced and demonstrations not in (None, "balanced"):
        raise InputError(f"--balanced is --demonstrations balanced; --demonstrations {demonstrations} says otherwise")
    numbers = [int(k) if k.isdecimal() else k for k in shots] if shots is not None else None
    named = dotted(
        flags,
        device=device,
        data__limit=limit,
        fewshot__shots=numbers,
        fewshot__draws=draws,
        fewshot__templates=templates,
        fewshot__chat=chat,
        fewshot__prompts=prompts,
        fewshot__demonstrations="balanced" if balanced and demonstrations is None else demonstrations,
        eval__split=split,
        eval__max_rows=max_rows,
    )
    console = ProgressConsole()
    try:
        results = api.fewshot(model, config, flags=named, report=console, **options)
    finally:
        console.close()
    if results:
        console.shots(results)


@main.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Suite file (YAML).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the suite; default: runs/<name of the file>.")
@click.option(
    "--arms", callback=split_names, metavar="A,B", help="Arms by name, for instance prompted,single-nli; default: all."
)
@click.option("--dry-run", is_flag=True, help="List the arms with an estimate of their time; train nothing.")
@click.option("--set", "flags", multiple=True, metavar="A.B=C", help="One setting of the suite; repeatable.")
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
def benchmark(
    config: Path,
    out: Path | None,
    arms: list[str] | None,
    dry_run: bool,
    flags: tuple[str, ...],
    tasks_dirs: tuple[str, ...],
) -> None:
    """Run a suite of arms (trivial, prompted, tuned in several ways) and its report; a stopped suite is resumed."""
    from multitask import api

    console = ProgressConsole()
    try:
        results = api.benchmark(
            config, out=out, arms=arms, dry_run=dry_run, flags=flags, tasks_dirs=tasks_dirs, report=console
        )
    except Interrupted as stopped:
        console.close()
        if is_main_launched():
            click.echo(f"saved below {stopped}; the same command continues from there", err=True)
        sys.exit(130)
    finally:
        console.close()
    console.arms(results["arms"], dry_run)
    if "report" in results:
        click.echo(f"report: {results['report']}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report.")
@click.option("--against", help="Arm that all others are compared with; default: the one scored on most tasks.")
@click.option("--language", type=click.Choice(["en", "ko"]), default="en", show_default=True, help="Of its texts.")
def report(runs: tuple[Path, ...], out: Path, against: str | None, language: Literal["en", "ko"]) -> None:
    """Put RUNS (run folders, results files, suites) into report.md, report.json and one report.html."""
    from multitask import api

    api.report(runs, out, against, language)
    click.echo(f"written to {out}: report.md, report.json, report.html")


for _command in (generate, import_gguf, import_openai, init, models, preview, push, serve, tokenizer):
    main.add_command(_command)
