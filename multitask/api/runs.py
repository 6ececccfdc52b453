"""The commands from Python: settings in, results out.

`train(tasks="summ,qa", epochs=1, out="runs/first").tasks["qa"].metrics["f1"].value`
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitask.api.arguments import listed, names, setting_flags
from multitask.api.hub import check_push, push
from multitask.api.progress import Show, showing
from multitask.api.results import RunResults
from multitask.config.loading import load, merged, read_yaml
from multitask.config.model import ModelConfig
from multitask.config.resolve import (
    Settings,
    check_unchanged,
    chosen_tasks,
    pretrain_settings,
    resumed_folder,
    settings_of,
)
from multitask.config.run import Language, PretrainConfig, RunConfig
from multitask.errors import InputError
from multitask.events import Json
from multitask.files import shipped
from multitask.models.names import checked_name, model_folder, run_of
from multitask.registry import choose, load_tasks

if TYPE_CHECKING:
    from multitask.api.previews import ShownPreview


def train(
    settings: Settings = None,
    *,
    tasks: str | Iterable[str] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    flags: str | Iterable[str] = (),
    push_to_hub: str | None = None,
    private: bool | None = None,
    report: Show = None,
    **options: Any,
) -> RunResults:
    """Trains one model on several tasks; returns what `results.json` of the run folder holds.

    Args:
        settings: a `RunConfig`, a mapping, a YAML file (or the name of a shipped one); None: the default, `demo.yaml`.
        tasks: task names, a list or one text; None: those of the settings.
        out: run folder; None: `runs/<tasks>-<date>-<time>`.
        resume: a run folder to continue, with its own settings; or one of its checkpoints, `RUN/checkpoints/step-200`,
            to continue from there.
        overwrite: replace a run that `out` holds.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `train.learning_rate=3e-4`.
        push_to_hub: name of the repository that the finished model is uploaded to, as in `push`; None: none.
        private: as in `push`.
        report: None: a progress bar on a terminal and in a notebook; True or False: always or never; or a function,
            called with progress events.
        options: settings of `train` by name, `epochs=1, learning_rate=3e-4`; `model`, `tokenizer`, `adapter`, `limit`,
            `device`, `seed`; others with their section, `model__n_layer=2`.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    if resume is not None:
        out = resumed_folder(resume, out, overwrite)
        settings = settings if settings is not None else out / "config.yaml"
    flags = [*setting_flags(RunConfig, "train", options), *listed(flags)]
    config, chosen = chosen_tasks(settings, flags, names(tasks), listed(tasks_dirs))
    if out is not None and resume is not None:
        check_unchanged(settings_of(Path(out) / "config.yaml"), config, Path(out))
    _check_names(config.model)
    if push_to_hub is not None:
        check_push(push_to_hub)
    folder = Path(out) if out is not None else Path("runs") / f"{'-'.join(chosen)}-{time.strftime('%Y%m%d-%H%M%S')}"
    from multitask.training.finetune import (
        train as run,  # heavy: after everything that can be wrong with names and settings
    )

    resumes = _resumed(resume, folder)
    with showing(report) as told:
        results = run(config, chosen, folder, overwrite=overwrite, resume=resumes, report=told)
        if push_to_hub is not None and results is not None:
            pushed = push(folder, push_to_hub, private=private)
            told({"event": "note", "text": f"uploaded to {pushed['url']}"})
    return RunResults(results.to_json() if results is not None else {})


def _resumed(resume: str | Path | None, run: Path) -> bool | Path:
    """Whether a run is resumed; a path: from which checkpoint."""
    return resume is not None and (Path(resume) == run or Path(resume))


