"""Generation from prompts as users give them: free text, or the fields of a task.

`Generator(model, tokenizer, "runs/demo", task=summ).generate([PromptInput({"document": "A cat sat."}, "row 1")])` ->
`[GeneratedText(where="row 1", prompt="A cat sat.<|summarize|>", completion=" A cat.", is_finished=True, ...)]`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from multitask.config.evaluation import SamplingConfig
from multitask.config.languages import language_code
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.events import Json, Report, ignore
from multitask.inference.decoding import OnTokens, beam_search, generate, logits_processors_of, uniform_of
from multitask.inference.explanation import Explanation, Step, TextStreamer, call_all
from multitask.inference.prompt_input import PromptInput, checked_text, prompt_values
from multitask.inference.scoring import choice_nll, probabilities
from multitask.inference.trained_run import Choices
from multitask.models.lora import max_positions, plain_model
from multitask.pattern import markers, parse, render
from multitask.task import END, Task
from multitask.tokenization.row_encoder import RowEncoder
from multitask.tokenization.tokenizer import lost_characters, plain_reader

MAX_FREE_TOKENS = 100
"""Default limit on the tokens of a free text."""
_CONTEXT = 8  # tokens of the prompt that are decoded together with the ones after them


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as ids, and the most tokens that may follow."""

    ids: list[int]
    text: str
    max_new_tokens: int
    fields: dict[str, str] | None = None
    """The field values of a task's prompt."""
    is_truncated: bool = False
    language: str | None = None
    """The language that a prompt names."""


@dataclass(frozen=True)
class TaskAnswer:
    """What a task adds to a generated text."""

    task: str
    fields: dict[str, str]
    prediction: str
    """The completion as metrics compare it."""
    is_truncated: bool
    """Whether the prompt was truncated."""
    classes: "ClassProbabilities | None" = None
    """Of a closed task whose answers are known."""


@dataclass(frozen=True)
class ClassProbabilities:
    """How likely each answer of a closed task is."""

    among: dict[str, float]
    """Among these answers, the most likely first; they add up to 1."""
    total: float
    """The probability that the model gives to all of them together; the rest is that of other texts."""


@dataclass(frozen=True)
class GeneratedText:
    """One text, and how it was generated."""

    where: str
    """The place of its prompt, as in error messages."""
    prompt: str
    completion: str
    is_finished: bool
    """Whether the model ended it; else it stopped at the limit."""
    seed: int
    sample: int
    """Its number among the texts of its prompt."""
    num_tokens: int
    nll: float
    """Nats of its tokens, without the end token, under the model's own distribution."""
    answer: TaskAnswer | None = None
    steps: list[Step] | None = None
    """How each token was picked, where an explanation was requested."""

    def to_json(self) -> Json:
        """A line of `generate --out`."""
        record: dict[str, object] = {"where": self.where, "prompt": self.prompt, "completion": self.completion}
        if self.answer is not None:
            record |= {"prediction": self.answer.prediction, "task": self.answer.task, "fields": self.answer.fields}
            record["is_cut"] = self.answer.is_truncated
            if self.answer.classes is not None:
                record |= {"probabilities": self.answer.classes.among, "total_probability": self.answer.classes.total}
        record |= {"is_finished": self.is_finished, "seed": self.seed, "sample": self.sample}
        record |= {"num_tokens": self.num_tokens, "nll": self.nll}
        return record | ({"steps": [asdict(step) for step in self.steps]} if self.steps is not None else {})


