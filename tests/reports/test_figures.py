import warnings
from functools import cache
from xml.etree import ElementTree

import pytest

from multitask.reports.rendering import figures
from multitask.reports.rendering.words import words

CURVE = figures.Curve(
    "한국어 <b>&$x_1$", [0, 4, 8], [0.3, 0.5, 0.45], 0, "-", [None, (0.4, 0.6), (0.4, 0.5)], [None, 0.1, 0]
)
BARS = [figures.Bar("한국어 <b>&$x_1$", 0.5, 0.4, 0.6, 0.02, 0), figures.Bar("majority", 0.3, None, None, None, -1)]
COSTS = {"wall_s": "seconds", "trainable_parameters": "trained parameters"}


SAID = words("en")
NAMES = ("bars", "few_shot", "learning", "dots", "prices")


@cache
def drawings(turn: int = 0) -> dict[str, str]:
    points = [figures.Price(n, {"wall_s": 10.0**n, "trainable_parameters": 0}, 0.5, n, n > 1) for n in (1, 2, 3)]
    return {
        "bars": figures.bars("accuracy", BARS),
        "few_shot": figures.few_shot("accuracy", [CURVE], BARS[1:], SAID),
        "learning": figures.learning([figures.Curve("한국어 <b>&$x_1$", range(1, 5000), range(1, 5000), 0)], SAID),
        "dots": figures.learning([figures.Curve("한국어 <b>&$x_1$", [1], [2.5], 0, "o")], SAID),
        "prices": figures.prices("accuracy", points, COSTS | {"tokens": "tokens"}),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_text_that_asks_for_nothing(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = drawings()[name]
    assert svg == drawings(1)[name], "the same bytes each time"
    root = ElementTree.fromstring(svg)
    addresses = {value for element in root.iter() for key, value in element.items() if key.endswith("href")}
    assert all(address.startswith("#") for address in addresses)
    assert svg.count("http") == svg.count('xmlns="http://www.w3.org/2000/svg"') == 1, "the namespace, and nothing else"
    assert len(svg) < 60_000
    assert set(drawings()) == set(NAMES)
    assert figures.INK not in svg
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    if name != "prices" and name != "learning":
        assert "한국어 <b>&$x_1$" in words, "as it is: no formula, no markup, no lost Hangul"
    assert "mathdefault" not in svg


@pytest.mark.parametrize("name", NAMES)
def test_every_id_that_is_referred_to_exists(name: str) -> None:
    root = ElementTree.fromstring(drawings()[name])
    ids = {element.get("id") for element in root.iter()}
    addresses = [element.get(key) for element in root.iter() for key in ("href", "clip-path")]
    referred = {address.removeprefix("url(").strip("#)") for address in addresses if address is not None}
    assert referred
    assert referred <= ids


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (
            "font-size: 10px; font-family: 'DejaVu Sans', sans-serif; text-anchor: middle",
            "font-size: 10px; text-anchor: middle",
        ),
        ("font: bold 9.5px 'DejaVu Sans', Verdana; fill: #123457", "font-size: 9.5px; fill: #123457"),
        ("stroke: #fff; ", "stroke: #fff"),
    ],
)
def test_fonts_are_left_to_the_page_however_a_style_names_them(written: str, plain: str) -> None:
    assert figures._style(written) == plain


def test_ids_of_several_figures_do_not_meet() -> None:
    found = [{i for e in ElementTree.fromstring(svg).iter() if (i := e.get("id"))} for svg in drawings().values()]
    assert all(found)
    assert sum(map(len, found)) == len(set.union(*found))


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    long = figures.learning([figures.Curve("a", list(range(1, 5001)), [2.0] * 4999 + [1.0], 0, "o")], SAID)
    marks = list(ElementTree.fromstring(long).iter("{http://www.w3.org/2000/svg}use"))
    assert figures.MAX_POINTS // 2 < len(marks) < figures.MAX_POINTS + 40


def test_long_names_are_truncated() -> None:
    assert figures.short("x" * 30) == "x" * 25 + "…"
    assert figures.short("x" * 26) == "x" * 26
