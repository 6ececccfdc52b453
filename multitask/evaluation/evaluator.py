"""The one evaluator: rows of a task, a model, and a prompt format that says how a row becomes ids.

`Evaluator(model, task, StreamFormat(...), config).run(rows)` scores a tuned model, the same with a `PlainFormat` a
prompted one. The two differ in how a row becomes ids and in where a generated answer stops, and in nothing else:

    row -> format.encode -> EncodedPrompt -> choice_nll / generate -> Prediction -> metric.per_example -> Numbers
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from tokenizers import Tokenizer

from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.baselines import BaselineNumbers, Fitted, measure_with
from multitask.evaluation.prompting.stops import StopRule
from multitask.events import Report, ignore
from multitask.inference.decoding import generate
from multitask.inference.scoring import Floats, choice_nll
from multitask.task import Task
from multitask.tokenization.tokenizer import lost_characters

RULES = ("raw", "per_token", "per_byte", "calibrated")
"""From likelihoods of choices to a prediction: summed nats, per token, per byte, or calibrated (Zhao et al., 2021)."""
_CHUNK = 256  # rows whose prompts are in memory at a time


@dataclass(frozen=True)
class EncodedPrompt:
    """One row as ids.

    row: it may be truncated. ids: all that the model conditions on. text: what they say. choices: of a closed task, the
    ids of each choice. target: ids whose likelihood is measured, one of the choices if there are any; None: not
    measured. num_tokens: ids of prompt and target. demonstrations: solved rows in the prompt.
    """

    row: Row
    ids: Sequence[int]
    text: str
    choices: list[list[int]]
    target: list[int] | None
    num_tokens: int
    is_truncated: bool = False
    demonstrations: tuple[Row, ...] = ()


class PromptFormat(Protocol):
    """How a row becomes ids, and where a generated answer stops."""

    task: Task
    plain: Tokenizer
    end_ids: set[int]
    rule: str
    """Which of `RULES` predicts."""
    has_likelihood: bool
    """Whether targets have a likelihood worth reporting: words of a prompt template have none."""

    def encode(
        self, rows: Sequence[Row], rankings: Sequence[Sequence[Row]], num_shots: int
    ) -> list[EncodedPrompt | None]:
        """Rows to prompts, each with demonstrations from its ranking; None for a row to drop."""

    def stop(self, language: str) -> StopRule | None:
        """Where an answer ends, beside `end_ids`."""

    def completion(self, ids: Sequence[int]) -> str:
        """The text of generated ids."""

    def words(self, row: Row) -> Sequence[str]:
        """The choices as the prompt's continuations write them."""

    def content_free(self, prompt: EncodedPrompt) -> list[list[int]]:
        """The same prompt around a row that says nothing, for calibration; [] where there is none."""

    def require_rows(self, num_kept: int, num_dropped: int, split: str) -> None:
        """Raises InputError when no row was kept."""


@dataclass(frozen=True)
class Arm:
    """One way to prompt the rows: a number of demonstrations, one draw of them, by language."""

    shots: int | None = None
    draw: int = 0
    demonstrations: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    def ranking(self, row: Row, task: Task) -> Sequence[Row]:
        """Demonstrations for a row, best first; raises InputError when its language has none."""
        found = self.demonstrations.get(row.language, ()) if self.shots else ()
        if self.shots and not found:
            raise InputError(
                f"{row.where}: language '{row.language}', and no training row of task '{task.name}' has it: there are "
                "no demonstrations"
            )
        return found

    def file_name(self, task: str) -> str:
        """The name of its predictions file."""
        return f"{task}.jsonl" if self.shots is None else f"{task}.shots-{self.shots}.draw-{self.draw}.jsonl"


@dataclass
class Prediction:
    """What a model answered to one row.

    completion, prediction: raw text, and after clean-up; None where the task has no text metric. references: accepted
    answers, of a closed task class names. choice_nll: nats of each choice. by_rule: the class that each rule predicts.
    nll: nats, tokens, words and bytes of the target; empty where it is not measured.
    """

    prompt: EncodedPrompt
    references: list[str]
    completion: str | None = None
    prediction: str | None = None
    choice_nll: dict[str, float] | None = None
    by_rule: dict[str, str] = field(default_factory=dict)
    nll: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    is_finished: bool = True

    def line(self, shots: int | None) -> str:
        """One line of a predictions file."""
        row, prompt = self.prompt.row, self.prompt
        found: dict[str, object] = {"id": row.id, "prompt": prompt.text}
        if shots is not None:
            found["num_fitted"] = len(prompt.demonstrations)
        found |= {"is_cut": prompt.is_truncated, "completion": self.completion, "prediction": self.prediction}
        found["references"] = self.references
        if self.choice_nll is not None:
            found["choice_nll"] = self.choice_nll
        found |= {"nll": self.nll, "scores": self.scores, "language": row.language, "where": row.where}
        return json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n"


