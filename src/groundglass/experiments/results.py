"""What is kept of a run of an experiment: one JSON from which every table and test can be computed again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from groundglass.data.manifest import Label
from groundglass.errors import DataError, RunError
from groundglass.evaluation.evaluate import Evaluation, TrainedRun, metrics_document
from groundglass.files import printable, write_text

FORMAT = 2
NOT_RUN = "not-run.json"
"""File of an experiment's folder that says which runs could not be made, and why."""

PROTOCOLS: Mapping[str, str] = {
    "paper": "slices split at random, stratified by label; patients are not kept apart",
    "official": "the data set's own split",
    "patients": "folds over patients; every slice is tested once, by networks that have not seen its patient",
}
"""Protocols of Table I in its order, and what they mean."""

DEFAULT = "default"
"""The ablation's row that all others are compared with."""

LEFT_OUT = "left-out"
"""The ablation's protocol that trains without some sources and tests on them."""

_MEASURED = ("metrics", "confusion", "interval", "warnings", "evaluations_of_these_slices")


@dataclass(frozen=True)
class Identity:
    """Which run of which experiment.

    ``protocol`` says how slices are split and names the folder of the results; ``row`` is what a table calls
    ``title``; ``fold`` is the one that is tested, from 1, of so many ``folds``, None without folds.
    """

    experiment: str
    protocol: str
    row: str
    title: str
    seed: int
    fold: int | None = None
    folds: int | None = None

    @property
    def name(self) -> str:
        """Its place below the experiment's folder, without suffix."""
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        return f"{self.protocol}/{self.row}-seed-{self.seed}{fold}"


@dataclass(frozen=True)
class Predictions:
    """What a network predicts of N slices: paths below the data set's folder, label (1 for COVID), logit."""

    file: tuple[str, ...]
    label: NDArray[np.int8]
    patient: NDArray[np.str_]
    logit: NDArray[np.float64]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Of COVID, 0 to 1, shape (N,)."""
        return np.asarray(expit(self.logit), np.float64)


@dataclass(frozen=True)
class RunResult:
    """One finished run, as its JSON at ``path`` holds it; docs/experiments.md names the fields.

    ``predictions`` are of every slice, by part; results made before these were kept have none.
    """

    path: Path
    identity: Identity
    network: str
    weights: str
    pretraining: Mapping[str, Any] | None
    recipe: Mapping[str, Any]
    run: Mapping[str, Any]
    split: Mapping[str, Any]
    cost: Mapping[str, int]
    history: Sequence[Mapping[str, float]]
    parts: Mapping[str, Mapping[str, Any]]
    predictions: Mapping[str, Predictions]


def run_result_document(
    identity: Identity,
    run: TrainedRun,
    evaluations: Mapping[str, Evaluation],
    *,
    weights: str,
    cost: Mapping[str, int],
    pretraining: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that is kept of a finished run, as plain JSON values.

    ``evaluations`` are by part; ``pretraining`` is what the weights were pretrained on, where that is known.

    Raises:
        RunError: the history holds a value that is no number.
    """
    history = [dict(row) for row in run.history()]
    for row in history:
        if not all(math.isfinite(value) for value in row.values()):
            raise RunError(
                f"{run.path}: epoch {row['epoch']:.0f} has no finite loss; was the training stable?"
            )
    measured = {part: _measured(metrics_document(run, each)) for part, each in evaluations.items()}
    return {
        "format": FORMAT,
        **asdict(identity),
        "network": run.recipe.network.name,
        "weights": weights,
        "pretraining": pretraining,
        "split": {
            "specification": run.split_spec,
            "train_and_val": run.info.get("fingerprint"),
            "parts": {part: evaluation.sha256 for part, evaluation in evaluations.items()},
        },
        "run": {key: value for key, value in run.info.items() if key != "training_sha256"},
        "cost": dict(cost),
        "recipe": run.recipe.model_dump(mode="json"),
        "history": history,
        "parts": measured,
        "predictions": {part: _rows(evaluation) for part, evaluation in evaluations.items()},
    }


def _measured(document: Mapping[str, Any]) -> dict[str, Any]:
    counts = {key: document["data"][key] for key in ("slices", "covid", "patients")}
    return counts | {key: document[key] for key in _MEASURED}


def _rows(evaluation: Evaluation) -> list[list[Any]]:
    """File, label, patient and logit of each slice; nine digits give a float32 back exactly."""
    part = evaluation.part
    return [
        [part.file(record), record.label.value if record.label else "", printable(record.patient_id), logit]
        for record, logit in zip(part.records, (float(f"{x:.9g}") for x in evaluation.logit), strict=True)
    ]


def write_run_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document atomically, indented, but each slice's prediction on one line."""
    head = {key: value for key, value in document.items() if key != "predictions"}
    text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    parts = []
    for part, rows in document["predictions"].items():
        lines = ",\n".join(f"      {json.dumps(row, ensure_ascii=False, allow_nan=False)}" for row in rows)
        parts.append(f"    {json.dumps(part)}: [\n{lines}\n    ]")
    predictions = "{\n" + ",\n".join(parts) + "\n  }" if parts else "{}"
    write_text(path, f'{text},\n  "predictions": {predictions}\n}}\n')


def read_run_result(path: Path) -> RunResult:
    """Read what `write_run_result` wrote.

    Raises:
        DataError: it cannot be read, is damaged, or is of a format this version does not know.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise DataError(f"is of format {document['format']}, this version reads {FORMAT}")
        own = set(RunResult.__dataclass_fields__) - {"path", "identity", "predictions"}
        return RunResult(
            path=path,
            identity=Identity(**{field: document[field] for field in Identity.__dataclass_fields__}),
            predictions={part: _predictions(rows) for part, rows in document["predictions"].items()},
            **{field: document[field] for field in own},
        )
    except (DataError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: no readable result of a run ({reason}); remove it and run again") from None


def _predictions(rows: Sequence[Sequence[Any]]) -> Predictions:
    label = np.array([Label(row[1]) is Label.COVID for row in rows], np.int8)
    logit = np.array([float(row[3]) for row in rows], np.float64)
    return Predictions(
        tuple(str(row[0]) for row in rows), label, np.array([str(row[2]) for row in rows], np.str_), logit
    )


def flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a recipe as ``--set`` spells them."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_run_results(folder: Path) -> list[RunResult]:
    """Every result below an experiment's folder, in the order of their names.

    Raises:
        DataError: a result is damaged, or there is none.
    """
    results = [read_run_result(path) for path in sorted(folder.glob("*/*-seed-*.json"))]
    if not results:
        raise DataError(f"{folder}: holds no result of a run yet")
    return results


def read_not_run(folder: Path) -> dict[str, str]:
    """Runs that could not be made, by name, and why; those made since are left out.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / NOT_RUN
    if not path.exists():
        return {}
    try:
        reasons = json.loads(path.read_text(encoding="utf-8")).items()
        return {str(name): str(why) for name, why in reasons if not (folder / f"{name}.json").exists()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it") from None
