import json
import math
import re
from collections.abc import Sequence
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import report_files
from report_files import answers, trained, write, write_shots

from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.reports.rendering.figures import Bar, bars
from multitask.reports.rendering.numbers import COUNTS, amount, number, probability, signed
from multitask.reports.rendering.words import sentence, words
from multitask.reports.report import MAX_PAGE_BYTES, report

GOLD = "ab" * 40
GOOD = GOLD[:72] + "b" * 8
POOR = "ab" * 20 + "b" * 40


class Page(HTMLParser):
    """Attributes by element, text of the whole page, and the data of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.inside in ("script", "style") else self.words).append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def suite(folder: Path) -> list[Path]:
    """Two arms of two seeds, one of them trained on one task alone, and prompts with 0 and 4 demonstrations."""
    for seed, many, one in ((7, GOOD, POOR), (8, GOOD[::-1][1:] + "b", POOR)):
        write(folder / f"many-{seed}.json", "multitask", {"nli": answers(many, GOLD)}, seed=seed)
        write(folder / f"one-{seed}.json", "single-nli", {"nli": answers(one, GOLD)}, seed=seed)
    draws = {0: [answers(POOR, GOLD)], 4: [answers(POOR, GOLD), answers(GOOD, GOLD)]}
    write_shots(folder / "shots.json", draws)
    return [folder]


def made(paths: Sequence[Path], out: Path, **changes: Any) -> tuple[dict[str, Any], str, str]:
    content = report(paths, out, **changes)
    return content, (out / "report.html").read_text("utf-8"), (out / "report.md").read_text("utf-8")


# ---------------------------------------------------------------- real runs


def test_runs_as_train_and_evaluate_leave_them(tmp_path: Path) -> None:
    content, page, markdown = made([trained()], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8")) == content
    names = {arm["name"]: arm for arm in content["arms"]}
    assert {"multitask", "single-nli", "both-7", "majority", "unigram"} <= set(names)
    assert names["multitask"]["seeds"] == [7, 8]
    assert content["against"] == "multitask"
    assert content["tasks"]["nli"] == {
        "metric": "accuracy",
        "higher_is_better": True,
        "num_rows": [16],
        "best_arms": content["tasks"]["nli"]["best_arms"],
        "num_paired": 16,
        "row_sets": content["tasks"]["nli"]["row_sets"],
    }
    assert len(content["tasks"]["nli"]["row_sets"]) == 1
    first, second = (json.loads((trained() / f"both-{s}" / "results.json").read_text()) for s in (7, 8))
    for task in ("nli", "qa"):
        values = [file["tasks"][task]["metrics"] for file in (first, second)]
        for metric, score in names["multitask"]["scores"][task].items():
            assert score["value"] == pytest.approx(sum(v[metric]["value"] for v in values) / 2)
    # The evaluation of the first run gave that run's scores; its difference to the mean of both is half of theirs.
    tested = {(t["arm"], t["task"]): t for t in content["comparisons"]["multitask"]}
    assert set(tested) == {("both-7", "nli"), ("both-7", "qa"), ("single-nli", "nli")}
    for task, metric in (("nli", "accuracy"), ("qa", "f1")):
        values = [file["tasks"][task]["metrics"][metric]["value"] for file in (first, second)]
        assert tested["both-7", task]["difference"] == pytest.approx((values[0] - values[1]) / 2, abs=1e-5)
    assert [row["task"] for row in content["gain"]] == ["nli"]
    assert {row["task"] for row in content["contamination"]} == {"nli", "qa"}
    assert {row["split"] for row in content["contamination"]} == {"train", "test"}
    assert all(row[key] is not None for row in content["contamination"] for key in COUNTS)
    scored = {tuple(row["arms"]) for row in content["contamination"] if row["task"] == "qa"}
    assert scored == {("both-7", "multitask"), ("multitask",)}, "test rows of both, training rows of one"
    assert {matrix["arm"] for matrix in content["confusion"]} == {"multitask", "single-nli", "both-7"}
    counts = {m["arm"]: sum(map(sum, m["counts"])) for m in content["confusion"]}
    assert counts == {"multitask": 32, "single-nli": 16, "both-7": 16}, "of all seeds"
    assert content["environments"] == [{"versions": first["versions"], "hardware": first["hardware"]}]
    assert len(content["runs"]) == 4
    assert "model.vocab_size: 400" in " ".join(Page(page).words)
    figures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {f"{kind}-{task}" for kind in ("scores", "learning", "cost") for task in ("nli", "qa")}
    assert all(f"figures/{name}.svg" in markdown for name in figures)


def test_a_repeated_report_has_the_same_bytes_and_no_old_files(tmp_path: Path) -> None:
    paths = suite(tmp_path)
    report(paths, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    (tmp_path / "out" / "figures" / "scores-gone.svg").write_text("")
    report(paths, tmp_path / "out")  # its own report.json lies in the folder that is searched
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.is_file()} == before


# ---------------------------------------------------------------- numbers


def test_significance_by_hand(tmp_path: Path) -> None:
    content, page, markdown = made(suite(tmp_path), tmp_path / "out", against="single-nli")
    tested = {test["arm"]: test for test in content["comparisons"]["single-nli"]}
    assert set(tested) == {"multitask", "0-shot", "4-shot"}
    assert tested["0-shot"]["difference"] == 0
    assert (tested["0-shot"]["p"], tested["0-shot"]["verdict"]) == (1, "no clear difference")
    values = {arm["name"]: arm["scores"]["nli"]["accuracy"]["value"] for arm in content["arms"]}
    for arm, test in tested.items():
        assert test["difference"] == pytest.approx(values[arm] - values["single-nli"], abs=1e-6)
        assert test["low"] <= test["difference"] <= test["high"]
    assert tested["multitask"]["verdict"] == "better"
    for test in tested.values():
        assert test["p"] <= test["p_adjusted"] <= min(1, 3 * test["p"] + 0.01), "never stricter than Bonferroni"
    back = {test["arm"]: test for test in content["comparisons"]["multitask"]}["single-nli"]
    assert (back["difference"], back["verdict"]) == (-tested["multitask"]["difference"], "worse")
    assert content["gain"][0]["difference"] == tested["multitask"]["difference"]
    assert content["gain"][0]["p_adjusted"] == pytest.approx(tested["multitask"]["p"], abs=0.002), "a family of one"
    assert "## All comparisons with single-nli" in markdown
    assert "<option selected>single-nli</option>" in page


def test_the_report_names_arms_whose_seed_noise_is_not_known(tmp_path: Path) -> None:
    """One seed, or one draw of demonstrations; without demonstrations nothing is drawn."""
    paths = suite(tmp_path)
    write(tmp_path / "x.json", "once", {"nli": answers(GOOD, GOLD)})
    content, page, markdown = made(paths, tmp_path / "out", against="multitask")
    assert {arm["name"]: arm["num_runs"] for arm in content["arms"] if arm["num_runs"]} == {
        "multitask": 2,
        "single-nli": 2,
        "0-shot": 1,
        "4-shot": 2,
        "once": 1,
    }
    tested = {test["arm"]: test["has_seed_noise"] for test in content["comparisons"]["multitask"]}
    assert tested == {"single-nli": True, "0-shot": False, "4-shot": True, "once": False}
    for text in (page, markdown):
        assert "One seed or draw: once. Their noise is not in the intervals and p-values." in text


def test_rows_are_matched_by_id_not_by_place(tmp_path: Path) -> None:
    """The same answers in another order are the same answers: no difference, and none on any resample."""
    rows = answers(GOOD, GOLD)
    write(tmp_path / "a.json", "first", {"nli": rows})
    write(tmp_path / "b.json", "second", {"nli": rows[::-1]})
    content, _, _ = made([tmp_path], tmp_path / "out", against="first")
    (test,) = content["comparisons"]["first"]
    assert (test["difference"], test["low"], test["high"], test["p"]) == (0, 0, 0, 1)
    assert content["examples"]["counts"] == {"nli": {"disagreeing": 0, "shown": 0}}


def test_examples_are_those_of_the_first_seed(tmp_path: Path) -> None:
    for seed, said in ((7, "aab"), (8, "bbb")):
        write(tmp_path / f"{seed}.json", "mine", {"nli": answers(said, "aaa")}, seed=seed)
    write(tmp_path / "z.json", "other", {"nli": answers("bbb", "aaa")})
    content, _, _ = made([tmp_path], tmp_path / "out")
    assert content["examples"]["arms"] == ["mine", "other"]
    assert [(row["id"], row["predictions"]) for row in content["examples"]["rows"]] == [
        ("r0", ["a", "b"]),
        ("r1", ["a", "b"]),
    ]


def test_less_is_better_of_bits_per_byte(tmp_path: Path) -> None:
    """Bits per byte replace perplexity, because they compare across tokenizers; the lower arm is the better one."""
    for name, nats in (("low", 1.0), ("high", 2.0)):
        rows = [{**row, "nll": {"nll": nats + n % 3, "tokens": 3.0, "bytes": 4.0}, "scores": {}, "prediction": None}
                for n, row in enumerate(answers(GOLD, GOLD))]  # fmt: skip
        path = tmp_path / f"{name}.json"
        write(path, name, {"gen": answers(GOLD, GOLD)})
        (tmp_path / f"{name}.json.predictions" / "gen.jsonl").write_text("\n".join(map(json.dumps, rows)))
        content = json.loads(path.read_text())
        bits = metrics.score(metrics.build("bits_per_byte", "en"), [row["nll"] for row in rows])
        content["tasks"]["gen"]["metrics"] = {
            "perplexity": report_files.score(9),
            "bits_per_byte": report_files.score(bits),
        }
        content["tasks"]["gen"]["baselines"] = {}
        path.write_text(json.dumps(content))
    content, _, _ = made([tmp_path], tmp_path / "out", against="low")
    assert content["tasks"]["gen"]["metric"] == "bits_per_byte"
    (test,) = content["comparisons"]["low"]
    assert (test["arm"], test["verdict"]) == ("high", "worse")
    assert test["difference"] == pytest.approx(1 / 4 / math.log(2), abs=1e-6)
    assert content["confusion"] == []


def test_few_shot_keeps_its_two_uncertainties_apart(tmp_path: Path) -> None:
    content, _, markdown = made(suite(tmp_path), tmp_path / "out")
    zero, four = content["few_shot"]
    assert (zero["shots"], zero["sd"], zero["num"]) == (0, None, 1)
    assert (four["shots"], four["num"], four["num_fitted"]) == (4, 2, 3)
    rights = [report_files.accuracy(answers(said, GOLD)) for said in (POOR, GOOD)]
    assert four["value"] == pytest.approx(sum(rights) / 2)
    assert four["sd"] == pytest.approx(abs(rights[0] - rights[1]) / math.sqrt(2))
    assert (four["low"], four["high"]) == pytest.approx((four["value"] - 0.05, four["value"] + 0.05))
    assert set(four["rules"]) == {"raw", "calibrated"}
    assert (zero["notes"], four["notes"]) == ([], [])
    assert (four["num_unfinished"], four["num_empty"]) == (2000, 4)
    assert "| 2,000 answers unfinished; 4 answers empty |" in markdown
    assert "| sd over draws | 95 % interval over rows |" in markdown
    assert ["0-shot", "4-shot"] in [run["arms"] for run in content["runs"]], "one file, listed once"
    assert "prompted" in content["contamination"][0]["arms"]


def test_the_best_prompting_is_named_by_validation_rows_not_by_test_rows(tmp_path: Path) -> None:
    """The four-shot arm has the better test score; validation rows, which alone decide, prefer zero-shot."""
    write_shots(tmp_path / "shots.json", {0: [answers(POOR, GOLD)], 4: [answers(GOOD, GOLD)]})
    found = json.loads((tmp_path / "shots.json").read_text("utf-8"))
    for shots, score in (("0", 0.6), ("4", 0.5)):
        chosen = {
            "template": "plain",
            "split": "validation",
            "num_rows": 50,
            "templates": {"plain": score, "other": 0.4},
        }
        found["tasks"]["nli"]["per_shot"][shots]["selection"] = {"en": chosen}
    (tmp_path / "shots.json").write_text(json.dumps(found), "utf-8")
    content, page, markdown = made([tmp_path / "shots.json"], tmp_path / "out")
    zero, four = content["few_shot"]
    assert four["value"] > zero["value"]
    assert (zero["is_best"], zero["validation"], four["is_best"]) == (True, 0.6, False)
    best = "best prompting, chosen on validation rows (0.600)"
    assert markdown.count(best) == page.count(best) == 1


def test_confusion_by_hand(tmp_path: Path) -> None:
    content, _, _ = made([write(tmp_path / "a.json", "mine", {"nli": answers("aabbc", "aaabb")})], tmp_path / "out")
    (matrix,) = content["confusion"]
    assert matrix["labels"] == ["a", "b", "c"]
    assert matrix["counts"] == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_many_classes_are_put_together(tmp_path: Path) -> None:
    gold = [f"class-{n % 20:02}" for n in range(60)] + ["class-19"] * 5
    content, _, _ = made([write(tmp_path / "a.json", "mine", {"cls": answers(gold, gold)})], tmp_path / "out")
    (matrix,) = content["confusion"]
    assert matrix["labels"][0] == "class-19"
    assert matrix["labels"][-1] == "(others)"
    assert len(matrix["labels"]) == 12
    assert sum(map(sum, matrix["counts"])) == 65
    assert matrix["counts"][-1][-1] == 27


def test_contamination_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "mine", {"nli": answers(GOLD, GOLD)})
    content = json.loads(path.read_text())
    content["data"]["nli"]["contamination"] = {"num_duplicates": 3, "num_contained": 4321, "ngram": 8, "overlap": 0.125}
    path.write_text(json.dumps(content))
    found, page, markdown = made([path], tmp_path / "out")
    (line,) = found["contamination"]
    assert (line["num_duplicates"], line["num_contained"], line["overlap"]) == (3, 4321, 0.125)
    assert "4,321" in page
    assert "| 3 | 4,321 | 8 | 0.125 |" in markdown


def test_settings_that_differ(tmp_path: Path) -> None:
    for name, rate in (("a", 0.1), ("b", 0.2)):
        config = {"seed": 7, "same": 1, "train": {"learning_rate": rate}}
        write(tmp_path / f"{name}.json", name, {"nli": answers(GOLD, GOLD)}, config=config)
    content, _, _ = made([tmp_path], tmp_path / "out")
    assert content["settings"]["differing"] == {"train.learning_rate": {"a": "0.1", "b": "0.2"}}


def test_the_reference_arm(tmp_path: Path) -> None:
    paths = suite(tmp_path)
    assert report(paths, tmp_path / "out")["against"] == "multitask"
    with pytest.raises(InputError, match=r"--against: no arm 'multitsk' in these results; did you mean 'multitask'\?"):
        report(paths, tmp_path / "out", against="multitsk")


# ---------------------------------------------------------------- what is not there


def test_an_arm_without_predictions_is_named_and_not_tested(tmp_path: Path) -> None:
    paths = suite(tmp_path)
    (tmp_path / "one-8.json.predictions" / "nli.jsonl").unlink()
    content, page, markdown = made(paths, tmp_path / "out")
    missing = {one["arm"]: one["why"] for one in content["untested"]}
    assert missing == {"single-nli": "no_predictions"}
    assert "single-nli" not in {test["arm"] for test in content["comparisons"]["multitask"]}
    assert content["gain"][0]["verdict"] == "not tested"
    assert "Not tested, its predictions are not beside its results file: single-nli (nli)." in markdown
    assert "its predictions are not beside its results file: single-nli (nli)" in " ".join(Page(page).words)
    assert [m["arm"] for m in content["confusion"]] == ["0-shot", "4-shot", "multitask"]


def test_nothing_but_results_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "mine", {"nli": answers(GOLD, GOLD)})
    (tmp_path / "a.json.predictions" / "nli.jsonl").unlink()
    content, page, _ = made([path], tmp_path / "out")
    assert (content["comparisons"], content["examples"]["rows"], content["confusion"]) == ({}, [], [])
    assert "nothing can be tested" in page
    assert "No two arms with predictions gave different answers" in page


def test_rows_that_only_some_arms_have(tmp_path: Path) -> None:
    rows = answers(GOOD, GOLD)
    write(tmp_path / "a.json", "first", {"nli": rows})
    write(tmp_path / "b.json", "second", {"nli": answers(POOR, GOLD)[3:]})
    path = tmp_path / "b.json"
    content = json.loads(path.read_text())
    content["data"]["nli"]["num_dropped"] = 3
    path.write_text(json.dumps(content))
    found, page, markdown = made([tmp_path], tmp_path / "out", against="first")
    assert found["tasks"]["nli"]["num_rows"] == [77, 80]
    assert found["tasks"]["nli"]["num_paired"] == 77
    (test,) = found["comparisons"]["first"]
    expected = report_files.accuracy(answers(POOR, GOLD)[3:]) - report_files.accuracy(rows[3:])
    assert test["difference"] == pytest.approx(expected, abs=1e-6)
    for text in (page, markdown):
        assert (
            "nli: windows differ, so arms scored between 77 and 80 rows; comparisons use the 77 that all have." in text
        )


def test_an_id_that_occurs_twice_is_two_rows(tmp_path: Path) -> None:
    for name, said in (("a", "aab"), ("b", "abb")):
        write(tmp_path / f"{name}.json", name, {"nli": answers(said, "abb", id="same")})
    content, _, _ = made([tmp_path], tmp_path / "out", against="a")
    assert content["tasks"]["nli"]["num_paired"] == 3
    assert [row["predictions"] for row in content["examples"]["rows"]] == [["a", "b"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "r0"', "nli.jsonl:2: not valid JSON"),
        ('{"prompt": ""}', "nli.jsonl:2: not a line of predictions (KeyError: 'id'); expected id, prompt, prediction"),
        ('{"id": "x", "prediction": "a", "references": [], "choice_nll": {}}', "not a line of predictions (IndexError"),
        ('{"id": "x", "scores": {"accuracy": {"correct": NaN}}}', "nli.jsonl:2: scores.accuracy.correct is nan, a fin"),
        ('{"id": "x", "references": [], "scores": {"accuracy": {"correct": "yes"}}}', "of predictions (ValueError"),
        ('{"id": "x", "references": [], "scores": [1]}', "not a line of predictions (AttributeError"),
    ],
)
def test_broken_predictions_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.json", "mine", {"nli": answers("a", "a")})
    with (tmp_path / "a.json.predictions" / "nli.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError) as raised:
        report([path], tmp_path / "out")
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_learning_curves_of_a_damaged_file(tmp_path: Path) -> None:
    path = write(tmp_path / "results.json", "mine", {"nli": answers("ab", "aa")}, kind="train")
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "tokens": 1, "loss": {"nli": Infinity}}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:1: loss.nli is inf, a finite number was expected"):
        report([path], tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "mine", {"nli": answers("ab", "aa")})
    with pytest.raises(InputError, match=r"a.json: cannot be written .*; choose another --out"):
        report([path], path)


# ---------------------------------------------------------------- the page


NASTY = "<script>alert('한국어 & \"')</script></script><!-- </textarea>"


def test_texts_of_models_and_rows_stay_text(tmp_path: Path) -> None:
    """A script in every place that a user or a model writes, the label and the arm's name among them."""
    for name, said in (("a", [NASTY, "x"]), ("b", ["x", "x"])):
        rows = answers(said, ["x", "x"], prompt=NASTY, references=["x", NASTY])
        rows[1]["id"] = NASTY
        config = {NASTY: NASTY, "n": name}
        write(tmp_path / f"{name}.json", f"{NASTY} {name}", {"nli": rows}, config=config, versions={NASTY: NASTY})
    content, page, markdown = made([tmp_path], tmp_path / "out")
    assert content["examples"]["rows"][0]["prompt"] == NASTY
    assert page.count("<script") == 3, "the data, the words and our own"
    assert page.count("</script>") == 3
    assert "<!--" not in page
    found = Page(page)
    data = next(json.loads(script) for script in found.scripts if script.startswith('{"arms"'))
    assert data == content["examples"], "what the script reads is what was said, letter by letter"
    assert "innerHTML" not in page
    assert "<script" not in markdown
    assert any("한국어" in svg.read_text("utf-8") for svg in (tmp_path / "out" / "figures").iterdir())


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    suite(tmp_path)
    write(tmp_path / "z.json", "linked", {"nli": answers(POOR, GOLD, prompt="see https://example.org/x.png")})
    _, page, _ = made([tmp_path], tmp_path / "out")
    found = Page(page)
    loading = {"link", "img", "script", "iframe", "object", "embed", "source", "video", "audio", "image", "base", "use"}
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
            address = attributes.get(name)
            assert address is None or address.startswith("#") or (tag, address) == ("link", "data:,")
            assert tag not in loading or address is None or not address.startswith(("http", "//"))
    ours = [script for script in found.scripts if not script.startswith("{")]
    assert len(ours) == 2, "one style, one script"
    for text in ours:
        assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(|WebSocket", text)
    shown = page.replace("https://example.org/x.png", "")
    assert "http" not in shown, "an address appears only where a row has one"
    assert 'name="viewport"' in page
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page


def test_a_large_suite_stays_small(tmp_path: Path) -> None:
    """8 arms, 2,000 long rows each: fewer examples are shown, and the page says how many."""
    gold = ["ab"[n % 2] for n in range(2000)]
    for arm in range(8):
        said = [f"{'ab'[(n * (arm + 3)) % 5 % 2]}" for n in range(2000)]
        rows = answers(said, gold, prompt="긴 글 " * 400)
        write(tmp_path / f"{arm}.json", f"arm {arm}", {"nli": rows})
    content, page, _ = made([tmp_path], tmp_path / "out")
    assert 500_000 < len(page.encode()) < MAX_PAGE_BYTES
    count = content["examples"]["counts"]["nli"]
    assert 100 < count["shown"] == len(content["examples"]["rows"]) < count["disagreeing"]
    assert f"nli {count['shown']:,} of {count['disagreeing']:,}" in " ".join(Page(page).words)
    ids = [int(row["id"][1:]) for row in content["examples"]["rows"]]
    assert ids == sorted(set(ids))
    assert ids[-1] > 1800, "from the whole set, not from its beginning"


def test_a_page_without_space_has_no_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = suite(tmp_path)
    content, page, _ = made(paths, tmp_path / "out")
    assert content["examples"]["counts"]["nli"]["shown"] > 0
    monkeypatch.setattr("multitask.reports.report.MAX_PAGE_BYTES", len(page.encode()) - 1000)
    content, smaller, _ = made(paths, tmp_path / "out")
    assert (content["examples"]["rows"], content["examples"]["counts"]["nli"]["shown"]) == ([], 0)
    assert content["examples"]["counts"]["nli"]["disagreeing"] > 0
    assert "The page has no space left for examples" in smaller


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (number, 0.61249, "0.612"),
        (number, 1234.56, "1,234.6"),
        (number, None, "–"),
        (signed, -0.05, "−0.050"),
        (signed, 0.05, "+0.050"),
        (signed, -0.0004, "0.000"),
        (signed, 0, "0.000"),
        (probability, 0.0004, "< 0.001"),
        (probability, 0.0499, "0.050"),
        (probability, None, "–"),
        (amount, 6130688, "6.13 M"),
        (amount, 2.4e9, "2.40 G"),
        (amount, 1234, "1,234"),
        (amount, 12.5, "12.50"),
        (amount, 0, "0"),
    ],
)
def test_how_numbers_are_written(show: Any, value: Any, text: str) -> None:
    assert show(value) == text


