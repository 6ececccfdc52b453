"""A row as ids, and what turns rows into that: the format of a tuned model's prompts, or of an untuned one's.

`EncodedPrompt(row, ids=[5, 6], text="Q: ...", choices=[[7], [8]], target=None, num_tokens=2)`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from multitask.data.rows import Row
from multitask.evaluation.prompting.stops import StopRule
from multitask.task import Task


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
    has_likelihood: bool
    """Whether targets have a likelihood worth reporting: words of a prompt template have none."""
    is_calibrated: bool
    """Whether choices are also predicted by the rules that correct a prompt's bias."""
    shares_demonstrations: bool
    """Whether most rows have the same demonstrations."""

    def encode(
        self, rows: Sequence[Row], rankings: Sequence[Sequence[Row]], num_shots: int
    ) -> list[EncodedPrompt | None]:
        """Rows to prompts, each with demonstrations from its ranking; None for a row to drop."""

    def rule(self, language: str) -> str:
        """Which of `choice_rules.RULES` predicts in a language."""

    def stop(self, language: str) -> StopRule | None:
        """Where an answer ends, beside `end_ids`."""

    def completion(self, ids: Sequence[int]) -> str:
        """The text of generated ids."""

    def words(self, row: Row) -> Sequence[str]:
        """The choices as the prompt's continuations write them."""

    def calibration(self, prompt: EncodedPrompt) -> Mapping[str, list[list[int]]]:
        """By rule, the same prompt around rows without content; {} where nothing is calibrated."""

    def require_rows(self, num_kept: int, num_dropped: int, split: str) -> None:
        """Raises InputError when no row was kept."""


@dataclass(frozen=True)
class Stopped:
    """Whether generated ids hold a whole answer."""

    format: PromptFormat
    stop: StopRule | None

    def __call__(self, ids: list[int]) -> bool:
        """Of ids so far."""
        return self.stop is not None and self.stop.is_reached(self.format.completion(ids))
