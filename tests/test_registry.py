"""The contract that every plugin passes, and every way a plugin can fail to be one."""

import dataclasses
import importlib.metadata
import json
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import TASKS, byte_level, make_row, tokenizer_of

from multitask import registry
from multitask.batching.collate import collate
from multitask.config.data import DataConfig, SourceConfig
from multitask.data.rows import Counts, read_rows
from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.files import shipped
from multitask.pattern import fields, markers, parse, render, render_plain, text_of
from multitask.registry import check, choose, find_tasks, fingerprint, load_tasks
from multitask.task import END, Prompt, Task
from multitask.tokenization.row_encoder import RowEncoder

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES = Path(__file__).parent.parent / "examples" / "tasks"
PLUGINS = [*sorted(shipped("tasks").glob("[!_]*.py")), *sorted(EXAMPLES.glob("[!_]*.py"))]
SIXTH = '''
    """Translation."""
    from multitask.task import Task

    TASK = Task(
        name="NAME", stream="{source}<|translate|>{translation}<|end|>", target="translation", truncate="source"
    )
'''


@pytest.fixture(params=PLUGINS, ids=lambda path: path.stem)
def plugin(request: pytest.FixtureRequest) -> tuple[Path, Task]:
    path: Path = request.param
    folders = [] if path.parent == shipped("tasks") else [path.parent]
    task, origin = find_tasks(folders)[path.stem]
    assert origin == str(path)
    return path, task


def write(folder: Path, name: str, text: str = SIXTH) -> Path:
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(text).replace("NAME", name), "utf-8")
    return path


# ---------------------------------------------------------------- the contract


def test_the_pattern_ends_with_target_and_end(plugin: tuple[Path, Task]) -> None:
    path, task = plugin
    assert task.name == path.stem
    *_, target, end = parse(task.stream)
    assert (target.field, end.text) == (task.target, END)
    assert len(parse(task.stream)) >= 3


def test_facts_name_things_that_exist(plugin: tuple[Path, Task]) -> None:
    _, task = plugin
    assert task.metrics
    assert set(task.metrics) <= set(metrics.NAMES)
    assert set(task.baselines) <= {"majority", "lead1", "lead3", "random_span"}
    assert task.truncate is not None or set(task.baselines) <= {"majority"}
    assert {"en", "ko"} <= set(task.prompts)
    for language, prompt in ((of, prompt) for of in task.prompts for prompt in task.templates(of)):
        values = {name: f"<{name}>" for name in ("choices", *fields(task.stream))}
        text = render_plain(task, values, language, prompt)
        assert text == text.rstrip(), "the answer brings its own space"
        assert f"<{task.target}>" not in text
        assert task.truncate is None or f"<{task.truncate}>" in text
        assert all(word.startswith(" ") for word in prompt.words or ())


def test_rendered_text_ids_and_labels_are_as_recorded(plugin: tuple[Path, Task]) -> None:
    """Ids of a tokenizer without merges: one per byte, in the order of GPT-2's byte alphabet, then the markers."""
    _, task = plugin
    tokenizer = byte_level([], markers({task.name: task}))
    path = GOLDEN / f"stream_{task.name}.json"
    is_new = not path.exists()
    values = [row["fields"] for row in json.loads(path.read_text("utf-8"))] if not is_new else [_any_values(task)]
    found = []
    for row in values:
        (example,) = RowEncoder(task, tokenizer, 1000).encode([make_row(task, row)])
        assert example is not None
        batch = collate([(example.input_ids, example.num_prompt)])
        labels = [-100] * len(example.input_ids)
        for at, target in zip(batch.before.tolist(), batch.targets.tolist(), strict=True):
            labels[at + 1] = target
        text = text_of(render(task, row))
        found.append({"fields": row, "text": text, "input_ids": example.input_ids, "labels": labels})
    if is_new:
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found)
        path.write_text(f"[\n{lines}\n]\n", "utf-8")
        pytest.fail(f"{path} was missing and has been written; read it, and commit it with the plugin")
    assert found == json.loads(path.read_text("utf-8"))


def _any_values(task: Task) -> dict[str, str]:
    return {name: f"{name} 하나" for name in fields(task.stream)}


def test_labels_are_the_target_and_the_end_alone(plugin: tuple[Path, Task]) -> None:
    _, task = plugin
    tokenizer = byte_level([], markers({task.name: task}))
    for row in json.loads((GOLDEN / f"stream_{task.name}.json").read_text("utf-8")):
        learned = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(learned).strip() == f"{row['fields'][task.target]}<|end|>"
        assert learned[-1] == tokenizer.eos_token_id
        assert row["labels"][0] == -100
        assert row["labels"][-len(learned) :] == row["input_ids"][-len(learned) :]


