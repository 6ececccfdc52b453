"""A benchmark suite: every arm on the same rows; a stopped suite is resumed.

`configs/benchmark_demo.yaml` -> arms `trivial`, `prompted`, `single-nli seed 7`, ..., `multitask-lora seed 8`; each is
a results file or a run folder below `OUT/arms`, kept as long as its settings, its rows and the code stay the same.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from multitask import processes
from multitask.config.loading import load, merged, read_yaml
from multitask.config.run import BenchmarkConfig, RunConfig
from multitask.data.sources import has_split, provenance, resolve
from multitask.device import choose_device, reset_peak
from multitask.errors import InputError, Interrupted, suggest
from multitask.evaluation import baselines, fewshot, metrics, results_file
from multitask.events import Report, ignore
from multitask.files import in_any_form, shipped
from multitask.models.io import load_causal
from multitask.models.names import model_folder
from multitask.registry import fingerprint
from multitask.reports.report import report as write_report
from multitask.source_hash import source_hash
from multitask.task import Task
from multitask.training import finetune
from multitask.training.demo_model import demo_model

_CODE = {
    "trivial": "multitask.evaluation.baselines",
    "prompted": "multitask.evaluation.fewshot",
}
"""The module that makes an arm's scores; of all other arms the one that fine-tunes."""


@dataclass(frozen=True)
class ArmRun:
    """One thing to run: an arm with its settings, tasks and seed.

    name: `trivial`, `prompted`, `single-nli`, `multitask-lora`; with the seed, of tuned arms, the folder's name.
    """

    name: str
    kind: str
    config: RunConfig
    tasks: tuple[str, ...]
    seed: int | None

    @property
    def folder(self) -> str:
        """Name of its folder below `OUT/arms`."""
        return self.name if self.seed is None else f"{self.name}-seed-{self.seed}"


class DoneArm(TypedDict):
    """An arm that was run, or kept from before."""

    arm: str
    folder: str
    kept: bool
    elapsed_s: float


def plan(suite: BenchmarkConfig, tasks: Sequence[str], where: str) -> list[ArmRun]:
    """All arms of a suite, cheap ones first; raises InputError for settings that cannot be used."""
    if suite.base is None and "prompted" in suite.arms:
        raise InputError(f"{where}: arm 'prompted' needs a model to prompt; set base, or leave the arm out")
    planned = []
    for kind in ("trivial", "prompted", "multitask", "multitask-lora", "single", "single-lora"):
        if kind not in suite.arms:
            continue
        overlays = [overlay for name, overlay in (("single", suite.single), ("lora", suite.lora)) if name in kind]
        adapter = {"adapter": {"kind": "lora"}} if kind.endswith("lora") else {}
        for seed in suite.seeds if kind not in ("trivial", "prompted") else [None]:
            for own in [[task] for task in tasks] if kind.startswith("single") else [list(tasks)]:
                settings = merged(suite.run, adapter, *overlays, {"tasks": own})
                settings = settings if seed is None else settings | {"seed": seed}
                name = kind if not kind.startswith("single") else kind.replace("single", f"single-{own[0]}", 1)
                planned.append(
                    ArmRun(name, kind, load(RunConfig, settings, where=f"{where}: {name}"), tuple(own), seed)
                )
    return planned


def benchmark(
    suite: BenchmarkConfig,
    tasks: Mapping[str, Task],
    out: Path,
    where: str,
    only: Sequence[str] | None = None,
    report: Report = ignore,
) -> list[DoneArm]:
    """Runs what is missing; returns, for each arm, its name, folder, whether it was kept, and seconds.

    only: names of arms (`prompted`, `single`, `single-nli`, `multitask-seed-7`); None: all. Raises InputError for a
    name that no arm has. Ctrl-C stops after the arm's checkpoint; the same command resumes.
    """
    arms = chosen(plan(suite, list(tasks), where), only)
    base = _base(suite, report) if any(arm.kind != "trivial" for arm in arms) else None
    done: list[DoneArm] = []
    for number, arm in enumerate(arms, 1):
        folder, own = out / "arms" / arm.folder, {name: tasks[name] for name in arm.tasks}
        state = _state(arm, own, base if arm.kind != "trivial" else None, out)
        kept = state == "whole"
        report({"event": "arm", "arm": arm.folder, "number": number, "of": len(arms), "kept": kept})
        started = time.perf_counter()
        reset_peak(choose_device(arm.config.device))
        if not kept:
            _run(arm, own, base, folder, state == "stopped", report)
        done.append(
            {"arm": arm.folder, "folder": str(folder), "kept": kept, "elapsed_s": time.perf_counter() - started}
        )
    return done


_State = Literal["whole", "stopped", "none"]


