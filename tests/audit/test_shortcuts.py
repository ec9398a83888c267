"""What is measured of a slice without its lungs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.audit.shortcuts import (
    GREY_FEATURES,
    SIZE_FEATURES,
    SURROUNDINGS_FEATURES,
    ShortcutFeatures,
    shortcut_features,
)
from groundglass.data.manifest import Record, read_record
from groundglass.imaging.phantom import Phantom, make_phantom
from groundglass.imaging.slice import CTSlice, Origin


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(np.random.default_rng(3), level=0.5, size=320)


def measure(pixels: np.ndarray, name: str = "a.png") -> ShortcutFeatures:
    return shortcut_features(Record(Path(name), None, "p", "s", None), CTSlice(pixels, Origin(name, "PNG")))


def test_file_format_mode_and_suffix(tmp_path: Path) -> None:
    path = tmp_path / "picture.PNG"
    Image.fromarray(np.zeros((20, 30, 4), np.uint8)).save(tmp_path / "rgba.png")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path, format="JPEG")
    for name, expected in (("rgba.png", "PNG RGBA .png"), ("picture.PNG", "JPEG L .png")):
        record = Record(tmp_path / name, None, "p", "s", None)
        found = shortcut_features(record, read_record(record))
        assert found.file_format == expected
        assert found.size.tolist() == [30, 20, 1.5, 600]


def test_every_feature_has_a_name(phantom: Phantom) -> None:
    found = measure(phantom.slice.pixels)
    assert found.size.shape == (len(SIZE_FEATURES),)
    assert found.grey.shape == (len(GREY_FEATURES),)
    assert found.surroundings.shape == (len(SURROUNDINGS_FEATURES),)


def test_grey_statistics_are_right() -> None:
    pixels = np.array([[0, 0, 255, 255], [100, 100, 100, 100]], np.uint8)
    grey = dict(zip(GREY_FEATURES, measure(pixels).grey, strict=True))
    assert grey["mean"] == pytest.approx(pixels.mean())
    assert grey["standard deviation"] == pytest.approx(pixels.std())
    assert grey["50 % percentile"] == 100
    assert grey["share of black"] == pytest.approx(0.25)
    assert grey["entropy"] == pytest.approx(1.5)


def test_surroundings_do_not_change_with_what_is_in_the_lungs(phantom: Phantom) -> None:
    healthy = phantom.slice.pixels
    ill = healthy.copy()
    inside = phantom.lungs & (np.random.default_rng(0).random(healthy.shape) < 0.05)
    ill[inside] = 180
    assert np.abs(measure(ill).grey - measure(healthy).grey).max() > 1
    assert measure(ill).surroundings == pytest.approx(measure(healthy).surroundings, abs=0.5)


def test_surroundings_change_with_the_border(phantom: Phantom) -> None:
    marked = phantom.slice.pixels.copy()
    marked[:5] = 255
    before, after = (
        dict(zip(SURROUNDINGS_FEATURES, measure(pixels).surroundings, strict=True))
        for pixels in (phantom.slice.pixels, marked)
    )
    assert after["mean of the top edge"] > before["mean of the top edge"] + 50
    assert after["mean of the left edge"] == pytest.approx(before["mean of the left edge"], abs=10)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64)])
def test_any_picture_can_be_measured(shape: tuple[int, int]) -> None:
    found = measure(np.zeros(shape, np.uint8))
    assert np.isfinite(np.concatenate([found.size, found.grey, found.surroundings])).all()
