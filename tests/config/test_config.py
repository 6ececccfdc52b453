"""Settings: all problems at once, dotted flags, and the page that lists them."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from multitask.config.base import Settings
from multitask.config.data import DataConfig, SourceConfig, SplitConfig, TextConfig
from multitask.config.evaluation import FewshotConfig, PromptConfig, SamplingConfig
from multitask.config.loading import describe, load, override, read_yaml, written_yaml
from multitask.config.resolve import settings_of
from multitask.config.run import BenchmarkConfig, PretrainConfig, RunConfig
from multitask.config.train import BlockConfig
from multitask.data.sources import resolve
from multitask.errors import InputError
from multitask.files import shipped
from multitask.registry import load_tasks
from multitask.reports.benchmark import read_suite

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_problem_is_reported_with_its_path_and_the_nearest_name() -> None:
    wrong = {"train": {"learning_rat": 1, "clip_norm": "x"}, "modle": 1, "data": {"sources": {"nli": [{"file": 1}]}}}
    with pytest.raises(InputError) as caught:
        load(RunConfig, wrong, ["train.epochs=-1"], "a.yaml")
    lines = str(caught.value).split("\n")
    assert "a.yaml: train.learning_rat: no such setting; did you mean 'learning_rate'?" in lines
    assert "a.yaml: modle: no such setting; did you mean 'model'?" in lines
    assert "a.yaml: data.sources.nli.0.file: no such setting; did you mean 'files'?" in lines
    assert any("train.clip_norm" in line and "found 'x'" in line for line in lines)
    assert any("train.epochs" in line and "found -1" in line for line in lines)
    assert len(lines) == 5


def test_flags_win_and_leave_the_settings_alone() -> None:
    settings = {"train": {"epochs": 2, "clip_norm": 3}}
    config = load(RunConfig, settings, ["train.epochs=1", "train.learning_rate=3e-4", "model.name=null", "tasks=[qa]"])
    assert (config.train.epochs, config.train.clip_norm, config.train.learning_rate) == (1, 3, 3e-4)
    assert (config.model.name, config.tasks) == (None, ["qa"])
    assert settings == {"train": {"epochs": 2, "clip_norm": 3}}
    assert override(RunConfig, {}, ["model.name=12ab"]) == {"model": {"name": "12ab"}}


@pytest.mark.parametrize(("flag", "said"), [("train.epochs", "expected name=value"), ("a=[1", "not a YAML value")])
def test_a_flag_that_cannot_be_read(flag: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        override(RunConfig, {}, [flag])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("tasks: [qa]\n")
    (tmp_path / "bad.yaml").write_text("tasks: [qa]\ntrain: {epochs: 1\nseed: 2\n")
    (tmp_path / "list.yaml").write_text("- qa\n")
    with pytest.raises(InputError, match=r"god\.yaml: no such file; did you mean 'good\.yaml'"):
        read_yaml(tmp_path / "god.yaml")
    with pytest.raises(InputError, match=r"bad\.yaml:\d+: not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "korean.yaml").write_bytes("tasks: [qa]  # 과제\n".encode("cp949"))
    with pytest.raises(InputError, match=r"korean\.yaml: cannot be read .*; save it as utf-8"):
        read_yaml(tmp_path / "korean.yaml")
    with pytest.raises(InputError, match="a mapping of settings was expected, found a list"):
        read_yaml(tmp_path / "list.yaml")


def test_yaml_is_read_as_yaml_1_2(tmp_path: Path) -> None:
    """Where YAML 1.1 has booleans, octal numbers and dates, there is text; keys are text as written."""
    (tmp_path / "a.yaml").write_text(
        "no: no\nyes: [yes, on, 010, 2020-01-02, 1:30, 1_0]\n010: 1e-3\n1.0: {true: true, null: ~}\n"
        "base: &base {a: 1, b: 2}\nover:\n  <<: *base\n  b: 3\n0x1f: 0x1f\n'7': .5\ninf: -.inf\nempty:\n"
    )
    assert read_yaml(tmp_path / "a.yaml") == {
        "no": "no",
        "yes": ["yes", "on", "010", "2020-01-02", "1:30", "1_0"],
        "010": 1e-3,
        "1.0": {"true": True, "null": None},
        "base": {"a": 1, "b": 2},
        "over": {"a": 1, "b": 3},
        "0x1f": 31,
        "7": 0.5,
        "inf": -math.inf,
        "empty": None,
    }


def test_settings_are_read_back_as_written(tmp_path: Path) -> None:
    words = [
        "1e-3",
        "010",
        "0o17",
        "yes",
        "no",
        "~",
        "null",
        "",
        ".5",
        "1.0",
        "1:30",
        "2020-01-02",
        "<<",
        "=",
        "- a",
        "a: b",
        "#",
        "'",
        "긍정",
    ]
    settings: dict[str, Any] = {
        "labels": {word: word for word in words},
        "list": [*words, 1, 0.5, None, True, 1e-3, 1e20],
    }
    (tmp_path / "a.yaml").write_text(written_yaml(settings), "utf-8")
    assert read_yaml(tmp_path / "a.yaml") == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3: not valid YAML: 'a' is given twice"),
        ("a:\n  1: x\n  1: y\n", "a.yaml:3: not valid YAML: '1' is given twice"),
        ("? [a]\n: 1\n", "a.yaml:1: not valid YAML: a key is no text"),
        ("a: !!python/object:os.system 1\n", "a.yaml:1: not valid YAML"),
    ],
)
def test_yaml_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{0: 0, 1: 1}", {"0": "0", "1": "1"}),
        ("{on: true, off: 1.5}", {"on": "true", "off": "1.5"}),
        (
            "{0: {en: 0, ko: false}, 1: {en: 1, ko: true}}",
            {"0": {"en": "0", "ko": "false"}, "1": {"en": "1", "ko": "true"}},
        ),
        ("[0, 1]", {"0": "0", "1": "1"}),
        ("[true, false]", {"true": "true", "false": "false"}),
        ("[on, off]", {"on": "on", "off": "off"}),
    ],
)
def test_words_that_yaml_reads_as_something_else(tmp_path: Path, written: str, expected: dict[str, Any]) -> None:
    (tmp_path / "a.yaml").write_text(f"files: {{train: a.csv}}\nlabels: {written}\n")
    assert load(SourceConfig, read_yaml(tmp_path / "a.yaml")).labels == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[on, off, on]", "labels: class 'on' is given twice"),
        ("[1, 1.0]", "labels: class '1' is given twice"),
        ("{0: , 1: 긍정}", "labels: class '0': found nothing, expected its word, or words by language"),
        ("{0: [부정], 1: 긍정}", "labels: class '0': found ['부정'], expected its word"),
        ("{0: {}, 1: 긍정}", "labels: class '0': found {}, expected its word"),
        ("{0: {ko: , en: bad}, 1: 긍정}", "labels: class '0': found nothing"),
        ("[on, ~]", "labels: class 'None': found nothing"),
        ("긍정", "labels: found '긍정', expected words in order, `[WORD, WORD]`, or `{CLASS: WORD, CLASS: WORD}`"),
    ],
)
def test_labels_that_cannot_be_meant(tmp_path: Path, written: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(f"files: {{train: a.csv}}\nlabels: {written}\n")
    with pytest.raises(InputError, match=re.escape(message)):
        load(SourceConfig, read_yaml(tmp_path / "a.yaml"))


def test_labels_as_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("files: {train: a.csv}\nlabels: {yes: yes, no: 아니오, 010: 정치}\nlanguage: no\n")
    source = load(SourceConfig, read_yaml(tmp_path / "a.yaml"))
    assert source.labels == {"yes": "yes", "no": "아니오", "010": "정치"}
    assert source.language == "no", "Norwegian"


def test_flags_reach_into_lists() -> None:
    settings = {"data": {"sources": {"summ": [{"files": {"train": "a"}}, "demo"]}}}
    found = override(RunConfig, settings, ["data.sources.summ.0.language=ko", "data.sources.summ.1=other"])
    assert found["data"]["sources"]["summ"] == [{"files": {"train": "a"}, "language": "ko"}, "other"]
    assert settings["data"]["sources"]["summ"] == [{"files": {"train": "a"}}, "demo"]
    for flag, said in [
        ("data.sources.summ.2.language=ko", "'2' is no place in a list of 2; expected a number from 0 to 1"),
        ("data.sources.summ.first=ko", "'first' is no place in a list of 2"),
        ("data.sources.summ.1.language=ko", "place 1 of the list is the name 'demo'"),
    ]:
        with pytest.raises(InputError, match=re.escape(said)):
            override(RunConfig, settings, [flag])


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3


@pytest.mark.parametrize("path", sorted(shipped("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_run_loads(path: Path) -> None:
    settings = read_yaml(path)
    if path.stem.startswith("benchmark_"):
        settings = load(BenchmarkConfig, settings, where=str(path)).run
    if "text" in settings:
        load(PretrainConfig, settings, where=str(path))
        return
    config = load(RunConfig, settings, where=str(path))
    assert set(config.data.sources) <= set(config.tasks)


def test_every_setting_says_what_it_means_and_the_page_lists_it() -> None:
    page = DOCS.read_text("utf-8")
    kinds = (RunConfig, SourceConfig, SplitConfig, PretrainConfig, TextConfig, PromptConfig, SamplingConfig,
             BenchmarkConfig)  # fmt: skip
    for line in (line for kind in kinds for line in describe(kind)):
        assert line in page, "docs/settings.md is older than multitask/config"
        assert len(re.split(r"(?<!\\)\|", line)[-2].strip()) > 10


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (SourceConfig, {"world": {"train": 3}}, {"synthetic": {"train": 3}}),
        (
            SourceConfig,
            {"files": {"all": "a.jsonl"}, "cut": {"by": "title", "test": 0}},
            {"files": {"all": "a.jsonl"}, "split_by": {"column": "title", "test": 0}},
        ),
        (TextConfig, {"world": {"train": 3}}, {"synthetic": {"train": 3}}),
        (BlockConfig, {"isolated": True}, {"document_masking": True}),
    ],
)
def test_old_names_are_read_with_a_warning(kind: type[Settings], old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(FutureWarning, match="is now called"):
        assert load(kind, old) == load(kind, new)
    with pytest.raises(InputError, match=r"is the old name of .*, and both are given; leave out"):
        load(kind, {**new, **old})


def test_balanced_is_read_as_a_kind_of_demonstrations() -> None:
    with pytest.warns(FutureWarning, match="'balanced: true' is now 'demonstrations: balanced'"):
        assert load(FewshotConfig, {"balanced": True}) == load(FewshotConfig, {"demonstrations": "balanced"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(FewshotConfig, {"balanced": False}) == FewshotConfig()
    with pytest.raises(InputError, match="is the old form of 'demonstrations: balanced', and both are given"):
        load(FewshotConfig, {"balanced": True, "demonstrations": "random"})


def test_an_old_name_in_a_flag_is_read_too() -> None:
    with pytest.warns(FutureWarning, match="'isolated' is now called 'document_masking'"):
        config = load(PretrainConfig, {"text": {"files": {"train": "a"}}}, ["train.isolated=true"])
    assert config.train.document_masking


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"data": {"sources": {"myConfig": [{"fils": {"train": "a"}}]}}}, "data.sources.myConfig.0.fils"),
        ({"data": {"sources": {"SourceConfig": [{"files": {"train": 3}}]}}}, "data.sources.SourceConfig.0.files.train"),
        ({"train": {"mixture_weights": {"aConfig": "x"}}}, "train.mixture_weights.aConfig"),
    ],
)
def test_a_users_own_names_stay_in_the_path(settings: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError, match=rf"(?m)^settings: {re.escape(path)}: "):
        load(RunConfig, settings)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["trian.lr=1"], ["--set trian.lr=1: trian: no such setting; did you mean 'train'?"]),
        (["train.optimzer=muon"], ["--set train.optimzer=muon: train.optimzer: no such setting; did you mean 'opt"]),
        (["train.epochs=-1", "train.epochs=x"], ["--set train.epochs=x: train.epochs: Input should be a valid number"]),
        (["train={epoks: 1}"], ["--set train={epoks: 1}: train.epoks: no such setting; did you mean 'epochs'?"]),
        (["seed=3"], ["a.yaml: modle: no such setting; did you mean 'model'?"]),
        (["modle.n_embd=3"], ["a.yaml: modle: no such setting; did you mean 'model'?"]),
    ],
)
def test_a_wrong_setting_names_the_flag_or_the_file_that_has_it(flags: list[str], said: list[str]) -> None:
    in_file = {"modle": {"n_embd": 4}} if "a.yaml" in said[0] else {"train": {"epochs": 2}}
    with pytest.raises(InputError) as raised:
        load(RunConfig, in_file, flags, "a.yaml")
    lines = str(raised.value).splitlines()
    assert [line.startswith(start) for line, start in zip(lines, said, strict=True)] == [True] * len(said), lines


def test_a_wrong_key_of_a_preset_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("files: {train: a.jsonl}\nfilez: 3\n")
    task = load_tasks([])["nli"]
    data = DataConfig(sources={"nli": [str(tmp_path / "mine.yaml")]})
    with pytest.raises(InputError, match=r"mine.yaml: filez: no such setting; did you mean 'files'\?"):
        resolve(task, data)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("run.train.lr=1", "--set run.train.lr=1: train.lr: no such setting"),
        ("rnu.train.lr=1", "--set rnu.train.lr=1: rnu: no such setting; did you mean 'run'?"),
        ("report.language=fr", "--set report.language=fr: report.language: Input should be 'en' or 'ko'"),
    ],
)
def test_a_wrong_setting_of_a_suite_names_the_flag(flag: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        read_suite("benchmark_demo", [flag])
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: cls", "tasks: a list was expected, found 'cls'; write `tasks: [cls]`"),
        (
            "data: {sources: {cls: onoff.csv}}",
            "data.sources.cls: a list was expected, found 'onoff.csv'; "
            "write `cls: [{files: {all: onoff.csv}, split_by: {validation: 0.05, test: 0.05}}]`",
        ),
        ("data: {sources: {cls: nsmc}}", "found 'nsmc'; write `cls: [nsmc]`"),
        ("data: {sources: {cls: {hub: a/b}}}", "found {'hub': 'a/b'}; write `cls: [{...}]`"),
        (
            "data: {sources: {cls: [{files: onoff.csv}]}}",
            "data.sources.cls.0.files: a mapping was expected, found 'onoff.csv'; "
            "write `files: {all: onoff.csv}` and `split_by: {validation: 0.05, test: 0.05}`",
        ),
        ("data: {sources: {cls: [{files: [a.csv, b.csv]}]}}", "write `files: {all: [a.csv, b.csv]}` and `split_by"),
        (
            "data: {sources: {cls: [{hub: a/b, skip_labels: 1}]}}",
            "skip_labels: a list was expected, found 1; write `skip_labels: [1]`",
        ),
        ("model: gpt2", "model: a mapping of settings was expected, found 'gpt2'; write `model: {name: gpt2}`"),
        ("fewshot: {shots: 4}", "fewshot.shots: a list was expected, found 4; write `shots: [4]`"),
        ("prompts: {cls: {}}", "prompts: no such setting; it is fewshot.prompts"),
        ("metrics: {cls: [f1]}", "metrics: no such setting; it is eval.metrics"),
        ("epochs: 3", "epochs: no such setting; it is train.epochs"),
        ("data: {labels: [a, b]}", "data.labels: no such setting; it is data.sources.TASK.labels"),
        ("data: {sources: {cls: [{files: {all: a.csv}}]}}", "`split_by` says, and it is missing; add `split_by: {"),
        (
            "data: {sources: {cls: [{files: {train: a.csv}, split_by: {test: 0.1}}]}}",
            "`split_by` splits rows of `all`, and files has only train; write `files: {all: ...}` in place of `train`",
        ),
    ],
)
def test_a_value_of_another_kind_is_told_in_words_of_yaml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text, "utf-8")
    with pytest.raises(InputError) as raised:
        load(RunConfig, read_yaml(tmp_path / "a.yaml"))
    assert message in str(raised.value)
    assert "Input should be" not in str(raised.value)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.sources.summ.0.language=ko", "data.sources.summ: no source of summ is named, so there is no place 0"),
        ("tasks.0=cls", "tasks: not in the settings, so there is no place 0; give the list, tasks=[...]"),
        ("fewshot.shots.1=4", "fewshot.shots: not in the settings, so there is no place 1"),
    ],
)
def test_a_place_in_a_list_that_is_not_there(flag: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--set {flag}: {message}")):
        load(RunConfig, {"data": {"sources": {"cls": [{"hub": "a/b"}]}}}, [flag])


@pytest.mark.parametrize("name", ["onoff.csv", "a.jsonl", "자료.tsv.gz", "b.parquet"])
def test_a_data_file_in_place_of_a_source(name: str) -> None:
    data = DataConfig(sources={"cls": [name]})
    with pytest.raises(
        InputError, match=rf"'{name}' is a data file.*write `cls: \[{{files: {{all: {name}}}, split_by:"
    ):
        resolve(load_tasks()["cls"], data)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\n좋아,1\n"),
        ("a.jsonl", '{"a": 1}\n{"a": 2}\n'),
        ("a.json", "[1, 2]"),
        ("a.tsv", "a\tb\n"),
        ("b.csv", "글,1\n"),
    ],
)
def test_a_data_file_in_place_of_settings(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-16" if name == "b.csv" else "utf-8")
    with pytest.raises(InputError, match=rf"this is a data file: `multitask init {path}` writes the settings"):
        settings_of(path)


def test_a_language_that_is_none_lists_each_code_once() -> None:
    with pytest.raises(InputError) as raised:
        load(SourceConfig, {"hub": "a/b", "language": "und"})
    words = str(raised.value).partition("for instance ")[2].split(", ")
    assert {"en", "ko", "ja"} <= set(words)
    assert len(words) == len(set(words))
