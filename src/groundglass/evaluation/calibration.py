"""The figures of one part in summary, as a bundle carries them.

What calibration and prediction sets are worth on slices that neither was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.bootstrap import LEVEL, RESAMPLES, Proportion, bootstrap
from groundglass.evaluation.metrics import compute_metrics, expected_calibration_error
from groundglass.evaluation.part import Part
from groundglass.inference.calibration import Calibration
from groundglass.inference.prediction import COVID, NON_COVID, UNCERTAIN


@dataclass(frozen=True)
class Agreement:
    """How probabilities agree with what is true.

    Attributes:
        calibration_error: expected calibration error in ten bins.
        brier: mean squared error.
        log_loss: mean negative log likelihood, natural logarithm.
    """

    calibration_error: float
    brier: float
    log_loss: float


@dataclass(frozen=True)
class CalibrationReport:
    """Agreement before and after the logit is divided by the temperature.

    Attributes:
        part: of the data set.
        slices: how many.
        temperature: that was fitted.
        before: with a temperature of 1.
        after: with the fitted one.
    """

    part: str
    slices: int
    temperature: float
    before: Agreement
    after: Agreement


@dataclass(frozen=True)
class PredictionSets:
    """Coverage and size of prediction sets.

    Attributes:
        part: of the data set.
        stated: coverage that is promised, for each label.
        coverage: of all slices.
        coverage_covid: of COVID slices.
        coverage_non_covid: of NonCOVID slices.
        single: sets of one label.
        both: sets of both labels, reported as uncertain.
        empty: sets of no label, reported as uncertain.
        single_right: of the sets of one label, those that hold the true one.
    """

    part: str
    stated: float
    coverage: Proportion
    coverage_covid: Proportion
    coverage_non_covid: Proportion
    single: Proportion
    both: Proportion
    empty: Proportion
    single_right: Proportion


def calibration_report(
    part: str, label: NDArray[np.int8], logit: NDArray[np.float64], calibration: Calibration
) -> CalibrationReport:
    """Measure agreement.

    Args:
        part: its name.
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        logit: before calibration, shape (N,).
        calibration: whose temperature is measured.
    """
    before, after = _agreement(label, logit), _agreement(label, logit / calibration.temperature)
    return CalibrationReport(part, len(label), calibration.temperature, before, after)


def prediction_sets(
    part: str, label: NDArray[np.int8], logit: NDArray[np.float64], calibration: Calibration
) -> PredictionSets:
    """Measure prediction sets; arguments as for :func:`calibration_report`."""
    sets = [calibration.prediction_set(calibration.probability(float(value))) for value in logit]
    truth = [COVID if value == 1 else NON_COVID for value in label]
    held = np.array([name in each for name, each in zip(truth, sets, strict=True)], np.bool_)
    size = np.array([len(each) for each in sets])
    return PredictionSets(
        part,
        calibration.coverage,
        Proportion.of(held),
        Proportion.of(held[label == 1]),
        Proportion.of(held[label == 0]),
        Proportion.of(size == 1),
        Proportion.of(size == 2),
        Proportion.of(size == 0),
        Proportion.of(held[size == 1]),
    )


def _agreement(label: NDArray[np.int8], logit: NDArray[np.float64]) -> Agreement:
    probability = np.exp(-np.logaddexp(0, -logit))
    signed = np.where(label == 1, logit, -logit)
    return Agreement(
        expected_calibration_error(label, probability),
        float(np.mean((probability - label) ** 2)),
        float(np.mean(np.logaddexp(0, -signed))),
    )


def summary(part: Part, logit: NDArray[np.float32], calibration: Calibration) -> dict[str, Any]:
    """Measures of calibrated probabilities with intervals, and what the prediction sets are worth.

    Args:
        part: the slices.
        logit: of COVID, shape (N,).
        calibration: from logit to probability and prediction set.
    """
    probability = np.array([calibration.probability(float(value)) for value in logit])
    intervals = bootstrap(part.label, probability, part.patient, resamples=RESAMPLES)
    return {
        "slices": len(part.records),
        "covid": int(part.label.sum()),
        "patients": intervals.patients,
        "metrics": {
            name: {
                "value": metric.value,
                "low": intervals.intervals[name].low,
                "high": intervals.intervals[name].high,
            }
            for name, metric in compute_metrics(part.label, probability)
        },
        "interval": {"level": LEVEL, "method": "percentile bootstrap over patients", "resamples": RESAMPLES},
        "prediction_sets": _prediction_sets(part.label, probability, calibration),
    }


def _prediction_sets(
    label: NDArray[np.int8], probability: NDArray[np.float64], calibration: Calibration
) -> dict[str, Any]:
    sets = [calibration.prediction_set(float(value)) for value in probability]
    truth = [COVID if value else NON_COVID for value in label]
    held = np.array([name in each for name, each in zip(truth, sets, strict=True)])
    called = [calibration.label(each) for each in sets]
    certain = np.array([name != UNCERTAIN for name in called])
    right = np.array([name == true for name, true in zip(called, truth, strict=True)])
    return {
        "stated_coverage": calibration.coverage,
        "coverage": {COVID: _share(held[label == 1]), NON_COVID: _share(held[label == 0])},
        "uncertain": _share(~certain),
        "accuracy_where_certain": _share(right[certain]),
    }


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
