"""Let a model write: free text, or the answer to a task's prompt; as it comes, explained step by step, or all at once.

`Generator(model, tokenizer, "runs/demo", task=summ).write([PromptInput({"document": "A cat sat. ..."}, "row 1")])` ->
`[{"prompt": "A cat sat. It purred.<|summarize|>", "completion": "A cat purred.", "is_finished": True, ...}]`.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from multitask.config.evaluation import SamplingConfig
from multitask.data.rows import Row
from multitask.errors import InputError
from multitask.events import Report, ignore
from multitask.inference.decoding import Watch, beam_search, generate
from multitask.inference.prompt_input import PromptInput, checked_text, prompt_values
from multitask.inference.scoring import choice_nll
from multitask.models.lora import max_positions, plain_model
from multitask.pattern import markers, render
from multitask.task import END, Task
from multitask.tokenization.row_encoder import RowEncoder
from multitask.tokenization.tokenizer import lost_characters, plain_reader

MAX_FREE_TOKENS = 100
"""Most tokens of a free text when nothing is said."""
_CONTEXT = 8  # tokens of the prompt that are decoded along with what follows them
_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}


# ---------------------------------------------------------------- what is asked


# ---------------------------------------------------------------- what is written


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as ids, and the most tokens that may follow."""

    ids: list[int]
    text: str
    limit: int
    values: dict[str, str] | None = None
    is_truncated: bool = False


