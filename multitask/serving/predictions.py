"""Arms: a row of a task as a trained model's prompt or as plain text with demonstrations, and the answer to it.

`TunedArm(model, task).encode({"document": "A cat sat."}, 0, options)` -> `ArmRow`, whose `row` the engine decodes;
`arm.answer(found)` -> `Prediction(prediction="A cat.", ...)`. All of this runs in the engine's thread.
"""

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from multitask.config.data import LANGUAGE
from multitask.config.evaluation import FewshotConfig, SamplingConfig
from multitask.config.languages import language_code
from multitask.data.rows import Counts, Row, read
from multitask.errors import InputError
from multitask.evaluation.prompting.chat import Chat
from multitask.evaluation.prompting.demonstrations import draw
from multitask.evaluation.prompting.formats import EncodedPrompt as PlainPrompt
from multitask.evaluation.prompting.formats import Stopped
from multitask.evaluation.prompting.templates import Style
from multitask.evaluation.prompts import PlainFormat
from multitask.inference.explanation import token_piece
from multitask.inference.generator import EncodedPrompt, Generator
from multitask.inference.prompt_input import PromptInput, prompt_fields, prompt_values
from multitask.inference.scoring import probabilities
from multitask.models.lora import plain_model
from multitask.pattern import fields, segments
from multitask.serving.batch import DecodingRow, TokenScore
from multitask.serving.loading import Served, ServedModel, ServedTask
from multitask.serving.schema import ArmInfo, CandidateToken, FieldInfo, Kind, Prediction, Reason, TaskInfo, Token
from multitask.task import Task

SHOTS = 4
"""Demonstrations of a prompted arm that has any."""
MAX_TRAINING_ROWS = 2000
"""Training rows that demonstrations and examples are drawn from."""
NUM_TOP = 5
_SEED = 7
_MAX_LANGUAGE = 40  # characters
_HANGUL = re.compile("[가-힣]")
Given = Mapping[str, str | list[str]]


@dataclass(frozen=True)
class Options:
    """How the rows of a request are answered."""

    sampling: SamplingConfig
    max_new_tokens: int | None
    num_top: int | None


@dataclass(frozen=True)
class ArmRow:
    """A row of a request, and what its answer needs beside the generated ids."""

    row: DecodingRow
    prompt: EncodedPrompt | PlainPrompt


class Arm(ABC):
    """One way to answer a task."""

    kind: Kind
    shots = 0

    def __init__(self, name: str, model: ServedModel, task: Task) -> None:
        self.name, self.model, self.task = name, model, task

    @property
    def info(self) -> ArmInfo:
        """As the list of tasks has it."""
        return ArmInfo(name=self.name, model=self.model.id, kind=self.kind, shots=self.shots)

    @abstractmethod
    def encode(self, given: Given, number: int, options: Options) -> ArmRow:
        """The row of a request by its number; raises InputError for fields that cannot be used."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """The text of generated ids."""

    @abstractmethod
    def answer(self, found: ArmRow) -> Prediction:
        """The answer of a decoded row."""

    def _row(
        self, ids: Sequence[int], limit: int, end_ids: set[int], choices: list[list[int]], number: int, options: Options
    ) -> DecodingRow:
        return DecodingRow(
            list(ids),
            limit,
            frozenset(end_ids),
            options.sampling,
            number,
            num_top=options.num_top,
            choices=choices,
        )

    def _prediction(self, found: ArmRow, completion: str, classes: dict[str, float] | None) -> Prediction:
        row = found.row
        prediction = (self.task.parse or str.strip)(completion)
        if classes and not row.sampling.is_sampled:
            prediction = next(iter(classes))
        return Prediction(
            prediction=prediction,
            completion=completion,
            finish_reason=reason_of(row),
            classes=classes,
            prompt=found.prompt.text,
            is_truncated=found.prompt.is_truncated,
            tokens=None if row.num_top is None else [token_of(self.model.tokenizer, one) for one in row.tokens],
        )


class TunedArm(Arm):
    """A model that was trained on the task, with the prompt of training."""

    def __init__(self, model: ServedModel, task: Task) -> None:
        super().__init__(model.id, model, task)
        assert model.run is not None
        self.kind = model.kind
        self.columns, choices, window = model.run.columns(task), model.run.choices(task), model.window
        if model.run.window is not None:
            window = min(window, model.run.window)

        @lru_cache(maxsize=16)
        def generator(max_new_tokens: int | None) -> Generator:
            return Generator(
                model.model,
                model.tokenizer,
                model.id,
                None,
                task,
                max_new_tokens,
                window,
                columns=self.columns,
                choices=choices,
            )

        self._generator = generator
        generator(None)

    def encode(self, given: Given, number: int, options: Options) -> ArmRow:
        """As for scoring; a closed task's choices are scored too."""
        check_fields(self.task, given, number, self.columns)
        generator = self._generator(options.max_new_tokens)
        prompt = generator.encode(PromptInput(given, f"rows.{number}"))
        choices = generator.scored(prompt)[1] if generator.choices else []
        row = self._row(prompt.ids, prompt.max_new_tokens, generator.end_ids, choices, number, options)
        return ArmRow(row, prompt)

    def decode(self, ids: list[int]) -> str:
        """Without special tokens."""
        return self._generator(None).decode(ids)

    def answer(self, found: ArmRow) -> Prediction:
        """The most likely choice, or the parsed text."""
        assert isinstance(found.prompt, EncodedPrompt)
        generator, row = self._generator(None), found.row
        classes = generator.classes_of(found.prompt, row.nats).among if row.choices else None
        return self._prediction(found, self.decode(row.new), classes)


