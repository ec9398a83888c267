"""The input check accepts axial lung slices, flags doubtful ones and refuses everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.conftest import accept_all

import groundglass
from groundglass.data import out_of_distribution
from groundglass.errors import BundleError
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.crop import CroppedSlice, Preprocessing
from groundglass.imaging.lungs import shipped as find_lungs
from groundglass.imaging.phantom import Scanner, make_phantom, scan
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.calibration import COVID, NON_COVID, UNCERTAIN
from groundglass.inference.classifier import Classifier
from groundglass.inference.input_check import (
    APPEARANCE,
    DOUBTFUL,
    FLAGS,
    LUNG,
    OTHER_PART,
    InputCheck,
    doubts,
    unfit,
)
from groundglass.inference.prediction import Status
from groundglass.training.input_check_fit import Examples, fit_input_check, fit_model

Grey = NDArray[np.uint8]
CHANNELS = 4


def cropped(pixels: Grey, size: int = 64) -> CroppedSlice:
    return Preprocessing(size=size).apply(pixels, find_lungs()(pixels))


@pytest.fixture(scope="module")
def shipped() -> Classifier:
    """The classifier that comes with the installation."""
    return groundglass.load(threads=1)


@pytest.fixture(scope="module")
def chest() -> Grey:
    return make_phantom(np.random.default_rng(0), level=0.5, size=256).slice.pixels


def reason(pixels: Grey, **origin: object) -> str:
    ct_slice = CTSlice(pixels, replace(Origin("a", "DICOM"), **origin))  # type: ignore[arg-type]
    return str(unfit(ct_slice, cropped(pixels)))


COS, SIN = np.cos(0.45), np.sin(0.45)


@pytest.mark.parametrize(
    ("orientation", "words"),
    [
        (None, "None"),
        ((1, 0, 0, 0, 1, 0), "None"),  # supine
        ((-1, 0, 0, 0, -1, 0), "None"),  # prone
        ((-1, 0, 0, 0, 1, 0), "None"),  # mirrored
        ((1, 0, 0, 0, COS, SIN), "None"),  # a tilted gantry
        ((COS, SIN, 0, -SIN, COS, 0), "None"),  # a patient turned a little
        ((1, 0, 0, 0, 0, -1), "coronal"),
        ((0, 1, 0, 0, 0, -1), "sagittal"),
        ((0.7071, 0.7071, 0, 0, 0, -1), "oblique"),
        ((1, 0, 0, 0, 0.7071, 0.7071), "coronal or oblique"),  # half way
        ((0, 1, 0, -1, 0, 0), "turned by 90 degrees"),
        ((0, -1, 0, 1, 0, 0), "turned by 90 degrees"),
    ],
)
def test_only_axial_geometry_passes(chest: Grey, orientation: tuple[float, ...] | None, words: str) -> None:
    assert words in reason(chest, orientation=orientation)


NOISE = np.random.default_rng(0).normal(0, 1.5, (300, 300))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        *((np.ones(shape), f"too small: {shape[1]} x {shape[0]} pixels") for shape in ((1, 1), (31, 400), (400, 8))),
        *((value + noise, "blank") for value in (0, 90, 255) for noise in (NOISE, 0 * NOISE)),
    ],
)  # fmt: skip
def test_a_picture_too_small_or_blank_to_show_lungs(pixels: NDArray[np.floating], words: str) -> None:
    assert words in reason(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("levels", [2, 5, 30, 64])
def test_a_label_map(levels: int) -> None:
    rows, columns = np.mgrid[:256, :256]
    labels = ((rows // 16 * 16 + columns // 16) % levels * (240 // levels) + 8).astype(np.uint8)
    assert f"a label map, mask or drawing: it has only {levels} grey values" in reason(labels)
    few = ((rows // 64 + columns // 64) % min(levels, 5) * 50).astype(np.uint8)
    assert "a label map, mask or drawing" in reason(cv2.GaussianBlur(few, (3, 3), 0))


def test_a_slice_without_lung_is_refused() -> None:
    rows, columns = np.mgrid[-1:1:256j, -1:1:256j]
    pixels = np.where(rows**2 + columns**2 < 0.7, 236, 0).astype(np.uint8)
    # Gas in the bowel, with an edge of its own; and grain, without which this would be a drawing.
    pixels[(rows + 0.2) ** 2 + columns**2 < 0.01] = 60
    grain = np.random.default_rng(0).normal(0, 14, pixels.shape)
    assert reason(np.clip(pixels + grain, 0, 255).astype(np.uint8)) == "outside the lungs: no lung was found"
    assert OTHER_PART == out_of_distribution.OTHER_PART, "the same beginning for what looks like another part"


def test_patients_are_held_out_as_a_whole() -> None:
    """Every slice beside an identical one of its patient: seen, each would be known; held out, none is."""
    features = np.repeat(np.random.default_rng(5).normal(0, 1, (120, 400)), 2, axis=0)
    kind, lungs = (LUNG,) * 120 + ("other",) * 120, np.arange(240) < 120
    by_patient = Examples(features, kind, np.repeat(np.arange(120), 2), np.ones(240))
    check, seen = fit_input_check(by_patient, lungs), fit_model(by_patient).odds(features)
    assert check.limit > np.quantile(np.logaddexp.reduce(seen[lungs], axis=1), 0.99) + 1
    np.testing.assert_array_equal(InputCheck.from_arrays(check.as_arrays()).odds(features), seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"appearance_version": np.asarray(99)}, "version 99"),
        ({"surplus": np.zeros(1)}, "is damaged.*surplus"),
        ({"limit": np.zeros(3)}, "is damaged"),
        ({"centre": None}, "is damaged.*centre"),
    ],
)
def test_arrays_of_another_check_are_refused(change: dict[str, object], message: str) -> None:
    arrays = accept_all(CHANNELS).as_arrays() | {f"input_check.{name}": each for name, each in change.items()}
    with pytest.raises(BundleError, match=message):
        InputCheck.from_arrays({name: each for name, each in arrays.items() if each is not None})


def flags(pixels: Grey, **origin: object) -> tuple[str, ...]:
    ct_slice = CTSlice(pixels, replace(Origin("a", "DICOM"), **origin))  # type: ignore[arg-type]
    return doubts(ct_slice, cropped(pixels, 160))


def test_doubtful_slices_are_flagged_and_plain_ones_are_not() -> None:
    chest = make_phantom(np.random.default_rng(4), level=0.5).slice.pixels
    assert flags(chest) == ()
    assert flags(chest, orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) == ()
    assert flags(chest, orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)) == ("upside-down",)
    assert flags(chest, spacing=(0.8, 0.7)) == ()
    assert flags(chest, spacing=(2.8, 0.7)) == flags(chest, spacing=(0.7, 2.8)) == ("oblong-pixels",)
    assert flags(cv2.resize(chest, (120, 120), interpolation=cv2.INTER_AREA)) == ("low-resolution",)
    assert "soft-tissue-window" in flags(np.clip((chest.astype(int) - 140) * 3, 0, 255).astype(np.uint8))
    half = chest.copy()
    half[:, : half.shape[1] // 2] = 220
    assert "one-lung-found" in flags(half)
    assert "lung-cut-off" in flags(chest[:, chest.shape[1] // 4 :])
    apex = make_phantom(np.random.default_rng(4), level=0.05).slice.pixels
    assert "little-lung" in flags(np.pad(apex, 120))
    assert set(FLAGS) > DOUBTFUL


def test_no_firm_label_where_the_network_is_blind(
    shipped: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = len(shipped.bundle.input_check.centre) - APPEARANCE
    monkeypatch.setattr(shipped, "_check", accept_all(channels))
    chest = make_phantom(np.random.default_rng(4), severity=0.7, level=0.5).slice.pixels
    cut = shipped.predict(np.ascontiguousarray(chest[:, 3 * chest.shape[1] // 10 :]))
    assert shipped.predict(chest).label == COVID
    assert "lung-cut-off" in cut.flags
    assert (cut.status, cut.label, cut.prediction_set) == (Status.OK, UNCERTAIN, (COVID, NON_COVID))


def slices(severity: float, patients: int = 8) -> Iterator[CTSlice]:
    for seed in range(patients):
        rng = np.random.default_rng([seed, 4242])
        patient = Patient.draw(rng)
        scanner = Scanner.draw(patient, rng)
        for level in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9):
            yield scan(patient, scanner, level, severity, size=384).slice


@pytest.mark.slow
@pytest.mark.parametrize(("severity", "most"), [(0.0, 1), (0.5, 1), (1.0, 6)])
def test_lung_slices_pass_however_ill_at_every_level(shipped: Classifier, severity: float, most: int) -> None:
    predictions = list(map(shipped.classify, slices(severity)))
    refused = [prediction for prediction in predictions if prediction.status is not Status.OK]
    assert len(predictions) == 48
    assert len(refused) <= most, refused


def test_a_turned_slice_is_refused_and_turned_back_is_not(shipped: Classifier) -> None:
    right = [slice_.pixels for slice_ in slices(0.3, patients=3)]
    assert all(shipped.predict(pixels).status is Status.OK for pixels in right)
    predictions = [shipped.predict(np.ascontiguousarray(np.rot90(pixels))) for pixels in right]
    refused = [prediction for prediction in predictions if prediction.status is Status.REFUSED]
    assert len(refused) >= len(right) - 1
    assert sum("turned by 90 degrees" in str(prediction.reason) for prediction in refused) > len(right) / 2
