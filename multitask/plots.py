"""Pictures of a run: training and validation loss over steps and tokens."""

import json
from pathlib import Path


def draw_loss(metrics: Path, picture: Path) -> None:
    """`loss.png` from `metrics.jsonl`: a line per task, thin for training, with dots for validation."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
    if not lines:
        return
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(sorted({name for line in lines for name in line["loss"]})):
        for event, style in (
            ("step", {"linewidth": 1.0, "alpha": 0.6}),
            ("validation", {"marker": "o", "markersize": 4}),
        ):
            points = [
                (line["step"], line["loss"][name]) for line in lines if line["event"] == event and name in line["loss"]
            ]
            label = name if event == "validation" else None
            axes.plot([p[0] for p in points], [p[1] for p in points], color=f"C{number}", label=label, **style)
    axes.set(xlabel="step", ylabel="nats per target token", yscale="log", title="training (thin) and validation (dots)")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    per_step = lines[-1]["tokens"] / max(1, lines[-1]["step"])
    axes.secondary_xaxis("top", functions=(lambda x: x * per_step, lambda x: x / per_step)).set_xlabel("tokens")
    figure.savefig(picture, dpi=110)
