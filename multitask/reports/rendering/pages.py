"""How a report looks: Markdown for a terminal or a code host, and one page of HTML that asks for nothing else.

`amount(6130688)` -> `"6.13 M"`, `probability(0.0002)` -> `"< 0.001"`: both say numbers in the same words.
"""

import html
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multitask.config.run import Language
from multitask.evaluation.bootstrap import MIN_ROWS
from multitask.reports.rendering import tables
from multitask.reports.rendering.numbers import CONTAMINATION, COSTS, COUNTS, amount, number, probability, signed
from multitask.reports.rendering.words import notes, sentence, singular, words

Content = dict[str, Any]


def page(content: Content, drawn: Mapping[str, str], wide: Mapping[str, str], language: Language) -> str:
    """`report.html`: every text of the results escaped, figures inline; wide: of some a form for wide screens."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    for show in (number, signed, probability, amount):
        environment.filters[show.__name__] = show
    environment.filters["breakable"] = breakable
    said = words(language)
    environment.filters["text"] = said.__getitem__
    inline, wider = (
        {name: re.sub(r' xmlns="[^"]*"', "", svg, count=1) for name, svg in each.items()} for each in (drawn, wide)
    )
    return environment.get_template("report.html.j2").render(
        report=content,
        figures=inline,
        wide=wider,
        language=language,
        t=said,
        counts=COUNTS,
        contamination_keys=CONTAMINATION,
        costs=COSTS,
        notes=lambda point: notes(said, point),
        **_said_of_all(content, language),
    )


def markdown(content: Content, drawn: Mapping[str, str], language: Language) -> str:
    """`report.md`: the tables of the page, and its figures by file name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["md"] = escaped
    said = words(language)
    return environment.get_template("report.md.j2").render(
        report=content,
        figures=list(drawn),
        t=said,
        scores=tables.scores(content, said),
        metrics=tables.metrics(content, said),
        main=tables.main(content, said),
        tests=tables.tests(content["comparisons"].get(content["against"], []), said),
        few_shot=tables.few_shot(content, said),
        gain=tables.gain(content, said),
        confusion=tables.matrix,
        cost=tables.cost(content, said),
        data=tables.data(content, said),
        settings=tables.settings(content, said),
        runs=tables.runs(content, said),
        environment_text=lambda parts: ", ".join(f"{k} {v}" for part in parts.values() for k, v in part.items()),
        **_said_of_all(content, language),
    )


def _said_of_all(content: Content, language: Language) -> dict[str, Any]:
    """Sentences that both forms of the report have."""
    said = words(language)
    shown = [arm for arm in content["arms"] if arm["has_main_score"]]
    untested: dict[str, list[str]] = defaultdict(list)
    for one in content["untested"]:
        untested[said[one["why"]]].append(f"{one['arm']} ({one['task']})")
    same_rows = []
    for name, task in content["tasks"].items():
        if len(task["row_sets"]) > 1:
            sets = "; ".join(
                said["row_set"].format(rows=one["num_rows"], split=one["split"])
                + f" ({', '.join(one['sha256'])})" * bool(one["sha256"])
                for one in task["row_sets"]
            )
            same_rows.append(said["explain_row_sets"].format(name, sets, task["metric"], task["num_paired"]))
        elif len(task["num_rows"]) > 1:
            few, many = task["num_rows"][0], task["num_rows"][-1]
            same_rows.append(said["explain_dropped"].format(name, few, many, task["num_paired"]))
        if 0 < task["num_paired"] < MIN_ROWS:
            same_rows.append(said["explain_few_rows"].format(name, task["num_paired"], MIN_ROWS))
    return {
        "title": title(content, language),
        "subtitle": singular(
            said["subtitle"].format(
                date=content["date"], arms=len(shown), tasks=len(content["tasks"]), files=content["num_files"]
            )
        ),
        "sentence": sentence(said, content),
        "one_seed": [arm["name"] for arm in content["arms"] if arm["num_runs"] == 1 and arm["shots"] != 0],
        "same_rows": same_rows,
        "untested": untested,
        "shown_of": ", ".join(
            said["shown_of"].format(name, count["shown"], count["disagreeing"])
            for name, count in content["examples"]["counts"].items()
            if count["disagreeing"]
        ),
    }


def breakable(text: str) -> str:
    """A path or a dotted name as HTML, that a narrow column may break after a point, a slash or a low line."""
    return re.sub(r"(?<=[./_])(?=[^./_])", "<wbr>", html.escape(text))


def title(content: Content, language: Language) -> str:
    """Names of what is reported, and of its models: `benchmark_smollm2: smollm2-135m`."""
    said = words(language)
    parts = []
    for names in (content["names"], content["models"]):
        text = ", ".join(names[:3])
        parts.append(text if len(names) <= 3 else said["and_more"].format(text, len(names) - 3))
    return ": ".join(part for part in parts if part) or said["title"]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table; `**bold**` of ours stays."""
    if isinstance(text, tables.Bold):
        return f"**{escaped(str(text))}**"
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
