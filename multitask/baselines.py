"""What a program without a model would score: the floor beneath every figure.

`lead("One. Two. Three. Four.", 3)` -> `"One. Two. Three."`
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multitask.examples import Examples

_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+|\n+")


def lead(text: str, num_sentences: int) -> str:
    """The first sentences of a text."""
    return " ".join([s for s in _SENTENCE_END.split(text.strip()) if s][:num_sentences])


def random_span(text: str, num_words: int, seed: Sequence[int]) -> str:
    """Some words of a text in a row, from a place that the seed decides."""
    words = text.split()
    most = max(0, len(words) - num_words)
    start = int(np.random.default_rng(list(seed)).integers(0, most + 1))
    return " ".join(words[start : start + num_words])


class Fitted:
    """What the baselines learn from a task's training rows: the commonest class, answer lengths, token counts."""

    def __init__(self, train: Examples, target: str, vocab_size: int, seed: int) -> None:
        self.seed = seed
        classes: Counter[str] = Counter()
        self.answer_words: list[int] = []
        for number in range(0, len(train), max(1, len(train) // 5000)):  # evenly: a file may be sorted by class
            row = train.row(number)
            answer = row["fields"][target]
            if row["choices"]:
                classes.update(c for c, word in zip(row["classes"], row["choices"], strict=True) if word == answer)
            self.answer_words.append(len(answer.split()))
        self.majority = classes.most_common(1)[0][0] if classes else None
        counts = np.ones(vocab_size)  # add-one smoothing: an unseen token has a finite price
        for number in range(len(train)):
            np.add.at(counts, train.ids(number)[train.num_prompts[number] :], 1)
        self.token_nll = -np.log(counts / counts.sum())

    def predict(self, name: str, row: Mapping[str, Any], cut: str | None, number: int) -> str:
        """The prediction of a baseline by name: majority, lead1, lead3, random_span; a class name or a text."""
        if name == "majority":
            return self.majority or ""
        text = row["fields"][cut] if cut else ""
        if name.startswith("lead"):
            return lead(text, int(name.removeprefix("lead")))
        return random_span(text, self.answer_words[number % len(self.answer_words)], [self.seed, number])
