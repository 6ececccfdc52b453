"""The documentation: links, files and symbols that a page names exist, and the dependency table is complete."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from multitask.config.loading import load
from multitask.config.run import RunConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PICTURE = re.compile(r"<!-- picture: \S+ -> (\S+) -->")
_FILE = re.compile(
    r"(?<![\w./-])(?:(?:multitask|benchmarks|examples|tests|tasks)/[\w./-]*\.py|configs/[\w./-]*\.yaml)(?!\w)"
)
_SYMBOL = re.compile(r"`(multitask/[\w/]+\.py)`(?:, |의 )`([\w.]+)`")
_ROW = re.compile(r"^\| ([\w-]+) \| ([\w.]+) \| ([\w.]+) \|", re.MULTILINE)


def missing(page: Path, text: str) -> list[str]:
    """What `text`, as the content of `page`, names and does not exist: links relative to it, files to the root."""
    links = [*_LINK.findall(text), *_PICTURE.findall(text)]
    targets = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    return [
        *(target for target in targets if not (page.parent / target).exists()),
        *(name for name in _FILE.findall(text) if not (ROOT / name).is_file()),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_exist(page: Path) -> None:
    assert missing(page, page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", ["docs/tour.md", "docs/tour.ko.md"])
def test_the_tour_names_symbols_where_they_are_defined(page: str) -> None:
    named = _SYMBOL.findall((ROOT / page).read_text("utf-8"))
    assert len(named) > 5
    for path, symbol in named:
        source = (ROOT / path).read_text("utf-8")
        for part in symbol.split("."):
            assert re.search(rf"\b(?:class|def) {part}\b", source), f"{path} does not define {part}"


@pytest.mark.parametrize("page", ["README.md", "README.ko.md", "docs/data.md", "docs/results.md"])
def test_yaml_in_a_page_is_valid_settings(page: str) -> None:
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert found
    for text in found:
        load(RunConfig, yaml.safe_load(text), where=page)


def test_missing_links_and_files_are_found() -> None:
    text = (
        "[a](docs/none.md#x) [b](https://example.org/none.md) [c](#here) `multitask/none.py` configs/none.yaml, run.py"
    )
    text += "\n![d](docs/none.png) <!-- picture: runs/x.png -> docs/none.svg --> configs/demo.yaml [e](LICENSE)"
    absent = ["docs/none.md", "docs/none.png", "docs/none.svg", "multitask/none.py", "configs/none.yaml"]
    assert missing(ROOT / "README.md", text) == absent


def test_both_readmes_have_the_same_sections_code_and_pages() -> None:
    english, korean = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.ko.md"))
    for pattern in (r"^#+(?= )", r"^```\w*$", r"^python run\.py [\w-]+", r"^\| `\w+`"):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, korean, re.MULTILINE), pattern
    pages = [{link.replace(".ko.md", ".md") for link in _LINK.findall(text)} for text in (english, korean)]
    assert pages[0] == pages[1]


def test_the_dependency_page_has_the_ranges_and_the_tested_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ranges = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    expected = {}
    for line in ranges:
        name, _, lowest = line.partition(">=")
        expected[name] = (lowest or "any", versions[name.lower()])
    page = (ROOT / "docs/dependencies.md").read_text("utf-8")
    assert {name: (lowest, version) for name, lowest, version in _ROW.findall(page) if name != "package"} == expected
