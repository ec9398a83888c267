"""Preprocessing: slices are cut to their lungs and normalised, whatever the picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from groundglass.imaging.crop import Preprocessing, resize_box

LUNGS = np.zeros((400, 500), bool)
LUNGS[100:301, 40:160] = LUNGS[120:320, 330:461] = True


def test_the_crop_is_a_square_around_both_lungs_with_the_margin() -> None:
    cropped = Preprocessing(margin=0.1).apply(np.where(LUNGS, 40, 200).astype(np.uint8), LUNGS)
    left, top, right, bottom = cropped.box
    assert cropped.found
    assert right - left == bottom - top == round(1.2 * 421)
    assert (left + right) / 2 == pytest.approx((40 + 461) / 2, abs=1)
    assert (top + bottom) / 2 == pytest.approx((100 + 320) / 2, abs=1)


@pytest.mark.parametrize("shape", [(90, 120), (120, 90)])
def test_without_lungs_the_whole_picture_lies_in_the_square(shape: tuple[int, int]) -> None:
    picture = np.full(shape, 128, np.uint8)
    cropped = Preprocessing(size=64).apply(picture, np.zeros(shape, bool))
    left, top, right, bottom = cropped.box
    assert not cropped.found
    assert right - left == bottom - top == 120
    assert (cropped.pixels > 100).mean() == pytest.approx(0.75, abs=0.03)
    whole = Preprocessing(size=80, crop=False).apply(picture, picture > 0)
    np.testing.assert_array_equal(whole.pixels, 128)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70)))
@settings(max_examples=150, deadline=None)
def test_any_picture_is_cropped(picture: np.ndarray) -> None:
    preprocessing = Preprocessing(size=32)
    cropped = preprocessing.apply(picture, picture > 128)
    assert cropped.pixels.shape == (32, 32)
    assert cropped.found == (picture > 128).any()
    assert np.isfinite(preprocessing.normalise(cropped.pixels)).all()


def test_a_batch_is_normalised_slice_by_slice() -> None:
    batch = np.random.default_rng(0).integers((0, 90), (200, 256), (50, 60, 2), np.uint8).transpose(2, 0, 1)
    normalised = Preprocessing().normalise(batch)
    np.testing.assert_array_equal(normalised[1], Preprocessing().normalise(batch[1]))
    assert normalised.mean(axis=(1, 2)) == pytest.approx([0, 0], abs=1e-4)
    assert normalised.std(axis=(1, 2)) == pytest.approx([1, 1], abs=1e-4)


def test_beyond_the_picture_it_is_black() -> None:
    grown = resize_box(np.full((10, 10), 7, np.uint8), (-5, -5, 15, 15), 20)
    assert (grown[5:15, 5:15] == 7).all()
    assert grown.sum() == 700
