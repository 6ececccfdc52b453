"""What the command line shows: progress and tables of runs, and texts as they are written.

A run reports records such as `{"event": "step", "step": 20, ...}`; `Screen()(record)` shows each as a line.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from multitask.errors import InputError


class Screen:
    """Shows progress records: a live line on a terminal, plain lines elsewhere, and the final table."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        self.started = time.perf_counter()
        self.live: Any = None
        self.encoding_s: dict[str, float] = {}  # when a split was last spoken of

    def __call__(self, record: dict[str, Any]) -> None:
        """One record of a run."""
        getattr(self, f"_{record['event']}", lambda record: None)(record)

    def _start(self, record: dict[str, Any]) -> None:
        self.first_step, self.started = record["step"], time.perf_counter()
        shares = ", ".join(f"{name} {share:.0%}" for name, share in record["shares"].items())
        self.console.print(
            f"{record['parameters']:,} parameters, {record['trainable_parameters']:,} train, {record['device']} "
            f"{record['precision']}; steps of {record['tokens_per_step']:,} tokens; mixture: {shares}"
        )
        for name, data in record["data"].items():
            if "num_rows" not in data:
                self.console.print(
                    f"{name}: {data['num_tokens']:,} tokens of {data['num_characters']:,} characters in "
                    f"{data['num_documents']:,} documents, {data['num_unknown']:,} unknown"
                )
                continue
            text = f"{name}: {data['num_rows']:,} rows, {data['num_cut']} cut, {data['num_refused']} refused"
            text += f", {data['num_skipped']} skipped"
            self.console.print(text)
            if data["num_chars_lost"]:
                lost = " ".join(f"{char!r} x{count}" for char, count in list(data["chars_lost"].items())[:8])
                self.console.print(
                    f"warning: {name}: {data['num_chars_lost']:,} characters do not survive the tokenizer: {lost}"
                )
        if self.console.is_terminal:
            from rich.live import Live

            self.live = Live(console=self.console, refresh_per_second=4)
            self.live.start()

    def _step(self, record: dict[str, Any]) -> None:
        done = record["step"] - self.first_step
        left_s = (time.perf_counter() - self.started) / max(1, done) * (record["max_steps"] - record["step"])
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in record["loss"].items())
        line = (
            f"step {record['step']}/{record['max_steps']}  loss {losses}  lr {record['learning_rate']:.2e}  "
            f"{record['tokens_per_s']:,.0f} tokens/s  {_clock(left_s)} left"
        )
        if self.live is not None:
            self.live.update(line)
        elif record["step"] % 100 == 0 or record["step"] == record["max_steps"] or done < 50:
            self.console.print(line, soft_wrap=True)

    def _validation(self, record: dict[str, Any]) -> None:
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in record["loss"].items())
        best = "  (best so far)" if record["is_best"] else ""
        self.console.print(f"step {record['step']}/{record['max_steps']}  validation {losses}{best}", soft_wrap=True)
        if record.get("sample"):
            self.console.print(record["sample"], style="dim", markup=False, soft_wrap=True)

    def _encoding(self, record: dict[str, Any]) -> None:
        shown_s = self.encoding_s.get(record["split"], 0.0)
        if record["elapsed_s"] - shown_s > 5:
            self.encoding_s[record["split"]] = record["elapsed_s"]
            self.console.print(
                f"encoding the {record['split']} text: {record['num_characters']:,} characters so far, "
                f"{_clock(record['elapsed_s'])}"
            )

    def _note(self, record: dict[str, Any]) -> None:
        self.console.print(record["text"])

    def _warning(self, record: dict[str, Any]) -> None:
        click.echo(f"warning: {record['text']}", err=True)

    def _task(self, record: dict[str, Any]) -> None:
        self.close()
        self.console.print(
            f"scored {record['task']}: {record['result']['num_examples']} rows in {record['elapsed_s']:.1f} s"
        )

    def _done(self, record: dict[str, Any]) -> None:
        self.close()
        self.table(record["results"])
        cost = record["results"]["cost"]
        self.console.print(
            f"{_clock(cost['wall_s'])} in all, {cost['tokens_per_s']:,.0f} tokens/s; written to {record['out']}"
        )

    def close(self) -> None:
        """Ends the live line, if there is one."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def table(self, results: dict[str, Any]) -> None:
        """Tasks and metrics with intervals, beside the best trivial baseline."""
        from rich.table import Table

        table = Table("task", "rows", "metric", "score", "95 % interval", "best baseline", "")
        for name, task in results["tasks"].items():
            first = True
            for metric, score in task["metrics"].items():
                floors = [(b[metric]["value"], n) for n, b in task["baselines"].items() if metric in b]
                down = metric in ("perplexity", "word_perplexity", "bits_per_byte", "repetition")
                floor = (min if down else max)(floors) if floors else None
                beats = floor is not None and (score["high"] < floor[0] if down else score["low"] > floor[0])
                table.add_row(
                    name if first else "",
                    f"{task['num_examples']:,}" if first else "",
                    metric,
                    _number(score["value"]),
                    f"{_number(score['low'])} - {_number(score['high'])}",
                    f"{_number(floor[0])} {floor[1]}" if floor else "",
                    "" if floor is None else "better" if beats else "not clearly better",
                    end_section=metric == list(task["metrics"])[-1],
                )
                first = False
        self.console.print(table)

    def _arm(self, record: dict[str, Any]) -> None:
        self.close()
        kept = "  (kept: nothing that decides it has changed)" if record["kept"] else ""
        self.console.print(f"\n[bold]arm {record['number']}/{record['of']}: {record['arm']}[/bold]{kept}")

    def arms(self, arms: list[dict[str, Any]], is_estimate: bool) -> None:
        """Arms with their seconds, measured or estimated."""
        from rich.table import Table

        table = Table("arm", "tokens" if is_estimate else "", "about" if is_estimate else "took")
        for arm in arms:
            seconds = arm["seconds"] if is_estimate else arm["elapsed_s"]
            note = f"{arm['tokens']:,}" if is_estimate else "kept" if arm["kept"] else ""
            table.add_row(arm["arm"], note, _clock(seconds))
        total = sum(arm["seconds"] if is_estimate else arm["elapsed_s"] for arm in arms)
        table.add_section()
        table.add_row("all", "", _clock(total))
        self.console.print(table)

    def vocabulary(self, found: dict[str, Any]) -> None:
        """A tokenizer's size, how it reads held-out text, its curve."""
        from rich.table import Table
        from rich.text import Text

        held = found["held_out"]
        print_line = partial(self.console.print, markup=False, soft_wrap=True)
        print_line(
            f"{found['kind']}: {found['vocab_size']:,} tokens of text and {found['num_special']} special ones, "
            f"{found['size']:,} in all; {found['time']['all_s']:.1f} s"
        )
        print_line(f"longest tokens: {'  '.join(map(repr, found['longest_tokens']))}")
        print_line(
            f"measured on {held['text']}: {held['num_characters']:,} characters, {held['num_words']:,} words, "
            f"{held['num_tokens']:,} tokens"
        )
        table = Table("unknown characters", "tokens per character", "tokens per word", "bytes per token", "lost")
        lost = held["round_trip"]["chars_lost"]
        table.add_row(
            f"{held['unknown_rate']:.4%}",
            f"{held['tokens_per_character']:.3f}",
            f"{held['tokens_per_word']:.3f}",
            f"{held['bytes_per_token']:.3f}",
            Text(", ".join(f"{c!r} x{n}" for c, n in list(lost.items())[:8]) or "nothing"),
        )
        self.console.print(table)
        if "curve" in found:
            table = Table("vocabulary", "characters per token", "bytes per token")
            for point in found["curve"]:
                cells = (point["characters_per_token"], point["bytes_per_token"])
                table.add_row(f"{point['vocab_size']:,}", *(f"{cell:.3f}" for cell in cells))
            self.console.print(table)

    def shots(self, results: dict[str, Any]) -> None:
        """Tasks by number of shots: mean, spread over draws, interval over rows, beside the best trivial baseline."""
        from rich.table import Table

        table = Table("task", "shots", "metric", "mean", "sd over draws", "95 % over rows", "fitted", "best baseline")
        for name, task in results["tasks"].items():
            for shots, found in task["per_shot"].items():
                floors = [
                    (b[found["metric"]]["value"], n) for n, b in task["baselines"].items() if found["metric"] in b
                ]
                fitted = sum(draw["num_fitted"] for draw in found["draws"]) / len(found["draws"])
                table.add_row(
                    name if shots == next(iter(task["per_shot"])) else "",
                    shots,
                    found["metric"],
                    f"{found['mean']:.3f}",
                    "" if found["sd"] is None else f"{found['sd']:.3f}",
                    f"{found['low']:.3f} - {found['high']:.3f}",
                    f"{fitted:.1f}",
                    f"{max(floors)[0]:.3f} {max(floors)[1]}" if floors else "",
                    end_section=shots == list(task["per_shot"])[-1],
                )
        self.console.print(table)


