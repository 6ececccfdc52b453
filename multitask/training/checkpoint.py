"""Checkpoints that survive a kill: written aside, flushed to disk, renamed. Tensors in safetensors, the rest in JSON.

`checkpoints/step-200/` holds `model.safetensors` (the weights that train), `optimizer.safetensors` and `state.json`. No
random state is stored: everything random is a function of (seed, step). `checkpoints/best-150/` holds the weights that
did best in validation.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multitask.errors import InputError
from multitask.files import replacing

_NAME = re.compile(r"step-(\d+)")


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that trains, by name; tied ones once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


class Best(TypedDict):
    """The best validation so far: its step, and the score that chose it, higher is better."""

    step: int
    selection_score: float


class State(TypedDict):
    """The JSON part of a checkpoint: where the run is."""

    step: int
    cursor: Sequence[int]
    num_tokens: int
    elapsed_s: float
    best: Best | None
    num_worse: int
    sums: list[list[float]]
    scaler: dict[str, float] | None
    data: dict[str, list[str] | None]
    num_threads: int
    precision: str


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> Path:
    """Writes `folder/step-N`, whole or not at all."""
    packed = optimizer.state_dict()
    moments = {f"{n}.{key}": value for n, values in packed["state"].items() for key, value in values.items()}
    write_tensors = {"model.safetensors": trained_weights(model), "optimizer.safetensors": moments}
    return write_aside(folder / f"step-{state['step']}", write_tensors, {"state.json": state})


def write_aside(target: Path, tensors: dict[str, dict[str, Tensor]], records: Mapping[str, State]) -> Path:
    """A folder of tensor and JSON files that appears under its name only when all of it is on disk.

    Raises InputError when it cannot be written: the disk is full, say.
    """
    try:
        with replacing(target) as aside:
            aside.mkdir()
            for name, group in tensors.items():
                save_file({key: value.contiguous().cpu() for key, value in group.items()}, aside / name)
            for name, record in records.items():
                (aside / name).write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{target}: cannot be written ({error}); what was saved before is untouched: free some disk space, then "
            f"continue with --resume {target.parent.parent}"
        ) from error
    return target


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Whole checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name)))


def prune(folder: Path, keep: int, best: Path) -> None:
    """Removes all but the newest `keep` checkpoints and the best weights, and the files of an interrupted write."""
    for _, path in steps(folder)[:-keep]:
        shutil.rmtree(path)
    for path in (*folder.glob("best-*"), *folder.glob(".*.tmp")):
        if path != best:
            shutil.rmtree(path, ignore_errors=True)


def newest(run: Path) -> Path:
    """The last checkpoint of a run folder; raises InputError when there is none."""
    found = steps(run / "checkpoints")
    if not found:
        raise InputError(f"{run}: no checkpoint to resume from in {run / 'checkpoints'}; start anew with --overwrite")
    return found[-1][1]


def read_state(path: Path) -> State:
    """The JSON part of a checkpoint."""
    state: State = json.loads((path / "state.json").read_text("utf-8"))
    return state


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights and optimizer moments back, bit for bit; raises InputError when they belong to another model."""
    load_weights(path, model)
    packed = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(path / "optimizer.safetensors").items():
        number, key = name.split(".", 1)
        moments.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**packed, "state": moments})


def load_weights(path: Path, model: nn.Module) -> None:
    """Puts trained weights back; raises InputError when names or shapes differ."""
    stored, own = load_file(path / "model.safetensors"), trained_weights(model)
    different = [n for n in {*stored, *own} if n not in stored or n not in own or stored[n].shape != own[n].shape]
    if different:
        raise InputError(f"{path}: weights of another model ({len(different)} differ, first '{min(different)}')")
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)


def other_data(run: Path, before: Mapping[str, object], now: Mapping[str, object]) -> InputError:
    """What to say when a run is resumed on other data; before, now: digests by task."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    problems = [f"the data of {', '.join(changed)} has another sha256"] if changed else []
    problems += [f"{name} is new" for name in now if name not in before]
    problems += [f"{name} is missing" for name in before if name not in now]
    return InputError(
        f"{run}: the data is not what this run was started with: {'; '.join(problems)}; put the files back, or begin "
        "another run"
    )


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the lines of a log that were written after a checkpoint."""
    if path.exists():
        lines = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
        path.write_text("".join(line + "\n" for line in kept), "utf-8")
