"""Finding task plugins: every `TASK` of a folder of modules, of `--tasks-dir` folders and of installed packages.

`load_tasks()["nli"].stream` -> `"{premise}<|sep|>{hypothesis}<|nli|>{label}<|end|>"`
"""

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields as dataclass_fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from multitask.errors import InputError, suggest
from multitask.files import in_any_form, shipped
from multitask.pattern import Piece, fields, parse, segments
from multitask.task import BASELINES, END, Prompt, Task

ENTRY_POINTS = "multitask.tasks"


def load_tasks(tasks_dirs: Iterable[str | Path] = ()) -> dict[str, Task]:
    """All tasks by name: the shipped ones, those of installed packages, those of `tasks_dirs`.

    Raises InputError for a folder or plugin that cannot be used and for two tasks of one name.
    """
    return {name: task for name, (task, _) in find_tasks(tasks_dirs).items()}


def find_tasks(tasks_dirs: Iterable[str | Path] = ()) -> dict[str, tuple[Task, str]]:
    """All tasks by name, each with the file or entry point it was found in."""
    found: dict[str, tuple[Task, str]] = {}

    def add(task: object, name: str, origin: str) -> None:
        checked = check(task, name, origin)
        if name in found:
            raise InputError(f"{origin}: task '{name}' is already defined in {found[name][1]}; rename one of the two")
        found[name] = (checked, origin)

    for folder in [shipped("tasks"), *(in_any_form(Path(one)) for one in tasks_dirs)]:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of task plugins; expected a folder with files like nli.py")
        for path in sorted(folder.glob("[!_]*.py")):
            add(_import(path), path.stem, str(path))
    for entry in entry_points(group=ENTRY_POINTS):
        origin = f"entry point {entry.value}"
        with _named(origin):
            task = entry.load()
        add(task, entry.name, origin)
    return found


def choose(found: dict[str, Task], names: Iterable[str]) -> dict[str, Task]:
    """The named tasks, in the order given; raises InputError for a name that does not exist."""
    chosen: dict[str, Task] = {}
    for name in names:
        if name not in found:
            raise InputError(f"unknown task '{name}'; {suggest(name, found)}")
        chosen[name] = found[name]
    return chosen


class PluginFolders(NamedTuple):
    """Folders of task plugins that settings name: those that there are, and names of those that are gone."""

    found: list[str]
    lost: list[str]
    where: str

    def check(self, names: Iterable[str], tasks: Mapping[str, Task]) -> None:
        """Raises InputError for a task that is not there, when a folder is not either."""
        if self.lost and (unknown := [name for name in names if name not in tasks]):
            raise InputError(
                f"{self.where}: tasks_dirs: no folder '{self.lost[0]}', in which task '{unknown[0]}' was expected; it "
                "was moved or removed: name the folder of its plugin with --tasks-dir"
            )


def kept_folders(names: Iterable[str], settings: Path) -> PluginFolders:
    """The folders that a settings file names, relative to itself or else to the working directory."""
    folders = PluginFolders([], [], str(settings))
    for name in names:
        place = next((path for path in map(in_any_form, (settings.parent / name, Path(name))) if path.is_dir()), None)
        if place is None:
            folders.lost.append(name)
        else:
            folders.found.append(str(place))
    return folders


def _import(path: Path) -> object:
    """The `TASK` of one plugin file; a plugin is code and runs here."""
    name = f"multitask_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _named(str(path)):
        spec.loader.exec_module(module)
    return getattr(module, "TASK", None)