class Writing:
    """Shows texts: one as it comes, several under headings, steps as tables."""

    def __init__(self, task: Any, top: int, wants_stream: bool | None) -> None:
        self.task, self.top, self.wants_stream = task, top, wants_stream
        self.begin: str | None = None  # of the text on the screen; None once it stands there

    def report(self, record: dict[str, Any]) -> None:
        """A warning."""
        click.echo(f"{record['event']}: {record['text']}", err=True)

    def streaming(self, is_fit: bool, asked: Any) -> Callable[[str], None] | None:
        """What shows a text as it comes, or None: it is shown when it is whole."""
        is_own = self.task is None or self.task.parse is None  # a completion is the answer
        is_usual = is_fit and is_own and not self.top and sys.stdout.isatty()
        if not (is_usual if self.wants_stream is None else self.wants_stream):
            return None
        self.begin = "" if self.task is not None else asked if isinstance(asked, str) else asked.given
        return self._part

    def show(self, records: list[dict[str, Any]], is_streamed: bool = False) -> None:
        """Finished texts: free ones with their prompts."""
        samples = any(record["sample"] for record in records)
        for record in records:
            if len(records) > 1:
                click.echo(f"--- {record['where']}" + (f", sample {record['sample'] + 1}" if samples else ""))
            if not is_streamed:
                click.echo(record.get("prediction", record["prompt"] + record["completion"]))
            else:
                self._part("")
                click.echo()
            if self.top:
                self._steps(record["steps"])
        unfinished = [record["num_tokens"] for record in records if not record["is_finished"]]
        if unfinished:
            which = f"{len(unfinished)} of {len(records)} texts are" if len(records) > 1 else "the text is"
            click.echo(f"note: {which} unfinished, stopped at {max(unfinished)} tokens (--max-new-tokens)", err=True)

    def converse(self, speaker: Any) -> None:
        """Asks for prompts and answers them; Ctrl-C stops a text and stays, an empty line or Ctrl-D ends it all."""
        from multitask.inference.generator import Asked

        while (given := self._asked()) is not None:
            to_stream = self.streaming(speaker.sampling.num_samples == speaker.sampling.beams == 1, given)
            try:
                self.show(speaker.write([Asked(given, "prompt")], self.top, to_stream), to_stream is not None)
            except KeyboardInterrupt:
                click.echo("\n(stopped)", err=True)
            except InputError as error:
                click.echo(f"error: {error}", err=True)

    def _asked(self) -> Any:
        """A prompt, or the fields of one; None: no more are wanted."""
        from multitask.inference.generator import prompt_fields

        try:
            if self.task is None:
                return input("> ") or None
            values = {}
            for name in prompt_fields(self.task):
                values[name] = input(f"{name}: ")
                if not values[name] and name not in self.task.optional:
                    return None
            return values if values else input("Enter writes, Ctrl-D ends ") and {}
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return None

    def _part(self, part: str) -> None:
        """A part of a text; before the first one stands the prompt."""
        if self.begin is not None:
            part, self.begin = self.begin + part.lstrip() if self.task is not None else self.begin + part, None
        click.echo(part, nl=False)
        sys.stdout.flush()

    def _steps(self, steps: list[dict[str, Any]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("step", "taken", "candidates", "before", "after", "")
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


def _number(value: float) -> str:
    """Three digits behind the point, or a power of ten where perplexities have run away."""
    return f"{value:.3f}" if value < 1e5 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
