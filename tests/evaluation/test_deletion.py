"""Deletion told from chance on a network whose logit and map are known to the cell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.evaluation.deletion import DRAWS, PAINTS, deletion, paint_blurred, paint_mean
from groundglass.imaging.framing import Framing
from groundglass.inference.engine import Outputs

CELLS = 5


class BrightCells:
    """Its logit is the sum over cells of their brightness above grey 100, and its map says so or lies."""

    def __init__(self, honest: bool) -> None:
        self.honest = honest

    def run(self, images: NDArray[np.float32]) -> Outputs:
        cells = images.reshape(len(images), CELLS, -1, CELLS, images.shape[-1] // CELLS).mean(axis=(2, 4))
        heat = np.maximum(cells, 0).astype(np.float32)
        shown = heat if self.honest else np.zeros_like(heat) + np.arange(CELLS, dtype=np.float32)
        return Outputs(heat.sum(axis=(1, 2)), shown, np.zeros((len(images), 1), np.float32))


class PlainFraming(Framing):
    """Grey less 100, in units of 10."""

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (pixels.astype(np.float32) - 100) / 10


def _bundle(honest: bool) -> Any:
    framing = PlainFraming(size=100, crop=False)
    return SimpleNamespace(framing=framing, engine=lambda: BrightCells(honest))


def _slices(count: int) -> list[NDArray[np.uint8]]:
    """Grey 90 with five bright cells at random, nearly the hottest fifth."""
    slices = []
    for seed in range(count):
        cells = np.full(CELLS * CELLS, 90, np.uint8)
        cells[np.random.default_rng(seed).permutation(CELLS * CELLS)[:5]] = 200
        slices.append(np.kron(cells.reshape(CELLS, CELLS), np.ones((20, 20), np.uint8)))
    return slices


@pytest.mark.parametrize("paint", PAINTS)
def test_an_honest_map_beats_chance(paint: str) -> None:
    measured = deletion(_bundle(True), _slices(12), np.array([f"p{i // 2}" for i in range(12)]), paint)
    assert (measured.cells, measured.removed, measured.slices, measured.patients) == (25, 5, 12, 6)
    assert measured.hottest.value > 2 * measured.random.value > measured.coldest.value
    assert measured.difference.value == pytest.approx(measured.hottest.value - measured.random.value)
    assert measured.difference.low > 0
    assert measured.beaten.count == 12
    assert measured.beaten_most.count >= 11


def test_all_that_was_hot_is_gone_with_the_mean_grey() -> None:
    """Five cells of (200 - 100) / 10 each; what is painted has grey 90 and says nothing."""
    measured = deletion(_bundle(True), _slices(4), np.array(list("abcd")), "mean grey of the rest")
    assert measured.hottest.value == pytest.approx(50)
    assert measured.hottest.low == pytest.approx(50)
    assert measured.coldest.value == pytest.approx(-5 * 1.7, abs=1.5), "what is cold is painted brighter"


def test_a_lying_map_is_found_out() -> None:
    measured = deletion(_bundle(False), _slices(40), np.arange(40).astype(str), "mean grey of the rest")
    assert measured.difference.low < 0 < measured.difference.high
    assert measured.beaten_most.count < 10


def test_the_same_seed_measures_the_same() -> None:
    arguments = (_slices(3), np.array(list("abc")), "the slice, blurred")
    assert deletion(_bundle(True), *arguments, seed=4) == deletion(_bundle(True), *arguments, seed=4)
    assert deletion(_bundle(True), *arguments, seed=4) != deletion(_bundle(True), *arguments, seed=5)


def test_paints_leave_the_rest_alone() -> None:
    framed = np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)
    removed = np.zeros((60, 60), bool)
    removed[:20, 20:40] = True
    for paint in (paint_mean, paint_blurred):
        before = framed.copy()
        painted = paint(framed, removed)
        np.testing.assert_array_equal(painted[~removed], framed[~removed])
        np.testing.assert_array_equal(framed, before)
        assert painted[removed].std() < 0.2 * framed.std()
    assert DRAWS >= 20, "a 95th percentile of fewer draws is their maximum"
