"""What to keep in mind about a slice is said, and not said where it does not hold."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import Origin
from groundglass.inference.input_check import (
    LOW_RESOLUTION,
    LUNGS_NOT_FOUND,
    ONE_LUNG_FOUND,
    SOFT_TISSUE_WINDOW,
    UPSIDE_DOWN,
    geometry_flags,
    picture_flags,
)

PREPROCESSING = Preprocessing(size=160)


def _flags(pixels: NDArray[np.uint8]) -> tuple[str, ...]:
    return picture_flags(PREPROCESSING.apply(pixels), pixels)


@pytest.fixture(scope="module")
def chest() -> NDArray[np.uint8]:
    return make_phantom(np.random.default_rng(4), level=0.5).slice.pixels


@pytest.mark.parametrize("seed", range(8))
def test_a_plain_slice_has_no_flag(seed: int) -> None:
    pixels = make_phantom(np.random.default_rng(seed), severity=0.4, level=0.5).slice.pixels
    assert _flags(pixels) == ()


def test_a_picture_without_lungs() -> None:
    assert _flags(np.full((200, 200), 180, np.uint8)) == (LUNGS_NOT_FOUND,)


def test_a_small_picture(chest: NDArray[np.uint8]) -> None:
    assert _flags(cv2.resize(chest, (120, 120), interpolation=cv2.INTER_AREA)) == (LOW_RESOLUTION,)


def test_lungs_that_are_black(chest: NDArray[np.uint8]) -> None:
    dark = np.clip((chest.astype(int) - 140) * 3, 0, 255).astype(np.uint8)
    assert SOFT_TISSUE_WINDOW in _flags(dark)


def test_one_lung_hidden(chest: NDArray[np.uint8]) -> None:
    half = chest.copy()
    half[:, : half.shape[1] // 2][half[:, : half.shape[1] // 2] < 150] = 170
    assert ONE_LUNG_FOUND in _flags(half)


def test_the_header_says_when_a_slice_is_upside_down() -> None:
    plain = Origin("a", "DICOM")
    supine = replace(plain, orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    prone = replace(plain, orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    assert [geometry_flags(each) for each in (plain, supine, prone)] == [(), (), (UPSIDE_DOWN,)]
