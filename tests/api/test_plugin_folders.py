"""A run remembers the folders of its task plugins: no command after `train` needs `--tasks-dir`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import FACTS, files, settings

from multitask import api
from multitask.errors import InputError, Interrupted
from multitask.files import relative_if_near
from multitask.inference.trained_run import task_of_model

TRANSLATE = Path(__file__).parents[2] / "examples" / "tasks" / "translate.py"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, a folder `my_tasks` in it."""
    folder = tmp_path / "project"
    (folder / "my_tasks").mkdir(parents=True)
    shutil.copy(TRANSLATE, folder / "my_tasks")
    monkeypatch.chdir(folder)
    return folder


def given(folder: Path, **sections: Any) -> dict[str, Any]:
    rows = [{"source": fact["question"], "translation": fact["answers"][0]} for fact in FACTS]
    source = files(folder / "rows", train=rows, validation=rows, test=rows)
    parts: dict[str, Any] = {"data": {"sources": {"translate": [source]}}, "train": {"max_steps": 2}}
    return settings("translate", **(parts | sections))


def kept(run: Path) -> list[str]:
    found: list[str] = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["tasks_dirs"]
    return found


def test_no_command_needs_the_folder_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = api.train(given(project), out="runs/first", tasks_dirs="my_tasks", report=False)
    assert kept(Path("runs/first")) == ["../../my_tasks"]
    assert made["config"]["tasks_dirs"] == ["my_tasks"]
    scored = api.evaluate("runs/first", report=False)
    assert scored["tasks"] == made["tasks"]
    other = api.evaluate("runs/first/model", given(project, eval={"max_rows": 2}), report=False)  # other settings
    assert other["tasks"]["translate"]["num_examples"] == 2
    assert len(api.generate("runs/first", "한 줄", "translate")) == 1
    assert list(api.report(["runs/first"], "report")["tasks"]) == ["translate"]

    monkeypatch.chdir(project.parent)
    assert api.evaluate("project/runs/first", report=False)["tasks"] == made["tasks"]
    project.rename("moved")
    sources = given(project.parent / "moved")["data"]["sources"]
    assert task_of_model("moved/runs/first", "translate", ()).name == "translate"
    found = api.evaluate("moved/runs/first", flags=[f"data.sources={sources}"], report=False)
    assert found["tasks"]["translate"]["metrics"] == made["tasks"]["translate"]["metrics"]


def test_a_run_is_resumed_with_its_plugins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"max_steps": 4, "save_every_steps": 2}
    whole = api.train(given(project, train=steps), out="runs/whole", tasks_dirs="my_tasks", report=False)

    def stop(event: Any) -> None:
        if event["event"] == "step" and event["step"] >= 3:
            raise Interrupted("runs/first")

    with pytest.raises(Interrupted):
        api.train(given(project, train=steps | {"log_every_steps": 1}), out="runs/first", tasks_dirs=["my_tasks"],
                  report=stop)  # fmt: skip
    Path("my_tasks").rename("plugins")
    message = (
        r"runs/first/config.yaml: tasks_dirs: no folder '../../my_tasks', in which task 'translate' was expected; it "
        "was moved or removed: name the folder of its plugin with --tasks-dir"
    )
    with pytest.raises(InputError, match=message):
        api.train(resume="runs/first", report=False)
    for call in (lambda: api.evaluate("runs/whole"), lambda: api.generate("runs/whole", "a", "translate")):
        with pytest.raises(InputError, match=message.replace("first", "whole")):
            call()
    assert list(Path("runs/first").glob("checkpoints/step-*"))
    resumed = api.train(resume="runs/first", tasks_dirs="plugins", report=False)
    assert resumed["tasks"] == whole["tasks"]
    assert kept(Path("runs/first")) == ["../../plugins"]  # from now on
    assert api.evaluate("runs/first", report=False)["tasks"] == whole["tasks"]


def test_a_lost_folder_is_no_error_where_no_task_of_it_is_named(project: Path) -> None:
    sources = {"translate": given(project)["data"]["sources"]["translate"]}
    sources["qa"] = [files(project / "facts", train=FACTS, validation=FACTS, test=FACTS)]
    run = given(project, data={"sources": sources}) | {"tasks": ["translate", "qa"]}
    api.train(run, out="runs/both", tasks_dirs="my_tasks", report=False)
    shutil.rmtree("my_tasks")
    flags = [f"data.sources={{qa: {sources['qa']}}}"]
    assert list(api.evaluate("runs/both", tasks="qa", flags=flags, report=False)["tasks"]) == ["qa"]
    assert len(api.generate("runs/both", {"context": "a b", "question": "c"}, "qa")) == 1


def test_settings_and_suites_may_name_folders(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = given(project) | {"tasks_dirs": ["my_tasks"]}
    (project / "mine.yaml").write_text(yaml.safe_dump(run), "utf-8")
    suite = {"base": None, "arms": ["multitask"], "seeds": [1], "run": given(project)}
    (project / "suite.yaml").write_text(yaml.safe_dump(suite), "utf-8")
    api.benchmark("suite.yaml", out="suite", tasks_dirs="my_tasks", report=False)
    assert kept(Path("suite/arms/multitask-seed-1")) == ["../../../my_tasks"]
    assert list(api.evaluate("suite/arms/multitask-seed-1", report=False)["tasks"]) == ["translate"]
    assert "translate" in api.preview("mine.yaml").text()
    monkeypatch.chdir(project.parent)  # relative to the settings file
    api.train("project/mine.yaml", out="elsewhere", report=False)
    assert kept(Path("elsewhere")) == ["../project/my_tasks"]


def test_a_folder_that_is_far_is_kept_by_its_absolute_path(tmp_path: Path) -> None:
    near, far = tmp_path / "my_tasks", Path("/usr/lib")
    assert relative_if_near(near, tmp_path / "runs" / "suite" / "arms" / "a") == "../../../../my_tasks"
    assert relative_if_near(near, tmp_path / "a" / "b" / "c" / "d" / "e") == str(near.resolve())
    assert relative_if_near(far, Path("/opt/run")) == str(far.resolve())  # only / in common
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "runs")
    found = tmp_path / "runs" / relative_if_near(near, tmp_path / "runs")  # as the system follows the link
    near.mkdir()
    assert found.samefile(near)
