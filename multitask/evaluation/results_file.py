"""Results files: what every one says of its run, and how it is written.

`write_results(Path("runs/a/results.json"), results)` writes the file whole or not at all.
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multitask import files
from multitask.config.run import PretrainConfig, RunConfig
from multitask.device import gpu_name, peak_memory_bytes
from multitask.evaluation.schema import SCHEMA, Cost, Data, Hardware, Model, PlainText, Results, TaskScores

_PACKAGES = ("multitask", "torch", "transformers", "tokenizers", "peft", "datasets", "accelerate", "rouge_score")


def results_of(
    config: RunConfig | PretrainConfig,
    kind: str,
    arm: str,
    model_name: str,
    data: Mapping[str, Data],
    tasks: Mapping[str, TaskScores],
    **parts: Cost | PlainText,
) -> Results:
    """Scores with all that identifies them: settings, versions, commit, hardware, seed.

    parts: `cost` and `text`, where there are any.
    """
    return Results(
        schema=SCHEMA,
        kind=kind,
        arm=arm,
        model=Model(name=model_name),
        config=config.model_dump(mode="json"),
        versions=_versions(),
        commit=_commit(),
        hardware=Hardware(
            machine=platform.machine(),
            num_threads=torch.get_num_threads(),
            num_cpus=os.cpu_count(),
            gpu=gpu_name(config.device),
        ),
        seed=config.seed,
        data=dict(data),
        tasks=dict(tasks),
        **parts,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _commit() -> str | None:
    """The commit of a checkout, `-dirty` when files differ from it; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cost_of(model: Any, num_tokens: int, wall_s: float) -> Cost:
    """What scoring took."""
    parameters = list(model.parameters())
    return Cost(
        wall_s=round(wall_s, 1),
        tokens=num_tokens,
        tokens_per_s=round(num_tokens / wall_s, 1),
        peak_memory_bytes=peak_memory_bytes(parameters[0].device),
        trainable_parameters=0,
        total_parameters=sum(p.numel() for p in parameters),
    )


def write_results(path: Path, results: Results) -> None:
    """Writes a results file, whole or not at all; raises ValueError for a number that is not finite."""
    files.write_json(path, results.to_json())
