"""The playground and the run page in headless Chromium, against a server with canned answers."""

import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs fastapi and uvicorn (extra serve)")
pytest.importorskip("selenium.webdriver", reason="needs selenium (extra dev)")
from browsers import MARKS, chromium
from fake_server import CLASSES, DEMONSTRATIONS, SCRIPT, app, served, write_run
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = chromium(tmp_path_factory.mktemp("profile"), "127.0.0.1")
    yield driver
    driver.quit()


class Page:
    """One page of a server, freshly opened."""

    def __init__(self, browser: Any, address: str, server: Any, root: Path) -> None:
        self.browser, self.address, self.server, self.root = browser, address, server, root

    def open(self, path: str = "/", width: int = 1280) -> None:
        self.width(width)
        self.browser.get("about:blank")
        self.browser.get(self.address + path)

    def width(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [part.text for part in self.all(selector)]

    def text(self, selector: str) -> str:
        """Of a part that may be folded."""
        found: str = self.one(selector).get_property("textContent")
        return found

    def until(self, condition: Callable[[], Any]) -> Any:
        wait = WebDriverWait(self.browser, 10, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def choose(self, name: str, value: str) -> None:
        Select(self.one(f"#{name}")).select_by_value(value)

    def fill(self, name: str, text: str) -> None:
        field = self.one(f"#{name}")
        field.clear()
        field.send_keys(text)

    def run(self) -> None:
        """Press the button, and wait until all models have answered."""
        self.one("#run").click()
        self.until(lambda: self.one("#run").is_displayed() and self.all(".card"))

    def script(self, code: str, *values: Any) -> Any:
        return self.browser.execute_script(code, *values)

    @property
    def asked(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.state.asked
        return found

    def ready(self) -> "Page":
        self.until(lambda: self.all("#run") and self.one("#run").is_displayed())
        return self


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Page]:
    """The playground on a wide screen."""
    server = app(tmp_path / "runs")
    with served(server) as address:
        made = Page(browser, address, server, tmp_path / "runs")
        made.open()
        yield made.ready()
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_a_task_brings_its_fields_pattern_and_example(page: Page) -> None:
    assert page.texts("#fields label") == ["premise", "hypothesis"]
    assert page.text("#pattern") == "premise<|sep|>hypothesis<|nli|>label<|end|>"
    assert page.one("#field-hypothesis").get_property("value") == "Someone is making music."
    page.one("#example").click()
    assert page.one("#field-premise").get_property("value") == "두 아이가 공원에서 연을 날리고 있다."
    page.choose("task", "summ")
    assert page.texts("#fields label") == ["document"]
    assert page.one("#field-document").get_property("value").startswith("Die Forscher")
    assert [option.get_property("value") for option in Select(page.one("#arm")).options] == ["demo", "base"]
    assert page.one("#option-max_new_tokens").get_property("placeholder") == "64"
    page.choose("task", "gen")
    assert page.texts("#fields label") == ["label optional"]


def test_a_prediction_shows_its_probabilities_and_tokens(page: Page) -> None:
    page.run()
    assert page.texts(".prediction") == ["entailment"]
    assert page.texts(".classes .word") == list(CLASSES["demo"])
    assert page.texts(".classes .value") == ["93.1 %", "5.8 %", "1.1 %"]
    assert page.texts(".classes .best .word") == ["entailment"]
    assert page.texts(".token") == ["entai", "lment"]
    assert [token.get_attribute("class").split()[1] for token in page.all(".token")] == ["band-0", "band-1"]
    assert page.one(".card .time").text == "42 ms"
    (body,) = page.asked
    assert body["rows"] == [
        {
            "premise": "A man in a blue shirt is playing the guitar on a small stage.",
            "hypothesis": "Someone is making music.",
        }
    ]
    assert (body["arm"], body["tokens"], body["stream"]) == ("demo", True, True)
    assert (body["temperature"], body["seed"], "top_k" in body) == (0, 0, False)
    assert page.one("#status").get_property("textContent") == "Done: demo: entailment"


def test_candidates_are_shown_on_hover_and_on_focus(page: Page) -> None:
    page.run()
    first, second = page.all(".token")
    assert page.one(".candidates h5").text == "Candidates in place of “entai”"
    assert page.texts(".candidates .word") == ["entai", "the", "␣a", "</b>"]
    assert page.texts(".candidates .value")[0] == "97.0 %"
    ActionChains(page.browser).move_to_element(second).perform()
    page.until(lambda: page.texts(".candidates .best .word") == ["lment"])
    ActionChains(page.browser).move_to_element(first).perform()
    page.until(lambda: page.texts(".candidates .best .word") == ["entai"])
    page.script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    assert page.browser.switch_to.active_element == second
    assert page.texts(".candidates .best .word") == ["lment"]
    assert [token.get_attribute("tabindex") for token in page.all(".token")] == ["-1", "0"]


def test_two_models_answer_the_same_input_side_by_side(page: Page) -> None:
    page.choose("against", "base-4")
    page.run()
    assert page.texts(".card h3") == ["demo", "base-4"]
    assert page.texts(".prediction") == ["entailment", "neutral"]
    assert page.one("#agreement").text == "The models give different answers."
    assert page.texts(".classes .word") == 2 * list(CLASSES["demo"]), "the same order in both"
    assert [body["arm"] for body in page.asked] == ["demo", "base-4"]
    assert page.asked[0] | {"arm": ""} == page.asked[1] | {"arm": ""}
    left, right = (card.rect for card in page.all(".card"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    (shown,) = [part for part in page.all(".card details") if "Demonstrations" in part.text]
    assert shown.text == "Demonstrations that the model was shown (4)"
    shown.find_element(By.TAG_NAME, "summary").click()
    assert [part.text for part in shown.find_elements(By.TAG_NAME, "pre")] == DEMONSTRATIONS
    assert page.all(".card:first-child details")[0].text == "Text that the model read"
    page.choose("against", "demo-lora")
    page.run()
    assert page.one("#agreement").text == "Both models give the same answer."


def test_text_is_shown_while_it_is_written_and_can_be_stopped(page: Page) -> None:
    page.choose("task", "summ")
    page.fill("field-document", "slow")
    page.one("#run").click()
    page.until(lambda: page.text(".prediction") == "One model ")
    assert [part.text.strip() for part in page.all(".token")] == ["One", "model"]
    assert page.one(".card").get_attribute("aria-busy") == "true"
    assert not page.one("#run").is_displayed()
    page.one("#stop").click()
    page.until(lambda: page.one("#run").is_displayed())
    assert page.texts(".card .note") == ["Stopped."]
    assert page.texts(".prediction")[0].startswith("One model")
    assert page.browser.switch_to.active_element == page.one("#run")
    page.until(lambda: page.server.state.cancelled == 1)
    assert page.all("#history button") == []


def test_without_streaming_the_same_answer_is_shown(page: Page) -> None:
    page.one("#stream").click()
    page.run()
    assert page.asked[0]["stream"] is False
    page.until(lambda: page.texts(".prediction") == ["entailment"])
    assert page.texts(".token") == ["entai", "lment"]


def test_an_error_is_said_in_words_and_can_be_retried(page: Page) -> None:
    page.choose("against", "base-4")
    page.fill("field-premise", "busy")
    page.run()
    assert len(page.all(".card .notice[role=alert]")) == 2
    said = page.one(".card .notice").text.split("\n")
    assert said[1:3] == ["The server is busy. Please try again in a moment.", "the queue is full (64 requests)"]
    num = len(page.asked)
    page.one(".card .notice button").click()
    page.until(lambda: len(page.asked) == num + 1 and page.one("#run").is_displayed())
    page.fill("field-premise", "break")
    page.run()
    assert "the model was unloaded" in page.one(".card .notice").text
    page.fill("field-premise", "well")
    page.run()
    assert page.texts(".prediction") == ["entailment", "neutral"]


def test_a_server_that_is_gone_is_said_in_words(browser: Any, tmp_path: Path) -> None:
    server = app(tmp_path)
    with served(server) as address:
        page = Page(browser, address, server, tmp_path)
        page.open()
        page.ready()
    page.run()
    assert "The server does not answer. Is it still running?" in page.one(".card .notice").text


def test_scripts_in_fields_and_predictions_are_shown_as_text(page: Page) -> None:
    page.choose("against", "base-4")
    page.fill("field-premise", SCRIPT)
    page.run()
    assert page.texts(".prediction") == [SCRIPT, SCRIPT]
    for part in page.all(".card details"):
        page.script("arguments[0].open = true", part)
    assert DEMONSTRATIONS[3] in page.texts(".card pre")
    assert SCRIPT in page.one("#history button").text
    page.one("#history button").click()
    assert page.one("#field-premise").get_property("value") == SCRIPT
    page.open("/#task=<img src=x onerror='window.taken = true'>&model=" + SCRIPT.replace(" ", "%20"))
    page.ready()
    assert SCRIPT in page.one("#history button").text
    assert page.script("return window.taken") is None
    assert page.all("img, main script") == []


def test_history_brings_back_what_was_asked_and_answered(page: Page) -> None:
    page.choose("against", "base-4")
    page.one("#settings summary").click()
    page.fill("option-temperature", "0.7")
    page.run()
    assert page.asked[-1]["temperature"] == 0.7
    page.choose("task", "summ")
    page.run()
    assert [text.split("\n")[0].split(" · ")[1] for text in page.texts("#history button")] == ["summ", "nli"]
    page.open()
    page.ready()
    page.all("#history button")[1].click()
    assert page.texts(".prediction") == ["entailment", "neutral"]
    assert page.texts(".card:first-child .token") == ["entai", "lment"]
    assert [page.one(f"#{name}").get_property("value") for name in ("task", "arm", "against")] == [
        *("nli", "demo", "base-4")
    ]
    assert page.one("#option-temperature").get_property("value") == "0.7"
    assert page.text("#settings-now") == "temperature 0.7"
    page.one("#clear-history").click()
    assert page.all("#history button") == []


def test_turns_can_be_added_and_removed(page: Page) -> None:
    page.choose("task", "chat")
    assert page.texts("#fields legend") == ["Turn 1", "Turn 2"]
    assert page.texts("#fields label") == ["system optional", "user", "reply", "user"]
    page.one("#add-turn").click()
    assert page.browser.switch_to.active_element.get_attribute("id") == "field-user-2"
    page.fill("field-reply-1", "Fine.")
    page.fill("field-user-2", "Bye!")
    page.run()
    assert page.asked[-1]["rows"] == [
        {
            "system": "Answer briefly.",
            "user": ["Hello!", "How are you?", "Bye!"],
            "reply": ["Hello, how can I help?", "Fine."],
        }
    ]
    page.one("#remove-turn").click()
    page.one("#remove-turn").click()
    assert not page.one("#remove-turn").is_enabled()
    page.run()
    assert page.asked[-1]["rows"] == [{"system": "Answer briefly.", "user": ["Hello!"]}]


def test_empty_fields_and_wrong_numbers_are_marked_before_anything_is_sent(page: Page) -> None:
    page.one("#clear").click()
    page.one("#run").click()
    assert page.browser.switch_to.active_element.get_attribute("id") == "field-premise"
    assert page.texts("#fields .problem") == ["Please fill in this field."] * 2
    page.one("#example").click()
    page.one("#settings summary").click()
    page.fill("option-top_p", "1.5")
    page.one("#run").click()
    assert page.one("#option-top_p-problem").text == "Please enter a number from 0.01 to 1."
    assert page.asked == []
    page.fill("option-top_p", "0.35")
    page.run()
    assert page.asked[0]["top_p"] == 0.35
    page.choose("task", "gen")
    page.one("#clear").click()
    page.run()
    assert page.asked[1]["rows"] == [{}], "an optional field may stay empty"


def test_the_page_is_used_by_keyboard_alone(page: Page) -> None:
    seen: list[str] = []
    unmarked = []
    page.script("document.activeElement.blur()")
    for _ in range(14):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        name, is_marked = page.script(
            """
            const part = document.activeElement, style = getComputedStyle(part);
            return [part.id || part.tagName + ":" + part.textContent, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
            """  # noqa: E501
        )
        seen.append(name)
        if not is_marked:
            unmarked.append(name)
        if name == "against":
            ActionChains(page.browser).send_keys("base").perform()
        if name == "run":
            break
    assert unmarked == []
    assert seen == [
        *("A:Skip to the result", "A:Playground", "A:Runs", "language", "task", "arm", "against"),
        *("SUMMARY:What a trained model sees", "field-premise", "field-hypothesis", "example", "clear"),
        *("SUMMARY:How the answer is chosen most probable token", "stream"),
    ]
    ActionChains(page.browser).send_keys(Keys.TAB, Keys.ENTER).perform()
    page.until(lambda: page.one("#run").is_displayed() and len(page.all(".card .classes")) == 2)
    assert page.browser.switch_to.active_element == page.one("#run")
    ActionChains(page.browser).send_keys(Keys.TAB, Keys.END).perform()
    assert page.browser.switch_to.active_element.text == "lment"
    ActionChains(page.browser).send_keys(Keys.ARROW_LEFT).perform()
    assert page.texts(".card:first-child .candidates .best .word") == ["entai"]
    page.script("document.querySelector('#field-premise').focus()")
    page.server.state.asked.clear()
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    page.until(lambda: len(page.asked) == 2)


def test_the_address_names_task_and_models_but_no_text(page: Page) -> None:
    page.choose("task", "gen")
    page.choose("against", "demo-lora")
    address = page.browser.current_url
    assert address == f"{page.address}/#task=gen&model=demo&with=demo-lora"
    page.open(address.removeprefix(page.address))
    page.ready()
    values = [page.one(f"#{name}").get_property("value") for name in ("task", "arm", "against")]
    assert values == ["gen", "demo", "demo-lora"]


def test_korean_by_the_browser_and_by_the_switch(page: Page) -> None:
    agent = page.script("return navigator.userAgent")
    page.browser.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "ko-KR,en"})
    page.open()
    page.ready()
    assert page.one("#run").text == "예측"
    assert page.script("return document.documentElement.lang") == "ko"
    page.run()
    assert page.one(".classes").find_element(By.XPATH, "..").text.startswith("답마다의 확률")
    page.choose("language", "en")
    assert page.one("#run").text == "Predict"
    assert page.one(".classes").find_element(By.XPATH, "..").text.startswith("Probability of each answer")
    page.open("/runs")
    page.until(lambda: page.texts("#page-notice .empty")[:1] and "no runs yet" in page.text("#page-notice"))
    page.choose("language", "ko")
    page.browser.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "en"})
    page.open()
    page.ready()
    assert page.one("#run").text == "예측", "a choice is kept"
    page.choose("language", "en")


