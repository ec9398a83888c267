"""Measures of prediction sets and the series rule, whose answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundglass.data.manifest import Label, Record
from groundglass.evaluation.bootstrap import Resampling
from groundglass.evaluation.calibration import prediction_sets, series_rule, summary
from groundglass.evaluation.part import Part
from groundglass.inference.calibration import Calibration
from groundglass.inference.prediction import COVID, NON_COVID

LABELS = (Label.NON_COVID, Label.COVID)


def part(slices: Sequence[tuple[str, int]]) -> Part:
    """Slices of these patients and labels; a patient's letters are the source."""
    records = (
        Record(Path(f"{number}.png"), LABELS[label], patient, patient.rstrip("0123456789"), None)
        for number, (patient, label) in enumerate(slices)
    )
    return Part("x", Path(), None, "all", tuple(records))


@pytest.mark.parametrize(
    ("quantiles", "label", "probability", "covered", "uncertain", "accuracy"),
    [
        # Sets: COVID alone, NonCOVID alone, neither, NonCOVID alone, COVID alone.
        ((0.3, 0.6), [1, 0, 1, 1, 0], [0.88, 0.5, 0.62, 0.018, 0.88], (1 / 3, 1 / 2), 1 / 5, 2 / 4),
        # Sets of both labels hold the truth and decide nothing.
        ((1.0, 1.0), [1, 0], [0.99, 0.99], (1, 1), 1, None),
    ],
)
def test_sets_are_counted_by_label_and_size(
    quantiles: tuple[float, float], label: list[int], probability: list[float], covered: tuple[float, float],
    uncertain: float, accuracy: float | None,
) -> None:  # fmt: skip
    calibration = Calibration(
        temperature=1.0, coverage=0.9, quantiles=dict(zip((COVID, NON_COVID), quantiles, strict=True))
    )
    patients = Resampling(np.arange(len(label)).astype(np.str_), 200)
    sets = prediction_sets(np.array(label, np.int8), np.array(probability), patients, calibration)
    assert sets.nominal_coverage == 0.9
    assert (sets.coverage[COVID].value, sets.coverage[NON_COVID].value) == pytest.approx(covered)
    assert (sets.uncertain.value, sets.accuracy_where_certain.value) == pytest.approx((uncertain, accuracy))
    assert sets.uncertain.low is not None


def test_the_summary_measures_calibrated_probabilities() -> None:
    calibration = Calibration(temperature=2.0, coverage=0.9, quantiles={COVID: 0.6, NON_COVID: 0.6})
    slices = part([("p1", 1), ("p2", 0), ("p3", 1), ("p4", 0)])
    document = summary(slices, np.array([2.0, -2.0, 2.0, 2.0], np.float32), calibration)
    assert (document["slices"], document["covid"], document["patients"]) == (4, 2, 4)
    probability = 1 / (1 + np.exp(-1.0))
    assert document["metrics"]["brier"]["value"] == pytest.approx(
        (3 * (1 - probability) ** 2 + probability**2) / 4
    )
    assert document["prediction_sets"]["coverage"] == {COVID: 1.0, NON_COVID: 0.5}
    assert document["prediction_sets"]["accuracy_where_certain"] == 0.75


def test_the_series_rule_is_fitted_on_patients_with_several_slices() -> None:
    def fit(patients: dict[str, tuple[int, list[float]]]) -> Any:
        slices = [(name, label) for name, (label, values) in patients.items() for _ in values]
        values = [value for _, values in patients.values() for value in values]
        return series_rule(part(slices), np.array(values), 0.9)

    sick = {f"a{index}": (1, [0.05, 0.5 + index / 40]) for index in range(10)}
    well = {f"b{index}": (0, [0.01, 0.02, index / 40]) for index in range(10)}
    # A single slice is no series.
    rule, on_whom = fit({**sick, **well, "c1": (1, [0.0]), "c2": (0, [1.0])})
    assert on_whom == {"patients": {COVID: 10, NON_COVID: 10}, "sources": {"a": 10, "b": 10}}
    # The tenth of ten at 90 %: the least sure patient of each label; scores are means of two and of three slices.
    assert rule.quantiles[COVID] == pytest.approx(1 - (0.05 + 0.5) / 2)
    assert rule.quantiles[NON_COVID] == pytest.approx((0.01 + 0.02 + 9 / 40) / 3)
    assert fit({**sick, "b1": (0, [0.1, 0.2])}) is None, "too few of one label"
