"""Shortcut baselines: how well the label is predicted without a lung.

Small models see the file format alone, the size alone, grey statistics alone, or what lies around the lungs
alone. Where they do well, a network's figures say little about the disease: it may have learnt the same.
Roberts et al., Common pitfalls and recommendations for using machine learning to detect and prognosticate
for COVID-19 using chest radiographs and CT scans, Nature Machine Intelligence 3, 2021.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from groundglass.data.manifest import Label, Record
from groundglass.evaluation.bootstrap import Resampling
from groundglass.evaluation.metrics import Estimate
from groundglass.evaluation.part import patient_folds
from groundglass.imaging.lungs import shipped
from groundglass.imaging.slice import CTSlice, Grey

Values = NDArray[np.float32]

_TITLES = {
    "file_format": "file format alone",
    "size": "size alone",
    "grey": "grey statistics alone",
    "surroundings": "border and background alone, lungs blanked out",
}
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# The middle of the picture, where lungs are, is blanked where none were found: left, top, right, bottom.
_MIDDLE = (0.15, 0.20, 0.85, 0.80)
_MARGIN, _EDGE, _LEAST_PIXELS = 0.02, 0.02, 50

_TREES, _LEAST_LEAF, _RESAMPLES = 200, 5, 1000
# Each tree grows on at most so many slices, so that 100,000 slices take no longer than they are worth.
_SLICES_PER_TREE = 5000


@dataclass(frozen=True)
class ShortcutFeatures:
    """What is measured of a slice without its lungs."""

    file_format: str  # format, pixel mode and suffix, such as ``PNG RGBA .png``
    size: Values  # width, height, their ratio and product
    grey: Values  # mean, standard deviation, percentiles, shares of black and white, entropy
    surroundings: Values  # the same outside a box around the lungs; mean and standard deviation of the four edges


@dataclass(frozen=True)
class Performance:
    """AUC and accuracy (at a probability of 0.5), with 95 % intervals over patients."""

    auc: Estimate
    accuracy: Estimate
    slices: int
    patients: int


@dataclass(frozen=True)
class Baseline:
    """How well one shortcut does."""

    name: str  # ``file_format``, ``size``, ``grey`` or ``surroundings``
    title: str  # what the model sees, in words
    cross_validated: Performance  # over folds of patients, each evaluated with a model fitted on the others
    tested: Performance | None  # fitted on the train part, evaluated on the test part, where there are any


@dataclass(frozen=True)
class ShortcutBaselines:
    """All shortcuts, or the ``reason`` why none was measured; slices per label of each file format."""

    baselines: tuple[Baseline, ...]
    file_formats: dict[str, dict[str, int]]
    folds: int
    seed: int
    reason: str | None = None


def shortcut_features(record: Record, image: CTSlice) -> ShortcutFeatures:
    """Measure a slice, given as its record and as it was read."""
    height, width = image.pixels.shape
    return ShortcutFeatures(
        f"{image.origin.file_format} {image.origin.mode} {record.suffix}".strip(),
        np.array([width, height, width / height, width * height], np.float32),
        _grey_statistics(image.pixels),
        _surroundings(image.pixels),
    )


def measure_shortcuts(
    slices: Iterable[tuple[Record, ShortcutFeatures]],
    seed: int = 0,
    progress: Callable[[str, int, int | None], None] = lambda stage, steps, total: None,
) -> ShortcutBaselines:
    """Fit and evaluate all shortcut baselines on the slices with a label; ``progress`` is called after each.

    Equal seeds (of folds, trees and resamples) give equal figures.
    """
    labelled = [each for each in slices if each[0].label is not None]
    counts = Counter((one.file_format, record.label) for record, one in labelled)
    kinds = sorted({kind for kind, _ in counts})
    formats = {kind: {label.value: counts[kind, label] for label in Label} for kind in kinds}
    label = np.array([record.label is Label.COVID for record, _ in labelled], np.int8)
    patient = np.array([record.patient_id for record, _ in labelled], np.str_)
    part = np.array([record.split or "" for record, _ in labelled], np.str_)
    folds = patient_folds(label, patient, seed)
    if not folds:
        reason = "a label has fewer than two patients, or one that holds nearly all of its slices"
        return ShortcutBaselines((), formats, 0, seed, reason)
    fitted, held = (np.flatnonzero(part == name) for name in ("train", "test"))
    both = min(len(np.unique(label[rows])) for rows in (fitted, held)) == 2
    baselines = []
    for name, title in _TITLES.items():
        values = np.array([getattr(one, name) for _, one in labelled])
        # Categories for the one; numbers, whose effect need not be monotone, for the others.
        model: Any = LogisticRegression(max_iter=2000, random_state=seed)
        if name == "file_format":
            values = values[:, None] == kinds
        else:
            most = min(1.0, _SLICES_PER_TREE / len(label))
            model = RandomForestClassifier(_TREES, min_samples_leaf=_LEAST_LEAF, max_samples=most, random_state=seed)
        seen = cross_val_predict(model, values, label, cv=folds, method="predict_proba")[:, 1]
        tested = None
        if both:
            predicted = model.fit(values[fitted], label[fitted]).predict_proba(values[held])[:, 1]
            tested = _performance(label[held], patient[held], predicted, seed)
        baselines.append(Baseline(name, title, _performance(label, patient, seen, seed), tested))
        progress("fitting", 1, len(_TITLES))
    return ShortcutBaselines(tuple(baselines), formats, len(folds), seed)


def _performance(
    label: NDArray[np.int8], patient: NDArray[np.str_], probability: NDArray[np.float64], seed: int
) -> Performance:
    measured = Resampling(patient, _RESAMPLES, seed).measure(label, probability.clip(0, 1))
    auc, accuracy = measured.metrics["auc"], measured.metrics["accuracy"]
    return Performance(auc, accuracy, len(label), measured.patients.count)


def _grey_statistics(pixels: Grey) -> Values:
    share = np.bincount(pixels.ravel(), minlength=256) / max(pixels.size, 1)
    grey = np.arange(256)
    mean = share @ grey
    deviation = np.sqrt(share @ (grey - mean) ** 2)
    percentiles = np.searchsorted(np.cumsum(share), np.array(_PERCENTILES) / 100)
    present = share[share > 0]
    entropy = -(present @ np.log2(present))
    return np.array([mean, deviation, *percentiles, share[0], share[255], entropy], np.float32)


def _surroundings(pixels: Grey) -> Values:
    """Statistics of what lies outside a box around the lungs, and of the picture's four edges.

    The box hides mediastinum and heart as well. Neither its size nor its place is shown: they change with the
    disease.
    """
    mask, (height, width) = shipped()(pixels), pixels.shape
    left, top, right, bottom = (round(share * side) for share, side in zip(_MIDDLE, (width, height) * 2, strict=True))
    if mask.any():
        left, top, columns, rows = cv2.boundingRect(mask.astype(np.uint8))
        right, bottom = left + columns, top + rows
    margin = round(_MARGIN * max(height, width))
    outside = np.ones(pixels.shape, np.bool_)
    outside[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin] = False
    around = pixels[outside]
    enough = len(around) >= _LEAST_PIXELS
    statistics = _grey_statistics(around) if enough else np.zeros_like(_grey_statistics(pixels))
    rows, columns = (max(1, round(_EDGE * side)) for side in pixels.shape)
    edges = (pixels[:rows], pixels[-rows:], pixels[:, :columns], pixels[:, -columns:])
    moments = [moment for edge in edges for moment in (edge.mean(), edge.std())]
    return np.concatenate([statistics, np.array(moments, np.float32)])
