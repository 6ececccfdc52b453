"""Learning rate range test (Smith, 2015): a rising rate, step by step, and the loss with each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multitask.config.run import PretrainConfig
from multitask.errors import InputError
from multitask.events import Report, ignore
from multitask.files import write_json
from multitask.task import Task
from multitask.training import run_dir
from multitask.training.loop import Loop
from multitask.training.pretrain import prepare

_LEAST_RATES = 5


_RATES = {"learning_rate.json", "learning_rate.png"}


def find_learning_rate(
    config: PretrainConfig, tasks: Mapping[str, Task], out: Path, report: Report = ignore
) -> dict[str, object]:
    """A rising learning rate, step by step, and the loss with each (Smith, 2015): `out/learning_rate.json` and `.png`.

    The rate rises from 1e-6 to 1 in `train.max_steps` steps, 100 when that is None, and stops when the loss is four
    times the least. Suggested is the rate at which the loss falls fastest. Nothing that is trained is kept.
    """
    from multitask.plots import draw_rates

    num_steps = config.train.max_steps or 100
    if num_steps < _LEAST_RATES:
        raise InputError(
            f"train.max_steps {num_steps}: expected at least {_LEAST_RATES} learning rates to try, or null"
        )
    if out.is_dir() and {path.name for path in out.iterdir()} <= _RATES:  # of an earlier try
        for path in out.iterdir():
            path.unlink(missing_ok=True)  # another process was faster
    train = config.train.model_copy(update={"max_steps": num_steps, "learning_rate": 1.0, "warmup_steps": 0})
    config, out, accelerator = run_dir.start(config.model_copy(update={"train": train}), out, False, False)
    try:
        ready = prepare(run_dir.Run(config, out, accelerator, resumes=False), tasks, report)
        loop = Loop(config.train, config.seed, ready.inputs, out, accelerator, ready.model, report)
        tried = _try_rates(loop, 1e-6, 1.0, num_steps)
        accelerator.wait_for_everyone()
    finally:
        if accelerator.is_main_process:
            run_dir.clear(out)
    if len(tried) < _LEAST_RATES:
        raise InputError(f"{out}: the loss was no number, or four times the least, after {len(tried)} learning rates")
    if not accelerator.is_main_process:
        return {}
    out.mkdir(parents=True, exist_ok=True)
    rates, losses = [rate for rate, _ in tried], [loss for _, loss in tried]
    suggested = _steepest(rates, losses)
    found = {"suggested": suggested, "learning_rate": rates, "loss": losses}
    write_json(out / "learning_rate.json", found)
    draw_rates(rates, losses, suggested, out / "learning_rate.png")
    return found


def _try_rates(loop: Loop, low: float, high: float, num_steps: int) -> list[tuple[float, float]]:
    """Steps with a learning rate that rises evenly by factors; (rate, nats per target token before it) of each.

    Ends early when the loss is four times the least so far, or no number.
    """
    loop.start()
    tried: list[tuple[float, float]] = []
    for turn in range(num_steps):
        rate = low * (high / low) ** (turn / max(1, num_steps - 1))
        loop.optimize(rate)
        nats, tokens = loop.take_sums().sum(0).tolist()
        loop.step += 1
        if not math.isfinite(nats):
            break
        tried.append((rate, nats / tokens))
        if tried[-1][1] > 4 * min(loss for _, loss in tried):
            break
    return tried


def _steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest, by the rate's logarithm, before the least loss.

    Behind the least loss training has diverged; a later fall of the loss says nothing.
    """
    slopes = np.gradient(_smooth(losses), np.log(rates))
    return rates[int(np.argmin(slopes[: int(np.argmin(losses)) + 1]))]


def _smooth(values: Sequence[float], width: int = 5) -> npt.NDArray[np.float64]:
    padded = np.pad(np.asarray(values), width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
