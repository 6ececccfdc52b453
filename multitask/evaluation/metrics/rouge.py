"""ROUGE (Lin, 2004) by rouge_score, over a text tokenizer that is chosen by language.

rouge_score's own tokenizer keeps a-z0-9 alone and gives identical Korean texts 0.
"""

import string
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from multitask.errors import InputError

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def _words(text: str) -> list[str]:
    """rouge_score's own words, not stemmed: runs of a-z0-9. Of Korean text nothing is left, and ROUGE is 0."""
    from rouge_score.tokenizers import DefaultTokenizer

    tokens: list[str] = DefaultTokenizer(use_stemmer=False).tokenize(text)
    return tokens


def _marks(text: str) -> str:
    """The punctuation (Unicode's and ASCII's) that occurs in a text."""
    return "".join(c for c in set(text) if c in string.punctuation or unicodedata.category(c).startswith("P"))


def _eojeol(text: str) -> list[str]:
    """Lower case, split at white space, punctuation stripped at both ends of each word."""
    marks = _marks(text)
    return [stripped for word in text.lower().split() if (stripped := word.strip(marks))]


def _chars(text: str) -> list[str]:
    """Lower case, every character that is not white space."""
    return list("".join(text.lower().split()))


def _morphemes(text: str) -> list[str]:
    """Lower case, morphemes by Kiwi as it writes them (`읽었다`: 읽, 었, 다), without those of punctuation alone."""
    marks = _marks(text)
    return [token.form for token in kiwi().tokenize(text.lower()) if token.form.strip(marks)]


@cache
def kiwi() -> Any:
    """The morphological analyser, loaded once; raises InputError where it is not installed."""
    try:
        from kiwipiepy import Kiwi
    except ImportError:
        raise InputError(
            "ROUGE tokenizer 'morphemes' needs the package kiwipiepy, which is not installed; "
            "`pip install 'multitask[ko]'`, or count 'eojeol' or 'chars'"
        ) from None
    return Kiwi(num_workers=1)  # seconds, and 100 MB of model: once per process


TOKENIZERS: Mapping[str, Callable[[str], list[str]]] = {
    "words": _words,
    "eojeol": _eojeol,
    "chars": _chars,
    "morphemes": _morphemes,
}


@cache
def _scorer(name: str, tokenizer: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # a second of imports

    return RougeScorer([name], tokenizer=SimpleNamespace(tokenize=TOKENIZERS[tokenizer]))


def rouge(name: str, tokenizer: str, prediction: str, reference: str) -> float:
    """F-measure; `rougeLsum` takes each line as a sentence."""
    measure: float = _scorer(name, tokenizer).score(reference, prediction)[name].fmeasure
    return measure
