"""The page in headless Chromium, driven through ChromeDriver: its controls, its widths, and what it asks for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import MARKS, chromium
from report_files import accuracy, answers, write, write_shots

from multitask.reports.report import report

pytest.importorskip("selenium.webdriver", reason="needs selenium (extra dev)")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = MARKS
GOLD = "ab" * 40
GOOD = GOLD[:72] + "b" * 8
POOR = "ab" * 20 + "b" * 40
SCRIPT = "<img src=x onerror='window.taken = true'><script>window.taken = true</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = chromium(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms on two tasks with Korean texts, prompts with 0 and 4 demonstrations on one of them."""
    root = tmp_path_factory.mktemp("suite")
    first = next(n for n, (said, right) in enumerate(zip(GOOD, GOLD, strict=True)) if said != right)
    other_good = [*GOOD[:first], GOLD[first], *GOOD[first + 1 :]]  # as good as the first seed, wrong on another row
    last = max(n for n, said in enumerate(GOOD) if said == GOLD[n] and n != first)
    other_good[last] = next(label for label in sorted(set(GOLD)) if label != GOLD[last])
    for seed, many, one in ((7, GOOD, POOR), (8, other_good, POOR)):
        other = [f"좋은 영화 {n}" if n % 8 else SCRIPT for n in range(80)]
        rows = {
            "nli": answers(many, GOLD, prompt="고양이가 자리에 앉았다. https://example.org/x.png"),
            "cls": answers(other, [f"좋은 영화 {n}" for n in range(80)]),
        }
        write(root / f"many-{seed}.json", "multitask", rows, seed=seed)
        write(root / f"one-{seed}.json", "single-nli", {"nli": answers(one, GOLD)}, seed=seed)
    write(root / "also.json", "아주 긴 이름을 가진 모형 하나 더", {"cls": answers(GOLD, GOLD)})
    write_shots(root / "shots.json", {0: [answers(POOR, GOLD)], 4: [answers(POOR, GOLD), answers(GOOD, GOLD)]})
    report([root], root / "out")
    return root / "out"


@pytest.fixture
def page(browser: Any, folder: Path) -> Any:
    """The page, freshly opened on a wide screen."""
    wide(browser, 1280)
    browser.get((folder / "report.html").as_uri())
    return browser


def wide(browser: Any, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def choose(page: Any, name: str, value: str) -> None:
    Select(page.find_element(By.ID, name)).select_by_visible_text(value)


def column(page: Any, table: str, number: int) -> list[str]:
    """The texts of a column, its first line."""
    cells = page.find_elements(By.CSS_SELECTOR, f"{table} tbody tr > :nth-child({number})")
    return [cell.text.split("\n")[0] for cell in cells]


def count(page: Any) -> int:
    return int(page.find_element(By.ID, "example-count").text.split()[0])


def test_a_click_on_a_head_sorts_and_another_turns_it_round(page: Any) -> None:
    head = page.find_element(By.CSS_SELECTOR, "#score-table thead th:nth-child(2)")
    before = column(page, "#score-table", 1)
    head.find_element(By.TAG_NAME, "button").click()
    rising = column(page, "#score-table", 2)
    given = [float(text.split()[0]) for text in rising if text != "–"]
    assert given == sorted(given)
    assert len(set(given)) > 2
    assert rising[-1] == "–", "what has no value stays last"
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "#score-table", 1) != before
    head.find_element(By.TAG_NAME, "button").click()
    falling = column(page, "#score-table", 2)
    assert [float(text.split()[0]) for text in falling if text != "–"] == given[::-1]
    assert falling[-1] == "–"
    assert head.get_attribute("aria-sort") == "descending"
    page.find_element(By.CSS_SELECTOR, "#score-table thead th:first-child button").click()
    assert column(page, "#score-table", 1) == before, "arms have an order of their own"
    assert head.get_attribute("aria-sort") is None


