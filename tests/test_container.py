"""The Dockerfile: what it names exists, is sent to the builder, and is what the project declares. Needs no docker."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.specifiers import SpecifierSet

from multitask.cli.main import main
from multitask.cli.serve_command import serve

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def instructions() -> list[tuple[str, str]]:
    """Name and value of each instruction, comments dropped and continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    found = [line.partition(" ") for line in text.replace("\\\n", "").splitlines()]
    return [(name, value.strip()) for name, _, value in found]


def values(name: str) -> list[str]:
    return [value for given, value in instructions() if given == name]


def only(name: str) -> Any:
    (value,) = values(name)
    return json.loads(value) if value.startswith("[") else value


def arguments() -> dict[str, str]:
    pairs = [value.partition("=") for value in values("ARG")]
    return {name: default.strip('"') for name, _, default in pairs}


def sources() -> list[str]:
    """Paths that are copied from the checkout."""
    return [path for value in values("COPY") for path in value.split()[:-1]]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path pass: the last pattern that matches it or a folder above it decides."""
    parents = [path, *(parent.as_posix() for parent in Path(path).parents)]
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            names = [Path(name).name if "**/" in line else name for name in parents]
            if any(fnmatchcase(name, pattern) and (name.count("/") == pattern.count("/")) for name in names):
                sent = line.startswith("!")
    return sent


def test_the_version_of_python_is_one_of_the_project() -> None:
    (version,) = re.findall(r"python:(\d+\.\d+)-slim$", arguments()["BASE"])
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)


def test_torch_is_the_cpu_build_by_default_and_pinned() -> None:
    assert arguments()["TORCH_INDEX"] == "https://download.pytorch.org/whl/cpu"
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    installs = [part for run in values("RUN") for part in run.split("&&") if "pip install" in part]
    for part in installs:
        assert "--constraint constraints.txt" in part or part.split()[-2:] == ["--no-deps", "."], part
    of_torch, *others = installs  # the index of torch is not one of several: pip skips one that does not answer
    assert of_torch.split()[-4:] == ["--no-deps", "--index-url", '"${TORCH_INDEX}"', "torch"]
    assert len(others) == 3
    assert not any("index-url" in part for part in others)


@pytest.mark.parametrize("extras", [None, "", "nearest"])
def test_what_is_installed_are_the_dependencies_of_the_project(extras: str | None) -> None:
    (run,) = (value for value in values("RUN") if "tomllib" in value)
    _, flag, code, *_ = shlex.split(run)
    assert flag == "-c"
    given = arguments()["EXTRAS"] if extras is None else extras
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "EXTRAS": given}, capture_output=True, text=True
    )
    project = PROJECT["project"]
    further = [one for name in given.split(",") if name for one in project["optional-dependencies"][name]]
    assert done.stdout.split("\n")[:-1] == [*project["dependencies"], *further], done.stderr
    assert extras == "" or further


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    found = sources()
    assert [path for path in found if not (ROOT / path).exists() or not is_sent(path)] == []
    project = PROJECT["project"]
    folders = {path.split("/")[0] for path in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    assert {"pyproject.toml", project["readme"], *project["license-files"], *folders} <= set(found)
    inside = [path for folder in sorted(folders) for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in inside if "__pycache__" not in path.parts]
    assert len(kept) > 100
    assert [str(path) for path in kept if not is_sent(path.relative_to(ROOT).as_posix())] == []


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "runs/demo/results.json", "reviews.csv", "multitask/api/__pycache__/a.pyc"],
)
def test_nothing_else_is_sent_to_the_builder(path: str) -> None:
    assert not is_sent(path)


def test_the_entrypoint_is_the_command_of_the_project() -> None:
    entrypoint = only("ENTRYPOINT")  # a JSON list: signals reach the process itself, no shell
    assert isinstance(entrypoint, list)
    assert entrypoint == list(PROJECT["project"]["scripts"])
    assert CliRunner().invoke(main, only("CMD")).exit_code == 0
    (port,) = (option.default for option in serve.params if option.name == "port")
    assert only("EXPOSE") == str(port)


def test_it_runs_as_any_user_in_a_folder_that_any_user_may_write() -> None:
    environment = dict(pair.split("=", 1) for value in values("ENV") for pair in shlex.split(value))
    folder = environment["HOME"]
    assert values("WORKDIR")[-1] == only("VOLUME") == folder
    assert f"install --directory --mode 1777 {folder}" in values("RUN")
    assert environment["MPLCONFIGDIR"].startswith(f"{folder}/")
    assert int(only("USER").split(":")[0]) > 0


def test_the_page_names_build_arguments_that_exist() -> None:
    page = (ROOT / "docs/serving.md").read_text("utf-8")
    named = re.findall(r"--build-arg (\w+)=", page)
    assert named
    assert set(named) <= set(arguments())
