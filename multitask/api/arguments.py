"""Arguments of the public functions as people write them: one name where several may be, settings by their own name.

`names("summ,qa")` -> `["summ", "qa"]`; `setting_flags(RunConfig, "train", {"epochs": 1})` -> `["train.epochs=1"]`.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from multitask.config.base import Flag, Settings
from multitask.errors import InputError

T = TypeVar("T")

_SHORT = {
    "lr": "train.learning_rate",
    "model": "model.name",
    "tokenizer": "model.tokenizer",
    "adapter": "adapter.kind",
    "limit": "data.limit",
    "device": "device",
    "seed": "seed",
}
"""Settings outside `train` that have a name of their own."""

_ARGUMENTS = ("settings", "tasks", "out", "resume", "overwrite", "tasks_dirs", "flags", "report")
"""Further arguments of these functions, for the nearest name."""
_IN_DATA = ("language", "labels", "columns", "files", "split_by", "encoding", "format")
"""Settings of a source, which is one of a list."""


def names(given: str | Iterable[str] | None) -> list[str] | None:
    """Names, from one, several between commas, or a list; None stays None."""
    if given is None:
        return None
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else list(given)


def listed(given: str | Path | Iterable[T]) -> list[Any]:
    """Values, from one or several: a file name is one, never its letters."""
    return [given] if isinstance(given, str | Path) else list(given)


def _nearest(kind: type[Settings], name: str, known: Iterable[str]) -> str:
    """What a wrong argument may have been meant as."""
    if name in ("config", "config_file", "yaml"):
        return "give settings or a YAML file as the first argument, without a name"
    if difflib.get_close_matches(name, _IN_DATA, n=1, cutoff=0.75) and "data" in kind.model_fields:
        near = difflib.get_close_matches(name, _IN_DATA, n=1)[0]
        return f"'{near}' is a setting of a source, in the YAML file below data.sources"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(sorted(known))}"


def setting_flags(kind: type[Settings], function: str, options: Mapping[str, object]) -> list[str]:
    """Settings by dotted name, from keyword arguments: a setting of `train`, a short name, or `section__setting`.

    Raises InputError for a name that is neither, with the nearest one.
    """
    train: Any = kind.model_fields["train"].annotation
    known = {name: f"train.{name}" for name in train.model_fields}
    known |= {name: path for name, path in _SHORT.items() if path.split(".")[0] in kind.model_fields}
    flags: list[str] = []
    for name, value in options.items():
        path = name.replace("__", ".") if "__" in name else known.get(name)
        if path is None:
            nearest = _nearest(kind, name, [*known, *_ARGUMENTS])
            raise InputError(
                f"{function}() has no argument '{name}'; {nearest}. Other settings: "
                f"{function}(section__setting=...), or flags=['section.setting=...']"
            )
        text = json.dumps(value, ensure_ascii=False, default=str)
        flags.append(Flag(f"{path}={text}", f"{function}({name}={value!r})"))
    return flags
