"""A share of independent cases, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

LEVEL = 0.95


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
        interval = binomtest(count, total).proportion_ci(LEVEL, "wilson")
        return cls(count, total, count / total, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "–"
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f}–{100 * self.high:.1f})"
