"""Shortcuts: what is measured without a lung, and what baselines find in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
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

Draw = Callable[[int, int, np.random.Generator], tuple[str, float]]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(np.random.default_rng(3), level=0.5, size=320)


def test_file_format_mode_and_suffix(tmp_path: Path) -> None:
    path = tmp_path / "picture.PNG"
    Image.fromarray(np.zeros((20, 30, 4), np.uint8)).save(tmp_path / "rgba.png")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path, format="JPEG")
    for name, expected in (("rgba.png", "PNG RGBA .png"), ("picture.PNG", "JPEG L .png")):
        record = Record(tmp_path / name, None, "p", "s", None)
        found = shortcut_features(record, read_record(record))
        assert found.file_format == expected
        assert found.size.tolist() == [30, 20, 1.5, 600]


def synthetic(
    draw: Draw, patients: int = 40, slices: int = 3, parts: bool = False
) -> list[tuple[Record, ShortcutFeatures]]:
    """Slices whose file format and mean grey ``draw`` makes from label and patient; all else is noise."""
    rng = np.random.default_rng(0)
    seen = []
    for patient, number in product(range(patients), range(slices)):
        file_format, mean = draw(patient % 2, patient, rng)
        size, grey, around = (
            rng.random(len(names)).astype(np.float32)
            for names in (SIZE_FEATURES, GREY_FEATURES, SURROUNDINGS_FEATURES)
        )
        grey[0] = mean
        part = ("train", "train", "test")[patient // 2 % 3] if parts else None
        label = Label.COVID if patient % 2 else Label.NON_COVID
        record = Record(Path(f"{patient}-{number}"), label, f"p{patient}", "s", part)
        seen.append((record, ShortcutFeatures(file_format, size, grey, around)))
    return seen


def auc(measured: ShortcutBaselines) -> dict[str, float]:
    return {each.name: each.cross_validated.auc.value or 0.0 for each in measured.baselines}


def leaking_file_format(label: int, patient: int, rng: np.random.Generator) -> tuple[str, float]:
    return ("PNG RGBA .png" if label else "JPEG L .jpg"), rng.random()


def patients_own_grey(label: int, patient: int, rng: np.random.Generator) -> tuple[str, float]:
    return "PNG L .png", np.random.default_rng(patient).random() + 1e-4 * rng.random()


def test_a_file_format_that_gives_the_label_away_is_found() -> None:
    measured = measure_shortcuts(synthetic(leaking_file_format, parts=True))
    found = auc(measured)
    assert found["file_format"] == pytest.approx(1)
    assert all(0.25 < found[name] < 0.75 for name in ("size", "grey", "surroundings"))
    assert measured.file_formats == {
        "JPEG L .jpg": {"COVID": 0, "NonCOVID": 60},
        "PNG RGBA .png": {"COVID": 60, "NonCOVID": 0},
    }
    tested = measured.baselines[0].tested
    assert tested is not None
    assert tested.accuracy.value == 1
    assert measured.baselines[0].telling == ("JPEG L .jpg", 1.0)


def test_what_only_identifies_the_patient_does_not_predict_the_label() -> None:
    measured = measure_shortcuts(synthetic(patients_own_grey, patients=60, slices=6))
    assert auc(measured)["grey"] < 0.7
    for baseline in measured.baselines:
        low, value, high = (getattr(baseline.cross_validated.auc, name) for name in ("low", "value", "high"))
        assert low <= value <= high
        assert low < 0.55
        assert baseline.tested is None
        assert baseline.cross_validated.patients == 60


def test_too_few_patients_and_unlabelled_slices() -> None:
    slices = synthetic(leaking_file_format, patients=20)
    few = measure_shortcuts(slices[:6])
    assert few.baselines == ()
    unlabelled = [(replace(record, label=None), features) for record, features in slices]
    for measured in (few, measure_shortcuts([]), measure_shortcuts(unlabelled)):
        assert measured.reason == "there are fewer than two patients of one of the labels"
    mixed = measure_shortcuts([*slices, *unlabelled])
    assert mixed.baselines[0].cross_validated.slices == len(slices)