@contextmanager
def _named(origin: str) -> Iterator[None]:
    """Whatever goes wrong inside, `sys.exit` too, becomes an InputError that names the plugin."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise InputError(f"{origin}: the plugin does not import: {type(error).__name__}: {error}") from error


def check(task: object, name: str, origin: str) -> Task:
    """The contract of a plugin; raises InputError with all that is wrong."""
    if not isinstance(task, Task):
        raise InputError(f"{origin}: no TASK of type multitask.task.Task was found; define TASK = Task(...)")
    known = fields(task.stream)
    problems = []
    if task.name != name:
        problems.append(f"TASK.name is '{task.name}', expected '{name}', the module's name")
    once, repeated = segments(task.stream)
    if not (once + repeated).endswith(f"{{{task.target}}}{END}"):
        problems.append(
            f"stream ends with '{task.stream[-20:]}', expected '{{{task.target}}}{END}': target, then {END}; a "
            "repeated segment is '(<|marker|>...)+', from a marker to the end"
        )
    problems += [
        f"field '{value}' stands in the repeated segment, where no field can be {role}"
        for role, values in (("optional", task.optional), ("a label", (task.label,)))
        for value in values
        if value in fields(repeated)
    ]
    problems += _misread(task.stream)
    if all(piece.field in task.optional for piece in parse(task.stream)[:-2]):
        problems.append("nothing stands before the target; the first token of an example is never learned")
    if len(set(known)) != len(known):
        problems.append("a field stands twice in the stream")
    for role, value in [("truncate", task.truncate), ("label", task.label), *(("optional", v) for v in task.optional)]:
        if value is not None and value not in known:
            problems.append(f"{role} field '{value}' is not in the stream; {suggest(value, known)}")
    if task.truncate == task.target or task.target in task.optional:
        problems.append("the target can neither be truncated nor be optional")
    problems += [
        f"no baseline '{name}'; {suggest(name, BASELINES)}" for name in task.baselines if name not in BASELINES
    ]
    if task.truncate is None and any(name in BASELINES and name != "majority" for name in task.baselines):
        problems.append("baselines other than majority are taken from the truncate field, and there is none")
    if task.max_new_tokens < 1:
        problems.append(f"max_new_tokens is {task.max_new_tokens}, expected at least 1")
    if task.choices is not None and task.label is None:
        problems.append("choices need a label field")
    for language in task.prompts:
        templates = task.templates(language)
        for prompt in templates:
            called = f"prompt '{language}'" + (f" ({prompt.name})" if len(templates) > 1 else "")
            problems += [f"{called} {problem}" for problem in prompt_problems(task, prompt)]
        if len({prompt.name for prompt in templates}) < len(templates):
            problems.append(f"prompts '{language}': two have the same name")
    if problems:
        raise InputError("\n".join(f"{origin}: {problem}" for problem in problems))
    return task


def prompt_problems(task: Task, prompt: Prompt) -> list[str]:
    """What is wrong with a plain prompt of a task; its words are counted where the task itself has the choices."""
    known = {*fields(task.stream), *(("choices",) if task.is_closed else ())} - {task.target}
    used = fields(prompt.template)
    problems = [f"names '{value}'; {suggest(value, known)}" for value in used if value not in known]
    if not used:
        problems.append(f"names no field; put in {{{'}, {'.join(sorted(known))}}}")
    if prompt.words is not None and not task.is_closed:
        problems.append(f"has words, and the answers of task '{task.name}' are open")
    elif prompt.words is not None and task.choices is not None and len(prompt.words) != len(task.choices):
        problems.append(f"has {len(prompt.words)} words for {len(task.choices)} choices")
    return problems


def _misread(stream: str) -> Iterator[str]:
    """Text that is no field or marker but looks like one, or that tokenizers would join to the field before it."""
    before = Piece("", is_marker=True)
    for piece in parse(stream):
        text = piece.literal if piece.field else piece.text
        if not piece.is_marker and re.search(r"<\||\|>|[{}]", text):
            yield f"'{text.strip()}' is neither a {{field}} nor a <|marker|>; neither may hold a space"
        elif before.field and piece.field and not text.startswith(" "):
            yield f"text '{text}' stands between two fields; begin it with a space, or put a marker there"
        elif before.field and not piece.field and not piece.is_marker:
            yield f"text '{text}' follows field '{before.field}'; put it before a field or between markers"
        before = piece


def fingerprint(task: Task) -> str:
    """A hash of what decides the task's examples: its values and the files of its functions."""
    parts = []
    for item in dataclass_fields(task):
        value = getattr(task, item.name)
        if item.name == "metrics":
            value = tuple(name for name in value if ":" not in name)  # functions, which decide no example
        parts.append(f"{item.name}={_code(value) if callable(value) else value!r}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _code(function: object) -> str:
    """The file that a function stands in, since what it calls there counts too; of a built-in function, its name."""
    with suppress(TypeError, OSError):
        return Path(inspect.getsourcefile(function) or "").read_text("utf-8")  # type: ignore[arg-type]
    with suppress(TypeError, OSError):
        return inspect.getsource(function)  # type: ignore[arg-type]  # a notebook's cell
    return repr(function)
