"""What prompting alone is worth: zero, one or a few solved examples, no gradient, several draws of them.

`results["tasks"]["nli"]["per_shot"]["4"]` -> `{"metric": "accuracy", "mean": 0.41, "sd": 0.05, "low": 0.37, "high":
0.45, "draws": [{"seed": 0, "value": 0.36, "num_fitted": 4.0}, ...]}`. `sd` is over draws of demonstrations, `low` and
`high` over rows: two different uncertainties.
"""

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row, read
from multitask.data.sources import has_split, resolve
from multitask.errors import InputError
from multitask.evaluation import bootstrap, metrics
from multitask.evaluation.baselines import as_record, trivial_scores
from multitask.evaluation.evaluator import check_metrics
from multitask.evaluation.prompts import Prompted, Prompter, draw
from multitask.evaluation.results_file import cost_of, envelope, write_results
from multitask.events import Report, ignore
from multitask.inference.decoding import generate
from multitask.inference.scoring import Floats, choice_nll
from multitask.models.lora import plain_model
from multitask.task import Task
from multitask.tokenization.tokenizer import lost_characters

RULES = ("raw", "per_token", "per_byte", "calibrated")
_CHUNK = 256  # rows whose prompts are in memory at a time


def fewshot(
    model: Any,
    tokenizer: Any,
    name: str,
    tasks: Mapping[str, Task],
    config: RunConfig,
    out: Path | None = None,
    report: Report = ignore,
) -> dict[str, Any]:
    """Prompts a loaded model; with `out`, writes `out` and `out.predictions/`. Returns what the file holds.

    Raises InputError when a task has no plain prompt, no training rows to draw from, or no row that fits the window.
    """
    started = time.perf_counter()
    check_metrics(tasks, config.eval)
    predictions = out.with_name(out.name + ".predictions") if out is not None else None
    results = envelope(config, "fewshot", "prompted", {"name": name})
    results |= {"data": {}, "tasks": {}}
    num_tokens = 0
    for task_name, task in tasks.items():
        began = time.perf_counter()
        scorer = _Prompting(model, tokenizer, task, config, report)
        results["data"][task_name], results["tasks"][task_name] = scorer.score(predictions)
        num_tokens += scorer.num_tokens
        elapsed_s = time.perf_counter() - began
        report({"event": "task", "task": task_name, "result": results["tasks"][task_name], "elapsed_s": elapsed_s})
    results["cost"] = cost_of(model, num_tokens, time.perf_counter() - started)
    if out is not None:
        write_results(out, results)
    return results


