"""What is kept of a run of an experiment: one JSON from which every table and test can be computed again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from groundglass.data.manifest import Label
from groundglass.errors import DataError
from groundglass.files import write_text
from groundglass.training.recipe import FREE, NetworkSection, Recipe

FORMAT = 2

PROTOCOLS: Mapping[str, str] = {
    "random": "draws of a fifth of the slices, stratified by label; patients are not kept apart",
    "official": "the data set's own split",
    "patients": "folds over patients; every slice is tested once, by networks that have not seen its patient",
}
"""Protocols of Table I in its order, and what they mean."""

PAPER = "paper"
"""The recipe of Table I and of convergence."""

DEFAULT = "default"
"""The ablation's row that all others are compared with."""

LEFT_OUT = "left-out"
"""The ablation's protocol that trains without some sources and tests on them."""


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
    split: Mapping[str, Any]
    run: Mapping[str, Any]
    cost: Mapping[str, int]
    recipe: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]
    parts: Mapping[str, Mapping[str, Any]]
    predictions: Mapping[str, Predictions]


# Fields of a result that stand in its file as they are.
_PLAIN = [name for name in RunResult.__dataclass_fields__ if name not in {"path", "identity", "predictions"}]


def write_run_result(result: RunResult) -> None:
    """Write a result to its path atomically, indented, but each slice's prediction on one line."""
    document = {"format": FORMAT, **asdict(result.identity), **{name: getattr(result, name) for name in _PLAIN}}
    predictions = {part: _rows(own) for part, own in result.predictions.items()}
    text = json.dumps({**document, "predictions": predictions}, indent=2, ensure_ascii=False, allow_nan=False)
    head, key, listed = text.rpartition('\n  "predictions": ')
    listed = re.sub(r"(?<=\[)\n {8}|\n {6}(?=\])", "", listed).replace(",\n" + 8 * " ", ", ")
    write_text(result.path, f"{head}{key}{listed}\n")


def _rows(predictions: Predictions) -> list[tuple[str, str, str, float]]:
    labels = [(Label.COVID if covid else Label.NON_COVID).value for covid in predictions.label]
    # Nine digits give a float32 back exactly.
    logits = [float(f"{logit:.9g}") for logit in predictions.logit]
    return list(zip(predictions.file, labels, predictions.patient.tolist(), logits, strict=True))


def read_run_result(path: Path) -> RunResult:
    """Read what :func:`write_run_result` wrote.

    Raises:
        DataError: it cannot be read, is damaged, or is of a format this version does not know.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise DataError(f"is of format {document['format']}, this version reads {FORMAT}")
        return RunResult(
            path=path,
            identity=Identity(**{field: document[field] for field in Identity.__dataclass_fields__}),
            predictions={part: _predictions(rows) for part, rows in document["predictions"].items()},
            **{name: document[name] for name in _PLAIN},
        )
    except (DataError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: no readable result of a run ({reason}); remove it and run again") from None


def _predictions(rows: Sequence[Sequence[Any]]) -> Predictions:
    file, label, patient, logit = zip(*rows, strict=True)
    covid = np.array([Label(each) is Label.COVID for each in label], np.int8)
    return Predictions(tuple(map(str, file)), covid, np.array(patient, np.str_), np.array(logit, np.float64))


def read_run_results(folder: Path) -> list[RunResult]:
    """Every result below an experiment's folder, in the order of their names.

    Raises:
        DataError: a result is damaged, or there is none.
    """
    results = [read_run_result(path) for path in sorted(folder.glob("*/*-seed-*.json"))]
    if not results:
        raise DataError(f"{folder}: holds no result of a run yet")
    return results


def complete(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe that decide, as ``--set`` spells them; one that is newer than the recipe has its default."""
    default = Recipe(name="", network=NetworkSection(name="")).model_dump(mode="json")
    fields = {**dict(_flat(default)), **dict(_flat(recipe))}
    return {key: value for key, value in fields.items() if key.removeprefix("trainer.") not in FREE}


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a recipe as ``--set`` spells them; one that holds names and values, such as options, is one field."""
    for key, value in recipe.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
