"""What a bundle's prediction sets are worth, and the summary of one part that a bundle carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.bootstrap import Resampling, bootstrap
from groundglass.evaluation.metrics import Estimate
from groundglass.evaluation.part import Part
from groundglass.inference.calibration import Calibration, Conformal, series_score
from groundglass.inference.prediction import COVID, NON_COVID, UNCERTAIN


@dataclass(frozen=True)
class PredictionSets:
    """Coverage of prediction sets, by label, against the nominal one, and how often they decide.

    ``uncertain`` is the share of slices whose set holds both labels or none; of the others ``accuracy_where_certain``
    is called rightly.
    """

    nominal_coverage: float
    coverage: Mapping[str, Estimate]
    uncertain: Estimate
    accuracy_where_certain: Estimate


def prediction_sets(
    label: NDArray[np.int8], probability: NDArray[np.float64], patients: Resampling, calibration: Calibration
) -> PredictionSets:
    """Measure the prediction sets of slices, labelled 1 for COVID, by calibrated probabilities, shape (N,) each."""
    sets = [calibration.prediction_set(float(value)) for value in probability]
    called = np.array([calibration.label(each) for each in sets])
    truth = np.where(label == 1, COVID, NON_COVID)
    held = np.array([name in each for name, each in zip(truth, sets, strict=True)], np.bool_)
    certain = called != UNCERTAIN
    return PredictionSets(
        calibration.coverage,
        {name: patients.among(truth == name).share(held[truth == name]) for name in (COVID, NON_COVID)},
        patients.share(~certain),
        patients.among(certain).share((called == truth)[certain]),
    )


def series_scores(
    part: Part, probability: NDArray[np.float64], least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.int8], tuple[str, ...]]:
    """Series score, label and source of each known patient with slices of one label only, ``least`` at least.

    A patient's slices are taken for a series; ``probability`` of COVID is calibrated, shape (N,).
    """
    of: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(part.records):
        if record.patient_known:
            of.setdefault((record.hospital, record.patient_id), []).append(index)
    label = part.label
    kept = {key: own for key, own in of.items() if len(own) >= least and len({*label[own]}) == 1}
    scores = [series_score(probability[own].tolist()) for own in kept.values()]
    labels = [label[own[0]] for own in kept.values()]
    return np.array(scores, np.float64), np.array(labels, np.int8), tuple(source for source, _ in kept)


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
    sets = prediction_sets(part.label, probability, Resampling(part.patient), calibration)
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
