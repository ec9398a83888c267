"""The measures of a two-class decision: the paper's four, specificity, and those of the probabilities.

COVID is the positive class (1), NonCOVID the negative (0). A measure that a part cannot answer, such as the
AUC of slices of one class, is None and comes with the reason.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from groundglass import __version__
from groundglass.errors import DataError

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
"""Every measure's key and its title, in the order in which they are reported everywhere."""

LOWER_IS_BETTER = frozenset({"brier", "calibration_error"})

_NO_COVID = "no COVID slice in the part"
_NO_NON_COVID = "no NonCOVID slice in the part"


@dataclass(frozen=True)
class Metric:
    """One measure: a value, or None and the reason why there is none."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Confusion:
    """Counts of slices; positive means COVID."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int


@dataclass(frozen=True)
class Metrics:
    """All measures of one set of predictions; iterates in the order of ``TITLES``.

    Attributes:
        accuracy: (TP + TN) / all; equation 6 of Xu et al.
        precision: TP / (TP + FP); equation 3 of Xu et al.
        recall: TP / (TP + FN); equation 4 of Xu et al.
        specificity: TN / (TN + FP).
        f1: 2 TP / (2 TP + FP + FN), equation 5 of Xu et al. in the form that is 0 where COVID slices exist but
            none is called COVID.
        auc: area under the ROC curve.
        average_precision: mean precision over the steps of recall, without interpolation.
        brier: mean squared difference of probability and label, 0 best, 1 worst.
        calibration_error: mean gap between probability and observed share of COVID over ``BINS`` bins, weighted
            by their slices: the expected calibration error of Naeini, Cooper and Hauskrecht (AAAI 2015) for
            the positive class. It depends on the bins and is biased upwards on few slices.
        confusion: the counts behind them.
    """

    accuracy: Metric
    precision: Metric
    recall: Metric
    specificity: Metric
    f1: Metric
    auc: Metric
    average_precision: Metric
    brier: Metric
    calibration_error: Metric
    confusion: Confusion

    def __iter__(self) -> Iterator[tuple[str, Metric]]:
        return ((name, getattr(self, name)) for name in TITLES)

    def values(self) -> dict[str, float | None]:
        """Each measure's value by its key, in the order of ``TITLES``."""
        return {name: metric.value for name, metric in self}


def compute_metrics(label: NDArray[np.int8], probability: NDArray[np.float64]) -> Metrics:
    """Measure predictions against labels.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,), N at least 1.
        probability: of COVID, 0 to 1, shape (N,).

    Raises:
        DataError: there is no slice.
        ValueError: shapes differ, a label is neither 0 nor 1, or a probability is not within 0 to 1.
    """
    check_predictions(label, probability)
    positive, called = label == 1, probability >= THRESHOLD
    tp, fp = int(np.sum(positive & called)), int(np.sum(~positive & called))
    tn, fn = int(np.sum(~positive & ~called)), int(np.sum(positive & ~called))
    reasons = {
        "precision": "no slice was called COVID",
        "specificity": _NO_NON_COVID,
        "auc": _NO_NON_COVID if positive.any() else _NO_COVID,
    }
    values = weighted_metrics(label, probability, np.ones((1, len(label))))
    measured = {
        name: Metric(None, reasons.get(name, _NO_COVID)) if np.isnan(value) else Metric(float(value))
        for name, (value,) in values.items()
    }
    return Metrics(confusion=Confusion(tp, fp, tn, fn), **measured)


def weighted_metrics(
    label: NDArray[np.int8], probability: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Every measure under many weightings of the slices at once.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        probability: of COVID, 0 to 1, shape (N,).
        weights: how often each slice counts, shape (R, N), at least 0, no row all 0.

    Returns:
        By the measures' keys, shape (R,); NaN where the measure is undefined.
    """
    positive, called = label == 1, probability >= THRESHOLD
    total = weights.sum(axis=1)
    tp, fp = weights @ (positive & called), weights @ (~positive & called)
    tn, fn = weights @ (~positive & ~called), weights @ (positive & ~called)
    auc, average_precision = _weighted_rankings(positive, probability, weights)
    gap = (probability - label)[:, None] * (bin_index(probability)[:, None] == np.arange(BINS))
    return {
        "accuracy": (tp + tn) / total,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        "auc": auc,
        "average_precision": average_precision,
        "brier": weights @ (probability - label) ** 2 / total,
        "calibration_error": np.abs(weights @ gap).sum(axis=1) / total,
    }


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _weighted_rankings(
    positive: NDArray[np.bool_], probability: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC and average precision, each (R,); slices of equal probability make one step of the curve."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    covid = np.cumsum(weights[:, order] * positive[order], axis=1)[:, ends]
    other = np.cumsum(weights[:, order] * ~positive[order], axis=1)[:, ends]
    covid_step = np.diff(covid, axis=1, prepend=0.0)
    other_step = np.diff(other, axis=1, prepend=0.0)
    # A NonCOVID slice is beaten by all COVID slices above it and by half of those it is tied with.
    beaten = np.sum(other_step * (covid - 0.5 * covid_step), axis=1)
    auc = _ratio(beaten, covid[:, -1] * other[:, -1])
    precision = np.nan_to_num(_ratio(covid, covid + other))
    average_precision = _ratio(np.sum(covid_step * precision, axis=1), covid[:, -1])
    return auc, average_precision


def check_predictions(label: NDArray[np.int8], probability: NDArray[np.float64]) -> None:
    """Raise what ``compute_metrics`` documents unless labels and probabilities can be measured."""
    if label.ndim != 1 or label.shape != probability.shape:
        raise ValueError(f"label and probability must be (N,), not {label.shape} and {probability.shape}")
    if not len(label):
        raise DataError("there is no slice to evaluate")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must be 1 (COVID) or 0 (NonCOVID)")
    if not ((probability >= 0) & (probability <= 1)).all():  # also false for NaN
        raise ValueError("probabilities must lie within 0 and 1")


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin: its edges, its slices, their mean probability and share of COVID (None without slices)."""

    low: float
    high: float
    count: int
    mean_probability: float | None
    observed: float | None


def bin_index(probability: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bin of each probability, shape as given, 0 to ``BINS - 1``; 1.0 belongs to the last bin."""
    edges = np.arange(BINS + 1) / BINS
    return np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, BINS - 1)


def reliability(label: NDArray[np.int8], probability: NDArray[np.float64]) -> tuple[ReliabilityBin, ...]:
    """Mean probability and observed share of COVID in each of the ``BINS`` bins.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        probability: of COVID, 0 to 1, shape (N,).
    """
    index = bin_index(probability)
    bins = []
    for number in range(BINS):
        inside = index == number
        count = int(inside.sum())
        mean = float(probability[inside].mean()) if count else None
        observed = float(label[inside].mean()) if count else None
        bins.append(ReliabilityBin(number / BINS, (number + 1) / BINS, count, mean, observed))
    return tuple(bins)


def versions() -> dict[str, str]:
    """Versions of what computes the figures: this package, Python, and the packages that they depend on."""
    packages = ("numpy", "scikit-learn", "opencv-python-headless")
    return {
        "groundglass": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
