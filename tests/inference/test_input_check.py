"""The input check accepts axial lung slices, flags doubtful ones and refuses everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import groundglass
from groundglass.data import out_of_distribution
from groundglass.errors import BundleError
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.crop import CroppedSlice, Preprocessing
from groundglass.imaging.lungs import shipped as find_lungs
from groundglass.imaging.phantom import Scanner, make_phantom, scan
from groundglass.imaging.slice import CTSlice, Origin
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
from groundglass.inference.prediction import COVID, NON_COVID, UNCERTAIN, Status
from groundglass.training.input_check_fit import Examples, accept_all, fit_input_check, fit_model

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


_TILT = 0.45
AXIAL, TURNED = "None", "turned by 90 degrees"
GEOMETRIES = {
    "unknown": (None, AXIAL),
    "supine": ((1, 0, 0, 0, 1, 0), AXIAL),
    "prone": ((-1, 0, 0, 0, -1, 0), AXIAL),
    "mirrored": ((-1, 0, 0, 0, 1, 0), AXIAL),
    "tilted gantry": ((1, 0, 0, 0, np.cos(_TILT), np.sin(_TILT)), AXIAL),
    "patient turned a little": ((np.cos(_TILT), np.sin(_TILT), 0, -np.sin(_TILT), np.cos(_TILT), 0), AXIAL),
    "coronal": ((1, 0, 0, 0, 0, -1), "coronal"),
    "sagittal": ((0, 1, 0, 0, 0, -1), "sagittal"),
    "oblique": ((0.7071, 0.7071, 0, 0, 0, -1), "oblique"),
    "half way to coronal": ((1, 0, 0, 0, 0.7071, 0.7071), "coronal or oblique"),
    "turned": ((0, 1, 0, -1, 0, 0), TURNED),
    "turned the other way": ((0, -1, 0, 1, 0, 0), TURNED),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_axial_geometry_passes_and_any_other_is_refused(chest: Grey, name: str) -> None:
    orientation, words = GEOMETRIES[name]
    assert words in reason(chest, orientation=orientation)


def test_a_picture_too_small_or_blank_to_show_lungs() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (31, 400), (400, 8)):
        noise = rng.integers(0, 256, (height, width), np.uint8)
        assert f"too small: {width} x {height} pixels" in reason(noise)
    for value in (0, 90, 255):
        assert "blank" in reason(rng.normal(value, 1.5, (300, 300)).clip(0, 255).astype(np.uint8))
        assert "blank" in reason(np.full((300, 300), value, np.uint8))


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


FEATURES = APPEARANCE + CHANNELS


def points(rng: np.random.Generator, number: int, middle: float, direction: int) -> NDArray[np.float64]:
    """Descriptions around the origin, moved in one direction."""
    moved = rng.normal(0, 1, (number, FEATURES))
    moved[:, direction::3] += middle
    return moved


def odds(model: InputCheck, features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Log odds of anything else against lung."""
    return np.logaddexp.reduce(model.odds(features), axis=1)


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Lung slices around the origin, two other kinds away from it in directions of their own."""
    rng = np.random.default_rng(0)
    features = np.concatenate([points(rng, 300, 0, 0), points(rng, 60, 3, 0), points(rng, 60, -3, 1)])
    kind = (LUNG,) * 300 + ("a chart",) * 60 + ("a head",) * 60
    return Examples(features, kind, np.arange(420) // 3, np.ones(420))


@pytest.fixture(scope="module")
def check(examples: Examples) -> InputCheck:
    return fit_input_check(examples, np.arange(420) < 100)


def test_the_fit_is_reproducible_and_survives_its_arrays(examples: Examples, check: InputCheck) -> None:
    again = InputCheck.from_arrays(check.as_arrays())
    assert again.limit == check.limit
    for model in (again, fit_model(examples)):
        np.testing.assert_array_equal(model.odds(examples.features), check.odds(examples.features))


def test_patients_are_held_out_as_a_whole() -> None:
    """Every slice beside an identical one of its patient: seen, each would be known; held out, none is."""
    features = np.repeat(np.random.default_rng(5).normal(0, 1, (120, 400)), 2, axis=0)
    kind = (LUNG,) * 120 + ("other",) * 120
    by_patient = Examples(features, kind, np.repeat(np.arange(120), 2), np.ones(240))
    lungs = np.arange(240) < 120
    seen = odds(fit_model(by_patient), features[lungs])
    assert fit_input_check(by_patient, lungs).limit > np.quantile(seen, 0.99) + 1


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
    assert flags(cv2.resize(chest, (120, 120), interpolation=cv2.INTER_AREA)) == ("low-resolution",)
    assert "soft-tissue-window" in flags(np.clip((chest.astype(int) - 140) * 3, 0, 255).astype(np.uint8))
    half = chest.copy()
    half[:, : half.shape[1] // 2] = 220
    assert "one-lung-found" in flags(half)
    assert "lung-cut-off" in flags(chest[:, chest.shape[1] // 4 :])
    apex = make_phantom(np.random.default_rng(4), level=0.05).slice.pixels
    assert "little-lung" in flags(np.pad(apex, 120))
    assert set(FLAGS) > DOUBTFUL


def test_a_slice_on_which_the_network_cannot_see_gets_no_firm_label(
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
@pytest.mark.parametrize(("severity", "most"), [(0.0, 1), (0.25, 1), (0.5, 1), (0.75, 3), (1.0, 6)])
def test_lung_slices_pass_however_ill_and_at_every_level(
    shipped: Classifier, severity: float, most: int
) -> None:
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


def test_real_series_pass_where_there_is_lung(shipped: Classifier, dicom_samples: Path) -> None:
    predictions = list(shipped.predict_all([dicom_samples / "lung-series"]))
    by_name = {Path(prediction.file).stem: prediction.status for prediction in predictions}
    assert len(by_name) == 25
    # From 1-029 to 1-097 the lungs are in view; above lies the neck.
    assert all(by_name[f"1-{number:03d}"] is Status.OK for number in range(29, 98, 4))
