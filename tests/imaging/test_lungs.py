"""Lung fields by the shipped network, on phantoms, real slices and what shows no lung; the crop to them."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from groundglass.errors import BundleError
from groundglass.imaging.crop import Preprocessing, resize_box
from groundglass.imaging.lungs import SHIPPED, open_segmenter, shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.read import read_slice, read_slices

LUNGS = np.zeros((400, 500), bool)
LUNGS[100:301, 40:160] = LUNGS[120:320, 330:461] = True


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_no_lung_of_a_severely_ill_phantom_is_lost() -> None:
    rng = np.random.default_rng(11)
    for number in range(60):
        phantom = make_phantom(rng, severity=float(rng.uniform(0.9, 1)), size=256)
        assert dice(shipped()(phantom.slice.pixels), phantom.lungs) > 0.85, number


def test_other_models_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    reasons = ("cannot be loaded", "cannot be read", "no model of lung fields")
    paths = (tmp_path / "damaged.onnx", tmp_path / "gone.onnx", SHIPPED.parent / "classifier.onnx")
    for path, reason in zip(paths, reasons, strict=True):
        with pytest.raises(BundleError, match=rf"{path.stem}\.onnx: {reason}"):
            open_segmenter(path)


def test_both_lungs_of_the_severely_ill_are_outlined_and_no_air_beside_the_body(dicom_samples: Path) -> None:
    mask = shipped()(read_slice(dicom_samples / "mixed" / "axial-toshiba.dcm").pixels)
    _, _, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = stats[1:, cv2.CC_STAT_AREA] > 0.03 * mask.size
    left, right = sorted(centres[1:][large, 0] / mask.shape[1])
    assert (left < 0.45, right > 0.55) == (True, True)
    slices = [piece.pixels for piece in read_slices(dicom_samples / "lung-series")]
    masks = [shipped()(pixels) for pixels in slices]
    bright = [np.mean(pixels[mask] > 170) for pixels, mask in zip(slices, masks, strict=True) if mask.any()]
    assert max(bright) < 0.2, "shoulders are none"
    widths = [np.ptp(np.flatnonzero(mask.any(axis=0))) / mask.shape[1] for mask in masks if mask.any()]
    assert len(widths) >= 15, "the lowest slices show hardly any lung"
    assert max(widths) < 0.95, "the table is curved"


def test_lungs_drawn_by_radiologists_are_found(hospitals: Path) -> None:
    """Slices that the network has not learned from are among them; the figure is measured by `evaluate`."""
    with (hospitals / "manifest.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["lung_mask"]][::25]
    for name in ("0207", "0255", "0351"):
        mask = shipped()(cv2.imread(str(hospitals / "iraq" / f"{name}.jpg"), 0))
        assert not mask[int(0.85 * len(mask)) :].any(), "the table is none"
    beside_fluid = cv2.imread(str(hospitals / "iraq" / "0242.jpg"), 0)
    assert shipped()(beside_fluid).mean() > 0.1, "overlooked but for its mirror image"
    pairs = ([cv2.imread(str(hospitals / row[name]), 0) for name in ("path", "lung_mask")] for row in rows)
    assert np.mean([dice(shipped()(pixels), mask > 0) for pixels, mask in pairs]) > 0.97


def test_the_crop_is_a_square_around_both_lungs_or_the_whole_picture() -> None:
    cropped = Preprocessing(margin=0.1).apply(np.where(LUNGS, 40, 200).astype(np.uint8), LUNGS)
    left, top, right, bottom = cropped.box
    assert cropped.found
    assert right - left == bottom - top == round(1.2 * 421)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((250.5, 210), abs=1)
    grown = resize_box(np.full((10, 10), 7, np.uint8), (-5, -5, 15, 15), 20)
    assert ((grown[5:15, 5:15] == 7).all(), grown.sum()) == (True, 700), "beyond the picture it is black"
    for picture in (np.full((90, 120), 128, np.uint8), np.full((120, 90), 128, np.uint8)):
        cropped = Preprocessing(size=64).apply(picture, picture > 200)
        left, top, right, bottom = cropped.box
        assert (cropped.found, right - left, bottom - top) == (False, 120, 120), "the whole picture"
        assert (cropped.pixels > 100).mean() == pytest.approx(0.75, abs=0.03)
        np.testing.assert_array_equal(Preprocessing(size=80, crop=False).apply(picture, picture > 0).pixels, 128)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70)))
@settings(max_examples=100, deadline=None)
def test_any_picture_is_segmented_cropped_and_normalised(picture: np.ndarray) -> None:
    lungs, preprocessing = shipped()(picture), Preprocessing(size=32)
    assert (lungs.shape, lungs.dtype) == (picture.shape, np.bool_)
    assert not shipped()(np.full_like(picture, picture[0, 0])).any(), "a blank picture shows no lung"
    cropped = preprocessing.apply(picture, picture > 128)
    assert (cropped.pixels.shape, cropped.found) == ((32, 32), (picture > 128).any())
    assert np.isfinite(preprocessing.normalise(cropped.pixels)).all()


def test_a_batch_is_normalised_slice_by_slice() -> None:
    batch = np.random.default_rng(0).integers((0, 90), (200, 256), (50, 60, 2), np.uint8).transpose(2, 0, 1)
    normalised = Preprocessing().normalise(batch)
    np.testing.assert_array_equal(normalised[1], Preprocessing().normalise(batch[1]))
    assert normalised.mean(axis=(1, 2)) == pytest.approx([0, 0], abs=1e-4)
    assert normalised.std(axis=(1, 2)) == pytest.approx([1, 1], abs=1e-4)
