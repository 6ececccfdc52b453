import re
import warnings
from functools import cache
from xml.etree import ElementTree

import pytest

from multitask.reports import figures

CURVE = figures.Curve(
    "한국어 <b>&$x_1$", [0, 4, 8], [0.3, 0.5, 0.45], 0, "-", [None, (0.4, 0.6), (0.4, 0.5)], [None, 0.1, 0]
)
BARS = [figures.Bar("한국어 <b>&$x_1$", 0.5, 0.4, 0.6, 0.02, 0), figures.Bar("majority", 0.3, None, None, None, -1)]
COSTS = {"wall_s": "seconds", "trainable_parameters": "trained parameters"}


NAMES = ("bars", "few_shot", "learning", "dots", "prices")


@cache
def drawings(turn: int = 0) -> dict[str, str]:
    points = [figures.Price(n, {"wall_s": 10.0**n, "trainable_parameters": 0}, 0.5, n, n > 1) for n in (1, 2, 3)]
    return {
        "bars": figures.bars("accuracy", BARS),
        "few_shot": figures.few_shot("accuracy", [CURVE], BARS[1:]),
        "learning": figures.learning([figures.Curve("한국어 <b>&$x_1$", range(1, 5000), range(1, 5000), 0)]),
        "dots": figures.learning([figures.Curve("한국어 <b>&$x_1$", [1], [2.5], 0, "o")]),
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
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"], "the namespace, and nothing else"
    assert len(svg) < 60_000
    assert set(drawings()) == set(NAMES)
    assert figures.INK not in svg
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    if name != "prices" and name != "learning":
        assert "한국어 <b>&$x_1$" in words, "as it is: no formula, no markup, no lost Hangul"
    assert "mathdefault" not in svg


def test_ids_of_several_figures_do_not_meet() -> None:
    found = [set(re.findall(r'id="([^"]+)"', svg)) for svg in drawings().values()]
    assert all(found)
    assert sum(map(len, found)) == len(set.union(*found))


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    long = figures.learning([figures.Curve("a", list(range(1, 5001)), [2.0] * 4999 + [1.0], 0, "o")])
    assert long.count("<use") < figures.MAX_POINTS + 40
    assert "\n" in long


def test_long_names_leave_room() -> None:
    assert figures.short("x" * 30) == "x" * 25 + "…"
    assert figures.short("x" * 26) == "x" * 26