def test_both_languages_have_the_same_words(page: Page) -> None:
    words = page.browser.execute_async_script(
        "const done = arguments[0]; import('/page/words.js').then((found) => done(found.WORDS))"
    )
    assert set(words) == {"en", "ko"}
    assert list(words["en"]) == list(words["ko"])
    places = {
        language: [sorted(set(text.split("{")[1:])) != [] for text in words[language].values()] for language in words
    }
    assert places["en"] == places["ko"]
    used = set()
    for file in Path(app.__code__.co_filename).parents[2].glob("multitask/serving/page/*.html"):
        used |= {part.split('"')[0] for part in file.read_text("utf-8").split('data-word="')[1:]}
        used |= {part.split('"')[0] for part in file.read_text("utf-8").split('data-label="')[1:]}
    assert used <= set(words["en"])


def test_a_key_is_asked_for_and_sent(browser: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "demo")
    (tmp_path / "demo" / "report.html").write_text("<!doctype html>", "utf-8")
    server = app(tmp_path, key="open sesame")
    with served(server) as address:
        page = Page(browser, address, server, tmp_path)
        page.open()
        page.until(lambda: page.one("#key-form").is_displayed())
        assert not page.one("#work").is_displayed()
        assert page.browser.switch_to.active_element == page.one("#key")
        page.one("#key").send_keys("wrong", Keys.ENTER)
        page.until(lambda: page.one("#key-error").text == "The server did not accept this key.")
        page.one("#key").send_keys("open sesame", Keys.ENTER)
        page.ready()
        assert not page.one("#key-form").is_displayed()
        page.run()
        page.until(lambda: page.texts(".prediction") == ["entailment"])
        page.open("/runs")
        page.until(lambda: page.one("#run-name").text == "demo")
        assert page.one("#save-report").is_displayed()
        assert not page.one("#report").is_displayed()
        assert "open sesame" not in page.browser.current_url


