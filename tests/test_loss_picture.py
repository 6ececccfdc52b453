"""`loss.png`: averages stand in the middle of their interval."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from multitask.plots import draw_loss, middles

LINES: list[dict[str, Any]] = [
    {"event": "step", "step": 20, "tokens": 2000, "loss": {"a": 4.0}, "epochs": {"a": 0.5}},
    {"event": "validation", "step": 20, "tokens": 2000, "loss": {"a": 3.0}},
    {"event": "step", "step": 40, "tokens": 4400, "loss": {"a": 2.0}, "epochs": {"a": 1.0}},
    {"event": "step", "step": 50, "tokens": 5000, "loss": {"a": 1.0}, "epochs": {"a": 1.25}},
    {"event": "validation", "step": 50, "tokens": 5000, "loss": {"a": 2.5}},
]


def test_an_average_stands_in_the_middle_of_its_interval() -> None:
    assert [place for place, _ in middles(LINES, "step")] == [10, 30, 45]
    assert [place for place, _ in middles(LINES, "tokens")] == [1000, 3200, 4700]


@pytest.mark.parametrize(("by_epochs", "scale"), [(False, 1.0), (True, 1.25 / 50)])
def test_training_and_validation_in_the_picture(
    by_epochs: bool, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **named: (drawn.append(self), savefig(self, *args, **named))
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", by_epochs)
    (figure,) = drawn
    training, validation = figure.axes[0].lines
    assert list(training.get_xdata()) == pytest.approx([10 * scale, 30 * scale, 45 * scale])
    assert list(training.get_ydata()) == [4.0, 2.0, 1.0]
    assert list(validation.get_xdata()) == pytest.approx([20 * scale, 50 * scale]), "measured at the step itself"
    assert figure.axes[0].get_ylabel() == "loss (nats per target token)"
