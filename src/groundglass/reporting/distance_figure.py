"""Where slices lie among the held-out slices of the training data's sources."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from groundglass.reporting.figures import INK, LINE, MUTED, STYLE

_BINS = 20


def percentile_figure(embedding: NDArray[np.float64], grey: NDArray[np.float64], beyond: float) -> Figure:
    """Histogram of percentiles; slices like the held-out ones fill every bin alike.

    Args:
        embedding: percentile of each slice by its embedding, 0 to 100, shape (N,).
        grey: percentile by its grey statistics, shape (N,).
        beyond: percentile from which a slice counts as strange.
    """
    edges = np.linspace(0, 100, _BINS + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(beyond, 100, color=LINE, label="strange")
        axes.axhline(100 / _BINS, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="data alike")
        for values, colour, style, name in (
            (grey, MUTED, (0, (1, 1)), "by grey values"),
            (embedding, INK, "solid", "by embedding"),
        ):
            shares = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.8, label=name)
        axes.set(xlim=(0, 100), ylim=(0, None), xlabel="Percentile among held-out slices")
        axes.set(ylabel="Slices per bin (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return figure
