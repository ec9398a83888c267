"""Shortcut baselines: a leak is found, chance stays chance, and patients are kept together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundglass.audit.shortcuts import (
    GREY_FEATURES,
    SIZE_FEATURES,
    SURROUNDINGS_FEATURES,
    ShortcutBaselines,
    ShortcutFeatures,
    measure_shortcuts,
    shortcut_features,
)
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Record, read_record

Draw = Callable[[int, int, np.random.Generator], tuple[str, float]]


def invented(
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


def test_a_file_format_that_tells_the_label_is_found() -> None:
    measured = measure_shortcuts(*invented(leaking_file_format, parts=True))
    found = auc(measured)
    assert found["file_format"] == pytest.approx(1)
    assert all(0.25 < found[name] < 0.75 for name in ("size", "grey", "surroundings"))
    assert measured.file_formats == {
        "JPEG L .jpg": {"COVID": 0, "NonCOVID": 60},
        "PNG RGBA .png": {"COVID": 60, "NonCOVID": 0},
    }
    strongest = measured.strongest
    assert strongest is not None
    assert strongest.name == "file_format"
    assert strongest.tested is not None
    assert strongest.tested.accuracy.value == 1
    assert strongest.telling == ("JPEG L .jpg", 1.0)


def test_grey_values_that_tell_it_in_no_straight_line_are_found() -> None:
    assert auc(measure_shortcuts(*invented(leaking_grey)))["grey"] > 0.95


def test_what_only_tells_the_patient_does_not_tell_the_label() -> None:
    found = auc(measure_shortcuts(*invented(patients_own_grey, patients=60, slices=6)))
    assert found["grey"] < 0.7


def test_no_interval_holds_less_than_its_value_and_chance_lies_within() -> None:
    measured = measure_shortcuts(*invented(patients_own_grey, patients=60))
    for baseline in measured.baselines:
        figure = baseline.cross_validated.auc
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        assert figure.low < 0.55
        assert baseline.tested is None
        assert baseline.cross_validated.patients == 60


def test_equal_seeds_give_equal_figures() -> None:
    data = invented(leaking_grey, patients=20)
    assert measure_shortcuts(*data, seed=4) == measure_shortcuts(*data, seed=4)
    assert measure_shortcuts(*data, seed=4) != measure_shortcuts(*data, seed=5)


def test_too_few_patients_are_a_reason_and_no_crash() -> None:
    records, features = invented(leaking_file_format, patients=3)
    measured = measure_shortcuts(records[:6], features[:6])
    assert measured.baselines == ()
    assert measured.reason is not None
    assert measured.strongest is None
    assert measure_shortcuts([], []).reason is not None


def test_unlabelled_slices_are_left_out() -> None:
    records, features = invented(leaking_file_format, patients=20)
    unlabelled = [Record(record.path, None, record.patient_id, "s", None) for record in records]
    assert measure_shortcuts(unlabelled, features).reason is not None
    mixed = measure_shortcuts([*records, *unlabelled], [*features, *features])
    assert mixed.baselines[0].cross_validated.slices == len(records)


def test_containers_of_covid_ct_tell_four_labels_in_five(covid_ct: Path) -> None:
    records = load_dataset(covid_ct).records
    features = [shortcut_features(record, read_record(record)) for record in records]
    measured = measure_shortcuts(records, features)
    tested = {baseline.name: baseline.tested for baseline in measured.baselines}
    assert tested["file_format"] is not None
    assert tested["file_format"].accuracy.value == pytest.approx(0.793, abs=0.0005)
    assert tested["file_format"].slices == 203
    assert auc(measured)["file_format"] > 0.85
    assert auc(measured)["grey"] > 0.7
    assert auc(measured)["surroundings"] > 0.7