# ---------------------------------------------------------------- what a reader looks for first


def test_the_main_comparisons_are_with_the_best_prompting_and_the_best_baseline(tmp_path: Path) -> None:
    content, page, markdown = made(suite(tmp_path), tmp_path / "out", against="multitask")
    found = {(one["arm"], one["role"]): one for one in content["main_comparisons"]}
    assert set(found) == {
        (arm, role) for arm in ("multitask", "single-nli") for role in ("best prompting", "best trivial baseline")
    }
    best = found["multitask", "best prompting"]
    assert best["against"] == "4-shot", "no validation rows: the best on the scored rows"
    assert best["verdict"] == "no clear difference", "two draws, 0.5 and 0.9"
    trivial = found["multitask", "best trivial baseline"]
    assert trivial["against"] == "majority"
    assert trivial["difference"] == pytest.approx(report_files.accuracy(answers(GOOD, GOLD)) - 0.25, abs=0.01)
    assert trivial["low"] < trivial["difference"] - 0.1, "of the baseline, an interval of 0.1 on each side"
    for text in (page, markdown):
        assert "multitask is not clearly different from the best prompting on nli and better than" in text
        assert "variance is pooled over arms and tasks" in text


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["better", "worse", "no clear difference"], "better than the best prompting on 1 of 3 tasks (worse on 1, no "
         "clear difference on 1)"),
        (["worse", "worse"], "worse than the best prompting on 2 of 2 tasks"),
        (["no clear difference", "worse"], "worse than the best prompting on 1 of 2 tasks (no clear difference on 1)"),
        (["no clear difference"], "not clearly different from the best prompting on nli"),
    ],
)  # fmt: skip
def test_the_verdict_in_one_sentence(verdicts: list[str], said: str) -> None:
    compared = [{"arm": "a", "task": "nli", "role": "best prompting", "verdict": verdict} for verdict in verdicts]
    assert sentence(words("en"), {"against": "b", "main_comparisons": compared}) == f"a is {said}."
    assert sentence(words("ko"), {"against": "b", "main_comparisons": []}) == words("ko")["sentence_none"]


