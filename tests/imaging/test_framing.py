"""Preprocessing: lungs are found, cut out and normalised, whatever the picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from groundglass.imaging.crop import Preprocessing, find_lungs, otsu_anchors, resize_box
from groundglass.imaging.read import read_slice, read_slices


def thorax(height: int = 400, width: int = 500) -> np.ndarray:
    """A schematic thorax: black air, grey body, two dark lungs."""
    picture = np.zeros((height, width), np.uint8)
    cv2.ellipse(picture, (width // 2, height // 2), (width * 9 // 20, height * 9 // 20), 0, 0, 360, 200, -1)
    for side in (-1, 1):
        centre = (width // 2 + side * width // 5, height // 2)
        cv2.ellipse(picture, centre, (width // 8, height // 4), 0, 0, 360, 40, -1)
    return picture


def test_box_encloses_both_lungs_with_the_margin() -> None:
    cropped = Preprocessing(margin=0.1).apply(thorax())
    rows, columns = np.nonzero(thorax() == 40)
    width, height = columns.max() - columns.min(), rows.max() - rows.min()
    left, top, right, bottom = cropped.box
    assert cropped.found
    assert left == pytest.approx(columns.min() - 0.1 * width, abs=6)
    assert right == pytest.approx(columns.max() + 0.1 * width, abs=6)
    assert top == pytest.approx(rows.min() - 0.1 * height, abs=6)
    assert bottom == pytest.approx(rows.max() + 0.1 * height, abs=6)


def test_lung_mask_is_the_lungs() -> None:
    lungs, found = find_lungs(thorax())
    truth = thorax() == 40
    assert found
    assert (lungs & truth).sum() / (lungs | truth).sum() > 0.93


def test_a_lung_cut_by_the_picture_edge_is_kept() -> None:
    picture = thorax()[:, 70:]
    lungs, found = find_lungs(picture)
    assert found
    assert lungs[:, : lungs.shape[1] // 2].any()
    assert lungs[:, lungs.shape[1] // 2 :].any()


def test_a_soft_tissue_window_still_shows_lungs() -> None:
    picture = thorax()
    picture[picture == 40] = 2
    picture[picture == 200] = 90
    cv2.circle(picture, (250, 200), 40, 255, -1)  # contrast agent pulls Otsu's threshold up
    assert find_lungs(picture)[1]


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_blank_picture_is_cropped_whole(grey: int) -> None:
    picture = np.full((90, 120), grey, np.uint8)
    cropped = Preprocessing(size=64).apply(picture)
    assert not cropped.found
    assert cropped.box == (0, 0, 120, 90)
    assert np.isfinite(Preprocessing(size=64).normalise(cropped.pixels)).all()


def test_without_crop_the_whole_picture_is_resized() -> None:
    picture = thorax()
    cropped = Preprocessing(size=80, crop=False).apply(picture)
    np.testing.assert_array_equal(cropped.pixels, cv2.resize(picture, (80, 80), interpolation=cv2.INTER_AREA))


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70)))
@settings(max_examples=150, deadline=None)
def test_any_picture_is_cropped(picture: np.ndarray) -> None:
    preprocessing = Preprocessing(size=32)
    cropped = preprocessing.apply(picture)
    assert cropped.pixels.shape == (32, 32)
    assert cropped.lungs.shape == picture.shape
    assert cropped.lungs.any() == cropped.found
    assert np.isfinite(preprocessing.normalise(cropped.pixels)).all()


def test_zero_mean_is_zero_mean_of_unit_spread() -> None:
    normalised = Preprocessing(normalisation="zero-mean").normalise(thorax())
    assert normalised.mean() == pytest.approx(0, abs=1e-4)
    assert normalised.std() == pytest.approx(1, abs=1e-4)


def test_a_batch_is_normalised_slice_by_slice() -> None:
    batch = np.stack([thorax(), 255 - thorax() // 2])
    preprocessing = Preprocessing()
    np.testing.assert_array_equal(preprocessing.normalise(batch)[1], preprocessing.normalise(batch[1]))


def test_anchors_are_the_class_means() -> None:
    picture = np.array([[10, 20, 200, 220]], np.uint8)
    assert otsu_anchors(picture) == (15.0, 210.0)


def test_a_box_beyond_the_picture_repeats_its_edge() -> None:
    picture = np.full((10, 10), 7, np.uint8)
    assert (resize_box(picture, (-5, -5, 15, 15), 20) == 7).all()


@pytest.mark.parametrize(
    "wrong", [{"size": 8}, {"margin": -0.1}, {"margin": 1.0}, {"normalisation": "histogram"}]
)
def test_values_out_of_range_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Preprocessing(**wrong)  # type: ignore[arg-type]


def test_lungs_are_found_in_nearly_all_real_slices(covid_ct: Path) -> None:
    files = sorted((covid_ct / "Images-processed").glob("*/*"))[::6]
    cropped = [Preprocessing().apply(read_slice(file).pixels) for file in files]
    assert np.mean([each.found for each in cropped]) > 0.97
    widths = [(each.box[2] - each.box[0]) / each.lungs.shape[1] for each in cropped if each.found]
    assert np.median(widths) > 0.6


def test_the_air_between_body_and_curved_table_is_no_lung(dicom_samples: Path) -> None:
    slices = list(read_slices(dicom_samples / "lung-series"))
    assert len(slices) == 25
    cropped = [Preprocessing().apply(piece.pixels) for piece in slices]
    widths = [(each.box[2] - each.box[0]) / each.lungs.shape[1] for each in cropped if each.found]
    assert len(widths) >= 15, "the lowest slices show hardly any lung"
    assert max(widths) < 0.95
