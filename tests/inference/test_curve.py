"""Curves along a series: as SVG, as words, as a line of text."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from groundglass.inference.report import SeriesCurve, sparkline


def curve(at: list[float], probability: list[float], label: list[str] | None = None) -> SeriesCurve:
    return SeriesCurve(at, probability, label or ["NonCOVID"] * len(at), "mm", "position, mm")


def drawn(of: SeriesCurve) -> ET.Element:
    assert of.svg is not None
    return ET.fromstring(str(of.svg))  # noqa: S314 - drawn a moment ago


def test_slices_are_marked_by_shape_and_colour_where_they_lie() -> None:
    svg = drawn(curve([-10, 0, 30], [0.0, 1.0, 0.5], ["NonCOVID", "COVID", "uncertain"]))
    square, circle, diamond = svg.find("rect"), svg.find("circle"), svg.find("polygon")
    assert square is not None
    assert circle is not None
    assert diamond is not None
    assert (square.get("fill"), circle.get("fill")) == ("var(--other)", "var(--covid)")
    line = svg.find("polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in str(line.get("points")).split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][0] - points[0][0] == pytest.approx((points[2][0] - points[0][0]) / 4, abs=0.2)
    assert points[1][1] < points[2][1] < points[0][1], "higher probabilities stand higher"
    ticks = [text.text for text in svg.iter("text")]
    assert "0.5" in ticks
    assert "−10" in ticks
    assert "position, mm" in ticks


@pytest.mark.parametrize("span", [1e-6, 0.7, 3, 99.5, 1234, 1e7])
def test_every_span_gets_a_few_round_ticks(span: float) -> None:
    svg = drawn(curve([-span / 3, 2 * span / 3], [0.1, 0.2]))
    assert 3 + 2 + 1 <= len(list(svg.iter("text"))) <= 3 + 9 + 1


def test_slices_at_one_place_are_drawn_all_the_same() -> None:
    assert "nan" not in str(curve([5, 5], [0.1, 0.9]).svg)


def test_long_series_stay_small() -> None:
    count = 20_000
    svg = str(curve([float(z) for z in range(count)], [z % 100 / 100 for z in range(count)]).svg)
    assert len(svg) < 20_000
    assert "nan" not in svg


@pytest.mark.parametrize("values", [[], [0.4]])
def test_one_slice_is_no_curve(values: list[float]) -> None:
    single = curve([0.0] * len(values), values)
    assert single.svg is None
    assert single.words == ""


def test_words_name_the_peak() -> None:
    words = curve([-12.5, 0], [0.912, 0.1]).words
    assert "2 slices" in words
    assert "0.912 at −12.5 mm" in words
    assert "0.100" in words
    assert "at 0 mm" in curve([-12.5, -0.0], [0.1, 0.9]).words, "no minus before a zero"


def test_svg_holds_no_address_and_no_style() -> None:
    svg = str(curve([0, 1], [0, 1]).svg)
    assert not re.search(r"https?:|url\(|style=", svg)
    assert 'aria-hidden="true"' in svg


def test_a_sparkline_has_one_block_per_slice() -> None:
    assert sparkline([0, 1, 2], [0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0, 1, 2], [0.0, 0.5, 1.0], unicode=False) == "_=#"
    assert sparkline([], []) == ""


def test_a_long_series_is_averaged_over_stretches_of_the_body() -> None:
    at = [float(z) for z in range(100)]
    assert sparkline(at, [0.0] * 50 + [1.0] * 50, 10) == "▁▁▁▁▁█████"
    gap = [*range(50), *range(950, 1000)]
    line = sparkline([float(z) for z in gap], [1.0] * 100, 10)
    assert line == "█        █", "nothing where there is no slice"
    assert len(sparkline([3.0] * 100, [0.5] * 100, 10)) == 10