class PromptedArm(Arm):
    """Any model, prompted with demonstrations from the training rows: as plain text, or as turns of a chat."""

    kind: Kind = "prompted"

    def __init__(
        self,
        model: ServedModel,
        served: ServedTask,
        shots: int,
        drawn: Mapping[str, Sequence[Row]],
        chat: Chat | None = None,
    ) -> None:
        super().__init__(f"{model.id} {shots}-shot{' chat' if chat else ''}", model, served.task)
        self.shots, self.drawn = shots, drawn
        self.columns = served.trained.columns(served.task) if served.trained is not None else ()
        self.choices = choices_of(served, drawn)
        ends = plain_model(model.model).generation_config.eos_token_id
        ends = [model.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]

        @lru_cache(maxsize=16)
        def plain(max_new_tokens: int) -> PlainFormat:
            task = replace(served.task, max_new_tokens=max_new_tokens)
            ids = {i for i in ends if i is not None}
            style = PlainFormat(task, model.tokenizer, model.window, ids, FewshotConfig(), chat)
            languages = {LANGUAGE, *self.choices, *drawn, *task.prompts} if chat is not None else ()
            return style.with_styles({one: Style(task.templates(one)[0], is_chat=True) for one in languages})

        self._format = plain
        plain(self.task.max_new_tokens)

    def encode(self, given: Given, number: int, options: Options) -> ArmRow:
        """After as many whole demonstrations as fit; the task's field that may be truncated is."""
        check_fields(self.task, given, number, self.columns)
        where = f"rows.{number}"
        values, earlier = prompt_values(self.task, PromptInput(given, where), self.columns)
        known = list(dict.fromkeys([*self.choices, *self.drawn, *self.task.prompts]))
        language = language_of(given, known)
        words = self.choices.get(language) or next(iter(self.choices.values()), ())
        row = Row("", {**values, self.task.target: ""}, (), language, words, words, None, where, earlier=earlier)
        limit = options.max_new_tokens or self.task.max_new_tokens
        style = self._format(limit)
        (prompt,) = style.encode([row], [self.drawn.get(language, ())], self.shots)
        if prompt is None or not prompt.ids:
            raise InputError(
                f"{where}: the prompt does not fit the model's window of {self.model.window} tokens, of which {limit} "
                "are kept for the answer; shorten it, or give a smaller max_new_tokens"
            )
        limit = min(limit, self.model.window - len(prompt.ids))
        made = self._row(prompt.ids, limit, style.end_ids, prompt.choices, number, options)
        made.is_done = Stopped(style, style.stop(language))
        return ArmRow(made, prompt)

    def decode(self, ids: list[int]) -> str:
        """With the blanks of the tokenizer's decoder."""
        return self._format(self.task.max_new_tokens).completion(ids)

    def answer(self, found: ArmRow) -> Prediction:
        """The most likely choice, or the text up to its stop; with the demonstrations as text."""
        assert isinstance(found.prompt, PlainPrompt)
        row, style = found.prompt.row, self._format(self.task.max_new_tokens)
        completion, classes = style.stop(row.language).answer(self.decode(found.row.new)), None
        if found.row.choices:
            ranked = zip(row.choices, probabilities(found.row.nats)[0], strict=True)
            classes = {word: round(p, 6) for word, p in sorted(ranked, key=lambda one: -one[1])}
        made = self._prediction(found, completion, classes)
        return made.model_copy(update={"demonstrations": [style.solved(one) for one in found.prompt.demonstrations]})


@dataclass(frozen=True)
class TaskArms:
    """A task with its arms; the first one answers where none is named."""

    info: TaskInfo
    arms: dict[str, Arm]


