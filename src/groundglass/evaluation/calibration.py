"""How a bundle is calibrated, what prediction sets are worth, and the summary of one part that a bundle carries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.bootstrap import Resampling
from groundglass.evaluation.metrics import Estimate
from groundglass.evaluation.part import Part
from groundglass.inference.calibration import COVID, NON_COVID, UNCERTAIN, Calibration, Conformal, series_score, sigmoid

if TYPE_CHECKING:
    from groundglass.inference.reference import EmbeddingReference

FEWEST = 20
"""Held-out slices below which nothing can lie beyond 95 % of them."""

_DIRECTIONS = 24
# A dimension that hardly varies among the slices would otherwise dominate the distance.
_LEAST_SPREAD = 0.25
_TEMPERATURES = np.geomspace(0.2, 10, 400)


def fit_conformal(score: NDArray[np.floating], label: NDArray[np.integer], coverage: float = 0.9) -> Conformal:
    """Fit to scores of slices, or of patients, that the network was not trained on.

    Quantiles are split conformal, one per label (Vovk, Conditional validity of inductive conformal predictors, ACML
    2012), so that the rarer or harder label is covered as often as the other. ``score`` is 0 to 1, ``label`` 1 for
    COVID and 0 for NonCOVID, shape (N,) each; ``coverage`` above 0 and below 1.
    """
    values, covid = np.asarray(score, np.float64), np.asarray(label) == 1
    quantiles = {}
    for name, nonconformity in ((COVID, 1 - values[covid]), (NON_COVID, values[~covid])):
        rank = math.ceil((len(nonconformity) + 1) * coverage)
        # 1 where there are too few slices to exclude any.
        quantiles[name] = 1.0 if rank > len(nonconformity) else float(np.sort(nonconformity)[rank - 1])
    return Conformal(coverage=coverage, quantiles=quantiles)


def fit_calibration(logit: NDArray[np.floating], label: NDArray[np.integer], coverage: float = 0.9) -> Calibration:
    """Fit temperature and quantiles on slices of both labels that the network was not trained on.

    See :func:`fit_conformal`.
    """
    values, covid = np.asarray(logit, np.float64), np.asarray(label) == 1
    if covid.all() or not covid.any():
        raise ValueError("calibration needs slices of both labels")
    # The negative log likelihood has one minimum, so that a fine grid finds it.
    losses = np.logaddexp(0, -np.where(covid, values, -values) / _TEMPERATURES[:, None]).mean(axis=1)
    temperature = round(float(_TEMPERATURES[int(np.argmin(losses))]), 4)
    fitted = fit_conformal(sigmoid(values / temperature), label, coverage)
    return Calibration(temperature=temperature, slices=len(values), **dict(fitted))


def fit_reference(training: NDArray[np.floating], held_out: NDArray[np.floating]) -> EmbeddingReference | None:
    """Fit to embeddings of the slices that a model learned from, and calibrate by slices of other patients.

    Shape (N, d) and (M, d); None where there are fewer than `FEWEST` of either.
    """
    from groundglass.inference.reference import CLIP, EmbeddingReference  # noqa: PLC0415 - for an export alone

    if min(len(training), len(held_out)) < FEWEST:
        return None
    centre, spread = training.mean(axis=0), training.std(axis=0)
    spread = np.maximum(spread, _LEAST_SPREAD * np.median(spread) + 1e-6)
    standard = np.clip((training - centre) / spread, -CLIP, CLIP)
    count = min(_DIRECTIONS, len(training) - 1, training.shape[1])
    _, singular, axes = np.linalg.svd(standard, full_matrices=False)
    variances = np.square(singular) / len(training)
    rest = training.shape[1] - count
    fitted = EmbeddingReference(
        np.asarray(centre, np.float32),
        np.asarray(spread, np.float32),
        # Half precision: the distances do not need more, and the bundle stays small.
        np.asarray(axes[:count], np.float16),
        np.asarray(np.sqrt(np.maximum(variances[:count], 1e-6)), np.float32),
        np.asarray(max(variances[count:].sum() / rest, 1e-6) if rest else np.inf, np.float32),
        np.zeros(0, np.float32),
        np.asarray(len(training)),
    )
    return replace(fitted, held_out=fitted.distance(held_out))


def prediction_sets(
    label: NDArray[np.int8], probability: NDArray[np.floating], patients: Resampling, calibration: Calibration,
    told: Callable[[Estimate], Any],
) -> dict[str, Any]:  # fmt: skip
    """Coverage of prediction sets, by label, against the nominal one, and how often they decide.

    ``uncertain`` is the share of slices whose set holds both labels or none; of the others ``accuracy_where_certain``
    is called rightly. ``label`` is 1 for COVID and 0 for NonCOVID, ``probability`` calibrated, shape (N,) each;
    ``told`` makes a JSON value of each share.
    """
    sets = [calibration.prediction_set(float(value)) for value in probability]
    called = np.array([calibration.label(each) for each in sets])
    truth = np.where(label == 1, COVID, NON_COVID)
    held = np.array([name in each for name, each in zip(truth, sets, strict=True)], np.bool_)
    certain = called != UNCERTAIN
    of = {name: truth == name for name in (COVID, NON_COVID)}
    return {
        "nominal_coverage": calibration.coverage,
        "coverage": {name: told(patients.among(own).share(held[own])) for name, own in of.items()},
        "uncertain": told(patients.share(~certain)),
        "accuracy_where_certain": told(patients.among(certain).share((called == truth)[certain])),
    }


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

    The network was not trained on the part's slices; ``probability`` of COVID is calibrated, shape (N,). Of the
    patients of each label, ``coverage`` is the share whose true label is not to be ruled out.
    """
    score, label, source = series_scores(part, probability)
    # Fewer cannot rule a label out at this coverage.
    if min(np.sum(label == 1), np.sum(label == 0)) < round(coverage / (1 - coverage), 9):
        return None
    patients = {COVID: int(np.sum(label == 1)), NON_COVID: int(np.sum(label == 0))}
    sources = {name: source.count(name) for name in sorted(set(source))}
    return fit_conformal(score, label, coverage), {"patients": patients, "sources": sources}


def summary(part: Part, logit: NDArray[np.floating], calibration: Calibration) -> dict[str, Any]:
    """Measures of calibrated probabilities with intervals, and what the prediction sets are worth.

    ``logit``, shape (N,), are those of a part's slices before calibration.
    """
    probability = np.array([calibration.probability(float(value)) for value in logit])
    measured = Resampling(part.patient).measure(part.label, probability)
    patients = measured.patients
    return {
        "slices": len(part.records),
        "covid": int(part.label.sum()),
        "patients": patients.count,
        "metrics": {name: asdict(each) for name, each in measured.metrics.items()},
        "interval": measured.method(),
        "prediction_sets": prediction_sets(part.label, probability, patients, calibration, lambda share: share.value),
    }
