"""From whatever settings were given as to checked ones and the tasks they name; what a resumed run may change."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitask.config.data import TextConfig
from multitask.config.loading import load, read_yaml
from multitask.config.run import PretrainConfig, RunConfig
from multitask.errors import InputError, suggest
from multitask.events import Json
from multitask.files import in_any_form, relative_if_near, shipped
from multitask.registry import PluginFolders, choose, kept_folders, load_tasks
from multitask.task import Task

if TYPE_CHECKING:
    pass


_DOCUMENTS = {"train": 10_000, "validation": 1_000}  # synthetic ones, for a tokenizer
Settings = RunConfig | PretrainConfig | Mapping[str, Any] | str | Path | None


_FREE_IN_TRAIN = {
    "epochs",
    "max_steps",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "log_every_steps",
    "eval_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "patience",
    "tracker",
    "eval_max_blocks",
}
"""Settings below `train` that a resumed run may change."""


def settings_of(settings: Settings, flags: Iterable[str] = (), tasks: Iterable[str] | None = None) -> RunConfig:
    """A `RunConfig` from one, from a mapping, from a YAML file, or the default, `demo.yaml`."""
    given, where = given_settings(settings, "demo")
    if tasks is not None:
        given["tasks"] = list(tasks)
    return load(RunConfig, given, list(flags), where)


def given_settings(settings: Settings, default: str) -> tuple[Json, str]:
    """Settings as a mapping, from whatever they were given as, and what to call them; None: a shipped file."""
    if settings is None:
        settings = shipped("configs") / f"{default}.yaml"
    if isinstance(settings, str | Path):
        path, inside = in_any_form(Path(settings)), shipped("configs") / f"{Path(settings).stem}.yaml"
        given = read_yaml(inside if not path.exists() and inside.exists() else path)
        _check_kind(given, default, str(settings))
        return given, str(settings)
    return dict(settings if isinstance(settings, Mapping) else settings.model_dump()), "settings"


def _check_kind(given: Mapping[str, Any], default: str, where: str) -> None:
    """Raises InputError for settings of another kind of run."""
    if default == "pretrain" and "text" not in given and "tasks" in given:
        raise InputError(f"{where}: settings of `train`; for a plain text corpus a section `text` was expected")
    if default != "pretrain" and "text" in given and "tasks" not in given:
        raise InputError(
            f"{where}: settings of `pretrain`, of a model of plain text that knows no tasks; score it with "
            "`evaluate RUN --text FILE`, tune it with `train --model RUN`, resume it with `pretrain --resume RUN`"
        )


def chosen_tasks(
    settings: Settings,
    flags: Iterable[str],
    tasks: Iterable[str] | None,
    tasks_dirs: Iterable[str | Path],
    run: Path | None = None,
) -> tuple[RunConfig, dict[str, Task]]:
    """Settings and the tasks that they name; raises InputError for a name that no task has.

    tasks_dirs: folders of plugins, in place of those of the settings. run: a run folder, whose folders are taken where
    neither names any.
    """
    config = settings_of(settings, flags, tasks)
    folders = PluginFolders([str(folder) for folder in tasks_dirs], [], "")
    if not folders.found and isinstance(settings, str | Path) and config.tasks_dirs:
        folders = kept_folders(config.tasks_dirs, Path(settings))
    elif not folders.found and config.tasks_dirs:
        folders = PluginFolders(config.tasks_dirs, [], "")
    elif not folders.found and run is not None:
        folders = folders_of_run(run)
    found = load_tasks(folders.found)
    folders.check(config.tasks, found)
    kept = [relative_if_near(Path(folder), Path.cwd()) for folder in folders.found]
    return config.model_copy(update={"tasks_dirs": kept}), tasks_of(config, found)


def tasks_of(config: RunConfig, found: dict[str, Task]) -> dict[str, Task]:
    """The tasks of a run, out of all tasks, with their further metrics; raises InputError for a name that none has."""
    sections = (
        ("data.sources", config.data.sources),
        ("fewshot.prompts", config.fewshot.prompts),
        ("eval.metrics", config.eval.metrics),
    )
    for section, names in sections:
        for name in names:
            if name not in found:
                raise InputError(f"{section}: unknown task '{name}'; {suggest(name, found)}")
    further = config.eval.metrics
    return {
        name: replace(task, metrics=tuple(dict.fromkeys([*task.metrics, *further.get(name, ())])))
        for name, task in choose(found, config.tasks).items()
    }


def folders_of_run(run: Path) -> PluginFolders:
    """The folders of plugins that a run was trained with."""
    kept = read_yaml(run / "config.yaml").get("tasks_dirs") or []
    return kept_folders(map(str, kept) if isinstance(kept, list) else [], run / "config.yaml")


def check_unchanged(begun: RunConfig | PretrainConfig, config: RunConfig | PretrainConfig, run: Path) -> None:
    """Raises InputError when a setting that decides weights or rows differs from those a run was begun with."""
    before, after = begun.model_dump(), config.model_dump()
    for name, unset in (("precision", "auto"), ("learning_rate", None)):  # chosen when the run was begun
        if after["train"][name] == unset:
            after["train"][name] = before["train"][name]
    parts = {"train": _FREE_IN_TRAIN, "": {"device", "eval", "tasks_dirs", "train", "sample_prompt", "sample_tokens"}}
    differing = [
        f"{part}.{name}".lstrip(".")
        for part, free in parts.items()
        for name in (before[part] if part else before)
        if name not in free and (before[part] if part else before)[name] != (after[part] if part else after)[name]
    ]
    if differing:
        free = [
            f"{name}.*" if name == "eval" else name
            for name in ("device", "eval", "tasks_dirs", "sample_prompt", "sample_tokens")
        ]
        free = [name for name in free if name.rstrip(".*") in before]
        free += [f"train.{name}" for name in sorted(_FREE_IN_TRAIN) if name in before["train"]]
        raise InputError(
            f"--resume {run}: {', '.join(differing)} cannot change in a run that was begun; keep it, or begin "
            f"another run; what may change: {', '.join(free)}"
        )


def resumed_folder(resume: str | Path, out: str | Path | None, overwrite: bool) -> Path:
    """The folder of a run to resume, named itself or by a checkpoint below it, `RUN/checkpoints/step-200`.

    Raises InputError for arguments that contradict one another.
    """
    if overwrite:
        raise InputError("--resume continues a run, --overwrite replaces it; give one of the two")
    run = in_any_form(Path(resume))
    if run.parent.name == "checkpoints":
        run = run.parent.parent
    if out is not None and in_any_form(Path(out)) != run:
        raise InputError(f"--resume {resume} continues in that folder, --out {out} names another; leave out --out")
    if not (run / "config.yaml").exists():
        raise InputError(f"{run}: not a run folder (no config.yaml); name the folder that train or pretrain wrote")
    return run


def trained_block_size(model: Path) -> int | None:
    """The window that a run was trained with, if the model is one's: its prompts are truncated as for scoring."""
    model = in_any_form(model)
    homes = [folder / "config.yaml" for folder in (model, model.parent) if (folder / "config.yaml").exists()]
    trained = read_yaml(homes[0]).get("train") if homes else None
    return (trained.get("block_size") or trained.get("batch_tokens")) if isinstance(trained, dict) else None


