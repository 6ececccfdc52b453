"""Several processes that work as one: each runs the same program, and the work on rows is divided among them.

`mapped(work, units)` is `[work(unit) for unit in units]`, each unit by one process; `by_main(work)` is `work()` by the
main process. Every process gets the same results, or the same error. What needs the model is divided; what follows from
its answers (metrics, files, messages) is done by the main process.
"""

import atexit
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from multitask.errors import InputError
from multitask.launch import launched, require_whole_models

Unit = TypeVar("Unit")
Found = TypeVar("Found")

TIMEOUT = "MULTITASK_TIMEOUT_S"
"""Of the environment: how many seconds a process waits for others."""
_LEAVE_S = 0.1
_TIMEOUT_S = 12 * 3600.0  # one process encodes for all


def timeout() -> timedelta:
    """How long a process waits for others; raises InputError for what is no number of seconds."""
    given = os.environ.get(TIMEOUT, str(_TIMEOUT_S))
    try:
        found = timedelta(seconds=float(given))
    except (ValueError, OverflowError):
        found = timedelta(0)
    if found <= timedelta(0):
        raise InputError(f"{TIMEOUT} is '{given}', expected a number of seconds above 0")
    return found


def connect(device: torch.device) -> None:
    """Connects this process with those that were started with it; each gets one device of the kind of `device`."""
    require_whole_models()
    PartialState(cpu=device.type == "cpu", timeout=timeout())
    atexit.register(_leave)


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Work of all processes that were started together; raises InputError where one waited in vain for another."""
    if launched()[1] > 1:
        connect(device)
    try:
        yield
        wait()
    except BaseException as error:
        atexit.unregister(_leave)  # another process may be stuck, and would never leave with this one
        if isinstance(error, RuntimeError) and (text := _lost(error)):
            raise InputError(text) from error
        raise


def _lost(error: RuntimeError) -> str | None:
    """What to say of an error of the connection; None for another error."""
    text = str(error).lower()
    where = f"process {number()} of {size()} (counted from 0)"
    if size() == 1:
        return None
    if "timed out" in text or "timeout" in text:
        return (
            f"{where} waited {timeout().total_seconds():g} s for the others: one of them has failed (its error is "
            f"above, or in its own log), or works longer; {TIMEOUT} sets how long to wait, in seconds"
        )
    if "connection closed" in text or "connection reset" in text or "broken pipe" in text:
        return f"{where} lost its connection to another one, which has ended: its error is above, or in its own log"
    return None


def _leave() -> None:
    """Ends the connection. Its threads end with the last reference to it, and must not meet Python's own end."""
    if _is_connected():
        gc.collect()
        distributed.destroy_process_group()
        time.sleep(_LEAVE_S)  # a thread that waits for the interpreter's lock gets it


def _is_connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def number() -> int:
    """The number of this process, from 0; the main process is 0."""
    return distributed.get_rank() if _is_connected() else 0


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _is_connected() else 1


def is_main() -> bool:
    """Whether this is the process that writes files, shows progress and has the results."""
    return number() == 0


def wait() -> None:
    """Returns when every process is here."""
    if size() > 1:
        PartialState().wait_for_everyone()


def mapped(work: Callable[[Unit], Found], units: Sequence[Unit]) -> Iterable[Found]:
    """`work(unit)` of every unit, in order; unit n is done by process n modulo their number.

    To be called by every process, with the same units. Raises in each the InputError that any of them met.
    """
    if size() == 1:
        return map(work, units)
    mine: list[Found] = []
    problem: InputError | None = None
    try:
        mine += map(work, units[number() :: size()])
    except InputError as error:
        problem = error
    every: list[Any] = [None] * size()
    distributed.all_gather_object(every, (mine, problem))
    if problems := [found for _, found in every if found is not None]:
        raise problems[0]
    return [every[n % size()][0][n // size()] for n in range(len(units))]


def by_main(work: Callable[[], Found]) -> Found:
    """`work()` of the main process, in every process; to be called by each. Raises in each its InputError."""
    (found,) = mapped(lambda _: work(), (None,))
    return found


def parts(items: Sequence[Unit]) -> list[Sequence[Unit]]:
    """Items in order, in a part for each process; fewer parts where there are fewer items."""
    most = -(-len(items) // size()) or 1
    return [items[start : start + most] for start in range(0, len(items), most)]
