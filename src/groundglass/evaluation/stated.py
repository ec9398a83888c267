"""A network's figures as some file states them, to stand beside what needs no network."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundglass.data.audit import writable
from groundglass.data.manifest import Label
from groundglass.errors import DataError
from groundglass.evaluation.intervals import bootstrap
from groundglass.evaluation.metrics import compute_metrics

INTERVAL = "95 % interval"

_RESAMPLES = 1000
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
    resampled = bootstrap(label, probability, patient, resamples=_RESAMPLES)

    def figure(name: str) -> Figure:
        value = measured[name]
        if value is None:
            raise ValueError("its slices are all of one label")
        interval = resampled.intervals[name]
        return Figure(value, interval.low, interval.high)

    parts = {row.get("split") or "" for row in rows}
    part = parts.pop() if len(parts) == 1 else ""
    return StatedFigures(writable(path.name), part or "all", len(rows), figure("auc"), figure("accuracy"))


def _from_json(path: Path, document: Mapping[str, Any]) -> StatedFigures:
    name = writable(path.stem)
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
