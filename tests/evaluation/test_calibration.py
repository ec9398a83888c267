"""Measures of prediction sets, whose answers can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundglass.data.manifest import Label, Record
from groundglass.evaluation.calibration import prediction_sets, summary
from groundglass.evaluation.part import Part
from groundglass.inference.calibration import Calibration
from groundglass.inference.prediction import COVID, NON_COVID


def part(*labels: int) -> Part:
    records = tuple(
        Record(Path(f"{number}.png"), Label.COVID if label else Label.NON_COVID, f"p{number}", "x", None)
        for number, label in enumerate(labels)
    )
    return Part("x", Path(), None, "all", records)


def test_sets_are_counted_by_label_and_size() -> None:
    calibration = Calibration(1.0, 0.9, {COVID: 0.3, NON_COVID: 0.6})
    # Sets: COVID alone, NonCOVID alone, neither, NonCOVID alone, COVID alone.
    probability = np.array([0.88, 0.5, 0.62, 0.018, 0.88])
    sets = prediction_sets(part(1, 0, 1, 1, 0), probability, calibration, resamples=200)
    assert sets.nominal_coverage == 0.9
    assert sets.coverage[COVID].value == pytest.approx(1 / 3)
    assert sets.coverage[NON_COVID].value == pytest.approx(1 / 2)
    assert sets.uncertain.value == pytest.approx(1 / 5)
    assert sets.accuracy_where_certain.value == pytest.approx(2 / 4)
    assert sets.uncertain.low is not None


def test_sets_of_both_labels_hold_the_truth_and_decide_nothing() -> None:
    calibration = Calibration(1.0, 0.9, {COVID: 1.0, NON_COVID: 1.0})
    sets = prediction_sets(part(1, 0), np.array([0.99, 0.99]), calibration, resamples=50)
    assert (sets.coverage[COVID].value, sets.coverage[NON_COVID].value, sets.uncertain.value) == (1, 1, 1)
    assert sets.accuracy_where_certain.value is None


def test_the_summary_measures_calibrated_probabilities() -> None:
    calibration = Calibration(2.0, 0.9, {COVID: 0.6, NON_COVID: 0.6})
    document = summary(part(1, 0, 1, 0), np.array([2.0, -2.0, 2.0, 2.0], np.float32), calibration)
    assert (document["slices"], document["covid"], document["patients"]) == (4, 2, 4)
    probability = 1 / (1 + np.exp(-1.0))
    assert document["metrics"]["brier"]["value"] == pytest.approx(
        (3 * (1 - probability) ** 2 + probability**2) / 4
    )
    assert document["prediction_sets"]["coverage"] == {COVID: 1.0, NON_COVID: 0.5}
    assert document["prediction_sets"]["accuracy_where_certain"] == 0.75
