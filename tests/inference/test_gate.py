"""The gate lets axial lung slices pass and refuses everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import Scanner, make_phantom, scan
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.input_check import COUNT, LUNG, Examples, InputCheck, held_out_distance_from_lung
from groundglass.inference.prediction import Status

PREPROCESSING = Preprocessing(size=64)
CHANNELS = 4


@pytest.fixture(scope="module")
def open_gate() -> InputCheck:
    return InputCheck.open_wide(CHANNELS)


@pytest.fixture(scope="module")
def shipped() -> Classifier:
    """The classifier that comes with the installation."""
    return Classifier(Bundle.open(threads=1), threads=1)


def _look(gate: InputCheck, pixels: NDArray[np.uint8], **origin: object) -> str | None:
    ct_slice = CTSlice(pixels, replace(Origin("a", "DICOM"), **origin))  # type: ignore[arg-type]
    return gate.look(ct_slice, PREPROCESSING.apply(pixels)).reason


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
def test_axial_geometry_passes(open_gate: InputCheck, chest: NDArray[np.uint8], name: str) -> None:
    assert _look(open_gate, chest, orientation=ACCEPTED[name]) is None


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_geometry_is_refused(open_gate: InputCheck, chest: NDArray[np.uint8], name: str) -> None:
    orientation, word = REFUSED[name]
    reason = _look(open_gate, chest, orientation=orientation)
    assert reason is not None
    assert word in reason


@pytest.mark.parametrize("shape", [(1, 1), (31, 400), (400, 8)])
def test_a_picture_too_small_to_show_lungs(open_gate: InputCheck, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert f"too small: {shape[1]} x {shape[0]} pixels" in str(_look(open_gate, noise))


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_blank_picture(open_gate: InputCheck, value: int) -> None:
    faint = np.random.default_rng(0).normal(value, 1.5, (300, 300)).clip(0, 255).astype(np.uint8)
    assert "blank" in str(_look(open_gate, faint))
    assert "blank" in str(_look(open_gate, np.full((300, 300), value, np.uint8)))


def _examples(rng: np.random.Generator) -> tuple[Examples, NDArray[np.bool_]]:
    """Looks and embeddings of slices around 0 and of pictures around 3."""
    count = COUNT + CHANNELS
    lungs, foreign = rng.normal(0, 1, (200, count)), rng.normal(3, 1, (80, count))
    kind = (LUNG,) * 200 + ("a chart",) * 80
    deciding = np.arange(280) < 100
    return Examples(np.concatenate([lungs, foreign]), kind, np.arange(280), np.ones(280)), deciding


def test_a_fitted_gate_accepts_the_share_it_is_to_and_refuses_the_rest(chest: NDArray[np.uint8]) -> None:
    gate = InputCheck.fit(*_examples(np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    cropped = PREPROCESSING.apply(chest)
    verdict = gate.look(CTSlice(chest, Origin("a", "PNG")), cropped)
    assert verdict.reason is None

    def judge(middle: float) -> Iterator[str | None]:
        for _ in range(100):
            looks = rng.normal(middle, 1, COUNT).astype(np.float32)
            embedding = rng.normal(middle, 1, CHANNELS).astype(np.float32)
            yield gate.judge(cropped, embedding, replace(verdict, looks=looks)).reason

    assert sum(reason is not None for reason in judge(0)) <= 3
    reasons = list(judge(3))
    refused = [reason for reason in reasons if reason is not None]
    assert len(refused) >= 95
    assert "looks like a chart (score" in refused[0]


def test_the_limit_never_lies_below_even_odds() -> None:
    examples, deciding = _examples(np.random.default_rng(0))
    examples.features[200:205] = examples.features[:5]  # foreign pictures that look like lungs
    assert InputCheck.fit(examples, deciding, accepted=0.01).limit == 0.0


def test_the_limit_is_as_lenient_as_the_foreign_pictures_allow() -> None:
    examples, deciding = _examples(np.random.default_rng(0))
    limits = [InputCheck.fit(examples, deciding, refused=share).limit for share in (1.0, 0.9, 0.5)]
    assert limits == sorted(set(limits)), "the fewer are to be refused, the higher"
    held_out = held_out_distance_from_lung(examples)
    assert np.mean(held_out[200:] > limits[1]) == pytest.approx(0.9, abs=0.02)
    assert limits[0] > np.quantile(held_out[:100], 0.99), "not the limit that the slices ask for"


def test_nobody_to_decide_on_the_limit() -> None:
    examples, deciding = _examples(np.random.default_rng(0))
    with pytest.raises(ValueError, match="decide"):
        InputCheck.fit(examples, np.zeros_like(deciding))


def test_arrays_bring_back_the_same_gate() -> None:
    gate = InputCheck.fit(*_examples(np.random.default_rng(0)))
    again = InputCheck.from_arrays(gate.as_arrays())
    assert again.limit == gate.limit
    features = np.random.default_rng(2).normal(1, 1, (5, COUNT + CHANNELS))
    np.testing.assert_array_equal(again.model.odds(features), gate.model.odds(features))


def test_a_refusal_at_first_sight_is_not_looked_at_again(open_gate: InputCheck) -> None:
    pixels = np.zeros((100, 100), np.uint8)
    cropped = PREPROCESSING.apply(pixels)
    verdict = open_gate.look(CTSlice(pixels, Origin("a", "PNG")), cropped)
    assert open_gate.judge(cropped, np.zeros(CHANNELS, np.float32), verdict) is verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"looks_version": np.asarray(99)}, "version 99"),
        ({"weights": np.zeros((3, 3), np.float32)}, "does not fit"),
        ({"surplus": np.zeros(1)}, "does not fit"),
        ({"limit": np.zeros(3)}, "does not fit"),
    ],
)
def test_arrays_of_another_gate_are_refused(
    open_gate: InputCheck, change: dict[str, NDArray[np.generic]], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        InputCheck.from_arrays({**open_gate.as_arrays(), **change})


def test_missing_arrays_are_named(open_gate: InputCheck) -> None:
    arrays = open_gate.as_arrays()
    del arrays["centre"]
    with pytest.raises(BundleError, match="centre"):
        InputCheck.from_arrays(arrays)


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
    predictions = list(shipped.predict_slices(_slices(severity)))
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


@pytest.mark.slow
def test_covid_ct_passes(shipped: Classifier, covid_ct: Path) -> None:
    """Not more than 3 % of the validation part is refused."""
    from groundglass.data.load import load_dataset

    files = [record.path for record in load_dataset(covid_ct).records if record.split == "val"]
    predictions = list(shipped.predict_all(files))
    assert len(predictions) == 118
    assert sum(prediction.status is not Status.OK for prediction in predictions) <= 3


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


@pytest.mark.parametrize(("severity", "level"), [(0.0, 0.5), (1.0, 0.5), (1.0, 0.3)])
def test_by_hounsfield_units_heavy_disease_is_still_lung(
    open_gate: InputCheck, severity: float, level: float
) -> None:
    for seed in range(6):
        piece = make_phantom(np.random.default_rng(seed), severity, level, size=256).slice
        assert open_gate.look(piece, PREPROCESSING.apply(piece.pixels)).reason is None


def test_by_hounsfield_units_a_slice_without_lung_is_refused(open_gate: InputCheck) -> None:
    hounsfield = np.full((256, 256), -1000, np.float32)
    rows, columns = np.mgrid[-1:1:256j, -1:1:256j]
    hounsfield[rows**2 + columns**2 < 0.7] = 40
    # Gas in the bowel, with an edge of its own.
    hounsfield[(rows + 0.2) ** 2 + columns**2 < 0.01] = -980
    pixels = np.clip((hounsfield + 1350) / 1500 * 255, 0, 255).astype(np.uint8)
    piece = CTSlice(pixels, Origin("a", "DICOM"), hounsfield)
    assert "hardly any lung" in str(open_gate.look(piece, PREPROCESSING.apply(pixels)).reason)
    as_picture = CTSlice(pixels, Origin("a", "PNG"))
    assert open_gate.look(as_picture, PREPROCESSING.apply(pixels)).reason is None