def task_arms(served: Served, report: Any) -> dict[str, TaskArms]:
    """The arms of every task: models trained on it, then all models, prompted without and with demonstrations.

    A model whose tokenizer has a chat template is prompted both as plain text and as a chat. report: called with a line
    where a task has no training rows to show, or a chat template cannot be used.
    """
    chats = _chats(served, report)
    found = {}
    for name, one in served.tasks.items():
        drawn = dict[str, list[Row]]()
        try:
            rows = itertools.islice(read(one.task, "train", one.data, Counts()), MAX_TRAINING_ROWS)
            (drawn,) = draw(rows, SHOTS, 1, _SEED, one.task.label if one.task.is_closed else None)
        except InputError as error:
            report(f"{name}: no demonstrations and examples: {error}")
        trained = [m for m in served.models.values() if m.run is not None and name in (m.run.tasks or ())]
        arms: list[Arm] = [TunedArm(model, one.task) for model in trained]
        is_prompted = bool(one.task.prompts) and (not one.task.is_closed or bool(choices_of(one, drawn)))
        for model in served.models.values() if is_prompted else ():
            if model.kind != "lora" and one.task.max_new_tokens < model.window:  # its base is prompted
                ways = (None, chats[model.id]) if model.id in chats else (None,)
                num_shots = (0, SHOTS) if drawn else (0,)
                arms += [PromptedArm(model, one, shots, drawn, way) for way in ways for shots in num_shots]
        found[name] = TaskArms(_info(one, drawn, arms), {arm.name: arm for arm in arms})
    return {name: one for name, one in found.items() if one.arms}


def _chats(served: Served, report: Any) -> dict[str, Chat]:
    """The chat templates of the models that have one, by model id."""
    found = {}
    for model in served.models.values():
        if model.tokenizer.chat_template and model.kind != "lora":
            try:
                found[model.id] = Chat(model.tokenizer, model.id)
            except InputError as error:
                report(str(error).replace("; prompt it as plain text: --chat off", "; it is prompted as plain text"))
    return found


def _info(served: ServedTask, drawn: Mapping[str, Sequence[Row]], arms: Sequence[Arm]) -> TaskInfo:
    task = served.task
    repeated = fields(segments(task.stream)[1])
    own = [
        FieldInfo(name=name, is_optional=name in task.optional, is_list=name in repeated)
        for name in prompt_fields(task)
    ]
    examples = [_example(task, row) for rows in drawn.values() for row in rows[-3:]]  # they are no demonstrations
    choices = {language: list(words) for language, words in choices_of(served, drawn).items()}
    return TaskInfo(
        name=task.name,
        pattern=task.stream,
        fields=own,
        target=task.target,
        is_closed=task.is_closed,
        choices=choices,
        max_new_tokens=task.max_new_tokens,
        examples=examples,
        arms=[arm.info for arm in arms],
    )


def _example(task: Task, row: Row) -> dict[str, str | list[str]]:
    """The fields of a row as a request gives them: without the last target, those of repetitions as lists."""
    found: dict[str, str | list[str]] = {name: text for name, text in row.fields.items() if name != task.target}
    if row.earlier:
        for name in fields(segments(task.stream)[1]):
            last = [] if name == task.target else [row.fields[name]]
            found[name] = [*(one[name] for one in row.earlier), *last]
    return found


def choices_of(served: ServedTask, drawn: Mapping[str, Sequence[Row]]) -> dict[str, tuple[str, ...]]:
    """The choices of a closed task by language."""
    if not served.task.is_closed:
        return {}
    found = {one.language: one.words for one in reversed(served.trained.choices(served.task))} if served.trained else {}
    found |= {language: rows[0].choices for language, rows in drawn.items() if rows}
    return found or ({LANGUAGE: served.task.choices} if served.task.choices else {})


def language_of(given: Given, known: Sequence[str]) -> str:
    """The language that a row names, or else Korean where it has Hangul, or else the first other one."""
    named = str(given.get("language") or "")
    if named and (code := named if named in known else language_code(named)) in known:
        return code
    has_hangul = any(_HANGUL.search(str(text)) for text in given.values())
    fitting = [language for language in known if (language == "ko") == has_hangul]
    return next(iter([*fitting, *known]), LANGUAGE)


def check_fields(task: Task, given: Given, number: int, columns: Sequence[Mapping[str, str]]) -> None:
    """Raises InputError for fields that the task does not have, and for a language that there is not."""
    own = prompt_fields(task)
    if task.target in fields(segments(task.stream)[1]):  # of the repetitions before the last one
        own.append(task.target)
    known = {*own, *(column for names in columns for field, column in names.items() if field in own), "language"}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(
            f"rows.{number}: unknown field '{unknown[0][:100]}'; the prompt of task '{task.name}' has the fields "
            f"{', '.join(own) or 'none'}"
        )
    if "language" not in own and (named := given.get("language")):
        try:
            language_code(str(named)[:_MAX_LANGUAGE])
        except ValueError as error:
            raise InputError(f"rows.{number}: field 'language': {error}") from None


def reason_of(row: DecodingRow) -> Reason:
    """Why a text ended."""
    return "stop" if row.is_finished else "length"


def token_of(tokenizer: Any, score: TokenScore) -> Token:
    """A token with its candidates as text."""
    top = [CandidateToken(text=token_piece(tokenizer, i), logprob=round(p, 6)) for i, p in score.top]
    return Token(text=token_piece(tokenizer, score.id), logprob=round(score.logprob, 6), top=top)
