"""Settings for data files of one's own."""

from collections.abc import Iterable
from pathlib import Path

from multitask.api.arguments import listed
from multitask.config.loading import load, read_yaml
from multitask.config.run import RunConfig
from multitask.errors import InputError
from multitask.files import relative_if_near, write_text
from multitask.registry import choose, load_tasks

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
"""Of the rows, for validation and for test."""
FEW_ROWS = 2000


def init(
    files: str | Path | Iterable[str | Path],
    *,
    task: str | None = None,
    columns: str | Iterable[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    tasks_dirs: str | Path | Iterable[str | Path] = (),
) -> tuple[str, Path]:
    """Looks at data files and writes the settings that read them; returns the settings as text, and their file.

    Args:
        files: CSV, TSV, JSON, JSONL or Parquet files of one set of rows.
        task: a task's name; None: the one whose fields the columns have.
        columns: what is not to be guessed: `FIELD=NAME`.
        out: the settings file; None: the first file's name with `.yaml`, in the working folder.
        overwrite: replace it.
        tasks_dirs: folders with further task plugins.

    Raises:
        InputError: a file cannot be read, no task fits, a row cannot be used, or the settings file exists.
    """
    from multitask.data.inspection import inspect
    from multitask.data.settings_file import settings_text
    from multitask.training.checks import check_before_encoding

    paths = [Path(file).expanduser() for file in listed(files)]
    if not paths:
        raise InputError("no data file is named, expected at least one")
    target = Path(out) if out is not None else Path(paths[0].name.removesuffix(".gz")).with_suffix(".yaml")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists; replace it with --overwrite, or choose another --out")
    given: dict[str, str] = {}
    for one in listed(columns):
        name, sign, column = str(one).partition("=")
        if not sign or not name or not column:
            raise InputError(f"--column {one}: expected FIELD=NAME, for instance text=review")
        if given.setdefault(name, column) != column:
            raise InputError(f"--column {one}: '{name}' is column '{given[name]}' already; give it once")
    tasks = load_tasks(listed(tasks_dirs))
    found = inspect(paths, tasks, task, given)
    is_shipped = found.task.name in load_tasks()
    folders = [] if is_shipped else [relative_if_near(Path(folder), target.parent) for folder in listed(tasks_dirs)]
    aside = target.with_name(f".{target.name}.checked")
    sizes = {True: found.num_texts, False: found.num_rows} if found.repeated is not None else {False: found.num_rows}
    tries = [
        (by_column, share) for by_column, size in sizes.items() for share in (SHARES if size < FEW_ROWS else SHARES[:1])
    ]
    for by_column, share in tries:  # of few rows, or few texts that rows share, a small fraction may be none
        text = settings_text(found, share, folders, by_column).replace("THIS_FILE", str(target))
        try:
            write_text(aside, text)
            config = load(RunConfig, read_yaml(aside), where=str(target))
            check_before_encoding(config, choose(tasks, config.tasks))
            break
        except InputError:
            if (by_column, share) == tries[-1]:
                raise
        finally:
            aside.unlink(missing_ok=True)
    write_text(target, text)
    return text, target
