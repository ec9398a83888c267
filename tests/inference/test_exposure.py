"""Grey statistics: what they notice, and what leaves them alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.reference import STATISTICS, exposure, linear

NAMES = [statistic.name for statistic in STATISTICS]


def measure(pixels: NDArray[np.uint8]) -> dict[str, float]:
    values = exposure(Preprocessing(size=128).apply(pixels))
    return dict(zip(NAMES, map(float, values), strict=True))


@pytest.fixture(scope="module")
def chest() -> NDArray[np.uint8]:
    return make_phantom(np.random.default_rng(0), level=0.5, size=384).slice.pixels


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (33, 47), (700, 900)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_every_picture_has_finite_numbers(shape: tuple[int, int], value: int) -> None:
    values = exposure(Preprocessing(size=64).apply(np.full(shape, value, np.uint8)))
    assert values.shape == (len(STATISTICS),)
    assert np.isfinite(values).all()
    assert np.isfinite(linear(values[None])).all()


def test_a_window_moves_lung_and_tissue(chest: NDArray[np.uint8]) -> None:
    plain = measure(chest)
    darker = measure(np.asarray(np.clip(chest.astype(int) - 40, 0, 255), np.uint8))
    assert plain["lung grey"] < plain["soft tissue grey"]
    assert darker["lung grey"] == pytest.approx(max(plain["lung grey"] - 40, 0), abs=3)
    assert darker["soft tissue grey"] == pytest.approx(plain["soft tissue grey"] - 40, abs=3)
    half = measure(np.asarray(chest // 2, np.uint8))
    assert half["spread within soft tissue"] == pytest.approx(plain["spread within soft tissue"] / 2, rel=0.1)


def test_contrast_alone_changes_neither_sharpness_nor_grain(chest: NDArray[np.uint8]) -> None:
    plain, half = measure(chest), measure(np.asarray(chest // 2, np.uint8))
    assert half["sharpness of edges"] == pytest.approx(plain["sharpness of edges"], rel=0.1)
    assert half["grain"] == pytest.approx(plain["grain"], rel=0.25)


def test_a_blur_takes_sharpness_and_grain(chest: NDArray[np.uint8]) -> None:
    plain, soft = measure(chest), measure(np.asarray(cv2.GaussianBlur(chest, (0, 0), 4)))
    assert soft["sharpness of edges"] < 0.8 * plain["sharpness of edges"]
    assert soft["grain"] < 0.6 * plain["grain"]


def test_noise_is_measured_in_shares_of_the_contrast() -> None:
    pixels = np.full((300, 300), 200, np.uint8)
    pixels[60:240, 40:130] = pixels[60:240, 170:260] = 50
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 9, pixels.shape), 0, 255).astype(np.uint8)
    preprocessing = Preprocessing(size=300, crop=False)
    values = exposure(preprocessing.apply(noisy))
    assert values[NAMES.index("grain")] == pytest.approx(100 * 9 / 150, rel=0.1)


def test_resolution_is_that_of_the_lungs_in_the_file(chest: NDArray[np.uint8]) -> None:
    small = np.asarray(cv2.resize(chest, (192, 192), interpolation=cv2.INTER_AREA))
    assert measure(small)["resolution"] == pytest.approx(measure(chest)["resolution"] / 2, rel=0.1)


def test_ratios_are_differences_on_the_linear_scale(chest: NDArray[np.uint8]) -> None:
    values = exposure(Preprocessing(size=128).apply(chest))
    scaled = linear(np.stack([values, 2 * values]))
    ratio = scaled[1] - scaled[0]
    for statistic, difference, value in zip(STATISTICS, ratio, values, strict=True):
        assert difference == pytest.approx(1.0 if statistic.logarithmic else value, rel=1e-5)
