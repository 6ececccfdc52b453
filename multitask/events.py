"""Progress of long work: events, one after another, to whoever wants to show them.

`report({"event": "step", "step": 20, "loss": {"nli": 1.2}})`; an event of a training is a line of its `metrics.jsonl`.
"""

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
"""A JSON or YAML object, as read or as it will be written."""
Event = Json
"""A JSON object; `event` names its kind: start, step, validation, task, arm, encoding, note, warning, done."""
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Shows nothing."""
