"""Measure how far evaluated slices lie from what a bundle learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.distance import (
    FAR_OUT,
    Accepted,
    Distance,
    Placed,
    Share,
    Shift,
    Spread,
)
from groundglass.evaluation.intervals import LEVEL, bootstrap, resample_patients
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.placement import Placement
from groundglass.evaluation.proportion import Proportion
from groundglass.evaluation.refusal import kind_of_reason
from groundglass.evaluation.told_apart import ToldApart, told_apart
from groundglass.imaging.exposure import STATISTICS, linear
from groundglass.inference.reference import QUANTILES, Places, Reference


@dataclass(frozen=True)
class Judged:
    """N evaluated slices.

    Attributes:
        label: 1 for COVID and 0 for NonCOVID, shape (N,); empty where nobody knows.
        probability: of COVID, shape (N,).
        patient: whose slice each is, shape (N,).
        placement: where they lie.
    """

    label: NDArray[np.int8]
    probability: NDArray[np.float64]
    patient: NDArray[np.str_]
    placement: Placement


def measure_distance(judged: Judged, *, resamples: int, seed: int = 0) -> Distance:
    """Sum up where evaluated slices lie.

    Args:
        judged: the slices, at least one.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    placement = judged.placement
    refused = np.array([reason is not None for reason in placement.reason])
    share = _Shares(judged.patient, resamples, seed)
    reasons = Counter(kind_of_reason(reason) for reason in placement.reason if reason is not None)
    return Distance(
        len(refused),
        len(np.unique(judged.patient)),
        share.of(refused),
        dict(reasons.most_common()),
        _accepted(judged, ~refused, resamples, seed),
        _placed(judged, refused, share),
    )


class _Shares:
    """Shares of the slices with intervals over their patients: a bootstrap, or Wilson's for none and all."""

    def __init__(self, patient: NDArray[np.str_], resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed
        self._member = np.unique(patient, return_inverse=True)[1].ravel()
        self._patients = int(self._member.max()) + 1

    def of(self, holds: NDArray[np.bool_]) -> Share:
        """The share of slices of which something holds, shape (N,)."""
        return self.of_each(holds[:, None])[0]

    def of_each(self, holds: NDArray[np.bool_]) -> list[Share]:
        """The share of slices of which each of several things holds, shape (N, things)."""
        if self._patients == 1:
            return [Share(float(value), None, None) for value in holds.mean(axis=0)]
        draws = np.concatenate(
            [
                weights @ holds / weights.sum(axis=1, keepdims=True)
                for weights in resample_patients(self._member, self.resamples, self.seed)
            ]
        )
        bounds = np.percentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
        return [self._share(*each) for each in zip(holds.T, *bounds, strict=True)]

    def _share(self, holds: NDArray[np.bool_], low: float, high: float) -> Share:
        if not holds.all() and holds.any():
            return Share(float(holds.mean()), float(low), float(high))
        # No resample differs; how sure that is follows from the number of patients.
        certain = Proportion.of(np.full(self._patients, holds.all()))
        return Share(float(holds.mean()), certain.low, certain.high)


def _accepted(judged: Judged, accepted: NDArray[np.bool_], resamples: int, seed: int) -> Accepted | None:
    if not len(judged.label) or not accepted.any():
        return None
    label, probability = judged.label[accepted], judged.probability[accepted]
    resampled = bootstrap(label, probability, judged.patient[accepted], resamples=resamples, seed=seed)
    return Accepted(len(label), compute_metrics(label, probability), resampled)


def _placed(judged: Judged, refused: NDArray[np.bool_], share: _Shares) -> Placed | None:
    reference, places = judged.placement.reference, judged.placement.places
    if reference is None or places is None:
        return None
    same = _same(places.statistics, reference.held_out_statistics)
    return Placed(
        int(reference.slices),
        len(reference.held_out),
        share.of(refused | (places.either >= FAR_OUT[0])),
        _spread(places.embedding, share),
        _spread(places.grey, share),
        tuple(_shifts(reference, places.statistics, share)),
        _told_apart(reference, places, judged.patient, share),
        int(same.sum()),
        places,
    )


def _told_apart(reference: Reference, places: Places, patient: NDArray[np.str_], share: _Shares) -> ToldApart:
    """Held-out slices that are among the data say nothing and are left out."""
    other = ~_same(reference.held_out_statistics, places.statistics)
    if not other.any():
        return ToldApart(None, reason="the same slices")
    return told_apart(
        _described(reference, reference.held_out, reference.held_out_statistics)[other],
        reference.held_out_group.astype(np.str_)[other],
        _described(reference, places.coordinates, places.statistics),
        patient,
        resamples=share.resamples,
        seed=share.seed,
    )


def _same(statistics: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which slices have exactly the grey statistics of one of the others: no two slices do."""
    known = {row.tobytes() for row in np.asarray(others, np.float32)}
    return np.array([row.tobytes() in known for row in np.asarray(statistics, np.float32)], np.bool_)


def _spread(percentile: NDArray[np.float64], share: _Shares) -> Spread:
    beyond_95, beyond_99 = share.of_each(percentile[:, None] >= np.array(FAR_OUT))
    return Spread(beyond_95, beyond_99, float(np.median(percentile)), float(percentile.mean() / 100))


def _shifts(reference: Reference, statistics: NDArray[np.float32], share: _Shares) -> Sequence[Shift]:
    data = np.quantile(statistics, QUANTILES, axis=0)
    low, _, high = reference.quantiles
    middles = linear(np.stack([data[1], reference.quantiles[1]]))
    shift = (middles[0] - middles[1]) / reference.grey.spread
    outside = share.of_each((statistics < low) | (statistics > high))
    return [
        Shift(
            statistic,
            tuple(float(value) for value in reference.quantiles[:, column]),
            tuple(float(value) for value in data[:, column]),
            float(shift[column]),
            outside[column],
        )
        for column, statistic in enumerate(STATISTICS)
    ]


def _described(
    reference: Reference, coordinates: NDArray[np.floating], statistics: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What slices are told apart by, standardised, shape (N, k + S)."""
    grey = reference.grey.coordinates(linear(statistics))
    return np.concatenate([coordinates, grey], axis=1, dtype=np.float32)
