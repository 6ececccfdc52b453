"""Chooses a prompt template and a rule on validation rows; the rows that are scored are never looked at.

`choose(evaluator, arm, {"ko": [Style(prompt)]}, rows)` -> `{"ko": Choice(style=Style(prompt, rule="raw"), ...)}`
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from multitask import processes
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row, read
from multitask.data.sources import has_split, resolve
from multitask.evaluation import metrics
from multitask.evaluation.evaluator import Arm, ArmScores, Evaluator, Prediction, calibrate_batch
from multitask.evaluation.prompting.choice_rules import RULES
from multitask.evaluation.prompting.templates import Style
from multitask.evaluation.prompts import PlainFormat
from multitask.evaluation.schema import Selection
from multitask.task import Task


@dataclass(frozen=True)
class ValidationRows:
    """Rows to choose on, by language, and the split that they are of; None: there are none."""

    split: str | None
    by_language: Mapping[str, Sequence[Row]]

    @classmethod
    def of(cls, task: Task, config: RunConfig) -> "ValidationRows":
        """Validation rows, or training rows where validation rows are scored or there are none."""
        sources = resolve(task, config.data)
        others = [split for split in ("validation", "train") if split != config.eval.split]
        splits = [split for split in others if any(has_split(source, split) for source in sources)]
        found: dict[str, list[Row]] = defaultdict(list)
        if not splits:
            return cls(None, found)
        for row in read(task, splits[0], config.data, Counts()):
            if len(found[row.language]) < config.fewshot.max_validation_rows:
                found[row.language].append(row)
        return cls(splits[0], found)


def choose(
    evaluator: Evaluator,
    prompt_format: PlainFormat,
    arm: Arm,
    candidates: Mapping[str, Sequence[Style]],
    validation: ValidationRows,
) -> dict[str, tuple[Style, Selection]]:
    """By language, the style of the best first metric with an arm's demonstrations; of equals the first.

    Where there is nothing to choose, or no row to choose on that fits every candidate, it is the first candidate.
    """
    found = {}
    for language, styles in candidates.items():
        rules = _rules(evaluator.task, evaluator.config)
        first = replace(styles[0], rule=rules[0])
        rows = list(validation.by_language.get(language, ()))
        scores: dict[tuple[str, str], float] = {}
        num_rows = 0
        shown = arm.nearest.rows if arm.nearest is not None else arm.demonstrations
        if len(styles) * len(rules) > 1 and rows and (not arm.shots or shown.get(language)):
            num_rows, scores = _scores(evaluator, prompt_format, arm, language, styles, rules, rows)
        name = evaluator.task.metrics[0]
        sign = 1 if metrics.build(name, "en").higher_is_better else -1
        best = max(scores, key=lambda key: sign * scores[key]) if scores else (first.name, first.rule)
        style = next(replace(style, rule=best[1]) for style in styles if style.name == best[0])
        is_closed = evaluator.task.is_closed
        by_template: dict[str, float] = {}
        for (template, _), value in scores.items():
            by_template[template] = max(by_template.get(template, value), value, key=lambda each: sign * each)
        found[language] = (
            style,
            Selection(
                template=style.name,
                rule=style.rule if is_closed else None,
                split=validation.split if scores else None,
                num_rows=num_rows,
                templates=by_template,
                rules={
                    rule: value for (template, rule), value in scores.items() if template == style.name and is_closed
                },
            ),
        )
    return found


def _rules(task: Task, config: RunConfig) -> tuple[str, ...]:
    """Rules to choose from; of an open task there is none, and `raw` stands for it."""
    if config.fewshot.templates == "first" or not task.is_closed:
        return ("raw",) if config.fewshot.rule == "best" else (config.fewshot.rule,)
    return RULES if config.fewshot.rule == "best" else (config.fewshot.rule,)


def _scores(
    evaluator: Evaluator,
    prompt_format: PlainFormat,
    arm: Arm,
    language: str,
    styles: Sequence[Style],
    rules: Sequence[str],
    rows: Sequence[Row],
) -> tuple[int, dict[tuple[str, str], float]]:
    """The number of rows that fit every template, and the score of each template and rule on them."""
    task, shots = evaluator.task, arm.shots or 0
    rankings = [arm.ranking(row, task) for row in rows]
    formats = [prompt_format.with_styles({language: style}) for style in styles]
    encoded = [each.encode(rows, rankings, shots) for each in formats]
    fitting = [at for at in range(len(rows)) if all(prompts[at] is not None for prompts in encoded)]
    scores = {}
    units = [
        ([prompt for at in fitting if (prompt := prompts[at]) is not None], each)
        for each, prompts in zip(formats, encoded, strict=True)
    ]
    answers = processes.mapped(lambda unit: evaluator.predict(*unit), units)
    for style, each, found in zip(styles, formats, answers, strict=True):
        if task.is_closed:
            calibrate_batch(found, each)
        for rule in rules if found else ():
            if (value := _score(task, evaluator.config, found, rule)) is not None:
                scores[style.name, rule] = value
    return len(fitting), scores


def _score(task: Task, config: RunConfig, found: Iterable[Prediction], rule: str) -> float | None:
    """The first metric; None where no row has numbers of it."""
    scores = ArmScores(task, config)
    for one in found:
        if task.is_closed:
            one.choose(rule)
        scores.add(one, has_likelihood=not task.is_closed)
    numbers = dict(scores.named()).get(task.metrics[0])
    return None if numbers is None else round(metrics.score(metrics.build(task.metrics[0], "en"), numbers), 6)
