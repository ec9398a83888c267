"""Figures: the same every time, free of addresses, and they say their numbers."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from groundglass.reporting import figures

STEPS = np.array([0.0, 0.25, 1.0])
FALLING, AXES, BINS = STEPS[::-1], ("x", "y"), [(0.1, 0.2, 0.1, 0.4), (0.9, 0.7, 0.5, 0.8)]
DRAWN: dict[str, Callable[[], Figure]] = {
    "roc": lambda: figures.curve_figure((STEPS, STEPS), "AUC", (0, 1), (0.2, 0.2), AXES, (STEPS,) * 3),
    "precision-recall": lambda: figures.curve_figure((FALLING, STEPS), "0.5", (0.4, 0.4), None, AXES),
    "reliability": lambda: figures.reliability_figure(BINS, [3, 0, 5]),
    "confusion": lambda: figures.confusion_figure([[30, 10], [5, 15]]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_reproducible_and_leaves_nothing_behind(name: str) -> None:
    before = mpl.rcParams["font.size"], plt.get_fignums()
    text, again = (figures.svg(DRAWN[name]()) for _ in range(2))
    assert text == again
    assert (mpl.rcParams["font.size"], plt.get_fignums()) == before
    assert "<text" in text
    shown = {
        "confusion": (">30<", ">10<", ">5<", ">15<", ">75% right<", ">25% missed<", ">25% false alarm<"),
        "reliability": ("95 % interval", ">3<", ">0<", ">5<"),
        "roc": ("95 % interval",),
    }
    assert all(words in text for words in shown.get(name, ()))
