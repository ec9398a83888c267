"""The same recipe over several seeds: one JSON per seed, their mean and spread, and the table of a README.

What is kept of one run of an experiment: one JSON from which every table and test can be made again.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from groundglass.data.manifest import Label
from groundglass.errors import DataError, RunError
from groundglass.evaluation.bootstrap import LEVEL
from groundglass.evaluation.evaluate import Evaluation, TrainedRun
from groundglass.evaluation.metrics import TITLES, versions
from groundglass.files import write_json, write_text

FORMAT = 1

NOT_RUN = "not-run.json"
"""File of an experiment's folder that says which runs could not be made, and why."""

SPEED = "speed.json"
"""File of an experiment's folder with its networks' speed, measured side by side."""

_RUN_FIELDS_LEFT_OUT = frozenset({"training_sha256"})


@dataclass(frozen=True)
class Identity:
    """Which run of which experiment.

    Attributes:
        experiment: ``table1``, ``ablation`` or ``convergence``.
        protocol: how slices are split, such as ``official``; also the folder of its results.
        row: of the table, such as ``vgg-16-none`` or ``no-mask``.
        title: what a table calls the row.
        seed: of the training.
        fold: number of the fold that is tested, from 1; None without folds.
        folds: how many there are.
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
class Judged:
    """What a network said of the slices of a part.

    Attributes:
        file: paths below the data set's folder.
        label: 1 for COVID and 0 for NonCOVID, shape (N,).
        patient: id of each slice's patient, shape (N,).
        logit: of COVID, shape (N,).
    """

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
    """One finished run.

    Attributes:
        path: of the JSON.
        identity: which run it is.
        network: its name in the registry.
        weights: what it started from.
        recipe: every field.
        run: seed, split, data, versions, machine, training seconds, threads.
        split: its specification and fingerprints.
        history: one mapping per epoch.
        cost: parameters, operations, side of the input.
        inference: images per second and how they were measured, or None.
        parts: measures with intervals, by part.
        judged: every slice, by part.
        pretraining: what the weights were pretrained on, where that is known.
    """

    path: Path
    identity: Identity
    network: str
    weights: str
    recipe: Mapping[str, Any]
    run: Mapping[str, Any]
    split: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]
    cost: Mapping[str, Any]
    inference: Mapping[str, Any] | None
    parts: Mapping[str, Mapping[str, Any]]
    judged: Mapping[str, Judged]
    pretraining: Mapping[str, Any] | None = None


def run_result_document(
    identity: Identity,
    run: TrainedRun,
    evaluations: Mapping[str, Evaluation],
    *,
    weights: str,
    cost: Mapping[str, Any],
    inference: Mapping[str, Any] | None,
    pretraining: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that is kept of a finished run, as plain JSON values.

    Args:
        identity: which run it is.
        run: the trained network.
        evaluations: what it said, by part.
        weights: what it started from, by kind.
        cost: parameters and operations.
        inference: images per second.
        pretraining: what the weights were pretrained on, where that is known.

    Raises:
        RunError: the history holds a value that is no number.
    """
    history = [dict(row) for row in run.history()]
    for row in history:
        if not all(math.isfinite(value) for value in row.values()):
            raise RunError(
                f"{run.path}: epoch {row.get('epoch'):.0f} has no finite loss; was the training stable?"
            )
    kept = {key: value for key, value in run.info.items() if key not in _RUN_FIELDS_LEFT_OUT}
    kept["versions"] = {**kept.get("versions", {}), **versions()}
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
        "run": kept,
        "cost": cost,
        "inference": inference,
        "recipe": run.recipe.model_dump(mode="json"),
        "history": history,
        "parts": {part: _measured(evaluation) for part, evaluation in evaluations.items()},
        "predictions": {part: _predictions(evaluation) for part, evaluation in evaluations.items()},
    }


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    intervals = evaluation.bootstrap
    return {
        "slices": len(evaluation.part.records),
        "covid": int(evaluation.part.label.sum()),
        "patients": intervals.patients,
        "metrics": {
            name: {
                **asdict(metric),
                "low": intervals.intervals[name].low,
                "high": intervals.intervals[name].high,
            }
            for name, metric in evaluation.metrics
        },
        "confusion": asdict(evaluation.metrics.confusion),
        "interval": {
            "level": LEVEL,
            "method": "percentile bootstrap over patients",
            "resamples": intervals.resamples,
            "seed": intervals.seed,
        },
        "warnings": list(evaluation.warnings),
        "evaluations_of_these_slices": evaluation.times_evaluated,
    }


def _predictions(evaluation: Evaluation) -> list[list[Any]]:
    """File, label, patient and logit of each slice; nine digits give a float32 back exactly."""
    part = evaluation.part
    return [
        [part.file(record), _label(record.label), _writable(record.patient_id), float(f"{logit:.9g}")]
        for record, logit in zip(part.records, evaluation.logit, strict=True)
    ]


def _label(label: Label | None) -> str:
    return label.value if label is not None else ""


