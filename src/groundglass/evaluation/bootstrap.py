"""A share of independent cases, with its interval.

95 % intervals by a bootstrap over patients.

Slices of one patient resemble each other, so that resampling slices would promise too much certainty. Here
patients are drawn with replacement, as many as there are, each with all of their slices. The interval is the
percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): the 2.5th and
97.5th percentile of a measure over the resamples. A resample in which a measure is undefined, such as one
without a COVID slice for the AUC, is left out of that measure's percentiles and counted.

The calibration error of a resample is biased upwards against that of the part itself, so its interval tends
to lie high and may not even hold the part's own value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from groundglass.evaluation.metrics import BINS, THRESHOLD, TITLES, bin_index, check_predictions

RESAMPLES = 2000
LEVEL = 0.95

MAX_UNDEFINED_SHARE = 0.5
"""With more undefined resamples than this share, percentiles of the rest would describe another question."""

_CELLS = 4_000_000
"""Resamples are worked off in blocks of about this many weights, which bounds memory to some 200 MB."""

_Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Bounds of one measure, or None and the reason why there are none.

    Attributes:
        low: lower bound.
        high: upper bound.
        undefined: resamples in which the measure is undefined.
        reason: why there are no bounds.
    """

    low: float | None
    high: float | None
    undefined: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of all measures.

    Attributes:
        intervals: by the measures' keys, in the order of ``TITLES``.
        patients: patients resampled.
        resamples: resamples drawn.
        one_class: resamples whose slices were all COVID or all NonCOVID.
        seed: of the random generator.
    """

    intervals: Mapping[str, Interval]
    patients: int
    resamples: int
    one_class: int
    seed: int


def bootstrap(
    label: NDArray[np.int8],
    probability: NDArray[np.float64],
    patient: NDArray[np.str_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    threshold: float = THRESHOLD,
) -> Bootstrap:
    """Intervals of every measure by resampling patients.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,), N at least 1.
        probability: of COVID, 0 to 1, shape (N,).
        patient: id of each slice's patient, shape (N,).
        resamples: number of resamples, at least 1.
        seed: of the random generator; equal seeds give equal intervals.
        threshold: a slice is called COVID where ``probability >= threshold``.

    Raises:
        DataError: there is no slice.
        ValueError: arrays do not fit each other, or ``resamples`` is less than 1.
    """
    check_predictions(label, probability)
    if patient.shape != label.shape:
        raise ValueError(f"patient must be of shape {label.shape}, not {patient.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    member = np.unique(patient, return_inverse=True)[1]
    patients = int(member.max()) + 1
    draws, one_class = [], 0
    for weights in resample_patients(member, resamples, seed):
        draws.append(weighted_metrics(label, probability, weights, threshold))
        covid = weights @ (label == 1)
        one_class += int(np.sum((covid == 0) | (covid == weights.sum(axis=1))))
    intervals = {
        name: _percentiles(np.concatenate([draw[name] for draw in draws]), patients) for name in TITLES
    }
    return Bootstrap(intervals, patients, resamples, one_class, seed)


def resample_patients(member: NDArray[np.intp], resamples: int, seed: int) -> Iterator[_Weights]:
    """Blocks of resamples: how often each slice counts, shape (block, N), from each slice's patient (N,)."""
    patients = int(member.max()) + 1
    chance = np.full(patients, 1.0 / patients)
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // len(member))
    for start in range(0, resamples, block):
        times = generator.multinomial(patients, chance, size=min(block, resamples - start))
        yield times[:, member].astype(np.float64)


def _percentiles(draws: NDArray[np.float64], patients: int) -> Interval:
    defined = draws[~np.isnan(draws)]
    undefined = len(draws) - len(defined)
    if patients < 2:
        return Interval(None, None, undefined, "one patient only: patients cannot be resampled")
    if undefined > MAX_UNDEFINED_SHARE * len(draws):
        return Interval(None, None, undefined, f"undefined in {undefined} of {len(draws)} resamples")
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(low), float(high), undefined)


def weighted_metrics(
    label: NDArray[np.int8],
    probability: NDArray[np.float64],
    weights: _Weights,
    threshold: float = THRESHOLD,
) -> dict[str, NDArray[np.float64]]:
    """Every measure under many weightings of the slices at once.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        probability: of COVID, 0 to 1, shape (N,).
        weights: how often each slice counts, shape (R, N), at least 0, no row all 0.
        threshold: a slice is called COVID where ``probability >= threshold``.

    Returns:
        By the measures' keys, shape (R,); NaN where the measure is undefined.
    """
    positive, called = label == 1, probability >= threshold
    total = weights.sum(axis=1)
    tp, fp = weights @ (positive & called), weights @ (~positive & called)
    tn, fn = weights @ (~positive & ~called), weights @ (positive & ~called)
    auc, average_precision = _weighted_rankings(positive, probability, weights)
    return {
        "accuracy": (tp + tn) / total,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        "auc": auc,
        "average_precision": average_precision,
        "brier": weights @ (probability - label) ** 2 / total,
        "calibration_error": _weighted_calibration_error(label, probability, weights) / total,
    }


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _weighted_rankings(
    positive: NDArray[np.bool_], probability: NDArray[np.float64], weights: _Weights
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


def _weighted_calibration_error(
    label: NDArray[np.int8], probability: NDArray[np.float64], weights: _Weights
) -> NDArray[np.float64]:
    """Sum over bins of the weight times the gap, shape (R,)."""
    gap = (probability - label)[:, None] * (bin_index(probability)[:, None] == np.arange(BINS))
    total: NDArray[np.float64] = np.abs(weights @ gap).sum(axis=1)
    return total


LEVEL_PROPORTION = 0.95


@dataclass(frozen=True)
class Proportion:
    """A share and its 95 % interval.

    The interval is Wilson's (E. B. Wilson, Probable inference, the law of succession, and statistical
    inference, JASA 22, 1927). It takes cases for independent; slices of one patient are not quite.

    Attributes:
        count: cases in which it holds.
        total: cases.
        value: their share, None where there is no case.
        low: lower bound, likewise.
        high: upper bound, likewise.
    """

    count: int
    total: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, holds: NDArray[np.bool_]) -> Proportion:
        """The share of True among N cases, shape (N,)."""
        count, total = int(np.sum(holds)), len(holds)
        if total == 0:
            return cls(0, 0, None, None, None)
        interval = binomtest(count, total).proportion_ci(LEVEL_PROPORTION, "wilson")
        return cls(count, total, count / total, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "–"
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f}–{100 * self.high:.1f})"