def _state(arm: ArmRun, tasks: Mapping[str, Task], base: str | None, out: Path) -> _State:
    """What is there of an arm, as the main process sees it; what other settings, rows or code made is removed."""

    def look() -> _State:
        folder, stamp, key = out / "arms" / arm.folder, out / "keys" / arm.folder, _key(arm, tasks, base)
        if not stamp.exists() or stamp.read_text("utf-8") != key:
            shutil.rmtree(folder, ignore_errors=True)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(key, "utf-8")
        if (folder / "results.json").exists():
            return "whole"
        return "stopped" if any((folder / "checkpoints").glob("step-*")) else "none"

    return processes.by_main(look)


def chosen(arms: Sequence[ArmRun], only: Sequence[str] | None) -> list[ArmRun]:
    """The arms of these names; raises InputError for a name that none has."""
    if only is None:
        return list(arms)
    names = {name for arm in arms for name in (arm.name, arm.kind, arm.folder)}
    for name in only:
        if name not in names:
            raise InputError(f"--arms: no arm '{name}' in this suite; {suggest(name, sorted(names))}")
    return [arm for arm in arms if {arm.name, arm.kind, arm.folder} & set(only)]


def _base(suite: BenchmarkConfig, report: Report) -> str | None:
    """The base as a name that loads: a recipe is trained if it has not been."""
    if suite.base is not None and (shipped("configs") / f"{suite.base}.yaml").exists():
        return str(demo_model(suite.base, report))
    if suite.base is not None:
        model_folder(suite.base)
    return suite.base


def _key(arm: ArmRun, tasks: Mapping[str, Task], base: str | None) -> str:
    """A hash of all that decides an arm's scores: settings, rows, plugins, the base and the code."""
    rows = [
        provenance(source, split, arm.config.data)
        for name in arm.tasks
        for source in resolve(tasks[name], arm.config.data)
        for split in ("train", "validation", "test")
        if has_split(source, split)
    ]
    parts = [
        arm.name,
        arm.config.model_dump_json(exclude={"data": {"cache"}, "tasks_dirs": True}),
        json.dumps(rows, sort_keys=True),
        *(fingerprint(tasks[name]) for name in arm.tasks),
        *(metrics.source(metric) for name in arm.tasks for metric in tasks[name].metrics),
        _content(base),
        source_hash(_CODE.get(arm.kind, "multitask.training.finetune")),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _content(base: str | None) -> str:
    """The base's name, and of a folder a hash of its weights."""
    weights = Path(model_folder(base) or "", "model.safetensors")
    if base is None or not weights.exists():
        return str(base)
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trivial(arm: ArmRun, tasks: Mapping[str, Task], folder: Path) -> None:
    data, scores = baselines.trivial(tasks, arm.config)
    results = results_file.results_of(arm.config, "baseline", "trivial", "none", data, scores)
    results_file.write_results(folder / "results.json", results)


def _run(arm: ArmRun, tasks: Mapping[str, Task], base: str | None, folder: Path, resumes: bool, report: Report) -> None:
    """Scores one arm into its folder."""
    folder.parent.mkdir(exist_ok=True)
    if arm.kind == "trivial":
        processes.by_main(lambda: _trivial(arm, tasks, folder))
    elif arm.kind == "prompted":
        assert base is not None
        model, tokenizer = load_causal(base, arm.config.model.revision)
        model.to(choose_device(arm.config.device))
        fewshot.fewshot(model, tokenizer, base, tasks, arm.config, folder / "results.json", report)
    else:
        config = arm.config
        if base is not None:
            config = config.model_copy(update={"model": config.model.model_copy(update={"name": base})})
        finetune.train(config, tasks, folder, overwrite=not resumes, resume=resumes, report=report, arm=arm.name)


def read_suite(name: str | Path, flags: Iterable[str]) -> tuple[BenchmarkConfig, Path]:
    """A suite from a YAML file, or from a shipped one by its name; and that file."""
    path = in_any_form(Path(name))
    inside = shipped("configs") / f"{path.stem}.yaml"
    path = inside if not path.exists() and inside.exists() else path
    given, flags = read_yaml(path), list(flags)
    of_runs = [flag.removeprefix("run.") for flag in flags if flag.startswith("run.")]
    inner = given.get("run")
    if isinstance(inner, dict):  # checked here with its flags, to tell a wrong flag from a wrong file
        try:
            load(RunConfig, inner, of_runs, f"{path}: run")
        except InputError as error:
            raise InputError(str(error).replace("--set ", "--set run.")) from None
    return load(BenchmarkConfig, given, flags, str(path)), path


def benchmark_and_report(
    suite: BenchmarkConfig,
    tasks: Mapping[str, Task],
    folder: Path,
    where: str,
    only: Sequence[str] | None,
    report: Report,
) -> list[DoneArm]:
    """Runs what is missing, then writes the report; raises Interrupted with the suite's folder."""
    try:
        done = benchmark(suite, tasks, folder, where, only, report)
    except Interrupted:
        raise Interrupted(str(folder)) from None
    if processes.is_main():
        write_report([folder], folder, language=suite.report.language)
    return done
