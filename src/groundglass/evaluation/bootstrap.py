"""95 % intervals by a bootstrap over patients.

Slices of one patient resemble each other, so that resampling slices would promise too much certainty. Here
patients are drawn with replacement, as many as there are, each with all of their slices. The interval is the
percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): the 2.5th and
97.5th percentile of a measure over the resamples. A resample in which a measure is undefined, such as one
without a COVID slice for the AUC, is left out of that measure's percentiles and counted.

The calibration error of a resample is biased upwards against that of the part itself, so its interval tends
to lie high and may not even hold the part's own value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from groundglass.evaluation.metrics import THRESHOLD, TITLES, Estimate, compute_metrics, ranked, weighted_metrics

RESAMPLES = 2000
LEVEL = 0.95

_EDGES = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
_MAX_UNDEFINED_SHARE = 0.5
# Resamples are drawn in blocks of about this many weights: they fit the processor's cache.
_CELLS = 400_000

Band = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""False positive rates or recalls from 0 to 1, and the lower and upper edge at each, shape (G,) each."""

Draws = Mapping[str, NDArray[np.float64]]
"""By the measures' keys, the measure in every resample, shape (R,); NaN where it is undefined."""


@dataclass(frozen=True, eq=False)
class Resampling:
    """Resamples of the patients, ``patient`` being that of each slice, shape (N,).

    The same patients and seed give the same resamples, so that two networks' draws are paired. ``label`` is 1 for
    COVID and 0 for NonCOVID, ``probability`` that of COVID, 0 to 1, of each slice, shape (N,).
    """

    patient: NDArray[np.str_]
    resamples: int = RESAMPLES
    seed: int = 0

    @property
    def count(self) -> int:
        """How many patients there are."""
        return len(np.unique(self.patient))

    def among(self, chosen: NDArray[np.bool_]) -> Resampling:
        """Of the patients of the chosen slices, shape (N,), alone."""
        return replace(self, patient=self.patient[chosen])

    def weights(self) -> Iterator[NDArray[np.float64]]:
        """Blocks of resamples: how often each slice counts, shape (block, N)."""
        member, patients = np.unique(self.patient, return_inverse=True)[1].ravel(), self.count
        generator, block = np.random.default_rng(self.seed), max(1, _CELLS // len(member))
        for start in range(0, self.resamples, block):
            size = min(block, self.resamples - start)
            times = generator.multinomial(patients, np.full(patients, 1.0 / patients), size=size)
            yield times[:, member].astype(np.float64)

    def draws(self, label: NDArray[np.int8], probability: NDArray[np.float64]) -> Draws:
        """Every measure in every resample."""
        blocks = [weighted_metrics(label, probability, weights) for weights in self.weights()]
        return {name: np.concatenate([block[name] for block in blocks]) for name in TITLES}

    def measure(self, label: NDArray[np.int8], probability: NDArray[np.float64]) -> Bootstrap:
        """Every measure, with its interval."""
        draws, measured = self.draws(label, probability), compute_metrics(label, probability)
        metrics = {name: with_interval(each, draws[name], self.count) for name, each in measured.items()}
        covid, called = label == 1, probability >= THRESHOLD
        counted = {"accuracy": covid | True, "precision": called, "recall": covid, "specificity": ~covid}
        for name, each in metrics.items():
            if each.low is not None and round(each.low - (each.high or 0), 9) == 0:  # which is no certainty
                none = replace(each, low=None, high=None, interval_reason="all resamples are alike")
                own = counted.get(name) if each.value in {0.0, 1.0} else None
                metrics[name] = none if own is None else self.among(own).share((called == covid)[own])
        return Bootstrap(metrics, self, draws)

    def bands(self, label: NDArray[np.int8], probability: NDArray[np.float64]) -> tuple[Band, Band]:
        """Between which heights 95 % of the resampled ROC and precision-recall curves run.

        There are slices of both labels and at least two patients.
        """
        grid, roc, precision = np.linspace(0, 1, 101), [], []
        for weights in self.weights():
            steps = ranked(label == 1, probability, weights)
            for covid, other in zip(*(np.pad(each, ((0, 0), (1, 0))) for each in steps), strict=True):
                if covid[-1] and other[-1]:
                    recall = covid / covid[-1]
                    roc.append(recall[np.searchsorted(other / other[-1], grid, side="right") - 1])
                    first = np.searchsorted(recall, np.maximum(grid, 1e-9))
                    precision.append(covid[first] / (covid[first] + other[first]))
        first_band, second_band = (np.percentile(each, _EDGES, axis=0) for each in (roc, precision))
        return (grid, *first_band), (grid, *second_band)

    def share(self, holds: NDArray[np.bool_]) -> Estimate:
        """The share of slices of which ``holds``, shape (N,), is true, with its interval.

        Where it holds of none or of all, no resample differs, and the interval is Wilson's for as many
        independent cases as there are patients (E. B. Wilson, JASA 22, 1927).
        """
        if not len(holds):
            return Estimate(None)
        share, patients = Estimate(float(holds.mean())), self.count
        if patients > 1 and share.value in {0.0, 1.0}:
            wilson = binomtest(round(share.value * patients), patients).proportion_ci(LEVEL, "wilson")
            return replace(share, low=float(wilson.low), high=float(wilson.high))
        draws = np.concatenate([weights @ holds / weights.sum(axis=1) for weights in self.weights()])
        return with_interval(share, draws, patients)

    def figure(self, statistic: Callable[[NDArray[np.float64]], float], values: NDArray[np.float64]) -> Estimate:
        """What ``statistic`` makes of the values of any slices, shape (M, C), with its interval.

        ``values`` are those of every slice, shape (N, C); a statistic is NaN where it is undefined.
        """
        if not len(values):
            return Estimate(None)
        value = float(statistic(values))
        rows = (row.astype(np.intp) for block in self.weights() for row in block)
        draws = np.array([statistic(np.repeat(values, row, axis=0)) for row in rows])
        return with_interval(Estimate(None if np.isnan(value) else value), draws, self.count)


@dataclass(frozen=True)
class Bootstrap:
    """All measures with their intervals, by their keys in the order of ``TITLES``, and how these were made."""

    metrics: Mapping[str, Estimate]
    patients: Resampling = field(compare=False)
    draws: Draws = field(compare=False, repr=False)

    def method(self) -> dict[str, Any]:
        """How the intervals were made, as plain JSON values."""
        return {"level": LEVEL, "method": "percentile bootstrap over patients", "resamples": self.patients.resamples}


def with_interval(measured: Estimate, draws: NDArray[np.float64], patients: int) -> Estimate:
    """A measure with the middle 95 % of its ``draws``, shape (R,), NaN where it is undefined.

    With fewer than two ``patients`` there are no bounds.
    """
    defined = draws[~np.isnan(draws)]
    undefined, reason = len(draws) - len(defined), None
    if patients < 2:
        reason = "one patient only: patients cannot be resampled"
    # With more undefined resamples than that, percentiles of the rest would describe another question.
    elif undefined > _MAX_UNDEFINED_SHARE * len(draws):
        reason = f"undefined in {undefined} of {len(draws)} resamples"
    low, high = (None, None) if reason else map(float, np.percentile(defined, _EDGES))
    return replace(measured, low=low, high=high, undefined_resamples=undefined, interval_reason=reason)
