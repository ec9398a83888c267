"""Figures of experiments: rows of a table with their intervals, and curves over epochs with every seed.

They stand alone as SVG files and therefore on white, whatever the page around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from groundglass.reporting.figures import COVID, INK, MUTED, NON_COVID, STYLE

COLOURS = (NON_COVID, COVID, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", MUTED)
"""Okabe and Ito's palette, told apart by colour-blind readers too; curves differ in their dashes as well."""

_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1), (8, 3), (2, 3))


@dataclass(frozen=True)
class Mark:
    """One row's value in a panel.

    Attributes:
        value: drawn as a large dot.
        low: lower bound of its interval, or None.
        high: upper bound, or None.
        points: value of each seed, drawn small.
        strong: the row the others are compared with, or one that differs from it.
    """

    value: float
    low: float | None
    high: float | None
    points: tuple[float, ...] = ()
    strong: bool = False


@dataclass(frozen=True)
class Panel:
    """One measure of all rows.

    Attributes:
        title: above the panel.
        label: of the horizontal axis.
        marks: one per row, None where the row has no value.
        reference: where a line is drawn, or None.
    """

    title: str
    label: str
    marks: tuple[Mark | None, ...]
    reference: float | None = None


@dataclass(frozen=True)
class Curve:
    """One measure over epochs.

    Attributes:
        name: in the legend.
        values: of each seed, one value per epoch; seeds may be of different length.
    """

    name: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class CurvePanel:
    """Curves that are compared.

    Attributes:
        title: above the panel.
        label: of the vertical axis.
        curves: in the order of their colours.
    """

    title: str
    label: str
    curves: tuple[Curve, ...]


def forest_figure(names: Sequence[str], panels: Sequence[Panel]) -> Figure:
    """Rows from top to bottom, measures side by side: mean, 95 % interval, and every seed.

    Args:
        names: of the rows.
        panels: each with one mark per row.
    """
    with mpl.rc_context(STYLE):
        figure = _on_white((2.6 + 3.1 * len(panels), 1.3 + 0.36 * len(names)))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, panel in zip(axes, panels, strict=True):
            _draw_panel(place, panel)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    if panel.reference is not None:
        axes.axvline(panel.reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for row, mark in enumerate(panel.marks):
        if mark is None:
            continue
        colour = COVID if mark.strong else NON_COVID
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [row, row], color=colour, linewidth=1.6, solid_capstyle="round")
        axes.plot(mark.points, [row + 0.24] * len(mark.points), "o", color=colour, markersize=2.6, alpha=0.6)
        axes.plot(mark.value, row, "D" if mark.strong else "o", color=colour, markersize=5.5)
    axes.set_title(panel.title, fontsize=11, color=INK)
    axes.set_xlabel(panel.label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def curves_figure(panels: Sequence[Sequence[CurvePanel]]) -> Figure:
    """Curves over epochs: thick the mean over seeds, thin each seed.

    Args:
        panels: rows of panels, all rows of one length.
    """
    with mpl.rc_context(STYLE):
        columns = len(panels[0])
        figure = _on_white((4.6 * columns, 3.5 * len(panels)))
        grid = figure.subplots(len(panels), columns, squeeze=False)
        for axes, panel in zip(grid.flat, (each for row in panels for each in row), strict=True):
            _draw_curves(axes, panel)
        return figure


def _draw_curves(axes: Axes, panel: CurvePanel) -> None:
    for number, curve in enumerate(panel.curves):
        colour, dashes = COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]
        for values in curve.values if len(curve.values) > 1 else ():
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=0.7, alpha=0.45)
        common = min((len(values) for values in curve.values), default=0)
        mean = np.mean([values[:common] for values in curve.values], axis=0)
        axes.plot(range(1, common + 1), mean, color=colour, dashes=dashes, label=curve.name)
    axes.set_title(panel.title, fontsize=11, color=INK)
    axes.set(xlabel="Epoch", ylabel=panel.label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")


def _on_white(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    paper = Rectangle((0, 0), 1, 1, transform=figure.transFigure, facecolor="white", zorder=-10)
    # Constrained layout would make room for the paper as if it were a label.
    paper.set_in_layout(False)
    figure.add_artist(paper)
    return figure
