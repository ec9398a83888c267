"""Augmentation: shape, determinism, and that nothing changes when all is switched off."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundglass.imaging.crop import Preprocessing
from groundglass.training.recipe import AugmentationSection
from groundglass.training.samples import CONTEXT, Augmentation

OFF = {
    "translation": 0,
    "rotation": 0,
    "mirror": 0,
    "noise": 0,
    "smallest_crop": 1,
    "stretch": 0,
    "grey": 0,
    "blur": 0,
    "jpeg": 0,
    "erasing": 0,
}


def gradient(side: int = 80) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return ((rows + 2 * columns) * 255 // (3 * side)).astype(np.uint8)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_shape_type_and_determinism(seed: int) -> None:
    augment = Augmentation(AugmentationSection(), 64)
    first, again = (augment(gradient(), np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (64, 64)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)


def test_switched_off_it_is_the_centre() -> None:
    augment = Augmentation(AugmentationSection(**OFF), 64)
    for seed in range(20):
        augmented = augment(gradient(), np.random.default_rng(seed))
        np.testing.assert_array_equal(augmented, augment.centre(gradient()))


def test_the_centre_is_the_frame_that_evaluation_sees() -> None:
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8), (0, 0), 6)
    preprocessing = Preprocessing(size=64, crop=False)
    frame = picture[50:350, 50:350]
    context = round(300 * CONTEXT)
    wider = picture[50 - context : 350 + context, 50 - context : 350 + context]
    training = Augmentation(AugmentationSection(**OFF), 64).centre(
        cv2.resize(wider, (80, 80), interpolation=cv2.INTER_AREA)
    )
    assert np.abs(training.astype(int) - preprocessing.apply(frame).pixels).mean() < 2


@pytest.mark.parametrize("operation", ["noise", "grey", "blur", "jpeg", "erasing", "mirror"])
def test_each_operation_changes_the_picture(operation: str) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (80, 80), np.uint8)
    off = Augmentation(AugmentationSection(**OFF), 64)
    on = Augmentation(AugmentationSection(**{**OFF, operation: 1.0}), 64)
    plain, changed = (each(picture, np.random.default_rng(7)).astype(int) for each in (off, on))
    assert np.abs(plain - changed).mean() > 1
