"""Whether a classifier can tell two sets of slices apart, patients kept together.

A classifier two-sample test (D. Lopez-Paz and M. Oquab, Revisiting classifier two-sample tests, ICLR 2017),
with a linear classifier, which a hundred slices are enough for. It sees shifts of any direction, those
included that bring slices no farther from the middle of the training data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from groundglass.evaluation.intervals import bootstrap

FOLDS = 5
_PENALTY = 0.01
_CLIP = 4.0


@dataclass(frozen=True)
class ToldApart:
    """How well slices of one set are told from slices of another.

    Attributes:
        auc: area under the ROC curve of slices held out, 0.5 by chance and 1 where no slice is mistaken; None
            where there are too few patients.
        low: lower bound of its 95 % interval over patients, or None.
        high: upper bound, or None.
        reason: why there is no figure.
    """

    auc: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def told_apart(
    reference: NDArray[np.floating],
    reference_patient: NDArray[np.str_],
    data: NDArray[np.floating],
    data_patient: NDArray[np.str_],
    *,
    resamples: int,
    seed: int = 0,
) -> ToldApart:
    """Cross-validate a classifier of reference against data.

    Args:
        reference: description of each slice, standardised, shape (M, d).
        reference_patient: whose slice each is, shape (M,).
        data: description of each slice, on the same scales, shape (N, d).
        data_patient: whose slice each is, shape (N,).
        resamples: of the bootstrap over patients.
        seed: of folds and bootstrap.
    """
    fewest = min(len(np.unique(patients)) for patients in (reference_patient, data_patient))
    if fewest < FOLDS:
        return ToldApart(None, reason=f"fewer than {FOLDS} patients")
    values = np.clip(np.concatenate([reference, data]), -_CLIP, _CLIP)
    foreign = np.repeat(np.array([0, 1], np.int8), [len(reference), len(data)])
    sets = ((reference_patient, "reference"), (data_patient, "data"))
    patient = np.concatenate([[f"{name} {each}" for each in patients] for patients, name in sets])
    probability = np.zeros(len(foreign))
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, held in splitter.split(values, foreign, patient):
        model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
        probability[held] = model.fit(values[fitted], foreign[fitted]).predict_proba(values[held])[:, 1]
    judged = bootstrap(foreign, probability, patient, resamples=resamples, seed=seed)
    interval = judged.intervals["auc"]
    return ToldApart(float(roc_auc_score(foreign, probability)), interval.low, interval.high)
