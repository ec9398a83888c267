"""Shortcuts: what is measured without a lung, and what baselines find in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.audit.shortcuts import (
    GREY_FEATURES,
    SIZE_FEATURES,
    SURROUNDINGS_FEATURES,
    ShortcutBaselines,
    ShortcutFeatures,
    measure_shortcuts,
    shortcut_features,
)
from groundglass.data.manifest import Label, Record, read_record
from groundglass.imaging.phantom import Phantom, make_phantom
from groundglass.imaging.slice import CTSlice, Origin

Draw = Callable[[int, int, np.random.Generator], tuple[str, float]]


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


def synthetic(
    draw: Draw, patients: int = 40, slices: int = 3, parts: bool = False
) -> tuple[list[Record], list[ShortcutFeatures]]:
    """Slices whose file_format and mean grey ``draw`` makes from label and patient; all else is noise."""
    rng = np.random.default_rng(0)
    records, features = [], []
    for patient in range(patients):
        label = patient % 2
        for number in range(slices):
            file_format, mean = draw(label, patient, rng)
            grey = rng.random(len(GREY_FEATURES)).astype(np.float32)
            grey[0] = mean
            part = ("train", "train", "test")[patient // 2 % 3] if parts else None
            name = Label.COVID if label else Label.NON_COVID
            records.append(Record(Path(f"{patient}-{number}"), name, f"p{patient}", "s", part))
            features.append(
                ShortcutFeatures(
                    file_format,
                    rng.random(len(SIZE_FEATURES)).astype(np.float32),
                    grey,
                    rng.random(len(SURROUNDINGS_FEATURES)).astype(np.float32),
                )
            )
    return records, features


def auc(measured: ShortcutBaselines) -> dict[str, float]:
    return {baseline.name: baseline.cross_validated.auc.value for baseline in measured.baselines}


def leaking_file_format(label: int, patient: int, rng: np.random.Generator) -> tuple[str, float]:
    return ("PNG RGBA .png" if label else "JPEG L .jpg"), rng.random()


def leaking_grey(label: int, patient: int, rng: np.random.Generator) -> tuple[str, float]:
    # Neither black nor white but in between: no straight line parts it.
    return "PNG L .png", rng.uniform(0.4, 0.6) if label else rng.choice(
        [rng.uniform(0, 0.3), rng.uniform(0.7, 1)]
    )


def patients_own_grey(label: int, patient: int, rng: np.random.Generator) -> tuple[str, float]:
    own = np.random.default_rng(patient).random()
    return "PNG L .png", own + 1e-4 * rng.random()


def test_a_file_format_that_gives_the_label_away_is_found() -> None:
    measured = measure_shortcuts(*synthetic(leaking_file_format, parts=True))
    found = auc(measured)
    assert found["file_format"] == pytest.approx(1)
    assert all(0.25 < found[name] < 0.75 for name in ("size", "grey", "surroundings"))
    assert measured.file_formats == {
        "JPEG L .jpg": {"COVID": 0, "NonCOVID": 60},
        "PNG RGBA .png": {"COVID": 60, "NonCOVID": 0},
    }
    strongest = measured.baselines[0]
    assert strongest.name == "file_format"
    assert strongest.tested is not None
    assert strongest.tested.accuracy.value == 1
    assert strongest.telling == ("JPEG L .jpg", 1.0)


def test_grey_values_that_separate_labels_in_no_straight_line_are_found() -> None:
    assert auc(measure_shortcuts(*synthetic(leaking_grey)))["grey"] > 0.95


def test_what_only_identifies_the_patient_does_not_predict_the_label() -> None:
    found = auc(measure_shortcuts(*synthetic(patients_own_grey, patients=60, slices=6)))
    assert found["grey"] < 0.7


def test_no_interval_holds_less_than_its_value_and_chance_lies_within() -> None:
    measured = measure_shortcuts(*synthetic(patients_own_grey, patients=60))
    for baseline in measured.baselines:
        figure = baseline.cross_validated.auc
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        assert figure.low < 0.55
        assert baseline.tested is None
        assert baseline.cross_validated.patients == 60


def test_equal_seeds_give_equal_figures() -> None:
    data = synthetic(leaking_grey, patients=20)
    first, again, other = (measure_shortcuts(*data, seed=seed) for seed in (4, 4, 5))
    assert first == again
    assert first != other


def test_too_few_patients_are_a_reason_and_no_crash() -> None:
    records, features = synthetic(leaking_file_format, patients=3)
    measured = measure_shortcuts(records[:6], features[:6])
    assert measured.baselines == ()
    assert measured.reason is not None
    assert measure_shortcuts([], []).reason is not None


def test_unlabelled_slices_are_left_out() -> None:
    records, features = synthetic(leaking_file_format, patients=20)
    unlabelled = [Record(record.path, None, record.patient_id, "s", None) for record in records]
    assert measure_shortcuts(unlabelled, features).reason is not None
    mixed = measure_shortcuts([*records, *unlabelled], [*features, *features])
    assert mixed.baselines[0].cross_validated.slices == len(records)
