"""What opacity, the second output of some networks, says of the label: alone, and together with the first.

A network with that output answers two questions: is it COVID-19, and is there pneumonia-like opacity,
whatever its cause? No data set here states the second, so its answer is held against the label of the first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import RunError
from groundglass.evaluation.intervals import RESAMPLES, bootstrap
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.paired import paired_difference, resampled_measures
from groundglass.evaluation.part import Part
from groundglass.evaluation.protocol import Predictions


@dataclass(frozen=True)
class Ranking:
    """How well some score ranks COVID slices above NonCOVID ones.

    Attributes:
        auc: area under the ROC curve against the label, or None and the reason why there is none.
        low: lower bound of its 95 % interval, by the bootstrap over patients.
        high: upper bound.
        reason: why something is missing.
        gain: ``auc`` less that of the network's probability of COVID on the same slices.
        gain_low: lower bound of its interval, by the same resamples.
        gain_high: upper bound.
    """

    auc: float | None
    low: float | None
    high: float | None
    reason: str | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None


@dataclass(frozen=True)
class MeasuredOpacity:
    """What the second output says of N slices, and what that is worth for the label.

    Attributes:
        logit: of opacity, shape (N,).
        probability: of opacity, shape (N,).
        alone: how opacity alone ranks the slices.
        mean_logit: how the mean of both logits does.
    """

    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    alone: Ranking
    mean_logit: Ranking

    def document(self) -> dict[str, Any]:
        """The measures as plain JSON values."""
        return {"alone": asdict(self.alone), "mean_logit": asdict(self.mean_logit)}


def opacity_columns(opacity: MeasuredOpacity | None, slices: int) -> list[list[str]]:
    """What ``predictions.csv`` says of it: names, then one row per slice; all empty where there is none."""
    if opacity is None:
        return [[]] * (slices + 1)
    numbers = zip(opacity.probability, opacity.logit, strict=True)
    return [["opacity", "opacity_logit"], *([f"{each:.9g}" for each in pair] for pair in numbers)]


class OpacityLogits:
    """Keeps what the second output says, batch by batch, where a network has one."""

    def __init__(self) -> None:
        self._batches: list[NDArray[np.float64]] = []

    def take(self, predictions: Predictions) -> None:
        """Keep what these predictions say of opacity, which may be nothing."""
        logit = getattr(predictions, "opacity_logit", None)
        if logit is not None:
            self._batches.append(np.asarray(logit, np.float64))

    def measure(
        self, part: Part, covid: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0
    ) -> MeasuredOpacity | None:
        """Hold what was kept against the label of COVID; None where nothing was.

        Args:
            part: the slices that were predicted, in order.
            covid: logit of COVID, shape (N,).
            resamples: of the bootstrap over patients.
            seed: of the bootstrap.

        Raises:
            RunError: the network gave no valid number for a slice.
        """
        if not self._batches:
            return None
        opacity = np.concatenate(self._batches)
        bad = np.flatnonzero(~np.isfinite(opacity))
        if len(bad):
            name = part.file(part.records[bad[0]])
            raise RunError(f"the network gives no valid opacity for {name}; was the training stable?")

        def ranking(logit: NDArray[np.float64]) -> Ranking:
            return _ranking(part, logit, covid, resamples, seed)

        return MeasuredOpacity(opacity, _sigmoid(opacity), ranking(opacity), ranking((covid + opacity) / 2))


def _ranking(
    part: Part, logit: NDArray[np.float64], covid: NDArray[np.float64], resamples: int, seed: int
) -> Ranking:
    scores = [_sigmoid(each) for each in (logit, covid)]
    auc, first = (compute_metrics(part.label, score).auc for score in scores)
    measured = bootstrap(part.label, scores[0], part.patient, resamples=resamples, seed=seed)
    own, other = (
        resampled_measures(part.label, score, part.patient, resamples=resamples, seed=seed)["auc"]
        for score in scores
    )
    interval, gain = measured.intervals["auc"], paired_difference(own, other, measured.patients)
    return Ranking(
        auc.value,
        interval.low,
        interval.high,
        auc.reason or interval.reason,
        None if auc.value is None or first.value is None else auc.value - first.value,
        gain.low,
        gain.high,
    )


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities in the order of the logits, from any finite logit."""
    return np.asarray(np.exp(-np.logaddexp(0, -logit)), np.float64)
