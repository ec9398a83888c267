"""Figures of experiments: every row, seed and curve is drawn, and equal figures give equal text."""

from __future__ import annotations

import re

from groundglass.experiments.figures import Curve, CurvePanel, Mark, Panel, curves_figure, forest_figure
from groundglass.reporting.figures import svg


def test_rows_with_and_without_values() -> None:
    marks = (Mark(0.8, 0.7, 0.9, (0.79, 0.81), strong=True), None, Mark(0.5, None, None))
    panels = [Panel("Accuracy", "Share", marks, 0.921), Panel("AUC", "Area", marks)]
    figure = forest_figure(["first", "second", "third & last"], panels)
    text = svg(figure)
    assert text == svg(forest_figure(["first", "second", "third & last"], panels))
    for words in ("first", "second", "third &amp; last", "Accuracy", "Area"):
        assert words in text
    left, right = figure.axes
    # A reference line, an interval, the dots of two rows, and the dots of the seeds.
    assert len(left.lines) == 1 + 1 + 2 * 2
    assert len(right.lines) == 1 + 2 * 2
    assert left.get_ylim() == (2.5, -0.5), "the first row stands at the top"


def test_a_figure_stands_on_white() -> None:
    text = svg(forest_figure(["row"], [Panel("A", "B", (Mark(1.0, None, None),))]))
    assert re.search(r"fill: #ffffff", text)


def test_curves_of_different_length() -> None:
    panel = CurvePanel(
        "resnet-18", "Loss", (Curve("none", ((3.0, 2.0, 1.0), (3.0, 1.0))), Curve("c2l", ((2.0, 1.0),)))
    )
    figure = curves_figure([[panel, panel]])
    axes = figure.axes[0]
    seeds, means = axes.lines[:2], (axes.lines[2], axes.lines[3])
    assert [list(line.get_ydata()) for line in seeds] == [[3.0, 2.0, 1.0], [3.0, 1.0]]
    # The mean goes as far as all seeds go; a single seed is its own mean.
    assert [list(line.get_ydata()) for line in means] == [[3.0, 1.5], [2.0, 1.0]]
    assert list(means[0].get_xdata()) == [1, 2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none", "c2l"]