def test_rouge_of_4_against_46_points_is_worse(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, mean in (("low", 0.04), ("high", 0.46)):
        rows = [
            row | {"scores": {"rougeL": {"rougeL": mean + float(noise), "count": 1.0}}, "choice_nll": None}
            for row, noise in zip(answers(GOLD, GOLD), rng.uniform(-0.03, 0.03, len(GOLD)), strict=True)
        ]
        for row in rows:
            del row["choice_nll"]
        path = write(tmp_path / f"{name}.json", name, {"summ": answers(GOLD, GOLD)})
        (tmp_path / f"{name}.json.predictions" / "summ.jsonl").write_text("\n".join(map(json.dumps, rows)))
        content = json.loads(path.read_text())
        content["tasks"]["summ"]["metrics"] = {"rougeL": report_files.score(mean)}
        content["tasks"]["summ"]["baselines"] = {"lead1": {"rougeL": report_files.score(0.46, 0.02)}}
        path.write_text(json.dumps(content))
    content, _, _ = made([tmp_path], tmp_path / "out", against="high")
    (test,) = content["comparisons"]["high"]
    assert (test["arm"], test["verdict"]) == ("low", "worse")
    assert {one["arm"]: one["verdict"] for one in content["main_comparisons"]} == {
        "low": "worse",
        "high": "no clear difference",
    }


def test_the_best_score_of_each_task_is_marked(tmp_path: Path) -> None:
    content, page, markdown = made(suite(tmp_path), tmp_path / "out")
    assert content["tasks"]["nli"]["best_arms"] == ["multitask"]
    assert page.count('<b class="best"') == 1
    (line,) = [line for line in markdown.splitlines() if line.startswith("| multitask |") and "**" in line]
    assert line.split(" | ")[1].startswith("**0.9")
    assert markdown.count("| **") == 1


def test_the_counts_of_the_header_are_those_of_the_tables(tmp_path: Path) -> None:
    suite(tmp_path)
    path = write(tmp_path / "x.json", "other", {"nli": answers(GOOD, GOLD)})
    content = json.loads(path.read_text())
    content["tasks"]["nli"]["baselines"]["unigram"] = {"perplexity": report_files.score(9.0)}  # no score of the task
    path.write_text(json.dumps(content))
    _, page, markdown = made([tmp_path], tmp_path / "out")
    table = markdown.split("## Scores")[1].split("\n\n")[1].splitlines()[2:]
    assert f"· {len(table)} arms, 1 task, 6 results files" in markdown
    body = page.split('id="score-table"')[1].split("</table>")[0]
    assert body.count("<tr data-arm=") == len(table)
    assert f"· {len(table)} arms" in page


def test_the_title_names_what_is_reported(tmp_path: Path) -> None:
    (tmp_path / "night").mkdir()
    suite(tmp_path / "night")
    _, page, markdown = made([tmp_path / "night"], tmp_path / "out")
    day = datetime.fromtimestamp((tmp_path / "night" / "shots.json").stat().st_mtime).date().isoformat()
    assert markdown.startswith(f"# night: model\n\n{day} · ")
    assert "<title>night: model</title>" in page
    paths = [tmp_path / "night" / f"{name}-{seed}.json" for name in ("many", "one") for seed in (7, 8)]
    assert report(paths, tmp_path / "out")["names"] == ["many-7", "many-8", "one-7", "one-8"]
    assert (tmp_path / "out" / "report.md").read_text("utf-8").startswith("# many-7, many-8, one-7 and 1 more")


def test_prompting_trains_no_parameter(tmp_path: Path) -> None:
    """Files of earlier versions hold the size of the prompted model; an evaluation does not say what was trained."""
    suite(tmp_path)
    write(tmp_path / "tuned.json", "mine", {"nli": answers(GOOD, GOLD)}, kind="train")
    content, _, _ = made([tmp_path], tmp_path / "out")
    trained = {arm["name"]: arm["cost"].get("trainable_parameters") for arm in content["arms"] if arm["cost"]}
    assert trained == {"0-shot": 0, "4-shot": 0, "multitask": None, "single-nli": None, "mine": 5000}


# ---------------------------------------------------------------- different rows


def with_rows(path: Path, num_rows: int, sha256: str = "ab" * 32) -> Path:
    content = json.loads(path.read_text())
    content["data"]["nli"] |= {"num_rows": num_rows, "sha256": [sha256]}
    path.write_text(json.dumps(content))
    return path


def test_different_rows_are_compared_on_those_that_all_have(tmp_path: Path) -> None:
    """The first 30 rows of one, all 80 of the other: scores of both on the 30, with the baseline of the 30."""
    write(tmp_path / "a.json", "first", {"nli": answers(GOOD, GOLD)})
    few = with_rows(write(tmp_path / "b.json", "second", {"nli": answers(POOR, GOLD)[:30]}), 30)
    content = json.loads(few.read_text())
    content["tasks"]["nli"]["baselines"]["majority"]["accuracy"] = report_files.score(0.5)
    few.write_text(json.dumps(content))
    found, page, markdown = made([tmp_path], tmp_path / "out", against="first")
    assert found["tasks"]["nli"]["num_paired"] == 30
    scores = {arm["name"]: arm["scores"]["nli"]["accuracy"]["value"] for arm in found["arms"] if "nli" in arm["scores"]}
    assert scores == {
        "majority": 0.5,
        "first": pytest.approx(report_files.accuracy(answers(GOOD, GOLD)[:30])),
        "second": pytest.approx(report_files.accuracy(answers(POOR, GOLD)[:30])),
    }
    said = "nli: scored on different rows (80 rows of test (abababab); 30 rows of test (abababab)); scores of accuracy "
    for text in (page, markdown):
        assert said + "and comparisons are those of the 30 rows that all have." in text


def test_rows_of_one_id_with_other_references_are_different_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "first", {"nli": answers(GOOD, GOLD)})
    other = GOLD[:40] + GOLD[::-1][40:]
    same = sum(one == two for one, two in zip(GOLD, other, strict=True))
    assert 0 < same < 80
    with_rows(write(tmp_path / "b.json", "second", {"nli": answers(POOR, other)}), 80, "cd" * 32)
    found, _, _ = made([tmp_path], tmp_path / "out")
    assert found["tasks"]["nli"]["num_paired"] == same
    assert "majority" not in {arm["name"] for arm in found["arms"] if "nli" in arm["scores"]}, "no file has these rows"


