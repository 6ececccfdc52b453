"""Exact match and F1 of answers, as the official scripts of SQuAD v1.1 and KorQuAD 1.0 count them.

Both official scripts are frozen, as scores, in tests/golden.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


_KORQUAD_SPACES = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))


def squad_words(text: str) -> list[str]:
    """SQuAD v1.1 (Rajpurkar et al., 2016): words in lower case without ASCII punctuation, then without articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_NO_PUNCTUATION)).split()


def korquad_words(text: str) -> list[str]:
    """KorQuAD 1.0 (Lim et al., 2019): quotes and brackets part words, other ASCII punctuation goes."""
    return text.translate(_KORQUAD_SPACES).lower().translate(_NO_PUNCTUATION).split()


def korquad_characters(text: str) -> str:
    """What KorQuAD's F1 counts: the characters of `korquad_words`."""
    return "".join(korquad_words(text))


def exact_match(tokens: Callable[[str], Sequence[str]], prediction: str, reference: str) -> float:
    """1 where both texts have the same tokens in the same order."""
    return float(tokens(prediction) == tokens(reference))


def f1(tokens: Callable[[str], Sequence[str]], prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the bag of tokens: 2 shared / (all here + all there); of nothing, 0."""
    here, there = tokens(prediction), tokens(reference)
    shared = (Counter(here) & Counter(there)).total()
    return 2 * shared / (len(here) + len(there)) if shared else 0.0
