"""From likelihoods of choices to a prediction: the six rules.

With nats (1.0, 1.5) of the choices "no" and "yes", and (0.2, 2.0) of them after a question without content, `raw`
predicts "no" and `calibrated` "yes": the prompt alone already favours "no" by more.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from multitask.inference.scoring import Floats

BIASED = ("calibrated", "domain_calibrated")
"""Rules that subtract the log-probability of each choice after prompts without content: N/A, nothing and [MASK] in
place of the row (contextual calibration, Zhao et al., 2021); random words of the task's training inputs (domain-context
calibration, Fei et al., 2023)."""
BATCH = "batch_calibrated"
"""Subtracts the mean log-probability of each choice over all scored rows of a language, without their labels (batch
calibration, Zhou et al., 2024)."""
RULES = ("raw", "per_token", "per_byte", "calibrated", BATCH, "domain_calibrated")
"""raw: summed nats; per token of the choice, per byte of it; and three that correct a prompt's bias."""


def log_probabilities(nats: Sequence[float]) -> Floats:
    """Of choices among themselves: log of each likelihood over their sum."""
    logs = -np.asarray(nats)
    found: Floats = logs - np.logaddexp.reduce(logs)
    return found


def predicted(
    nats: Sequence[float], choices: Sequence[Sequence[int]], words: Sequence[str], biases: Mapping[str, Floats]
) -> dict[str, int]:
    """The number of the choice that each rule takes; `BATCH` needs all rows and is that of `raw` here.

    choices, words: ids and text of each choice. biases: by rule of `BIASED`, log-probabilities of the choices up to a
    constant; where no prompt without content fits the window there is none, and nothing is corrected.
    """
    scored = {
        "raw": np.asarray(nats),
        "per_token": np.asarray(nats) / [len(ids) for ids in choices],
        "per_byte": np.asarray(nats) / [len(word.encode()) for word in words],
        BATCH: np.asarray(nats),
    }
    scored |= {rule: nats + biases[rule] if rule in biases else np.asarray(nats) for rule in BIASED}
    return {rule: int(np.argmin(scored[rule])) for rule in RULES}


def batch_calibrated(nats: Sequence[Sequence[float]], groups: Sequence[object]) -> list[int]:
    """The choice of each row by `BATCH`; rows of one group (a language and its words) are corrected together."""
    logs = [log_probabilities(each) for each in nats]
    places: dict[object, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        places[group].append(place)
    means = {group: np.mean([logs[place] for place in mine], axis=0) for group, mine in places.items()}
    return [int(np.argmax(each - means[group])) for each, group in zip(logs, groups, strict=True)]
