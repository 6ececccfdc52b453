"""One worker thread owns models and tokenizers; requests of the event loop wait for it in a bounded queue.

`await engine.run(Job("demo", encode, finish, num_rows=1))`: `encode` gives the rows of a request, which decode in a
batch with those of other requests, and `finish` makes an answer of them. Both are called by the worker thread.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from multitask.inference.scoring import choice_nll
from multitask.serving.batch import ContinuousBatch, DecodingRow

Answer = TypeVar("Answer")


class QueueFull(Exception):
    """More rows wait than the queue holds."""


@dataclass(eq=False)
class Job(Generic[Answer]):
    """The rows of one request, all of one model."""

    model: str
    encode: Callable[[], list[DecodingRow]]
    finish: Callable[[list[DecodingRow]], Answer]
    num_rows: int
    result: "Future[Answer]" = field(default_factory=Future)
    rows: list[DecodingRow] = field(default_factory=list)


class Stream(Generic[Answer]):
    """Hands what the worker thread makes of a job, part by part, to the event loop that made this."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Answer | None]()

    def put(self, part: Answer | None) -> None:
        """Adds a part; None: there are no more. Called by the worker thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._queue.put_nowait, part)

    async def next(self) -> Answer | None:
        """The next part; None: there are no more."""
        return await self._queue.get()


class Engine:
    """Decodes the rows of all requests.

    Args:
        models: loaded models by name; after this, only the worker thread calls them.
        max_waiting_rows: rows that may wait for a place in a batch.
        max_rows: most rows of a model that decode together.
        batch_tokens: most tokens of these; a limit on the memory of keys and values.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        max_waiting_rows: int = 256,
        max_rows: int = 64,
        batch_tokens: int = 32_768,
    ) -> None:
        self.max_waiting_rows, self.batch_tokens = max_waiting_rows, batch_tokens
        self.num_tokens = 0
        """Tokens of complete rows so far."""
        self._batches = {name: ContinuousBatch(model, max_rows, batch_tokens) for name, model in models.items()}
        self._queue: deque[Job[Any]] = deque()
        self._num_starting = 0  # rows between the queue and their batch
        self._active: list[Job[Any]] = []
        self._condition = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="multitask-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a place in a batch."""
        queued = sum(job.num_rows for job in list(self._queue)) + self._num_starting
        return queued + sum(len(batch.waiting) for batch in self._batches.values())

    @property
    def num_running(self) -> int:
        """Rows that decode."""
        return sum(len(batch.rows) for batch in self._batches.values())

    async def run(self, job: Job[Answer]) -> Answer:
        """The answer of a job; when this is cancelled, its rows leave their batch.

        Raises QueueFull, and what `encode`, the model or `finish` raise.
        """
        self.submit(job)
        return await asyncio.wrap_future(job.result)

    def submit(self, job: Job[Any]) -> None:
        """Adds a job to the queue; `job.result` has the answer later. Raises QueueFull."""
        with self._condition:
            if self._is_closed or self.num_waiting + job.num_rows > self.max_waiting_rows:
                raise QueueFull
            self._queue.append(job)
            self._condition.notify()

    def close(self) -> None:
        """Finishes the jobs that were accepted, and ends the thread."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join()

    # ---------------------------------------------------------------- the worker thread

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self._has_work)
                if self._is_closed and not self._queue and not self._active:
                    return
                accepted = [job for job in self._queue if not job.result.cancelled()]
                self._queue.clear()
                self._num_starting = sum(job.num_rows for job in accepted)
            started = [job for job in accepted if self._encode(job)]
            self._score_choices(started)
            self._active += [job for job in started if not job.result.done()]
            self._step()
            self._answer()

    def _has_work(self) -> bool:
        """Whether there is something to do; a step frees the rows of jobs that were cancelled."""
        has_rows = any(batch.rows or batch.waiting for batch in self._batches.values())
        return bool(self._queue or self._active or has_rows or self._is_closed)

    def _encode(self, job: Job[Any]) -> bool:
        """Whether the job's rows could be made; they wait then."""
        try:
            job.rows = job.encode()
        except Exception as error:
            _fail(job, error)
            return False
        finally:
            self._num_starting -= job.num_rows
        for row in job.rows:
            row.is_cancelled = job.result.cancelled
        self._batches[job.model].waiting.extend(job.rows)
        return True

    def _score_choices(self, jobs: list[Job[Any]]) -> None:
        """The nats of the choices of all new rows, of each model at once."""
        for name, batch in self._batches.items():
            rows = [row for job in jobs if job.model == name for row in job.rows if row.choices]
            if not rows:
                continue
            try:
                nats = choice_nll(batch.model, [(row.prompt, row.choices) for row in rows], self.batch_tokens)
            except Exception as error:
                self._fail_rows(batch, jobs, error)
                continue
            for row, each in zip(rows, nats, strict=True):
                row.nats = each

    def _step(self) -> None:
        for batch in self._batches.values():
            try:
                batch.step()
            except Exception as error:
                self._fail_rows(batch, self._active, error)

    def _fail_rows(self, batch: ContinuousBatch, jobs: list[Job[Any]], error: Exception) -> None:
        """Ends every job with a row in a batch that raised an error."""
        failed = set(map(id, batch.clear()))
        for job in {id(job): job for job in [*jobs, *self._active]}.values():
            if any(id(row) in failed for row in job.rows):
                _fail(job, error)

    def _answer(self) -> None:
        """Ends the jobs whose rows are complete."""
        active = []
        for job in self._active:
            if job.result.done():
                continue
            if any(row.is_finished is None for row in job.rows):
                active.append(job)
                continue
            self.num_tokens += sum(len(row.new) for row in job.rows)
            try:
                answer = job.finish(job.rows)
            except Exception as error:
                _fail(job, error)
                continue
            if job.result.set_running_or_notify_cancel():
                job.result.set_result(answer)
        self._active = active


def _fail(job: Job[Any], error: Exception) -> None:
    if job.result.set_running_or_notify_cancel():
        job.result.set_exception(error)
