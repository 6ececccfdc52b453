"""The command line: a thin skin over `multitask.api`. Reads flags, shows progress, turns errors into exit codes.

0: done. 1: our own failure. 2: wrong usage or input. 130: interrupted, everything saved.
"""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from multitask.cli.console import ProgressConsole
from multitask.cli.generation import GenerationConsole
from multitask.errors import InputError, Interrupted

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


class _Commands(click.Group):
    """Turns our errors into messages and exit codes."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except Interrupted as stopped:
            command = context.invoked_subcommand
            click.echo(f"saved; go on with: {_program()} {command} --resume {stopped}", err=True)
            sys.exit(130)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


def _program() -> str:
    return "python run.py" if Path(sys.argv[0]).name == "run.py" else "multitask"


def _split(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",") if name.strip()] if value is not None else None


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every command with settings has."""
    options = [
        click.option("--tasks", callback=_split, metavar="A,B", help="Task names; default: those of the settings."),
        click.option("--config", type=click.Path(path_type=Path), help="Settings file (YAML)."),
        click.option("--set", "flags", multiple=True, metavar="A.B=C", help="One setting by dotted name; repeatable."),
        click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute."),
        click.option("--limit", type=int, help="Use the first N training rows of each task."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _flags(flags: tuple[str, ...], **named: Any) -> list[str]:
    """Dotted settings of the options that were given."""
    given = {name.replace("__", "."): value for name, value in named.items() if value is not None}
    return [*(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()), *flags]


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="multitask")
def main() -> None:
    """One GPT-2, many tasks, one honest report."""


@main.command()
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
def tasks(tasks_dirs: tuple[str, ...]) -> None:
    """List the tasks: pattern, target, metrics, where the plugin was found."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from multitask.registry import find_tasks

    table = Table("task", "pattern", "target", "metrics", "found in")
    for name, (task, origin) in find_tasks(tasks_dirs).items():
        table.add_row(*(Text(cell) for cell in (name, task.stream, task.target, ", ".join(task.metrics), origin)))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@main.command()
@_shared
@click.option("--model", help="Hub name or local folder; default: an empty GPT-2.")
@click.option("--adapter", type=click.Choice(["none", "lora"]), help="Train all weights, or LoRA.")
@click.option("--merge", is_flag=True, default=None, help="With LoRA: write a plain model.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default: runs/<tasks>-<date>-<time>.")
@click.option("--overwrite", is_flag=True, help="Replace a run that the folder holds.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue an interrupted run.")
def train(
    flags: tuple[str, ...],
    device: str | None,
    limit: int | None,
    model: str | None,
    adapter: str | None,
    merge: bool | None,
    config: Path | None,
    **options: Any,
) -> None:
    """Train one GPT-2 on several tasks; with no options, the embedded world on a small empty model."""
    from multitask import api

    named = _flags(
        flags, device=device, data__limit=limit, model__name=model, adapter__kind=adapter, adapter__merge=merge
    )
    console = ProgressConsole()
    try:
        api.train(config, flags=named, report=console, **options)
    except Interrupted as stopped:  # other folders' plugins are no part of the run's own settings
        plugins = [word for folder in options["tasks_dirs"] for word in ("--tasks-dir", folder)]
        raise Interrupted(shlex.join([str(stopped), *plugins])) from None
    finally:
        console.close()


@main.command()
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (YAML); default: the embedded world.")
@click.option("--set", "flags", multiple=True, metavar="A.B=C", help="One setting by dotted name; repeatable.")
@click.option("--model", help="Go on from this model: a folder, a run or a hub name; default: an empty one.")
@click.option("--tokenizer", help="Folder or hub name; default: the model's, or one trained on the text.")
@click.option("--shape", help="Size of an empty model: nano, mini, gpt2, medium, large, xl.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default: runs/pretrain-<date>-<time>.")
@click.option("--overwrite", is_flag=True, help="Replace a run that the folder holds.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue an interrupted run.")
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
    """Train a language model on running text: FILES, or what the settings name."""
    from multitask import api

    named = _flags(flags, device=device, model__name=model, model__tokenizer=tokenizer, model__shape=shape)
    console = ProgressConsole()
    try:
        found = api.pretrain(config, flags=named, report=console, find_learning_rate=find_learning_rate, **options)
    except Interrupted as stopped:
        raise Interrupted(shlex.quote(str(stopped))) from None
    finally:
        console.close()
    if find_learning_rate:
        click.echo(f"the loss falls fastest at a learning rate of {found['suggested']:.1e}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@_shared
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Rows to score on.")
@click.option("--max-rows", type=int, help="Score the first N rows of each task.")
@click.option("--text", type=click.Path(path_type=Path), help="Instead of tasks: perplexity of this running text.")
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
    """Score a MODEL folder or run on its tasks, beside trivial baselines; or the perplexity of a running text."""
    from multitask import api

    if text is not None:
        found = api.evaluate_text(model, text, window, stride, out=options["out"], device=device or "auto")
        for name, value in found["text"].items():
            shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            click.echo(f"{name:16} {shown}")
        return
    if window is not None or stride is not None:
        raise InputError("--window and --stride belong to --text FILE")
    named = _flags(flags, device=device, data__limit=limit, eval__split=split, eval__max_rows=max_rows)
    console = ProgressConsole()
    results = api.evaluate(model, config, flags=named, report=console, **options)
    console.table(results)


@main.command()
@_shared
@click.option("--model", help="Hub name or folder of any causal model; default: the embedded base, trained once.")
@click.option("--shots", callback=_split, metavar="0,1,4,8", help="Numbers of solved examples before a question.")
@click.option("--draws", type=int, help="Sets of examples drawn from the training rows.")
@click.option("--balanced", is_flag=True, default=None, help="Draw examples from the classes in turns.")
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
    balanced: bool | None,
    split: str | None,
    max_rows: int | None,
    config: Path | None,
    **options: Any,
) -> None:
    """Prompt a model with zero, one or a few solved examples; nothing is trained."""
    from multitask import api

    numbers = [int(k) if k.isdecimal() else k for k in shots] if shots is not None else None
    named = _flags(
        flags,
        device=device,
        data__limit=limit,
        fewshot__shots=numbers,
        fewshot__draws=draws,
        fewshot__balanced=balanced,
        eval__split=split,
        eval__max_rows=max_rows,
    )
    console = ProgressConsole()
    try:
        results = api.fewshot(model, config, flags=named, report=console, **options)
    finally:
        console.close()
    console.shots(results)


@main.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Suite file (YAML).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the suite; default: runs/<name of the file>.")
@click.option(
    "--arms", callback=_split, metavar="A,B", help="Arms by name, for instance prompted,single-nli; default: all."
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
    """Run a suite of arms (trivial, prompted, tuned in several ways) and its report; a stopped suite goes on."""
    from multitask import api

    console = ProgressConsole()
    try:
        results = api.benchmark(
            config, out=out, arms=arms, dry_run=dry_run, flags=flags, tasks_dirs=tasks_dirs, report=console
        )
    except Interrupted as stopped:
        console.close()
        click.echo(f"saved below {stopped}; the same command goes on from there", err=True)
        sys.exit(130)
    finally:
        console.close()
    console.arms(results["arms"], dry_run)
    if "report" in results:
        click.echo(f"report: {results['report']}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report.")
@click.option("--against", help="Arm that all others are tested against; default: the first one.")
def report(runs: tuple[Path, ...], out: Path, against: str | None) -> None:
    """Put RUNS (run folders, results files, suites) into report.md, report.json and one report.html."""
    from multitask import api

    api.report(runs, out, against)
    click.echo(f"written to {out}: report.md, report.json, report.html")


@main.command("import-openai")
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


@main.command()
@_shared
@click.option("--model", help="Hub name or local folder; default: an empty GPT-2.")
@click.option("--rows", default=3, show_default=True, help="Rows shown of each task.")
def preview(
    flags: tuple[str, ...],
    device: str | None,
    limit: int | None,
    model: str | None,
    config: Path | None,
    rows: int,
    **options: Any,
) -> None:
    """Show what training would see, without training: rows, shares, lengths, cuts, memory and time."""
    from multitask import api

    named = _flags(flags, device=device, data__limit=limit, model__name=model)
    api.preview(config, flags=named, num_rows=rows, **options)


@main.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--task", metavar="NAME", help="Answer this task's prompt; default: go on with free text.")
@click.option("--field", "flags", multiple=True, metavar="NAME=TEXT", help="A field of the task; repeatable.")
@click.option("--file", type=click.Path(), help="Prompts by line: text, or JSON (.jsonl): `prompt`, or task fields.")
@click.option("--encoding", type=click.Choice(["utf-8", "cp949"]), default="utf-8", help="Of the file.")
@click.option("--interactive", is_flag=True, help="Keep the model loaded and ask for prompts until an empty line.")
@click.option("--max-new-tokens", type=int, help="Default: the task's; of free text 100, or what fits the window.")
@click.option("--temperature", type=float, help="Draw tokens: below 1 closer to the likeliest; default where drawn: 1.")
@click.option("--top-k", type=int, help="Draw among the K likeliest tokens.")
@click.option("--top-p", type=float, help="Draw among the likeliest tokens that together reach probability P.")
@click.option("--repetition-penalty", type=float, help="Above 1: tokens seen before become less likely.")
@click.option("--beams", type=int, help="Search with so many continuations side by side, draw nothing.")
@click.option("--num-samples", type=int, help="Texts for each prompt; default: 1.")
@click.option("--seed", type=int, help="The same seed, the same text; default: 0.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON lines, one for each text.")
@click.option("--explain", is_flag=True, help="Show the candidates of each step, before and after reshaping.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Candidates shown of a step.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the steps of one text (PNG).")
@click.option("--stream/--no-stream", default=None, help="Show text as it comes; default: one text on a terminal.")
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to compute.")
def generate(
    model: str,
    prompt: str | None,
    task: str | None,
    flags: tuple[str, ...],
    file: str | None,
    encoding: Literal["utf-8", "cp949"],
    interactive: bool,
    explain: bool,
    top: int,
    stream: bool | None,
    out: Path | None,
    picture: Path | None,
    **options: Any,
) -> None:
    """Let MODEL (a run, a model folder or a hub name) go on with PROMPT, or answer a task's prompt.

    The likeliest token is taken each time (greedy), unless --temperature, --top-k or --top-p ask for tokens to be
    drawn, or --beams for a search. PROMPT is read as the tokenizer reads it, markers included: a tuned model may be
    asked with 'TEXT<|summarize|>'. `-` is standard input, a prompt a line. An empty PROMPT begins a text where the
    tokenizer has a token for that. Texts of a task end at <|end|>, free text at the model's own end.
    """
    from multitask import api
    from multitask.inference.prompt_input import flag_fields, read_prompts
    from multitask.registry import choose, load_tasks

    chosen = choose(load_tasks(options["tasks_dirs"]), [task])[task] if task is not None else None
    given = {"PROMPT": prompt is not None, "--file": file is not None, "--field": bool(flags)}
    sources = [name for name, is_given in {**given, "--interactive": interactive}.items() if is_given]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        raise InputError(f"found {found}, expected one of PROMPT, --file, --task with --field, --interactive")
    named: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    writing = GenerationConsole(chosen, top if explain else 0, stream)
    if interactive:
        if out is not None or picture is not None:
            raise InputError("--interactive writes to the terminal; --out and --picture take prompts given at once")
        writing.converse(api.generator(model, task, report=writing.report, **named))
        return
    prompts: list[Any] = [prompt]
    if flags:
        if chosen is None:
            raise InputError("--field gives a field of a task; name the task with --task")
        prompts = [flag_fields(chosen, flags)]
    elif prompt == "-" or file is not None:
        prompts = read_prompts(Path(file) if file not in (None, "-") else sys.stdin.buffer, chosen, encoding)
    is_one = len(prompts) == named.get("num_samples", 1) == named.get("beams", 1) == 1
    to_stream = writing.streaming(is_one and out is None, prompts[0])
    named |= {"explain": writing.top, "picture": picture, "out": out, "stream": to_stream, "report": writing.report}
    records = api.generate(model, prompts, task, **named)
    if to_stream is None and out is not None:
        click.echo(f"{len(records)} texts written to {out}")
    else:
        writing.show(records, to_stream is not None)


@main.command()
@click.argument("files", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the tokenizer.")
@click.option("--kind", type=click.Choice(["bytes", "metaspace", "characters"]), help="Default: bytes, as GPT-2's.")
@click.option("--vocab-size", type=int, help="Tokens of text; default: as many as it gives, at most 8000.")
@click.option("--min-frequency", type=int, help="Merge pairs that occur so often or more; default: 2.")
@click.option("--prefix-space/--no-prefix-space", default=None, help="bytes: the first word is as any; default: yes.")
@click.option("--clean", is_flag=True, default=None, help="metaspace: BERT's clean-up first; Hangul is kept.")
@click.option("--characters", metavar="TEXT", help="characters: further ones that the text may lack.")
@click.option("--unknown", type=click.Choice(["error", "unk"]), help="characters: what others do; default: error.")
@click.option("--field", "fields", multiple=True, help="Field of JSONL files; repeatable; default: text.")
@click.option("--format", type=click.Choice(["text", "jsonl"]), help="Default: by extension.")
@click.option("--encoding", type=click.Choice(["utf-8", "cp949"]), help="Of the files; default: utf-8.")
@click.option("--tasks", callback=_split, metavar="A,B", help="Tasks whose tokens are built in, or none; default: all.")
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
@click.option("--token", "tokens", multiple=True, help="A special token of your own; repeatable.")
@click.option("--separator", help="Token between documents, eos; default: <|endoftext|>, of metaspace </s>.")
@click.option("--spare", type=int, help="Special tokens <|unused0|>, ... left free for later; default: 100.")
@click.option("--held-out", type=click.Path(), help="Measure on this file; default: the last tenth, not trained on.")
@click.option("--curve", callback=_split, metavar="1000,2000", help="Compression at these vocabulary sizes, too.")
@click.option("--from", "source", type=click.Path(), metavar="DIR", help="Take vocab.json and merges.txt from there.")
@click.option("--export", type=click.Path(), metavar="DIR", help="Write vocab.json and merges.txt there.")
@click.option("--overwrite", is_flag=True, help="Replace a tokenizer that the folder holds.")
def tokenizer(
    files: tuple[str, ...],
    out: Path,
    fields: tuple[str, ...],
    format: str | None,
    encoding: str | None,
    tasks: list[str] | None,
    tasks_dirs: tuple[str, ...],
    curve: list[str] | None,
    held_out: str | None,
    source: str | None,
    export: str | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train a tokenizer on FILES (text, JSONL, .gz) or the embedded world, with the task tokens built in."""
    from multitask import api

    given = {name: value for name, value in options.items() if value not in (None, ())}
    if tasks is not None:
        given["tasks"] = tasks[0] if tasks in (["all"], ["none"]) else tasks
    if curve is not None:
        given["curve"] = curve
    text = {"fields": list(fields) or None, "format": format, "encoding": encoding}
    console = ProgressConsole()
    folders = {"held_out": held_out, "source": source, "export": export}
    found = api.tokenizer(
        files,
        given,
        out=out,
        text={name: value for name, value in text.items() if value is not None},
        overwrite=overwrite,
        tasks_dirs=tasks_dirs,
        report=console,
        **folders,
    )
    console.vocabulary(found)
    console.console.print(f"written to {out}" + (f"; vocab.json and merges.txt to {export}" if export else ""))