class ArmScores:
    """What one arm answered, added up row by row."""

    def __init__(self, task: Task, config: RunConfig) -> None:
        self.task, self.config = task, config
        self.text_metrics = [name for name in task.metrics if name not in metrics.FROM_NLL]
        self.measure = measure_with(self.text_metrics, config)
        self.numbers = {name: metrics.Numbers() for name in (*self.text_metrics, "nll")}
        self.by_rule = {rule: metrics.Numbers() for rule in RULES}  # of the first metric
        self.languages: list[str] = []
        self.answers: Counter[tuple[str, tuple[str, ...]]] = Counter()  # of a closed task: prediction, references
        self.classes: dict[str, None] = {}
        self.texts: tuple[list[str], list[list[str]]] = ([], [])  # predictions and references, for metrics of the hub
        self.num_rows = self.num_fitted = self.num_tokens = 0
        self.num_unfinished = self.num_unscored = self.num_empty = 0

    def add(self, found: Prediction, has_likelihood: bool) -> None:
        """Adds one row; fills its `scores`."""
        row = found.prompt.row
        if found.prediction is not None:
            found.scores = self.measure(row, found.prediction, found.references)
            for name, numbers in found.scores.items():
                self.numbers[name].append(numbers)
            if self.config.eval.hub_metrics:
                self.texts[0].append(found.prediction)
                self.texts[1].append(found.references)
        for rule, prediction in found.by_rule.items():
            self.by_rule[rule].append(self.measure(row, prediction, found.references)[self.text_metrics[0]])
        self.numbers["nll"].append(found.nll)  # of a target that is not measured nothing: rows stay rows
        if self.task.is_closed and found.prediction is not None:
            self.answers[found.prediction, tuple(found.references)] += 1
            self.classes |= dict.fromkeys(row.classes)
        self.languages.append(row.language)
        self.num_rows += 1
        self.num_fitted += len(found.prompt.demonstrations)
        self.num_tokens += found.prompt.num_tokens
        self.num_unscored += has_likelihood and not found.nll
        self.num_unfinished += not found.is_finished
        self.num_empty += found.prediction == ""

    def named(self) -> Iterator[tuple[str, metrics.Numbers]]:
        """Metrics that have numbers, with their numbers; those from likelihoods share theirs."""
        yield from ((name, self.numbers[name]) for name in self.text_metrics if self.numbers[name])
        if self.numbers["nll"].columns:
            names = [name for name in metrics.FROM_NLL if name != "word_perplexity" or not self.task.is_closed]
            yield from ((name, self.numbers["nll"]) for name in names)


@dataclass
class RowCounts:
    """Of the rows that were read: kept, truncated, dropped, skipped, and characters that the tokenizer loses."""

    num_rows: int = 0
    num_truncated: int = 0
    num_dropped: int = 0
    num_skipped: int = 0
    chars_lost: Counter[str] = field(default_factory=Counter)


