"""The log of what was tried: one JSON per training that was judged on validation, and their table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundglass.atomic import write_json
from groundglass.errors import DataError
from groundglass.evaluation.protocol import TrainedRun

BEGIN, END = "<!-- trials:begin -->", "<!-- trials:end -->"
"""Where in a Markdown file the generated table stands."""

Complete = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Gives a recipe the fields that it has not, as they mean what was done before there were such fields."""


def record_trial(run: TrainedRun, folder: Path) -> Path:
    """Keep a run's recipe, circumstances and history as ``NAME.json``; a run stopped early is kept as such.

    Raises:
        DataError: the run has not ended a single epoch.
    """
    history = list(run.history())
    if not history:
        raise DataError(f"{run.path}: has ended no epoch yet; there is nothing to record")
    kept = (
        "finished",
        "seed",
        "split",
        "data",
        "lesion_free",
        "counts",
        "fingerprint",
        "versions",
        "machine",
    )
    document = {
        "name": run.path.name,
        "run": {key: run.info.get(key) for key in kept},
        "recipe": run.recipe.model_dump(mode="json"),
        "history": history,
    }
    target = folder / f"{run.path.name}.json"
    write_json(target, document)
    return target


def trials_table(folder: Path, default: Mapping[str, Any], complete: Complete = dict) -> str:
    """The trials of ``folder`` as Markdown, each by what sets it apart from the ``default`` recipe.

    Args:
        folder: of the log.
        default: every field of that recipe.
        complete: for recipes of trials that are older than some fields.

    Raises:
        DataError: no trial is there.
    """
    trials = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not trials:
        raise DataError(f"{folder}: holds no trial; record some with `groundglass trials RUN...`")
    for trial in trials:
        trial["recipe"] = complete(trial["recipe"])
    trials.sort(key=lambda trial: (trial["run"]["split"], trial["name"]))
    lines = [
        "| trial | split, seed | differs from the default in | epochs | loss | AUC | accuracy | best AUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(trial, default) for trial in trials]) + "\n"


def _row(trial: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    history: Sequence[Mapping[str, float]] = trial["history"]
    last = history[-1]
    best = max(history, key=lambda row: row["val_auc"])
    wanted = trial["recipe"]["training"]["epochs"]
    epochs = f"{len(history)}" if trial["run"]["finished"] else f"{len(history)} of {wanted}, stopped"
    changes = ", ".join(f"`{key}={value}`" for key, value in _changes(trial["recipe"], default)) or "nothing"
    return (
        f"| {trial['name']} | `{trial['run']['split']}`, {trial['run']['seed']} | {changes} | {epochs} "
        f"| {last['val_loss']:.3f} | {last['val_auc']:.3f} | {last['val_accuracy']:.3f} "
        f"| {best['val_auc']:.3f} (epoch {best['epoch']:.0f}) |"
    )


def _changes(recipe: Mapping[str, Any], default: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields, spelt as for ``--set``, in which a recipe differs from the default."""
    for section, fields in recipe.items():
        if isinstance(fields, Mapping):
            for key, value in fields.items():
                if value != default[section].get(key):
                    yield f"{section}.{key}", value
        elif fields != default.get(section):
            yield section, fields
