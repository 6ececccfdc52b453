import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_files
from report_files import answers, trained, write, write_shots

from multitask.errors import InputError
from multitask.evaluation import metrics
from multitask.reports import pages
from multitask.reports.content import BEST
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
    """Two arms of two seeds, one of them taught one task alone, and prompts with 0 and 4 demonstrations."""
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
    assert {"multitask", "single-nli", "tuned", "majority", "unigram"} <= set(names)
    assert names["multitask"]["seeds"] == [7, 8]
    assert content["against"] == "multitask"
    assert content["tasks"]["nli"] == {
        "metric": "accuracy",
        "higher_is_better": True,
        "num_rows": [16],
        "num_paired": 16,
    }
    first, second = (json.loads((trained() / f"both-{s}" / "results.json").read_text()) for s in (7, 8))
    for task in ("nli", "qa"):
        values = [file["tasks"][task]["metrics"] for file in (first, second)]
        for metric, score in names["multitask"]["scores"][task].items():
            assert score["value"] == pytest.approx(sum(v[metric]["value"] for v in values) / 2)
    # The evaluation of the first run gave that run's scores; its difference to the mean of both is half of theirs.
    tested = {(t["arm"], t["task"]): t for t in content["comparisons"]["multitask"]}
    assert set(tested) == {("tuned", "nli"), ("tuned", "qa"), ("single-nli", "nli")}
    for task, metric in (("nli", "accuracy"), ("qa", "f1")):
        values = [file["tasks"][task]["metrics"][metric]["value"] for file in (first, second)]
        assert tested["tuned", task]["difference"] == pytest.approx((values[0] - values[1]) / 2, abs=1e-5)
    assert [row["task"] for row in content["gain"]] == ["nli"]
    assert {row["task"] for row in content["contamination"]} == {"nli", "qa"}
    assert {row["split"] for row in content["contamination"]} == {"train", "test"}
    assert all(row[key] is not None for row in content["contamination"] for key in pages.COUNTS)
    scored = {tuple(row["arms"]) for row in content["contamination"] if row["task"] == "qa"}
    assert scored == {("tuned", "multitask"), ("multitask",)}, "test rows of both, training rows of one"
    assert {matrix["arm"] for matrix in content["confusion"]} == {"multitask", "single-nli", "tuned"}
    counts = {m["arm"]: sum(map(sum, m["counts"])) for m in content["confusion"]}
    assert counts == {"multitask": 32, "single-nli": 16, "tuned": 16}, "of all seeds"
    assert content["environments"] == [{"versions": first["versions"], "hardware": first["hardware"]}]
    assert len(content["runs"]) == 4
    assert "model.vocab_size: 400" in " ".join(Page(page).words)
    figures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {f"{kind}-{task}" for kind in ("scores", "learning", "cost") for task in ("nli", "qa")}
    assert all(f"figures/{name}.svg" in markdown for name in figures)


def test_a_report_again_is_the_same_bytes_and_leaves_nothing_old(tmp_path: Path) -> None:
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
    ordered = sorted(tested.values(), key=lambda test: test["p"])
    assert ordered[0]["p_holm"] == pytest.approx(min(1, 3 * ordered[0]["p"]), abs=1e-5)
    assert ordered[-1]["p_holm"] == 1
    back = {test["arm"]: test for test in content["comparisons"]["multitask"]}["single-nli"]
    assert (back["difference"], back["verdict"]) == (-tested["multitask"]["difference"], "worse")
    assert content["gain"][0]["difference"] == tested["multitask"]["difference"]
    assert content["gain"][0]["p_holm"] == tested["multitask"]["p"], "one comparison needs no correction"
    assert "## Significance against single-nli" in markdown
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
        assert "One seed or draw: once. Their seed noise is not in the intervals and p-values." in text


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
        write(tmp_path / f"{seed}.json", "tuned", {"nli": answers(said, "aaa")}, seed=seed)
    write(tmp_path / "z.json", "other", {"nli": answers("bbb", "aaa")})
    content, _, _ = made([tmp_path], tmp_path / "out")
    assert content["examples"]["arms"] == ["tuned", "other"]
    assert [(row["id"], row["predictions"]) for row in content["examples"]["rows"]] == [
        ("r0", ["a", "b"]),
        ("r1", ["a", "b"]),
    ]


def test_less_is_better_of_bits_per_byte(tmp_path: Path) -> None:
    """Perplexity gives way to bits per byte, which compare across tokenizers; the lower arm is the better one."""
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
    assert (zero["notes"], four["notes"]) == ([], ["2,000 answers unfinished", "4 answers empty"])
    assert "| 2,000 answers unfinished; 4 answers empty |" in markdown
    assert "| sd over draws | 95 % interval over rows |" in markdown
    assert ["0-shot", "4-shot"] in [run["arms"] for run in content["runs"]], "one file, told once"
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
    assert zero["notes"][0] == f"{BEST} (0.600)"
    assert not any(BEST in note for note in four["notes"])
    assert markdown.count(BEST) == page.count(BEST) == 1


