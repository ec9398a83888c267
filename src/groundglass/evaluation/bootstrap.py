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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from groundglass.evaluation.metrics import (
    TITLES,
    Estimate,
    Metrics,
    check_predictions,
    compute_metrics,
    ranked,
    weighted_metrics,
)

RESAMPLES = 2000
LEVEL = 0.95

_MAX_UNDEFINED_SHARE = 0.5
# Resamples are drawn in blocks of about this many weights: they fit the processor's cache.
_CELLS = 400_000

Band = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""False positive rates or recalls from 0 to 1, and the lower and upper edge at each, shape (G,) each."""

Draws = Mapping[str, NDArray[np.float64]]
"""By the measures' keys, the measure in every resample, shape (R,); NaN where it is undefined."""


@dataclass(frozen=True)
class Bootstrap:
    """All measures with their intervals.

    Attributes:
        metrics: by their keys, in the order of ``TITLES``.
        patients: patients resampled.
        resamples: resamples drawn.
        one_class: resamples whose slices were all COVID or all NonCOVID.
        seed: of the random generator.
    """

    metrics: Metrics
    patients: int
    resamples: int
    one_class: int
    seed: int

    def method(self) -> dict[str, Any]:
        """How the intervals were made, as plain JSON values."""
        method = "percentile bootstrap over patients"
        return {"level": LEVEL, "method": method, "resamples": self.resamples}


def bootstrap(
    label: NDArray[np.int8],
    probability: NDArray[np.float64],
    patient: NDArray[np.str_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Every measure, with its interval by resampling patients.

    Args:
        label: 1 for COVID and 0 for NonCOVID, shape (N,), N at least 1.
        probability: of COVID, 0 to 1, shape (N,).
        patient: id of each slice's patient, shape (N,).
        resamples: number of resamples, at least 1.
        seed: of the random generator; equal seeds give equal intervals.

    Raises:
        DataError: there is no slice.
        ValueError: arrays do not fit each other, or ``resamples`` is less than 1.
    """
    draws = resampled_metrics(label, probability, patient, resamples=resamples, seed=seed)
    patients = len(np.unique(patient))
    measured = compute_metrics(label, probability)
    metrics = {name: with_interval(each, draws[name], patients) for name, each in measured.items()}
    return Bootstrap(metrics, patients, resamples, int(np.isnan(draws["auc"]).sum()), seed)


def resampled_metrics(
    label: NDArray[np.int8],
    probability: NDArray[np.float64],
    patient: NDArray[np.str_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Draws:
    """Every measure in every resample of the patients; arguments and errors as of :func:`bootstrap`.

    The same patients and seed give the same resamples, so that two networks' draws are paired.
    """
    check_predictions(label, probability)
    if patient.shape != label.shape:
        raise ValueError(f"patient must be of shape {label.shape}, not {patient.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    weights = _resampled_weights(patient, resamples, seed)
    blocks = [weighted_metrics(label, probability, each) for each in weights]
    return {name: np.concatenate([block[name] for block in blocks]) for name in TITLES}


def curve_bands(
    label: NDArray[np.int8],
    probability: NDArray[np.float64],
    patient: NDArray[np.str_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Band, Band]:
    """Between which heights 95 % of the resampled ROC and precision-recall curves run.

    Arguments as of :func:`bootstrap`, with slices of both labels and at least two patients.
    """
    grid, roc, precision = np.linspace(0, 1, 101), [], []
    for weights in _resampled_weights(patient, resamples, seed):
        steps = ranked(label == 1, probability, weights)
        for covid, other in zip(*(np.pad(each, ((0, 0), (1, 0))) for each in steps), strict=True):
            if covid[-1] and other[-1]:
                recall = covid / covid[-1]
                roc.append(recall[np.searchsorted(other / other[-1], grid, side="right") - 1])
                first = np.searchsorted(recall, np.maximum(grid, 1e-9))
                precision.append(covid[first] / (covid[first] + other[first]))
    edges = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
    first_band, second_band = (np.percentile(each, edges, axis=0) for each in (roc, precision))
    return (grid, *first_band), (grid, *second_band)


def with_interval(measured: Estimate, draws: NDArray[np.float64], patients: int) -> Estimate:
    """A measure with the middle 95 % of its resamples.

    Args:
        measured: its value.
        draws: the measure in every resample, shape (R,), NaN where it is undefined.
        patients: that were resampled; with fewer than two there are no bounds.
    """
    defined = draws[~np.isnan(draws)]
    undefined = len(draws) - len(defined)
    if patients < 2:
        reason = "one patient only: patients cannot be resampled"
        return replace(measured, undefined_resamples=undefined, interval_reason=reason)
    # With more undefined resamples than that, percentiles of the rest would describe another question.
    if undefined > _MAX_UNDEFINED_SHARE * len(draws):
        reason = f"undefined in {undefined} of {len(draws)} resamples"
        return replace(measured, undefined_resamples=undefined, interval_reason=reason)
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return replace(measured, low=float(low), high=float(high), undefined_resamples=undefined)


def share_of(
    holds: NDArray[np.bool_], patient: NDArray[np.str_], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The share of slices of which ``holds``, shape (N,), is true, with its interval; see :func:`figure_of`.

    Where it holds of none or of all, no resample differs, and the interval is Wilson's for as many
    independent cases as there are patients (E. B. Wilson, JASA 22, 1927).
    """
    if not len(holds):
        return Estimate(None)
    share, patients = Estimate(float(holds.mean())), len(np.unique(patient))
    if patients > 1 and share.value in {0.0, 1.0}:
        wilson = binomtest(round(share.value * patients), patients).proportion_ci(LEVEL, "wilson")
        return replace(share, low=float(wilson.low), high=float(wilson.high))
    blocks = _resampled_weights(patient, resamples, seed)
    draws = np.concatenate([weights @ holds / weights.sum(axis=1) for weights in blocks])
    return with_interval(share, draws, patients)


def figure_of(
    statistic: Callable[[NDArray[np.float64]], float],
    values: NDArray[np.float64],
    patient: NDArray[np.str_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A figure made of some values of each slice, with its interval.

    Args:
        statistic: from the values of any slices, shape (M, C), to the figure; NaN where it is undefined.
        values: of each slice, shape (N, C); without slices there is no figure.
        patient: id of each slice's patient, shape (N,).
        resamples: number of resamples.
        seed: of the random generator.
    """
    if not len(values):
        return Estimate(None, "no such slice")
    value = float(statistic(values))
    weights = (row for block in _resampled_weights(patient, resamples, seed) for row in block)
    draws = np.array([statistic(np.repeat(values, row.astype(np.intp), axis=0)) for row in weights])
    measured = Estimate(None, "undefined for these slices") if np.isnan(value) else Estimate(value)
    return with_interval(measured, draws, len(np.unique(patient)))


def _resampled_weights(patient: NDArray[np.str_], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Blocks of resamples: how often each slice counts, shape (block, N)."""
    member = np.unique(patient, return_inverse=True)[1].ravel()
    patients = int(member.max()) + 1
    chance = np.full(patients, 1.0 / patients)
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // len(member))
    for start in range(0, resamples, block):
        times = generator.multinomial(patients, chance, size=min(block, resamples - start))
        yield times[:, member].astype(np.float64)
