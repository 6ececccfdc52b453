"""What `generate` shows: texts, streamed or finished, class probabilities, candidates of each step, a conversation."""

import sys
from collections.abc import Callable
from typing import Any

import click

from multitask.errors import InputError
from multitask.events import Event, Json

_MOST_ANSWERS = 10  # shown of a closed task


class GenerationConsole:
    """Shows generated texts: one without a heading, several under headings, steps as tables."""

    def __init__(self, task: Any, top: int, wants_stream: bool | None) -> None:
        self.task, self.top, self.wants_stream = task, top, wants_stream
        self.begin: str | None = None  # the prompt of a streamed text; None once it was printed

    def report(self, record: Event) -> None:
        """A warning."""
        if record["event"] == "warning":
            click.echo(f"warning: {record['text']}", err=True)

    def streaming(self, is_fit: bool, prompt: Any) -> Callable[[str], None] | None:
        """The callback that shows parts of a text while it is generated; None: the finished text is shown."""
        is_own = self.task is None or (
            self.task.parse is None and not self.task.is_closed
        )  # a completion is the answer
        is_usual = is_fit and is_own and not self.top and sys.stdout.isatty()
        if not (is_usual if self.wants_stream is None else self.wants_stream):
            return None
        self.begin = "" if self.task is not None else prompt if isinstance(prompt, str) else prompt.given
        return self._part

    def show(self, records: list[Json], is_streamed: bool = False) -> None:
        """Shows finished texts, free ones with their prompts."""
        samples = any(record["sample"] for record in records)
        for record in records:
            if len(records) > 1:
                click.echo(f"--- {record['where']}" + (f", sample {record['sample'] + 1}" if samples else ""))
            if not is_streamed:
                click.echo(record.get("prediction", record["prompt"] + record["completion"]))
            else:
                self._part("")
                click.echo()
            if "probabilities" in record:
                self._probabilities(record["probabilities"])
            if self.top:
                self._steps(record["steps"])
        totals = [record["total_probability"] for record in records if "total_probability" in record]
        if totals:
            most, least = max(totals), min(totals)
            shown = f"{least:.2f}" if len(totals) == 1 else f"{least:.2f} to {most:.2f}"
            click.echo(
                "note: probabilities among the answers of this task, which add up to 1; to all of them together the "
                f"model gives {shown}, the rest to other texts",
                err=True,
            )
        open_texts = [record for record in records if "probabilities" not in record]
        if num_empty := sum(not record["completion"].strip() for record in open_texts):
            which = f"{num_empty} of {len(records)} texts are" if len(records) > 1 else "the text is"
            click.echo(f"note: {which} empty", err=True)
        unfinished = [record["num_tokens"] for record in open_texts if not record["is_finished"]]
        if unfinished:
            which = f"{len(unfinished)} of {len(records)} texts are" if len(records) > 1 else "the text is"
            click.echo(f"note: {which} unfinished, stopped at {max(unfinished)} tokens (--max-new-tokens)", err=True)

    def converse(self, generator: Any) -> None:
        """Reads prompts and shows their texts; Ctrl-C stops a text, an empty line or Ctrl-D ends the conversation."""
        from multitask.inference.prompt_input import PromptInput

        while (given := self._next_prompt()) is not None:
            to_stream = self.streaming(generator.sampling.num_samples == generator.sampling.beams == 1, given)
            try:
                texts = generator.generate([PromptInput(given, "prompt")], self.top, to_stream)
                self.show([text.to_json() for text in texts], to_stream is not None)
            except KeyboardInterrupt:
                click.echo("\n(stopped)", err=True)
            except InputError as error:
                click.echo(f"error: {error}", err=True)

    def _next_prompt(self) -> Any:
        """A prompt or its fields; None at the end of the conversation."""
        from multitask.inference.prompt_input import prompt_fields

        try:
            if self.task is None:
                return input("> ") or None
            values = {}
            for name in prompt_fields(self.task):
                values[name] = input(f"{name}: ")
                if not values[name] and name not in self.task.optional:
                    return None
            return values if values else input("Enter generates, Ctrl-D ends ") and {}
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return None

    def _part(self, part: str) -> None:
        """Prints a part of a text, before the first one the prompt."""
        if self.begin is not None:
            part, self.begin = self.begin + part.lstrip() if self.task is not None else self.begin + part, None
        click.echo(part, nl=False)
        sys.stdout.flush()

    def _probabilities(self, found: dict[str, float]) -> None:
        """Answers of a closed task, the most likely first."""
        shown = list(found.items())[:_MOST_ANSWERS]
        for word, probability in shown:
            click.echo(f"  {probability:.3f}  {word}")
        if len(found) > len(shown):
            rest = sum(found.values()) - sum(probability for _, probability in shown)
            click.echo(f"  {rest:.3f}  {len(found) - len(shown)} others")

    def _steps(self, steps: list[Json]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("step", "taken", "candidates", "before", "after", "state")
        for number, step in enumerate(steps, 1):
            for n, candidate in enumerate(step["candidates"]):
                is_last, is_removed = n == len(step["candidates"]) - 1, not candidate["after"]
                style = "strike dim" if is_removed else "bold" if candidate["id"] == step["id"] else ""
                table.add_row(
                    f"{number}" if n == 0 else "",
                    Text(step["token"]) if n == 0 else "",
                    Text(candidate["token"], style=style),
                    f"{candidate['before']:.4f}",
                    f"{candidate['after']:.4f}",
                    "removed" if is_removed else "taken" if candidate["id"] == step["id"] else "",
                    end_section=is_last,
                )
        Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