class Generator:
    """A model, and how it is to write.

    Args:
        model: any causal language model of transformers, or a PEFT model on one.
        tokenizer: its fast tokenizer.
        name: of the model, for errors.
        sampling: how tokens are picked.
        task: whose prompts are to be answered; None: free text is continued.
        max_new_tokens: most tokens of a text; None: the task's, or for free text what is left of the window, at most
            `MAX_FREE_TOKENS`.
        window: most tokens of a prompt and its answer; None: the model's positions.
        batch_tokens: most tokens in work; a limit on cache.
        report: called with warnings.

    Raises:
        InputError: the model does not know the task's markers, or `max_new_tokens` leave no room for a prompt.
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
    ) -> None:
        self.model, self.tokenizer, self.name, self.task = model, tokenizer, name, task
        self.sampling = sampling or SamplingConfig()
        self.batch_tokens, self.report = batch_tokens, report
        self.window = min(filter(None, (window, max_positions(model))), default=1 << 30)
        self.max_new_tokens = max_new_tokens or (task.max_new_tokens if task is not None else None)
        if (self.max_new_tokens or 0) >= self.window:
            raise InputError(
                f"{self.max_new_tokens} tokens may be written and the window has {self.window}: no room is left for a "
                "prompt; give a smaller --max-new-tokens"
            )
        if task is not None:
            self._check_markers(task)
            self.encoder = RowEncoder(task, tokenizer, self.window, self.max_new_tokens)
        self.plain = plain_reader(tokenizer)
        self.end_ids = self._end_ids()

    def write(
        self, asked: Sequence[PromptInput], explain: int = 0, stream: Callable[[str], None] | None = None
    ) -> list[dict[str, Any]]:
        """`num_samples` texts for each prompt, in order, as the lines of `generate --out` hold them.

        explain: of each step this many of the most likely tokens, as `steps`. stream: called with parts of the one
        text as it is written; together they are the completion.

        Raises:
            InputError: a prompt that cannot be used, with its place; nothing is written then.
        """
        config, num = self.sampling, self.sampling.num_samples
        if config.beams > 1 and (explain or stream):
            what = "--explain shows" if explain else "--stream shows"
            raise InputError(
                f"{what} one text token by token, and beam search moves between several: leave out --beams, or "
                f"{'--explain' if explain else 'give --no-stream'}"
            )
        if stream and len(asked) * num != 1:
            raise InputError(f"--stream shows one text, found {len(asked) * num}; give --no-stream, or one prompt")
        ready = [self._ready(one) for one in asked]
        watches: list[Watch] = []
        if explain:
            explained = Explanation(self, len(ready) * num, explain)
            watches.append(explained.watch)
        if stream:
            streamed = TextStreamer(self, ready[0].ids, stream)
            watches.append(streamed.watch)
        if config.beams > 1:
            written = [
                found
                for one in ready
                for found in beam_search(
                    self.model, one.ids, one.limit, self.end_ids, config.beams, num, config.repetition_penalty
                )
            ]
        else:
            written = generate(
                self.model,
                [one.ids for one in ready for _ in range(num)],
                [one.limit for one in ready for _ in range(num)],
                self.end_ids,
                self.batch_tokens,
                uniform=self._uniform if config.is_sampled else None,
                reshape=reshaping(config),
                watch=_together(watches),
            )
        if stream:
            streamed.end()
        nats = self._nll(ready, [new for new, _ in written])
        records = []
        for row, ((new, is_finished), nll) in enumerate(zip(written, nats, strict=True)):
            place, sample = divmod(row, num)
            record = self._record(asked[place], ready[place], new)
            record |= {"is_finished": is_finished, "seed": config.seed, "sample": sample}
            record |= {"num_tokens": len(new), "nll": nll}
            records.append(record | ({"steps": explained.steps[row]} if explain else {}))
        return records

    def text(self, ids: Sequence[int], before: Sequence[int] = ()) -> str:
        """What ids say after those before them.

        An answer stands alone, special tokens left off, as in scoring. Free text continues its prompt: alone, its
        first space would be lost in some tokenizers.
        """
        if self.task is not None:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        tail = list(before[-_CONTEXT:])
        head, whole = (self.tokenizer.decode(i, clean_up_tokenization_spaces=False) for i in (tail, [*tail, *ids]))
        if not whole.startswith(head):  # a decoder that changed what came before
            return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        return str(whole[len(head) :])

    def token(self, number: int) -> str:
        r"""A token as people read it: text in quotes, `\xed` for a byte that is a part of a character, or its name."""
        piece: str | None = self.tokenizer.convert_ids_to_tokens(number)
        if piece is None:  # a row of the model without a token
            return f"<id {number}>"
        if number in self.tokenizer.added_tokens_decoder:
            return piece
        if "ByteLevel" in str(self.tokenizer.backend_tokenizer.decoder) and set(piece) <= set(_BYTES):
            piece = bytes(_BYTES[char] for char in piece).decode(errors="surrogateescape")
        quoted = json.dumps(piece.replace("▁", " "), ensure_ascii=False)
        return re.sub("[\udc80-\udcff]", lambda half: f"\\x{ord(half[0]) - 0xDC00:02x}", quoted)

    def _ready(self, asked: PromptInput) -> EncodedPrompt:
        return self._free(asked) if self.task is None else self._answer(self.task, asked)

    def _free(self, asked: PromptInput) -> EncodedPrompt:
        """Free text, read as `tokenizer(text)` does; a marker in it is a marker."""
        if not isinstance(asked.given, str):
            raise InputError(f"{asked.where}: fields, and no task to read them; name one with --task")
        text = checked_text(asked.given, asked.where)
        ids: list[int] = self.tokenizer(text)["input_ids"] or self._first_ids(asked.where)
        marks = re.compile("|".join(map(re.escape, self.tokenizer.all_special_tokens)) or r"(?!)")
        self._warn_of_lost(marks.split(text), asked.where)  # a marker is read as one
        room = self.window - len(ids)
        if room < 1:
            raise InputError(
                f"{asked.where}: the prompt has {len(ids)} tokens and the window {self.window}: no room is left to "
                "write in; shorten the prompt, free text is never truncated"
            )
        if self.max_new_tokens is not None and self.max_new_tokens > room:
            raise InputError(
                f"{asked.where}: the prompt has {len(ids)} tokens, {self.max_new_tokens} more may be written, and the "
                f"window has {self.window}; give --max-new-tokens {room} or less, or shorten the prompt"
            )
        return EncodedPrompt(ids, text, self.max_new_tokens or min(room, MAX_FREE_TOKENS))

    def _answer(self, task: Task, asked: PromptInput) -> EncodedPrompt:
        """A task's prompt, encoded as for scoring, truncated where it must be."""
        values = prompt_values(task, asked)
        limit = self.max_new_tokens or task.max_new_tokens
        self._warn_of_lost(values.values(), asked.where)
        row = Row("", {**values, task.target: self._filler()}, (), "", (), (), None, asked.where)
        (encoded,) = self.encoder.encode([row])
        pieces = render(task, values, with_target=False)
        length = sum(
            1 if p.is_marker else len(self.plain.encode(p.literal + p.text, add_special_tokens=False)) for p in pieces
        )
        if encoded is None:
            truncated = (
                f"truncating its {task.truncate} does not make enough"
                if task.truncate
                else "it has no field that may be truncated"
            )
            raise InputError(
                f"{asked.where}: the prompt has {length} tokens; of the window's {self.window}, {limit} are kept for "
                f"the answer, and {truncated}; shorten it, or give a smaller --max-new-tokens"
            )
        ids = encoded.input_ids[: encoded.num_prompt]
        if encoded.is_truncated:
            text = f"{asked.where}: {task.truncate} is truncated: the prompt had {length} tokens, {len(ids)} fit"
            self.report({"event": "warning", "text": text})
        return EncodedPrompt(ids, self.tokenizer.decode(ids).strip(), limit, values, encoded.is_truncated)

    def _record(self, asked: PromptInput, ready: EncodedPrompt, new: list[int]) -> dict[str, Any]:
        record: dict[str, Any] = {"where": asked.where, "prompt": ready.text}
        record["completion"] = self.text(new, ready.ids)
        if self.task is not None:
            record["prediction"] = (self.task.parse or str.strip)(record["completion"])
            record |= {"task": self.task.name, "fields": ready.values, "is_truncated": ready.is_truncated}
        return record

    def _uniform(self, row: int, step: int) -> float:
        place, sample = divmod(row, self.sampling.num_samples)
        return float(np.random.default_rng([self.sampling.seed, place, sample, step]).random())

    def _nll(self, ready: Sequence[EncodedPrompt], written: Sequence[list[int]]) -> list[float]:
        """Nats of each text's tokens, without its end, as the model alone expects them."""
        num = self.sampling.num_samples
        texts = [[new for new in written[place * num : (place + 1) * num] if new] for place in range(len(ready))]
        asked = [(one.ids, found) for one, found in zip(ready, texts, strict=True) if found]
        nats = (value for row in choice_nll(self.model, asked, self.batch_tokens) for value in row)
        return [next(nats) if new else 0.0 for new in written]

    def _check_markers(self, task: Task) -> None:
        vocabulary = self.tokenizer.get_vocab()
        missing = [marker for marker in markers({task.name: task}) if marker not in vocabulary]
        if missing:
            raise InputError(
                f"{self.name}: its tokenizer has no {missing[0]}, a marker of '{task.name}': it was not trained on "
                f"the task; train it (`train --model {self.name} --tasks {task.name}`), prompt it with solved examples "
                f"(`fewshot --model {self.name} --tasks {task.name}`), or write the prompt out as free text"
            )

    def _end_ids(self) -> set[int]:
        if self.task is not None:
            return {self.tokenizer.convert_tokens_to_ids(END)}
        ends = plain_model(self.model).generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        return {i for i in (ends if isinstance(ends, list) else [ends]) if i is not None}

    def _first_ids(self, where: str) -> list[int]:
        """What an empty prompt begins with: bos, or the eos that parts documents; `<|end|>` begins nothing."""
        for token in (self.tokenizer.bos_token, self.tokenizer.eos_token):
            if token is not None and token != END:
                return [self.tokenizer.convert_tokens_to_ids(token)]
        raise InputError(
            f"{where}: the prompt has no tokens, and the tokenizer of {self.name} has none that begins a text; give at "
            "least a word"
        )

    def _filler(self) -> str:
        """A target for prompts that have none yet: any text that has tokens."""
        known: dict[str, int] = self.tokenizer.get_vocab()
        return next(token for token in known if self.plain.encode(token, add_special_tokens=False).ids)

    def _warn_of_lost(self, texts: Iterable[str], where: str) -> None:
        given = list(texts)
        lost = lost_characters(given, self.tokenizer, self.plain) if given else None
        if lost:
            shown = " ".join(f"{char!r} x{count}" for char, count in lost.most_common(8))
            text = f"{where}: {lost.total():,} characters do not survive the tokenizer: {shown}"
            self.report({"event": "warning", "text": text})


