"""The layout: heavy packages stay out of cheap modules, no task is named in the package, every module is documented."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from multitask.config.run import RunConfig
from multitask.registry import load_tasks

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "multitask").rglob("*.py"))
PLUGINS = sorted([*(ROOT / "tasks").glob("*.py"), *(ROOT / "examples" / "tasks").glob("*.py")])
HEAVY = ("torch", "transformers", "datasets", "evaluate", "accelerate", "peft", "matplotlib", "pyarrow", "numpy")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Full names that a file imports, inside functions too: `multitask.data.rows` for `from multitask import data`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import, expected `from multitask...`"
            assert node.module is not None
            yield node.module if node.module != "multitask" else f"multitask.{node.names[0].name}"
            if node.module == "multitask":
                yield from (f"multitask.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_plugins_import_the_task_api_and_the_standard_library_only(path: Path) -> None:
    names = set(imported(path))
    assert "multitask.task" in names
    others = {name.split(".")[0] for name in names - {"multitask.task"}}
    assert others <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("multitask", HEAVY),
        ("multitask.task", (*HEAVY, "pydantic", "yaml")),
        ("multitask.cli.main", HEAVY),
        ("multitask.config", HEAVY),
        ("multitask.registry", HEAVY),
        ("multitask.data.rows", HEAVY),
    ],
)
def test_cheap_modules_import_nothing_heavy(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def docstrings(module: ast.Module) -> set[int]:
    """Places of strings that stand alone: docstrings, and those beneath settings."""
    return {id(n.value) for n in ast.walk(module) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_the_package_names_no_task(path: Path) -> None:
    module, names = tree(path), set(load_tasks())
    alone = docstrings(module)
    found = [
        (node.lineno, node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in alone
    ]
    if name_of(path) == "multitask/config/run":  # the tasks of a run that names none
        assert [name for _, name in found] == RunConfig().tasks
    else:
        assert found == []


@pytest.mark.parametrize("path", [p for p in PACKAGE if p.parent.name != "cli"], ids=name_of)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert not any(isinstance(func, ast.Name) and func.id in ("print", "pprint") for func in calls)


@pytest.mark.parametrize("path", [*PACKAGE, *PLUGINS], ids=name_of)
def test_every_module_says_why_it_exists(path: Path) -> None:
    assert ast.get_docstring(tree(path))


def test_no_two_test_files_have_one_name() -> None:
    """Pytest imports them by name alone; the second one would be an error."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE}
    assert found <= set(listed)
