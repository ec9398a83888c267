"""What people are shown: figures that say their numbers and come out the same, and outlines and colours on slices."""

import base64
from collections.abc import Callable
from dataclasses import replace

import cv2
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from groundglass.reporting import figures, overlay

STEPS = np.array([0.0, 0.25, 1.0])
AXES, BINS = ("x", "y"), [(0.1, 0.2, 0.1, 0.4), (0.9, 0.7, 0.5, 0.8)]
DRAWN: dict[str, tuple[Callable[[], Figure], str]] = {
    "roc": (lambda: figures.curve_figure((STEPS, STEPS), "AUC", (0, 1), (0.2, 0.2), AXES, (STEPS,) * 3), "95 % interval|AUC"),
    "precision-recall": (lambda: figures.curve_figure((STEPS[::-1], STEPS), "0.5", (0.4, 0.4), None, AXES), "0.5"),
    "reliability": (lambda: figures.reliability_figure(BINS, [3, 0, 5]), "95 % interval|>3<|>0<|>5<"),
    "confusion": (
        lambda: figures.confusion_figure([[30, 10], [5, 15]]),
        ">30<|>10<|>5<|>15<|>75% right<|>25% missed<|>25% false alarm<",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_reproducible_and_leaves_nothing_behind(name: str) -> None:
    draw, words = DRAWN[name]
    before = mpl.rcParams["font.size"], plt.get_fignums()
    text = figures.svg(draw())
    assert text == figures.svg(draw())
    assert (mpl.rcParams["font.size"], plt.get_fignums()) == before
    assert [each for each in words.split("|") if each not in text] == []


def test_an_odd_number_of_panels_is_drawn_and_a_name_has_one_colour_in_all() -> None:
    panels = {(f"panel {number}", "AUC"): {"c2l": [[0.8]]} for number in range(3)}
    panels["panel 0", "AUC"] = {"none": [[0.5]], "imagenet": [[0.6]], "c2l": [[0.7]]}
    drawn = figures.curves_figure(panels)
    assert [axes.get_title() for axes in drawn.axes] == ["panel 0", "panel 1", "panel 2"]
    *_, first, second, third = (line.get_color() for axes in drawn.axes for line in axes.lines)
    assert first == second == third


def test_a_layer_is_the_more_opaque_the_surer_and_nothing_where_the_map_is_no_number() -> None:
    layer = overlay.map_layer(np.float32([[9, 0, -9], [np.nan, -np.inf, 9]]))
    assert layer[0, 0, :3].tolist() == [*overlay.LESION[::-1]]
    assert layer[..., 3].tolist() == [[158, 79, 0], [0, 0, 158]]


def test_layers_hold_slice_and_outlines_to_scale_and_are_read_again() -> None:
    lungs = np.zeros((600, 1200), bool)
    lungs[80:120, 40:60] = True
    lungs[90:100, 45:50] = False
    slice_of = np.full((600, 1200), 100, np.uint8), lungs, np.zeros_like(lungs)
    layers, tall = (overlay.Layers.of(*slice_of, (between_rows, 0.8)) for between_rows in (0.8, 1.6))
    assert (tall.width, tall.height) == (1200, 1200), "rows lie twice as far apart as columns"
    assert tall.lungs.startswith("M40.5,161 ")
    assert layers.lungs.count("M") == 2, "the hole too"
    assert {"40.5,80.5", "59.5,119.5"} <= set(layers.lungs[1:].split(" Z")[0].split(" L"))
    assert layers.lesions == ""
    assert overlay.Layers.read(layers.svg()) == layers
    assert overlay.Layers.read(layers.svg().replace("<image", '<image onload="x()"><image')) is None
    for shown, side in ((layers, 512), (layers.small(100), 100)):
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(shown.picture), np.uint8), cv2.IMREAD_UNCHANGED)
        assert (shown.width, shown.height, pixels.shape) == (1200, 600, (side // 2, side))
    with pytest.raises(ValueError, match="damaged"):
        replace(layers, picture="AAAA").small(9)
