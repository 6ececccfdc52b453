"""Zero-, one- and few-shot prompting: no gradient, several draws of demonstrations.

`results.tasks["nli"].per_shot[4]` -> `Shots(metric="accuracy", mean=0.41, sd=0.05, low=0.37, high=0.45, draws=[...])`.
`sd` is over draws of demonstrations, `low` and `high` over rows: two different uncertainties.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from multitask import processes
from multitask.config.data import LANGUAGE
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row, read
from multitask.data.sources import has_split, resolve
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.baselines import baseline_scores, data_of, fit
from multitask.evaluation.bootstrap import interval
from multitask.evaluation.evaluator import Arm, ArmScores, Evaluator
from multitask.evaluation.prompting.chat import Chat
from multitask.evaluation.prompting.choice_rules import RULES
from multitask.evaluation.prompting.demonstrations import Nearest, domain_texts, draw
from multitask.evaluation.prompting.selection import ValidationRows, choose
from multitask.evaluation.prompting.templates import Style, check_templates, templates_of
from multitask.evaluation.prompts import PlainFormat
from multitask.evaluation.results_file import cost_of, results_of, write_results
from multitask.evaluation.schema import Data, Draw, Results, Selection, Shots, Spread, TaskScores
from multitask.evaluation.tuned import check_metrics, counts_of
from multitask.events import Report, ignore
from multitask.files import check_writable
from multitask.inference.scoring import in_precision
from multitask.models.lora import max_positions, plain_model
from multitask.task import Task

_NUM_DOMAIN_ROWS = 1000  # training rows whose words are drawn, for calibration


def fewshot(
    model: Any,
    tokenizer: Any,
    name: str,
    tasks: Mapping[str, Task],
    config: RunConfig,
    out: Path | None = None,
    report: Report = ignore,
) -> Results | None:
    """Prompts a loaded model; with `out`, writes `out` and `out.predictions/`. Other processes have None.

    Raises InputError when a task has no plain prompt, no training rows to draw from, or no row that fits the window.
    """
    started = time.perf_counter()
    if out is not None:
        processes.by_main(lambda: check_writable(out))
    check_metrics(tasks, config.eval)
    in_precision(model, config.eval.precision)
    predictions = out.with_name(out.name + ".predictions") if out is not None else None
    data, scores, num_tokens = {}, {}, 0
    for key, task in tasks.items():
        began = time.perf_counter()
        found = _prompt_task(model, tokenizer, name, task, config, predictions, report)
        if found is None:
            continue
        data[key], scores[key], tokens = found
        num_tokens += tokens
        result, elapsed_s = scores[key].to_json(), time.perf_counter() - began
        report({"event": "task", "task": key, "result": result, "elapsed_s": elapsed_s})
    if not processes.is_main():
        return None
    cost = cost_of(model, num_tokens, time.perf_counter() - started)
    results = results_of(config, "fewshot", "prompted", name, data, scores, cost=cost)
    if out is not None:
        write_results(out, results)
    return results


def _prompt_task(
    model: Any, tokenizer: Any, name: str, task: Task, config: RunConfig, predictions: Path | None, report: Report
) -> tuple[Data, TaskScores, int] | None:
    """One task with every number of shots and every draw: `data`, `tasks`, and the number of prompt tokens.

    None in other processes than the main one.
    """
    prompt_format = _format(model, tokenizer, name, task, config)
    split, counts = config.eval.split, Counts()
    arms = _arms(task, config)
    if not any(has_split(source, split) for source in resolve(task, config.data)):
        raise InputError(f"task '{task.name}' has no rows of the split '{split}'; give `files: {{{split}: ...}}`")
    fitted = fit(task, config) if processes.is_main() else None
    rows = itertools.islice(read(task, split, config.data, counts), config.eval.max_rows)
    evaluator = Evaluator(model, tokenizer, task, prompt_format, config)
    arms, chosen = _with_templates(evaluator, prompt_format, arms, config, report)
    scores, baselines = evaluator.run(rows, counts, arms, fitted, predictions, report)
    if not processes.is_main():
        return None
    by_arm: dict[tuple[int | None, str | None], list[ArmScores]] = {}
    for arm, each in zip(arms, scores, strict=True):
        by_arm.setdefault((arm.shots, arm.template), []).append(each)
    per_shot = {}
    for k in config.fewshot.shots:
        found = _per_shot(task, by_arm[k, None], prompt_format.window, config)
        others = {name: each for (shots, name), each in by_arm.items() if shots == k and name is not None}
        languages = sorted(set(by_arm[k, None][0].languages))
        update: dict[str, object] = {"selection": {of: chosen[k][of] for of in languages if of in chosen[k]}}
        if others:
            update["by_template"] = {
                name: _spread(found.metric, [dict(one.named())[found.metric] for one in each], config)
                for name, each in others.items()
            }
        per_shot[k] = found.model_copy(update=update)
    task_scores = TaskScores.model_validate(
        {
            "num_examples": evaluator.counts.num_rows,
            "separator": prompt_format.separator,
            "metrics": {},
            "baselines": baseline_scores(baselines, task, config),
            "per_shot": per_shot,
            **(fitted.sample if fitted is not None else {}),
        }
    )
    data = data_of(task, config, split).model_copy(update=counts_of(evaluator))
    return data, task_scores, sum(s.num_tokens for s in scores)


def _with_templates(
    evaluator: Evaluator, prompt_format: PlainFormat, arms: Sequence[Arm], config: RunConfig, report: Report
) -> tuple[list[Arm], dict[int, dict[str, Selection]]]:
    """The arms with the templates and rules chosen for each number of shots, and how these were chosen.

    With `fewshot.templates: all` there are further arms, of each template.
    """
    settings, task = config.fewshot, evaluator.task
    has_chat = prompt_format.chat is not None
    candidates = {language: _styles(task, language, config, has_chat) for language in _languages(task, config)}
    is_choice = settings.templates != "first" and (
        any(len(styles) > 1 for styles in candidates.values()) or (task.is_closed and settings.rule == "best")
    )
    validation = ValidationRows.of(task, config) if is_choice else ValidationRows(None, {})
    if is_choice and validation.split is None:
        text = f"task '{task.name}' has no validation rows to choose a prompt template on: the first one is used"
        report({"event": "warning", "text": text})
    for language in validation.by_language:
        candidates.setdefault(language, _styles(task, language, config, has_chat))
    found, chosen = [], {}
    for k in settings.shots:
        mine = [arm for arm in arms if arm.shots == k]
        choices = choose(evaluator, prompt_format, mine[0], candidates, validation)
        chosen[k] = {language: selection for language, (_, selection) in choices.items()}
        styles = {language: style for language, (style, _) in choices.items()}
        best = prompt_format.with_styles(styles)
        found += [replace(arm, format=best) for arm in mine]
        names = dict.fromkeys(style.name for each in candidates.values() for style in each)
        for name in names if settings.templates == "all" else ():
            other = {
                language: replace(style, rule=styles[language].rule)
                for language, each in candidates.items()
                for style in each
                if style.name == name
            }
            one = best.with_styles(other)
            found += [replace(arm, format=one, template=name) for arm in mine]
    return found, chosen


def _styles(task: Task, language: str, config: RunConfig, has_chat: bool) -> list[Style]:
    """What is to be chosen from in a language."""
    templates, wanted = templates_of(task, language, config.fewshot.prompts), config.fewshot.templates
    if wanted not in ("best", "all"):
        templates = tuple(prompt for prompt in templates if prompt.name == wanted) or templates[:1]
    ways = [False] * (not has_chat or config.fewshot.chat != "on") + [True] * has_chat
    return [Style(prompt, is_chat) for is_chat in ways for prompt in templates]


def _languages(task: Task, config: RunConfig) -> dict[str, None]:
    """Languages of the task's sources and templates."""
    own = (source.language or LANGUAGE for source in resolve(task, config.data))
    return dict.fromkeys([*own, *task.prompts, *config.fewshot.prompts.get(task.name, {})])


