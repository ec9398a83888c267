"""The measures of a two-class decision: the paper's four, specificity, and those of the probabilities.

COVID is the positive class (1), NonCOVID the negative (0). A measure that a part cannot answer, such as the
AUC of slices of one class, is None and comes with the reason.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from groundglass import __version__

THRESHOLD = 0.5
"""A slice whose probability of COVID is at least this is called COVID."""

BINS = 10
"""Equal-width bins over the probability of COVID: [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""

TITLES: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall (sensitivity)",
    "specificity": "Specificity",
    "f1": "F1",
    "auc": "AUC (ROC)",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "calibration_error": f"Calibration error ({BINS} bins)",
}
"""Every measure's key and its title, in the order in which they are reported everywhere.

Precision, recall, F1 and accuracy are equations 3 to 6 of Xu et al.; F1 is 2 TP / (2 TP + FP + FN), which is 0
where COVID slices exist but none is called COVID. The average precision is the mean precision over the steps of
recall, without interpolation; the Brier score the mean squared difference of probability and label, 0 best. The
calibration error is the mean gap between probability and observed share of COVID over ``BINS`` bins, weighted by
their slices (Naeini, Cooper and Hauskrecht, AAAI 2015, for the positive class); it is biased upwards on few slices.
"""

LOWER_IS_BETTER = frozenset({"brier", "calibration_error"})


@dataclass(frozen=True)
class Estimate:
    """A measure or a share of slices, with its 95 % interval under resampling of patients.

    ``reason`` says why there is no value, ``interval_reason`` why there are no bounds; resamples in which the measure
    is undefined are left out of the interval.
    """

    value: float | None
    reason: str | None = None
    low: float | None = None
    high: float | None = None
    undefined_resamples: int = 0
    interval_reason: str | None = None

    def __str__(self) -> str:
        """``0.812 (0.700–0.901)``, without bounds that are not known, and a dash for no value."""
        if self.value is None:
            return "–"
        to = " to " if (self.low or 0) < 0 else "–"
        bounds = "" if self.low is None else f" ({self.low:.3f}{to}{self.high:.3f})"
        return f"{self.value:.3f}{bounds}".replace("-", "−")

    def bounds(self) -> dict[str, float | None]:
        """``value``, ``low`` and ``high``."""
        return {"value": self.value, "low": self.low, "high": self.high}


def confusion(label: NDArray[np.int8], probability: NDArray[np.float64]) -> dict[str, int]:
    """Counts of slices, positive meaning COVID; arguments as of :func:`compute_metrics`."""
    positive, called = label == 1, probability >= THRESHOLD
    return {
        "true_positive": int((positive & called).sum()),
        "false_positive": int((~positive & called).sum()),
        "true_negative": int((~positive & ~called).sum()),
        "false_negative": int((positive & ~called).sum()),
    }


def compute_metrics(label: NDArray[np.int8], probability: NDArray[np.float64]) -> dict[str, Estimate]:
    """Measure predictions against labels, without intervals.

    ``label`` is 1 for COVID and 0 for NonCOVID, ``probability`` that of COVID, 0 to 1 or a ValueError, shape (N,)
    each, N at least 1.
    """
    if not ((probability >= 0) & (probability <= 1)).all():  # also false for NaN
        raise ValueError("probabilities must lie within 0 and 1")
    no_covid, no_other = "no COVID slice in the part", "no NonCOVID slice in the part"
    reasons = {
        "precision": "no slice was called COVID",
        "specificity": no_other,
        "auc": no_other if label.any() else no_covid,
    }
    values = weighted_metrics(label, probability, np.ones((1, len(label))))
    return {
        name: Estimate(None, reasons.get(name, no_covid)) if np.isnan(value) else Estimate(float(value))
        for name, (value,) in values.items()
    }


def weighted_metrics(
    label: NDArray[np.int8], probability: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Every measure under many weightings of the slices at once.

    ``weights``, shape (R, N), say how often each slice counts, at least 0, no row all 0; the others are as of
    :func:`compute_metrics`. By the measures' keys, shape (R,); NaN where the measure is undefined.
    """
    positive, called = label == 1, probability >= THRESHOLD
    total = weights.sum(axis=1)
    tp, fp = weights @ (positive & called), weights @ (~positive & called)
    tn, fn = weights @ (~positive & ~called), weights @ (positive & ~called)
    covid, other = ranked(positive, probability, weights)
    covid_step, other_step = (np.diff(each, axis=1, prepend=0.0) for each in (covid, other))
    # A NonCOVID slice is beaten by all COVID slices above it and by half of those it is tied with.
    beaten = np.sum(other_step * (covid - 0.5 * covid_step), axis=1)
    precise = np.sum(covid_step * np.nan_to_num(_ratio(covid, covid + other)), axis=1)
    gap = (probability - label)[:, None] * (_bin_index(probability)[:, None] == np.arange(BINS))
    return {
        "accuracy": (tp + tn) / total,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        "auc": _ratio(beaten, covid[:, -1] * other[:, -1]),
        "average_precision": _ratio(precise, covid[:, -1]),
        "brier": weights @ (probability - label) ** 2 / total,
        "calibration_error": np.abs(weights @ gap).sum(axis=1) / total,
    }


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def ranked(
    positive: NDArray[np.bool_], probability: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COVID and other slices at and above each step of the ranking, (R, S) each; equal probabilities are one step."""
    order = np.argsort(-probability, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    covid = np.cumsum(weights[:, order] * positive[order], axis=1)[:, ends]
    other = np.cumsum(weights[:, order] * ~positive[order], axis=1)[:, ends]
    return covid, other


def _bin_index(probability: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bin of each probability, 0 to ``BINS - 1``; 1.0 belongs to the last bin."""
    return np.digitize(probability, np.arange(1, BINS) / BINS)


def reliability(label: NDArray[np.int8], probability: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Of each bin its edges, slices (``count``), mean probability and observed share of COVID, None without slices.

    ``observed_low`` and ``observed_high`` are Wilson's 95 % binomial interval of that share, for which slices count
    as independent. Arguments as of :func:`compute_metrics`.
    """
    index, bins = _bin_index(probability), []
    for number in range(BINS):
        inside = index == number
        count, covid = int(inside.sum()), int(label[inside].sum())
        measured = dict.fromkeys(("mean_probability", "observed", "observed_low", "observed_high"), None)
        if count:
            low, high = binomtest(covid, count).proportion_ci(0.95, "wilson")
            values = float(probability[inside].mean()), covid / count, float(low), float(high)
            measured = dict(zip(measured, values, strict=True))
        bins.append({"low": number / BINS, "high": (number + 1) / BINS, "count": count, **measured})
    return bins


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package, of Python, and of these packages, by default those that figures depend on."""
    names = packages or ("numpy", "scikit-learn", "opencv-python-headless")
    return {"groundglass": __version__, "python": platform.python_version()} | {name: version(name) for name in names}


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
