"""The figures of one part in brief, as a bundle carries them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.part import Part
from groundglass.inference.finding import COVID, NON_COVID, UNCERTAIN
from groundglass.inference.trust import Calibration


def brief(part: Part, logit: NDArray[np.float32], calibration: Calibration) -> dict[str, Any]:
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
