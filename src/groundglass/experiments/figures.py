"""Figures of experiments: rows of a table with their intervals, and curves over epochs with every seed.

They stand alone as SVG files and therefore on white, whatever the page around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from groundglass.experiments.comparison import MeanSD
from groundglass.reporting.figures import COVID, INK, MUTED, NON_COVID, STYLE

# Okabe and Ito's palette, which colour-blind readers can tell apart; curves differ in their dashes as well.
_COLOURS = (NON_COVID, COVID, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", MUTED)
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1), (8, 3), (2, 3))


def forest_figure(
    rows: Sequence[str],
    panels: Mapping[str, Sequence[MeanSD]],
    reference: str | None = None,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Rows from top to bottom, measures side by side: mean, 95 % interval, and every seed.

    Args:
        rows: their titles.
        panels: by the measure's title, one value per row; rows without a mean stay empty.
        reference: the row that is drawn in the colour of COVID.
        lines: by the measure's title, where a dashed line is drawn.
    """
    with mpl.rc_context(STYLE):
        figure = _on_white((2.6 + 3.1 * len(panels), 1.3 + 0.36 * len(rows)))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(grid, panels.items(), strict=True):
            if lines and title in lines:
                axes.axvline(lines[title], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            for place, (row, value) in enumerate(zip(rows, values, strict=True)):
                _draw_row(axes, place, value, strong=row == reference)
            axes.set_title(title, fontsize=11, color=INK)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        grid[0].set_yticks(range(len(rows)), rows)
        grid[0].set_ylim(len(rows) - 0.5, -0.5)
        return figure


def _draw_row(axes: Axes, place: int, value: MeanSD, *, strong: bool) -> None:
    if value.mean is None:
        return
    colour = COVID if strong else NON_COVID
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [place] * 2, color=colour, linewidth=1.6, solid_capstyle="round")
    seeds = [each for each in value.values if each is not None]
    axes.plot(seeds, [place + 0.24] * len(seeds), "o", color=colour, markersize=2.6, alpha=0.6)
    axes.plot(value.mean, place, "D" if strong else "o", color=colour, markersize=5.5)


def curves_figure(panels: Mapping[tuple[str, str], Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    """Curves over epochs, two panels in a row: thick the mean over seeds, as far as all go, thin each seed.

    Args:
        panels: by title and label of the vertical axis; by name in the legend, one curve per seed.
    """
    with mpl.rc_context(STYLE):
        height = (len(panels) + 1) // 2
        figure = _on_white((9.2, 3.5 * height))
        grid = figure.subplots(height, 2, squeeze=False)
        for axes, ((title, label), curves) in zip(grid.flat, panels.items(), strict=True):
            for number, (name, seeds) in enumerate(curves.items()):
                colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
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


def _on_white(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    paper = Rectangle((0, 0), 1, 1, transform=figure.transFigure, facecolor="white", zorder=-10)
    # Constrained layout would make room for the paper as if it were a label.
    paper.set_in_layout(False)
    figure.add_artist(paper)
    return figure
