"""The measures of a two-class decision: the paper's four, specificity, and those of the probabilities.

COVID is the positive class (1), NonCOVID the negative (0). A measure that a part cannot answer, such as the
AUC of slices of one class, is None and comes with the reason.

How well probabilities agree with frequencies: reliability bins and the expected calibration error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from groundglass.errors import DataError

BINS = 10
"""Equal-width bins over the probability of COVID: [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of the reliability diagram.

    Attributes:
        low: smallest probability of the bin.
        high: upper edge, not part of the bin except in the last.
        count: slices in the bin.
        mean_probability: mean predicted probability of COVID, None where the bin is empty.
        observed: share of COVID among its slices, None where the bin is empty.
    """

    low: float
    high: float
    count: int
    mean_probability: float | None
    observed: float | None


def bin_index(probability: NDArray[np.float64], bins: int = BINS) -> NDArray[np.intp]:
    """The bin of each probability, shape as given, 0 to ``bins - 1``; 1.0 belongs to the last bin."""
    edges = np.arange(bins + 1) / bins
    return np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, bins - 1)


def reliability(
    label: NDArray[np.int8], probability: NDArray[np.float64], bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Mean probability and observed share of COVID in each bin.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        probability: of COVID, 0 to 1, shape (N,).
        bins: number of equal-width bins.
    """
    index = bin_index(probability, bins)
    edges = np.arange(bins + 1) / bins
    result = []
    for number in range(bins):
        inside = index == number
        count = int(inside.sum())
        result.append(
            ReliabilityBin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                count=count,
                mean_probability=float(probability[inside].mean()) if count else None,
                observed=float(label[inside].mean()) if count else None,
            )
        )
    return tuple(result)


def expected_calibration_error(
    label: NDArray[np.int8], probability: NDArray[np.float64], bins: int = BINS
) -> float:
    """Mean gap between probability and observed share of COVID over the bins, weighted by their slices.

    This is the expected calibration error of Naeini, Cooper and Hauskrecht (AAAI 2015) on the probability of
    the positive class. It depends on the bins and is biased upwards on few slices.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,), N at least 1.
        probability: of COVID, 0 to 1, shape (N,).
        bins: number of equal-width bins.
    """
    gap = sum(
        part.count * abs(part.mean_probability - part.observed)
        for part in reliability(label, probability, bins)
        if part.mean_probability is not None and part.observed is not None
    )
    return float(gap / len(label))


THRESHOLD = 0.5
"""A slice whose probability of COVID is at least this is called COVID."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
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
)
"""Every measure's key and its title, in the order in which they are reported everywhere."""

LOWER_IS_BETTER = frozenset({"brier", "calibration_error"})

NO_COVID = "no COVID slice in the part"
NO_NON_COVID = "no NonCOVID slice in the part"
NO_POSITIVE_CALL = "no slice was called COVID"


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

    @classmethod
    def of(cls, label: NDArray[np.int8], called: NDArray[np.bool_]) -> Confusion:
        """Count labels (N,) of 0 and 1 against calls (N,)."""
        positive = label == 1
        return cls(
            true_positive=int(np.sum(positive & called)),
            false_positive=int(np.sum(~positive & called)),
            true_negative=int(np.sum(~positive & ~called)),
            false_negative=int(np.sum(positive & ~called)),
        )


@dataclass(frozen=True)
class Metrics:
    """All measures of one set of predictions; iterates in the order of ``TITLES``.

    Attributes:
        accuracy: share of slices called rightly, (TP + TN) / all; equation 6 of Xu et al.
        precision: share of COVID calls that are right, TP / (TP + FP); equation 3 of Xu et al.
        recall: share of COVID slices called COVID, TP / (TP + FN); equation 4 of Xu et al.
        specificity: share of NonCOVID slices called NonCOVID, TN / (TN + FP).
        f1: harmonic mean of precision P and recall R, 2 P R / (R + P); equation 5 of Xu et al. Where COVID
            slices exist but none is called COVID, P is undefined and F1 is 0, the limit of its other form
            2 TP / (2 TP + FP + FN).
        auc: area under the ROC curve, the chance that a COVID slice gets a higher probability than a
            NonCOVID one.
        average_precision: mean precision over the steps of recall, without interpolation.
        brier: mean squared difference of probability and label, 0 best, 1 worst.
        calibration_error: expected calibration error over equal-width bins, see ``calibration``.
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


def compute_metrics(
    label: NDArray[np.int8], probability: NDArray[np.float64], threshold: float = THRESHOLD
) -> Metrics:
    """Measure predictions against labels.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,), N at least 1.
        probability: of COVID, 0 to 1, shape (N,).
        threshold: a slice is called COVID where ``probability >= threshold``.

    Raises:
        DataError: there is no slice.
        ValueError: shapes differ, a label is neither 0 nor 1, or a probability is not within 0 to 1.
    """
    check_predictions(label, probability)
    called = probability >= threshold
    has_covid, has_other = bool(np.any(label == 1)), bool(np.any(label == 0))
    return Metrics(
        **_decisions(label, called, has_covid, has_other),
        **_rankings(label, probability, has_covid, has_other),
        confusion=Confusion.of(label, called),
    )


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


def _decisions(
    label: NDArray[np.int8], called: NDArray[np.bool_], has_covid: bool, has_other: bool
) -> dict[str, Metric]:
    precision = Metric(None, NO_POSITIVE_CALL)
    if called.any():
        precision = Metric(float(sklearn.precision_score(label, called)))
    recall = f1 = Metric(None, NO_COVID)
    if has_covid:
        recall = Metric(float(sklearn.recall_score(label, called)))
        f1 = Metric(float(sklearn.f1_score(label, called)))
    specificity = Metric(None, NO_NON_COVID)
    if has_other:
        specificity = Metric(float(sklearn.recall_score(label, called, pos_label=0)))
    return {
        "accuracy": Metric(float(sklearn.accuracy_score(label, called))),
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
    }


def _rankings(
    label: NDArray[np.int8], probability: NDArray[np.float64], has_covid: bool, has_other: bool
) -> dict[str, Metric]:
    auc = Metric(None, NO_NON_COVID if has_covid else NO_COVID)
    if has_covid and has_other:
        auc = Metric(float(sklearn.roc_auc_score(label, probability)))
    average_precision = Metric(None, NO_COVID)
    if has_covid:
        average_precision = Metric(float(sklearn.average_precision_score(label, probability)))
    return {
        "auc": auc,
        "average_precision": average_precision,
        "brier": Metric(float(np.mean((probability - label) ** 2))),
        "calibration_error": Metric(expected_calibration_error(label, probability)),
    }
