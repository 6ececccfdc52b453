"""Scores as sums that are divided once: numbers of one example, and what makes a score of their sums.

Two answers, one of them right: `{"correct": 1, "count": 1}` and `{"correct": 0, "count": 1}` sum to
`{"correct": 1, "count": 2}`, which `finish` makes 0.5. A mean of batch means would depend on the batches; this does
not, and the same numbers, drawn again with replacement, give the interval. Scores are shares of 1, not per cent.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial

from multitask.errors import InputError, suggest
from multitask.evaluation.metrics.answers import exact_match, f1, korquad_characters, korquad_words, squad_words
from multitask.evaluation.metrics.base import Metric, Numbers, checked_references, mean, score
from multitask.evaluation.metrics.classification import class_counts, confusion, macro_f1
from multitask.evaluation.metrics.descriptors import DESCRIPTORS, CorpusDistinct, distinct, length
from multitask.evaluation.metrics.functions import check_function, function_metric, parsed, shown, source
from multitask.evaluation.metrics.hub import hub_metric, hub_scores
from multitask.evaluation.metrics.rouge import ROUGE, TOKENIZERS, kiwi, rouge
from multitask.inference.likelihood import FINISH_NLL, Finish

__all__ = [
    "DESCRIPTORS",
    "FROM_NLL",
    "NAMES",
    "ROUGE",
    "TOKENIZERS",
    "CorpusDistinct",
    "Finish",
    "Metric",
    "Numbers",
    "build",
    "check_function",
    "confusion",
    "hub_metric",
    "hub_scores",
    "is_known",
    "score",
    "shown",
    "source",
]

FROM_NLL = tuple(FINISH_NLL)
NAMES = (*FROM_NLL, "accuracy", "macro_f1", "exact_match", "f1", *ROUGE, *DESCRIPTORS)


def is_known(name: str) -> bool:
    """Whether `build` makes a metric of this name: one of ours, or a function of the user."""
    return name in NAMES or parsed(name) is not None


def build(name: str, language: str, rouge_tokenizer: str = "eojeol") -> Metric:
    """The metric of that name for texts of that language; raises InputError for a name that is none.

    Args:
        name: one of `NAMES`, or a function as `file.py:function` or `module:function` (`functions.py`).
        language: `ko` reads answers as KorQuAD 1.0 does (F1 of characters), any other as SQuAD v1.1 (F1 of words).
        rouge_tokenizer: one of `TOKENIZERS`, what ROUGE counts.
    """
    if (function := parsed(name)) is not None:
        return function_metric(name, function)
    if name not in NAMES:
        raise InputError(f"metric '{name}' does not exist; {suggest(name, NAMES)}")
    if rouge_tokenizer not in TOKENIZERS:
        raise InputError(f"ROUGE tokenizer '{rouge_tokenizer}' does not exist; {suggest(rouge_tokenizer, TOKENIZERS)}")
    if name in ROUGE and rouge_tokenizer == "morphemes":
        kiwi()  # a missing package is told now, not after hours of writing
    if name in FROM_NLL:
        return Metric(name, partial(_reject_text, name), FINISH_NLL[name], higher_is_better=False)
    if name == "length":
        return Metric(name, length, partial(mean, name), higher_is_better=None)
    if name in DESCRIPTORS:
        repeats = name == "repetition"
        describe = partial(distinct, name, 4 if repeats else int(name[-1]), repeats)
        return Metric(name, describe, partial(mean, name), higher_is_better=not repeats)
    if name == "macro_f1":
        return Metric(name, class_counts, macro_f1, higher_is_better=True)
    if name == "accuracy":
        key, measure = "correct", operator.eq
    elif name in ROUGE:
        per_example = partial(
            _with_words, TOKENIZERS[rouge_tokenizer], partial(_best, name, partial(rouge, name, rouge_tokenizer))
        )
        return Metric(name, per_example, partial(mean, name), higher_is_better=True)
    elif name == "exact_match":
        key, measure = name, partial(exact_match, korquad_words if language == "ko" else squad_words)
    else:
        key, measure = name, partial(f1, korquad_characters if language == "ko" else squad_words)
    return Metric(name, partial(_best, key, measure), partial(mean, key), higher_is_better=True)


def _best(
    key: str, measure: Callable[[str, str], float], prediction: str, references: Sequence[str]
) -> dict[str, float]:
    """The most that `measure(prediction, reference)` gives over the references."""
    return {key: float(max(measure(prediction, r) for r in checked_references(references))), "count": 1.0}


def _with_words(
    tokenize: Callable[[str], Sequence[str]],
    per_example: Callable[[str, Sequence[str]], dict[str, float]],
    prediction: str,
    references: Sequence[str],
) -> dict[str, float]:
    """Numbers of an example; none where no reference has a word: a score of 0 would say that the answer is wrong."""
    found = per_example(prediction, references)
    return found if any(tokenize(reference) for reference in references) else {}


def _reject_text(name: str, prediction: str, references: Sequence[str]) -> dict[str, float]:
    raise InputError(
        f"metric '{name}' is computed from the model's nll (numbers nll, tokens, words, bytes), not from written text; "
        f"metrics of texts are {', '.join(n for n in NAMES if n not in FROM_NLL)}"
    )
