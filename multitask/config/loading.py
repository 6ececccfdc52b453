"""From YAML and `--set` flags to checked settings, all problems reported at once."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import (
    ValidationError,
)

from multitask.config.base import Settings, origin_of, shown_flag
from multitask.config.data import SPLIT_BY, is_data_file, own_file
from multitask.config.run import RunConfig
from multitask.errors import InputError, suggest
from multitask.events import Json
from multitask.files import in_any_form

_BRACKET, _MAX_DEPTH = re.compile(r"[\[\]{}]"), 100
RUN_START, RUN_END = "# All settings of a run, as used.", "# End of the settings."
"""First and last line of a run's `config.yaml`: half of it would be settings too, other ones."""

T = TypeVar("T", bound="Settings")
_EXPECTED = {
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "string_type": "text",
}
"""Of pydantic's errors about the kind of a value, the kind in the words of YAML."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 (core schema) where PyYAML reads YAML 1.1: `yes`, `no` and `010` are text, `1e-3` is a number.

    Keys of mappings are text as written: a class may be called `no`, `010` or `1.0`.
    """

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            problem = None
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key is no text"
            elif key.value in names:
                problem = f"'{key.value}' is given twice"
            if problem:
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            names.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would not read as text."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):  # fmt: skip
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def written_yaml(settings: Json) -> str:
    """Settings as YAML that `read_yaml` reads back as they are."""
    text: str = yaml.dump(settings, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    return text


def written_word(text: object) -> str:
    """One text or number as it stands in a list or mapping in braces: a text that could be anything else in quotes."""
    listed: str = yaml.dump([text], Dumper=_Dumper, allow_unicode=True, default_flow_style=True, width=math.inf)
    return listed.strip()[1:-1]


def merged(settings: Mapping[str, Any], *overlays: Mapping[str, Any]) -> Json:
    """Settings with others laid over them, section by section."""
    result = dict(settings)
    for overlay in overlays:
        for name, value in overlay.items():
            inner = result.get(name)
            result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def read_yaml(path: Path) -> Json:
    """One YAML mapping; raises InputError with file and line."""
    path = in_any_form(path)
    try:
        loaded = yaml.load(_whole(path.read_text("utf-8-sig"), path), _Loader)
    except FileNotFoundError:
        near = suggest(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        raise InputError(f"{path}: no such file; {near}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read ({error}){_is_data(path) or '; save it as utf-8'}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}{_is_data(path)}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise InputError(f"{path}: not usable YAML: {error}; expected a mapping of settings") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        kind = "text" if isinstance(loaded, str) else "a list" if isinstance(loaded, list) else repr(loaded)
        raise InputError(f"{path}: a mapping of settings was expected, found {kind}{_is_data(path)}")
    return loaded


def _is_data(path: Path) -> str:
    return f"; this is a data file: `multitask init {path}` writes the settings that read it" * is_data_file(path.name)


def _whole(text: str, path: Path) -> str:
    """The text of a settings file; raises InputError for one that is empty or nested too deep, or a truncated run's."""
    if not text:
        raise InputError(f"{path}: the file is empty, expected settings; copy it again")
    if (text.startswith(RUN_START) or RUN_START.startswith(text)) and RUN_END not in text:
        raise InputError(
            f"{path}: truncated: the settings of a run, without their last line `{RUN_END}`; copy the file again, or "
            "take the settings from `config` in the run's results.json"
        )
    depth = 0
    for bracket in _BRACKET.findall(text):  # PyYAML takes seconds for thousands of levels
        depth += 1 if bracket in "[{" else -1
        if depth > _MAX_DEPTH:
            raise InputError(f"{path}: more than {_MAX_DEPTH} brackets inside one another; expected settings")
    return text


def override(kind: type[Settings], settings: Json, flags: list[str]) -> Json:
    """A copy of `settings` with `a.b=value` flags applied; values are read as YAML (`null`, `1e-3`, `[a, b]`).

    What a key makes void (`Settings.replaces` of its section) is removed: later flags may set it again.
    """
    result = {**settings}
    for flag in flags:
        path, sign, text = flag.partition("=")
        if not sign or not path:
            raise InputError(f"--set {flag}: expected name=value, for instance train.learning_rate=3e-4")
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {flag}: '{text}' is not a YAML value; put quotes around it") from None
        parts = path.split(".")
        _check_place(kind, result, parts, flag)
        result = _with_value(result, parts, value, flag)
        replaced = _section(kind, parts[:-1]).replaces.get(parts[-1], ())
        section = result
        for part in parts[:-1] if replaced else ():
            section = section[part]
        for name in replaced:
            section.pop(name, None)
    return result


def _check_place(kind: type[Settings], settings: Json, parts: Sequence[str], flag: str) -> None:
    """Raises InputError for a place in a list that the settings do not have."""
    at, node = cast(Any, kind), cast(Any, settings)
    for n, part in enumerate(parts):
        members = _members(at)
        if any(get_origin(one) is list for one in members) and node is None:
            name = ".".join(parts[:n])
            missing = (
                f"no source of {parts[n - 1]} is named" if parts[:2] == ["data", "sources"] else "not in the settings"
            )
            raise InputError(
                f"--set {flag}: {name}: {missing}, so there is no place {part}; give the list, {name}=[...]"
            )
        at = _inner(members[0] if len(members) == 1 else _named(members, "SourceConfig"), part)
        if isinstance(node, list):
            node = node[int(part)] if part.isdecimal() and int(part) < len(node) else ""
        else:
            node = node.get(part) if isinstance(node, dict) else None if node is None else ""


def _with_value(node: Any, parts: Sequence[str], value: Any, flag: str) -> Any:
    """A copy of settings with a value at a path; a number is a place in a list, from 0."""
    part, *rest = parts
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            places = f"a number from 0 to {len(node) - 1}" if node else "nothing: the list is empty"
            raise InputError(f"{shown_flag(flag)}: '{part}' is no place in a list of {len(node)}; expected {places}")
        inner, items = node[int(part)], [*node]
        if rest and isinstance(inner, str):
            raise InputError(
                f"{shown_flag(flag)}: place {part} of the list is the name '{inner}', which has no settings here; "
                "write the source out in a YAML file"
            )
        items[int(part)] = _with_value(inner, rest, value, flag) if rest else value
        return items
    result = {**node} if isinstance(node, dict) else {}
    inner = result.get(part)
    result[part] = _with_value(inner if isinstance(inner, dict | list) else {}, rest, value, flag) if rest else value
    return result


def load(kind: type[T], settings: Json, flags: list[str] | None = None, where: str = "settings") -> T:
    """Check everything at once. Raises one InputError with a line per problem: path, what is wrong, nearest name."""
    try:
        return kind.model_validate(override(kind, settings, flags or []))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            if problem["loc"][-1:] == ("str",) and problem["type"] == "string_type":
                continue  # the other half of `name | source written out`
            path = _path(kind, problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                known = _section(kind, problem["loc"][:-1]).model_fields
                text = f"no such setting; {_elsewhere(kind, problem['loc']) or suggest(str(problem['loc'][-1]), known)}"
            elif problem["type"] in _EXPECTED:
                text = f"{_EXPECTED[problem['type']]} was expected, found {problem['input']!r}"
                text += _example(path, problem["input"])
            elif problem["type"] != "value_error":
                text = f"{text}, found {problem['input']!r}"
            lines.append(f"{origin_of(path, settings, flags or [], where)}: {path or '(top)'}: {text}")
        raise InputError("\n".join(dict.fromkeys(lines))) from None


def _elsewhere(kind: type[Settings], loc: tuple[Any, ...]) -> str:
    """Where a setting stands that was named in another section; empty where there is none of that name."""
    found = [path for path in _paths(kind) if path.split(".")[-1] == loc[-1]]
    return f"it is {' or '.join(found)}" if found else ""


def _paths(kind: type[Settings], start: str = "") -> Iterator[str]:
    """The dotted names of all settings, those of a source too."""
    for name, item in kind.model_fields.items():
        yield f"{start}{name}"
        for one in _members(item.annotation):
            if isinstance(one, type) and issubclass(one, Settings):
                yield from _paths(one, f"{start}{name}.")
        if name == "sources":
            yield from _paths(_section(kind, (name, "TASK", "0", "SourceConfig")), f"{start}{name}.TASK.")


def _example(path: str, value: Any) -> str:
    """How to write a value of another kind than the setting has; empty where that cannot be told."""
    name, section = path.split(".")[-1], path.rpartition(".")[0]
    if isinstance(value, Mapping) or value is None:
        return f"; write `{name}: [{{...}}]`" if section == "data.sources" else ""
    given = value if isinstance(value, list) else [value]
    words = ", ".join(map(written_word, given))
    listed = f"[{words}]" if isinstance(value, list) else words
    if section == "data.sources" and given and is_data_file(str(given[0])):
        return f"; write `{name}: [{own_file(listed)}]`"
    if name == "files":
        splits = f"`files: {{train: {listed}}}`"
        return f"; write {splits}" if section == "text" else f"; write `files: {{all: {listed}}}` and `{SPLIT_BY}`"
    if path == "model":
        return f"; write `model: {{name: {words}}}`"
    return "" if isinstance(value, list) else f"; write `{name}: [{words}]`"


def _path(kind: type[Settings], loc: tuple[Any, ...]) -> str:
    """A location in dotted form, without the names by which pydantic tells the members of a union apart."""
    shown: list[str] = []
    at: Any = kind
    for part in loc:
        members = _members(at)
        if len(members) > 1:
            at = _named(members, part)
            continue
        shown.append(str(part))
        at = _inner(members[0], part)
    return ".".join(shown)


def _members(annotation: Any) -> list[Any]:
    """The types of a union but None; of another type, that type."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for one in get_args(annotation) if one is not type(None)]
    return [annotation]


def _named(members: Sequence[Any], part: Any) -> Any:
    """The member of a union that pydantic calls `SourceConfig`, or `function-after[_check(), SourceConfig]`."""
    return next((one for one in members if re.search(rf"\b{getattr(one, '__name__', one)}\b", str(part))), Any)


def _inner(annotation: Any, part: Any) -> Any:
    """The type of what stands under `part`: a setting, an entry of a mapping, an item of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation.model_fields[part].annotation if part in annotation.model_fields else Any
    arguments = get_args(annotation)
    return arguments[-1] if get_origin(annotation) in (dict, list) else Any


def _section(kind: type[Settings], path: Iterable[Any]) -> type[Settings]:
    """The class of the section at `path`, a location as pydantic gives it; names of union members are class names."""
    at: Any = kind
    for part in path:
        members = _members(at)
        at = _named(members, part) if len(members) > 1 else _inner(members[0], part)
        if isinstance(at, type) and issubclass(at, Settings):
            kind = at
    return kind


def describe(kind: type[Settings] = RunConfig, path: str = "") -> list[str]:
    """Lines of a Markdown table: every setting by dotted name, its default, its meaning."""
    lines = []
    for name, item in kind.model_fields.items():
        default = item.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            lines += describe(type(default), f"{path}{name}.")
            continue
        shown = "(needed)" if item.is_required() else f"`{default!r}`".replace("PydanticUndefined", "")
        meaning = " ".join((item.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{path}{name}` | {shown} | {meaning} |")
    return lines
