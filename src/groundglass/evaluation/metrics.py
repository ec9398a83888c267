"""The measures of a two-class decision: the paper's four, specificity, and those of the probabilities.

COVID is the positive class (1), NonCOVID the negative (0). A measure that a part cannot answer, such as the
AUC of slices of one class, is None and comes with the reason.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from importlib.metadata import version
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from groundglass import __version__
from groundglass.errors import DataError

THRESHOLD = 0.5
"""A slice whose probability of COVID is at least this is called COVID."""

BINS = 10
"""Equal-width bins over the probability of COVID: [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""

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

_NO_COVID = "no COVID slice in the part"
_NO_NON_COVID = "no NonCOVID slice in the part"
_NO_POSITIVE_CALL = "no slice was called COVID"


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
        calibration_error: expected calibration error, see :func:`expected_calibration_error`.
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
    confusion = Confusion.of(label, probability >= THRESHOLD)
    tp, fp, tn, fn = astuple(confusion)
    covid, other = tp + fn, tn + fp
    auc = Metric(None, _NO_NON_COVID if covid else _NO_COVID)
    if covid and other:
        auc = Metric(float(sklearn.roc_auc_score(label, probability)))
    average_precision = f1 = Metric(None, _NO_COVID)
    if covid:
        average_precision = Metric(float(sklearn.average_precision_score(label, probability)))
        f1 = Metric(2 * tp / (2 * tp + fp + fn))
    return Metrics(
        accuracy=Metric((tp + tn) / len(label)),
        precision=_ratio(tp, tp + fp, _NO_POSITIVE_CALL),
        recall=_ratio(tp, covid, _NO_COVID),
        specificity=_ratio(tn, other, _NO_NON_COVID),
        f1=f1,
        auc=auc,
        average_precision=average_precision,
        brier=Metric(float(np.mean((probability - label) ** 2))),
        calibration_error=Metric(expected_calibration_error(label, probability)),
        confusion=confusion,
    )


def _ratio(above: int, below: int, reason: str) -> Metric:
    return Metric(above / below) if below else Metric(None, reason)


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


def expected_calibration_error(label: NDArray[np.int8], probability: NDArray[np.float64]) -> float:
    """Mean gap between probability and observed share of COVID over the bins, weighted by their slices.

    This is the expected calibration error of Naeini, Cooper and Hauskrecht (AAAI 2015) on the probability of
    the positive class. It depends on the bins and is biased upwards on few slices.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,), N at least 1.
        probability: of COVID, 0 to 1, shape (N,).
    """
    gap = np.bincount(bin_index(probability), probability - label, BINS)
    return float(np.abs(gap).sum() / len(label))


def versions() -> dict[str, str]:
    """Versions of what computes the figures: this package, Python, and the packages that they depend on."""
    packages = ("numpy", "scikit-learn", "opencv-python-headless")
    return {
        "groundglass": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
