"""The commands `generate` and `tokenizer`."""

import sys
from pathlib import Path
from typing import Any

import click

from multitask.cli.console import ProgressConsole
from multitask.cli.generation import GenerationConsole
from multitask.cli.options import split_names
from multitask.errors import InputError
from multitask.events import Json

_MARKER = "<|"  # a prompt with special tokens is that of a task already


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--task", metavar="NAME", help="Use the prompt of this task; default: continue free text.")
@click.option(
    "--field", "flags", multiple=True, metavar="NAME=TEXT", help="A field of the task, or its column; repeatable."
)
@click.option("--file", type=click.Path(), help="Prompts: lines of text, or rows (.jsonl, .csv, .tsv, .parquet).")
@click.option("--force", is_flag=True, help="Use a task's prompt though the model was not trained on the task.")
@click.option(
    "--encoding", default="utf-8", metavar="NAME", help="Of the file or standard input: utf-8, cp949 (euc-kr), or both."
)
@click.option("--interactive", is_flag=True, help="Read prompts from the terminal until an empty line.")
@click.option("--max-new-tokens", type=int, help="Default: the task's; of free text 100, or what fits the window.")
@click.option("--temperature", type=float, help="Sample tokens; below 1 favours likely ones; default when sampling: 1.")
@click.option("--top-k", type=int, help="Sample from the K most likely tokens.")
@click.option("--top-p", type=float, help="Sample from the most likely tokens that together reach probability P.")
@click.option("--repetition-penalty", type=float, help="Above 1: tokens that occurred before become less likely.")
@click.option("--beams", type=int, help="Beam search with this many beams; no sampling.")
@click.option("--num-samples", type=int, help="Texts for each prompt; default: 1.")
@click.option("--seed", type=int, help="The same seed, the same text; default: 0.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON lines, one for each text.")
@click.option(
    "--explain",
    is_flag=True,
    help="Show the candidates of each step, before and after sampling options.",
)
@click.option("--top", type=click.IntRange(min=1), help="With --explain: candidates shown of a step; default: 5.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the steps of one text (PNG).")
@click.option("--stream/--no-stream", default=None, help="Show parts of a text at once; default: on a terminal.")
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to compute.")
def generate(
    model: str,
    prompt: str | None,
    task: str | None,
    flags: tuple[str, ...],
    file: str | None,
    encoding: str,
    interactive: bool,
    explain: bool,
    top: int | None,
    stream: bool | None,
    out: Path | None,
    picture: Path | None,
    **options: Any,
) -> None:
    """Generate text with MODEL (a run, a model folder or a hub name): continue PROMPT, or answer a task's prompt.

    With --task, PROMPT is the text of a task that needs one field (a document to summarize); other tasks take --field
    for each field, by the task's name or by the column of the data the run was trained on. A closed task prints its
    most likely answer and the probabilities of all answers, which add up to 1.

    `-` is standard input, a prompt a line. The most likely token is taken at each step (greedy), unless --temperature,
    --top-k or --top-p sample, or --beams searches. Without --task, special tokens in PROMPT are parsed: a fine-tuned
    model can be prompted with 'TEXT<|summarize|>'. An empty PROMPT starts a text where the tokenizer has a token for
    that. Texts of a task end at <|end|>, free text at the model's own end token.
    """
    from multitask import api
    from multitask.inference.prompt_input import PromptInput, flag_fields, prompt_values, read_prompts
    from multitask.inference.trained_run import task_of_model, trained_run
    from multitask.models.names import model_folder

    if top is not None and not explain:
        raise InputError("--top says how many candidates --explain shows; add --explain")
    if options["force"] and task is None:
        raise InputError("--force uses the prompt of a task that the model was not trained on; name it with --task")
    model_folder(model)
    chosen = task_of_model(model, task, options["tasks_dirs"]) if task is not None else None
    given = {"PROMPT": prompt is not None, "--file": file is not None, "--field": bool(flags)}
    sources = [name for name, is_given in {**given, "--interactive": interactive}.items() if is_given]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        raise InputError(
            f"found {found}, expected one of PROMPT (- for standard input), --file, --task with --field, --interactive"
        )
    named: Json = {name: value for name, value in options.items() if value is not None}
    console = GenerationConsole(chosen, (top or 5) if explain else 0, stream)
    if interactive:
        if out is not None or picture is not None:
            raise InputError("--interactive writes to the terminal; --out and --picture take prompts given at once")
        console.converse(api.generator(model, task, report=console.report, **named))
        return
    run = trained_run(Path(model).expanduser())
    if chosen is None and run is not None and run.tasks and _MARKER not in (prompt or ""):
        known = " or ".join(f"--task {name}" for name in run.tasks)
        click.echo(f"note: the prompt is continued as free text; for the prompt of a task give {known}", err=True)
    prompts: list[Any] = [prompt]
    if flags:
        if chosen is None:
            raise InputError("--field gives a field of a task; name the task with --task")
        prompts = [flag_fields(chosen, flags, run.columns(chosen) if run is not None else ())]
    elif prompt == "-" or file is not None:
        prompts = read_prompts(Path(file) if file not in (None, "-") else sys.stdin.buffer, chosen, encoding)
    elif chosen is not None:
        prompt_values(chosen, PromptInput(prompt or "", "PROMPT"))  # an error before the model is loaded
    is_one = len(prompts) == named.get("num_samples", 1) == named.get("beams", 1) == 1
    to_stream = console.streaming(is_one and out is None, prompts[0])
    named |= {"explain": console.top, "picture": picture, "out": out, "stream": to_stream, "report": console.report}
    records = api.generate(model, prompts, task, **named)
    if to_stream is None and out is not None:
        click.echo(f"{len(records)} texts written to {out}")
    else:
        console.show(records, to_stream is not None)


@click.command()
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
@click.option("--encoding", metavar="NAME", help="Of the files: utf-8 or cp949 (euc-kr); default: utf-8.")
@click.option(
    "--tasks", callback=split_names, metavar="A,B", help="Tasks whose tokens are built in, or none; default: all."
)
@click.option("--tasks-dir", "tasks_dirs", multiple=True, help="Folder of further task plugins; repeatable.")
@click.option("--token", "tokens", multiple=True, help="A special token of your own; repeatable.")
@click.option("--separator", help="Token between documents, eos; default: <|endoftext|>, of metaspace </s>.")
@click.option("--spare", type=int, help="Special tokens <|unused0|>, ... left free for later; default: 100.")
@click.option("--held-out", type=click.Path(), help="Measure on this file; default: the last tenth, not trained on.")
@click.option("--curve", callback=split_names, metavar="1000,2000", help="Compression at these vocabulary sizes, too.")
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
    """Train a tokenizer on FILES (text, JSONL, .gz) or the synthetic documents, with the task tokens built in."""
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
