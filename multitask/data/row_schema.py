"""What one task expects of the records of one source: from a record to a checked row.

`{"id": "a1", "text": "재밌다", "label": 1}` read for `cls` with `labels: {0: {ko: 부정}, 1: {ko: 긍정}}` ->
`Row(id="a1", fields={"text": "재밌다", "label": "긍정"}, choices=("부정", "긍정"), where="reviews.jsonl:1", ...)`.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from multitask.config.data import LANGUAGE, DataConfig, SourceConfig, label_key
from multitask.config.languages import language_code
from multitask.data import sources as data_sources
from multitask.data.readers import RawRecord, Record, short
from multitask.data.sources import column_value, source_name
from multitask.errors import InputError, RowError, suggest
from multitask.pattern import fields, last_repetition, segments
from multitask.task import NoAnswer, Task

NO_COLUMN = "none"
SKIP = "skip"
BOOLEANS = {"true": "1", "false": "0", "1": "true", "0": "false"}
LEAVE_OUT = "`columns: {{{field}: none}}` leaves the field out"


@dataclass(frozen=True)
class Row:
    """One usable row of one task.

    id: the file's `id`, else `<file name>:<line>`.
    fields: exactly the fields of the task's stream pattern, text untouched; optional ones may be missing. Where the
        pattern repeats a segment, those of its last repetition.
    references: accepted answers; without others the target alone.
    language: the row's own, else the source's.
    choices: words of the closed label set in the row's language, in order; () without labels.
    classes: language-independent names of the choices: the English word if there is one, else the first.
    keep: span of the `truncate` field, in characters, that training must keep.
    where: `path:line`, for errors.
    no_answer: what the model is trained to write where a question has no answer; None: each has one.
    earlier: the fields of a repeated segment, once for each repetition before the last, in order.
    """

    id: str
    fields: dict[str, str]
    references: tuple[str, ...]
    language: str
    choices: tuple[str, ...]
    classes: tuple[str, ...]
    keep: tuple[int, int] | None
    where: str
    no_answer: str | None = None
    earlier: tuple[dict[str, str], ...] = ()

    @property
    def texts(self) -> list[str]:
        """Every text of the row, repetitions before the last first."""
        if not self.earlier:
            return list(self.fields.values())
        return [text for one in (*self.earlier, self.fields) for text in one.values()]

    @property
    def accepted(self) -> list[str]:
        """References as scores compare them: a class name of a closed answer, in any language; "" for no answer."""
        names = dict(zip(self.choices, self.classes, strict=True))
        if self.no_answer is not None:
            names[self.no_answer] = ""
        return [names.get(reference, reference) for reference in self.references]


class _Closed(NamedTuple):
    """The closed label set in one language."""

    by_label: dict[str, str]  # label as the source writes it -> word
    choices: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


class RowSchema:
    """What one task expects of the records of one source."""

    def __init__(self, task: Task, source: SourceConfig) -> None:
        self.task, self.source = task, source
        self.fields = fields(task.stream)
        self.repeated = fields(segments(task.stream)[1])
        self.skip_labels = frozenset(map(label_key, source.skip_labels))
        self.labels = {label_key(k): words for k, words in _labels(task, source).items()}
        self._check_columns()
        self.closed: dict[str, _Closed] = {}
        self._check_words()

    def _check_words(self) -> None:
        """Raises InputError for words that are empty, or no choices of the task, and where there are not two."""
        task, source = self.task, self.source
        distinct = {", ".join(_words(words)) for words in self.labels.values()}
        if task.choices is None and len(self.labels) > len(distinct) == 1:
            raise InputError(
                f"{source_name(source)}: labels: '{distinct.pop()}' is the word of every class "
                f"({', '.join(self.labels)}); expected at least two different words"
            )
        for word in dict.fromkeys(w for words in self.labels.values() for w in _words(words)):
            if not word.strip():
                raise InputError(f"{source_name(source)}: labels: a word is empty; every class needs a word")
            if task.choices and word not in task.choices:
                raise InputError(
                    f"{source_name(source)}: labels: '{word}' is not one of the choices of task '{task.name}': "
                    f"{', '.join(task.choices)}{_near(word, task.choices)}"
                )

    def _check_columns(self) -> None:
        """Raises InputError for a field of `columns` that the task does not have; `prepare` may read any."""
        own = {*self.fields, "id", "language", *([self.task.label] if self.task.label else [])}
        for field in self.source.columns:
            if self.task.prepare is None and field not in own:
                raise InputError(
                    f"{source_name(self.source)}: columns: task '{self.task.name}' has no field '{field}'; "
                    f"{suggest(field, own)}"
                )

    @property
    def named_columns(self) -> dict[str, str]:
        """Columns that must be in some row, by field: those of `columns`, and the label's where there are `labels`."""
        if self.source.synthetic is not None:
            return {}
        found = {field: column for field, column in self.source.columns.items() if column != NO_COLUMN}
        if self.source.labels and self.task.label and self.task.label not in self.source.columns:
            found[self.task.label] = self.task.label
        return found

    def missing_columns(self, missing: Mapping[str, str], found: Sequence[str]) -> str:
        """What to say of columns that are in no row."""
        lines = []
        for field, column in missing.items():
            asked = f"columns: {{{field}: {column}}}" if field in self.source.columns else "labels"
            lines.append(
                f"{source_name(self.source)}: {asked}: no row has a column '{column}'; found {', '.join(found)}; "
                f"`columns: {{{field}: NAME}}` names another{_near(column, found)}; {LEAVE_OUT.format(field=field)}"
            )
        return "\n".join(lines)

    def row(self, record: RawRecord) -> Row | None:
        """The checked row; None for one that `skip_labels` or `no_answer` leaves out. Raises RowError."""
        where, found = record.where, record.found
        if isinstance(found, RowError):
            raise found
        found = self._mapped(found)
        language = self._language(found, where)
        closed = self._closed(language, where)
        label, raw = self.task.label, found.get(self.task.label or "")
        if label is not None and raw is not None and str(raw).strip():
            if self.skip_labels and label_key(raw) in self.skip_labels:
                return None
            found = {**found, label: self._word(raw, closed, where)}
        prepared = self._prepared(found, where)
        if prepared is None:
            return None
        found, earlier = self._repetitions(prepared, where)
        texts = {field: self._text(found, field, where) for field in self.fields}
        fields = {field: text for field, text in texts.items() if text is not None}
        if self.source.language is None and "language" not in found:
            _check_script(fields, where)
        references, keep = self._extras(found, fields, where)
        own_id = found.get("id")
        row_id = record.id if own_id is None or own_id == "" else str(own_id)
        no_answer = None if self.source.no_answer == SKIP else self.source.no_answer
        return Row(
            row_id, fields, references, language, closed.choices, closed.classes, keep, where, no_answer, earlier
        )

    def _repetitions(self, found: Record, where: str) -> tuple[Record, tuple[dict[str, str], ...]]:
        """The values of the last repetition, and the checked texts of those before it."""
        if not self.repeated:
            return found, ()
        try:
            last, earlier = last_repetition(self.task, found)
        except ValueError as error:
            raise RowError(f"{where}: {error}") from None
        places = (f"{where}: repetition {number}" for number in range(1, len(earlier) + 1))
        checked = [
            {field: self._text(one, field, place) or "" for field in self.repeated}
            for one, place in zip(earlier, places, strict=True)
        ]
        return dict(last), tuple(checked)

    def _language(self, found: Record, where: str) -> str:
        own = found.get("language")
        if own is None or own == "":
            return self.source.language or LANGUAGE
        if not isinstance(own, str):
            raise RowError(f"{where}: field 'language' is {short(own)}, expected a name such as ko or en")
        try:
            return language_code(own)
        except ValueError as error:
            raise RowError(f"{where}: field 'language': {error}") from None

    def _mapped(self, found: Record) -> Record:
        """With our field names; one whose column is absent is absent, whatever else has its name."""
        if not self.source.columns:
            return found
        columns = self.source.columns.items()
        mapped = {field: None if column == NO_COLUMN else column_value(found, column) for field, column in columns}
        rest = {name: value for name, value in found.items() if name not in mapped}
        return {**rest, **{field: value for field, value in mapped.items() if value is not None}}

    def _closed(self, language: str, where: str) -> _Closed:
        if language not in self.closed:
            self.closed[language] = self._closed_in(language, where)
        return self.closed[language]

    def _closed_in(self, language: str, where: str) -> _Closed:
        own = self.task.choices or ()
        if not self.labels:
            return _Closed({label_key(choice): choice for choice in own}, own, own)
        by_label = {}
        for key, words in self.labels.items():
            word = words if isinstance(words, str) else words.get(language)
            if word is None:
                raise InputError(
                    f"{where}: label '{key}' has no word in language '{language}', only in {', '.join(words)}; "
                    "add one to `labels:` or correct `language:`"
                )
            by_label[key] = word
        if own:
            return _Closed(by_label, own, own)
        pairs = dict.fromkeys((by_label[key], _class_name(words)) for key, words in self.labels.items())
        choices, classes = tuple(word for word, _ in pairs), tuple(name for _, name in pairs)
        if len(set(choices)) < len(pairs) or len(set(classes)) < len(pairs):
            raise InputError(
                f"{source_name(self.source)}: labels: the words {', '.join(choices)} and {', '.join(classes)} do not "
                "pair up one to one; classes that share a word must share it in every language"
            )
        return _Closed(by_label, choices, classes)

    def _word(self, raw: object, closed: _Closed, where: str) -> str:
        if not closed.choices:
            raise InputError(
                f"{where}: field '{self.task.label}' is {short(raw)}, but the source has no `labels:`; add them in "
                f"order, a class and its word each, for instance `labels: {{{raw}: {{en: WORD, ko: WORD}}}}`"
            )
        key, valid = label_key(raw), closed.by_label
        key = key if key in valid else BOOLEANS.get(key, key)
        if key not in valid:
            raise RowError(f"{where}: label {short(raw)} is not one of {', '.join(valid)}{_near(key, valid)}")
        return valid[key]

    def _prepared(self, found: Record, where: str) -> Record | None:
        """As the task's `prepare` completes it; None for a row without an answer that is to be left out."""
        if self.task.prepare is None:
            return found
        try:
            return self.task.prepare(found)
        except NoAnswer as error:
            word = self.source.no_answer
            if word is None:
                raise RowError(
                    f"{where}: {error}; set `no_answer: skip` on the source to leave out rows without an answer (they "
                    "are counted), or `no_answer: WORD` for the word that the model learns to write there"
                ) from None
            return None if word == SKIP else {**found, self.task.target: word, "references": [word], "keep": None}
        except ValueError as error:
            raise RowError(f"{where}: {error}") from None
        except (TypeError, KeyError, IndexError, AttributeError) as error:  # a value of a shape it did not foresee
            shapes = ", ".join(f"{name}: {type(value).__name__}" for name, value in found.items())
            raise RowError(
                f"{where}: the row does not have the shape that task '{self.task.name}' expects "
                f"({type(error).__name__}: {error}); found {shapes}"
            ) from error

    def _text(self, found: Record, field: str, where: str) -> str | None:
        """One field, checked; None for an optional one that is absent, null or empty."""
        value = found.get(field)
        if value is not None and not isinstance(value, str):
            raise RowError(f"{where}: field '{field}' is {short(value)}, expected text, found {type(value).__name__}")
        if value is None or not value.strip():
            if field in self.task.optional:
                return None
            if field in found:
                raise RowError(f"{where}: field '{field}' is {'null' if value is None else 'empty'}, expected text")
            column = self.source.columns.get(field)
            named = f"field '{field}' (column '{column}')" if column else f"field '{field}'"
            raise RowError(
                f"{where}: {named} is missing, found {', '.join(map(str, found)) or 'nothing'}; "
                f"`columns: {{{field}: NAME}}` names another column{_near(column or field, map(str, found))}"
            )
        _check_text(value, field, where)
        return value

    def _extras(
        self, found: Record, fields: dict[str, str], where: str
    ) -> tuple[tuple[str, ...], tuple[int, int] | None]:
        """References and the span to keep, which only a task's `prepare` can give: a column may have those names."""
        own = (fields[self.task.target],)
        if self.task.prepare is None:
            return own, None
        references = tuple(found.get("references") or own)
        for reference in references:
            if not isinstance(reference, str):
                raise RowError(f"{where}: a reference is {short(reference)}, expected text")
            _check_text(reference, "references", where)
        keep = found.get("keep")
        if keep is None or self.task.truncate is None:
            return references, None
        start, end = keep
        length = len(fields[self.task.truncate])
        if not 0 <= start <= end <= length:
            raise RowError(
                f"{where}: the answer is said to be at characters {start} to {end} of field '{self.task.truncate}', "
                f"which has {length}"
            )
        return references, (start, end)


