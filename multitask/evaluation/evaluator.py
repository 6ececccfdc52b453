"""The one evaluator: rows of a task, a model, and a prompt format that says how a row becomes ids.

`Evaluator(model, task, StreamFormat(...), config).run(rows)` scores a tuned model, the same with a `PlainFormat` a
prompted one. The two differ in how a row becomes ids and in where a generated answer stops, and in nothing else:

    row -> format.encode -> EncodedPrompt -> choice_nll / generate -> Prediction -> metric.per_example -> Numbers
"""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from multitask import processes
from multitask.config.run import RunConfig
from multitask.data.rows import Counts, Row
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.evaluation.baselines import BaselineNumbers, Fitted, measure_with
from multitask.evaluation.prompting import choice_rules
from multitask.evaluation.prompting.choice_rules import BATCH, RULES
from multitask.evaluation.prompting.demonstrations import Nearest
from multitask.evaluation.prompting.formats import EncodedPrompt as EncodedPrompt
from multitask.evaluation.prompting.formats import PromptFormat, Stopped
from multitask.events import Report, ignore
from multitask.files import writing
from multitask.inference.decoding import generate
from multitask.inference.scoring import Floats, choice_nll
from multitask.models.support import scoring_tokens
from multitask.task import Task
from multitask.tokenization.tokenizer import lost_characters

NO_WORDS = (
    "{task}: {num} of {of} rows: no reference has a word under ROUGE's text tokenizer of the row's language, so ROUGE "
    "leaves them out; correct the `language` of the source, or set eval.rouge_tokenizer"
)
_Kind = tuple[object, ...]  # a prompt format, demonstrations, a language and its choices
_Kept = list[tuple[Row, EncodedPrompt]]
_CHUNK = 256  # rows whose prompts are in memory at a time, in each process


@dataclass(frozen=True)
class Arm:
    """One way to prompt the rows: a number of demonstrations, one draw of them, by language.

    nearest: gives each row its own demonstrations. format: its own prompt format; None: the evaluator's. template: of
    an arm beside the chosen one, its template.
    """

    shots: int | None = None
    draw: int = 0
    demonstrations: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    nearest: Nearest | None = None
    format: PromptFormat | None = None
    template: str | None = None

    def ranking(self, row: Row, task: Task) -> Sequence[Row]:
        """Demonstrations for a row, best first; raises InputError when its language has none."""
        if not self.shots:
            return ()
        found = self.nearest.ranking(row) if self.nearest else self.demonstrations.get(row.language, ())
        if not found:
            raise InputError(
                f"{row.where}: language '{row.language}', and no training row of task '{task.name}' has it: there are "
                "no demonstrations"
            )
        return found

    def file_name(self, task: str) -> str:
        """The name of its predictions file."""
        if self.shots is None:
            return f"{task}.jsonl"
        name = task if self.template is None else f"{task}.template-{re.sub('[^a-zA-Z0-9-]+', '-', self.template)}"
        return f"{name}.shots-{self.shots}.draw-{self.draw}.jsonl"


