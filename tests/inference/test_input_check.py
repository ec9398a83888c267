"""The input check accepts axial lung slices, flags doubtful ones and refuses everything else."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.conftest import APPEARANCE, accept_all

import groundglass
from groundglass.errors import BundleError
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import shipped as find_lungs
from groundglass.imaging.phantom import Scanner, make_phantom, scan
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.calibration import COVID, NON_COVID, UNCERTAIN
from groundglass.inference.classifier import Classifier
from groundglass.inference.input_check import DOUBTFUL, FLAGS, LUNG, TURNED, InputCheck, doubts, unfit
from groundglass.inference.prediction import Status
from groundglass.training.input_check_fit import Examples, fit_input_check, fit_model

Grey = NDArray[np.uint8]
CHEST = make_phantom(np.random.default_rng(4), level=0.5).slice.pixels
HALF = np.where(np.arange(CHEST.shape[1]) < CHEST.shape[1] // 2, np.uint8(220), CHEST)
COS, SIN = np.cos(0.45), np.sin(0.45)
ROWS, COLUMNS = np.mgrid[:256, :256]
RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 1.5, (300, 300))
AREAS = (ROWS // 64 + COLUMNS // 64) % np.array([2, 5]).reshape(2, 1, 1) * 50
# Gas in the bowel, with an edge of its own; and grain, without which this would be a drawing.
BODY = np.where((ROWS - 128) ** 2 + (COLUMNS - 128) ** 2 < 0.7 * 128**2, 236, 0)
BODY[(ROWS - 102) ** 2 + (COLUMNS - 128) ** 2 < 13**2] = 60


@pytest.fixture(scope="module")
def shipped() -> Classifier:
    """The classifier that comes with the installation."""
    return groundglass.load(threads=1)


def reason(pixels: Grey, **origin: Any) -> str:
    ct_slice = CTSlice(pixels, replace(Origin("a", "DICOM"), **origin))
    return str(unfit(ct_slice, Preprocessing(size=64).apply(pixels, find_lungs()(pixels))))


def flags(pixels: Grey, **origin: Any) -> tuple[str, ...]:
    ct_slice = CTSlice(pixels, replace(Origin("a", "DICOM"), **origin))
    return doubts(ct_slice, Preprocessing(size=160).apply(pixels, find_lungs()(pixels)))


def test_only_axial_geometry_passes() -> None:
    for orientation, words in (
        (None, "None"),
        ((1, 0, 0, 0, 1, 0), "None"),  # supine
        ((1, 0, 0, 0, COS, SIN), "None"),  # a tilted gantry
        ((COS, SIN, 0, -SIN, COS, 0), "None"),  # a patient turned a little
        ((1, 0, 0, 0, 0, -1), "coronal"),
        ((0, 1, 0, 0, 0, -1), "sagittal"),
        ((1, 0, 0, 0, 0.7071, 0.7071), "coronal or oblique"),  # half way
        ((0, 1, 0, -1, 0, 0), "turned by 90 degrees"),
    ):
        assert words in reason(CHEST, orientation=orientation)


def test_pictures_that_cannot_show_lungs_are_refused() -> None:
    for pixels, words in (
        *((np.ones(shape), f"too small: {shape[1]} x {shape[0]} pixels") for shape in ((1, 1), (59, 400), (400, 8))),
        *((value + noise, "blank") for value in (0, 90, 255) for noise in (NOISE, 0 * NOISE)),
        *(
            ((ROWS // 16 * 16 + COLUMNS // 16) % levels * (240 // levels) + 8, f"label map, mask or drawing: it has only {levels} grey")
            for levels in (2, 5, 30, 64)
        ),
        *((cv2.GaussianBlur(areas.astype(np.uint8), (3, 3), 0), "label map, mask or drawing") for areas in AREAS),
        (BODY + RNG.normal(0, 14, BODY.shape), "outside the lungs: no lung was found"),
    ):  # fmt: skip
        assert words in reason(pixels.clip(0, 255).astype(np.uint8))


def test_patients_are_held_out_as_a_whole() -> None:
    """Every slice beside an identical one of its patient: seen, each would be known; held out, none is."""
    features = np.repeat(np.random.default_rng(5).normal(0, 1, (120, 400)), 2, axis=0)
    lungs = np.arange(240) < 120
    kind, patient = np.where(lungs, LUNG, "other"), np.repeat(np.arange(120), 2)
    by_patient = Examples(features, kind, patient, np.ones(240), deciding=lungs)
    check, seen = fit_input_check(by_patient), fit_model(by_patient).odds(features)
    assert check.limit > np.quantile(np.logaddexp.reduce(seen[lungs], axis=1), 0.99) + 1
    np.testing.assert_array_equal(InputCheck.from_arrays(check.as_arrays()).odds(features), seen)


def test_arrays_of_another_check_are_refused() -> None:
    for name, array, message in (
        ("appearance_version", np.asarray(99), "version 99"),
        ("surplus", np.zeros(1), "is damaged.*surplus"),
        ("limit", np.zeros(3), "is damaged"),
        ("centre", None, "is damaged.*centre"),
    ):
        arrays = accept_all(channels=4).as_arrays() | {f"input_check.{name}": array}
        with pytest.raises(BundleError, match=message):
            InputCheck.from_arrays({name: each for name, each in arrays.items() if each is not None})


def test_doubtful_slices_are_flagged_and_plain_ones_are_not() -> None:
    apex = make_phantom(np.random.default_rng(4), level=0.05).slice.pixels
    assert flags(CHEST) == flags(CHEST, spacing=(0.8, 0.7)) == flags(CHEST, orientation=(1.0, 0, 0, 0, 1, 0)) == ()
    assert flags(CHEST, orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)) == ("upside-down",)
    assert flags(CHEST, spacing=(2.8, 0.7)) == flags(CHEST, spacing=(0.7, 2.8)) == ("oblong-pixels",)
    assert flags(cv2.resize(CHEST, (120, 120), interpolation=cv2.INTER_AREA)) == ("low-resolution",)
    assert "soft-tissue-window" in flags(np.clip((CHEST.astype(int) - 140) * 3, 0, 255).astype(np.uint8))
    assert "one-lung-found" in flags(HALF)
    assert "several-slices" in flags(np.hstack([CHEST, CHEST]))
    assert "lung-cut-off" in flags(CHEST[:, CHEST.shape[1] // 4 :])
    assert "little-lung" in flags(np.pad(apex, 120))
    assert set(FLAGS) > DOUBTFUL


def test_the_base_of_one_lung_is_not_taken_for_a_turned_slice(shipped: Classifier, monkeypatch: Any) -> None:
    channels = len(shipped.bundle.input_check.centre) - APPEARANCE
    turned = replace(accept_all(channels), kinds=np.array([TURNED]), bias=np.array([0, 99], np.float32), limit=0.0)
    monkeypatch.setattr(shipped, "_check", turned)
    whole, one = shipped.predict(CHEST), shipped.predict(HALF)
    assert (whole.status, TURNED in str(whole.reason)) == (Status.REFUSED, True)
    assert (one.status, one.label, "one-lung-found" in one.flags) == (Status.OK, UNCERTAIN, True)
    nothing = Preprocessing(size=160).apply(CHEST, np.zeros(CHEST.shape, np.bool_))
    embedding = np.zeros(channels, np.float32)
    assert TURNED in str(turned.refusal(CTSlice(CHEST, Origin("a", "PNG")), nothing, embedding)), "as evaluation asks"


def test_no_firm_label_where_the_network_is_blind(shipped: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_check", accept_all(len(shipped.bundle.input_check.centre) - APPEARANCE))
    chest = make_phantom(np.random.default_rng(5), severity=0.4, level=0.5).slice.pixels
    cut = shipped.predict(np.ascontiguousarray(chest[:, 3 * chest.shape[1] // 10 :]))
    assert shipped.predict(chest).label == COVID
    assert "lung-cut-off" in cut.flags
    assert (cut.status, cut.label, cut.prediction_set) == (Status.OK, UNCERTAIN, (COVID, NON_COVID))


@pytest.mark.slow
@pytest.mark.parametrize(("severity", "most"), [(0.0, 1), (0.5, 1), (1.0, 6)])
def test_lung_slices_pass_however_ill_at_every_level(shipped: Classifier, severity: float, most: int) -> None:
    found = []
    for seed in range(8):
        rng = np.random.default_rng([seed, 4242])
        patient = Patient.draw(rng)
        scanner = Scanner.draw(patient, rng)
        scans = (scan(patient, scanner, level, severity, size=256) for level in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9))
        found += [shipped.predict(phantom.slice) for phantom in scans]
    assert sum(prediction.status is not Status.OK for prediction in found) <= most
