"""From logit to probability, prediction set and label: temperature scaling and conformal prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from groundglass.imaging.crop import Section

COVID, NON_COVID, UNCERTAIN = "COVID", "NonCOVID", "uncertain"

MUCH_OPACITY = 20.0
"""Percent of the lungs. Of sixteen validation slices that were labelled NonCOVID with more of it, three were COVID."""

_SHARE, _LEAST = 0.2, 3
_Label = Annotated[str, Field(pattern="^(COVID|NonCOVID)$")]
_Share = Annotated[float, Field(ge=0, le=1)]


class Conformal(Section):
    """From a number between 0 and 1 that speaks for COVID to a prediction set and a label."""

    # share, of each label, whose prediction set holds the true label, as fitted
    coverage: float = Field(gt=0, lt=1)
    # for each label, the largest nonconformity 1 - p(label) with which it stays in the set
    quantiles: dict[_Label, _Share] = Field(min_length=2)

    def prediction_set(self, probability: float) -> tuple[str, ...]:
        """The labels that cannot be ruled out; empty where neither fits."""
        nonconformity = {COVID: 1 - probability, NON_COVID: probability}
        return tuple(label for label, value in nonconformity.items() if value <= self.quantiles[label])

    def label(self, prediction_set: tuple[str, ...]) -> str:
        """The one label of the set, or ``uncertain`` where it holds both or none."""
        return prediction_set[0] if len(prediction_set) == 1 else UNCERTAIN

    @property
    def uncertain(self) -> tuple[float, float]:
        """The probabilities between which the label is ``uncertain``: NonCOVID below, COVID above."""
        low, high = sorted((1 - self.quantiles[COVID], self.quantiles[NON_COVID]))
        return low, high


class Calibration(Conformal):
    """From a slice's logit to probability, prediction set and label."""

    # the logit is divided by it (Guo et al., On calibration of modern neural networks, ICML 2017)
    temperature: float = Field(gt=0)
    slices: int = Field(0, ge=0)  # that it was fitted to

    def probability(self, logit: float) -> float:
        """Calibrated probability of COVID, 0 to 1."""
        return float(sigmoid(np.float64(logit) / self.temperature))


def slices_in_score(count: int) -> int:
    """How many of so many classified slices a series score is the mean of."""
    return min(count, max(_LEAST, math.ceil(_SHARE * count)))


def series_score(probabilities: Sequence[float]) -> float | None:
    """The score of a series: the mean of its highest probabilities; None where no slice was classified.

    Lesions fill a part of the lung only: the mean over all slices would drown them, the maximum would hang on
    a single one.
    """
    highest = sorted(probabilities, reverse=True)[: slices_in_score(len(probabilities))]
    return math.fsum(highest) / len(highest) if highest else None


def sigmoid(logit: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """Of logits; it never overflows. ``scipy.special.expit`` is the same but takes a tenth of a second to import."""
    return np.asarray(np.exp(-np.logaddexp(0, -logit)))