class Evaluator:
    """Scores rows of one task with one model."""

    def __init__(self, model: Any, tokenizer: Any, task: Task, prompt_format: PromptFormat, config: RunConfig) -> None:
        self.model, self.tokenizer, self.task, self.format, self.config = model, tokenizer, task, prompt_format, config
        self.batch_tokens = config.eval.batch_tokens
        self.counts = RowCounts()
        self.first: list[EncodedPrompt] = []
        """Prompts of the first `eval.max_free_rows` rows, without demonstrations."""

    def run(
        self,
        rows: Iterable[Row],
        counts: Counts,
        arms: Sequence[Arm] = (Arm(),),
        fitted: Fitted | None = None,
        predictions: Path | None = None,
        report: Report = ignore,
    ) -> tuple[list[ArmScores], BaselineNumbers]:
        """Scores of every arm, and the numbers of the trivial baselines on the same rows, by baseline and metric.

        Args:
            rows: as `data.rows.read` gives them; one chunk is in memory at a time.
            counts: filled while rows are read.
            arms: how each row is prompted.
            fitted: baselines fitted on training rows; None: there are none.
            predictions: folder of the predictions files; None: none are written.
            report: told after each chunk and arm.

        Raises:
            InputError: no row can be kept, or a likelihood that is not finite.
        """
        scores = [ArmScores(self.task, self.config) for _ in arms]
        baselines = fitted.numbers(scores[0].text_metrics) if fitted is not None else {}
        with ExitStack() as files:
            sinks: list[TextIO | None] = [None for _ in arms]
            if predictions is not None:
                predictions.mkdir(parents=True, exist_ok=True)
                paths = [predictions / arm.file_name(self.task.name) for arm in arms]
                sinks = [files.enter_context(path.open("w", encoding="utf-8")) for path in paths]
            rows = iter(rows)
            while chunk := list(itertools.islice(rows, _CHUNK)):
                kept = self._kept(chunk)
                for arm, total, sink in zip(arms, scores, sinks, strict=True):
                    for found in self.predict(self._prompts(kept, arm)):
                        total.add(found, self.format.has_likelihood)
                        if sink is not None:
                            sink.write(found.line(arm.shots))
                    report({"event": "prompted", "task": self.task.name, "arm": str(arm), "rows": self.counts.num_rows})
                if fitted is not None:
                    fitted.add(baselines, kept, self.counts.num_rows - len(kept), scores[0].measure)
        self.counts.num_skipped = counts.num_skipped
        self.format.require_rows(self.counts.num_rows, self.counts.num_dropped, self.config.eval.split)
        return scores, baselines

    def _kept(self, chunk: Sequence[Row]) -> list[tuple[Row, EncodedPrompt]]:
        """Rows that fit without demonstrations; counts all."""
        encoded = self.format.encode(chunk, [()] * len(chunk), 0)
        kept = [(row, prompt) for row, prompt in zip(chunk, encoded, strict=True) if prompt is not None]
        self.counts.num_rows += len(kept)
        self.counts.num_dropped += len(chunk) - len(kept)
        self.counts.num_truncated += sum(prompt.is_truncated for _, prompt in kept)
        texts = [text for row in chunk for text in row.fields.values()]
        self.counts.chars_lost.update(lost_characters(texts, self.tokenizer, self.format.plain))
        self.first += [prompt for _, prompt in kept[: max(0, self.config.eval.max_free_rows - len(self.first))]]
        return kept

    def _prompts(self, kept: Sequence[tuple[Row, EncodedPrompt]], arm: Arm) -> list[EncodedPrompt]:
        """The rows with an arm's demonstrations; what fits without any fits with as many as there is space for."""
        if not arm.shots:
            return [prompt for _, prompt in kept]
        rows = [row for row, _ in kept]
        encoded = self.format.encode(rows, [arm.ranking(row, self.task) for row in rows], arm.shots)
        return [prompt for prompt in encoded if prompt is not None]

    def predict(self, prompts: Sequence[EncodedPrompt]) -> list[Prediction]:
        """Answers to prompts, in order, with the nats of targets. Prompts with the same demonstrations share them."""
        found = [Prediction(prompt, list(prompt.row.accepted)) for prompt in prompts]
        groups: dict[tuple[str, ...], list[Prediction]] = {}
        for one in found:
            groups.setdefault(tuple(row.id for row in one.prompt.demonstrations), []).append(one)
        for group in groups.values():
            if self.task.is_closed:
                self._choose(group)
            else:
                self._score_targets(group)
                if any(name not in metrics.FROM_NLL for name in self.task.metrics):
                    self._generate(group)
        return found

    def _choose(self, group: Sequence[Prediction]) -> None:
        """Predicts the choice of least nats, by every rule."""
        kinds = [(one.prompt.row.language, *self.format.words(one.prompt.row)) for one in group]
        content_free: list[tuple[tuple[str, ...], list[int], list[list[int]]]] = []
        bias: dict[tuple[str, ...], Floats] = {}
        for kind, one in zip(kinds, group, strict=True):
            if kind not in bias:
                bias[kind] = np.full(len(one.prompt.choices), -np.inf)
                content_free += [(kind, ids, one.prompt.choices) for ids in self.format.content_free(one.prompt)]
        nats = self._nll(group, [one.prompt.choices for one in group], [(i, c) for _, i, c in content_free])
        for (kind, _, _), each in zip(content_free, nats[len(group) :], strict=True):
            bias[kind] = np.logaddexp(bias[kind], _log_probabilities(each))
        for one, kind, each in zip(group, kinds, nats, strict=False):
            self._chosen(one, kind[1:], each, bias[kind])

    def _chosen(self, one: Prediction, words: Sequence[str], nats: list[float], bias: Floats) -> None:
        """bias: log-probabilities of the choices after content-free prompts, up to a constant (Zhao et al., 2021)."""
        row, choices = one.prompt.row, one.prompt.choices
        scored = {
            "raw": nats,
            "per_token": [n / len(ids) for n, ids in zip(nats, choices, strict=True)],
            "per_byte": [n / len(word.encode()) for n, word in zip(nats, words, strict=True)],
            # Where no content-free prompt fits the window, there is no bias to correct.
            "calibrated": (nats + bias).tolist() if np.isfinite(bias).all() else nats,
        }
        one.by_rule = {rule: row.classes[int(np.argmin(values))] for rule, values in scored.items()}
        one.prediction = one.by_rule[self.format.rule]
        one.completion = words[int(np.argmin(scored[self.format.rule]))]
        one.choice_nll = dict(zip(row.choices, nats, strict=True))
        if one.prompt.target is not None:
            one.nll = self._target_numbers(one, nats[choices.index(one.prompt.target)])

    def _score_targets(self, group: Sequence[Prediction]) -> None:
        """Nats of the gold targets."""
        fitting = [one for one in group if one.prompt.target]
        for one, (nats,) in zip(
            fitting, self._nll(fitting, [[one.prompt.target or []] for one in fitting]), strict=True
        ):
            one.nll = self._target_numbers(one, nats)

    def _target_numbers(self, one: Prediction, nats: float) -> dict[str, float]:
        target = one.prompt.row.fields[self.task.target]
        tokens = float(len(one.prompt.target or ()))
        return {"nll": nats, "tokens": tokens, "words": len(target.split()), "bytes": len(target.encode())}

    def _nll(
        self,
        group: Sequence[Prediction],
        continuations: Sequence[list[list[int]]],
        further: Sequence[tuple[Sequence[int], list[list[int]]]] = (),
    ) -> list[list[float]]:
        """Nats of each row's continuations, then of further (prompt, continuations)."""
        rows = [(one.prompt.ids, each) for one, each in zip(group, continuations, strict=True)]
        nats = choice_nll(self.model, [*rows, *further], self.batch_tokens)
        for one, found in zip(group, nats, strict=False):
            if not all(map(math.isfinite, found)):
                raise InputError(
                    f"{one.prompt.row.where}: the model gives no finite likelihood of this row's {self.task.target}: "
                    "its weights are broken, or training diverged (a lower train.learning_rate helps)"
                )
        return nats

    def _generate(self, group: Sequence[Prediction]) -> None:
        """Greedy answers; each ends at an end token or at a stop of its language."""
        parse: Callable[[str], str] = self.task.parse or str.strip
        stops = {one.prompt.row.language: self.format.stop(one.prompt.row.language) for one in group}
        for stop in dict.fromkeys(stops.values()):
            mine = [one for one in group if stops[one.prompt.row.language] == stop]
            written = generate(
                self.model,
                [one.prompt.ids for one in mine],
                self.task.max_new_tokens,
                self.format.end_ids,
                self.batch_tokens,
                _Stopped(self.format, stop),
            )
            for one, (ids, is_finished) in zip(mine, written, strict=True):
                text = self.format.completion(ids)
                one.completion = stop.answer(text) if stop is not None else text
                one.prediction, one.is_finished = parse(one.completion), is_finished


@dataclass(frozen=True)
class _Stopped:
    """Whether generated ids hold a whole answer."""

    format: PromptFormat
    stop: StopRule | None

    def __call__(self, ids: list[int]) -> bool:
        return self.stop is not None and self.stop.is_reached(self.format.completion(ids))


def _log_probabilities(nats: Sequence[float]) -> Floats:
    """Of choices among themselves: log of each likelihood over their sum."""
    logs = -np.asarray(nats)
    found: Floats = logs - np.logaddexp.reduce(logs)
    return found
