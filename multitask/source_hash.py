"""A hash of the code that a result depends on: what a cache keeps is valid as long as it stays the same.

`source_hash("multitask.training.finetune")` covers that module and all modules of the package that it imports, directly
or through others, at the top or inside functions. Comments, docstrings and layout do not count.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def source_hash(*modules: str, root: Path = _ROOT) -> str:
    """SHA-256 of the named modules and of all that they import from their own package; `root` holds the package."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = file_of(name, root)
        if path is not None and name not in found:
            found[name], imported = _read(path, path.stat().st_mtime_ns)
            for other in imported:
                if other.partition(".")[0] == name.partition(".")[0] and file_of(other, root) is not None:
                    parts = other.split(".")
                    waiting += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    text = "\n".join(f"{name} {found[name]}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()


def file_of(name: str, root: Path = _ROOT) -> Path | None:
    """The file of a module or package; None for another name."""
    base = root / name.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


class _RuntimeOnly(ast.NodeTransformer):
    """Leaves out `if TYPE_CHECKING:`, which imports nothing when the code runs."""

    def visit_If(self, node: ast.If) -> ast.AST:
        """Keeps any other condition."""
        is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return ast.Pass() if is_typing else self.generic_visit(node)


@cache
def _read(path: Path, mtime_ns: int) -> tuple[str, tuple[str, ...]]:
    """A hash of a file's syntax tree without docstrings, and the names that may be modules it imports."""
    tree = _RuntimeOnly().visit(ast.parse(path.read_text("utf-8")))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        body = getattr(node, "body", None)
        if isinstance(body, list):  # strings that stand alone: docstrings, and those below settings
            kept = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(dict.fromkeys(names))
