"""Metrics of the hub and of scripts, through `evaluate.load`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask.errors import InputError, suggest
from multitask.evaluation.metrics.base import checked_references


def hub_metric(name: str, **options: Any) -> Any:
    """A metric of the hub by name (`sacrebleu`, `owner/name`), or of a script by path, as `evaluate.load` gives it.

    Its code is downloaded and run: load what you trust. The
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
        from multitask.evaluation.metrics import NAMES  # it imports this module

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
    given = (
        [list(checked_references(r)) for r in references]
        if takes_lists
        else [checked_references(r)[0] for r in references]
    )
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
