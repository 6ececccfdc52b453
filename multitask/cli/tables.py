"""Tables that fit the terminal: on 80 columns words wrap and nothing is cut off with `…`."""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NARROW = 100
_MAX_WHOLE = 27


def make_console(width: int = 120) -> "Console":
    """As wide as the terminal, or as COLUMNS says; `width` columns where neither is known."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else width, highlight=False)


def make_table(console: "Console", *heads: str) -> "Table":
    """An empty table with these heads; without vertical lines on a narrow console."""
    from rich.box import HEAVY_HEAD, SIMPLE
    from rich.table import Table

    is_narrow = console.width < _NARROW
    table = Table(box=SIMPLE if is_narrow else HEAVY_HEAD, padding=0 if is_narrow else (0, 1))
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def keep_whole(table: "Table", head: str, words: Iterable[str]) -> None:
    """Gives a column the width of its longest word, up to a third of 80 columns: other columns wrap at spaces first."""
    for column in table.columns:
        if column.header == head:
            column.min_width = min(_MAX_WHOLE, max((len(word) for word in words), default=0))