def test_the_embedded_world_has_rows_for_it(plugin: tuple[Path, Task]) -> None:
    _, task = plugin
    rows = list(read_rows(task, SourceConfig(synthetic={"train": 30}), "train", DataConfig(), Counts()))
    tokenizer = byte_level([], markers({task.name: task}))
    for row, example in zip(rows, RowEncoder(task, tokenizer, 2000).encode(rows), strict=True):
        assert example is not None
        assert tokenizer.decode(example.input_ids) == text_of(render(task, row.fields, earlier=row.earlier))
        assert {row.fields[task.target]} <= set(row.references)
        if task.is_closed:
            assert row.fields[task.target] in row.choices
        if row.keep is not None:
            assert row.fields[task.truncate or ""][slice(*row.keep)] == row.fields[task.target]
    assert len({row.language for row in rows}) == 2


# ---------------------------------------------------------------- finding tasks


def test_a_sixth_task_is_one_file(tmp_path: Path) -> None:
    path = write(tmp_path, "sixth")
    found = find_tasks([tmp_path])
    assert set(found) == {*load_tasks(), "sixth"}
    task, origin = found["sixth"]
    assert origin == str(path)
    assert "<|translate|>" in markers({"sixth": task})
    assert {*markers(load_tasks([tmp_path]))} == {*markers(load_tasks()), "<|translate|>"}
    (row,) = read_rows(task, SourceConfig(synthetic={"train": 1}), "train", DataConfig(), Counts())
    (example,) = RowEncoder(task, byte_level([], markers({"sixth": task})), 500).encode([row])
    assert example is not None


def test_names_that_begin_with_an_underscore_are_no_plugins(tmp_path: Path) -> None:
    write(tmp_path, "_helpers", "raise RuntimeError")
    assert set(load_tasks([tmp_path])) == set(load_tasks())


def entry(value: str, name: str = "sixth") -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, registry.ENTRY_POINTS)


def test_installed_packages_add_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "sixth_package", SIXTH.replace("NAME", "sixth"))
    asked = []

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        asked.append(group)
        return [entry("sixth_package:TASK")]

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "entry_points", entry_points)
    task, origin = find_tasks()["sixth"]
    assert task.stream.startswith("{source}<|translate|>")
    assert origin == "entry point sixth_package:TASK"
    assert asked == ["multitask.tasks"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:TASK", "entry point no_such_package:TASK: the plugin does not import: ModuleNotFoundError"),
        ("json:TASK", "entry point json:TASK: the plugin does not import: AttributeError"),
        ("json:dumps", "entry point json:dumps: no TASK of type multitask.task.Task was found"),
    ],
)
def test_an_installed_package_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry(value)])
    with pytest.raises(InputError) as caught:
        find_tasks()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", "the plugin does not import: ModuleNotFoundError: No module named 'no_such_module'"),
        ("TASK = Task(", "the plugin does not import: SyntaxError: '(' was never closed"),
        ("raise SystemExit(3)", "the plugin does not import: SystemExit: 3"),
        ("x = 1", "no TASK of type multitask.task.Task was found; define TASK = Task(...)"),
        ("TASK = 'nli'", "no TASK of type multitask.task.Task was found; define TASK = Task(...)"),
        (SIXTH.replace("NAME", "other"), "TASK.name is 'other', expected 'broken', the module's name"),
    ],
)
def test_a_plugin_file_that_fails_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "broken", text)
    with pytest.raises(InputError) as caught:
        load_tasks([tmp_path])
    assert str(caught.value).startswith(f"{path}: {message}")


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "nli")
    with pytest.raises(InputError, match=r"nli\.py: task 'nli' is already defined in .*tasks/nli\.py; rename one"):
        load_tasks([tmp_path])


