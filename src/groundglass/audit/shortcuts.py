"""A network's figures as some file states them, to stand beside what needs no network.

What a slice says without its lungs being looked at: its file_format, size, grey values and surroundings.

Shortcut baselines: how well the label is told without looking at a lung.

Small models see the file_format alone, the size alone, grey statistics alone, or what lies around the lungs
alone. Where they do well, a network's figures say little about the disease: it may have learnt the same.
Roberts et al., Common pitfalls and recommendations for using machine learning to detect and prognosticate
for COVID-19 using chest radiographs and CT scans, Nature Machine Intelligence 3, 2021.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from groundglass.data.manifest import Label, Record
from groundglass.errors import DataError
from groundglass.evaluation.bootstrap import bootstrap
from groundglass.evaluation.metrics import compute_metrics
from groundglass.files import printable
from groundglass.imaging.crop import find_lungs
from groundglass.imaging.slice import CTSlice, Grey

SIZE_FEATURES = ("width", "height", "width to height", "pixels")

GREY_FEATURES = (
    *("mean", "standard deviation"),
    *(f"{percent} % percentile" for percent in (1, 5, 25, 50, 75, 95, 99)),
    *("share of black", "share of white", "entropy"),
)

SURROUNDINGS_FEATURES = (
    *(f"{name} outside the lungs' box" for name in GREY_FEATURES),
    *(
        f"{name} of the {edge} edge"
        for edge in ("top", "bottom", "left", "right")
        for name in GREY_FEATURES[:2]
    ),
)

_PERCENTILES = (0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
# The middle of the picture, where lungs are, is blanked where none were found.
_MIDDLE = (0.15, 0.20, 0.85, 0.80)
_MARGIN = 0.02
_EDGE = 0.02
_LEAST_PIXELS = 50


@dataclass(frozen=True)
class ShortcutFeatures:
    """What a slice says without its lungs.

    Attributes:
        file_format: format, pixel mode and suffix, such as ``PNG RGBA .png``.
        size: `SIZE_FEATURES`, float32.
        grey: `GREY_FEATURES`, float32.
        surroundings: `SURROUNDINGS_FEATURES`, float32.
    """

    file_format: str
    size: NDArray[np.float32]
    grey: NDArray[np.float32]
    surroundings: NDArray[np.float32]


def shortcut_features(record: Record, image: CTSlice) -> ShortcutFeatures:
    """Measure a slice.

    Args:
        record: the slice.
        image: the same, read.
    """
    height, width = image.pixels.shape
    suffix = record.path.suffix.lower()
    return ShortcutFeatures(
        file_format=f"{image.origin.file_format} {image.origin.mode} {suffix}".strip(),
        size=np.array([width, height, width / height, width * height], np.float32),
        grey=_grey_statistics(image.pixels),
        surroundings=_surroundings(image.pixels),
    )


def _grey_statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    share = np.bincount(pixels.ravel(), minlength=256) / max(pixels.size, 1)
    grey = np.arange(256)
    mean = float((share * grey).sum())
    deviation = float(np.sqrt((share * (grey - mean) ** 2).sum()))
    percentiles = np.searchsorted(np.cumsum(share), _PERCENTILES)
    present = share[share > 0]
    entropy = -float((present * np.log2(present)).sum())
    return np.array([mean, deviation, *percentiles, share[0], share[255], entropy], np.float32)


def _surroundings(pixels: Grey) -> NDArray[np.float32]:
    """Statistics of what lies outside a box around the lungs, and of the picture's four edges.

    The box hides mediastinum and heart as well. Neither its size nor its place is told: they change with the
    disease.
    """
    height, width = pixels.shape
    outside = np.ones(pixels.shape, np.bool_)
    outside[_lungs_box(pixels)] = False
    around = pixels[outside]
    statistics = np.zeros(len(GREY_FEATURES), np.float32)
    if len(around) >= _LEAST_PIXELS:
        statistics = _grey_statistics(around)
    rows, columns = max(1, round(_EDGE * height)), max(1, round(_EDGE * width))
    edges = (pixels[:rows], pixels[-rows:], pixels[:, :columns], pixels[:, -columns:])
    moments = [moment for edge in edges for moment in (float(edge.mean()), float(edge.std()))]
    return np.concatenate([statistics, np.array(moments, np.float32)])


def _lungs_box(pixels: Grey) -> tuple[slice, slice]:
    height, width = pixels.shape
    mask, found = find_lungs(pixels)
    left, top, right, bottom = (
        round(share * side) for share, side in zip(_MIDDLE, (width, height) * 2, strict=True)
    )
    if found:
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    margin = round(_MARGIN * max(height, width))
    return slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)


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
        name: ``file_format``, ``size``, ``grey`` or ``surroundings``.
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
        file_formats: slices per label of each file_format.
        folds: of the cross-validation.
        seed: of folds, trees and resamples.
        reason: why nothing was measured.
    """

    baselines: tuple[Baseline, ...]
    file_formats: dict[str, dict[str, int]]
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
    file_formats = _count_containers(records, features)
    label = np.array([record.label is Label.COVID for record in records], np.int8)
    patient = np.array([record.patient_id for record in records], np.str_)
    folds = min(FOLDS, *(len(np.unique(patient[label == value])) for value in (0, 1)))
    if folds < 2:
        reason = "there are fewer than two patients of one of the labels"
        return ShortcutBaselines((), file_formats, folds, seed, reason)
    baselines = []
    for name, title, names, values in _views(features):
        model = _logistic if name == "file_format" else _forest
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
    return ShortcutBaselines(tuple(baselines), file_formats, folds, seed)