def test_nothing_in_common_cannot_be_compared(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "first", {"nli": answers("ab", "ab")})
    rows = answers("ab", "ab", id="elsewhere")
    with_rows(write(tmp_path / "b.json", "second", {"nli": rows}), 2, "cd" * 32)
    with pytest.raises(
        InputError, match=r"task 'nli' was scored on different rows .*a.json: 2 rows of test .*score all"
    ):
        report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- languages


def test_every_text_is_there_in_both_languages_with_the_same_places() -> None:
    english, korean = words("en"), words("ko")
    assert set(english) == set(korean)
    for name, text in english.items():
        places = [sorted(re.findall(r"{(\w*)(?::,)?}", each)) for each in (text, korean[name])]
        assert len(places[0]) == len(places[1]), name
        assert text, name
    hangul = [name for name, text in korean.items() if re.search("[가-힣]", text)]
    assert set(korean) - set(hangul) == {"to", "p", "ngram", "sentence", "sentence_others", "sentence_and",
                                         "shown_of"} - {"p"}  # fmt: skip


def test_a_korean_report(tmp_path: Path) -> None:
    suite(tmp_path)
    write(tmp_path / "x.json", "once", {"nli": answers(GOOD, GOLD)})
    english, _, _ = made([tmp_path], tmp_path / "en")
    content, page, markdown = made([tmp_path], tmp_path / "ko", language="ko")
    assert content == english, "numbers have no language"
    assert '<html lang="ko">' in page
    for text in (page, markdown):
        for word in (
            "점수",
            "주요 비교",
            "더 좋음",
            "뚜렷한 차이 없음",
            "가장 좋은 프롬프팅",
            "혼동 행렬",
            "비용",
            "시드",
        ):
            assert word in text
        for word in ("Scores", "better", "interval", "Confusion", "Cost", "verdict", "answers unfinished"):
            assert word not in re.sub(r"<(script|style).*?</\1>|<[^>]*>|\(figures/[^)]*\)", "", text, flags=re.DOTALL)
    figure = (tmp_path / "ko" / "figures" / "few-shot-nli.svg").read_text("utf-8")
    assert ">예시 수<" in figure
    assert ">number of demonstrations<" in (tmp_path / "en" / "figures" / "few-shot-nli.svg").read_text("utf-8")


