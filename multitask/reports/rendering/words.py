"""What a report says, in English or Korean: `words("ko")["scores"]` -> `"점수"`; `words.yaml` has all of it."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from multitask.config.run import Language

Words = dict[str, str]


@cache
def words(language: Language) -> Words:
    """All texts of a language by name."""
    found: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text("utf-8"))
    return {name: texts[language] for name, texts in found.items()}


def sentence(said: Words, content: dict[str, Any]) -> str:
    """The verdict of the main comparisons of the arm that the others are compared with, in one sentence.

    `multitask is better than the best prompting on 3 of 4 tasks (worse on 1) and better than the best trivial baseline
    on 4 of 4 tasks.`
    """
    found = content["main_comparisons"]
    arms = list(dict.fromkeys(one["arm"] for one in found))
    if not arms:
        return said["sentence_none"]
    arm = content["against"] if content["against"] in arms else max(arms, key=[one["arm"] for one in found].count)
    parts = []
    for role in ("best prompting", "best trivial baseline"):
        of_role = [one for one in found if (one["arm"], one["role"]) == (arm, role)]
        verdicts = [one["verdict"] for one in of_role]
        if not verdicts:
            continue
        counts = {verdict: verdicts.count(verdict) for verdict in ("better", "worse", "no clear difference")}
        main = next(verdict for verdict, num in counts.items() if num)
        form = "sentence_unclear" if main == "no clear difference" else "sentence_role"
        form += "_one" if len(verdicts) == 1 else ""
        task = of_role[0]["task"]
        part = said[form].format(verb=said[main], role=said[role], num=counts.pop(main), of=len(verdicts), task=task)
        others = [
            said["sentence_other"].format(verdict=said[verdict], num=num) for verdict, num in counts.items() if num
        ]
        parts.append(part + (said["sentence_others"].format(", ".join(others)) if others else ""))
    return said["sentence"].format(arm=arm, parts=singular(said["sentence_and"].join(parts)))


def singular(text: str) -> str:
    """`1 tasks` -> `1 task`; Korean has no such forms."""
    return re.sub(r"\b1 (arm|task|results file|answer)s\b", r"1 \1", text)


def notes(said: Words, point: dict[str, Any]) -> list[str]:
    """Of a prompted arm on a task: how it was chosen, templates, unfinished and empty answers."""
    found = []
    if point["is_best"]:
        found.append(said["best_by_validation"].format(f"{point['validation']:.3f}"))
    found += point["notes"]
    counts = (("unfinished", point["num_unfinished"]), ("empty", point["num_empty"]))
    return found + [singular(said[name].format(f"{count:,}")) for name, count in counts if count]
