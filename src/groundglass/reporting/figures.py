"""Figures of evaluations, trainings and experiments, as matplotlib figures and as SVG.

Figures are made without pyplot, so that nothing is registered anywhere and a figure goes when its last
reference goes. COVID is vermilion and NonCOVID blue throughout (Okabe and Ito's palette, told apart by
colour-blind readers too), and shape or text says the same again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

INK, MUTED, LINE = "#1f2328", "#5b6470", "#d5dae1"
COVID, NON_COVID = "#d55e00", "#0072b2"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "groundglass",
    "font.family": "sans-serif", "font.size": 11, "text.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
    "axes.linewidth": 0.8, "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "legend.frameon": False, "legend.fontsize": 10, "lines.linewidth": 1.8,
    "figure.facecolor": "white", "axes.facecolor": "none", "savefig.facecolor": "auto",
}  # fmt: skip

_NO_METADATA: dict[str, str | None] = {"Date": None, "Creator": None, "Format": None, "Type": None}
_GUIDE: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}

_Values = NDArray[np.float64]


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    return figure, figure.add_subplot()


@mpl.rc_context(STYLE)
def curve_figure(
    curve: tuple[_Values, _Values],
    label: str,
    chance: tuple[float, float],
    point: tuple[float, float] | None,
    names: tuple[str, str],
    band: tuple[_Values, _Values, _Values] | None = None,
) -> Figure:
    """ROC or precision-recall curve, as steps, and the line that ``chance`` would give, by its height at both edges.

    ``curve`` holds the values along both axes, of these ``names``, 0 to 1, shape (S,) each; ``label`` is for the
    legend; ``point`` is that of the threshold in use, where it is defined; ``band`` the curve's 95 % interval: places
    along the axis, lower and upper edge, shape (G,) each.
    """
    figure, axes = _square()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.plot([0, 1], chance, label="chance", **_GUIDE)
    if band is not None:
        axes.fill_between(*band, color=NON_COVID, alpha=0.18, linewidth=0, label="95 % interval")
    axes.step(*curve, color=NON_COVID, where="post", label=label)
    if point is not None:
        axes.plot(*point, "o", color=COVID, markersize=7, clip_on=False, label="threshold in use")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend(loc="lower left" if chance[0] == chance[1] else "lower right")
    return figure


@mpl.rc_context(STYLE)
def reliability_figure(points: Sequence[tuple[float, float, float, float]], counts: Sequence[int]) -> Figure:
    """Reliability diagram, with the slices of each bin below.

    ``points`` are mean predicted probability, observed share of COVID and its 95 % interval, 0 to 1, of each bin that
    holds slices, at least one; ``counts`` the slices of every bin of equal width over 0 to 1.
    """
    mean, observed, low, high = (np.asarray(each) for each in zip(*points, strict=True))
    figure = Figure(figsize=(4.4, 4.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], label="perfect", **_GUIDE)
    bars, style = [observed - low, high - observed], {"color": NON_COVID, "capsize": 3}
    axes.errorbar(mean, observed, bars, fmt="o-", linewidth=1.2, label="observed, 95 % interval", **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="Observed share of COVID")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    middle = (np.arange(len(counts)) + 0.5) / len(counts)
    below.bar(middle, counts, 0.9 / len(counts), color=NON_COVID, alpha=0.5)
    for x, number in zip(middle, counts, strict=True):
        below.annotate(str(number), (x, number), ha="center", va="bottom", fontsize=8, color=MUTED)
    below.set(xlabel="Mean predicted probability of COVID", ylabel="Slices", ylim=(0, 1.35 * max(counts)))
    below.grid(visible=False)
    below.set_yticks([])
    return figure


@mpl.rc_context(STYLE)
def confusion_figure(counts: Sequence[Sequence[int]]) -> Figure:
    """Confusion matrix with the share of each label's row.

    ``counts`` are slices labelled COVID, called COVID and NonCOVID; then the same of those labelled NonCOVID.
    """
    words = [["right", "missed"], ["false alarm", "right"]]
    figure, axes = _square()
    axes.grid(visible=False)
    for row, column in np.ndindex(2, 2):
        total = sum(counts[row])
        share = counts[row][column] / total if total else 0.0
        colour, alpha = NON_COVID if row == column else COVID, 0.08 + 0.42 * share
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, alpha=alpha))
        axes.text(column, row - 0.08, str(counts[row][column]), ha="center", va="center", fontsize=22)
        detail = f"{share:.0%} {words[row][column]}" if total else "no such slice"
        axes.text(column, row + 0.24, detail, ha="center", va="center", fontsize=11)
    axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), aspect="equal")
    axes.set(xlabel="Called (slices)", ylabel="Label (slices)")
    axes.set_xticks([0, 1], ["COVID", "NonCOVID"])
    axes.set_yticks([0, 1], ["COVID", "NonCOVID"], rotation=90, va="center")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


# Okabe and Ito's palette, which colour-blind readers can tell apart; curves differ in their dashes as well.
_COLOURS = (NON_COVID, COVID, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", MUTED)
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1), (8, 3), (2, 3))


_Estimate = tuple[float | None, float | None, float | None, Sequence[float | None]]
"""A mean over seeds, its 95 % interval, and the value of each seed; None stands for what is undefined."""


@mpl.rc_context(STYLE)
def forest_figure(
    rows: Sequence[str],
    panels: Mapping[str, Sequence[_Estimate]],
    reference: str | None = None,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Rows from top to bottom, measures side by side: mean, 95 % interval, and every seed.

    ``panels`` hold, by the measure's title, one value per row; rows without a mean stay empty. The ``reference`` row
    has the colour of COVID; ``lines`` say, by the measure's title, where a dashed line is drawn.
    """
    figure = Figure(figsize=(2.6 + 3.1 * len(panels), 1.3 + 0.36 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(grid, panels.items(), strict=True):
        if lines and title in lines:
            axes.axvline(lines[title], **_GUIDE)
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            _draw_row(axes, place, value, strong=row == reference)
        axes.set_title(title, fontsize=11, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(rows)), rows)
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _draw_row(axes: Axes, place: int, value: _Estimate, *, strong: bool) -> None:
    mean, low, high, seeds = value
    if mean is None:
        return
    colour = COVID if strong else NON_COVID
    if low is not None and high is not None:
        axes.plot([low, high], [place] * 2, color=colour, linewidth=1.6, solid_capstyle="round")
    known = [each for each in seeds if each is not None]
    axes.plot(known, [place + 0.24] * len(known), "o", color=colour, markersize=2.6, alpha=0.6)
    axes.plot(mean, place, "D" if strong else "o", color=colour, markersize=5.5)


@mpl.rc_context(STYLE)
def curves_figure(panels: Mapping[tuple[str, str], Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    """Curves over epochs, two panels in a row: thick the mean over seeds, as far as all go, thin each seed.

    ``panels`` hold, by title and label of the vertical axis and by name, which has one colour, one curve per seed.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    height, width = (len(panels) + 1) // 2, min(2, len(panels))
    figure = Figure(figsize=(4.6 * width, 3.5 * height), layout="constrained")
    for number, ((title, label), curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(height, width, number)
        for name, seeds in curves.items():
            colour, dashes = (each[names.index(name) % len(each)] for each in (_COLOURS, _DASHES))
            for values in seeds if len(seeds) > 1 else ():
                axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=0.7, alpha=0.45)
            common = min(len(values) for values in seeds)
            mean = np.mean([values[:common] for values in seeds], axis=0)
            axes.plot(range(1, common + 1), mean, color=colour, dashes=dashes, label=name)
        axes.set_title(title, fontsize=11, color=INK)
        axes.set(xlabel="Epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="best")
    return figure


@mpl.rc_context(STYLE)
def svg(figure: Figure) -> str:
    """A figure as a complete SVG document; equal figures give equal text."""
    figure.savefig(buffer := io.StringIO(), format="svg", metadata=_NO_METADATA)
    return buffer.getvalue()
