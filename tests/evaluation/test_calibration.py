"""Measures of prediction sets, whose answers can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundglass.data.manifest import Label, Record
from groundglass.evaluation.calibration import prediction_sets, series_rule, summary
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
    calibration = Calibration(temperature=1.0, coverage=0.9, quantiles={COVID: 0.3, NON_COVID: 0.6})
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
    calibration = Calibration(temperature=1.0, coverage=0.9, quantiles={COVID: 1.0, NON_COVID: 1.0})
    sets = prediction_sets(part(1, 0), np.array([0.99, 0.99]), calibration, resamples=50)
    assert (sets.coverage[COVID].value, sets.coverage[NON_COVID].value, sets.uncertain.value) == (1, 1, 1)
    assert sets.accuracy_where_certain.value is None


def test_the_summary_measures_calibrated_probabilities() -> None:
    calibration = Calibration(temperature=2.0, coverage=0.9, quantiles={COVID: 0.6, NON_COVID: 0.6})
    document = summary(part(1, 0, 1, 0), np.array([2.0, -2.0, 2.0, 2.0], np.float32), calibration)
    assert (document["slices"], document["covid"], document["patients"]) == (4, 2, 4)
    probability = 1 / (1 + np.exp(-1.0))
    assert document["metrics"]["brier"]["value"] == pytest.approx(
        (3 * (1 - probability) ** 2 + probability**2) / 4
    )
    assert document["prediction_sets"]["coverage"] == {COVID: 1.0, NON_COVID: 0.5}
    assert document["prediction_sets"]["accuracy_where_certain"] == 0.75


def patients(slices: dict[str, tuple[int, list[float]]]) -> tuple[Part, np.ndarray]:
    """A part of patients with these labels and probabilities; a name's letters are its source."""
    records, probability = [], []
    for name, (label, values) in slices.items():
        for value in values:
            path = Path(f"{len(records)}.png")
            records.append(
                Record(path, Label.COVID if label else Label.NON_COVID, name, name.rstrip("0123456789"), None)
            )
            probability.append(value)
    return Part("x", Path(), None, "all", tuple(records)), np.array(probability)


def test_the_series_rule_is_fitted_on_patients_with_several_slices() -> None:
    sick = {f"a{index}": (1, [0.05, 0.5 + index / 40]) for index in range(10)}
    well = {f"b{index}": (0, [0.01, 0.02, index / 40]) for index in range(10)}
    # A single slice is no series.
    fitted = series_rule(*patients({**sick, **well, "c1": (1, [0.0]), "c2": (0, [1.0])}), 0.9)
    assert fitted is not None
    rule, on_whom = fitted
    assert on_whom == {"patients": {COVID: 10, NON_COVID: 10}, "sources": {"a": 10, "b": 10}}
    # The tenth of ten at 90 %: the least sure patient of each label; scores are means of two and of three slices.
    assert rule.quantiles[COVID] == pytest.approx(1 - (0.05 + 0.5) / 2)
    assert rule.quantiles[NON_COVID] == pytest.approx((0.01 + 0.02 + 9 / 40) / 3)
    assert series_rule(*patients({**sick, "b1": (0, [0.1, 0.2])}), 0.9) is None, "too few of one label"
