"""What came out of an evaluation, and its form as CSV and JSON."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass import __version__
from groundglass.evaluation.calibration import BINS, reliability
from groundglass.evaluation.distance import Distance
from groundglass.evaluation.distance_document import distance_document
from groundglass.evaluation.intervals import LEVEL, Bootstrap
from groundglass.evaluation.metrics import THRESHOLD, Metrics
from groundglass.evaluation.opacity import MeasuredOpacity, opacity_columns
from groundglass.evaluation.part import Part, printable
from groundglass.evaluation.protocol import TrainedRun


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated and what came out.

    Attributes:
        part: the slices.
        sha256: fingerprint of their contents and labels.
        logit: of COVID, shape (N,).
        probability: of COVID, shape (N,).
        metrics: the measures.
        bootstrap: their intervals.
        warnings: what a reader must know before trusting them.
        looks: how often these slices have been evaluated with this run, this time included.
        time: when, ISO 8601 in UTC.
        seconds: how long reading and predicting took.
        command: reproduces the evaluation.
        distance: how far the slices lie from the training data; None for a run, which does not know.
        opacity: what the second output says; None where the network has none.
    """

    part: Part
    sha256: str
    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    metrics: Metrics
    bootstrap: Bootstrap
    warnings: tuple[str, ...]
    looks: int
    time: str
    seconds: float
    command: str
    distance: Distance | None = None
    opacity: MeasuredOpacity | None = None

    @property
    def called(self) -> NDArray[np.bool_]:
        """Which slices are called COVID, shape (N,)."""
        return self.probability >= THRESHOLD


def predictions_csv(evaluation: Evaluation) -> str:
    """One line per slice: file, label, patient_id, source, split, probability, logit, prediction.

    Where the network has the second output, opacity (a probability) and opacity_logit follow.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    second = opacity_columns(evaluation.opacity, len(evaluation.part.records))
    columns = ["file", "label", "patient_id", "source", "split", "probability", "logit", "prediction"]
    writer.writerow([*columns, *second[0]])
    for record, probability, logit, called, more in zip(
        evaluation.part.records,
        evaluation.probability,
        evaluation.logit,
        evaluation.called,
        second[1:],
        strict=True,
    ):
        file = evaluation.part.file(record)
        patient, source = (_writable(field) for field in (record.patient_id, record.source))
        label = record.label.value if record.label else ""
        numbers = [f"{probability:.9g}", f"{logit:.9g}"]
        split = record.split or ""
        verdict = "COVID" if called else "NonCOVID"
        writer.writerow([file, label, patient, source, split, *numbers, verdict, *more])
    return text.getvalue()


def _writable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def versions(
    packages: Sequence[str] = ("numpy", "scikit-learn", "opencv-python-headless"),
) -> dict[str, str]:
    """Versions of what computes the figures: this package, Python, and other packages."""
    return {"groundglass": __version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def metrics_document(run: TrainedRun, evaluation: Evaluation) -> dict[str, Any]:
    """Everything measured and everything needed to measure it again, as plain JSON values."""
    part, intervals = evaluation.part, evaluation.bootstrap
    covid = int(part.label.sum())
    return {
        "format": 1,
        "run": {
            "path": printable(run.path),
            "recipe": run.recipe.name,
            "network": run.recipe.network.name,
            "seed": run.seed,
            "split": run.split_spec,
            "finished": bool(run.info.get("finished", False)),
            "training_seconds": run.info.get("training_seconds"),
            "versions": run.info.get("versions"),
        },
        "data": {
            "name": part.data,
            "root": printable(part.root),
            "split": part.split,
            "part": part.name,
            "slices": len(part.records),
            "covid": covid,
            "non_covid": len(part.records) - covid,
            "patients": intervals.patients,
            "unlabelled": part.unlabelled,
            "fingerprint": evaluation.sha256,
        },
        "positive": "COVID",
        "threshold": THRESHOLD,
        "metrics": {
            name: {
                **asdict(metric),
                "low": intervals.intervals[name].low,
                "high": intervals.intervals[name].high,
                "undefined_resamples": intervals.intervals[name].undefined,
                "interval_reason": intervals.intervals[name].reason,
            }
            for name, metric in evaluation.metrics
        },
        "confusion": asdict(evaluation.metrics.confusion),
        "interval": {
            "level": LEVEL,
            "method": "percentile bootstrap over patients",
            "resamples": intervals.resamples,
            "one_class_resamples": intervals.one_class,
            "seed": intervals.seed,
        },
        "calibration": {
            "bins": BINS,
            "reliability": [asdict(each) for each in reliability(part.label, evaluation.probability)],
        },
        **({} if evaluation.opacity is None else {"opacity": evaluation.opacity.document()}),
        **({} if evaluation.distance is None else {"distance": distance_document(evaluation.distance)}),
        "warnings": list(evaluation.warnings),
        "evaluations_of_these_slices": evaluation.looks,
        "time": evaluation.time,
        "seconds": round(evaluation.seconds, 3),
        "versions": versions(),
        "command": evaluation.command,
    }