class _Prompting:
    """Scores one task's rows with every number of shots and every draw."""

    def __init__(self, model: Any, tokenizer: Any, task: Task, config: RunConfig, report: Report) -> None:
        self.model, self.tokenizer, self.task, self.config, self.report = model, tokenizer, task, config, report
        shape = plain_model(model).config
        window = getattr(shape, "max_position_embeddings", None) or config.train.batch_tokens
        if task.max_new_tokens >= window:
            raise InputError(
                f"task '{task.name}' may answer with {task.max_new_tokens} tokens, the model's window has {window}: no "
                "room is left for a question"
            )
        self.prompter = Prompter(task, tokenizer, window, config.fewshot.separator)
        self.text_metrics = [m for m in task.metrics if m not in metrics.FROM_NLL]
        if task.is_closed and not self.text_metrics:
            raise InputError(
                f"task '{task.name}' has a closed answer set and no metric of what is chosen, only "
                f"{', '.join(task.metrics)}; accuracy or macro_f1 was expected"
            )
        ends = plain_model(model).generation_config.eos_token_id
        self.end_ids = {
            i for i in (tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])) if i is not None
        }
        self.num_tokens = 0

    def arms(self) -> list[tuple[int, int]]:
        """(shots, draw): one draw where nothing is drawn."""
        return [(k, turn) for k in self.config.fewshot.shots for turn in range(self.config.fewshot.draws if k else 1)]

    def score(self, predictions: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The task's parts of a results file: `data` and `tasks`."""
        split, most = self.config.eval.split, max(self.config.fewshot.shots)
        has_train = any(has_split(source, "train") for source in resolve(self.task, self.config.data))
        if most and not has_train:
            raise InputError(
                f"task '{self.task.name}' has no training rows to draw demonstrations from; give `files: "
                "{train: ...}`, or ask for zero-shot alone with --shots 0"
            )
        drawn = self._draw(most) if most else []
        if not any(has_split(source, split) for source in resolve(self.task, self.config.data)):
            raise InputError(
                f"task '{self.task.name}' has no rows of the split '{split}'; give `files: {{{split}: ...}}`"
            )
        arms = self.arms()
        own = {arm: _Scores(self.task, self.config) for arm in arms}
        counts = {"num_rows": 0, "num_truncated": 0, "num_dropped": 0, "num_chars_lost": 0}
        rows = itertools.islice(read(self.task, split, self.config.data, Counts()), self.config.eval.max_rows)
        with ExitStack() as files:
            sinks = {}
            if predictions is not None:
                predictions.mkdir(parents=True, exist_ok=True)
                for k, turn in arms:
                    path = predictions / f"{self.task.name}.shots-{k}.draw-{turn}.jsonl"
                    sinks[k, turn] = files.enter_context(path.open("w", encoding="utf-8"))
            while chunk := list(itertools.islice(rows, _CHUNK)):
                kept = [(row, p) for row in chunk if (p := self.prompter.encode(row, [], 0)) is not None]
                counts["num_rows"] += len(kept)
                counts["num_truncated"] += sum(p.is_truncated for _, p in kept)
                counts["num_dropped"] += len(chunk) - len(kept)
                texts = [text for row in chunk for text in row.fields.values()]
                counts["num_chars_lost"] += lost_characters(texts, self.tokenizer, self.prompter.plain).total()
                for arm in arms:
                    for line in self._chunk([row for row, _ in kept], drawn, arm, own[arm]):
                        if arm in sinks:
                            sinks[arm].write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                    self.report({"event": "prompted", "task": self.task.name, "arm": arm, "rows": counts["num_rows"]})
        if not counts["num_rows"]:
            raise InputError(
                f"task '{self.task.name}', {split}: no question fits the model's window of {self.prompter.window} "
                f"tokens, {counts['num_dropped']} were refused; use a model with a longer window"
            )
        data, floors = trivial_scores(self.task, self.config, lambda row: self.prompter.encode(row, [], 0) is not None)
        data |= counts
        result = {
            "num_examples": counts["num_rows"],
            "separator": self.prompter.separator,
            "metrics": {},
            "baselines": floors,
            "per_shot": {
                str(k): self._per_shot([own[arm] for arm in arms if arm[0] == k]) for k in self.config.fewshot.shots
            },
        }
        return data, result

    def _draw(self, most: int) -> list[dict[str, list[Row]]]:
        """Demonstrations by draw and language."""
        data, settings = self.config.data, self.config.fewshot
        rows = itertools.islice(read(self.task, "train", data, Counts()), data.limit)
        by = self.task.label if settings.balanced else None
        return draw(rows, most, settings.draws, self.config.seed, by)

    def _chunk(
        self, rows: Sequence[Row], drawn: Sequence[Mapping[str, list[Row]]], arm: tuple[int, int], scores: "_Scores"
    ) -> Iterator[dict[str, Any]]:
        """Scores rows after one set of demonstrations; yields their lines of the predictions file."""
        shots, turn = arm
        prompted = []
        for row in rows:
            ranking = drawn[turn].get(row.language, []) if shots else []
            if shots and not ranking:
                raise InputError(
                    f"{row.where}: language '{row.language}', and no training row of task '{self.task.name}' has it: "
                    "there is nothing to demonstrate with"
                )
            found = self.prompter.encode(row, ranking, shots)
            assert found is not None  # it fits without demonstrations
            prompted.append(found)
        self.num_tokens += sum(len(p.ids) for p in prompted)
        lines = self._closed(prompted) if self.task.is_closed else self._open(prompted)
        for p, line in zip(prompted, lines, strict=True):
            references = line["references"]
            line["scores"] = self._measure(p.row, line["prediction"], references, scores.numbers)
            for rule, prediction in line.pop("by_rule", {}).items():
                scores.by_rule[rule].append(self._numbers(self.text_metrics[0], p.row, prediction, references))
            scores.numbers["nll"].append(line["nll"])  # of an answer that does not fit, nothing: rows stay rows
            scores.num_rows += 1
            scores.num_fitted += len(p.shown)
            scores.num_unscored += not self.task.is_closed and not line["nll"]
            scores.num_unfinished += not line.pop("finished", True)
            yield {
                "id": p.row.id,
                "prompt": p.text,
                "num_fitted": len(p.shown),
                "is_truncated": p.is_truncated,
                **line,
                "language": p.row.language,
                "where": p.row.where,
            }

    def _closed(self, prompted: Sequence[Prompted]) -> list[dict[str, Any]]:
        """Chosen answers, by every rule. Rows with the same demonstrations are scored together."""
        lines: list[dict[str, Any]] = [{} for _ in prompted]
        for numbers in _same([tuple(row.id for row in p.shown) for p in prompted]):
            group = [prompted[n] for n in numbers]
            bias: dict[tuple[str, ...], Floats] = {}
            asked: list[tuple[list[int], list[list[int]]]] = [(p.ids, p.choices) for p in group]
            kinds = [(p.row.language, *self.prompter.continuations(p.row)) for p in group]
            free = [
                (kind, ids, p.choices)
                for kind, p in zip(kinds, group, strict=True)
                for ids in self._free(kind, p, bias)
            ]
            nats = self._nll(group, asked + [(ids, choices) for _, ids, choices in free])
            for (kind, _, _), found in zip(free, nats[len(asked) :], strict=True):
                bias[kind] = np.logaddexp(bias[kind], _log_shares(found))
            for number, p, kind, found in zip(numbers, group, kinds, nats, strict=False):
                lines[number] = self._chosen(p, kind[1:], found, bias[kind])
        return lines

    def _nll(self, group: Sequence[Prompted], asked: Sequence[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
        """Nats of what is asked; its beginning are the rows of `group`. Raises InputError where there are none."""
        nats = choice_nll(self.model, asked, self.config.eval.batch_tokens)
        for p, found in zip(group, nats, strict=False):
            if not all(map(math.isfinite, found)):
                raise InputError(
                    f"{p.row.where}: the model finds no finite likelihood of an answer; its weights are broken"
                )
        return nats

    def _free(self, kind: tuple[str, ...], p: Prompted, bias: dict[tuple[str, ...], Floats]) -> list[list[int]]:
        """Content-free prompts, once for each group of rows with the same language and answers."""
        if kind in bias:
            return []
        bias[kind] = np.full(len(p.choices), -np.inf)
        return self.prompter.content_free(p)

    def _chosen(self, p: Prompted, words: Sequence[str], nats: list[float], bias: Floats) -> dict[str, Any]:
        """The line of one row. bias: logs of the choices' shares after content-free prompts, up to a constant."""
        scored = {
            "raw": nats,
            "per_token": [n / len(ids) for n, ids in zip(nats, p.choices, strict=True)],
            "per_byte": [n / len(word.encode()) for n, word in zip(nats, words, strict=True)],
            # Where no content-free prompt fits the window, there is no bias to correct.
            "calibrated": (nats + bias).tolist() if np.isfinite(bias).all() else nats,
        }
        by_rule = {rule: p.row.classes[int(np.argmin(values))] for rule, values in scored.items()}
        chosen = int(np.argmin(scored[self.config.fewshot.rule]))
        return {
            "completion": words[chosen],
            "prediction": by_rule[self.config.fewshot.rule],
            "references": as_record(p.row)["references"],
            "choice_nll": dict(zip(p.row.choices, nats, strict=True)),
            "by_rule": by_rule,
            "nll": {},
        }

    def _open(self, prompted: Sequence[Prompted]) -> list[dict[str, Any]]:
        """Written answers up to the first stop, and nats of the gold ones."""
        lines: list[dict[str, Any]] = [
            {"completion": None, "prediction": None, "references": list(p.row.references), "nll": {}} for p in prompted
        ]
        for numbers in _same([tuple(row.id for row in p.shown) for p in prompted]):
            lengths = {n: len(prompted[n].choices[0]) for n in numbers}
            fitting = [n for n in numbers if 0 < lengths[n] <= self.prompter.window - len(prompted[n].ids)]
            asked = [(prompted[n].ids, prompted[n].choices) for n in fitting]
            for n, (nats,) in zip(fitting, self._nll([prompted[n] for n in fitting], asked), strict=True):
                target = prompted[n].row.fields[self.task.target]
                tokens = float(len(prompted[n].choices[0]))
                lines[n]["nll"] = {
                    "nll": nats,
                    "tokens": tokens,
                    "words": len(target.split()),
                    "bytes": len(target.encode()),
                }
            if self.text_metrics:
                self._write([prompted[n] for n in numbers], [lines[n] for n in numbers])
        return lines

    def _write(self, prompted: Sequence[Prompted], lines: Sequence[dict[str, Any]]) -> None:
        """Greedy answers into `lines`; each ends at a stop of its language."""
        for language in sorted({p.row.language for p in prompted}):
            mine = [n for n, p in enumerate(prompted) if p.row.language == language]
            stop = self.prompter.stop(language)
            written = generate(
                self.model,
                [prompted[n].ids for n in mine],
                self.task.max_new_tokens,
                self.end_ids,
                self.config.eval.batch_tokens,
                lambda new, stop=stop: bool(stop.search(f" {self.tokenizer.decode(new)}")),  # type: ignore[misc]
            )
            parse = self.task.parse or str.strip
            for n, (new, finished) in zip(mine, written, strict=True):
                text = self.tokenizer.decode(new)
                found = stop.search(f" {text} ")  # of a mark with spaces the last one may not have been written
                text = text[: max(0, found.start() - 1)] if found else text
                lines[n] |= {"completion": text, "prediction": parse(text), "finished": finished}

    def _measure(
        self, row: Row, prediction: str | None, references: Sequence[str], into: Mapping[str, metrics.Numbers]
    ) -> dict[str, dict[str, float]]:
        """Adds the numbers of one prediction; returns them by metric."""
        found: dict[str, dict[str, float]] = {}
        for name in self.text_metrics if prediction is not None else ():
            found[name] = self._numbers(name, row, prediction or "", references)
            into[name].append(found[name])
        return found

    def _numbers(self, name: str, row: Row, prediction: str, references: Sequence[str]) -> dict[str, float]:
        tokenizer = self.config.eval.rouge_tokenizer.get(row.language, "eojeol")
        return metrics.build(name, row.language, tokenizer).per_example(prediction, references)

    def _per_shot(self, draws: Sequence["_Scores"]) -> dict[str, Any]:
        """One number of shots: the first metric at the top, all metrics and rules below, and each draw."""
        found = {
            name: _summary(name, [d.numbers[key] for d in draws], self.config) for name, key in self._named(draws[0])
        }
        if not found:
            raise InputError(
                f"task '{self.task.name}': behind no question is there room for its {self.task.target} in the model's "
                f"window of {self.prompter.window} tokens; use a model with a longer window"
            )
        first = self.task.metrics[0] if self.task.metrics[0] in found else next(iter(found))
        values = found[first].pop("values")
        for summary in found.values():
            summary.pop("values", None)
        result = {
            "metric": first,
            **found[first],
            "draws": [
                {"seed": turn, "value": round(value, 6), "num_fitted": round(d.num_fitted / d.num_rows, 3)}
                for turn, (value, d) in enumerate(zip(values, draws, strict=True))
            ],
            "num_unfinished": sum(d.num_unfinished for d in draws),
            "num_unscored": sum(d.num_unscored for d in draws),
            "metrics": found,
        }
        if self.task.is_closed:
            rules = {rule: _summary(first, [d.by_rule[rule] for d in draws], self.config) for rule in RULES}
            result["rules"] = {rule: {k: v for k, v in s.items() if k != "values"} for rule, s in rules.items()}
        return result

    def _named(self, scores: "_Scores") -> Iterator[tuple[str, str]]:
        """Metrics that have numbers, with the name of their numbers."""
        yield from ((name, name) for name in self.text_metrics if scores.numbers[name])
        if scores.numbers["nll"].columns:
            yield from ((name, "nll") for name in metrics.FROM_NLL)


class _Scores:
    """What one number of shots and one draw gave, row by row."""

    def __init__(self, task: Task, config: RunConfig) -> None:
        names = [name for name in task.metrics if name not in metrics.FROM_NLL]
        self.numbers = {name: metrics.Numbers() for name in (*names, "nll")}
        self.by_rule = {rule: metrics.Numbers() for rule in RULES}  # of the first metric
        self.num_rows = self.num_fitted = self.num_unfinished = self.num_unscored = 0


def _same(keys: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Numbers of equal keys together, in the order of their first."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _log_shares(nats: Sequence[float]) -> Floats:
    """Logs of likelihoods over their sum; a share may be too small to be written as such."""
    logs = -np.asarray(nats)
    shares: Floats = logs - np.logaddexp.reduce(logs)
    return shares


def _interval(name: str, draws: Sequence[metrics.Numbers], config: RunConfig) -> dict[str, float]:
    """The mean over draws with its 95 % interval over rows: a row is drawn with all that was measured of it."""
    metric = metrics.build(name, "en")

    def finish(sums: Mapping[str, Any]) -> Any:
        each = [
            metric.finish({key.partition(":")[2]: value for key, value in sums.items() if key.startswith(f"{turn}:")})
            for turn in range(len(draws))
        ]
        return sum(each) / len(each)

    together = metrics.Numbers.side_by_side(draws)
    low, high = bootstrap.interval(finish, together, config.eval.num_bootstrap, config.seed)
    value = fmean(metrics.score(metric, numbers) for numbers in draws)
    return {"value": round(value, 6), "low": round(low, 6), "high": round(high, 6)}


def _summary(name: str, draws: Sequence[metrics.Numbers], config: RunConfig) -> dict[str, Any]:
    """Mean and spread over draws, interval over rows, and each draw's `values`."""
    values = [metrics.score(metrics.build(name, "en"), numbers) for numbers in draws]
    interval = _interval(name, draws, config)
    return {
        "mean": interval["value"],
        "sd": round(stdev(values), 6) if len(values) > 1 else None,
        "low": interval["low"],
        "high": interval["high"],
        "values": values,
    }