def requested(browser: Any) -> set[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


def test_no_outside_address_is_requested(page: Page) -> None:
    write_run(page.root / "demo")
    requested(page.browser)
    page.browser.get_log("browser")
    page.open()
    page.ready().run()
    page.open("/runs")
    page.until(lambda: page.all("polyline"))
    inner = ("data:", "chrome://", "about:")
    found = {address for address in requested(page.browser) if not address.startswith(inner)}
    assert {address for address in found if not address.startswith(page.address + "/")} == set()
    assert f"{page.address}/page/page.js" in found, "the log has the requests"
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    page.script("const image = new Image(); image.src = 'https://example.org/x.png'")
    page.until(lambda: any("Content Security Policy" in entry["message"] for entry in page.browser.get_log("browser")))


def shown_states(page: Page) -> Iterator[str]:
    """The playground with a comparison and all folds open, an error, and the run page."""
    page.choose("against", "base-4")
    page.run()
    page.script("document.querySelector('.token').focus()")
    page.script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    yield "comparison"
    page.fill("field-premise", "busy")
    page.run()
    page.one("#clear").click()
    page.one("#run").click()
    yield "errors"
    page.choose("task", "chat")
    yield "turns"
    write_run(page.root / "demo")
    write_run(page.root / "suite" / "multitask", 12, is_done=False, max_steps=800)
    for name in ("demo", "suite:multitask"):
        page.open(f"/runs#{name}", page.script("return innerWidth"))
        page.until(lambda: page.all("polyline"))
        page.script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        page.until(lambda: page.all("figure table"))
        yield name


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_passes_axe_and_fits_the_width(page: Page, width: int, scheme: str) -> None:
    package = pytest.importorskip("axe_core_python", reason="needs axe-core-python (extra dev)")
    source = resources.files(package).joinpath("axe.min.js").read_text("utf-8")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.open(width=width)
    page.ready()
    for state in shown_states(page):
        if not page.script("return Boolean(window.axe)"):
            page.script(source)
        problems, unsure, num_passed = page.browser.execute_async_script(
            """
            const done = arguments[0];
            const told = (found) => found.flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.html} ${node.failureSummary}`));
            axe.run().then((found) => done([told(found.violations), told(found.incomplete), found.passes.length]));
            """  # noqa: E501
        )
        assert problems == [], state
        assert [one for one in unsure if ": <text" not in one] == [], (
            state
        )  # of a chart: --faint on --paper, as elsewhere
        assert num_passed > 20
        size = page.script("return [document.documentElement.scrollWidth, innerWidth]")
        assert size == [width, width], f"{state}: something hangs over the edge"
        ink, paper = page.script(
            "const s = getComputedStyle(document.body);"
            "return [s.color, s.backgroundColor].map((c) => +c.match(/\\d+/)[0])"
        )
        assert abs(ink - paper) > 180
        assert (paper < 60) == (scheme == "dark")


def test_a_run_that_is_under_way_is_refreshed(page: Page) -> None:
    folder = page.root / "demo"
    write_run(folder, 10, is_done=False, max_steps=400)
    page.open("/runs")
    page.until(lambda: page.all("polyline"))
    assert page.one("#run-state").text == "running"
    assert page.texts("#facts dd")[0] == "200 of 400"
    assert page.texts("figcaption > span:first-child") == [
        "Training loss per task (nats per target token)",
        "Validation loss per task (nats per target token)",
        "Validation score per task",
        "Learning rate",
        "Tokens per second",
    ]
    assert len(page.one("figure").find_elements(By.TAG_NAME, "polyline")) == 3
    before = page.one("polyline").get_attribute("points")
    line = json.loads((folder / "metrics.jsonl").read_text("utf-8").splitlines()[-2]) | {"step": 260}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    page.until(lambda: page.texts("#facts dd")[0] == "260 of 400")
    assert page.one("polyline").get_attribute("points") != before
    (folder / "results.json").write_text("{}", "utf-8")
    page.until(lambda: page.one("#run-state").text == "finished")


def test_values_of_a_chart_are_read_by_keyboard_and_pointer(page: Page) -> None:
    write_run(page.root / "demo")
    page.open("/runs")
    page.until(lambda: page.all("polyline"))
    rate = page.all("figure")[3]
    plot = rate.find_element(By.CLASS_NAME, "plot")
    assert rate.find_element(By.CLASS_NAME, "reading").text == "Step 800"
    page.script("arguments[0].focus()", plot)
    plot.send_keys(Keys.HOME)
    assert rate.find_element(By.CLASS_NAME, "reading").text == "Step 20"
    assert plot.get_attribute("aria-label").startswith("Learning rate. Step 20: Learning rate 0.0005")
    plot.send_keys(Keys.ARROW_RIGHT)
    assert rate.find_element(By.CLASS_NAME, "reading").text == "Step 40"
    page.script("arguments[0].blur()", plot)
    ActionChains(page.browser).move_to_element(plot).perform()
    page.until(lambda: rate.find_element(By.CLASS_NAME, "reading").text in ("Step 360", "Step 380", "Step 400"))


def test_the_run_page_shows_scores_texts_and_the_report(page: Page) -> None:
    write_run(page.root / "suite" / "multitask")
    (page.root / "suite" / "report.html").write_text("<!doctype html><title>a report</title>", "utf-8")
    write_run(page.root / "other", 3, is_done=False)
    page.open("/runs#suite:multitask")
    page.until(lambda: page.all("polyline"))
    assert page.texts("#score-table tbody tr")[0] == "nli accuracy 0.812 0.790 – 0.830"
    assert page.texts(".sample .written") == ["정말 좋은 영화다.", SCRIPT, "entailment", SCRIPT]
    assert page.script("return window.taken") is None
    page.one("#run-list a:not([aria-current])").click()
    page.until(lambda: page.one("#run-name").text == "other")
    assert not page.one("#report").is_displayed()
    assert not page.one("#samples").is_displayed()
    page.browser.back()
    page.until(lambda: page.one("#run-name").text == "suite:multitask")
    page.one("#report").click()
    page.until(lambda: page.browser.title == "a report")
