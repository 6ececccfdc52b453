"""A preview as text: rows coloured by loss weight, mixture, lengths, counts of rows, memory and time.

A prompt is shown dim, a target bold, a marker reversed as the one token it is; `|` ends each token of a target
(`||`: a character of two).
"""

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
from multitask.training.preview import Estimate, Preview

_BARS = " ▁▂▃▄▅▆▇█"


class TaskRow(NamedTuple):
    """One line of the table: a task's training rows, their counts, and their lengths in tokens."""

    task: str
    rows: int
    sampling_rate: float
    truncated: int
    dropped: int
    skipped: int
    chars_lost: int
    mean_length: float
    max_length: int


@dataclass(frozen=True, repr=False)
class ShownPreview(Preview):
    """A preview that prints as the command shows it."""

    @classmethod
    def of(cls, found: Preview) -> "ShownPreview":
        """The same preview."""
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    def text(self, num_rows: int = 3, width: int = 100) -> str:
        """What `multitask preview` prints: so many rows of each task, the table, the estimate."""
        console = Console(file=StringIO(), width=width)
        show(self, num_rows, console)
        written: str = console.file.getvalue()  # type: ignore[attr-defined]
        return written

    def rows(self) -> list[TaskRow]:
        """The table by task."""
        return [
            TaskRow(
                name,
                len(rows),
                self.rates[name],
                rows.report["num_truncated"],
                rows.report["num_dropped"],
                rows.report["num_skipped"],
                rows.report["num_chars_lost"],
                float(rows.lengths.mean()),
                int(rows.lengths.max()),
            )
            for name, rows in self.examples.items()
        ]

    def to_frame(self) -> Any:
        """The table as a pandas DataFrame; raises InputError where pandas is not installed."""
        return frame(self.rows(), TaskRow._fields)

    def __repr__(self) -> str:
        return self.text()


def show(found: Preview, num_rows: int, console: Console) -> None:
    """Prints the whole preview, with so many rows of each task."""
    special = set(found.tokenizer.convert_tokens_to_ids(markers(found.tasks)))
    for name, task in found.tasks.items():
        examples = found.examples[name]
        console.rule(Text(f"{name}   {task.stream}"), align="left")
        for number in range(min(num_rows, len(examples))):
            console.print(row_text(examples, number, found.tokenizer, special, found.config.train.prompt_weight))
    console.print(_summary(found))
    console.print(_estimate(found.estimate))


def row_text(examples: Examples, number: int, tokenizer: Any, special: set[int], prompt_weight: float) -> Text:
    """One row as the stream holds it, styled by loss weight."""
    text = Text(overflow="fold")
    waiting: list[int] = []  # a character of several byte tokens is shown when its last one has come
    for place, token in enumerate(examples.ids(number).tolist()):
        is_target, is_marker = place >= int(examples.num_prompts[number]), token in special
        waiting.append(token)
        word = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if word.endswith("\ufffd") and place + 1 < int(examples.lengths[number]):
            continue
        style = "bold green" if is_target else "cyan" if prompt_weight else "dim"
        text.append(word, f"{style} reverse" if is_marker else style)
        if is_target and not is_marker:
            text.append("|" * len(waiting), "dim green")
        waiting = []
    truncated = ", truncated" if examples.is_truncated(number) else ""
    text.append(f"   {examples.row(number).where}{truncated}", "dim italic")
    return text


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


def _estimate(found: Estimate) -> Text:
    return Text(
        f"{found.total_parameters:,} parameters, {found.trainable_parameters:,} trained; {found.device} "
        f"{found.precision}, about {1 / found.s_per_token:,.0f} tokens/s\n"
        f"memory about {found.peak_bytes / 2**30:.1f} GiB; {found.num_steps:,} steps, {found.num_tokens:,.0f} tokens "
        f"in about {found.num_tokens * found.s_per_token / 60:.1f} min"
    )
