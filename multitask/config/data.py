"""Settings of data: where rows and texts come from."""

import codecs
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from multitask.config.base import Settings
from multitask.config.languages import language_code

SPLITS = ("train", "validation", "test")
LANGUAGE = "en"
"""Of rows that name no language."""

Encoding = Literal["utf-8", "cp949"]
ENCODINGS = ("utf-8", "cp949")
Split = Literal["train", "validation", "test"]
SPLIT_BY = "split_by: {validation: 0.05, test: 0.05}"
_DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")


def is_data_file(name: str) -> bool:
    """Whether a name is that of a file with rows."""
    return name.lower().removesuffix(".gz").endswith(_DATA_SUFFIXES)


def own_file(name: str) -> str:
    """A source that reads one file, as YAML."""
    return f"{{files: {{all: {name}}}, {SPLIT_BY}}}"


def label_key(label: object) -> str:
    """A class as settings and rows may write it, in one form: 1, 1.0, "1" and "1.0" are `1`; True and "true" `true`."""
    if type(label) is int:  # most labels
        return str(label)
    if isinstance(label, bool) or (isinstance(label, str) and label in ("True", "TRUE", "False", "FALSE")):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    text = normalize("NFC", str(label))
    return text.partition(".")[0] if re.fullmatch(r"-?(0|[1-9]\d*)\.0+", text) else text


def _encoding_name(name: Any) -> Any:
    """`euc-kr`, `ms949` and `uhc` are cp949 or a part of it."""
    try:
        found = codecs.lookup(name).name if isinstance(name, str) else name
    except LookupError:
        return name
    return {"euc_kr": "cp949", "utf-8-sig": "utf-8"}.get(found, found)


def _encodings(value: Any) -> Any:
    """A list of names; utf-8 first, since its rules are the stricter ones."""
    names = [value] if isinstance(value, str) else value
    return sorted(map(_encoding_name, names), key="utf-8".__ne__) if isinstance(names, list) else names


def encoding_names(text: str) -> list[Encoding]:
    """The encodings between the commas of a text. Raises ValueError for one that is not read."""
    names = [name.strip() for name in text.split(",")]
    found: list[Encoding] = _encodings(names)
    if unknown := [name for name in names if _encoding_name(name) not in ENCODINGS]:
        raise ValueError(
            f"'{unknown[0]}' is no encoding that is read; expected {' or '.join(ENCODINGS)} (also euc-kr, ms949)"
        )
    return list(dict.fromkeys(found))


def _nfc(value: Any) -> Any:
    """Texts of a setting in NFC, also in lists and mappings: two ways to write the same syllables are one name."""
    if isinstance(value, str):
        return normalize("NFC", value)
    if isinstance(value, dict):
        return {_nfc(key): _nfc(inner) for key, inner in value.items()}
    return [_nfc(inner) for inner in value] if isinstance(value, list) else value


def _labels(value: Any) -> Any:
    """A list is of words that rows hold as they are; languages of words by code."""
    if not isinstance(value, list | dict):
        raise ValueError(f"found {value!r}, expected words in order, `[WORD, WORD]`, or `{{CLASS: WORD, CLASS: WORD}}`")
    found: dict[str, Any] = {}
    for label, words in value.items() if isinstance(value, dict) else zip(value, value, strict=True):
        key = label_key(label)
        if key in found:
            raise ValueError(f"class '{key}' is given twice")
        if isinstance(words, dict) and words and isinstance(value, dict):
            found[key] = {_code(language): _word(word, key) for language, word in words.items()}
        else:
            found[key] = _word(words, key)
    return _nfc(found)


