"""Shortcut baselines: how well the label is told without looking at a lung.

Small models see the container alone, the size alone, grey statistics alone, or what lies around the lungs
alone. Where they do well, a network's figures say little about the disease: it may have learnt the same.
Roberts et al., Common pitfalls and recommendations for using machine learning to detect and prognosticate
for COVID-19 using chest radiographs and CT scans, Nature Machine Intelligence 3, 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from groundglass.data.manifest import Label, Record
from groundglass.data.shortcuts import (
    GREY_FEATURES,
    SIZE_FEATURES,
    SURROUNDINGS_FEATURES,
    ShortcutFeatures,
)
from groundglass.evaluation.intervals import bootstrap
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.stated import Figure

FOLDS = 5
TREES = 200

_LEAST_LEAF = 5
# Each tree grows on at most so many slices, so that 100,000 slices take no longer than they are worth.
_SLICES_PER_TREE = 5000
_RESAMPLES = 1000


@dataclass(frozen=True)
class Judgement:
    """How well the label was told.

    Attributes:
        auc: area under the ROC curve, with a 95 % interval over patients.
        accuracy: share of slices called rightly at a probability of 0.5, likewise.
        slices: judged.
        patients: they belong to.
    """

    auc: Figure
    accuracy: Figure
    slices: int
    patients: int


@dataclass(frozen=True)
class Baseline:
    """One shortcut.

    Attributes:
        name: ``container``, ``size``, ``grey`` or ``surroundings``.
        title: what the model sees, in words.
        cross_validated: over folds of patients, each judged by a model fitted on the others.
        tested: fitted on the train part and judged on the test part; None where there are no such parts.
        telling: the single feature that parts the labels best, and its AUC, 0.5 to 1.
    """

    name: str
    title: str
    cross_validated: Judgement
    tested: Judgement | None
    telling: tuple[str, float]


@dataclass(frozen=True)
class ShortcutBaselines:
    """All shortcuts, or the reason why there are none.

    Attributes:
        baselines: the shortcuts.
        containers: slices per label of each container.
        folds: of the cross-validation.
        seed: of folds, trees and resamples.
        reason: why nothing was measured.
    """

    baselines: tuple[Baseline, ...]
    containers: dict[str, dict[str, int]]
    folds: int
    seed: int
    reason: str | None = None

    @property
    def strongest(self) -> Baseline | None:
        """The shortcut with the largest cross-validated AUC."""
        return max(self.baselines, key=lambda baseline: baseline.cross_validated.auc.value, default=None)


def measure_shortcuts(
    records: Sequence[Record],
    features: Sequence[ShortcutFeatures],
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> ShortcutBaselines:
    """Fit and judge all shortcut baselines.

    Args:
        records: slices; those without a label are left out.
        features: of each.
        seed: of folds, trees and resamples: equal seeds give equal figures.
        progress: told of each baseline that is done.
    """
    kept = [index for index, record in enumerate(records) if record.label is not None]
    records, features = [records[index] for index in kept], [features[index] for index in kept]
    containers = _count_containers(records, features)
    label = np.array([record.label is Label.COVID for record in records], np.int8)
    patient = np.array([record.patient_id for record in records], np.str_)
    folds = min(FOLDS, *(len(np.unique(patient[label == value])) for value in (0, 1)))
    if folds < 2:
        reason = "there are fewer than two patients of one of the labels"
        return ShortcutBaselines((), containers, folds, seed, reason)
    baselines = []
    for name, title, names, values in _views(features):
        model = _logistic if name == "container" else _forest
        judged = _cross_validate(values, label, patient, folds, seed, model)
        baselines.append(
            Baseline(
                name,
                title,
                _judge(label, judged, patient, seed),
                _test(values, label, patient, [record.split for record in records], seed, model),
                _most_telling(names, values, label),
            )
        )
        if progress is not None:
            progress(1)
    return ShortcutBaselines(tuple(baselines), containers, folds, seed)


_Values = NDArray[np.float32]
_Model = Callable[[int, int], Any]


def _views(
    features: Sequence[ShortcutFeatures],
) -> Iterator[tuple[str, str, Sequence[str], _Values]]:
    """Name, title, names of the features and their values, shape (N, features), of each shortcut."""
    kinds = sorted({one.container for one in features})
    shown = np.array([[one.container == kind for kind in kinds] for one in features], np.float32)
    yield "container", "container alone", kinds, shown
    yield "size", "size alone", SIZE_FEATURES, np.stack([one.size for one in features])
    yield "grey", "grey statistics alone", GREY_FEATURES, np.stack([one.grey for one in features])
    around = np.stack([one.surroundings for one in features])
    yield "surroundings", "border and background alone, lungs blanked out", SURROUNDINGS_FEATURES, around


def _count_containers(
    records: Sequence[Record], features: Sequence[ShortcutFeatures]
) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for record, one in sorted(zip(records, features, strict=True), key=lambda pair: pair[1].container):
        if record.label is not None:
            row = counts.setdefault(one.container, {label.value: 0 for label in Label})
            row[record.label.value] += 1
    return counts


def _logistic(seed: int, slices: int) -> Any:
    """For categories: their shares of COVID, drawn a little towards the mean of all."""
    return LogisticRegression(max_iter=2000, random_state=seed)


def _forest(seed: int, slices: int) -> Any:
    """For numbers, whose effect need not be monotone."""
    return RandomForestClassifier(
        TREES,
        min_samples_leaf=_LEAST_LEAF,
        max_samples=_SLICES_PER_TREE if slices > _SLICES_PER_TREE else None,
        random_state=seed,
    )


def _cross_validate(
    values: _Values, label: NDArray[np.int8], patient: NDArray[np.str_], folds: int, seed: int, model: _Model
) -> NDArray[np.float64]:
    """Probability of COVID of each slice, by a model that has seen no slice of its patient."""
    probability = np.zeros(len(label))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fitted, held in splitter.split(values, label, patient):
        probability[held] = _fit(values[fitted], label[fitted], seed, model)(values[held])
    return probability


def _test(
    values: _Values,
    label: NDArray[np.int8],
    patient: NDArray[np.str_],
    split: Sequence[str | None],
    seed: int,
    model: _Model,
) -> Judgement | None:
    fitted = np.array([part == "train" for part in split])
    held = np.array([part == "test" for part in split])
    if len(np.unique(label[fitted])) < 2 or len(np.unique(label[held])) < 2:
        return None
    probability = _fit(values[fitted], label[fitted], seed, model)(values[held])
    return _judge(label[held], probability, patient[held], seed)


def _fit(
    values: _Values, label: NDArray[np.int8], seed: int, model: _Model
) -> Callable[[_Values], NDArray[np.float64]]:
    if len(np.unique(label)) < 2:  # a fold that left one label only
        share = float(label.mean())
        return lambda held: np.full(len(held), share)
    fitted = model(seed, len(label)).fit(values, label)
    return lambda held: np.asarray(fitted.predict_proba(held)[:, 1], np.float64)


def _judge(
    label: NDArray[np.int8], probability: NDArray[np.float64], patient: NDArray[np.str_], seed: int
) -> Judgement:
    probability = np.clip(probability, 0, 1)
    measured = compute_metrics(label, probability).values()
    resampled = bootstrap(label, probability, patient, resamples=_RESAMPLES, seed=seed)

    def figure(name: str) -> Figure:
        interval = resampled.intervals[name]
        return Figure(measured[name] or 0.0, interval.low, interval.high)

    return Judgement(figure("auc"), figure("accuracy"), len(label), resampled.patients)


def _most_telling(names: Sequence[str], values: _Values, label: NDArray[np.int8]) -> tuple[str, float]:
    telling = [abs(float(roc_auc_score(label, column)) - 0.5) + 0.5 for column in values.T]
    best = int(np.argmax(telling))
    return names[best], telling[best]
