"""Results files: what every one says of itself, and how it is written."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multitask.config.run import PretrainConfig, RunConfig
from multitask.device import peak_memory_bytes

SCHEMA = 1


def envelope(config: RunConfig | PretrainConfig, kind: str, arm: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """What every results file says of itself: schema, settings, versions, hardware."""
    packages = ("multitask", "torch", "transformers", "tokenizers", "peft", "datasets", "accelerate", "rouge_score")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "schema": SCHEMA,
        "kind": kind,
        "arm": arm,
        "model": dict(model),
        "config": config.model_dump(mode="json"),
        "versions": versions,
        "commit": _commit(),
        "hardware": {"machine": platform.machine(), "num_threads": torch.get_num_threads(), "num_cpus": os.cpu_count()},
        "seed": config.seed,
    }


def _commit() -> str | None:
    """The commit of a checkout, `-dirty` when files differ from it; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes a results file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    os.replace(aside, path)


def cost_of(model: Any, num_tokens: int, wall_s: float) -> dict[str, Any]:
    """What scoring took."""
    parameters = list(model.parameters())
    return {
        "wall_s": round(wall_s, 1),
        "tokens": num_tokens,
        "tokens_per_s": round(num_tokens / wall_s, 1),
        "peak_memory_bytes": peak_memory_bytes(parameters[0].device),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
    }