@pytest.mark.parametrize(("num_rows", "is_clear"), [(1, False), (4, False), (9, False), (10, True)])
def test_few_rows_give_no_verdict_and_no_p_value(tmp_path: Path, num_rows: int, is_clear: bool) -> None:
    gold = "a" * num_rows
    write(tmp_path / "many.json", "multitask", {"nli": answers(gold, gold)})
    write(tmp_path / "one.json", "single-nli", {"nli": answers("b" * num_rows, gold)})
    content, page, markdown = made([tmp_path], tmp_path / "out")
    (test,) = content["comparisons"]["multitask"]
    assert (test["verdict"], test["p_adjusted"] is None) == (
        ("worse", False) if is_clear else ("no clear difference", True)
    )
    assert {one["verdict"] for one in content["main_comparisons"] if one["arm"] == "multitask"} == {
        "better" if is_clear else "no clear difference"
    }
    assert content["gain"][0]["verdict"] == ("better" if is_clear else "no clear difference")
    note = f"nli: {num_rows} compared rows. On fewer than 10 no verdict"
    assert (note in page) == (note in markdown) == (not is_clear)


def test_an_evaluated_model_is_called_after_its_run(tmp_path: Path) -> None:
    for file, name in (("a", "runs/reviews"), ("b", "runs/news/model"), ("c", "")):
        write(tmp_path / f"{file}.json", "tuned", {"nli": answers(GOLD, GOLD)}, model={"name": name})
    content, _, _ = made([tmp_path], tmp_path / "out")
    assert [arm["name"] for arm in content["arms"] if arm["kind"] == "evaluate"] == ["reviews", "news", "tuned"]
    _, page, _ = made([tmp_path / "a.json"], tmp_path / "one")
    assert "reviews is better than the best trivial baseline on nli." in page