def _format(model: Any, tokenizer: Any, name: str, task: Task, config: RunConfig) -> PlainFormat:
    check_templates(task, config.fewshot.prompts, config.data, config.fewshot.templates)
    window = max_positions(model) or config.train.batch_tokens
    if task.max_new_tokens >= window:
        raise InputError(
            f"task '{task.name}' may answer with {task.max_new_tokens} tokens, the model's window has {window}: no "
            "tokens are left for a question"
        )
    if task.is_closed and all(name in metrics.FROM_NLL for name in task.metrics):
        raise InputError(
            f"task '{task.name}' has a closed answer set and no metric of what is chosen, only "
            f"{', '.join(task.metrics)}; accuracy or macro_f1 was expected"
        )
    ends = plain_model(model).generation_config.eos_token_id
    end_ids = {i for i in (tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])) if i is not None}
    found = PlainFormat(task, tokenizer, window, end_ids, config.fewshot, _chat(tokenizer, name, config))
    if task.is_closed and any(has_split(source, "train") for source in resolve(task, config.data)):
        rows = itertools.islice(read(task, "train", config.data, Counts()), _NUM_DOMAIN_ROWS)
        found.domain = domain_texts(rows, task, config.seed)
    return found


def _chat(tokenizer: Any, name: str, config: RunConfig) -> Chat | None:
    """The tokenizer's chat template, if prompts may be or must be written with it."""
    settings = config.fewshot
    if settings.chat == "off" or (settings.chat == "auto" and settings.templates == "first"):
        return None
    if not tokenizer.chat_template:
        if settings.chat == "on":
            raise InputError(f"{name}: its tokenizer has no chat template; prompt it as plain text: --chat off")
        return None
    return Chat(tokenizer, name)