def _word(value: Any, key: str) -> str:
    """The word of a class: YAML reads 0 as a number and true as a truth value, and both are words, too."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    found = "nothing" if value is None else repr(value)
    raise ValueError(f"class '{key}': found {found}, expected its word, or words by language: `{{en: WORD, ko: WORD}}`")


def _code(name: Any) -> Any:
    return language_code(name) if isinstance(name, str) else name


Encodings = Annotated[list[Encoding], BeforeValidator(_encodings), Field(min_length=1)]
Names = Annotated[dict[str, str], BeforeValidator(_nfc)]
Labels = Annotated[dict[str, str | dict[str, str]], BeforeValidator(_labels)]
LabelKeys = Annotated[
    list[str], BeforeValidator(lambda keys: [*map(label_key, keys)] if isinstance(keys, list) else keys)
]
Language = Annotated[str, BeforeValidator(_code)]


class SplitConfig(Settings):
    """How one set of rows is split into train, validation and test: by a stable hash of a column."""

    renamed = {"by": "column"}

    column: Annotated[str, BeforeValidator(_nfc)] | None = None
    """Column, as the file names it, whose equal values stay together; for instance the article of a question. None: the
    row itself, so that only equal rows stay together."""
    validation: float = Field(0.05, ge=0, lt=1)
    """Fraction of groups in validation."""
    test: float = Field(0.05, ge=0, lt=1)
    """Fraction of groups in test."""

    @model_validator(mode="after")
    def _room(self) -> "SplitConfig":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave no rows for train")
        return self


class SourceConfig(Settings):
    """Where rows come from. Exactly one of `files`, `hub`, `synthetic`."""

    renamed = {"world": "synthetic", "cut": "split_by"}

    files: dict[Literal["train", "validation", "test", "all"], list[str]] | None = None
    """Local files of each split, relative to `data.root`, read one after the other; `*`, `?` and `**` match names.
    `all`: to be split as `split_by` says."""
    hub: str | None = None
    """Namespaced name on the Hugging Face hub, read through `datasets`; a local folder works too."""
    hub_config: str | None = None
    """The hub set's configuration, for instance `nli` of `klue/klue`."""
    revision: str | None = None
    """Commit, branch or tag of the hub set; `refs/convert/parquet` for sets that exist only as loading scripts."""
    hub_splits: dict[Literal["train", "validation", "test", "all"], str] = {
        "train": "train", "validation": "validation", "test": "test"
    }  # fmt: skip
    """The hub's name of each split."""
    synthetic: dict[Split, int] | None = None
    """Number of rows of each split of the synthetic dataset that ships with the package."""
    format: Literal["jsonl", "csv", "tsv", "excel-tab", "parquet", "text"] | None = None
    """File format; None: by extension (`.gz` may follow). TSV has no quoting; excel-tab is TSV with cells in quotes, as
    Excel and spreadsheets write it; text is one row `text` per line."""
    encoding: Encodings = ["utf-8"]
    """Text encoding: utf-8 with or without BOM, or cp949 (also euc-kr, ms949). Of a list, each line is read in the
    first that fits: `[utf-8, cp949]` for a file that mixes them."""
    columns: Names = {}
    """Our field -> the source's column; a dot goes into a nested column (`answers.text`); `none`: the field is left
    out."""
    labels: Labels = {}
    """Class as the source writes it -> its word, or its word by language; in order. A list: words as they are."""
    skip_labels: LabelKeys = []
    """Classes whose rows are left out and counted, for instance -1 of SNLI."""
    no_answer: Annotated[str, BeforeValidator(_nfc), Field(min_length=1)] | None = None
    """Of rows whose question has no answer (SQuAD 2.0): `skip` leaves them out and counts them, any other text is what
    the model learns to write; it is scored as an empty answer. None: an error."""
    join: int = Field(1, ge=1)
    """So many rows one after another make one, line by line: documents of a useful length from text in short lines. For
    rows of a text alone, without a label."""
    language: Language | None = None
    """Language of the rows that do not carry a `language` of their own: a BCP 47 code or a name (ko, ko-KR, korean).
    None: en, and an error for Korean text."""
    split_by: SplitConfig | None = None
    """How `all` is split."""
    on_bad_row: Literal["raise", "skip"] | None = None
    """As `data.on_bad_row`, for this source alone; None: that one."""

    @field_validator("files", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return {k: [v] if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        given = [k for k in ("files", "hub", "synthetic") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of files, hub, synthetic is needed, found {', '.join(given) or 'none'}")
        splits: Any = self.files if self.files is not None else self.hub_splits if self.hub else {}
        if ("all" in splits) != (self.split_by is not None):
            if self.split_by is None:
                raise ValueError(f"rows of `all` are split as `split_by` says, and it is missing; add `{SPLIT_BY}`")
            key = "files" if self.files is not None else "hub_splits"
            step = "in place of `train`" if "train" in splits else "for the rows to be split"
            raise ValueError(
                f"`split_by` splits rows of `all`, and {key} has only {', '.join(splits) or 'none'}; write "
                f"`{key}: {{all: ...}}` {step}, or leave out `split_by`"
            )
        return self


class DataConfig(Settings):
    """Which rows the tasks are trained and scored on."""

    sources: dict[str, list[str | SourceConfig]] = {}
    """Task -> its sources: preset names (`configs/data`) or sources written out. Not named: the synthetic dataset."""
    root: Path | None = None
    """Folder that relative file names start from; None: the environment's MULTITASK_DATA, else the working folder."""
    on_bad_row: Literal["raise", "skip"] = "raise"
    """What a row that cannot be used does: stop with file and line, or be skipped and counted."""
    limit: int | None = Field(None, ge=1)
    """Use the first so many usable rows of each task's training split; None: all."""
    cache: Path | None = None
    """Folder of encoded rows; None: `multitask` in the user's cache folder (XDG_CACHE_HOME)."""


class TextConfig(Settings):
    """A plain text corpus, for pretraining and for training tokenizers. Exactly one of `files`, `synthetic`."""

    renamed = {"world": "synthetic"}

    files: dict[Literal["train", "validation"], list[str]] | None = None
    """Local files of each split, relative to `root`, read one after the other; `*`, `?` and `**` match names."""
    synthetic: dict[Literal["train", "validation"], PositiveInt] | None = None
    """Number of documents of each split of the synthetic corpus that ships with the package."""
    root: Path | None = None
    """Folder that relative file names start from; None: the environment's MULTITASK_DATA, else the working folder."""
    format: Literal["text", "jsonl"] | None = None
    """File format; None: by extension (`.gz` may follow)."""
    fields: list[str] = Field(["text"], min_length=1)
    """Of JSONL: the fields that make a document, joined by a line break."""
    encoding: Annotated[Encoding, BeforeValidator(_encoding_name)] = "utf-8"
    """Text encoding: utf-8 with or without BOM, or cp949 (also euc-kr, ms949)."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What a document is in plain text: the whole file, a stretch between empty lines, a line that is not empty."""
    before: str | None = None
    """Token put before each document, for instance `<s>`; None: none."""
    after: str | None = None
    """Token put after each document; None: the tokenizer's eos, empty: none."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Fraction of the characters, at the end of the training text, that is the validation text where none is named; the
    document at the border is divided."""
    cache: Path | None = None
    """Folder of encoded text; None: `multitask` in the user's cache folder (XDG_CACHE_HOME)."""

    @field_validator("files", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return {k: [v] if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_origin(self) -> "TextConfig":
        given = [name for name in ("files", "synthetic") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of files, synthetic is needed, found {', '.join(given) or 'none'}")
        origin: Any = self.files if self.files is not None else self.synthetic
        for split in ("train", *origin):
            if not origin.get(split):
                raise ValueError(f"{given[0]}: there is nothing for {split}; expected at least one")
        return self