def test_numbers_of_the_cost_table_begin_with_one(tmp_path: Path) -> None:
    content, _, markdown = made(suite(tmp_path), tmp_path / "out")
    numbers = [arm["cost_number"] for arm in content["arms"]]
    priced = [bool(arm["cost"]) for arm in content["arms"]]
    assert [n for n in numbers if n is not None] == list(range(1, 1 + sum(priced)))
    assert not priced[0], "baselines come first and cost nothing"
    cost = markdown[markdown.index("## Cost") :].splitlines()
    assert [line.split("|")[1].strip() for line in cost[4 : 4 + sum(priced)]] == [str(n) for n in numbers if n]


def test_the_markdown_has_every_metric(tmp_path: Path) -> None:
    _, _, markdown = made(suite(tmp_path), tmp_path / "out")
    table = markdown[markdown.index("## All metrics") : markdown.index("## Main comparisons")]
    assert "| multitask | nli | perplexity | 2.000 |" in table
    assert "| majority | nli | macro\\_f1 | 0.100 |" in table


def test_a_korean_report_says_which_rows_in_korean(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "one", {"nli": answers(GOLD, GOLD)})
    write(
        tmp_path / "b.json",
        "two",
        {"nli": answers(GOLD[:20], GOLD[:20])},
        data={
            "nli": report_files.results("evaluate", "two", 7, {}, {"nli": 20})["data"]["nli"] | {"sha256": ["cd" * 32]}
        },
    )
    _, page, markdown = made([tmp_path], tmp_path / "out", language="ko")
    assert "(test 80행 (abababab); test 20행 (cdcdcdcd))" in page
    assert "rows of" not in page.partition("<script")[0] + markdown


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "multitask is better than the best trivial baseline on nli."),
        ("ko", "nli에서 가장 좋은 단순 기준선보다 더 좋음"),
    ],
)
def test_the_sentence_of_one_task_names_it(tmp_path: Path, language: str, said: str) -> None:
    write(tmp_path / "a.json", "multitask", {"nli": answers(GOLD, GOLD)})
    _, page, _ = made([tmp_path], tmp_path / "out", language=language)
    assert said in page


def test_no_tick_is_beyond_what_a_metric_can_reach() -> None:
    texts = [e.text for e in ElementTree.fromstring(bars("accuracy", [Bar("a", 0.97, 0.95, 1.0, None, 0)])).iter()]
    ticks = [float(text) for text in texts if text and re.fullmatch(r"[\d.]+", text)]
    assert ticks
    assert max(ticks) <= 1