def text_settings(files: Iterable[str | Path], held_out: str | Path | None, further: Mapping[str, Any]) -> TextConfig:
    """The texts that a tokenizer is trained and measured on; without files, the synthetic documents."""
    train, validation = [str(file) for file in files], [] if held_out is None else [str(held_out)]
    origin: dict[str, object] = {"synthetic": _DOCUMENTS}
    if train:
        origin = {"files": {"train": train, **({"validation": validation} if validation else {})}}
    elif held_out is not None:
        raise InputError(f"--held-out {held_out}: name the files that the tokenizer is trained on, too")
    if all(Path(name).exists() for name in train + validation):  # rather than below MULTITASK_DATA
        origin["root"] = "."
    return load(TextConfig, {**origin, **further}, where="text")


def pretrain_settings(settings: Settings, files: Iterable[str | Path], flags: Iterable[str]) -> PretrainConfig:
    """A `PretrainConfig` from whatever was given; files: the text, in place of that of the settings."""
    given, where = given_settings(settings, "pretrain")
    if names := [str(name) for name in files]:
        kept = {k: v for k, v in dict(given.get("text") or {}).items() if k not in ("files", "synthetic")}
        given["text"] = {"root": str(Path.cwd()), **kept, "files": {"train": names}}
        if settings is None:  # that of the shipped file is made for the synthetic dataset
            given.pop("tokenizer", None)
    return load(PretrainConfig, given, list(flags), where)
