"""The house: imports point downwards, heavy packages stay out of cheap modules, no task is named in the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from multitask.config import RunConfig
from multitask.registry import load_tasks

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "multitask").glob("*.py"))
PLUGINS = sorted([*(ROOT / "tasks").glob("*.py"), *(ROOT / "examples" / "tasks").glob("*.py")])
FLOORS = (
    "task config errors",
    "records bpe bundle corpus data world documents formatting registry mixture",
    "vocabulary bigram tokens encoding examples batching dropout attention loss prompting",
    "inference counting writing model openai_weights checkpoint decoding scoring metrics hygiene baselines device",
    "loop runs training evaluation running base tokenizing pretrain speaking "
    "plots figures pages results significance preview fewshot benchmark report",
    "api screen cli __init__",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
HEAVY = ("torch", "transformers", "datasets", "evaluate", "accelerate", "peft", "matplotlib", "pyarrow", "numpy")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Full names that a file imports, inside functions too: `multitask.data` for `from multitask import data`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import, expected `from multitask...`"
            assert node.module is not None
            yield node.module if node.module != "multitask" else f"multitask.{node.names[0].name}"
            if node.module == "multitask":
                yield from (f"multitask.{alias.name}" for alias in node.names)


def rooms(path: Path) -> set[str]:
    """Our own modules that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("multitask.")}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_imports_point_downwards(path: Path) -> None:
    assert path.stem in FLOOR, f"{path.name} has no floor; give it the lowest one that its imports allow"
    for name in rooms(path):
        assert FLOOR[name] <= FLOOR[path.stem], f"{path.name} imports {name} from the floor above"


def test_imports_have_no_cycles() -> None:
    order = list(TopologicalSorter({path.stem: rooms(path) for path in PACKAGE}).static_order())
    assert order.index("task") < order.index("formatting") < order.index("training") < order.index("cli")


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
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
        ("multitask.cli", HEAVY),
        ("multitask.config", HEAVY),
        ("multitask.registry", HEAVY),
        ("multitask.data", HEAVY),
    ],
)
def test_cheap_modules_import_nothing_heavy(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def docstrings(module: ast.Module) -> set[int]:
    """Places of strings that stand alone: docstrings, and those beneath settings."""
    return {id(n.value) for n in ast.walk(module) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_the_package_names_no_task(path: Path) -> None:
    module, names = tree(path), set(load_tasks())
    alone = docstrings(module)
    found = [
        (node.lineno, node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in alone
    ]
    if path.stem == "config":  # the tasks of a run that names none
        assert [name for _, name in found] == RunConfig().tasks
    else:
        assert found == []


@pytest.mark.parametrize("path", [p for p in PACKAGE if p.stem not in ("cli", "screen")], ids=lambda path: path.stem)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert not any(isinstance(func, ast.Name) and func.id in ("print", "pprint") for func in calls)


@pytest.mark.parametrize("path", [*PACKAGE, *PLUGINS], ids=lambda path: path.stem)
def test_every_module_says_why_it_exists(path: Path) -> None:
    assert ast.get_docstring(tree(path))
