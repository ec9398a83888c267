"""What is left to do of an experiment, and how long it may take, judged by what is done."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from groundglass.data.load import load_dataset
from groundglass.data.splits import make_split
from groundglass.evaluation.outcome import Outcome, read_outcome
from groundglass.training.checkpoint import read_history
from groundglass.training.experiments.runner import (
    Availability,
    Workplace,
    check,
    check_splits,
    network_cost,
)
from groundglass.training.experiments.task import Task
from groundglass.training.recipe import Recipe, parse_recipe
from groundglass.training.run import HISTORY


@dataclass(frozen=True)
class Planned:
    """One run of a list.

    Attributes:
        task: the run.
        state: ``done``, ``begun, N of M epochs``, ``to do``, or ``skipped``.
        seconds: that it may still take; 0 where nothing is to be done, None where nobody can say.
        measured_on: the runs the estimate comes from: ``itself``, ``this network`` or
            ``other networks``, which says little more than the order of magnitude.
        reason: why it is skipped.
    """

    task: Task
    state: str
    seconds: float | None
    measured_on: str = ""
    reason: str = ""


def plan(tasks: Sequence[Task], place: Workplace) -> list[Planned]:
    """State and time of every run; nothing is trained.

    The time of a run is taken to grow with epochs, slices per epoch, and operations per slice.

    Raises:
        GroundglassError: as :func:`groundglass.training.experiments.runner.check`, or the data do not fit.
    """
    check(tasks, place)
    cost = cache(lambda recipe: network_cost(recipe)["macs"])
    manifest = load_dataset(place.data)
    check_splits(tasks, manifest)
    available = Availability()

    @cache
    def slices(split: str, seed: int) -> int:
        return len(make_split(manifest, split, seed=seed, allow_overlap=True).part("train"))

    rates = _rates(place, cost)
    for task in tasks:
        history = read_history(place.run(task) / HISTORY)
        if history and not place.result(task).exists():
            work = _work(task.recipe, slices(task.split, task.identity.seed), cost)
            per_epoch = statistics.fmean(row["seconds"] for row in history)
            rate = per_epoch * task.recipe.training.epochs / work
            rates.setdefault(task.recipe.network.name, []).append(rate)

    planned = []
    for task in tasks:
        if place.result(task).exists():
            planned.append(Planned(task, "done", 0.0))
            continue
        if (reason := available.reason(task.recipe)) is not None:
            planned.append(Planned(task, "skipped", 0.0, reason=reason))
            continue
        epochs = task.recipe.training.epochs
        history = read_history(place.run(task) / HISTORY)
        if history:
            left = epochs - len(history)
            seconds = left * statistics.fmean(row["seconds"] for row in history)
            planned.append(Planned(task, f"begun, {len(history)} of {epochs} epochs", seconds, "itself"))
            continue
        work = _work(task.recipe, slices(task.split, task.identity.seed), cost)
        planned.append(_expected(task, work, rates))
    return planned


def _expected(task: Task, work: float, rates: dict[str, list[float]]) -> Planned:
    own = rates.get(task.recipe.network.name)
    if own:
        return Planned(task, "to do", work * statistics.median(own), "this network")
    others = [rate for each in rates.values() for rate in each]
    if others:
        return Planned(task, "to do", work * statistics.median(others), "other networks")
    return Planned(task, "to do", None)


def _rates(place: Workplace, cost: Callable[[Recipe], int]) -> dict[str, list[float]]:
    """Seconds per unit of work of the finished runs, by network."""
    rates: dict[str, list[float]] = {}
    for path in sorted(place.output.glob("*/*-seed-*.json")):
        outcome: Outcome = read_outcome(path)
        recipe = parse_recipe(dict(outcome.recipe), str(path))
        work = _work(recipe, int(outcome.run["counts"]["train"]), cost)
        rates.setdefault(outcome.network, []).append(float(outcome.run["training_seconds"]) / work)
    return rates


def _work(recipe: Recipe, slices: int, cost: Callable[[Recipe], int]) -> float:
    return recipe.training.epochs * (slices + recipe.synthesis.slices_per_epoch) * float(cost(recipe))
