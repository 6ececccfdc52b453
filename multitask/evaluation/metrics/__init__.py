"""Scores as sums that are divided once: numbers of one example, and what makes a score of their sums.

Two answers, one of them right: `{"correct": 1, "count": 1}` and `{"correct": 0, "count": 1}` sum to
`{"correct": 1, "count": 2}`, which `finish` makes 0.5. A mean of batch means would depend on the batches; this does
not, and the same numbers, drawn again with replacement, give the interval. Scores are shares of 1, not per cent.
"""

import math
import operator
import re
import string
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from multitask.errors import InputError, suggest

Sums = TypeVar("Sums", float, NDArray[np.float64])
PerExample = Callable[[str, Sequence[str]], dict[str, float]]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
FROM_NLL = ("perplexity", "word_perplexity", "bits_per_byte")
DESCRIPTORS = ("distinct1", "distinct2", "repetition", "length")
"""What written text is like by itself: references are ignored, may be none."""
NAMES = (*FROM_NLL, "accuracy", "macro_f1", "exact_match", "f1", *ROUGE, *DESCRIPTORS)

MAX_EXPONENT = 700.0
"""Perplexity is reported as e^700 at most: beyond e^709 a float is infinite."""
MAX_CELLS = 2**21
"""Sums of resamples, or new hashes of n-grams, held at a time: 16 MiB."""


class Finish(Protocol):
    """Sums to a score: of floats a float, of arrays with one entry per resample an array."""

    def __call__(self, sums: Mapping[str, Sums], /) -> Sums:
        """Divide, once."""


@dataclass(frozen=True)
class Metric:
    """One score: two pure functions and which way is up.

    name: as in `NAMES`; also its key in results.
    per_example: prediction and references to named numbers, which add up over examples. It raises InputError without
        a reference (`DESCRIPTORS` need none), and for `FROM_NLL`, whose numbers (`nll` in nats, `tokens`, `words`,
        `bytes`, each summed over the target) come from the model.
    finish: the sums to the score. It divides by no zero: without anything to divide by, the score is 0 (perplexity: 1).
    higher_is_better: false for `FROM_NLL` and repetition; None for length, which is neither good nor bad.
    """

    name: str
    per_example: PerExample
    finish: Finish
    higher_is_better: bool | None


def build(name: str, language: str, rouge_tokenizer: str = "eojeol") -> Metric:
    """The metric of that name for texts of that language; raises InputError for a name that is none.

    Args:
        name: one of `NAMES`.
        language: `ko` reads answers as KorQuAD 1.0 does (F1 of characters), any other as SQuAD v1.1 (F1 of words).
        rouge_tokenizer: one of `TOKENIZERS`, what ROUGE counts.
    """
    if name not in NAMES:
        raise InputError(f"metric '{name}' does not exist; {suggest(name, NAMES)}")
    if rouge_tokenizer not in TOKENIZERS:
        raise InputError(f"ROUGE tokenizer '{rouge_tokenizer}' does not exist; {suggest(rouge_tokenizer, TOKENIZERS)}")
    if name in ROUGE and rouge_tokenizer == "morphemes":
        _kiwi()  # a missing package is told now, not after hours of writing
    if name in FROM_NLL:
        return Metric(name, partial(_no_text, name), _FINISH_NLL[name], higher_is_better=False)
    if name == "length":
        return Metric(name, _length, partial(_mean, name), higher_is_better=None)
    if name in DESCRIPTORS:
        repeats = name == "repetition"
        describe = partial(_distinct, name, 4 if repeats else int(name[-1]), repeats)
        return Metric(name, describe, partial(_mean, name), higher_is_better=not repeats)
    if name == "macro_f1":
        return Metric(name, _confusion, _macro_f1, higher_is_better=True)
    if name == "accuracy":
        key, measure = "correct", operator.eq
    elif name in ROUGE:
        key, measure = name, partial(_rouge, name, rouge_tokenizer)
    elif name == "exact_match":
        key, measure = name, partial(_exact_match, _korquad_words if language == "ko" else _squad_words)
    else:
        key, measure = name, partial(_f1, _korquad_characters if language == "ko" else _squad_words)
    return Metric(name, partial(_best, key, measure), partial(_mean, key), higher_is_better=True)


