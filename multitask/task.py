"""What a task is: a sentence pattern and a few facts, as data. Plugins import this module and nothing else of ours.

`"{premise}<|sep|>{hypothesis}<|nli|>{label}<|end|>"` with target `label` is a whole task: everything before the target
is the prompt, the loss is taken on the target and on the final marker.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

END = "<|end|>"
BASELINES = ("majority", "lead1", "lead3", "random_span")
PAD = "<|pad|>"


class NoAnswer(ValueError):
    """Raised by `prepare` for a row whose question has no answer; the source's `no_answer` says what becomes of it."""


@dataclass(frozen=True)
class Prompt:
    """A plain-text prompt for untuned models.

    template: text with `{field}` names, ending where the answer begins; the answer brings its own leading space. In
        closed tasks `{choices}` stands for the words of all choices, with commas between.
    words: for closed tasks, the continuation of each choice, in the order of the choices. None: a space and the word
        that the stream uses.
    stop: texts that end a generated answer, behind its leading blanks; the separator of demonstrations always does.
        None: a line break, and the first word of the template.
    sentences: take the first so many sentences of a generated answer; None: all.
    name: what results call the template; empty: `prompt-1` by its place.
    """

    template: str
    words: tuple[str, ...] | None = None
    stop: tuple[str, ...] | None = None
    sentences: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Task:
    """One task. Every fact about it lives in its plugin file and nowhere else.

    name: also the plugin's module name.
    stream: the pattern; `{field}` names, `<|markers|>` and literal text. It ends with the target and `<|end|>`. Where
        `(<|marker|>...)+` encloses its end, that segment stands once or more often, each time with a target; its fields
        are texts, or lists with a text for each repetition.
    target: the field that the model learns to write.
    truncate: the only field that may be truncated to fit the block size; None: rows that do not fit are dropped
        and counted. Of repeated segments the first ones are left out before.
    label: the field that holds a class; its words come from `choices`, or else from `labels` of the data source.
    choices: the closed answer set, in order, where it belongs to the task itself.
    optional: fields a row may lack; the literal text after such a field goes with it.
    prompts: plain prompts for untuned models, by language: one, or several of which the best on validation rows is
        used.
    metrics: names of `multitask.evaluation.metrics`, the first one being the task's score.
    baselines: what a program without a model can do: `majority`, `lead1`, `lead3`, `random_span` (the last three of
        the `truncate` field). `unigram` and `bigram` perplexity are always added.
    max_new_tokens: the longest answer that generation may write, in tokens.
    columns: for `init`, the columns that a data file has for this task, with other names that they often have; empty:
        the fields of the stream.
    prepare: completes a row as read before its fields are taken; it may add `references` (list of accepted answers)
        and `keep` (start and end, in characters, of the stretch of the `truncate` field that training must keep).
        It raises ValueError for a row that it cannot use, and NoAnswer for one without an answer.
    parse: turns a completion into the prediction that metrics see; None: white space is stripped.
    """

    name: str
    stream: str
    target: str
    truncate: str | None = None
    label: str | None = None
    choices: tuple[str, ...] | None = None
    optional: tuple[str, ...] = ()
    prompts: Mapping[str, Prompt | tuple[Prompt, ...]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    max_new_tokens: int = 32
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    parse: Callable[[str], str] | None = None
    cut: InitVar[str | None] = None

    def __post_init__(self, cut: str | None) -> None:
        """Reads `cut`, the name of `truncate` in the release before."""
        if cut is not None:
            text = "'cut' of a Task is now called 'truncate'; the old name is read in this release only"
            warnings.warn(text, FutureWarning, stacklevel=3)
            object.__setattr__(self, "truncate", cut)

    def templates(self, language: str) -> tuple[Prompt, ...]:
        """The prompts of a language, or those of the task's first one, each with a name; () without any."""
        found = self.prompts.get(language) or next(iter(self.prompts.values()), ())
        several = (found,) if isinstance(found, Prompt) else found
        return tuple(replace(one, name=one.name or f"prompt-{place}") for place, one in enumerate(several, 1))

    @property
    def is_closed(self) -> bool:
        """True when the answer is one word of a closed set."""
        return self.label == self.target
