"""Solved rows for prompts: drawn from the training rows, or those most like a question; random words of them.

`draw(rows, num_shots=4, num_draws=2, seed=7, balanced_by=None)[0]["ko"][:4]` are the first draw's four Korean rows.
"""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.task import Task

NUM_DOMAIN_TEXTS = 20
"""Random texts that a prompt's bias is averaged over (Fei et al., 2023)."""
_SPARE = 8  # demonstrations in reserve, for rows whose own duplicate was drawn


def draw(
    rows: Iterable[Row], num_shots: int, num_draws: int, seed: int, balanced_by: str | None
) -> list[dict[str, list[Row]]]:
    """For each draw and language, rows in the order in which they become demonstrations; `num_shots` and some spare.

    A row's place is a hash of (seed, draw, its id): a pure function of them, whatever the order of the file, and the
    first four of eight are the four. balanced_by: a field whose values take turns; None: none. One pass, and no more
    rows in memory than drawn.
    """
    most = num_shots + _SPARE
    heaps: list[dict[tuple[str, str], list[tuple[int, int, Row]]]] = [{} for _ in range(num_draws)]
    for number, row in enumerate(rows):
        kind = row.fields.get(balanced_by, "") if balanced_by else ""
        for turn, by_kind in enumerate(heaps):
            digest = hashlib.blake2b(f"{seed}|{turn}|{row.id}".encode(), digest_size=8).digest()
            entry = -int.from_bytes(digest, "big"), number, row
            heap = by_kind.setdefault((row.language, kind), [])
            if len(heap) < most:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    drawn: list[dict[str, list[Row]]] = []
    for by_kind in heaps:
        drawn.append({})
        for language in sorted({language for language, _ in by_kind}):
            queues = [sorted(heap, reverse=True) for (of, _), heap in by_kind.items() if of == language]
            queues.sort(key=lambda queue: queue[0][:2], reverse=True)
            turns = [entry[2] for entries in zip_longest(*queues) for entry in entries if entry is not None]
            drawn[-1][language] = turns[:most]
    return drawn


def domain_texts(rows: Iterable[Row], task: Task, seed: int) -> dict[str, list[dict[str, str]]]:
    """By language, rows of random words: each field but the answer has as many as it has on average, drawn from it.

    Labels are not looked at. A function of the rows and the seed.
    """
    by_language: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_language[row.language].append(row)
    found = {}
    for language, mine in by_language.items():
        rng = np.random.default_rng(seed)
        names = sorted({name for row in mine for name in row.fields} - {task.target})
        texts: list[dict[str, str]] = [{} for _ in range(NUM_DOMAIN_TEXTS)]
        for name in names:
            words = _words(mine, name)
            length = max(1, round(len(words) / len(mine)))
            for text in texts:
                text[name] = " ".join(words[at] for at in rng.integers(len(words), size=length))
        found[language] = texts
    return found


def _words(rows: Sequence[Row], field: str) -> list[str]:
    return [word for row in rows for word in row.fields.get(field, "").split()]


class Nearest:
    """Training rows by how much their inputs are like a row's: cosine of TF-IDF of character n-grams within words.

    n-grams of 2 to 4 characters serve Korean, whose words carry endings. All training rows are in memory.
    """

    def __init__(self, rows: Iterable[Row], task: Task, num_shots: int) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError:
            raise InputError(
                "fewshot.demonstrations: nearest needs scikit-learn: pip install 'multitask[nearest]', or choose "
                "random or balanced"
            ) from None
        self.task, self.most = task, num_shots + _SPARE
        self.rows: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            self.rows[row.language].append(row)
        self._fitted: dict[str, tuple[Any, Any]] = {}
        for language, mine in self.rows.items():
            vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), dtype=np.float32, sublinear_tf=True)
            try:
                self._fitted[language] = vectorizer, vectorizer.fit_transform([self._input(row) for row in mine])
            except ValueError:  # inputs without any n-gram
                continue

    def ranking(self, row: Row) -> Sequence[Row]:
        """The most similar rows of the language, most similar first; of equals the earlier."""
        mine = self.rows.get(row.language, [])
        if row.language not in self._fitted:
            return mine[: self.most]
        vectorizer, matrix = self._fitted[row.language]
        similarity = (matrix @ vectorizer.transform([self._input(row)]).T).toarray()[:, 0]
        return [mine[at] for at in np.argsort(-similarity, kind="stable")[: self.most]]

    def _input(self, row: Row) -> str:
        return "\n".join(text for name, text in row.fields.items() if name != self.task.target)
