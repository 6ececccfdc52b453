"""Checkpoints that survive a kill: written aside, flushed to disk, renamed. Tensors in safetensors, the rest in JSON.

`checkpoints/step-200/` holds `model.safetensors` (the weights that train), `optimizer.safetensors` and `state.json`. No
random state is stored: everything random is a function of (seed, step). `checkpoints/best-150/` holds the weights that
did best in validation.
"""

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multitask import damage
from multitask.errors import InputError, suggest
from multitask.files import replacing, write_text

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


_KINDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "cursor": list,
    "num_tokens": int,
    "elapsed_s": (int, float),
    "best": (dict, type(None)),
    "num_worse": int,
    "sums": list,
    "scaler": (dict, type(None)),
    "num_threads": int,
    "precision": str,
}
"""Of the keys of a `State`; `data` may be missing."""


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
    """Removes all but the newest `keep` checkpoints, best weights that none of them names, and unfinished files.

    best: the folder of the best weights now.
    """
    found = steps(folder)
    for _, path in found[:-keep]:
        _remove(path)
    kept = {best, *(named for _, path in found[-keep:] if (named := _best_of(path)) is not None)}
    for path in (*folder.glob("best-*"), *folder.glob(".*.tmp")):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _best_of(path: Path) -> Path | None:
    """The folder of the best weights that a checkpoint names."""
    try:
        return path.with_name(f"best-{read_state(path)['best']['step']}")  # type: ignore[index]  # None: caught
    except (OSError, ValueError, LookupError, TypeError):
        return None


def remove_after(path: Path) -> list[str]:
    """Removes the checkpoints that are newer than `path`, whose run continues from it; returns their names."""
    newer = [other for step, other in steps(path.parent) if step > step_of(path)]
    for other in newer:
        _remove(other)
    return [other.name for other in newer]


def _remove(path: Path) -> None:
    """Removes a checkpoint; it loses its name first, so that a killed process never leaves a part of one."""
    aside = path.with_name(f".{path.name}.removed.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder; raises InputError for a folder of another name."""
    if (found := _NAME.fullmatch(path.name)) is None:
        raise InputError(f"{path}: not a checkpoint; expected a folder such as checkpoints/step-200")
    return int(found[1])


def newest(run: Path) -> Path:
    """The last checkpoint of a run folder; raises InputError when there is none, or when it is damaged.

    Another checkpoint is never taken without a word: the message names the newest whole one and how to resume from it.
    """
    found = [path for _, path in steps(run / "checkpoints")]
    if not found:
        raise InputError(f"{run}: no checkpoint to resume from in {run / 'checkpoints'}; start anew with --overwrite")
    problem = _damage(found[-1])
    if problem is None:
        return found[-1]
    whole = next((path for path in reversed(found[:-1]) if _damage(path) is None), None)
    remedy = "no older one is whole: start anew with --overwrite"
    if whole is not None:
        remedy = f"an older one is whole: resume from it with --resume {shlex.quote(str(whole))}"
    raise InputError(f"{problem}: the newest checkpoint is damaged; {remedy}")


def check(path: Path) -> None:
    """Raises InputError for a checkpoint that cannot be read."""
    step_of(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint; {suggest(path.name, [p.name for _, p in steps(path.parent)])}")
    if problem := _damage(path):
        raise InputError(f"{problem}: this checkpoint is damaged; name another one below {path.parent}")


def _damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or with the best weights that it names; None: it is whole."""
    if (problem := damage.text(path / "state.json")) is not None:
        return f"{path / 'state.json'}: {problem}"
    state = json.loads((path / "state.json").read_bytes())
    if not _is_state(state):
        return f"{path / 'state.json'}: damaged: it does not say where the run was"
    tensors = [path / "model.safetensors", path / "optimizer.safetensors"]
    if isinstance(best := state["best"], dict):
        tensors.append(path.with_name(f"best-{best.get('step')}") / "model.safetensors")
    return next((f"{file}: {problem}" for file in tensors if (problem := damage.tensors(file))), None)


def _is_state(found: Any) -> bool:
    """Whether a JSON value is a `State`."""
    if not isinstance(found, dict) or not found.keys() >= _KINDS.keys():
        return False
    if not all(isinstance(found[key], kinds) for key, kinds in _KINDS.items()):
        return False
    best = found["best"]
    is_best = best is None or (type(best.get("step")) is int and isinstance(best.get("selection_score"), int | float))
    sums = [number for pair in found["sums"] for number in (pair if isinstance(pair, list) and len(pair) == 2 else ())]
    numbers = [*found["cursor"], *sums]
    return is_best and len(sums) == 2 * len(found["sums"]) and all(isinstance(n, int | float) for n in numbers)


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
    """Puts trained weights back; raises InputError when they are damaged, or when names or shapes differ."""
    if problem := damage.tensors(path / "model.safetensors"):
        raise InputError(f"{path / 'model.safetensors'}: {problem}; start anew with --overwrite")
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
    """Removes the lines of a log that were written after a checkpoint, and what a killed process left of a line."""
    if path.exists():
        lines = path.read_text("utf-8", errors="replace").splitlines()
        write_text(path, "".join(line + "\n" for line in lines if _step_in(line, step + 1) <= step))


def _step_in(line: str, otherwise: int) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except (ValueError, AttributeError, TypeError):
        return otherwise
