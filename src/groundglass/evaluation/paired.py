"""Paired tests: do two networks that were evaluated on the same slices differ by more than chance?

DeLong's test compares AUCs and McNemar's the calls; both take slices for independent. Slices of one patient
are not, so a bootstrap over patients stands beside them. Holm's correction keeps the chance of one wrong
"better" among many comparisons below the level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, rankdata

from groundglass.evaluation.bootstrap import RESAMPLES, with_interval
from groundglass.evaluation.metrics import THRESHOLD, Estimate

ALPHA = 0.05
"""A difference is shown where its corrected p-value is below this."""

# Sums of a few hundred shares, and equal rankings, differ in their last digits where they ought to be equal.
_EQUAL = 1e-12


def delong_test(
    label: NDArray[np.int8], first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """AUC of the first network less that of the second, and the two-sided p of DeLong's test.

    DeLong, DeLong and Clarke-Pearson (Biometrics 44:837, 1988) by the midranks of Sun and Xu (IEEE Signal
    Processing Letters 21:1389, 2014), which take N log N steps instead of a comparison of every pair. None where a
    class has fewer than two slices; p alone where a difference has no variance. ``label`` is 1 for COVID and 0 for
    NonCOVID, shape (N,); the networks' logits or probabilities are higher for COVID.
    """
    positive, score = label == 1, np.stack([first, second])
    covid, other = int(positive.sum()), int((~positive).sum())
    if min(covid, other) < 2:
        return None, None
    rank = rankdata(score, axis=1)
    # The share of the other class that each slice beats; ties count half.
    beats = (rank[:, positive] - rankdata(score[:, positive], axis=1)) / other
    beaten = 1 - (rank[:, ~positive] - rankdata(score[:, ~positive], axis=1)) / covid
    auc, covariance = beats.mean(axis=1), np.cov(beats) / covid + np.cov(beaten) / other
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error, difference = float(np.sqrt(max(variance, 0.0))), float(auc[0] - auc[1])
    if abs(difference) < _EQUAL:
        return difference, 1.0
    return difference, float(2 * norm.sf(abs(difference) / error)) if error > _EQUAL else None


def mcnemar_test(
    label: NDArray[np.int8], first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[float, float]:
    """Accuracy of the first network less that of the second, and the two-sided mid-p of McNemar's test.

    It is close to its level (Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013). ``label``
    is 1 for COVID and 0 for NonCOVID, the networks' probabilities are of COVID, shape (N,) each.
    """
    one, other = ((probability >= THRESHOLD) == (label == 1) for probability in (first, second))
    alone = int((one & ~other).sum()), int((~one & other).sum())
    fewer, total = min(alone), sum(alone)
    p = min(1.0, 2 * float(binom.cdf(fewer, total, 0.5)) - float(binom.pmf(fewer, total, 0.5)))
    return float(one.mean() - other.mean()), p


PAIRED_TESTS = {"auc": delong_test, "accuracy": mcnemar_test}
"""By the measures that are compared, what takes slices for independent."""


def paired_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], patients: int
) -> tuple[float, float, float] | tuple[None, None, None]:
    """95 % interval and two-sided p of a difference between two networks; None where nothing can be said.

    p is twice the smaller share of differences at or beyond 0 on either side, the observed sample counted among the
    resamples, so that it is never 0. Both are the measure in every one of the same resamples, shape (R,), NaN where
    undefined, see :meth:`groundglass.evaluation.bootstrap.Resampling.draws`; with fewer than two ``patients`` nothing
    can be said.
    """
    difference = first - second
    interval = with_interval(Estimate(None), difference, patients)
    if interval.low is None or interval.high is None:
        return None, None, None
    defined = difference[~np.isnan(difference)]
    smaller = min(int(np.sum(defined <= _EQUAL)), int(np.sum(defined >= -_EQUAL)))
    return interval.low, interval.high, min(1.0, 2 * (smaller + 1) / (len(defined) + 1))


def resamples_for(comparisons: int) -> int:
    """Resamples with which a family of so many comparisons can show a difference.

    The smallest p-value that R resamples can give is 2 / (R + 1), and Holm's correction multiplies it by the
    number of comparisons. It is kept at a tenth of ``ALPHA``, so that p-values near ``ALPHA`` are
    not decided by a handful of resamples.
    """
    return max(RESAMPLES, math.ceil(10 * 2 * comparisons / ALPHA))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6:65, 1979).

    Rejecting those at or below the level keeps the chance of any wrong rejection below it, whatever the
    dependence between the tests. None, a test that could not be made, counts for nothing.
    """
    made = sorted((value, index) for index, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    highest = 0.0
    for step, (value, index) in enumerate(made):
        highest = max(highest, min(1.0, value * (len(made) - step)))
        corrected[index] = highest
    return corrected
