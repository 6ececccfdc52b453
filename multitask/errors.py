"""Errors a user can act on, and the nearest valid name for a mistyped one.

`suggest("sum", ["summ", "qa"])` -> `"did you mean 'summ'?"`
"""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Wrong usage or wrong input: where, what was found, what was expected, what to do. Exit code 2."""


class RowError(InputError):
    """One row of a data file cannot be used; `data.on_bad_row: skip` counts it instead of stopping."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM during training, after everything was saved; carries the run folder. Exit code 130."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: the nearest valid name, or all of them when none is near."""
    names = sorted(str(v) for v in valid)
    near = difflib.get_close_matches(str(name), names, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"valid: {', '.join(names)}" if names else "there is none"