def pretrain(
    settings: Settings = None,
    *,
    files: str | Path | Iterable[str | Path] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    find_learning_rate: bool = False,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    flags: str | Iterable[str] = (),
    report: Show = None,
    **options: Any,
) -> RunResults | Json:
    """Trains a model on a plain text corpus; returns what `results.json` of the run folder holds.

    Args:
        settings: a `PretrainConfig`, a mapping, a YAML file (or the name of a shipped one); None: `pretrain.yaml`.
        files: the text, in place of that of the settings.
        out: run folder; None: `runs/pretrain-<date>-<time>`.
        resume: a run folder to continue, with its own settings; or one of its checkpoints, `RUN/checkpoints/step-200`,
            to continue from there.
        overwrite: replace a run that `out` holds.
        find_learning_rate: instead of training, try learning rates; returns `suggested` and the curve.
        tasks_dirs: folders with further task plugins, whose tokens a tokenizer trained here gets.
        flags: settings by dotted name, `model.shape=mini`.
        report: None: a progress bar on a terminal and in a notebook; True or False: always or never; or a function,
            called with progress events.
        options: settings as in `train`, `epochs=1`.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    if resume is not None:
        out = resumed_folder(resume, out, overwrite)
        settings = settings if settings is not None else out / "config.yaml"
    flags = [*setting_flags(PretrainConfig, "pretrain", options), *listed(flags)]
    config = pretrain_settings(settings, listed(files), flags)
    if resume is not None:
        path = Path(out or resume) / "config.yaml"
        check_unchanged(load(PretrainConfig, read_yaml(path), where=str(path)), config, path.parent)
    _check_names(config.model)
    found = load_tasks(listed(tasks_dirs))
    wanted = config.tokenizer.tasks if resume is None else "none"  # the tokenizer is there
    tasks = found if wanted == "all" else {} if wanted == "none" else choose(found, wanted)
    folder = Path(out) if out is not None else Path("runs") / f"pretrain-{time.strftime('%Y%m%d-%H%M%S')}"
    from multitask.training import lr_finder
    from multitask.training import pretrain as runner

    if find_learning_rate:
        if resume is not None or overwrite:
            raise InputError("--find-lr trains nothing: leave out --resume and --overwrite, and name a new --out")
        with showing(report) as told:
            return lr_finder.find_learning_rate(config, tasks, folder, told)
    resumes = _resumed(resume, folder)
    with showing(report) as told:
        results = runner.pretrain(config, tasks, folder, overwrite=overwrite, resume=resumes, report=told)
    return RunResults(results.to_json() if results is not None else {})


def evaluate(
    model: str | Path,
    settings: Settings = None,
    *,
    tasks: str | Iterable[str] | None = None,
    out: str | Path | None = None,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    flags: str | Iterable[str] = (),
    report: Show = None,
) -> RunResults:
    """Scores a model folder or run on its tasks' rows; returns what the results file holds.

    Args:
        model: a run folder, or a model folder that a run wrote.
        settings: as in `train`; None: the run's own, or else `demo.yaml`.
        tasks: task names, a list or one text; None: those of the settings.
        out: results file; predictions go to `<out>.predictions/`. None: nothing is written.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `eval.max_rows=100`.
        report: None: a progress bar on a terminal and in a notebook; True or False: always or never; or a function,
            called with progress events.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    model_folder(str(model))
    path = Path(model).expanduser()
    home = run_of(path)
    if settings is None and home is not None:
        settings = home / "config.yaml"
    config, chosen = chosen_tasks(settings, listed(flags), names(tasks), listed(tasks_dirs), home)
    from multitask import processes
    from multitask.device import choose_device
    from multitask.evaluation.tuned import evaluate as run
    from multitask.models.io import load_trained

    kept = (home or path) / "baselines"
    into = Path(out) if out is not None else None
    device = choose_device(config.device)
    with processes.together(device), showing(report) as told:
        loaded, tokenizer = load_trained(path)
        results = run(loaded.to(device), tokenizer, str(model), chosen, config, into, told, kept)
    return RunResults(results.to_json() if results is not None else {})


def evaluate_text(
    model: str | Path,
    text: str | Path,
    window: int | None = None,
    stride: int | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    batch_tokens: int = 8192,
) -> RunResults:
    """Sliding-window perplexity of a plain text; returns `{"text": {...}}` with what it was measured with.

    Args:
        model: a run or model folder, or the hub name of any causal language model.
        text: a UTF-8 file.
        window: tokens that the model sees at a time; None: as many as it has positions.
        stride: tokens between two windows; None: the window, no overlap.
        out: results file. None: nothing is written.
        device: auto, cpu, cuda or mps.
        batch_tokens: tokens of one forward pass.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    model_folder(str(model))
    from multitask.device import choose_device
    from multitask.evaluation.tuned import evaluate_text as run
    from multitask.models.io import load_causal

    config = load(RunConfig, {"device": device})
    loaded, tokenizer = load_causal(str(model))
    loaded.to(choose_device(config.device))
    into = Path(out) if out is not None else None
    with showing(None):
        found = run(loaded, tokenizer, str(model), Path(text), config, window, stride, batch_tokens, into)
    return RunResults(found.to_json())


def fewshot(
    model: str | Path | None = None,
    settings: Settings = None,
    *,
    tasks: str | Iterable[str] | None = None,
    out: str | Path | None = None,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    flags: str | Iterable[str] = (),
    report: Show = None,
) -> RunResults:
    """Prompts a model with solved examples, without training it; returns what the results file holds.

    Args:
        model: a hub name or folder of any causal language model; None: the settings' `model.name`, or else the
            demo model, which is trained first (minutes) and kept.
        settings: as in `train`; None: `configs/fewshot.yaml`, fewer rows of the synthetic dataset.
        tasks: task names, a list or one text; None: those of the settings.
        out: results file; predictions go to `<out>.predictions/`. None: nothing is written.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `fewshot.shots=[0,4]`.
        report: None: a progress bar on a terminal and in a notebook; True or False: always or never; or a function,
            called with progress events.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    if settings is None:
        settings = shipped("configs") / "fewshot.yaml"
    config, chosen = chosen_tasks(settings, listed(flags), names(tasks), listed(tasks_dirs))
    if named := model or config.model.name:
        model_folder(str(named))
    from multitask import processes
    from multitask.device import choose_device
    from multitask.evaluation.fewshot import fewshot as run
    from multitask.models.io import load_causal
    from multitask.training.demo_model import demo_model

    into = Path(out) if out is not None else None
    device = choose_device(config.device)
    with processes.together(device), showing(report) as told:
        name = str(model or config.model.name or demo_model(report=told))
        loaded, tokenizer = load_causal(name, config.model.revision)
        found = run(loaded.to(device), tokenizer, name, chosen, config, into, told)
    return RunResults(found.to_json() if found is not None else {})


