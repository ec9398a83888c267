"""Paired tests: do two networks that judged the same slices differ by more than chance?

DeLong's test compares AUCs and McNemar's the calls; both take slices for independent. Slices of one patient
are not, so a bootstrap over patients stands beside them. Holm's correction keeps the chance of one wrong
"better" among many comparisons below the level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, rankdata

from groundglass.evaluation.bootstrap import (
    LEVEL,
    MAX_UNDEFINED_SHARE,
    RESAMPLES,
    resample_patients,
    weighted_metrics,
)
from groundglass.evaluation.metrics import check_predictions

Draws = Mapping[str, NDArray[np.float64]]
"""By the measures' keys, the measure in every resample, shape (R,); NaN where it is undefined."""


@dataclass(frozen=True)
class AucTest:
    """DeLong's test of two AUCs.

    Attributes:
        first: AUC of the first network.
        second: AUC of the second.
        standard_error: of their difference.
        p: two-sided.
    """

    first: float
    second: float
    standard_error: float
    p: float

    @property
    def difference(self) -> float:
        """First less second."""
        return self.first - self.second


@dataclass(frozen=True)
class McNemarTest:
    """McNemar's test of two networks' calls.

    Attributes:
        first_only: slices that only the first network called rightly.
        second_only: slices that only the second called rightly.
        exact_p: two-sided, conditional on their sum; holds its level but is conservative.
        mid_p: two-sided mid-p, close to its level (Fagerland, Lydersen and Laake, BMC Medical Research
            Methodology 13:91, 2013).
    """

    first_only: int
    second_only: int
    exact_p: float
    mid_p: float


@dataclass(frozen=True)
class Difference:
    """A measure's difference between two networks under resampling of patients.

    Attributes:
        low: lower bound of the 95 % interval, None where too few resamples define the measure.
        high: upper bound.
        p: two-sided, from the share of resamples on the other side of 0; None without bounds.
    """

    low: float | None
    high: float | None
    p: float | None


def delong(
    label: NDArray[np.int8], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUCs of K networks on the same slices and their covariance.

    DeLong, DeLong and Clarke-Pearson (Biometrics 44:837, 1988) by the midranks of Sun and Xu (IEEE Signal
    Processing Letters 21:1389, 2014), which take N log N steps instead of a comparison of every pair.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,), at least two of each.
        score: logits or probabilities, higher for COVID, shape (K, N).

    Returns:
        AUCs, shape (K,), and their covariance, shape (K, K).

    Raises:
        ValueError: shapes do not fit, or a class has fewer than two slices.
    """
    positive = label == 1
    covid, other = int(positive.sum()), int((~positive).sum())
    if score.ndim != 2 or score.shape[1:] != label.shape:
        raise ValueError(f"score must be of shape (K, {len(label)}), not {score.shape}")
    if min(covid, other) < 2:
        raise ValueError(f"two slices of each class are needed, not {covid} COVID and {other} NonCOVID")
    rank = rankdata(score, axis=1)
    # The share of the other class that each slice beats; ties count half.
    beats = (rank[:, positive] - rankdata(score[:, positive], axis=1)) / other
    beaten = 1 - (rank[:, ~positive] - rankdata(score[:, ~positive], axis=1)) / covid
    covariance = np.atleast_2d(np.cov(beats)) / covid + np.atleast_2d(np.cov(beaten)) / other
    return beats.mean(axis=1), covariance


def delong_test(
    label: NDArray[np.int8], first: NDArray[np.float64], second: NDArray[np.float64]
) -> AucTest | None:
    """Test whether two AUCs on the same slices differ; None where a class has fewer than two slices.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        first: scores of the first network, shape (N,).
        second: scores of the second.
    """
    if min(np.sum(label == 1), np.sum(label == 0)) < 2:
        return None
    auc, covariance = delong(label, np.stack([first, second]))
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = float(np.sqrt(max(variance, 0.0)))
    difference = float(auc[0] - auc[1])
    # Two equal rankings leave rounding errors of the size of 1e-17 in both.
    if abs(difference) < 1e-12:
        return AucTest(float(auc[0]), float(auc[1]), error, 1.0)
    p = float(2 * norm.sf(abs(difference) / error)) if error > 1e-12 else 0.0
    return AucTest(float(auc[0]), float(auc[1]), error, p)


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> McNemarTest:
    """Test whether two networks are right equally often on the same slices.

    Args:
        first_right: which slices the first network called rightly, shape (N,).
        second_right: the same of the second.
    """
    first_only = int(np.sum(first_right & ~second_right))
    second_only = int(np.sum(~first_right & second_right))
    fewer, total = min(first_only, second_only), first_only + second_only
    if total == 0:
        return McNemarTest(0, 0, 1.0, 1.0)
    twice = 2 * float(binom.cdf(fewer, total, 0.5))
    exact = min(1.0, twice)
    return McNemarTest(first_only, second_only, exact, min(1.0, twice - float(binom.pmf(fewer, total, 0.5))))


def resampled_measures(
    label: NDArray[np.int8],
    probability: NDArray[np.float64],
    patient: NDArray[np.str_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Draws:
    """Every measure in every resample of the patients.

    The same patients and seed give the same resamples, so that two networks' draws are paired.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        probability: of COVID, 0 to 1, shape (N,).
        patient: id of each slice's patient, shape (N,).
        resamples: how many.
        seed: of the random generator.
    """
    check_predictions(label, probability)
    member = np.unique(patient, return_inverse=True)[1]
    blocks = [
        weighted_metrics(label, probability, weights)
        for weights in resample_patients(member, resamples, seed)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def paired_difference(first: NDArray[np.float64], second: NDArray[np.float64], patients: int) -> Difference:
    """Interval and p-value of a difference from paired draws.

    The interval holds the middle 95 % of the differences. p is twice the smaller share of differences at or
    beyond 0 on either side, the observed sample counted among the resamples, so that it is never 0.

    Args:
        first: a measure of the first network in every resample, shape (R,), NaN where undefined.
        second: the same of the second.
        patients: that were resampled; with fewer than two nothing can be said.
    """
    difference = first - second
    defined = difference[~np.isnan(difference)]
    if patients < 2 or len(difference) - len(defined) > MAX_UNDEFINED_SHARE * len(difference):
        return Difference(None, None, None)
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    # Sums of a few hundred shares differ in their last digits where they ought to be equal.
    tolerance = 1e-12
    smaller = min(int(np.sum(defined <= tolerance)), int(np.sum(defined >= -tolerance)))
    p = min(1.0, 2 * (smaller + 1) / (len(defined) + 1))
    return Difference(float(low), float(high), p)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6:65, 1979).

    Rejecting those at or below the level keeps the chance of any wrong rejection below it, whatever the
    dependence between the tests.

    Args:
        p: of each test; None for one that could not be made, which counts for nothing.
    """
    made = sorted((value, index) for index, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    highest = 0.0
    for step, (value, index) in enumerate(made):
        highest = max(highest, min(1.0, value * (len(made) - step)))
        corrected[index] = highest
    return corrected
