"""Alterations do to a slice what their names say, whatever its shape."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.evaluation.alterations import HARMLESS, SPOILING, compressed

ALL = {**HARMLESS, **SPOILING}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(90, 130), (61, 61), (1, 1)])
def test_every_alteration_gives_another_picture(name: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    before = pixels.copy()
    altered = ALL[name](pixels)
    np.testing.assert_array_equal(pixels, before)
    assert altered.dtype == np.uint8
    assert altered.ndim == 2
    assert min(altered.shape) >= 1
    if shape != (1, 1):
        assert not np.array_equal(altered, pixels)


def test_turns_undo_each_other() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70), np.uint8)
    left, right = SPOILING["turned by 90 degrees to the left"], SPOILING["turned by 90 degrees to the right"]
    np.testing.assert_array_equal(right(left(pixels)), pixels)
    around = HARMLESS["turned by 180 degrees"]
    np.testing.assert_array_equal(around(around(pixels)), pixels)
    np.testing.assert_array_equal(around(pixels), HARMLESS["mirrored"](HARMLESS["upside down"](pixels)))


def test_shapes_follow() -> None:
    pixels = np.zeros((40, 70), np.uint8)
    assert HARMLESS["half as large"](pixels).shape == (20, 35)
    assert HARMLESS["in a black frame twice as wide"](pixels).shape == (80, 140)
    assert SPOILING["left half alone"](pixels).shape == (40, 35)
    assert SPOILING["twice, side by side"](pixels).shape == (40, 140)


def test_a_container_keeps_the_shape_and_costs_more_the_coarser_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90), np.uint8)
    losses = []
    for quality in (100, 90, 50, 10):
        altered = compressed(quality)(pixels)
        assert altered.shape == pixels.shape
        losses.append(np.abs(altered.astype(int) - pixels).mean())
    assert losses == sorted(losses)
    assert losses[0] < 1.5 < losses[-1]