def test_confusion_by_hand(tmp_path: Path) -> None:
    content, _, _ = made([write(tmp_path / "a.json", "tuned", {"nli": answers("aabbc", "aaabb")})], tmp_path / "out")
    (matrix,) = content["confusion"]
    assert matrix["labels"] == ["a", "b", "c"]
    assert matrix["counts"] == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_many_classes_are_put_together(tmp_path: Path) -> None:
    gold = [f"class-{n % 20:02}" for n in range(60)] + ["class-19"] * 5
    content, _, _ = made([write(tmp_path / "a.json", "tuned", {"cls": answers(gold, gold)})], tmp_path / "out")
    (matrix,) = content["confusion"]
    assert matrix["labels"][0] == "class-19"
    assert matrix["labels"][-1] == "(others)"
    assert len(matrix["labels"]) == 12
    assert sum(map(sum, matrix["counts"])) == 65
    assert matrix["counts"][-1][-1] == 27


def test_contamination_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "tuned", {"nli": answers(GOLD, GOLD)})
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
    assert missing["single-nli"] == "its predictions are not beside its results file"
    assert missing["majority"].startswith("a trivial baseline")
    assert "single-nli" not in {test["arm"] for test in content["comparisons"]["multitask"]}
    assert content["gain"][0]["verdict"] == "not tested"
    assert "Not tested, its predictions are not beside its results file: single-nli (nli)." in markdown
    assert "its predictions are not beside its results file: single-nli (nli)" in " ".join(Page(page).words)
    assert [m["arm"] for m in content["confusion"]] == ["0-shot", "4-shot", "multitask"]


def test_nothing_but_results_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "tuned", {"nli": answers(GOLD, GOLD)})
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
        assert "nli: windows differ, so arms scored between 77 and 80 rows; tests use the 77 that all have." in text


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
    path = write(tmp_path / "a.json", "tuned", {"nli": answers("a", "a")})
    with (tmp_path / "a.json.predictions" / "nli.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError) as raised:
        report([path], tmp_path / "out")
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_learning_curves_of_a_damaged_file(tmp_path: Path) -> None:
    path = write(tmp_path / "results.json", "tuned", {"nli": answers("ab", "aa")}, kind="train")
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "tokens": 1, "loss": {"nli": Infinity}}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:1: loss.nli is inf, a finite number was expected"):
        report([path], tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "tuned", {"nli": answers("ab", "aa")})
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
    assert page.count("<script") == 2, "the data and our own"
    assert page.count("</script>") == 2
    assert "<!--" not in page
    found = Page(page)
    data = next(json.loads(script) for script in found.scripts if script.startswith("{"))
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
    assert "http" not in shown, "an address stands there only where a row holds one"
    assert 'name="viewport"' in page
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page


def test_a_large_suite_stays_small(tmp_path: Path) -> None:
    """8 arms, 2,000 long rows each: examples make way, and what was left out is said."""
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


def test_examples_make_way_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = suite(tmp_path)
    content, page, _ = made(paths, tmp_path / "out")
    assert content["examples"]["counts"]["nli"]["shown"] > 0
    monkeypatch.setattr("multitask.reports.report.MAX_PAGE_BYTES", len(page.encode()) - 1000)
    content, smaller, _ = made(paths, tmp_path / "out")
    assert (content["examples"]["rows"], content["examples"]["counts"]["nli"]["shown"]) == ([], 0)
    assert content["examples"]["counts"]["nli"]["disagreeing"] > 0
    assert "The page has no room left for examples" in smaller


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (pages.number, 0.61249, "0.612"),
        (pages.number, 1234.56, "1,234.6"),
        (pages.number, None, "–"),
        (pages.signed, -0.05, "−0.050"),
        (pages.signed, 0.05, "+0.050"),
        (pages.signed, -0.0004, "0.000"),
        (pages.signed, 0, "0.000"),
        (pages.probability, 0.0004, "< 0.001"),
        (pages.probability, 0.0499, "0.050"),
        (pages.probability, None, "–"),
        (pages.amount, 6130688, "6.13 M"),
        (pages.amount, 2.4e9, "2.40 G"),
        (pages.amount, 1234, "1,234"),
        (pages.amount, 12.5, "12.50"),
        (pages.amount, 0, "0"),
    ],
)
def test_how_numbers_are_written(show: Any, value: Any, text: str) -> None:
    assert show(value) == text
