"""Runs the notebooks of this folder and writes their outputs into them: `python examples/notebooks/execute.py`.

Each runs in an empty folder, in a kernel of this Python with this checkout first on its path. What only this machine
has (names of folders, times of cells, versions of the kernel) is left out of the outputs.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NOTEBOOKS = ("korean_quickstart", "english_quickstart")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path, folder: Path, parameters: str | None = None, **environment: str) -> Any:
    """A notebook with the outputs of a run in `folder`; cells tagged `install` are not run.

    Args:
        path: the notebook; it stays as it is.
        folder: where the kernel starts; caches go below it, too.
        parameters: what takes the place of the cell tagged `parameters`; None: that cell itself.
        environment: variables of the kernel.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if parameters is not None and "parameters" in cell.metadata.get("tags", []):
            cell.source = parameters
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        skip_cells_with_tag="install",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    own = {"XDG_CACHE_HOME": str(folder / ".cache"), "IPYTHONDIR": str(folder / ".ipython")}
    own["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, where ipywidgets is not installed
    paths = [environment.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
    search = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    client.execute(env={**os.environ, **own, **search, **environment})
    return notebook


def clean(notebook: Any, folder: Path) -> Any:
    """The notebook without what only this machine has."""
    names = {f"{name}{end}": "" if end else "." for name in (folder, ROOT) for end in (os.sep, "")}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [_replaced(output, names) for output in cell.outputs]
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def _replaced(value: Any, names: dict[str, str]) -> Any:
    """The same value, with other texts for these in all of its texts."""
    if isinstance(value, str):
        for name, other in names.items():
            value = value.replace(name, other)
        return value
    if isinstance(value, list):
        return [_replaced(one, names) for one in value]
    if isinstance(value, dict):
        return nbformat.from_dict({key: _replaced(one, names) for key, one in value.items()})
    return value


def main(names: list[str]) -> None:
    """Runs the notebooks of these names, or all."""
    for name in names or NOTEBOOKS:
        path = HERE / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            found = clean(executed(path, Path(folder).resolve()), Path(folder).resolve())
        nbformat.validate(found)
        nbformat.write(found, path)


if __name__ == "__main__":
    main(sys.argv[1:])
