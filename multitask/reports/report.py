"""One report of any runs: `report.md`, `report.json`, and a page that needs nothing but itself.

`report([Path("runs/multi"), Path("runs/single")], Path("out"))["comparisons"]["multitask"]` ->
`[{"arm": "single-nli", "task": "nli", "difference": -0.04, "low": -0.07, "high": -0.01, "p": 0.008, ...}]`
"""

import json
from collections.abc import Sequence
from pathlib import Path

from multitask.config.run import Language
from multitask.errors import InputError
from multitask.files import replacing
from multitask.reports.arms import arms
from multitask.reports.compared_task import compared_tasks
from multitask.reports.comparisons import reference_arm
from multitask.reports.content import Content, content_of, examples_of_rows
from multitask.reports.rendering import pages
from multitask.reports.rendering.figures import WIDE, alone, draw_figures
from multitask.reports.rendering.words import words
from multitask.reports.results import read

MAX_PAGE_BYTES = 2_000_000
EXAMPLE_BYTES = (800_000, 250_000, 50_000, 0)
"""What examples may take of the page; the next one is tried while the page is too large."""


def report(paths: Sequence[Path], out: Path, against: str | None = None, language: Language = "en") -> Content:
    """Writes `report.md`, `report.json`, `report.html` and `figures/` to `out`; returns what `report.json` holds.

    Args:
        paths: results files, run folders, folders of them.
        out: a folder; what an earlier report left there is replaced.
        against: the arm that the others are compared with; None: the one that was scored on most tasks.
        language: of `report.md` and `report.html`.

    Raises:
        InputError: a file holds no results, or those of another schema, or numbers that are not finite; files without
            common rows; `against` is no arm; `out` cannot be written.
    """
    runs = read(paths)
    compared = arms(runs)
    tasks = compared_tasks(compared)
    chosen = reference_arm(tasks, compared, against)
    content = content_of(tasks, compared, chosen, _names(paths), runs)
    drawn = draw_figures(content, tasks, compared, words(language))
    names = alone(drawn)
    wider = draw_figures(content, tasks, compared, words(language), WIDE) if names else {}
    wide = {name: svg for name, svg in wider.items() if name in names}
    for budget in EXAMPLE_BYTES:
        content["examples"] = examples_of_rows(tasks, compared, budget)
        page = pages.page(content, drawn, wide, language)
        if len(page.encode()) < MAX_PAGE_BYTES:
            break
    files = {"report.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"}
    files |= {"report.md": pages.markdown(content, drawn, language), "report.html": page}
    files |= {f"figures/{name}.svg": svg + "\n" for name, svg in drawn.items()}
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for old in (out / "figures").glob("*.svg"):
            old.unlink()
        for name, text in files.items():
            with replacing(out / name) as aside:
                aside.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); choose another --out") from None
    return content


def _names(paths: Sequence[Path]) -> list[str]:
    """Of folders their names, of files those without the ending; of a run's results file its folder's."""
    names = []
    for path in (path.resolve() for path in paths):
        named = path.parent if path.name == "results.json" else path
        names.append(named.name if named.is_dir() else named.stem)
    return list(dict.fromkeys(names))