@dataclass
class Prediction:
    """What a model answered to one row.

    completion, prediction: raw text, and after clean-up; None where the task has no text metric. references: accepted
    answers, of a closed task class names. choice_nll: nats of each choice; words: as continuations write them. by_rule:
    the class that each rule predicts.
    nll: nats, tokens, words and bytes of the target; empty where it is not measured.
    """

    prompt: EncodedPrompt
    references: list[str]
    completion: str | None = None
    prediction: str | None = None
    choice_nll: dict[str, float] | None = None
    words: tuple[str, ...] = ()
    by_rule: dict[str, str] = field(default_factory=dict)
    nll: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    is_finished: bool = True

    def without_ids(self) -> "Prediction":
        """The same, to be kept in memory."""
        return replace(self, prompt=replace(self.prompt, ids=(), text="", choices=[]))

    def choose(self, rule: str) -> None:
        """Takes the class that a rule predicts."""
        self.prediction = self.by_rule[rule]
        self.completion = self.words[self.prompt.row.classes.index(self.prediction)]

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
        self.num_unfinished = self.num_unscored = self.num_empty = self.num_without_words = 0

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
        self.num_without_words += any(not numbers for numbers in found.scores.values())
        self.num_unfinished += not found.is_finished
        self.num_empty += found.prediction == ""

    def named(self) -> Iterator[tuple[str, metrics.Numbers]]:
        """Metrics that have numbers, with their numbers; those from likelihoods share theirs."""
        yield from ((name, self.numbers[name]) for name in self.text_metrics if self.numbers[name].columns)
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
        self.batch_tokens = config.eval.batch_tokens or scoring_tokens(model)
        self.counts = RowCounts()
        self._biases: dict[_Kind, dict[str, Floats]] = {}
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

        Of several processes each answers some of the chunks; the main one alone has scores, and writes.

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
        formats = [arm.format or self.format for arm in arms]
        waiting: list[list[Prediction]] = [[] for _ in arms]  # for the likelihoods of all rows
        folder = predictions if processes.is_main() else None
        paths = [folder / arm.file_name(self.task.name) for arm in arms] if folder is not None else []
        with ExitStack() as files:
            sinks: list[TextIO | None] = [files.enter_context(writing(path)) for path in paths]
            sinks = sinks or [None] * len(arms)
            rows = iter(rows)
            while chunks := list(itertools.islice(self._chunks(rows, formats), processes.size())):
                units = [(kept, arm, style) for _, kept in chunks for arm, style in zip(arms, formats, strict=True)]
                answers = iter(processes.mapped(lambda unit: self.predict(self._prompts(*unit), unit[2]), units))
                for before, kept in chunks if processes.is_main() else ():
                    for arm, style, total, later, sink in zip(arms, formats, scores, waiting, sinks, strict=True):
                        for found in next(answers):
                            if self.task.is_closed and style.is_calibrated:
                                later.append(found.without_ids())
                            else:
                                total.add(found, style.has_likelihood)
                            if sink is not None:
                                sink.write(found.line(arm.shots))
                        num_rows = before + len(kept)
                        report({"event": "prompted", "task": self.task.name, "arm": str(arm), "rows": num_rows})
                    if fitted is not None:
                        fitted.add(baselines, kept, before, scores[0].measure)
        for style, total, later in zip(formats, scores, waiting, strict=True):
            calibrate_batch(later, style)
            for found in later:
                total.add(found, style.has_likelihood)
        for path, later in zip(paths, waiting, strict=False):
            _rewrite(path, later)
        self.counts.num_skipped = counts.num_skipped
        self.format.require_rows(self.counts.num_rows, self.counts.num_dropped, self.config.eval.split)
        if num := max(total.num_without_words for total in scores):
            text = NO_WORDS.format(task=self.task.name, num=num, of=scores[0].num_rows)
            report({"event": "warning", "text": text})
        return scores, baselines

    def _chunks(self, rows: Iterator[Row], formats: Sequence[PromptFormat]) -> Iterator[tuple[int, _Kept]]:
        """Rows that are kept, chunk by chunk, and how many were kept before each."""
        while chunk := list(itertools.islice(rows, _CHUNK)):
            before = self.counts.num_rows
            yield before, self._kept(chunk, formats)

    def _kept(self, chunk: Sequence[Row], formats: Sequence[PromptFormat]) -> _Kept:
        """Rows that fit without demonstrations, whatever the format; with the first one's prompts. Counts all."""
        by_format = [style.encode(chunk, [()] * len(chunk), 0) for style in dict.fromkeys(formats)]
        kept = [
            (row, prompts[0])
            for row, *prompts in zip(chunk, *by_format, strict=True)
            if all(prompt is not None for prompt in prompts)
        ]
        self.counts.num_rows += len(kept)
        self.counts.num_dropped += len(chunk) - len(kept)
        self.counts.num_truncated += sum(prompt.is_truncated for _, prompt in kept)
        texts = [text for row in chunk for text in row.texts]
        self.counts.chars_lost.update(lost_characters(texts, self.tokenizer, self.format.plain))
        self.first += [prompt for _, prompt in kept[: max(0, self.config.eval.max_free_rows - len(self.first))]]
        return kept

    def _prompts(self, kept: _Kept, arm: Arm, style: PromptFormat) -> list[EncodedPrompt]:
        """The rows with an arm's demonstrations; what fits without any fits with as many as there is space for."""
        if arm.shots is None:
            return [prompt for _, prompt in kept]
        rows = [row for row, _ in kept]
        encoded = style.encode(rows, [arm.ranking(row, self.task) for row in rows], arm.shots)
        return [prompt for prompt in encoded if prompt is not None]

    def predict(self, prompts: Sequence[EncodedPrompt], prompt_format: PromptFormat | None = None) -> list[Prediction]:
        """Answers to prompts, in order, with the nats of targets. Prompts with the same demonstrations share them."""
        style = prompt_format or self.format
        found = [Prediction(prompt, list(prompt.row.accepted)) for prompt in prompts]
        groups: dict[tuple[str, ...], list[Prediction]] = {}
        for one in found:
            shown = tuple(row.id for row in one.prompt.demonstrations) if style.shares_demonstrations else ()
            groups.setdefault(shown, []).append(one)
        for shown, group in groups.items():
            if self.task.is_closed:
                self._choose(group, style, shown)
            else:
                self._score_targets(group)
                if any(name not in metrics.FROM_NLL for name in self.task.metrics):
                    self._generate(group, style)
        return found

    def _choose(self, group: Sequence[Prediction], style: PromptFormat, shown: tuple[str, ...]) -> None:
        """Predicts the choice of least nats, by every rule but that of all rows together."""
        kinds = [(style, shown, one.prompt.row.language, *style.words(one.prompt.row)) for one in group]
        further: list[tuple[_Kind, str, list[int], list[list[int]]]] = []
        for kind, one in zip(kinds, group, strict=True):
            if kind not in self._biases:
                self._biases[kind] = {}
                for rule, prompts in style.calibration(one.prompt).items():
                    further += [(kind, rule, ids, one.prompt.choices) for ids in prompts]
        nats = self._nll(group, [one.prompt.choices for one in group], [(i, c) for *_, i, c in further])
        for (kind, rule, *_), each in zip(further, nats[len(group) :], strict=True):
            logs, before = choice_rules.log_probabilities(each), self._biases[kind].get(rule)
            self._biases[kind][rule] = logs if before is None else np.logaddexp(before, logs)
        for one, kind, each in zip(group, kinds, nats, strict=False):
            row, choices = one.prompt.row, one.prompt.choices
            one.words = tuple(style.words(row))
            found = choice_rules.predicted(each, choices, one.words, self._biases[kind])
            one.by_rule = {rule: row.classes[number] for rule, number in found.items()}
            one.choose(style.rule(row.language))
            one.choice_nll = dict(zip(row.choices, each, strict=True))
            if one.prompt.target is not None:
                one.nll = self._target_numbers(one, each[choices.index(one.prompt.target)])

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

    def _generate(self, group: Sequence[Prediction], style: PromptFormat) -> None:
        """Greedy answers; each ends at an end token or at a stop of its language."""
        parse: Callable[[str], str] = self.task.parse or str.strip
        stops = {one.prompt.row.language: style.stop(one.prompt.row.language) for one in group}
        for stop in dict.fromkeys(stops.values()):
            mine = [one for one in group if stops[one.prompt.row.language] == stop]
            written = generate(
                self.model,
                [one.prompt.ids for one in mine],
                self.task.max_new_tokens,
                style.end_ids,
                self.batch_tokens,
                Stopped(style, stop),
            )
            for one, (ids, is_finished) in zip(mine, written, strict=True):
                text = style.completion(ids)
                one.completion = stop.answer(text) if stop is not None else text
                one.prediction, one.is_finished = parse(one.completion), is_finished


def calibrate_batch(found: Sequence[Prediction], style: PromptFormat) -> None:
    """Predicts by `BATCH` too, from the likelihoods of all these rows of a language together."""
    groups = [(one.prompt.row.language, one.words) for one in found]
    nats = [list((one.choice_nll or {}).values()) for one in found]
    for one, number in zip(found, choice_rules.batch_calibrated(nats, groups), strict=True):
        one.by_rule[BATCH] = one.prompt.row.classes[number]
        one.choose(style.rule(one.prompt.row.language))


def _rewrite(path: Path, found: Sequence[Prediction]) -> None:
    """Puts into a predictions file what was known once all its rows had been read."""
    if not found:
        return
    with path.open(encoding="utf-8") as lines, writing(path) as sink:
        for line, one in zip(lines, found, strict=True):
            known = {"completion": one.completion, "prediction": one.prediction, "scores": one.scores}
            sink.write(json.dumps(json.loads(line) | known, ensure_ascii=False, allow_nan=False) + "\n")
