"""Metrics that are Python functions of the user: `my_metrics.py:length_ratio`, `package.module:errors:lower`.

`def length_ratio(prediction, references): return len(prediction) / len(references[0])` gives one number of each row,
and the score is the mean over rows. A pair (sum, count) counts as sum over count of all rows together: (3, 4) and
(1, 16) are 4/20. A row with the pair (0, 0) does not count.
"""

import importlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from multitask.errors import InputError, suggest
from multitask.evaluation.metrics.base import Metric, checked_references, mean
from multitask.files import in_any_form

_LOWER = ":lower"
_NAME = re.compile(r"(?P<module>.+):(?P<function>[^\W\d]\w*)(?:\.(?P<key>[^:]+))?")
_EXPECTED = "expected a finite number, or a pair (sum, count) of finite numbers with a count of at least 0"


class FunctionName(NamedTuple):
    """The parts of a name; key: of a dictionary that the function returns."""

    module: str
    function: str
    key: str | None
    higher_is_better: bool


def parsed(name: str) -> FunctionName | None:
    """The parts of `file.py:function`, `module:function`, both with `.key` or `:lower` behind; None: no function."""
    found = _NAME.fullmatch(name.removesuffix(_LOWER))
    if name.endswith(_LOWER) and found:
        return FunctionName(**found.groupdict(), higher_is_better=False)
    found = _NAME.fullmatch(name)
    return FunctionName(**found.groupdict(), higher_is_better=True) if found else None


def shown(name: str) -> str:
    """A metric's name in tables: without folders and without what is said of its direction."""
    found = parsed(name)
    if found is None:
        return name
    key = f".{found.key}" if found.key else ""
    return f"{Path(found.module).name}:{found.function}{key}"


def function_metric(name: str, parts: FunctionName) -> Metric:
    """The metric of a function, which is imported when the first row is measured, or by `check_function`."""
    return Metric(name, partial(_measure, name), partial(mean, "value"), parts.higher_is_better)


def check_function(name: str) -> None:
    """Imports the function of a metric; raises InputError where there is none. Other metrics need no check."""
    if parsed(name) is not None:
        _function(name)


def source(name: str) -> str:
    """The text of the file that a metric's function is in, which decides its numbers; empty for other metrics."""
    parts = parsed(name)
    if parts is None:
        return ""
    file = sys.modules[_function(name).__module__].__file__ if not _is_file(parts) else parts.module
    return Path(file).read_text("utf-8") if file else ""


def _is_file(parts: FunctionName) -> bool:
    return parts.module.endswith(".py")


def _function(name: str) -> Callable[[str, list[str]], Any]:
    parts = parsed(name)
    assert parts is not None
    path = in_any_form(Path(parts.module).expanduser())
    if not _is_file(parts) and ":" in parts.module:
        raise InputError(
            f"metric '{name}': ':{parts.function}' is no ending of a function's name; the only one is ':lower', where "
            "lower is better"
        )
    if not _is_file(parts):
        module = _imported(name, parts.module)
    elif path.is_file():
        module = _from_file(name, path.absolute(), path.stat().st_mtime_ns)
    else:
        raise InputError(
            f"metric '{name}': no file {parts.module} in {Path.cwd()}; a relative name is read from the working "
            "directory"
        )
    function = getattr(module, parts.function, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = "has no function" if function is None else "has no function, but a value,"
        raise InputError(f"metric '{name}': {parts.module} {what} '{parts.function}'; {suggest(parts.function, known)}")
    found: Callable[[str, list[str]], Any] = function
    return found


@cache
def _from_file(name: str, path: Path, mtime_ns: int) -> ModuleType:
    """The module of a file, imported again once the file has changed."""
    spec = importlib.util.spec_from_file_location(f"multitask_metric_{path.stem}_{mtime_ns}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"metric '{name}': {path} does not import: {_told(error)}") from error
    return module


def _imported(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        hint = f"; a file is named with its ending, `{module}.py:...`" if Path(f"{module}.py").is_file() else ""
        raise InputError(f"metric '{name}': module '{module}' does not import: {_told(error)}{hint}") from error


def _told(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """Type and text of an error, with the user's own line where it was raised, or the function that was called."""
    frames = traceback.extract_tb(error.__traceback__)
    others = (__file__, importlib.__file__)
    own = [one for one in frames if one.filename not in others and not one.filename.startswith("<frozen")]
    place, hint = "", ""
    if own:
        place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})"
    elif function is not None:
        with suppress(TypeError, OSError):  # a built-in one
            place = f" ({Path(inspect.getfile(function)).name}:{inspect.getsourcelines(function)[1]})"
        if isinstance(error, TypeError):
            hint = "; a metric is called with two arguments, prediction and references"
    return f"{type(error).__name__}: {error}{place}{hint}"


def _measure(name: str, prediction: str, references: Sequence[str]) -> dict[str, float]:
    """`{"value": ..., "count": 1}` of one row; raises InputError for a function that fails or returns something else.

    The references are a list of the function's own: what it does with it changes no other metric.
    """
    parts = parsed(name)
    assert parts is not None
    row = f"prediction {_abridged(prediction)}, references {_abridged(list(references))}"
    function, given = _function(name), list(checked_references(references))
    try:
        found = function(prediction, given)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"metric '{name}' raised {_told(error, function)}; {row}") from error
    if isinstance(found, Mapping):
        if parts.key is None or parts.key not in found:
            of = f"'{name.removesuffix(_LOWER).removesuffix(f'.{parts.key}')}"
            one = f"; name one of them: {', '.join(f'{of}.{key}{chr(39)}' for key in found)}" if found else ""
            raise InputError(f"metric '{name}' returned {_abridged(dict(found))}{one}; {row}")
        found = found[parts.key]
    elif parts.key is not None:
        raise InputError(
            f"metric '{name}' returned {_abridged(found)}, expected a dictionary with '{parts.key}'; {row}"
        )
    value, count = found if isinstance(found, tuple) and len(found) == 2 else (found, 1)
    if not _is_finite(value) or not _is_finite(count) or count < 0:
        raise InputError(f"metric '{name}' returned {_abridged(found)}, {_EXPECTED}; {row}")
    return {"value": float(value), "count": float(count)}


def _is_finite(value: Any) -> bool:
    """Whether it is a number: of Python or numpy, a truth value too."""
    return (isinstance(value, Real) and math.isfinite(value)) or type(value).__name__ in ("bool", "bool_")


def _abridged(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
