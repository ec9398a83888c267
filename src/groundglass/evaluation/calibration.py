"""What a bundle's prediction sets are worth, and the summary of one part that a bundle carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.bootstrap import RESAMPLES, bootstrap, share_of
from groundglass.evaluation.metrics import Estimate
from groundglass.evaluation.part import Part
from groundglass.inference.calibration import Calibration, Conformal
from groundglass.inference.prediction import COVID, NON_COVID, UNCERTAIN
from groundglass.inference.series import series_score


@dataclass(frozen=True)
class PredictionSets:
    """Coverage of prediction sets, and how often they decide.

    Attributes:
        nominal_coverage: share of slices, of each label, whose set ought to hold the true label.
        coverage: the share whose set does, by label.
        uncertain: share of slices whose set holds both labels or none.
        accuracy_where_certain: share called rightly among the others.
    """

    nominal_coverage: float
    coverage: Mapping[str, Estimate]
    uncertain: Estimate
    accuracy_where_certain: Estimate


def prediction_sets(
    part: Part,
    probability: NDArray[np.float64],
    calibration: Calibration,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PredictionSets:
    """Measure the prediction sets of a part's slices by their calibrated probabilities of COVID, shape (N,)."""
    sets = [calibration.prediction_set(float(value)) for value in probability]
    called = np.array([calibration.label(each) for each in sets])
    truth = np.where(part.label == 1, COVID, NON_COVID)
    held = np.array([name in each for name, each in zip(truth, sets, strict=True)], np.bool_)
    certain = called != UNCERTAIN

    def share(holds: NDArray[np.bool_], among: NDArray[np.bool_]) -> Estimate:
        return share_of(holds[among], part.patient[among], resamples=resamples, seed=seed)

    return PredictionSets(
        calibration.coverage,
        {name: share(held, truth == name) for name in (COVID, NON_COVID)},
        share(~certain, np.ones_like(certain)),
        share(called == truth, certain),
    )


def series_scores(
    part: Part, probability: NDArray[np.float64], least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.int8], tuple[str, ...]]:
    """Series score, label and source of each known patient whose slices all have one label.

    Args:
        part: the slices; a patient's are taken for a series.
        probability: of COVID, calibrated, shape (N,).
        least: slices that a patient must have.
    """
    of: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(part.records):
        if record.patient_known:
            of.setdefault((record.hospital, record.patient_id), []).append(index)
    several = {
        key: indices
        for key, indices in of.items()
        if len(indices) >= least and np.ptp(part.label[indices]) == 0
    }
    scores = [series_score(probability[indices].tolist()) for indices in several.values()]
    labels = [part.label[indices[0]] for indices in several.values()]
    return np.array(scores, np.float64), np.array(labels, np.int8), tuple(source for source, _ in several)


def series_rule(
    part: Part, probability: NDArray[np.float64], coverage: float
) -> tuple[Conformal, dict[str, Any]] | None:
    """The rule from a series score to a label, and on whom it was fitted; None for too few patients.

    Args:
        part: slices that the network was not trained on.
        probability: of COVID, calibrated, shape (N,).
        coverage: share of patients, of each label, whose true label is not to be ruled out.
    """
    score, label, source = series_scores(part, probability)
    # Fewer cannot rule a label out at this coverage.
    if min(np.sum(label == 1), np.sum(label == 0)) < coverage / (1 - coverage):
        return None
    patients = {COVID: int(np.sum(label == 1)), NON_COVID: int(np.sum(label == 0))}
    sources = {name: source.count(name) for name in sorted(set(source))}
    return Conformal.of_scores(score, label, coverage), {"patients": patients, "sources": sources}


def summary(part: Part, logit: NDArray[np.floating], calibration: Calibration) -> dict[str, Any]:
    """Measures of calibrated probabilities with intervals, and what the prediction sets are worth.

    ``logit``, shape (N,), are those of a part's slices before calibration.
    """
    probability = np.array([calibration.probability(float(value)) for value in logit])
    measured = bootstrap(part.label, probability, part.patient)
    sets = prediction_sets(part, probability, calibration)
    return {
        "slices": len(part.records),
        "covid": int(part.label.sum()),
        "patients": measured.patients,
        "metrics": {name: asdict(each) for name, each in measured.metrics.items()},
        "interval": measured.method(),
        "prediction_sets": {
            "nominal_coverage": sets.nominal_coverage,
            "coverage": {name: share.value for name, share in sets.coverage.items()},
            "uncertain": sets.uncertain.value,
            "accuracy_where_certain": sets.accuracy_where_certain.value,
        },
    }
