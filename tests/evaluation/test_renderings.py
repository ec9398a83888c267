"""The same slices, shown otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.evaluation.renderings import RENDERINGS, curved, shrunk, windowed
from groundglass.imaging.phantom import make_phantom


@pytest.fixture(scope="module")
def chest() -> NDArray[np.uint8]:
    return make_phantom(np.random.default_rng(0), level=0.5, size=256).slice.pixels


@pytest.mark.parametrize("name", RENDERINGS)
def test_every_rendering_shows_the_same_slice_otherwise(name: str, chest: NDArray[np.uint8]) -> None:
    before = chest.copy()
    shown = RENDERINGS[name](chest)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(chest, before)
    assert shown.shape != chest.shape or not np.array_equal(shown, chest)
    step = chest.shape[0] // shown.shape[0]
    assert np.corrcoef(shown.ravel(), chest[::step, ::step].ravel())[0, 1] > 0.8


def test_a_window_is_linear_between_its_ends() -> None:
    grey = np.array([[0, 64, 128, 192, 255]], np.uint8)
    np.testing.assert_array_equal(windowed(64, 192)(grey), [[0, 0, 128, 255, 255]])
    np.testing.assert_array_equal(windowed(0, 255)(grey), grey)


def test_a_curve_keeps_black_and_white() -> None:
    grey = np.array([[0, 100, 255]], np.uint8)
    assert curved(0.6)(grey).tolist()[0][0::2] == [0, 255]
    assert curved(0.6)(grey)[0, 1] > 100 > curved(1.6)(grey)[0, 1]


def test_small_slices_are_not_enlarged() -> None:
    small = np.zeros((50, 80), np.uint8)
    assert shrunk(128)(small) is small
    assert shrunk(40)(small).shape == (25, 40)