def _check_script(fields: Mapping[str, str], where: str) -> None:
    """Raises InputError for Korean text where no language is named: prompts and scores would be those of English."""
    text = "".join(fields.values())
    if text.isascii():
        return
    letters = [c for c in unicodedata.normalize("NFC", text) if c.isalpha()]
    if sum("가" <= c <= "힣" for c in letters) > len(letters) / 2:
        raise InputError(
            f"{where}: the text is Korean, and no language is named; set `language: ko` on the source, or give each "
            f"row a `language` (`language: {LANGUAGE}` keeps prompts and scores of English)"
        )


def closed_choices(task: Task, source: SourceConfig) -> dict[str, tuple[str, ...]]:
    """The answers of a closed task by language, in every language in which each label of the source has a word."""
    labels = list(_labels(task, source).values())
    named = [words for words in labels if isinstance(words, dict)]
    languages = (
        dict.fromkeys(language for words in named for language in words) if named else [source.language or LANGUAGE]
    )
    schema, where = RowSchema(task, source), source_name(source)
    return {
        language: schema._closed(language, where).choices
        for language in languages
        if all(language in words for words in named)
    }


def _check_text(text: str, field: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, which no tokenizer and no file can take."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"{where}: field '{field}' holds half of a surrogate pair at character {error.start + 1}, expected text"
            ) from None


def _labels(task: Task, source: SourceConfig) -> Mapping[str, str | dict[str, str]]:
    if task.label is None:
        return {}
    if source.synthetic is not None and not source.labels and task.choices is None:
        from multitask.data.synthetic import dataset

        return cast(Mapping[str, str | dict[str, str]], dataset.LABELS)
    return source.labels


def answer_words(task: Task, data: DataConfig) -> list[str]:
    """Every word that a closed task may answer with, in all languages of its sources; of other tasks none."""
    if not task.is_closed:
        return []
    found = dict.fromkeys(task.choices or ())
    for source in data_sources.resolve(task, data):
        found |= dict.fromkeys(word for words in _labels(task, source).values() for word in _words(words))
    return list(found)


def _words(words: str | dict[str, str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words.values())


def _class_name(words: str | dict[str, str]) -> str:
    return words if isinstance(words, str) else words.get("en") or next(iter(words.values()))


def _near(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where the message has listed all names already."""
    hint = suggest(name, valid)
    return f"; {hint}" if hint.startswith("did") else ""