def test_the_arm_compared_with_can_be_chosen(page: Any) -> None:
    def shown() -> set[str]:
        return {part.get_attribute("data-against") for part in page.find_elements(By.CSS_SELECTOR, "[data-against]")
                if part.is_displayed()}  # fmt: skip

    def mark(arm: str) -> str:
        selector = f'#score-table tr[data-arm="{arm}"] td[data-task="nli"] .mark'
        found: str = page.find_element(By.CSS_SELECTOR, selector).text
        return found

    assert shown() == {"multitask"}
    assert (mark("single-nli"), mark("multitask")) == ("▼", "")
    choose(page, "against", "single-nli")
    assert shown() == {"single-nli"}
    assert (mark("single-nli"), mark("multitask"), mark("0-shot")) == ("", "▲", "")
    assert page.find_element(By.CSS_SELECTOR, "tr.against").get_attribute("data-arm") == "single-nli"


def test_examples_are_found_by_arm_and_word(page: Any) -> None:
    choose(page, "example-task", "nli")
    choose(page, "example-first", "multitask")
    choose(page, "example-second", "single-nli")
    differing = sum(one != other for one, other in zip(GOOD, POOR, strict=True))
    assert count(page) == differing > 0
    choose(page, "example-which", "first arm scores higher")
    better = sum(one == gold != other for one, gold, other in zip(GOOD, GOLD, POOR, strict=True))
    assert count(page) == better
    choose(page, "example-which", "second arm scores higher")
    assert count(page) == sum(other == gold != one for one, gold, other in zip(GOOD, GOLD, POOR, strict=True))
    choose(page, "example-which", "answers differ")
    choose(page, "example-second", "0-shot")
    assert count(page) == differing
    search = page.find_element(By.ID, "example-search")
    search.send_keys("고양이가 R43")
    assert count(page) == int(GOOD[43] != POOR[43])
    search.clear()
    search.send_keys("r4")
    numbers = [4, *range(40, 50)]
    assert count(page) == sum(GOOD[n] != POOR[n] for n in numbers) > 1
    cards = page.find_elements(By.CLASS_NAME, "example")
    assert len(cards) == count(page)
    assert "고양이가 자리에 앉았다." in cards[0].text
    search.send_keys("no such word")
    assert count(page) == 0
    assert page.find_elements(By.CLASS_NAME, "example") == []


def test_arms_without_answers_to_a_task_cannot_be_chosen(page: Any) -> None:
    choose(page, "example-task", "cls")
    options = {
        part: {
            option.text: option.is_enabled() for option in Select(page.find_element(By.ID, f"example-{part}")).options
        }
        for part in ("first", "second")
    }
    assert options["first"] == options["second"]
    assert [name for name, enabled in options["first"].items() if not enabled] == ["0-shot", "4-shot", "single-nli"]
    assert count(page) > 20
    cards = len(page.find_elements(By.CLASS_NAME, "example"))
    assert cards == 20
    page.find_element(By.ID, "example-more").click()
    assert len(page.find_elements(By.CLASS_NAME, "example")) == min(40, count(page))


def test_what_a_model_wrote_is_shown_and_never_run(page: Any) -> None:
    choose(page, "example-task", "cls")
    page.find_element(By.ID, "example-search").send_keys("onerror")
    assert count(page) == 10
    assert SCRIPT in page.find_element(By.CLASS_NAME, "example").text
    assert page.execute_script("return window.taken") is None


