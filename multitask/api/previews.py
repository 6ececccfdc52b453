r"""A preview as text: rows coloured by loss weight, mixture, lengths, counts of rows, memory and time.

A prompt is shown dim, a target bold, a marker reversed as the one token it is; `|` ends each token of a target
(`||`: a character of two). A marker that a text merely spells has a backslash before it: `\<|end|>`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from multitask.api.results import frame
from multitask.pattern import markers
from multitask.tokenization.encoded_rows import Examples
from multitask.training.checks import few_steps, notes_on_settings
from multitask.training.preview import Estimate, Preview, gib

_BARS = " ▁▂▃▄▅▆▇█"


class TaskRow(NamedTuple):
    """One line of the table: a task's rows of a split, their counts, and their lengths in tokens.

    sampling_rate: of training rows. also_in_train: of other splits, how many are training rows too. text_in_train: how
    many have the same text to truncate, for instance the passage of a question, as a training row.
    """

    task: str
    split: str
    rows: int
    sampling_rate: float | None
    truncated: int
    dropped: int
    skipped: int
    chars_lost: int
    mean_length: float
    max_length: int
    also_in_train: int | None
    text_in_train: int | None


@dataclass(frozen=True, repr=False)
class ShownPreview(Preview):
    """A preview that prints as the command shows it."""

    @classmethod
    def of(cls, found: Preview) -> "ShownPreview":
        """The same preview."""
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    def text(self, num_rows: int = 3, width: int = 100) -> str:
        """What `multitask preview` prints: so many rows of each task, the table, the estimate."""
        console = Console(file=StringIO(), width=width, force_jupyter=False)
        show(self, num_rows, console)
        written: str = console.file.getvalue()  # type: ignore[attr-defined]
        return written

    def rows(self) -> list[TaskRow]:
        """The tables by task and split."""
        return [
            TaskRow(
                name,
                split,
                len(rows),
                self.rates[name] if split == "train" else None,
                rows.report["num_truncated"],
                rows.report["num_dropped"],
                rows.report["num_skipped"],
                rows.report["num_chars_lost"],
                float(rows.lengths.mean()),
                int(rows.lengths.max()),
                None if split == "train" else self.num_in_train[split][name],
                None if split == "train" else self.num_text_in_train[split][name],
            )
            for split, each in {"train": self.examples, **self.others}.items()
            for name, rows in each.items()
        ]

    def to_frame(self) -> Any:
        """The tables as a pandas DataFrame; raises InputError where pandas is not installed."""
        return frame(self.rows(), TaskRow._fields)

    def __repr__(self) -> str:
        return self.text()


def show(found: Preview, num_rows: int, console: Console) -> None:
    """Prints the whole preview, with so many rows of each task."""
    special = set(found.tokenizer.convert_tokens_to_ids(markers(found.tasks)))
    console.print(Text("green: the target, a | after each of its tokens; reversed: markers", "dim italic"))
    for name, task in found.tasks.items():
        examples = found.examples[name]
        console.rule(Text(f"{name}   {task.stream}"), align="left")
        for number in range(min(num_rows, len(examples))):
            console.print(row_text(examples, number, found.tokenizer, special, found.config.train.prompt_weight))
    console.print(_summary(found))
    console.print(_others(found))
    for line in (*_shared_texts(found), *found.notes):
        console.print(Text(line, "yellow"))
    for name, rows in found.examples.items():
        if unused := rows.report.get("unused_labels"):
            console.print(Text(f"{name}: no training row has the class {', '.join(unused)}", "yellow"))
    console.print(_estimate(found.estimate))
    for note in notes_of(found):
        console.print(Text(f"note: {note}", "yellow"))


def row_text(examples: Examples, number: int, tokenizer: Any, special: set[int], prompt_weight: float) -> Text:
    """One row as the stream holds it, styled by loss weight."""
    text = Text(overflow="fold")
    names = tokenizer.convert_ids_to_tokens(sorted(special))
    plain: list[tuple[str, str, int]] = []  # text, style and tokens since the last marker
    waiting: list[int] = []  # a character of several byte tokens is shown when its last one has come
    before: list[int] = []  # a token is read behind another one: some tokenizers drop a space at the beginning
    borders = examples.borders(number)
    for place, token in enumerate(examples.ids(number).tolist()):
        is_target = int(np.searchsorted(borders, place, side="right")) % 2 == 1
        style = "bold green" if is_target else "cyan" if prompt_weight else "dim"
        if token in special:
            _append(text, plain, names)
            plain = []
            text.append(tokenizer.convert_ids_to_tokens(token), f"{style} reverse")
            waiting, before = [], []
            continue
        waiting.append(token)
        head, whole = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (before, before + waiting))
        if whole.endswith("\ufffd") and place + 1 < int(examples.lengths[number]):
            continue
        plain.append((whole.removeprefix(head), style, len(waiting) if is_target else 0))
        waiting, before = [], waiting
    _append(text, plain, names)
    truncated = ", truncated" if examples.is_truncated(number) else ""
    text.append(f"   {examples.row(number).where}{truncated}", "dim italic")
    return text


def _append(text: Text, plain: Sequence[tuple[str, str, int]], names: Sequence[str]) -> None:
    """Adds text between two markers: a bar behind each token of a target, a backslash before a spelled marker."""
    whole = "".join(word for word, _, _ in plain)
    spelled = {at.start() for name in names for at in re.finditer(re.escape(name), whole)}
    place = 0
    for word, style, num_bars in plain:
        for character in word:
            text.append("\\" + character if place in spelled else character, style)
            place += 1
        text.append("|" * num_bars, "dim green")


def histogram(lengths: Any, num_bars: int = 16) -> str:
    """Lengths in tokens as a line of bars, from 0 to the longest: `▁▃█▂`."""
    counts, _ = np.histogram(lengths, bins=num_bars, range=(0, max(1, int(max(lengths)))))
    return "".join(_BARS[int(np.ceil(8 * count / counts.max()))] for count in counts)


def _summary(found: Preview) -> Table:
    heads = ("task", "rows", "sampling\nrate", "truncated", "dropped", "skipped", "chars\nlost", "mean", "max")
    table = Table(*heads, box=SIMPLE, padding=0, show_edge=False)
    for column in table.columns:
        column.no_wrap = True  # 80 columns, as they are
    table.add_column("lengths", no_wrap=True)
    for name, rows in found.examples.items():
        report = rows.report
        table.add_row(
            name,
            f"{len(rows):,}",
            f"{found.rates[name]:.1%}",
            *(f"{report[key]:,}" for key in ("num_truncated", "num_dropped", "num_skipped", "num_chars_lost")),
            f"{rows.lengths.mean():.0f}",
            f"{rows.lengths.max()}",
            histogram(rows.lengths, 10),
        )
    return table


def _others(found: Preview) -> Table:
    """Rows of the other splits as far as they are looked at, and how many are also training rows."""
    heads = (
        "task",
        "split",
        "rows",
        "truncated",
        "dropped",
        "skipped",
        "chars\nlost",
        "also in\ntrain",
        "text in\ntrain",
    )
    table = Table(*heads, box=SIMPLE, padding=0, show_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for split, each in found.others.items():
        for name, rows in each.items():
            counts = (rows.report[key] for key in ("num_truncated", "num_dropped", "num_skipped", "num_chars_lost"))
            num_in_train = found.num_in_train[split][name]
            shared = found.num_text_in_train[split][name]
            numbers = (f"{number:,}" for number in (len(rows), *counts, num_in_train, shared))
            table.add_row(name, split, *numbers, style="yellow" if num_in_train or shared else None)
    return table


def notes_of(found: Preview) -> list[str]:
    """What should be looked at before training."""
    estimate, train = found.estimate, found.config.train
    notes = notes_on_settings(found.config, found.tasks)
    if few := few_steps(estimate.num_steps, train):
        notes.append(few)
    if estimate.tokens_that_fit is not None:
        fitting = 1 << (estimate.tokens_that_fit.bit_length() - 1)
        notes.append(
            f"a pass of training takes {gib(estimate.peak_bytes)} of memory, {gib(estimate.free_bytes)} are free: set "
            f"{estimate.lower} to {fitting:,} or less"
        )
    return notes


def _shared_texts(found: Preview) -> Iterator[str]:
    """Of rows that are no training rows, but have the passage of one."""
    for split, each in found.others.items():
        for name in each:
            whole, shared = found.num_in_train[split][name], found.num_text_in_train[split][name]
            if shared > whole:
                field = str(found.tasks[name].truncate)
                sources = [one for one in found.config.data.sources.get(name, []) if not isinstance(one, str)]
                columns = {one.columns.get(field, field) for one in sources}
                column = columns.pop() if len(columns) == 1 else "NAME"
                yield (
                    f"{name}, {split}: {shared:,} of {len(each[name]):,} rows have the {field} of a training row; "
                    f"`split_by: {{column: {column}, ...}}` keeps such rows in one split"
                )


def _estimate(found: Estimate) -> Text:
    steps = "1 step" if found.num_steps == 1 else f"{found.num_steps:,} steps"
    minutes = found.num_tokens * found.s_per_token / 60
    how_long = f"about {minutes:.1f} min" if minutes >= 1 else f"about {max(1, round(60 * minutes))} s"
    return Text(
        f"{found.total_parameters:,} parameters, {found.trainable_parameters:,} trained; {found.device} "
        f"{found.precision}, about {1 / found.s_per_token:,.0f} tokens/s\n"
        f"memory about {gib(found.peak_bytes)}; {steps}, {found.num_tokens:,.0f} tokens in {how_long}"
    )
