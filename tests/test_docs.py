"""The documentation: what a page names exists, its examples run, and the dependency table is complete."""

import dataclasses
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from helpers import settings, untrained

from multitask.cli.main import main
from multitask.config.loading import load
from multitask.config.run import RunConfig
from multitask.evaluation import metrics
from multitask.task import Prompt, Task

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


@pytest.mark.parametrize("page", ["README.md", "README.ko.md", "docs/data.md", "docs/results.md", "docs/tasks.md"])
def test_yaml_in_a_page_is_valid_settings(page: str) -> None:
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert found
    for text in found:
        if not text.startswith("# my_prompts.yaml"):  # no settings, but what a setting names
            load(RunConfig, yaml.safe_load(text), where=page)


@pytest.mark.parametrize("kind", [Task, Prompt])
def test_the_page_of_tasks_has_every_field(kind: type) -> None:
    page = (ROOT / "docs/tasks.md").read_text("utf-8")
    for item in dataclasses.fields(kind):
        assert re.search(rf"^\| `{item.name}` \| \S", page, re.MULTILINE), item.name


def test_every_metric_of_ours_is_on_the_page_of_tasks() -> None:
    page = (ROOT / "docs/tasks.md").read_text("utf-8")
    assert [name for name in metrics.NAMES if f"`{name}`" not in page] == []


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the blocks of docs/tasks.md that begin with a file's name."""
    folder, page = tmp_path_factory.mktemp("example"), (ROOT / "docs/tasks.md").read_text("utf-8")
    blocks = re.findall(r"```\w+\n# (\S+\.(?:py|yaml))\n(.*?)```", page, re.DOTALL)
    for name, text in blocks:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    assert sorted(name for name, _ in blocks) == [
        "keywords.yaml",
        "make_rows.py",
        "my_metrics.py",
        "my_prompts.yaml",
        "my_tasks/keywords.py",
    ]
    return folder


def commands(name: str) -> list[list[str]]:
    """The commands of the block of docs/tasks.md in which a name occurs, without `python run.py`."""
    page = (ROOT / "docs/tasks.md").read_text("utf-8")
    (block,) = [text for text in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if name in text]
    return [shlex.split(line)[2:] for line in block.splitlines() if line.startswith("python run.py")]


def test_the_example_of_a_task_runs_from_a_file_to_a_score(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example)
    runpy.run_path("make_rows.py")
    said = {}
    for command in commands("keywords.yaml"):
        tiny = ["--set", "device=cpu"] if "--config" in command else []
        result = CliRunner().invoke(main, [*command, *tiny])
        assert result.exit_code == 0, f"{command}: {result.output}"
        said[command[0]] = result.output
    assert list(said) == ["preview", "train", "evaluate", "generate", "fewshot", "report"]
    trained, evaluated, prompted = (
        json.loads(Path(name).read_text("utf-8"))["tasks"]["keywords"]
        for name in ("runs/keywords/results.json", "keywords.json", "fewshot.json")
    )
    assert trained["metrics"]["exact_match"]["value"] > 0.8  # 1.000 on the page
    assert trained["metrics"]["my_metrics.py:recall"]["value"] > 0.8
    assert trained["baselines"]["random_span"]["my_metrics.py:length_error:lower"]["value"] == 1
    assert evaluated["metrics"] == trained["metrics"]
    assert "my_metrics.py:length_error" in said["train"]
    assert "fox" in said["generate"]
    assert {"sentence", "prompt-1"} == set(prompted["per_shot"]["2"]["selection"]["ko"]["templates"])
    assert "my_metrics.py:recall" in prompted["per_shot"]["2"]["metrics"]
    report = Path("report/report.html").read_text("utf-8")
    assert "<td>my_metrics.py:length_error:lower</td>" in report


def test_prompts_of_a_file_have_the_choices_in_the_language_of_the_row(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example)
    (command,) = commands("my_prompts.yaml")
    model = untrained(example / "model", "cls", n_positions=256)
    tiny = settings("cls", model={}) | {"tasks": ["cls"]}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny), "utf-8")
    given = ["--config", "tiny.yaml", "--model", str(model), "--shots", "0", "--out", "prompted.json"]
    result = CliRunner().invoke(main, [*command, *given])
    assert result.exit_code == 0, result.output
    path = Path("prompted.json.predictions/cls.shots-0.draw-0.jsonl")
    prompts = [json.loads(line)["prompt"] for line in path.open(encoding="utf-8")]
    korean = re.compile(r"다음 글의 주제를 (.+) 중에서 고르세요\.\n")
    english = re.compile(r"Which of (.+) is this about\?\n")
    matches = [korean.match(prompt) or english.match(prompt) for prompt in prompts]
    found = {frozenset(match[1].split(", ")) for match in matches if match is not None}
    assert found == {frozenset(["사람", "장소", "동물", "물건"]), frozenset(["person", "place", "animal", "thing"])}
    assert None not in matches


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


def test_the_tables_of_scaling_are_those_of_its_script() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    script = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))
    assert script["page"](text) == text
    assert round(script["SIZES"]["124M"].parameters / 1e6) == 124
    assert script["sent"](script["SIZES"]["124M"], 8, False) == pytest.approx(2 * 7 / 8 * 4 * 123.5e6, rel=0.01)
