"""Ctrl-C and SIGTERM: asked to stop, a run saves before it ends.

`with stop_requests(report) as stop: ... if stop.is_requested: save()`.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from multitask.errors import Interrupted
from multitask.events import Report


@dataclass
class Stop:
    """Whether the process was asked to stop."""

    is_requested: bool = False


@contextmanager
def stop_requests(report: Report) -> Iterator[Stop]:
    """Notes Ctrl-C and SIGTERM instead of raising; a second Ctrl-C raises KeyboardInterrupt. Main thread only."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.is_requested = True
        report({"event": "warning", "text": "stopping after this step and saving; again: at once, unsaved"})

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(out: Path) -> Iterator[None]:
    """Raises Interrupted for Ctrl-C and SIGTERM: all that matters is saved in the run folder `out` already."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(str(out)) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
