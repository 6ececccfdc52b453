"""What the functions show while they work: a bar on a terminal and in a notebook, nothing elsewhere.

`with showing(None) as report: ...` -> `step 40/200 [####      ] loss qa 1.234  9,000 tokens/s  0:12 left`, rewritten in
place; validations, scores and warnings stay above it.
"""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from multitask.errors import InputError
from multitask.events import Event, Report, ignore
from multitask.launch import is_main_launched

Show = Report | bool | None
"""Who is told of progress. None: a bar where somebody looks, True: always, False: nobody; or a function of events."""

_BAR = 20  # characters


@contextmanager
def showing(report: Show) -> Iterator[Report]:
    """What events are reported to; raises InputError for what a disk or a folder's permissions do not allow.

    Of processes that were started together, the main one reports.
    """
    bar = None
    if not is_main_launched():
        report = False
    if report is True or (report is None and is_watched(sys.stderr)):
        bar = ProgressBar(sys.stderr)
    try:
        yield report if callable(report) else bar or ignore
    except OSError as error:
        if not isinstance(error, _UNWRITABLE) and error.errno not in _ERRNO:
            raise
        raise InputError(
            f"{error.filename or 'a file'}: {error.strerror or error}; free some disk space, or name a place where you "
            "may write"
        ) from error
    finally:
        if bar is not None:
            bar.close()


_UNWRITABLE = (PermissionError, NotADirectoryError)
_ERRNO = (27, 28, 30, 122)  # file too large, no space left, read-only file system, quota exceeded


def is_watched(stream: TextIO) -> bool:
    """Whether somebody sees what is written: on a terminal, or in a notebook."""
    kernel = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return stream.isatty() or type(kernel).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter, Colab


class ProgressBar:
    """Shows events as one line that is rewritten, and lines that stay above it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.shown = ""  # the line that is rewritten
        self.first_step = self.max_steps = 0
        self.started_s = time.perf_counter()

    def __call__(self, record: Event) -> None:
        """One event."""
        show = getattr(self, f"_{record['event']}", None)
        if show is not None:
            show(record)

    def close(self) -> None:
        """Leaves the line as it is."""
        if self.shown:
            self.stream.write("\n")
            self.stream.flush()
            self.shown = ""

    def _line(self, text: str) -> None:
        """Rewrites the line."""
        text = text[: shutil.get_terminal_size().columns - 1]
        self.stream.write("\r" + text + " " * (len(self.shown) - len(text)))
        self.stream.flush()
        self.shown = text

    def _stays(self, text: str) -> None:
        """A line that stays; the other one is shown again below it by the next event."""
        self.stream.write("\r" + text + " " * (len(self.shown) - len(text)) + "\n")
        self.stream.flush()
        self.shown = ""

    def _start(self, record: Mapping[str, Any]) -> None:
        self.first_step, self.max_steps = record["step"], record["max_steps"]
        self.started_s = time.perf_counter()
        self._stays(
            f"{record['parameters']:,} parameters, {record['trainable_parameters']:,} trained; {record['device']} "
            f"{record['precision']}"
        )

    def _step(self, record: Mapping[str, Any]) -> None:
        done, step = record["step"] - self.first_step, record["step"]
        left_s = (time.perf_counter() - self.started_s) / max(1, done) * (self.max_steps - step)
        bar = "#" * (_BAR * step // max(1, self.max_steps))
        speed = f"{record['tokens_per_s']:,.0f} tokens/s"
        self._line(
            f"step {step}/{self.max_steps} [{bar:{_BAR}}] loss {_losses(record)}  {speed}  "
            f"{int(left_s) // 60}:{int(left_s) % 60:02d} left"
        )

    def _validation(self, record: Mapping[str, Any]) -> None:
        best = " (best so far)" if record["is_best"] else ""
        self._stays(f"step {record['step']}: validation loss {_losses(record)}{best}")

    def _encoding(self, record: Mapping[str, Any]) -> None:
        self._line(f"encoding the {record['split']} text: {record['num_characters']:,} characters")

    def _prompted(self, record: Mapping[str, Any]) -> None:
        self._line(f"{record['task']}: {record['rows']:,} rows answered")

    def _task(self, record: Mapping[str, Any]) -> None:
        scores = (f"{name} {score['value']:.3f}" for name, score in record["result"].get("metrics", {}).items())
        self._stays(f"{record['task']}: {record['result']['num_examples']:,} rows  {'  '.join(scores)}".rstrip())

    def _arm(self, record: Mapping[str, Any]) -> None:
        self._stays(f"arm {record['number']}/{record['of']}: {record['arm']}{' (kept)' if record['kept'] else ''}")

    def _note(self, record: Mapping[str, Any]) -> None:
        self._stays(record["text"])

    def _warning(self, record: Mapping[str, Any]) -> None:
        self._stays(f"warning: {record['text']}")

    def _done(self, record: Mapping[str, Any]) -> None:
        self._stays(f"written to {record['out']}")


def _losses(record: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {loss:.3f}" for name, loss in record["loss"].items())