def _writable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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
            raise DataError(f"{path}: is of format {document['format']}, this version reads {FORMAT}")
        return RunResult(
            path=path,
            identity=Identity(**{field: document[field] for field in Identity.__dataclass_fields__}),
            judged={part: _judged(rows) for part, rows in document["predictions"].items()},
            **{
                field: document[field]
                for field in RunResult.__dataclass_fields__
                if field not in {"path", "identity", "judged"}
            },
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: no readable result of a run ({reason}); remove it and run again") from None


def _judged(rows: Sequence[Sequence[Any]]) -> Judged:
    label = np.array([Label(row[1]) is Label.COVID for row in rows], np.int8)
    logit = np.array([float(row[3]) for row in rows], np.float64)
    return Judged(tuple(str(row[0]) for row in rows), label, np.array([str(row[2]) for row in rows]), logit)


def read_run_results(folder: Path) -> list[RunResult]:
    """Every result below an experiment's folder, in the order of their names.

    Raises:
        DataError: a result is damaged, or there is none.
    """
    outcomes = [read_run_result(path) for path in sorted(folder.glob("*/*-seed-*.json"))]
    if not outcomes:
        raise DataError(f"{folder}: holds no result of a run yet")
    return outcomes


def read_not_run(folder: Path) -> dict[str, str]:
    """Runs that could not be made, by name, and why; those made since are left out.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / NOT_RUN
    if not path.exists():
        return {}
    try:
        reasons = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): str(reason)
            for name, reason in reasons.items()
            if not (folder / f"{name}.json").exists()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it") from None


def read_speed(folder: Path) -> dict[str, dict[str, Any]]:
    """Speed of networks measured side by side, by network; empty where it was not.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / SPEED
    if not path.exists():
        return {}
    try:
        return {str(name): dict(each) for name, each in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); measure again with --speed") from None


BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""Where in a Markdown file the generated table stands."""


def seed_document(run: TrainedRun, parts: Mapping[str, Path]) -> dict[str, Any]:
    """What is kept of one finished run: recipe, circumstances, and the metrics of each part.

    Args:
        run: a finished run.
        parts: part name to the folder of its evaluation.
    """
    info = {key: value for key, value in run.info.items() if key != "training_sha256"}
    return {
        "seed": run.seed,
        "run": info,
        "recipe": run.recipe.model_dump(mode="json"),
        "history": list(run.history()),
        "parts": {name: _measured_repeat(folder / "metrics.json") for name, folder in parts.items()},
    }


def _measured_repeat(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    kept = ("data", "metrics", "confusion", "interval", "warnings", "evaluations_of_these_slices", "command")
    return {key: document[key] for key in kept}


def summarise(folder: Path) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of ``folder``, for every part and measure.

    Raises:
        DataError: no seed is there, or the seeds differ in recipe, split or data.
    """
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("seed-*.json"))]
    if not documents:
        raise DataError(f"{folder}: holds no seed-*.json; make them with `groundglass repeat`")
    documents.sort(key=lambda document: int(document["seed"]))
    first = documents[0]
    for other in documents[1:]:
        seeds = f"seeds {first['seed']} and {other['seed']}"
        if other["recipe"] != first["recipe"]:
            raise DataError(f"{folder}: {seeds} differ in their recipe")
        if other["run"]["split"] != first["run"]["split"]:
            raise DataError(f"{folder}: {seeds} differ in their split")
    return {
        "recipe": first["recipe"]["name"],
        "network": first["recipe"]["network"]["name"],
        "size": first["recipe"]["preprocessing"]["size"],
        "epochs": first["recipe"]["training"]["epochs"],
        "split": first["run"]["split"],
        "seeds": [document["seed"] for document in documents],
        "training_seconds": _spread(document["run"]["training_seconds"] for document in documents),
        "parts": {
            part: {
                "slices": first["parts"][part]["data"]["slices"],
                "patients": first["parts"][part]["data"]["patients"],
                "metrics": {
                    name: _spread(document["parts"][part]["metrics"][name]["value"] for document in documents)
                    for name in TITLES
                },
            }
            for part in first["parts"]
        },
    }


def _spread(values: Iterable[float | None]) -> dict[str, Any]:
    known = [float(value) for value in values if value is not None]
    if not known:
        return {"mean": None, "sd": None, "values": []}
    return {
        "mean": statistics.fmean(known),
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "values": known,
    }


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table: mean ± standard deviation over seeds, one column per part."""
    parts = summary["parts"]
    heads = [
        f"{part} ({value['slices']} slices, {value['patients']} patients)" for part, value in parts.items()
    ]
    lines = [
        f"{summary['network']}, recipe `{summary['recipe']}`, {summary['size']} × {summary['size']} pixels, "
        f"{summary['epochs']} epochs, split `{summary['split']}`, seeds "
        f"{', '.join(str(seed) for seed in summary['seeds'])}: mean ± standard deviation over the seeds.",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    lines += [
        f"| {title} | {' | '.join(_cell(value['metrics'][name]) for value in parts.values())} |"
        for name, title in TITLES.items()
    ]
    return "\n".join(lines) + "\n"


def _cell(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    return f"{spread['mean']:.3f}" + (f" ± {spread['sd']:.3f}" if spread["sd"] is not None else "")


def write_summary(folder: Path) -> dict[str, Any]:
    """Write ``summary.json`` and ``summary.md`` beside the seeds, and return the summary."""
    summary = summarise(folder)
    write_json(folder / "summary.json", summary)
    write_text(folder / "summary.md", summary_table(summary))
    return summary


def update_readme(readme: Path, table: str, begin: str = BEGIN, end: str = END) -> None:
    """Put ``table`` between the markers of a Markdown file.

    Raises:
        DataError: the markers are not there, once each and in order.
    """
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise DataError(f"{readme}: holds no {begin} ... {end} to put the table into")
    write_text(readme, f"{before}{begin}\n{table}{end}{after}")
