"""What the command line shows: progress and tables of runs, and texts as they are written.

A run reports records such as `{"event": "step", "step": 20, ...}`; `ProgressConsole()(record)` shows each as a line.
"""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from multitask.cli.tables import keep_whole, make_console, make_table
from multitask.events import (
    ArmEvent,
    DoneEvent,
    EncodingEvent,
    Event,
    Json,
    StartEvent,
    StepEvent,
    TaskEvent,
    TextEvent,
    ValidationEvent,
)

if TYPE_CHECKING:
    from multitask.tokenization.train import TokenizerReport


class ProgressConsole:
    """Shows events: rich's progress bar on a terminal, plain lines elsewhere, and the final table."""

    def __init__(self) -> None:
        self.console = make_console()
        self.started = time.perf_counter()
        self.progress: Any = None
        self.encoding_s: dict[str, float] = {}  # when a split was last spoken of

    def __call__(self, record: Event) -> None:
        """One record of a run."""
        getattr(self, f"_{record['event']}", lambda record: None)(record)

    def _start(self, record: StartEvent) -> None:
        self.first_step, self.max_steps = record["step"], record["max_steps"]
        self.started = time.perf_counter()
        rates = ", ".join(f"{name} {rate:.0%}" for name, rate in record["sampling_rates"].items())
        self.console.print(
            f"{record['parameters']:,} parameters, {record['trainable_parameters']:,} train, {record['device']} "
            f"{record['precision']}; steps of {record['tokens_per_step']:,} tokens; mixture: {rates}"
        )
        for name, data in record["data"].items():
            if "num_rows" not in data:
                self.console.print(
                    f"{name}: {data['num_tokens']:,} tokens of {data['num_characters']:,} characters in "
                    f"{data['num_documents']:,} documents, {data['num_unknown']:,} unknown"
                )
                continue
            text = (
                f"{name}: {data['num_rows']:,} rows, {data['num_truncated']} truncated, {data['num_dropped']} dropped"
            )
            text += f", {data['num_skipped']} skipped"
            self.console.print(text)
            if data["num_chars_lost"]:
                lost = " ".join(f"{char!r} x{count}" for char, count in list(data["chars_lost"].items())[:8])
                self.console.print(
                    f"warning: {name}: {data['num_chars_lost']:,} characters do not survive the tokenizer: {lost}"
                )
                if "\n" in data["chars_lost"]:
                    self.console.print(
                        f"warning: {name}: the tokenizer turns line breaks into spaces; take a byte-level one (that of "
                        "a new model, or GPT-2's), or write line breaks as a word of your own"
                    )
            if data.get("unused_labels"):
                self.console.print(
                    f"warning: {name}: no training row has the class {', '.join(data['unused_labels'])}; if the data "
                    "has no such class, leave it out of `labels:`"
                )
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self.console,
            )
            self.progress.add_task("", total=None, completed=self.first_step)
            self.progress.start()

    def _step(self, record: StepEvent) -> None:
        done = record["step"] - self.first_step
        left_s = (time.perf_counter() - self.started) / max(1, done) * (self.max_steps - record["step"])
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in record["loss"].items())
        text = f"loss {losses}  lr {record['learning_rate']:.2e}  {record['tokens_per_s']:,.0f} tokens/s"
        line = f"step {record['step']}/{self.max_steps}  {text}  {_clock(left_s)} left"
        if self.progress is not None:
            (task,) = self.progress.task_ids
            self.progress.update(task, total=self.max_steps, completed=record["step"], description=text)
        elif record["step"] % 100 == 0 or record["step"] == self.max_steps or done < 50:
            self.console.print(line, soft_wrap=True)

    def _validation(self, record: ValidationEvent) -> None:
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in record["loss"].items())
        best = "  (best so far)" if record["is_best"] else ""
        self.console.print(f"step {record['step']}/{self.max_steps}  validation {losses}{best}", soft_wrap=True)
        if record.get("sample"):
            self.console.print(record["sample"], style="dim", markup=False, soft_wrap=True)

    def _encoding(self, record: EncodingEvent) -> None:
        shown_s = self.encoding_s.get(record["split"], 0.0)
        if record["elapsed_s"] - shown_s > 5:
            self.encoding_s[record["split"]] = record["elapsed_s"]
            self.console.print(
                f"encoding the {record['split']} text: {record['num_characters']:,} characters so far, "
                f"{_clock(record['elapsed_s'])}"
            )

    def _note(self, record: TextEvent) -> None:
        self.console.print(record["text"])

    def _warning(self, record: TextEvent) -> None:
        click.echo(f"warning: {record['text']}", err=True)

    def _task(self, record: TaskEvent) -> None:
        self.close()
        self.console.print(
            f"scored {record['task']}: {record['result']['num_examples']} rows in {record['elapsed_s']:.1f} s"
        )

    def _done(self, record: DoneEvent) -> None:
        self.close()
        self.table(record["results"])
        cost = record["results"]["cost"]
        self.console.print(
            f"{_clock(cost['wall_s'])} in all, {cost['tokens_per_s']:,.0f} tokens/s; written to {record['out']}"
        )

    def close(self) -> None:
        """Ends the progress bar, if there is one."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def table(self, results: Json) -> None:
        """Tasks and metrics with intervals, beside the best trivial baseline."""
        from multitask.evaluation import metrics

        table = make_table(self.console, "task", "rows", "metric", "score", "95 % interval", "best baseline", "verdict")
        keep_whole(
            table, "metric", [metrics.shown(name) for task in results["tasks"].values() for name in task["metrics"]]
        )
        for name, task in results["tasks"].items():
            first = True
            for metric, score in task["metrics"].items():
                down = metrics.build(metric, "en").higher_is_better is False
                known = [(b[metric]["value"], n) for n, b in task["baselines"].items() if metric in b]
                best = (min if down else max)(known) if known else None
                table.add_row(
                    name if first else "",
                    f"{task['num_examples']:,}" if first else "",
                    metrics.shown(metric),
                    _number(score["value"]),
                    f"{_number(score['low'])} - {_number(score['high'])}",
                    f"{_number(best[0])} {best[1]}" if best else "",
                    _verdict(score, task["baselines"][best[1]][metric], not down, task["num_examples"]) if best else "",
                    end_section=metric == list(task["metrics"])[-1],
                )
                first = False
        self.console.print(table)
        from multitask.evaluation.bootstrap import MIN_ROWS

        if few := [name for name, task in results["tasks"].items() if task["num_examples"] < MIN_ROWS]:
            self.console.print(f"no verdict on fewer than {MIN_ROWS} rows: {', '.join(few)}", soft_wrap=True)

    def _arm(self, record: ArmEvent) -> None:
        self.close()
        kept = "  (kept: nothing that decides it has changed)" if record["kept"] else ""
        self.console.print(f"\n[bold]arm {record['number']}/{record['of']}: {record['arm']}[/bold]{kept}")

    def arms(self, arms: list[Json], is_estimate: bool) -> None:
        """Arms with their seconds, measured or estimated."""
        heads = ("arm", "tokens", "about") if is_estimate else ("arm", "state", "took")
        table = make_table(self.console, *heads)
        for arm in arms:
            seconds = arm["seconds"] if is_estimate else arm["elapsed_s"]
            note = f"{arm['tokens']:,}" if is_estimate else "kept" if arm["kept"] else "done"
            table.add_row(arm["arm"], note, _clock(seconds))
        total = sum(arm["seconds"] if is_estimate else arm["elapsed_s"] for arm in arms)
        table.add_section()
        table.add_row("all", "", _clock(total))
        self.console.print(table)

    def vocabulary(self, found: "TokenizerReport") -> None:
        """A tokenizer's size, how it reads held-out text, its curve."""
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
        table = make_table(
            self.console, "unknown characters", "tokens per character", "tokens per word", "bytes per token", "lost"
        )
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
            table = make_table(self.console, "vocabulary", "characters per token", "bytes per token")
            for point in found["curve"]:
                cells = (point["characters_per_token"], point["bytes_per_token"])
                table.add_row(f"{point['vocab_size']:,}", *(f"{cell:.3f}" for cell in cells))
            self.console.print(table)

    def shots(self, results: Json) -> None:
        """Tasks by number of shots: mean, spread over draws, interval over rows, beside the best trivial baseline.

        Below, chosen templates and rules, and counts of answers that are unfinished or empty.
        """
        from multitask.evaluation import metrics

        heads = ("task", "shots", "metric", "mean", "sd over draws", "95 % over rows", "fitted", "best baseline")
        table = make_table(self.console, *heads)
        keep_whole(
            table,
            "metric",
            [metrics.shown(one["metric"]) for t in results["tasks"].values() for one in t["per_shot"].values()],
        )
        notes = []
        for name, task in results["tasks"].items():
            for shots, found in task["per_shot"].items():
                baselines = [
                    (b[found["metric"]]["value"], n) for n, b in task["baselines"].items() if found["metric"] in b
                ]
                down = metrics.build(found["metric"], "en").higher_is_better is False
                best = (min if down else max)(baselines, default=None)
                fitted = sum(draw["num_fitted"] for draw in found["draws"]) / len(found["draws"])
                table.add_row(
                    name if shots == next(iter(task["per_shot"])) else "",
                    shots,
                    metrics.shown(found["metric"]),
                    f"{found['mean']:.3f}",
                    "" if found["sd"] is None else f"{found['sd']:.3f}",
                    f"{found['low']:.3f} - {found['high']:.3f}",
                    f"{fitted:.1f}",
                    f"{best[0]:.3f} {best[1]}" if best else "",
                    end_section=shots == list(task["per_shot"])[-1],
                )
                if noted := _notes(found):
                    notes.append(f"{name}, {shots}-shot: {noted}")
        self.console.print(table)
        for note in notes:
            self.console.print(note, markup=False, soft_wrap=True)


def _notes(found: Json) -> str:
    """Chosen templates and rules by language, and counts of answers that are unfinished or empty."""
    notes = [
        f"{language} template {one['template']}" + (f", rule {one['rule']}" if one.get("rule") else "")
        for language, one in found.get("selection", {}).items()
        if one.get("split")
    ]
    counts = ((found.get(f"num_{name}"), name) for name in ("unfinished", "empty"))
    return "; ".join([*notes, *(f"{count:,} answers {name}" for count, name in counts if count)])


def _verdict(score: Json, baseline: Json, higher_is_better: bool, num_rows: int) -> str:
    """Whether a score is clearly on one side of the baseline's, by both intervals."""
    from multitask.evaluation.bootstrap import difference_interval, verdict  # loads torch

    first, second = (_with_ends(each) for each in (score, baseline))
    return verdict(*difference_interval(first, second), higher_is_better, num_rows)


def _with_ends(score: Json) -> tuple[float, float, float]:
    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    assert value is not None
    return value, value if low is None else low, value if high is None else high


def _number(value: float) -> str:
    """Three digits behind the point, or a power of ten for very large perplexities."""
    return f"{value:.3f}" if value < 1e5 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
