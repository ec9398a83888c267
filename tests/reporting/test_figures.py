"""Figures: the same every time, free of addresses, in the page's colours."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from groundglass.reporting import figures

STEPS = np.array([0.0, 0.25, 1.0])
LOSSES = {"train_loss": "training", "val_loss": "validation"}
HISTORY = [{"epoch": 0, "train_loss": 0.7, "val_auc": 0.6}, {"epoch": 1, "train_loss": 0.5, "val_loss": None}]
FALLING, AXES, BINS = STEPS[::-1], ("x", "y"), [(0.1, 0.2, 0.1, 0.4), (0.9, 0.7, 0.5, 0.8)]
DRAWN: dict[str, Callable[[], Figure | None]] = {
    "roc": lambda: figures.curve_figure((STEPS, STEPS), "AUC", (0, 1), (0.2, 0.2), AXES, (STEPS,) * 3),
    "precision-recall": lambda: figures.curve_figure((FALLING, STEPS), "0.5", (0.4, 0.4), None, AXES),
    "reliability": lambda: figures.reliability_figure(BINS, [3, 0, 5]),
    "confusion": lambda: figures.confusion_figure([[3, 0], [2, 0]]),
    "histogram": lambda: figures.histogram_figure(STEPS, np.array([]), 0.5),
    "loss": lambda: figures.history_figure(HISTORY, LOSSES, "Loss", 1),
}


@pytest.mark.parametrize("name", DRAWN)
def test_inline_figure_is_reproducible_well_formed_and_the_pages_own(name: str) -> None:
    before = mpl.rcParams["font.size"], plt.get_fignums()
    text, again = (figures.inline_svg(figures.svg(DRAWN[name]()), name) for _ in range(2))
    assert text == again
    assert (mpl.rcParams["font.size"], plt.get_fignums()) == before, "drawing leaves nothing behind"
    root = ET.fromstring(text.replace("<svg ", '<svg xmlns:xlink="x" ', 1))  # noqa: S314 - our own
    assert "http" not in text
    assert "<text" in text
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids
    assert all(str(each).startswith(f"{name}-") for each in ids)
    for reference in (element.get("{x}href") for element in root.iter()):
        assert reference is None or reference.removeprefix("#") in ids
    assert "var(--ink)" in text
    assert not any(colour in text for colour in (*figures.PAGE_COLOURS, "#000000"))


def test_standalone_figure_keeps_its_colours_and_says_counts_and_shares() -> None:
    text = figures.svg(figures.confusion_figure([[30, 10], [5, 15]]))
    for shown in (">30<", ">10<", ">5<", ">15<", ">75% right<", ">25% missed<", ">25% false alarm<"):
        assert shown in text
    assert figures.COVID in text
    assert "var(" not in text
    drawn = {name: figures.svg(draw()) for name, draw in DRAWN.items()}
    assert [name for name, each in drawn.items() if "95 % interval" in each] == ["roc", "reliability"]
    assert all(f">{count}<" in drawn["reliability"] for count in (3, 0, 5)), "of each bin, below"


@pytest.mark.parametrize(
    "rows", [[], [{"epoch": 0, "val_auc": 0.5}], [{"epoch": 0, "val_loss": float("nan")}]]
)
def test_history_without_numbers_is_not_drawn(rows: list[dict[str, float]]) -> None:
    assert figures.history_figure(rows, LOSSES, "Loss") is None
