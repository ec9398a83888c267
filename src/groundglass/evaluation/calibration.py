"""How well probabilities agree with frequencies: reliability bins and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