class Generator:
    """A loaded model with the settings of generation.

    Args:
        model: any causal language model of transformers, or a PEFT model on one.
        tokenizer: its fast tokenizer.
        name: the model's name, for errors.
        sampling: how tokens are picked.
        task: prompts are the fields of this task; None: prompts are free text.
        max_new_tokens: most tokens of a text; None: the task's, or for free text what is left of the window, at most
            `MAX_FREE_TOKENS`.
        window: most tokens of a prompt and its completion; None: the model's positions.
        batch_tokens: most tokens of all texts that are generated at the same time; a limit on memory.
        report: called with warnings.
        columns: field -> column of the data that the model was trained on; prompts may use these names.
        choices: the answers of a closed task, by language; their probabilities are measured. Without sampling and
            beams the most likely one is the prediction.

    Raises:
        InputError: the tokenizer lacks the task's markers, or `max_new_tokens` leaves no tokens for a prompt.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        sampling: SamplingConfig | None = None,
        task: Task | None = None,
        max_new_tokens: int | None = None,
        window: int | None = None,
        batch_tokens: int = 8192,
        report: Report = ignore,
        columns: Sequence[Mapping[str, str]] = (),
        choices: Sequence[Choices] = (),
    ) -> None:
        self.columns, self.choices = columns, choices
        self.model, self.tokenizer, self.name, self.task = model, tokenizer, name, task
        self.sampling = sampling or SamplingConfig()
        self.batch_tokens, self.report = batch_tokens, report
        self.window = min(filter(None, (window, max_positions(model))), default=1 << 30)
        self.max_new_tokens = max_new_tokens or (task.max_new_tokens if task is not None else None)
        if (self.max_new_tokens or 0) >= self.window:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens} and the window has {self.window} tokens: none are left for a "
                "prompt; give a smaller --max-new-tokens"
            )
        if task is not None:
            self._check_markers(task)
            self.encoder = RowEncoder(task, tokenizer, self.window, self.max_new_tokens)
        self.plain = plain_reader(tokenizer)
        self.end_ids = self._end_ids()

    def generate(
        self, prompts: Sequence[PromptInput], explain: int = 0, stream: Callable[[str], None] | None = None
    ) -> list[GeneratedText]:
        """`num_samples` texts for each prompt, in order.

        explain: record the so many most likely tokens of each step. stream: called with parts of the one text while it
        is generated; together they are the completion.

        Raises:
            InputError: a prompt cannot be used; nothing is generated then.
        """
        config, num = self.sampling, self.sampling.num_samples
        if config.beams > 1 and (explain or stream):
            what = "--explain shows" if explain else "--stream shows"
            raise InputError(
                f"{what} one text token by token, and beam search keeps several: leave out --beams, or "
                f"{'--explain' if explain else 'give --no-stream'}"
            )
        if stream and len(prompts) * num != 1:
            raise InputError(f"--stream shows one text, found {len(prompts) * num}; give --no-stream, or one prompt")
        encoded = [self.encode(prompt) for prompt in prompts]
        callbacks: list[OnTokens] = []
        if explain:
            explanation = Explanation(self.tokenizer, len(encoded) * num, explain)
            callbacks.append(explanation.on_tokens)
        if stream:
            streamer = TextStreamer(partial(self.decode, prompt_ids=encoded[0].ids), self.end_ids, stream)
            callbacks.append(streamer.on_tokens)
        if config.beams > 1:
            found = [
                text
                for prompt in encoded
                for text in beam_search(
                    self.model,
                    prompt.ids,
                    prompt.max_new_tokens,
                    self.end_ids,
                    config.beams,
                    num,
                    config.repetition_penalty,
                )
            ]
        else:
            found = generate(
                self.model,
                [prompt.ids for prompt in encoded for _ in range(num)],
                [prompt.max_new_tokens for prompt in encoded for _ in range(num)],
                self.end_ids,
                self.batch_tokens,
                uniform=self._uniform if config.is_sampled else None,
                processors=logits_processors_of(config),
                on_tokens=call_all(callbacks),
            )
        if stream:
            streamer.end()
        nats = self._nll(encoded, [ids for ids, _ in found])
        classes = self._classes(encoded)
        texts = []
        for row, ((ids, is_finished), nll) in enumerate(zip(found, nats, strict=True)):
            prompt, sample = encoded[row // num], row % num
            completion = self.decode(ids, prompt.ids)
            text = GeneratedText(
                where=prompts[row // num].where,
                prompt=prompt.text,
                completion=completion,
                is_finished=is_finished,
                seed=config.seed,
                sample=sample,
                num_tokens=len(ids),
                nll=nll,
                answer=self._answer(completion, prompt, classes[row // num]),
                steps=explanation.steps[row] if explain else None,
            )
            texts.append(text)
        return texts

    def decode(self, ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> str:
        """The text of generated ids.

        For a task, without the prompt and without special tokens, as in scoring. Free text is decoded together with
        the end of its prompt: alone, its first space would be lost in some tokenizers.
        """
        if self.task is not None:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        tail = list(prompt_ids[-_CONTEXT:])
        head, whole = (self.tokenizer.decode(i, clean_up_tokenization_spaces=False) for i in (tail, [*tail, *ids]))
        if not whole.startswith(head):  # the decoder changed the text of the prompt
            return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        return str(whole[len(head) :])

    def encode(self, prompt: PromptInput) -> EncodedPrompt:
        """The ids of a prompt; raises InputError for one that does not fit or cannot be used."""
        return self._encode_text(prompt) if self.task is None else self._encode_fields(self.task, prompt)

    def _encode_text(self, prompt: PromptInput) -> EncodedPrompt:
        """Free text, encoded as `tokenizer(text)` does: a special token in it is parsed as one."""
        if not isinstance(prompt.given, str):
            raise InputError(f"{prompt.where}: found fields, expected text; name their task with --task")
        text = checked_text(prompt.given, prompt.where)
        ids: list[int] = self.tokenizer(text)["input_ids"] or self._first_ids(prompt.where)
        special = re.compile("|".join(map(re.escape, self.tokenizer.all_special_tokens)) or r"(?!)")
        self._warn_of_lost(special.split(text), prompt.where)
        num_left = self.window - len(ids)
        if num_left < 1:
            raise InputError(
                f"{prompt.where}: the prompt has {len(ids)} tokens and the window {self.window}: none are left to "
                "generate; shorten the prompt, free text is never truncated"
            )
        if self.max_new_tokens is not None and self.max_new_tokens > num_left:
            raise InputError(
                f"{prompt.where}: the prompt has {len(ids)} tokens, max_new_tokens is {self.max_new_tokens}, and the "
                f"window has {self.window}; give --max-new-tokens {num_left} or less, or shorten the prompt"
            )
        return EncodedPrompt(ids, text, self.max_new_tokens or min(num_left, MAX_FREE_TOKENS))

    def _encode_fields(self, task: Task, prompt: PromptInput) -> EncodedPrompt:
        """The prompt of a task, encoded and truncated as for scoring."""
        values, earlier = prompt_values(task, prompt, self.columns)
        max_new_tokens = self.max_new_tokens or task.max_new_tokens
        row = Row("", {**values, task.target: self._any_target}, (), "", (), (), None, prompt.where, earlier=earlier)
        self._warn_of_lost([text for one in (*earlier, values) for text in one.values()], prompt.where)
        (encoded,) = self.encoder.encode([row])
        pieces = render(task, values, with_target=False, earlier=earlier)
        length = sum(
            1 if p.is_marker else len(self.plain.encode(p.literal + p.text, add_special_tokens=False)) for p in pieces
        )
        if encoded is None:
            reason = (
                f"truncating its {task.truncate} is not enough"
                if task.truncate
                else "it has no field that may be truncated"
            )
            raise InputError(
                f"{prompt.where}: the prompt has {length} tokens; of the window's {self.window}, {max_new_tokens} are "
                f"kept for the answer, and {reason}; shorten it, or give a smaller --max-new-tokens"
            )
        ids = encoded.input_ids[: encoded.num_prompt]
        if encoded.is_truncated:
            what = f"{task.truncate} is truncated" if task.truncate else "first repetitions are left out"
            text = f"{prompt.where}: {what}: the prompt had {length} tokens, {len(ids)} fit"
            self.report({"event": "warning", "text": text})
        language = None
        if isinstance(prompt.given, Mapping):
            with suppress(ValueError):
                language = language_code(str(prompt.given.get("language") or ""))
        shown = self.tokenizer.decode(ids).strip()
        return EncodedPrompt(ids, shown, max_new_tokens, values, encoded.is_truncated, language)

    def _answer(self, completion: str, prompt: EncodedPrompt, classes: ClassProbabilities | None) -> TaskAnswer | None:
        if self.task is None:
            return None
        prediction = (self.task.parse or str.strip)(completion)
        if classes is not None and not self.sampling.is_sampled and self.sampling.beams == 1:
            prediction = next(iter(classes.among))
        return TaskAnswer(self.task.name, prompt.fields or {}, prediction, prompt.is_truncated, classes)

    def _classes(self, prompts: Sequence[EncodedPrompt]) -> list[ClassProbabilities | None]:
        if self.task is None or not self.choices:
            return [None] * len(prompts)
        nats = choice_nll(self.model, [self.scored(prompt) for prompt in prompts], self.batch_tokens)
        return [self.classes_of(prompt, row) for prompt, row in zip(prompts, nats, strict=True)]

    def scored(self, prompt: EncodedPrompt) -> tuple[list[int], list[list[int]]]:
        """Ids of a prompt, and of each answer of the closed task with the end marker."""
        assert self.task is not None
        literal, (end_id,) = parse(self.task.stream)[-2].literal, self.end_ids
        ids = [[*self.plain.encode(literal + w, add_special_tokens=False).ids, end_id] for w in self._words()]
        return prompt.ids[-(self.window - max(map(len, ids))) :], ids

    def classes_of(self, prompt: EncodedPrompt, nats: Sequence[float]) -> ClassProbabilities:
        """How likely each answer is, of nats as `scored` has it, in the language in which answers are most likely."""
        nats_of = dict(zip(self._words(), nats, strict=True))
        own = [choices for choices in self.choices if choices.language == prompt.language] or self.choices
        scored = [(choices, *probabilities([nats_of[word] for word in choices.words])) for choices in own]
        choices, among, total = max(scored, key=lambda one: one[2])
        ranked = sorted(zip(choices.words, among, strict=True), key=lambda one: -one[1])
        return ClassProbabilities({word: round(p, 6) for word, p in ranked}, round(total, 6))

    def _words(self) -> list[str]:
        return list(dict.fromkeys(word for choices in self.choices for word in choices.words))

    def _uniform(self, row: int, step: int) -> float:
        number, sample = divmod(row, self.sampling.num_samples)
        return uniform_of(self.sampling.seed, number, sample, step)

    def _nll(self, prompts: Sequence[EncodedPrompt], texts: Sequence[list[int]]) -> list[float]:
        """Nats of each text's ids under the model's own distribution, whatever the sampling."""
        num = self.sampling.num_samples
        by_prompt = [[ids for ids in texts[n * num : (n + 1) * num] if ids] for n in range(len(prompts))]
        rows = [(prompt.ids, found) for prompt, found in zip(prompts, by_prompt, strict=True) if found]
        nats = (value for row in choice_nll(self.model, rows, self.batch_tokens) for value in row)
        return [next(nats) if ids else 0.0 for ids in texts]

    def _check_markers(self, task: Task) -> None:
        vocabulary = self.tokenizer.get_vocab()
        missing = [marker for marker in markers({task.name: task}) if marker not in vocabulary]
        if missing:
            raise InputError(
                f"{self.name}: its tokenizer has no {missing[0]}, a marker of task '{task.name}': it was not trained "
                f"on the task; train it (`train --model {self.name} --tasks {task.name}`), prompt it with solved "
                f"examples (`fewshot --model {self.name} --tasks {task.name}`), or give the prompt as free text"
            )

    def _end_ids(self) -> set[int]:
        if self.task is not None:
            return {self.tokenizer.convert_tokens_to_ids(END)}
        ends = plain_model(self.model).generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        return {i for i in (ends if isinstance(ends, list) else [ends]) if i is not None}

    def _first_ids(self, where: str) -> list[int]:
        """The ids of an empty prompt: bos, or the eos that separates documents; never `<|end|>`."""
        for token in (self.tokenizer.bos_token, self.tokenizer.eos_token):
            if token is not None and token != END:
                return [self.tokenizer.convert_tokens_to_ids(token)]
        raise InputError(
            f"{where}: the prompt has no tokens, and the tokenizer of {self.name} has no bos or eos token to start "
            "from; give at least a word"
        )

    @cached_property
    def _any_target(self) -> str:
        """A text of at least one token, as the target of a prompt that has none."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return next(token for token in vocabulary if self.plain.encode(token, add_special_tokens=False).ids)

    def _warn_of_lost(self, texts: Iterable[str], where: str) -> None:
        if self.report is ignore:
            return
        given = list(texts)
        lost = lost_characters(given, self.tokenizer, self.plain) if given else None
        if lost:
            shown = " ".join(f"{char!r} x{count}" for char, count in lost.most_common(8))
            text = f"{where}: {lost.total():,} characters do not survive the tokenizer: {shown}"
            self.report({"event": "warning", "text": text})