def benchmark(
    settings: str | Path,
    *,
    out: str | Path | None = None,
    arms: str | Iterable[str] | None = None,
    dry_run: bool = False,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    flags: str | Iterable[str] = (),
    report: Show = None,
) -> Json:
    """Runs the arms of a suite that are missing, then its report; returns `{"arms": [...], "report": folder}`.

    Args:
        settings: a YAML file (or the name of a shipped one), read as `BenchmarkConfig`.
        out: folder of the suite; None: `runs/<name of the file>`, so that the same command continues it.
        arms: names of arms; None: all.
        dry_run: run nothing; each arm has `tokens` and `seconds`, an estimate.
        tasks_dirs: folders with further task plugins.
        flags: settings by dotted name, `run.train.epochs=2`.
        report: None: a progress bar on a terminal and in a notebook; True or False: always or never; or a function,
            called with progress events.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    from multitask import processes
    from multitask.device import choose_device
    from multitask.reports import benchmark as runner
    from multitask.reports import benchmark_estimate

    suite, path = runner.read_suite(settings, listed(flags))
    folders = [str(folder) for folder in listed(tasks_dirs)]
    given = merged(suite.run, {"tasks_dirs": folders} if folders else {})
    config, chosen = chosen_tasks(load(RunConfig, given, where=f"{path}: run"), [], None, [])
    suite = suite.model_copy(update={"run": {**suite.run, "tasks_dirs": config.tasks_dirs}})
    only = names(arms)
    if dry_run:
        return {"arms": list(benchmark_estimate.dry_run(suite, chosen, str(path), only))}
    folder = Path(out) if out is not None else Path("runs") / path.stem
    with processes.together(choose_device(config.device)), showing(report) as told:
        done = runner.benchmark_and_report(suite, chosen, folder, str(path), only, told)
    return {"arms": done, "report": str(folder / "report.html")}


def report(
    runs: str | Path | Iterable[str | Path], out: str | Path, against: str | None = None, language: Language = "en"
) -> Json:
    """Writes `report.md`, `report.json`, `report.html` of run folders, results files, suites; returns the numbers.

    against: the arm that all others are tested against; None: the one scored on most tasks. language: `en` or `ko`.
    Raises InputError for files that are no results, or that cannot be compared.
    """
    from multitask.reports.report import report as write

    with showing(False):
        return write([Path(run) for run in listed(runs)], Path(out), against, language)


def preview(
    settings: Settings = None,
    *,
    tasks: str | Iterable[str] | None = None,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    flags: str | Iterable[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> "ShownPreview":
    """What `train` with the same arguments would see; raises InputError as it would.

    out, overwrite: the run folder that is checked; nothing is written into it.

    The result prints as the command shows it (`print(found)`, or `found.text(num_rows=10)`), and has what it prints:
    `found.rows()`, `found.to_frame()`, `found.rates`, `found.examples`, `found.estimate`.
    """
    flags = [*setting_flags(RunConfig, "preview", options), *listed(flags)]
    config, chosen = chosen_tasks(settings, flags, names(tasks), listed(tasks_dirs))
    _check_names(config.model)
    from multitask.api.previews import ShownPreview
    from multitask.training.preview import preview as run

    with showing(False):
        return ShownPreview.of(run(config, chosen, Path(out) if out is not None else None, overwrite))


def _check_names(config: ModelConfig) -> None:
    """Raises InputError for a model or tokenizer that cannot be loaded, before anything heavy is imported."""
    if config.name is not None:
        model_folder(config.name)
    if config.tokenizer is not None:
        checked_name(config.tokenizer)
