"""The input check accepts axial lung slices, flags doubtful ones and refuses everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.data import out_of_distribution
from groundglass.errors import BundleError
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.crop import CroppedSlice, Preprocessing
from groundglass.imaging.lungs import shipped as find_lungs
from groundglass.imaging.phantom import Scanner, make_phantom, scan
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.input_check import (
    APPEARANCE,
    DOUBTFUL,
    FLAGS,
    LUNG,
    OTHER_PART,
    InputCheck,
    appearance,
)
from groundglass.inference.prediction import COVID, NON_COVID, UNCERTAIN, Status
from groundglass.inference.reference import OutOfDistributionModel
from groundglass.training.input_check_fit import Examples, accept_all, fit_input_check, fit_model

PREPROCESSING = Preprocessing(size=64)
CHANNELS = 4


@pytest.fixture(scope="module")
def accepting() -> InputCheck:
    return accept_all(CHANNELS)


def cropped(pixels: NDArray[np.uint8], size: int = PREPROCESSING.size) -> CroppedSlice:
    return replace(PREPROCESSING, size=size).apply(pixels, find_lungs()(pixels))


@pytest.fixture(scope="module")
def shipped() -> Classifier:
    """The classifier that comes with the installation."""
    return Classifier(Bundle.open(threads=1), threads=1)


def _look(check: InputCheck, pixels: NDArray[np.uint8], **origin: object) -> str | None:
    ct_slice = CTSlice(pixels, replace(Origin("a", "DICOM"), **origin))  # type: ignore[arg-type]
    return check.before(ct_slice, cropped(pixels)).reason


@pytest.fixture(scope="module")
def chest() -> NDArray[np.uint8]:
    return make_phantom(np.random.default_rng(0), level=0.5, size=256).slice.pixels


_TILT = 0.45
ACCEPTED = {
    "unknown": None,
    "supine": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "mirrored": (-1, 0, 0, 0, 1, 0),
    "tilted gantry": (1, 0, 0, 0, np.cos(_TILT), np.sin(_TILT)),
    "patient turned a little": (np.cos(_TILT), np.sin(_TILT), 0, -np.sin(_TILT), np.cos(_TILT), 0),
}
REFUSED = {
    "coronal": ((1, 0, 0, 0, 0, -1), "coronal"),
    "sagittal": ((0, 1, 0, 0, 0, -1), "sagittal"),
    "oblique": ((0.7071, 0.7071, 0, 0, 0, -1), "oblique"),
    "half way to coronal": ((1, 0, 0, 0, 0.7071, 0.7071), "coronal or oblique"),
    "turned": ((0, 1, 0, -1, 0, 0), "turned by 90 degrees"),
    "turned the other way": ((0, -1, 0, 1, 0, 0), "turned by 90 degrees"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_axial_geometry_passes(accepting: InputCheck, chest: NDArray[np.uint8], name: str) -> None:
    assert _look(accepting, chest, orientation=ACCEPTED[name]) is None


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_geometry_is_refused(accepting: InputCheck, chest: NDArray[np.uint8], name: str) -> None:
    orientation, word = REFUSED[name]
    reason = _look(accepting, chest, orientation=orientation)
    assert reason is not None
    assert word in reason


@pytest.mark.parametrize("shape", [(1, 1), (31, 400), (400, 8)])
def test_a_picture_too_small_to_show_lungs(accepting: InputCheck, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert f"too small: {shape[1]} x {shape[0]} pixels" in str(_look(accepting, noise))


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_blank_picture(accepting: InputCheck, value: int) -> None:
    faint = np.random.default_rng(0).normal(value, 1.5, (300, 300)).clip(0, 255).astype(np.uint8)
    assert "blank" in str(_look(accepting, faint))
    assert "blank" in str(_look(accepting, np.full((300, 300), value, np.uint8)))


@pytest.mark.parametrize("levels", [2, 5, 30, 64])
def test_a_label_map(accepting: InputCheck, levels: int) -> None:
    rows, columns = np.mgrid[:256, :256]
    labels = ((rows // 16 * 16 + columns // 16) % levels * (240 // levels) + 8).astype(np.uint8)
    assert f"a label map, mask or drawing: it has only {levels} grey values" in str(_look(accepting, labels))
    blurred = cv2.GaussianBlur(
        ((rows // 64 + columns // 64) % min(levels, 5) * 50).astype(np.uint8), (3, 3), 0
    )
    assert "a label map, mask or drawing" in str(_look(accepting, blurred))


def _examples(rng: np.random.Generator) -> tuple[Examples, NDArray[np.bool_]]:
    """Looks and embeddings of slices around 0 and of pictures around 3."""
    count = APPEARANCE + CHANNELS
    lungs, foreign = rng.normal(0, 1, (200, count)), rng.normal(3, 1, (80, count))
    kind = (LUNG,) * 200 + ("a chart",) * 80
    deciding = np.arange(280) < 100
    return Examples(np.concatenate([lungs, foreign]), kind, np.arange(280), np.ones(280)), deciding


def test_a_fitted_check_accepts_the_share_it_is_to_and_refuses_the_rest(chest: NDArray[np.uint8]) -> None:
    check = fit_input_check(*_examples(np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    verdict = check.before(CTSlice(chest, Origin("a", "PNG")), cropped(chest))
    assert verdict.reason is None

    def reasons_at(middle: float) -> Iterator[str | None]:
        for _ in range(100):
            looks = rng.normal(middle, 1, APPEARANCE).astype(np.float32)
            embedding = rng.normal(middle, 1, CHANNELS).astype(np.float32)
            yield check.after(embedding, replace(verdict, appearance=looks)).reason

    assert sum(reason is not None for reason in reasons_at(0)) <= 3
    reasons = list(reasons_at(3))
    refused = [reason for reason in reasons if reason is not None]
    assert len(refused) >= 95
    assert "looks like a chart (score" in refused[0]


def test_the_limit_never_lies_below_even_odds() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 1, (100, 60)), rng.normal(6, 1, (80, 60))])
    features[100:105] = features[:5]  # other pictures that look like lungs
    kind = (LUNG,) * 100 + ("a chart",) * 80
    examples = Examples(features, kind, np.arange(180), np.ones(180))
    assert fit_input_check(examples, np.arange(180) < 100).limit >= 0


def test_nobody_to_decide_on_the_limit() -> None:
    examples, deciding = _examples(np.random.default_rng(0))
    with pytest.raises(ValueError, match="decide"):
        fit_input_check(examples, np.zeros_like(deciding))


def test_arrays_bring_back_the_same_check() -> None:
    check = fit_input_check(*_examples(np.random.default_rng(0)))
    again = InputCheck.from_arrays(check.as_arrays())
    assert again.limit == check.limit
    features = np.random.default_rng(2).normal(1, 1, (5, APPEARANCE + CHANNELS))
    np.testing.assert_array_equal(again.model.odds(features), check.model.odds(features))


def test_what_was_refused_before_stays_refused(accepting: InputCheck) -> None:
    pixels = np.zeros((100, 100), np.uint8)
    verdict = accepting.before(CTSlice(pixels, Origin("a", "PNG")), cropped(pixels))
    assert accepting.after(np.zeros(CHANNELS, np.float32), verdict) is verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_check.appearance_version": np.asarray(99)}, "version 99"),
        ({"input_check.weights": np.zeros((3, 3), np.float32)}, "is damaged"),
        ({"input_check.surplus": np.zeros(1)}, "is damaged"),
        ({"input_check.limit": np.zeros(3)}, "is damaged"),
    ],
)
def test_arrays_of_another_check_are_refused(
    accepting: InputCheck, change: dict[str, NDArray[np.generic]], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        InputCheck.from_arrays({**accepting.as_arrays(), **change})


def test_missing_arrays_are_named(accepting: InputCheck) -> None:
    arrays = accepting.as_arrays()
    del arrays["input_check.centre"]
    with pytest.raises(BundleError, match="centre"):
        InputCheck.from_arrays(arrays)


FEATURES = 40


def _points(rng: np.random.Generator, number: int, middle: float, direction: int) -> NDArray[np.float64]:
    points = rng.normal(0, 1, (number, FEATURES))
    points[:, direction] += middle
    return points


def odds(model: OutOfDistributionModel, features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Log odds of anything else against lung."""
    return np.logaddexp.reduce(model.odds(features), axis=1)


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Lung slices around the origin, two other kinds 6 spreads away in directions of their own."""
    rng = np.random.default_rng(0)
    features = np.concatenate([_points(rng, 300, 0, 0), _points(rng, 60, 6, 0), _points(rng, 60, -6, 1)])
    kind = (LUNG,) * 300 + ("chart",) * 60 + ("head",) * 60
    return Examples(features, kind, np.arange(420) // 3, np.ones(420))


@pytest.fixture(scope="module")
def model(examples: Examples) -> OutOfDistributionModel:
    return fit_model(examples)


def test_kinds_are_told_apart(model: OutOfDistributionModel) -> None:
    rng = np.random.default_rng(1)
    assert model.kinds.tolist() == ["chart", "head"]
    assert (odds(model, _points(rng, 200, 0, 0)) < 0).mean() > 0.97
    for number, (middle, direction) in enumerate([(6, 0), (-6, 1)]):
        points = _points(rng, 200, middle, direction)
        assert (odds(model, points) > 0).mean() > 0.97
        assert (model.odds(points).argmax(axis=1) == number).mean() > 0.97


def test_what_resembles_nothing_is_foreign(model: OutOfDistributionModel) -> None:
    """Far away in a direction that no example of any kind ever took: the distances alone tell it."""
    rng = np.random.default_rng(2)
    lung = odds(model, _points(rng, 200, 0, 0))
    far = odds(model, rng.normal(0, 5, (200, FEATURES)))
    assert np.median(far) > np.quantile(lung, 0.99)


def test_arrays_that_do_not_fit_together_are_refused(model: OutOfDistributionModel) -> None:
    with pytest.raises(ValueError, match="weights is of shape"):
        replace(model, weights=model.weights[:-1])


def test_the_fit_is_reproducible(examples: Examples, model: OutOfDistributionModel) -> None:
    again = fit_model(examples)
    np.testing.assert_array_equal(again.odds(examples.features), model.odds(examples.features))


@pytest.mark.parametrize("kept", [(LUNG,), ("chart", "head")])
def test_one_side_alone_cannot_be_learnt_from(examples: Examples, kept: tuple[str, ...]) -> None:
    chosen = np.array([kind in kept for kind in examples.kind])
    with pytest.raises(ValueError, match="examples of lung slices and of other"):
        fit_model(examples.take(chosen))


def test_a_number_that_never_varies_does_no_harm(examples: Examples) -> None:
    constant = np.concatenate([examples.features, np.ones((420, 1))], axis=1)
    model = fit_model(replace(examples, features=constant))
    assert np.isfinite(odds(model, constant * 1e6)).all()


def test_patients_are_held_out_as_a_whole() -> None:
    """Every slice beside an identical one of its patient: seen, each would be known; held out, none is."""
    rng = np.random.default_rng(5)
    features = np.repeat(rng.normal(0, 1, (120, 400)), 2, axis=0)
    kind = (LUNG,) * 120 + ("other",) * 120
    by_patient = Examples(features, kind, np.repeat(np.arange(120), 2), np.ones(240))
    lungs = np.arange(240) < 120
    seen = odds(fit_model(by_patient), features[lungs])
    assert fit_input_check(by_patient, lungs).limit > np.quantile(seen, 0.99) + 1


def test_one_patient_alone_cannot_be_held_out(examples: Examples) -> None:
    with pytest.raises(ValueError, match="examples of lung slices"):
        fit_input_check(replace(examples, group=np.zeros(420, np.int64)), examples.lung)


def test_kinds_are_called_as_the_examples_call_them() -> None:
    assert OTHER_PART == out_of_distribution.OTHER_PART


def _flags(pixels: NDArray[np.uint8], **origin: object) -> tuple[str, ...]:
    ct_slice = CTSlice(pixels, replace(Origin("a", "DICOM"), **origin))  # type: ignore[arg-type]
    return accept_all(CHANNELS).before(ct_slice, cropped(pixels, 160)).flags


def test_doubtful_slices_are_flagged_and_plain_ones_are_not() -> None:
    chest = make_phantom(np.random.default_rng(4), level=0.5).slice.pixels
    assert _flags(chest) == ()
    assert _flags(chest, orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) == ()
    assert _flags(chest, orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)) == ("upside-down",)
    assert _flags(cv2.resize(chest, (120, 120), interpolation=cv2.INTER_AREA)) == ("low-resolution",)
    assert "soft-tissue-window" in _flags(np.clip((chest.astype(int) - 140) * 3, 0, 255).astype(np.uint8))
    half = chest.copy()
    half[:, : half.shape[1] // 2] = 220
    assert "one-lung-found" in _flags(half)
    assert "lung-cut-off" in _flags(chest[:, chest.shape[1] // 4 :])
    assert set(FLAGS) == {
        "upside-down",
        "low-resolution",
        "soft-tissue-window",
        "one-lung-found",
        "little-lung",
        "much-opacity",
        "lung-cut-off",
    }
    assert set(FLAGS) > DOUBTFUL


def test_a_slice_on_which_the_network_cannot_see_gets_no_firm_label(
    shipped: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = len(shipped.bundle.arrays["input_check.centre"]) - APPEARANCE
    monkeypatch.setattr(shipped, "_check", accept_all(channels))
    chest = make_phantom(np.random.default_rng(4), severity=0.7, level=0.5).slice.pixels
    firm = shipped.predict(chest)
    cut = shipped.predict(np.ascontiguousarray(chest[:, 3 * chest.shape[1] // 10 :]))
    assert firm.label == COVID
    assert "lung-cut-off" in cut.flags
    assert (cut.status, cut.label, cut.prediction_set) == (Status.OK, UNCERTAIN, (COVID, NON_COVID))


def _appearance(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return appearance(pixels, cropped(pixels, 96))


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (33, 47), (1000, 20), (700, 900)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_every_picture_has_a_finite_appearance(shape: tuple[int, int], value: int) -> None:
    described = _appearance(np.full(shape, value, np.uint8))
    assert (described.shape, described.dtype) == ((APPEARANCE,), np.float32)
    assert np.isfinite(described).all()


def test_appearance_changes_less_with_size_and_brightness_than_with_the_patient_and_most_when_turned(
    chest: NDArray[np.uint8],
) -> None:
    def away(pixels: NDArray[np.uint8]) -> float:
        return float(np.linalg.norm(_appearance(pixels) - _appearance(chest)))

    other = away(make_phantom(np.random.default_rng(1), level=0.5, size=256).slice.pixels)
    assert away(cv2.resize(chest, (384, 384), interpolation=cv2.INTER_LINEAR)) < 0.5 * other
    assert away((chest * 0.85).astype(np.uint8)) < 0.5 * other
    assert away(np.ascontiguousarray(np.rot90(chest))) > 1.3 * other
    assert away(np.random.default_rng(0).integers(0, 256, (300, 200), np.uint8)) > 5


def _slices(severity: float, patients: int = 8) -> Iterator[CTSlice]:
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
    predictions = list(map(shipped.classify, _slices(severity)))
    refused = [prediction for prediction in predictions if prediction.status is not Status.OK]
    assert len(predictions) == 48
    assert len(refused) <= most, refused


def test_a_turned_slice_is_refused_and_turned_back_is_not(shipped: Classifier) -> None:
    right = [slice_.pixels for slice_ in _slices(0.3, patients=3)]
    turned = [np.ascontiguousarray(np.rot90(pixels)) for pixels in right]
    assert all(shipped.predict(pixels).status is Status.OK for pixels in right)
    predictions = [shipped.predict(pixels) for pixels in turned]
    refused = [prediction for prediction in predictions if prediction.status is Status.REFUSED]
    assert len(refused) >= len(turned) - 1
    assert sum("turned by 90 degrees" in str(prediction.reason) for prediction in refused) > len(turned) / 2


def test_the_same_slice_gets_the_same_prediction(shipped: Classifier, chest: NDArray[np.uint8]) -> None:
    first = shipped.predict(chest)
    assert all(shipped.predict(chest) == first for _ in range(3))
    assert first.status is Status.OK


def test_real_series_pass_where_there_is_lung(shipped: Classifier, dicom_samples: Path) -> None:
    predictions = list(shipped.predict_all([dicom_samples / "lung-series"]))
    by_name = {Path(prediction.file).stem: prediction.status for prediction in predictions}
    assert len(by_name) == 25
    # From 1-029 to 1-097 the lungs are in view; above lies the neck.
    assert all(by_name[f"1-{number:03d}"] is Status.OK for number in range(29, 98, 4))


@pytest.mark.parametrize("name", ["coronal-ge", "coronal-toshiba-616", "sagittal-ge"])
def test_real_reformats_are_refused(shipped: Classifier, dicom_samples: Path, name: str) -> None:
    prediction = shipped.predict(dicom_samples / "mixed" / f"{name}.dcm")
    assert prediction.status is Status.REFUSED
    assert name.partition("-")[0] in str(prediction.reason)


def test_a_slice_without_lung_is_refused(accepting: InputCheck) -> None:
    rows, columns = np.mgrid[-1:1:256j, -1:1:256j]
    pixels = np.where(rows**2 + columns**2 < 0.7, 236, 0).astype(np.uint8)
    # Gas in the bowel, with an edge of its own; and grain, without which this would be a drawing.
    pixels[(rows + 0.2) ** 2 + columns**2 < 0.01] = 60
    pixels = np.clip(pixels + np.random.default_rng(0).normal(0, 14, pixels.shape), 0, 255).astype(np.uint8)
    assert _look(accepting, pixels) == "outside the lungs: no lung was found"