_Values = NDArray[np.float32]
_Model = Callable[[int, int], Any]


def _views(
    features: Sequence[ShortcutFeatures],
) -> Iterator[tuple[str, str, Sequence[str], _Values]]:
    """Name, title, names of the features and their values, shape (N, features), of each shortcut."""
    kinds = sorted({one.file_format for one in features})
    shown = np.array([[one.file_format == kind for kind in kinds] for one in features], np.float32)
    yield "file_format", "file_format alone", kinds, shown
    yield "size", "size alone", SIZE_FEATURES, np.stack([one.size for one in features])
    yield "grey", "grey statistics alone", GREY_FEATURES, np.stack([one.grey for one in features])
    around = np.stack([one.surroundings for one in features])
    yield "surroundings", "border and background alone, lungs blanked out", SURROUNDINGS_FEATURES, around


def _count_containers(
    records: Sequence[Record], features: Sequence[ShortcutFeatures]
) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for record, one in sorted(zip(records, features, strict=True), key=lambda pair: pair[1].file_format):
        if record.label is not None:
            row = counts.setdefault(one.file_format, {label.value: 0 for label in Label})
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


INTERVAL = "95 % interval"

_RESAMPLES_STATED = 1000
_EXPECTED = (
    "expected predictions.csv or metrics.json of `groundglass evaluate`, or a seed's or summary.json of "
    "`groundglass repeat`"
)


@dataclass(frozen=True)
class Figure:
    """A measure with its interval; bounds are None where there is none.

    Attributes:
        value: the measure.
        low: lower bound.
        high: upper bound.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class StatedFigures:
    """How well a network tells the label.

    Attributes:
        name: of the network or recipe, else of the file.
        part: it was judged on.
        slices: in that part.
        auc: area under the ROC curve.
        accuracy: share of slices called rightly.
        bounds: what the bounds of both mean.
    """

    name: str
    part: str
    slices: int
    auc: Figure
    accuracy: Figure
    bounds: str = INTERVAL


def read_stated(path: Path) -> StatedFigures:
    """Read a network's AUC and accuracy, on the test part where the file has several.

    Args:
        path: ``predictions.csv`` or ``metrics.json`` of an evaluation, or a result of several seeds, whose
            interval is then one standard deviation over the seeds to either side.

    Raises:
        DataError: the file cannot be read, or holds no such figures.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    try:
        return _from_csv(path, text) if path.suffix.lower() == ".csv" else _from_json(path, json.loads(text))
    except (DataError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(f"{path}: holds no figures of a network ({error}); {_EXPECTED}") from error


def _from_csv(path: Path, text: str) -> StatedFigures:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    label = np.array([Label.parse(row["label"]) is Label.COVID for row in rows], np.int8)
    probability = np.array([float(row["probability"]) for row in rows])
    patient = np.array([row.get("patient_id") or row["file"] for row in rows], np.str_)
    measured = compute_metrics(label, probability).values()
    resampled = bootstrap(label, probability, patient, resamples=_RESAMPLES_STATED)

    def figure(name: str) -> Figure:
        value = measured[name]
        if value is None:
            raise ValueError("its slices are all of one label")
        interval = resampled.intervals[name]
        return Figure(value, interval.low, interval.high)

    parts = {row.get("split") or "" for row in rows}
    part = parts.pop() if len(parts) == 1 else ""
    return StatedFigures(printable(path.name), part or "all", len(rows), figure("auc"), figure("accuracy"))


def _from_json(path: Path, document: Mapping[str, Any]) -> StatedFigures:
    name = printable(path.stem)
    if "parts" in document:
        part = "test" if "test" in document["parts"] else next(iter(document["parts"]))
        measured = document["parts"][part]
        recipe = document.get("recipe")
        name = str(document.get("network") or (recipe or {}).get("name") or name)
    else:
        measured = document
        part = str(document["data"]["part"])
        name = str(document["run"]["network"])
    slices = int(measured.get("slices") or measured["data"]["slices"])
    auc, accuracy = (_figure(measured["metrics"][key]) for key in ("auc", "accuracy"))
    seeds = len(document.get("seeds") or ())
    bounds = f"one standard deviation over {seeds} seeds" if seeds else INTERVAL
    return StatedFigures(name, part, slices, auc, accuracy, bounds)


def _figure(measure: Mapping[str, Any]) -> Figure:
    if "mean" in measure:
        mean, spread = float(measure["mean"]), float(measure["sd"])
        value, low, high = mean, mean - spread, mean + spread
    else:
        value, low, high = (
            float(measure[key]) if measure.get(key) is not None else math.nan
            for key in ("value", "low", "high")
        )
    if not math.isfinite(value):
        raise ValueError("a figure is undefined")
    return Figure(value, low if math.isfinite(low) else None, high if math.isfinite(high) else None)