def test_a_missing_folder_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder of task plugins; expected a folder with files like"):
        load_tasks([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"^unknown task 'sum'; did you mean 'summ'\?$"):
        choose(load_tasks(), ["qa", "sum"])
    assert list(choose(load_tasks(), ["summ", "cls"])) == ["summ", "cls"]


# ---------------------------------------------------------------- what a plugin must not be

GOOD: dict[str, Any] = {"name": "t", "stream": "{a}<|b|>{c}<|end|>", "target": "c", "truncate": "a"}


def test_the_good_one_is_good() -> None:
    assert check(task := Task(**GOOD), "t", "t.py") is task
    glued = "<|start|>Kind: {k} {a}<|b|>So: {c}<|end|>"
    assert check(Task(**GOOD | {"stream": glued, "optional": ("k",)}), "t", "t.py")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": "{a}<|b|>{c}"}, "stream ends with '{a}<|b|>{c}', expected '{c}<|end|>': target, then <|end|>"),
        ({"target": "a"}, "stream ends with '{a}<|b|>{c}<|end|>', expected '{a}<|end|>': target, then <|end|>"),
        ({"stream": "{c}<|end|>", "truncate": None}, "nothing stands before the target"),
        ({"stream": "{a}{c}<|end|>", "truncate": None, "optional": ("a",)}, "nothing stands before the target"),
        ({"stream": "{a}<|b|>{a}<|b|>{c}<|end|>"}, "a field stands twice in the stream"),
        ({"truncate": "zz"}, "truncate field 'zz' is not in the stream; valid: a, c"),
        ({"label": "d"}, "label field 'd' is not in the stream; valid: a, c"),
        ({"optional": ("e",)}, "optional field 'e' is not in the stream; valid: a, c"),
        ({"truncate": "c"}, "the target can neither be truncated nor be optional"),
        ({"optional": ("c",)}, "the target can neither be truncated nor be optional"),
        ({"choices": ("x", "y")}, "choices need a label field"),
        ({"prompts": {"en": Prompt("{c}:")}}, "prompt 'en' names 'c'; valid: a"),
        ({"prompts": {"ko": Prompt("{question}:")}}, "prompt 'ko' names 'question'; valid: a"),
        (
            {"label": "c", "choices": ("x", "y"), "prompts": {"en": Prompt("{a}:", (" x",))}},
            "prompt 'en' has 1 words for 2 choices",
        ),
        (
            {"stream": "{a}<|b c|>{c}<|end|>"},
            "'<|b c|>' is neither a {field} nor a <|marker|>; neither may hold a space",
        ),
        (
            {"stream": "{a}<|b|>{c }{c}<|end|>"},
            "'{c }' is neither a {field} nor a <|marker|>; neither may hold a space",
        ),
        ({"stream": "{a}. <|b|>{c}<|end|>"}, "text '. ' follows field 'a'; put it before a field or between markers"),
        (
            {"stream": "{a}: {c}<|end|>"},
            "text ': ' stands between two fields; begin it with a space, or put a marker there",
        ),
        (
            {"stream": "{a}{c}<|end|>"},
            "text '' stands between two fields; begin it with a space, or put a marker there",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(Task(**GOOD | changes), "t", "t.py")
    assert f"t.py: {message}" in str(caught.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        check(Task(**GOOD | {"name": "u", "truncate": "x", "label": "y"}), "t", "t.py")
    assert len(str(caught.value).splitlines()) == 3


def test_why_text_between_fields_begins_with_a_space() -> None:
    """`check` refuses it because a tokenizer would read the rendered string otherwise than we do."""
    tokenizer = tokenizer_of("byte-level")
    values = {"a": "ca", "b": "t"}
    for stream, is_same in [("{a}{b}<|end|>", False), ("{a} {b}<|end|>", True)]:
        task = Task("t", stream, "b")
        (example,) = RowEncoder(task, tokenizer, 50).encode([make_row(task, values)])
        assert example is not None
        assert (example.input_ids == tokenizer(text_of(render(task, values)))["input_ids"]) == is_same


# ---------------------------------------------------------------- fingerprints


def test_a_fingerprint_follows_values_and_code(tmp_path: Path) -> None:
    source = SIXTH.replace("Task(", "Task(prepare=prepare, ").replace(
        "    TASK", "    def helper(row): return {**row}\n    def prepare(row): return helper(row)\n    TASK"
    )

    def printed(text: str) -> str:
        write(tmp_path, "sixth", text)
        return fingerprint(load_tasks([tmp_path])["sixth"])

    was = printed(source)
    assert printed(source) == was
    assert printed(source.replace("<|translate|>", "<|to|>")) != was
    assert printed(source.replace("return helper(row)", "return helper({**row})")) != was
    assert printed(source.replace("return {**row}", 'return {**row, "id": ""}')) != was, "a helper of the file changed"


def test_functions_without_source_have_a_fingerprint_too() -> None:
    assert fingerprint(Task(**GOOD, parse=str.strip)) == fingerprint(Task(**GOOD, parse=str.strip))
    assert fingerprint(Task(**GOOD, parse=str.strip)) != fingerprint(Task(**GOOD, parse=str.lower))
    assert fingerprint(Task(**GOOD, parse=partial(str.strip, "."))) != fingerprint(Task(**GOOD))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baselines": ("majorty",)}, "no baseline 'majorty'; did you mean 'majority'"),
        ({"baselines": ("lead1",), "truncate": None}, "taken from the truncate field, and there is none"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
    ],
)
def test_baselines_and_room_are_checked(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(dataclasses.replace(TASKS["cls"], **change), "cls", "here")


def test_the_old_name_of_truncate_is_read_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="'cut' of a Task is now called 'truncate'"):
        task = Task(name="t", stream="{a}<|b|>{c}<|end|>", target="c", cut="a")
    assert task.truncate == "a"
    assert task == Task(name="t", stream="{a}<|b|>{c}<|end|>", target="c", truncate="a")