class Numbers:
    """The numbers of many examples in three flat arrays: 16 bytes a number, where a dictionary a row takes hundreds."""

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.columns: dict[str, int] = {}
        self._rows, self._places, self._values = array("i"), array("i"), array("d")
        self._length = 0
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, float]) -> None:
        """Adds one example."""
        for key, value in row.items():
            self._rows.append(self._length)
            self._places.append(self.columns.setdefault(key, len(self.columns)))
            self._values.append(value)
        self._length += 1

    @classmethod
    def side_by_side(cls, several: "Sequence[Numbers]") -> "Numbers":
        """Several numbers of each example in one: column `key` of the second becomes `1:key`.

        Drawing an example then draws all that was measured of it, for instance after each set of demonstrations.
        """
        joined = cls()
        for turn, numbers in enumerate(several):
            base = len(joined.columns)
            joined.columns |= {f"{turn}:{key}": base + place for key, place in numbers.columns.items()}
            joined._rows.extend(numbers._rows)
            joined._places.extend(base + place for place in numbers._places)
            joined._values.extend(numbers._values)
            joined._length = max(joined._length, len(numbers))
        return joined

    def __len__(self) -> int:
        return self._length

    def sums(self, drawn: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Sums by column; with `drawn` (examples,), each example as often as it says."""
        rows, places, values = (np.asarray(part) for part in (self._rows, self._places, self._values))
        weights = values if drawn is None else values * drawn[rows]
        sums: NDArray[np.float64] = np.bincount(places, weights=weights, minlength=len(self.columns)).astype(np.float64)
        return sums


def score(metric: Metric, numbers: Numbers | Iterable[Mapping[str, float]], drawn: NDArray[Any] | None = None) -> float:
    """The score of all examples together: sum, then finish. Raises InputError without examples.

    drawn: how often each example counts, for instance 1 for those of one language and 0 for the others.
    """
    numbers = numbers if isinstance(numbers, Numbers) else Numbers(numbers)
    sums = dict(zip(numbers.columns, numbers.sums(drawn).tolist(), strict=True))
    if not sums:
        raise InputError(f"metric '{metric.name}' has no examples to score; at least one was expected")
    return float(metric.finish(sums))


def interval(
    finish: Finish, numbers: Numbers | Iterable[Mapping[str, float]], num_resamples: int, seed: int | Sequence[int]
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval over rows (Efron, 1979): low and high end of the score.

    Which rows are drawn depends on the seed and the number of rows alone, so two systems scored on the same rows with
    the same seed are resampled alike. Raises InputError without examples.
    """
    numbers = numbers if isinstance(numbers, Numbers) else Numbers(numbers)
    n, columns = len(numbers), numbers.columns
    if not n:
        raise InputError("there are no examples to resample; at least one was expected")
    rng = np.random.default_rng(seed)
    # The numbers are kept sparse, and resamples are finished a block at a time: macro-F1 has a column per class, and a
    # model that writes freely makes up as many classes as there are rows.
    block = max(1, MAX_CELLS // len(columns))
    scores = []
    for start in range(0, num_resamples, block):
        sums = np.empty((min(block, num_resamples - start), len(columns)))
        for resample in sums:
            resample[:] = numbers.sums(np.bincount(rng.integers(n, size=n), minlength=n))
        scores.append(finish({key: sums[:, column] for key, column in columns.items()}))
    low, high = np.quantile(np.concatenate(scores), [0.025, 0.975])
    return float(low), float(high)


def evaluate_metric(name: str, language: str, rouge_tokenizer: str = "eojeol", **options: Any) -> Any:
    """The metric as an `evaluate.Metric`, offline, to stand in `evaluate.combine` beside metrics of the hub.

    `compute(predictions=[...], references=[...])` takes one reference text, or a list of them, per prediction; of
    `DESCRIPTORS` it takes predictions alone.
    `options` go to `evaluate.Metric` (`keep_in_memory`, `cache_dir`, ...). Raises InputError for a metric that is not
    one of texts, and in `compute` when there is nothing to score.
    """
    metric = build(name, language, rouge_tokenizer)
    if name in FROM_NLL:
        metric.per_example("", [])

    import datasets
    import evaluate

    text = datasets.Value("string")

    class Multitask(evaluate.Metric):
        def _info(self) -> Any:
            if name in DESCRIPTORS:
                return evaluate.MetricInfo(
                    description=f"{name} of texts", citation="", features=datasets.Features({"predictions": text})
                )
            several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
            one = datasets.Features({"predictions": text, "references": text})
            return evaluate.MetricInfo(
                description=f"{name} for texts in '{language}'", citation="", features=[several, one]
            )

        def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
            """Score these, or all that were added before."""
            if len(self) == 0 and (predictions is None or len(predictions) == 0):
                raise InputError(f"metric '{name}' has no examples to score; at least one was expected")
            return super().compute(predictions=predictions, references=references, **kwargs)

        def _compute(self, predictions: Any, references: Any = None) -> dict[str, float]:
            lists = ([r] if isinstance(r, str) else r for r in references or ((),) * len(predictions))
            return {name: score(metric, map(metric.per_example, predictions, lists))}

    return Multitask(**options)


def hub_metric(name: str, **options: Any) -> Any:
    """A metric of the hub by name (`sacrebleu`, `owner/name`), or of a script by path, as `evaluate.load` gives it.

    It stands in `evaluate.combine` beside `evaluate_metric`. Its code is downloaded and run: load what you trust. The
    network is needed once, the cache serves afterwards. `options` go to `evaluate.load` (`config_name`, `cache_dir`,
    ...). Raises InputError for a name that cannot be loaded.
    """
    import evaluate

    try:
        return evaluate.load(name, **options)
    except (FileNotFoundError, ConnectionError) as error:
        if Path(name).suffix == ".py" or Path(name).is_absolute():
            raise InputError(
                f"metric '{name}': no such metric script; expected a file, or a folder/folder.py"
            ) from error
        raise InputError(
            f"metric '{name}' is none of ours ({suggest(name, NAMES)}), neither a script nor in the cache of evaluate, "
            "and the hub did not give it; offline, name a metric that was loaded before, or the path of a script"
        ) from error
    except ImportError as error:
        raise InputError(f"metric '{name}' cannot be loaded: {' '.join(str(error).split())}") from error


def hub_scores(metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All numbers that a metric of `hub_metric` computes of whole lists: `bleu`, `precisions.0`, ...

    A metric that takes several references gets them all, and one that takes a single text the first of each list.
    Texts and NaN among its results are left out. Raises InputError where the metric does not take texts.
    """
    import datasets

    if not predictions:
        raise InputError(f"metric '{metric.name}' has no examples to score; at least one was expected")
    features = metric.info.features if isinstance(metric.info.features, list) else [metric.info.features]
    takes_lists = any(not isinstance(each.get("references"), datasets.Value) for each in features)
    # evaluate infers one feature type from the first rows; lists of different lengths are one type, texts another.
    given = [list(_some(r)) for r in references] if takes_lists else [_some(r)[0] for r in references]
    try:
        found = metric.compute(predictions=list(predictions), references=given)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"metric '{metric.name}' does not take texts as they are scored here: {' '.join(str(error).split())}"
        ) from error
    return dict(_flat(found))


def _flat(found: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(found, (list, tuple, np.ndarray)):
        for number, value in enumerate(found):
            yield from _flat(value, f"{path}.{number}")
    elif isinstance(found, (int, float, np.number)) and math.isfinite(found):
        yield path, float(found)


def confusion(pairs: Iterable[tuple[str, Sequence[str]]], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """`{"classes": [...], "counts": [[...], ...]}` of (prediction, references) each.

    Rows are gold classes and columns predicted ones, both in the order of `classes` (default: gold classes, sorted);
    one more column counts predictions outside the set. The gold class is the prediction if that is a reference, else
    the first reference, as in accuracy and macro-F1: the diagonal over all counts is accuracy. Raises InputError for a
    reference outside `classes`.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for prediction, references in pairs:
        gold = prediction if prediction in _some(references) else references[0]
        counts[gold, prediction] += 1
    found = sorted({gold for gold, _ in counts})
    known = list(found if classes is None else classes)
    for gold in found:
        if gold not in known:
            raise InputError(f"reference '{gold}' is none of the classes {', '.join(known)}; {suggest(gold, known)}")
    table = [[counts[gold, predicted] for predicted in known] for gold in known]
    for gold, row in zip(known, table, strict=True):
        row.append(sum(n for (of, _), n in counts.items() if of == gold) - sum(row))
    return {"classes": known, "counts": table}


class CorpusDistinct:
    """Distinct-n as in Li et al. (2016): different n-grams of all texts over the number of their n-grams.

    It shrinks as texts are added and is no sum over them, so it has no interval, and sets of different sizes cannot be
    compared. Memory: 8 bytes for each different n-gram (a 64-bit hash stands for it) and a fixed buffer.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.total = 0
        self._seen, self._new = np.empty(0, np.int64), array("q")

    def add(self, text: str) -> None:
        """Counts one text."""
        before = len(self._new)
        self._new.extend(map(hash, _ngrams(text, self.n)))
        self.total += len(self._new) - before
        if len(self._new) > max(MAX_CELLS, len(self._seen)):
            self._merge()

    def value(self) -> float:
        """The share of n-grams that are different ones; 0 without any."""
        self._merge()
        return len(self._seen) / max(self.total, 1)

    def _merge(self) -> None:
        self._seen, self._new = np.union1d(self._seen, np.asarray(self._new)), array("q")


# --- Numbers of one example


def _best(
    key: str, measure: Callable[[str, str], float], prediction: str, references: Sequence[str]
) -> dict[str, float]:
    """The most that `measure(prediction, reference)` gives over the references."""
    return {key: float(max(measure(prediction, r) for r in _some(references))), "count": 1.0}


def _confusion(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """A true positive of the class, or a false positive of the one and a false negative of the other."""
    if prediction in _some(references):
        return {f"tp:{prediction}": 1.0}
    return {f"fp:{prediction}": 1.0, f"fn:{references[0]}": 1.0}


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """Neighbours of n words between white space, as they are: a loop of punctuation marks is a loop too."""
    words = text.split()
    return zip(*(words[first:] for first in range(n)), strict=False)


def _distinct(name: str, n: int, repeats: bool, prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The share of different n-grams among those of one text, or the share that repeat an earlier one of that text.

    Distinct-n (Li et al., 2016) within each text, averaged over texts: over a whole set it is no sum
    (`CorpusDistinct`). Repetition is seq-rep-4 of Welleck et al. (2020), one minus that share of 4-grams. A text of
    fewer than n words has no n-gram and does not count.
    """
    ngrams = list(_ngrams(prediction, n))
    share = len(set(ngrams)) / max(len(ngrams), 1)
    return {name: (1.0 - share) * bool(ngrams) if repeats else share, "count": float(bool(ngrams))}


def _length(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Words between white space (eojeol in Korean): one unit for all languages, so that a mean over them means one."""
    return {"length": float(len(prediction.split())), "count": 1.0}


def _no_text(name: str, prediction: str, references: Sequence[str]) -> dict[str, float]:
    raise InputError(
        f"metric '{name}' is computed from the model's nll (numbers nll, tokens, words, bytes), not from written text; "
        f"metrics of texts are {', '.join(n for n in NAMES if n not in FROM_NLL)}"
    )


def _some(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str):  # would be read as one reference per character
        raise InputError(f"references are the text {references!r}, a list of texts was expected; put it into a list")
    if not references:
        raise InputError("the list of references is empty; at least one accepted text was expected")
    return references


# --- Sums to scores


def _ratio(top: Sums, bottom: Sums) -> Sums:
    """0 where the bottom is 0, without a warning. Counts are whole, so nothing else is moved by the 1."""
    result: Sums = top * (bottom > 0) / np.maximum(bottom, 1)
    return result


def _mean(key: str, sums: Mapping[str, Sums]) -> Sums:
    return _ratio(sums[key], sums["count"])


def _perplexity(per: str, sums: Mapping[str, Sums]) -> Sums:
    """Per token, or per word between white space: all nats of the target, `<|end|>` included, over its words."""
    result: Sums = np.exp(np.minimum(_ratio(sums["nll"], sums[per]), MAX_EXPONENT))
    return result


def _bits_per_byte(sums: Mapping[str, Sums]) -> Sums:
    return _ratio(sums["nll"] / math.log(2), sums["bytes"])


_FINISH_NLL: Mapping[str, Finish] = {
    "perplexity": partial(_perplexity, "tokens"),
    "word_perplexity": partial(_perplexity, "words"),
    "bits_per_byte": _bits_per_byte,
}


def _macro_f1(sums: Mapping[str, Sums]) -> Sums:
    """The mean F1 of all classes that occur as gold or as prediction; an invented class counts, with an F1 of 0.

    That is scikit-learn's `f1_score(average="macro")` by definition. F1 = 2 tp / (2 tp + fp + fn).
    """
    total: Any = 0.0
    num_classes: Any = 0.0
    for label in sorted({key.partition(":")[2] for key in sums}):
        hits: Any = 2 * sums.get(f"tp:{label}", 0.0)
        seen = hits + sums.get(f"fp:{label}", 0.0) + sums.get(f"fn:{label}", 0.0)
        total += _ratio(hits, seen)
        num_classes += seen > 0
    result: Sums = _ratio(total, num_classes)
    return result


# --- Answers: SQuAD and KorQuAD. Both official scripts are frozen, as scores, in tests/golden.

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_KORQUAD_SPACES = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))


def _squad_words(text: str) -> list[str]:
    """SQuAD v1.1 (Rajpurkar et al., 2016): words in lower case without ASCII punctuation, then without articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_NO_PUNCTUATION)).split()


def _korquad_words(text: str) -> list[str]:
    """KorQuAD 1.0 (Lim et al., 2019): quotes and brackets part words, other ASCII punctuation goes."""
    return text.translate(_KORQUAD_SPACES).lower().translate(_NO_PUNCTUATION).split()


def _korquad_characters(text: str) -> str:
    return "".join(_korquad_words(text))


def _exact_match(tokens: Callable[[str], Sequence[str]], prediction: str, reference: str) -> float:
    return float(tokens(prediction) == tokens(reference))


def _f1(tokens: Callable[[str], Sequence[str]], prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the bag of tokens: 2 shared / (all here + all there); of nothing, 0."""
    here, there = tokens(prediction), tokens(reference)
    shared = (Counter(here) & Counter(there)).total()
    return 2 * shared / (len(here) + len(there)) if shared else 0.0


# --- ROUGE (Lin, 2004), by rouge_score; what it counts is ours to say


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
    return [token.form for token in _kiwi().tokenize(text.lower()) if token.form.strip(marks)]


@cache
def _kiwi() -> Any:
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


def _rouge(name: str, tokenizer: str, prediction: str, reference: str) -> float:
    """F-measure; `rougeLsum` takes each line as a sentence."""
    measure: float = _scorer(name, tokenizer).score(reference, prediction)[name].fmeasure
    return measure
