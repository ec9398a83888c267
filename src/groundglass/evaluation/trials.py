"""The log of what was tried: one JSON per training that was judged on validation, and their tables."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        "averaged",
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

    Before them stand the recipes that were tried on every fold of a cross-validation: those of most seeds
    first, and of these the best.

    Args:
        folder: of the log.
        default: every field of that recipe.
        complete: for recipes of trials that are older than some fields.

    Raises:
        DataError: no trial is there.
    """
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not documents:
        raise DataError(f"{folder}: holds no trial; record some with `groundglass trials RUN...`")
    trials = [_trial(document, default, complete) for document in documents]
    trials.sort(key=lambda trial: (trial.split, trial.name))
    lines = [
        *_folds_table(trials),
        "| trial | split, seed | differs from the default in | epochs | loss | AUC | accuracy | best AUC |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(trial) for trial in trials),
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Trial:
    """One document of the log.

    Attributes:
        changes: what sets it apart from the default.
        epochs: as the table says them.
    """

    name: str
    split: str
    seed: int
    changes: str
    finished: bool
    epochs: str
    history: Sequence[Mapping[str, float]]

    @property
    def fold(self) -> tuple[str, int, int] | None:
        """The cross-validation, named with the seed of its folds, their number, and which it is; or None."""
        match = re.fullmatch(r"([\w-]+):(\d+)/(\d+)(?::(\d+))?", self.split)
        if match is None:
            return None
        kind, number, folds, drawn = match.groups()
        return f"{kind}:FOLD/{folds}:{self.seed if drawn is None else drawn}", int(folds), int(number)


def _trial(document: Mapping[str, Any], default: Mapping[str, Any], complete: Complete) -> _Trial:
    run, recipe, history = document["run"], complete(document["recipe"]), document["history"]
    changes = [f"`{key}={value}`" for key, value in _changes(recipe, default)]
    wanted = recipe["training"]["epochs"]
    epochs = f"{len(history)}" if run["finished"] else f"{len(history)} of {wanted}, stopped"
    if averaged := run.get("averaged"):
        seeds = ", ".join(str(each["seed"]) for each in averaged)
        changes.append(f"weights averaged over seeds {seeds}")
        epochs = f"{wanted} each"
    words = ", ".join(changes) or "nothing"
    return _Trial(document["name"], run["split"], run["seed"], words, run["finished"], epochs, history)


def _folds_table(trials: Sequence[_Trial]) -> list[str]:
    """Recipes tried on every fold with the same seeds; no line where there is none."""
    rows = []
    for (name, folds, changes), by_seed in _by_folds(trials).items():
        whole = {seed: runs for seed, runs in by_seed.items() if len(runs) == folds}
        if whole:
            rows.append((name, len(whole), *_over_folds(changes, whole)))
    if not rows:
        return []
    rows.sort(key=lambda row: (row[0], -row[1], -row[2]))
    return [
        "| folds | differs from the default in | seeds | AUC of each fold | mean AUC | accuracy | loss |",
        "|---|---|---|---|---|---|---|",
        *(f"| `{name}` | {cells} |" for name, _, _, cells in rows),
        "",
        "AUC, accuracy and loss are those of the last epoch, on the fold that was left out, mean over folds "
        "and seeds; ± is the standard deviation of the seeds' means, by about which a row of one seed is "
        "uncertain. The best of many rows owes some of its lead to chance.",
        "",
    ]


_Runs = Mapping[int, _Trial]
"""Trials of one recipe and seed by the number of their fold."""


def _by_folds(trials: Sequence[_Trial]) -> Mapping[tuple[str, int, str], Mapping[int, _Runs]]:
    """Finished trials by cross-validation, its number of folds and changes, then by seed, then by fold."""
    found: dict[tuple[str, int, str], dict[int, dict[int, _Trial]]] = defaultdict(lambda: defaultdict(dict))
    for trial in trials:
        if trial.finished and trial.fold is not None:
            name, folds, number = trial.fold
            found[name, folds, trial.changes][trial.seed][number] = trial
    return found


def _over_folds(changes: str, by_seed: Mapping[int, _Runs]) -> tuple[float, str]:
    """Mean AUC, and the cells of a row."""

    def last(key: str, number: int) -> list[float]:
        return [runs[number].history[-1][key] for runs in by_seed.values()]

    numbers = sorted(next(iter(by_seed.values())))
    folds = [statistics.fmean(last("val_auc", number)) for number in numbers]
    seeds = [
        statistics.fmean(runs[number].history[-1]["val_auc"] for number in numbers)
        for runs in by_seed.values()
    ]
    mean = statistics.fmean(folds)
    spread = f" ± {statistics.stdev(seeds):.3f}" if len(seeds) > 1 else ""
    accuracy, loss = (
        statistics.fmean(statistics.fmean(last(key, number)) for number in numbers)
        for key in ("val_accuracy", "val_loss")
    )
    each = ", ".join(f"{auc:.3f}" for auc in folds)
    names = ", ".join(str(seed) for seed in sorted(by_seed))
    return mean, f"{changes} | {names} | {each} | {mean:.3f}{spread} | {accuracy:.3f} | {loss:.3f}"


def _row(trial: _Trial) -> str:
    last = trial.history[-1]
    best = max(trial.history, key=lambda row: row["val_auc"])
    return (
        f"| {trial.name} | `{trial.split}`, {trial.seed} | {trial.changes} | {trial.epochs} "
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
