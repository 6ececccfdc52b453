"""Results files: what every one says of its run, and how it is written.

`write_results(Path("runs/a/results.json"), results)` writes the file whole or not at all.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multitask import files
from multitask.config.data import LANGUAGE, SourceConfig
from multitask.config.run import PretrainConfig, RunConfig
from multitask.data.sources import resolve
from multitask.data.synthetic.dataset import LANGUAGES
from multitask.device import gpu_name, peak_memory_bytes
from multitask.evaluation import metrics
from multitask.evaluation.schema import SCHEMA, Cost, Data, Hardware, Model, PlainText, Results, TaskScores
from multitask.models.cards import CardFacts, DataFacts, ScoreFacts, base_of
from multitask.task import Task

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


def card_facts(results: Results, name: str, tasks: Mapping[str, Task], config: RunConfig | PretrainConfig) -> CardFacts:
    """What a model card says of a run; name: of the model.

    Only names of files are given, without their folders.
    """
    name = re.sub(r"\.\d+\.tmp$", "", name)  # of a folder that is renamed when all of it is there
    sources = (
        {task: resolve(tasks[task], config.data) for task in results.tasks} if isinstance(config, RunConfig) else {}
    )
    data, scores = [], []
    for task, rows in results.data.items():
        train, own = rows.train, sources.get(task, [])
        files = [Path(file).name for file in (train or rows).files] or [s.hub for s in own if s.hub]
        num_rows = train.num_rows if train is not None else None
        data.append(DataFacts(task, tuple(dict.fromkeys(files)), num_rows, tuple(s.hub for s in own if s.hub)))
        scored = tuple(dict.fromkeys(Path(file).name for file in rows.files))
        found = results.tasks[task]
        scores += [
            ScoreFacts(
                task,
                metrics.shown(metric),
                score.value,
                score.low,
                score.high,
                rows.split,
                found.num_examples,
                scored,
                _best_baseline(found, metric),
            )
            for metric, score in found.metrics.items()
        ]
    return CardFacts(
        name,
        base_of(config.model.name),
        _languages(results, sources),
        None,
        tuple(data),
        tuple(scores),
        _training(results, config),
    )


def _best_baseline(scores: TaskScores, metric: str) -> str | None:
    found = {name: one[metric].value for name, one in scores.baselines.items() if metric in one}
    if not found:
        return None
    best = (max if metrics.build(metric, "en").higher_is_better else min)(found, key=lambda name: found[name])
    return f"{found[best]:.3f} ({best})"


def _languages(results: Results, sources: Mapping[str, list[SourceConfig]]) -> tuple[str, ...]:
    """Codes of two or three letters, as metadata of the hub has them."""
    named = {language for found in results.tasks.values() for language in found.by_language}
    for source in (source for found in sources.values() for source in found):
        named |= set(LANGUAGES) if source.synthetic is not None else {source.language or LANGUAGE}
    codes = {language.lower().split("-")[0] for language in named}
    return tuple(sorted(code for code in codes if re.fullmatch("[a-z]{2,3}", code)))


def _training(results: Results, config: RunConfig | PretrainConfig) -> tuple[tuple[str, str], ...]:
    cost, versions = results.cost, results.versions
    lines = []
    if cost.total_parameters and cost.trainable_parameters:
        trained = (
            "all trained"
            if cost.total_parameters == cost.trainable_parameters
            else (f"{cost.trainable_parameters:,} of them trained")
        )
        if isinstance(config, RunConfig) and config.adapter.kind == "lora":
            trained += f" (LoRA of rank {config.adapter.rank})"
        lines.append(("Parameters", f"{cost.total_parameters:,}, {trained}"))
    if cost.steps and cost.tokens:
        best = f", weights of step {cost.best_step:,}" if cost.best_step else ""
        lines.append(("Training", f"{cost.steps:,} steps, {cost.tokens:,} tokens, seed {results.seed}{best}"))
    packages = ", ".join(f"{name} {versions[name]}" for name in ("multitask", "transformers") if name in versions)
    return (*lines, ("Made with", packages))
