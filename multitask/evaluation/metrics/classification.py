"""Metrics of classes: macro-F1 and the confusion matrix."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from multitask.errors import InputError, suggest
from multitask.evaluation.metrics.base import checked_references
from multitask.inference.likelihood import Sums, ratio


def confusion(pairs: Iterable[tuple[str, Sequence[str]]], classes: Sequence[str] | None = None) -> dict[str, object]:
    """`{"classes": [...], "counts": [[...], ...]}` of (prediction, references) each.

    Rows are gold classes and columns predicted ones, both in the order of `classes` (default: gold classes, sorted);
    one more column counts predictions outside the set. The gold class is the prediction if that is a reference, else
    the first reference, as in accuracy and macro-F1: the diagonal over all counts is accuracy. Raises InputError for a
    reference outside `classes`.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for prediction, references in pairs:
        gold = prediction if prediction in checked_references(references) else references[0]
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


def class_counts(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """A true positive of the class, or a false positive of the one and a false negative of the other."""
    if prediction in checked_references(references):
        return {f"tp:{prediction}": 1.0}
    return {f"fp:{prediction}": 1.0, f"fn:{references[0]}": 1.0}


def macro_f1(sums: Mapping[str, Sums]) -> Sums:
    """The mean F1 of all classes that occur as gold or as prediction; an invented class counts, with an F1 of 0.

    That is scikit-learn's `f1_score(average="macro")` by definition. F1 = 2 tp / (2 tp + fp + fn).
    """
    total: Any = 0.0
    num_classes: Any = 0.0
    for label in sorted({key.partition(":")[2] for key in sums}):
        hits: Any = 2 * sums.get(f"tp:{label}", 0.0)
        seen = hits + sums.get(f"fp:{label}", 0.0) + sums.get(f"fn:{label}", 0.0)
        total += ratio(hits, seen)
        num_classes += seen > 0
    result: Sums = ratio(total, num_classes)
    return result
