"""Shortcuts: what is measured without a lung, and what baselines find in it."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.audit.shortcuts import ShortcutFeatures, measure_shortcuts, shortcut_features
from groundglass.data.manifest import Label, Record, read_record


def test_file_format_mode_and_suffix(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30, 4), np.uint8)).save(tmp_path / "rgba.png")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "picture.PNG", format="JPEG")
    for name, expected in (("rgba.png", "PNG RGBA .png"), ("picture.PNG", "JPEG L .png")):
        record = Record(tmp_path / name, None, "p", "s", None)
        found = shortcut_features(record, read_record(record))
        assert (found.file_format, found.size.tolist()) == (expected, [30, 20, 1.5, 600])


def synthetic(patients: int, slices: int, *, leak: bool) -> list[tuple[Record, ShortcutFeatures]]:
    """Noise, but for a file format that leaks the label, or else a mean grey that is the patient's own."""
    rng, seen = np.random.default_rng(0), []
    for patient, number in product(range(patients), range(slices)):
        label = (Label.NON_COVID, Label.COVID)[patient % 2]
        size, grey, around = (rng.random(each).astype(np.float32) for each in (4, 12, 20))
        if not leak:
            grey[0] = np.random.default_rng(patient).random() + 1e-4 * rng.random()
        file_format = ("JPEG L .jpg", "PNG RGBA .png")[patient % 2 if leak else 0]
        part = ("train", "train", "test")[patient // 2 % 3] if leak else None
        record = Record(Path(f"{patient}-{number}"), label, f"p{patient}", "s", part)
        seen.append((record, ShortcutFeatures(file_format, size, grey, around)))
    return seen


def test_a_file_format_that_gives_the_label_away_is_found_in_slices_that_have_one() -> None:
    slices = synthetic(40, 3, leak=True)
    unlabelled = [(replace(record, label=None), features) for record, features in slices]
    measured = measure_shortcuts([*slices, *unlabelled])
    assert [*measured.file_formats.values()] == [{"COVID": 0, "NonCOVID": 60}, {"COVID": 60, "NonCOVID": 0}]
    formats, *others = measured.baselines
    assert (formats.cross_validated.slices, formats.cross_validated.auc.value) == (120, pytest.approx(1))
    assert formats.tested is not None
    assert formats.tested.accuracy.value == 1
    assert [each.name for each in others] == ["size", "grey", "surroundings"]
    assert all(0.25 < (each.cross_validated.auc.value or 0) < 0.75 for each in others)
    lopsided = [(replace(slices[n][0], patient_id=name), slices[n][1]) for n, name in enumerate("bbcaaacccaab")]
    for too_few in (slices[:6], [], unlabelled, lopsided):
        reason = "a label has fewer than two patients, or one that holds nearly all of its slices"
        assert (measure_shortcuts(too_few).baselines, measure_shortcuts(too_few).reason) == ((), reason)


def test_what_only_identifies_the_patient_does_not_predict_the_label() -> None:
    for baseline in measure_shortcuts(synthetic(24, 15, leak=False)).baselines:
        low, value, high = (getattr(baseline.cross_validated.auc, name) for name in ("low", "value", "high"))
        assert low <= value <= high
        assert low < 0.55
        assert baseline.name != "grey" or value < 0.7
        assert (baseline.tested, baseline.cross_validated.patients) == (None, 24)