def _arms(task: Task, config: RunConfig) -> list[Arm]:
    """Numbers of shots and draws; one draw where nothing is drawn."""
    settings, most = config.fewshot, max(config.fewshot.shots)
    drawn: list[dict[str, list[Row]]] = [{}]
    if most:
        if not any(has_split(source, "train") for source in resolve(task, config.data)):
            raise InputError(
                f"task '{task.name}' has no training rows to draw demonstrations from; give `files: "
                "{train: ...}`, or ask for zero-shot alone with --shots 0"
            )
        rows = itertools.islice(read(task, "train", config.data, Counts()), config.data.limit)
        if settings.demonstrations == "nearest":
            nearest = Nearest(rows, task, most)
            return [Arm(k, 0, nearest=nearest if k else None) for k in settings.shots]
        drawn = draw(
            rows, most, settings.draws, config.seed, task.label if settings.demonstrations == "balanced" else None
        )
    return [Arm(k, turn, drawn[turn]) for k in settings.shots for turn in range(settings.draws if k else 1)]


def _per_shot(task: Task, draws: Sequence[ArmScores], window: int, config: RunConfig) -> Shots:
    """One number of shots: the first metric at the top, all metrics and rules below, and each draw."""
    found = {name: _spread(name, [dict(each.named())[name] for each in draws], config) for name, _ in draws[0].named()}
    if not found:
        raise InputError(
            f"task '{task.name}': behind no question is there space for its {task.target} in the model's window of "
            f"{window} tokens; use a model with a longer window"
        )
    first = task.metrics[0] if task.metrics[0] in found else next(iter(found))
    values = [metrics.score(metrics.build(first, "en"), dict(each.named())[first]) for each in draws]
    parts: dict[str, object] = {}
    if task.is_closed:
        parts["rules"] = {rule: _spread(first, [each.by_rule[rule] for each in draws], config) for rule in RULES}
    return Shots(
        metric=first,
        mean=found[first].mean,
        sd=found[first].sd,
        low=found[first].low,
        high=found[first].high,
        draws=[
            Draw(seed=turn, value=round(value, 6), num_fitted=round(each.num_fitted / each.num_rows, 3))
            for turn, (value, each) in enumerate(zip(values, draws, strict=True))
        ],
        num_unfinished=sum(each.num_unfinished for each in draws),
        num_empty=sum(each.num_empty for each in draws),
        num_unscored=sum(each.num_unscored for each in draws),
        metrics=found,
        **parts,
    )


def _spread(name: str, draws: Sequence[metrics.Numbers], config: RunConfig) -> Spread:
    """The mean over draws, their standard deviation, and a 95 % interval over rows.

    For the interval a row is resampled with all that was measured of it, by every draw.
    """
    metric = metrics.build(name, "en")

    def finish(sums: Mapping[str, Any]) -> Any:
        each = [
            metric.finish({key.partition(":")[2]: value for key, value in sums.items() if key.startswith(f"{turn}:")})
            for turn in range(len(draws))
        ]
        return sum(each) / len(each)

    together = metrics.Numbers.side_by_side(draws)
    low, high = interval(finish, together, config.eval.num_bootstrap, config.seed)
    values = [metrics.score(metric, numbers) for numbers in draws]
    sd = round(stdev(values), 6) if len(values) > 1 else None
    return Spread(mean=round(fmean(values), 6), sd=sd, low=round(low, 6), high=round(high, 6))
