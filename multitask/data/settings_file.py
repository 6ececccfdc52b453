"""Writes the settings of inspected data files as commented YAML.

`settings_text(inspect([Path("reviews.csv")], tasks), 0.05)` -> `tasks: [cls]`, `data: ...`, choices with their reasons.
"""

import os
import re
from collections.abc import Sequence

from multitask.config.loading import written_word
from multitask.data.inspection import Inspection

_MODELS = {"ko": "skt/kogpt2-base-v2"}
_WORDS = {"ko": "{0: 부정, 1: 긍정}"}


def settings_text(found: Inspection, share: float, tasks_dirs: Sequence[str] = (), by_column: bool = True) -> str:
    """The settings as commented YAML; where files do not name a split, it gets that fraction of the rows.

    tasks_dirs: folders of plugins to name in it. by_column: rows with the same text to truncate (a passage) are kept in
    one split, where there are such rows.
    """
    task, source = found.task, found
    root, model = written_word(os.path.abspath(found.root)), _MODELS.get(found.language, "openai-community/gpt2")
    lines = [
        f"# {source.num_rows:,} rows, task {task.name}. Look at it: run.py preview --config THIS_FILE",
        f"tasks: [{task.name}]",
        *([f"tasks_dirs: [{', '.join(map(written_word, tasks_dirs))}]"] if tasks_dirs else []),
        "data:",
        f"  root: {root}  # the folder of the files; a relative one starts from the working folder",
        "  sources:",
        f"    {task.name}:",
    ]
    rest = []
    if "all" in source.files:
        needs = {split: share for split in ("validation", "test") if split not in source.files}
        text = ", ".join(f"{split}: {needs.get(split, 0)}" for split in ("validation", "test"))
        rest.append(_split_line(source, text, by_column))
    files = ", ".join(f"{split}: [{', '.join(map(written_word, each))}]" for split, each in source.files.items())
    body = [f"files: {{{files}}}", *rest]
    if source.format is not None:
        quoted = "  # tabs, with cells in quotes as Excel writes them; `tsv` keeps the quotes as text"
        body.append(f"format: {source.format}{quoted if source.format == 'excel-tab' else ''}")
    if source.encoding != ["utf-8"]:
        several = len(source.encoding) > 1
        body.append(f"encoding: {'[' + ', '.join(source.encoding) + ']' if several else source.encoding[0]}")
    both = ""
    if 10 * source.num_without_hangul >= source.num_sampled > 0:
        both = (
            f"  # {source.num_without_hangul} of the first {source.num_sampled} rows have no Hangul; a column "
            "`language` (ko, en) names that of each row"
        )
    body.append(f"language: {source.language}{both}")
    renamed = {name: column for name, column in source.columns.items() if name != column}
    if renamed:
        pairs = ", ".join(f"{written_word(name)}: {written_word(column)}" for name, column in renamed.items())
        body.append(f"columns: {{{pairs}}}  # our field: the file's column")
    body += _label_lines(source)
    if source.num_unanswered:
        body.append(f"no_answer: skip  # {source.num_unanswered} of the first rows have no answer; or a word for them")
    lines += [f"      {'- ' if n == 0 else '  '}{line}" for n, line in enumerate(body)]
    lines += [
        f"# model: {{name: {model}}}  # a pretrained model; without it a small new one is trained",
        "# train: {epochs: 3, learning_rate: 3.0e-4}",
    ]
    return "\n".join(lines) + "\n"


def _split_line(found: Inspection, shares: str, by_column: bool) -> str:
    if found.repeated is None:
        return f"split_by: {{{shares}}}  # by row; `column: NAME` keeps rows with equal values together"
    texts = f"{found.num_rows:,} rows share {found.num_texts:,} texts of '{found.repeated}'"
    if not by_column:
        return f"split_by: {{{shares}}}  # by row: {texts}, too few to keep each in one split"
    return f"split_by: {{column: {written_word(found.repeated)}, {shares}}}  # {texts}; each stays in one split"


def _label_lines(found: Inspection) -> list[str]:
    classes, own = found.classes, found.task.choices
    if not classes:
        return []
    counts = ", ".join(f"{name} ({number:,} row{'s' * (number > 1)})" for name, number in list(classes.items())[:10])
    lines = [f"# classes: {counts}{', ...' if len(classes) > 10 else ''}"]
    if own is not None:
        if set(classes) <= set(own):
            return lines
        numbers = sorted(key for key in classes if key.isdecimal())
        if numbers == [str(n) for n in range(len(own))]:
            pairs = ", ".join(f"{n}: {written_word(word)}" for n, word in zip(numbers, own, strict=True))
            lines.append(f"labels: {{{pairs}}}  # CHECK the order: the file does not tell it")
        skipped = [key for key in classes if key not in numbers and key not in own]
        if skipped:
            lines.append(
                f"skip_labels: [{', '.join(map(written_word, skipped))}]  # rows of these classes are left out"
            )
        return lines
    if all(re.fullmatch(r"-?\d+(\.\d+)?", key) or key in ("true", "false") for key in classes):
        pairs = ", ".join(f"{key}: {written_word(key)}" for key in sorted(classes, key=_order))
        words = _WORDS.get(found.language, "{0: negative, 1: positive}")
        return [
            *lines,
            f"labels: {{{pairs}}}  # class: the word that the model writes, better one with a meaning: {words}",
        ]
    return [*lines, f"labels: [{', '.join(map(written_word, classes))}]"]


def _order(key: str) -> tuple[float, str]:
    return (float(key) if re.fullmatch(r"-?\d+(\.\d+)?", key) else 0.0, key)
