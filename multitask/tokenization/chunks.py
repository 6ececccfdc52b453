"""Long texts in chunks whose ids, one after another, are those of the whole text; chunks encoded ahead in threads."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from tokenizers import Tokenizer

from multitask.errors import InputError

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

_CONTEXT = 200  # characters at both sides of a split point
_MAX_SPLITS = 50  # tried per piece, before more is read
_SPLIT = re.compile(r"(?<=\S)\s")


def pieces(parts: Iterable[str], plain: Tokenizer, size: int) -> Iterator[str]:
    """A text in pieces of about `size` characters whose ids, one after another, are those of the whole.

    A split point lies before white space, and only where the text around it has the same ids in one and in two. Where
    there is none (a text without white space, say), the piece continues. Raises InputError where the tokenizer has no
    token for what it does not know, and says so.
    """

    def ids(text: str) -> list[int]:
        try:
            found: list[int] = plain.encode(text, add_special_tokens=False).ids
        except Exception as error:  # what `tokenizers` raises has no class of its own
            raise InputError(f"the tokenizer cannot encode this text: {error}") from error
        return found

    held = ""
    for part in parts:
        for start in range(0, len(part), size):  # a text that is given whole is one part
            held += part[start : start + size]
            if len(held) < size:
                continue
            for at in islice(_split_points(held, len(held) - size, len(held) - _CONTEXT), _MAX_SPLITS):
                left, right = held[max(0, at - _CONTEXT) : at], held[at : at + _CONTEXT]
                if ids(left) + ids(right) == ids(left + right):
                    yield held[:at]
                    held = held[at:]
                    break
    if held:
        yield held


def _split_points(text: str, start: int, end: int) -> Iterator[int]:
    """Where white space begins, the last place first; the text is searched only as far back as is asked for."""
    while end > start:
        begin = max(start, end - _CONTEXT)
        yield from reversed([found.start() for found in _SPLIT.finditer(text, begin, end)])
        end = begin


def ahead(make: Callable[[_Item], _Made], items: Iterable[_Item], num: int = 1) -> Iterator[tuple[_Item, _Made]]:
    """Items in order, each with what `make` gives for it; `num` threads make those to come while one is used.

    For work that runs outside Python's lock, as that of `tokenizers` does, on all cores. Threads and not processes: no
    start-up, no copies between processes, and scripts and notebooks need no `__main__` guard.
    """
    waiting: deque[tuple[_Item, Future[_Made]]] = deque()
    with ThreadPoolExecutor(num) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(make, item)))
                if len(waiting) > num:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
