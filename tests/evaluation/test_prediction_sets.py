"""Measures of calibration and prediction sets on logits whose answer can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.evaluation.metrics import calibration_report, prediction_sets
from groundglass.inference.calibration import Calibration
from groundglass.inference.prediction import COVID, NON_COVID


def test_sets_are_counted_by_size_and_truth() -> None:
    calibration = Calibration(1.0, 0.9, {COVID: 0.3, NON_COVID: 0.6})
    # p = 0.88: COVID alone; 0.5: NonCOVID alone; 0.62: neither; 0.018: NonCOVID alone.
    logit = np.array([2.0, 0.0, 0.5, -4.0, 2.0])
    label = np.array([1, 0, 1, 1, 0], np.int8)
    sets = prediction_sets("test", label, logit, calibration)
    assert (sets.single.count, sets.both.count, sets.empty.count) == (4, 0, 1)
    assert (sets.coverage.count, sets.coverage.total) == (2, 5)
    assert (sets.coverage_covid.count, sets.coverage_covid.total) == (1, 3)
    assert (sets.coverage_non_covid.count, sets.coverage_non_covid.total) == (1, 2)
    assert (sets.single_right.count, sets.single_right.total) == (2, 4)
    assert sets.stated == 0.9


def test_wide_sets_hold_both_labels() -> None:
    calibration = Calibration(1.0, 0.9, {COVID: 1.0, NON_COVID: 1.0})
    sets = prediction_sets("test", np.array([1, 0], np.int8), np.array([9.0, 9.0]), calibration)
    assert (sets.both.count, sets.single_right.total) == (2, 0)
    assert sets.single_right.value is None


def test_the_right_temperature_agrees_better() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, 5000)
    label = (rng.random(5000) < 1 / (1 + np.exp(-honest))).astype(np.int8)
    report = calibration_report("test", label, 3 * honest, Calibration(3.0, 0.9, {COVID: 1, NON_COVID: 1}))
    assert report.after.calibration_error < 0.03 < report.before.calibration_error
    assert report.after.log_loss < report.before.log_loss
    assert report.after.brier < report.before.brier


def test_a_logit_of_nought_costs_the_logarithm_of_two() -> None:
    report = calibration_report(
        "x", np.array([0, 1], np.int8), np.zeros(2), Calibration(2.0, 0.9, {COVID: 1, NON_COVID: 1})
    )
    assert report.before.log_loss == pytest.approx(np.log(2))
    assert report.before.brier == 0.25


def test_certain_and_wrong_is_finite() -> None:
    report = calibration_report(
        "x",
        np.array([0, 1], np.int8),
        np.array([900.0, -900.0]),
        Calibration(1.0, 0.9, {COVID: 1, NON_COVID: 1}),
    )
    assert np.isfinite(report.before.log_loss)
    assert report.before.brier == 1.0
