"""How a picture looks, in numbers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.input_check import COUNT, appearance


def _looks(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return appearance(pixels, Preprocessing(size=96).apply(pixels))


@pytest.fixture(scope="module")
def chest() -> NDArray[np.uint8]:
    return make_phantom(np.random.default_rng(0), level=0.5, size=256).slice.pixels


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (33, 47), (1000, 20), (700, 900)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_every_picture_has_finite_numbers(shape: tuple[int, int], value: int) -> None:
    looks = _looks(np.full(shape, value, np.uint8))
    assert looks.shape == (COUNT,)
    assert looks.dtype == np.float32
    assert np.isfinite(looks).all()


def test_noise_too(chest: NDArray[np.uint8]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 200), np.uint8)
    assert np.isfinite(_looks(noise)).all()
    assert np.linalg.norm(_looks(noise) - _looks(chest)) > 5


def test_the_same_slice_at_another_size_and_brightness_looks_much_the_same(chest: NDArray[np.uint8]) -> None:
    other = make_phantom(np.random.default_rng(1), level=0.5, size=256).slice.pixels
    larger = cv2.resize(chest, (384, 384), interpolation=cv2.INTER_LINEAR)
    darker = (chest * 0.85).astype(np.uint8)
    away = np.linalg.norm(_looks(other) - _looks(chest))
    assert np.linalg.norm(_looks(larger) - _looks(chest)) < 0.5 * away
    assert np.linalg.norm(_looks(darker) - _looks(chest)) < 0.5 * away


def test_turning_a_slice_changes_its_looks_far_more_than_another_patient(chest: NDArray[np.uint8]) -> None:
    other = make_phantom(np.random.default_rng(1), level=0.5, size=256).slice.pixels
    turned = np.ascontiguousarray(np.rot90(chest))
    assert np.linalg.norm(_looks(turned) - _looks(chest)) > 1.3 * np.linalg.norm(
        _looks(other) - _looks(chest)
    )


def test_a_picture_is_left_as_it_is(chest: NDArray[np.uint8]) -> None:
    before = chest.copy()
    np.testing.assert_array_equal(_looks(chest), _looks(chest))
    np.testing.assert_array_equal(chest, before)