def reshaping(config: SamplingConfig) -> LogitsProcessorList | None:
    """What changes scores, in the order of transformers' `generate`."""
    steps = LogitsProcessorList()
    if config.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.temperature is not None:
        steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k is not None:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None:
        steps.append(TopPLogitsWarper(config.top_p))
    return steps or None


def _together(watches: Sequence[Watch]) -> Watch | None:
    def watch(at: Sequence[tuple[int, int]], picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
        for each in watches:
            each(at, picked, raw, scores)

    return watch if watches else None


class Explanation:
    """Of each row and step: the token taken and the most likely ones, with their probabilities.

    Both before and after temperature, top-k and top-p.
    """

    def __init__(self, generator: Generator, num: int, top: int) -> None:
        self.generator, self.top = generator, top
        self.steps: list[list[dict[str, Any]]] = [[] for _ in range(num)]

    def watch(self, at: Sequence[tuple[int, int]], picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
        """Called by `decoding.generate`."""
        before, after = raw.softmax(-1), scores.softmax(-1)
        candidates_of = before.topk(min(self.top, before.shape[-1])).indices.tolist()
        for n, ((row, _), token) in enumerate(zip(at, picked, strict=True)):
            ids = candidates_of[n] if token in candidates_of[n] else [*candidates_of[n], token]
            candidates = [
                {"id": i, "token": self.generator.token(i), "before": b, "after": a}
                for i, b, a in zip(ids, before[n, ids].tolist(), after[n, ids].tolist(), strict=True)
            ]
            self.steps[row].append({"id": token, "token": self.generator.token(token), "candidates": candidates})


class TextStreamer:
    """Hands on the part of a growing text that later tokens do not change.

    That is what the texts with and without the last token have in common: a character may need several tokens, and a
    decoder may pull a token towards the one before it.
    """

    def __init__(self, generator: Generator, before: Sequence[int], stream: Callable[[str], None]) -> None:
        self.generator, self.before, self.stream = generator, before, stream
        self.ids: list[int] = []
        self.text = self.shown = ""

    def watch(self, at: Sequence[tuple[int, int]], picked: Sequence[int], raw: Tensor, scores: Tensor) -> None:
        """Called by `decoding.generate`."""
        if picked[0] not in self.generator.end_ids:
            self.ids.append(picked[0])
            last, self.text = self.text, self.generator.text(self.ids, self.before)
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(last, self.text, strict=False))
            self._show("".join(char for char, _ in alike).rstrip("\N{REPLACEMENT CHARACTER}"))

    def end(self) -> None:
        """Hands on the rest."""
        self._show(self.text)

    def _show(self, text: str) -> None:
        if len(text) > len(self.shown) and text.startswith(self.shown):
            self.stream(text[len(self.shown) :])
            self.shown = text