def requested(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_no_outside_address_is_requested(page: Any, folder: Path, tmp_path: Path) -> None:
    own = (folder / "report.html").as_uri()
    for part in page.find_elements(By.TAG_NAME, "summary"):
        page.execute_script("arguments[0].click()", part)
    for task in ("cls", "nli"):
        choose(page, "example-task", task)
    page.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    ours = ("data:", "chrome://")  # within the page, and the browser's own first tab
    addresses = {address for address in requested(page) if not address.startswith(ours)}
    assert addresses == {own}
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    other = tmp_path / "other.html"  # the same log would show it
    other.write_text("<img src='https://example.org/x.png'>")
    page.get(other.as_uri())
    assert "https://example.org/x.png" in requested(page)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_well_at_any_width(page: Any, tmp_path: Path, width: int, scheme: str) -> None:
    wide(page, width)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    size = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert size == [width, width], "nothing hangs over the edge; wide tables scroll inside their frame"
    small = page.execute_script(
        """
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
        while (walker.nextNode()) {
          const text = walker.currentNode, within = text.parentElement;
          if (!text.data.trim() || !within.checkVisibility() || within.closest("script, style")) continue;
          const svg = within.closest("svg");
          const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
          const size = parseFloat(getComputedStyle(within).fontSize) * scale;
          if (size < (svg ? 8 : 12)) found.push([text.data.trim(), size]);
        }
        return found;
        """
    )
    assert small == []
    cut = page.execute_script(
        """
        return [...document.querySelectorAll("body *")].filter((part) => {
          const box = part.getBoundingClientRect();
          return part.checkVisibility() && box.right > innerWidth + 1 && !part.closest(".scroll, nav, svg");
        }).map((part) => part.outerHTML.slice(0, 80));
        """
    )
    assert cut == []
    ink, paper = page.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map((c) => +c.match(/\\d+/)[0])"
    )
    assert abs(ink - paper) > 180
    assert (paper < 60) == (scheme == "dark")
    frames = page.execute_script(
        """
        return [...document.querySelectorAll(".frame")].filter((part) => part.checkVisibility()).map((part) => {
          const scroll = part.querySelector(".scroll");
          const cue = getComputedStyle(part, "::before").content;
          return [scroll.scrollWidth > scroll.clientWidth + 1, cue.includes("scroll sideways"), part.matches(".more")];
        });
        """
    )
    assert frames
    assert all(is_wide == has_cue == is_shaded for is_wide, has_cue, is_shaded in frames)
    assert any(is_wide for is_wide, _, _ in frames) or width > 390, "of these tables some are wider than a phone"
    used = page.execute_script("return document.querySelector('#score-table').getBoundingClientRect().width")
    assert used > 0.9 * width, "the whole width is used"
    assert page.save_screenshot(str(tmp_path / f"{width}-{scheme}.png"))


def test_the_cue_goes_where_the_last_column_is_seen(page: Any) -> None:
    wide(page, 390)
    frame = page.find_element(By.CSS_SELECTOR, ".frame.more")
    page.execute_script("const s = arguments[0].querySelector('.scroll'); s.scrollLeft = s.scrollWidth", frame)
    WebDriverWait(page, 5).until(lambda _: "more" not in frame.get_attribute("class").split())
    assert "wide" in frame.get_attribute("class").split()


def test_a_korean_page(browser: Any, folder: Path, tmp_path: Path) -> None:
    report([folder.parent / "many-7.json", folder.parent / "one-7.json"], tmp_path, language="ko")
    wide(browser, 1280)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.find_element(By.ID, "example-count").text.endswith("행")
    mark = browser.find_element(By.CSS_SELECTOR, '#score-table tr[data-arm="single-nli"] td[data-task="nli"] .mark')
    assert (mark.text, mark.get_attribute("title")) == ("▼", "multitask보다 더 나쁨")


def test_paper_holds_what_was_folded_and_no_controls(page: Any) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    seen = page.execute_script(
        """
        const all = (selector) => [...document.querySelectorAll(selector)];
        const shown = (selector) => all(selector).filter((part) => part.checkVisibility()).length;
        return [shown("nav"), shown(".controls"), shown("details table"), all("details table").length];
        """
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert seen[:2] == [0, 0]
    assert seen[2] == seen[3] > 0
    assert len(page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]) > 50_000


def test_the_numbers_on_the_page_are_those_of_the_files(page: Any) -> None:
    value = accuracy(answers(GOOD, GOLD))  # of both seeds
    cell = page.find_element(By.CSS_SELECTOR, '#score-table tr[data-arm="multitask"] td[data-task="nli"]')
    assert cell.text.split("\n")[0].split()[0] == f"{value:.3f}"
    assert "2 seeds" in cell.text


@pytest.mark.parametrize("width", [1280, 390])
def test_figures_of_one_task_have_the_whole_width(browser: Any, folder: Path, tmp_path: Path, width: int) -> None:
    write_shots(tmp_path / "shots.json", {0: [answers(POOR, GOLD)], 4: [answers(POOR, GOLD), answers(GOOD, GOLD)]})
    write(tmp_path / "a.json", "multitask", {"nli": answers(GOOD, GOLD)})
    report([tmp_path], tmp_path / "out")
    wide(browser, width)
    browser.get((tmp_path / "out" / "report.html").as_uri())
    widths = browser.execute_script(
        """
        return [...document.querySelectorAll("figure svg")].filter((part) => part.checkVisibility())
          .map((part) => part.getBoundingClientRect().width);
        """
    )
    assert len(widths) == 2, "scores, few-shot: one form of each"
    assert min(widths) > 0.85 * width
