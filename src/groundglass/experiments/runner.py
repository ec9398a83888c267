"""What is left to do of an experiment, and how long it may take, judged by what is done.

How fast networks judge cropped slices.

Works off a list of trainings; stopped at any moment and started again, it goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Manifest
from groundglass.data.splits import make_split
from groundglass.errors import RecipeError, RunError, WeightsError
from groundglass.evaluation.evaluate import evaluate
from groundglass.experiments.plan import Task
from groundglass.experiments.results import (
    NOT_RUN,
    RunResult,
    read_not_run,
    read_run_result,
    run_result_document,
    write_run_result,
)
from groundglass.experiments.tables import flat
from groundglass.files import write_json
from groundglass.models.catalogue import find
from groundglass.models.registry import build, measure
from groundglass.models.weights import read_weights
from groundglass.training.recipe import Recipe, parse_recipe
from groundglass.training.run import Run
from groundglass.training.train import Job, trained
from groundglass.training.trainer import HISTORY, INFO, RECIPE, read_history

BATCH_SIZE = 16
ROUNDS = 9

_SHORTEST_ROUND = 0.25
"""Seconds: shorter rounds would measure the clock and the machine's whims."""


def inference_speed(run: Run, accelerator: str) -> dict[str, Any]:
    """Cropped slices per second through a run's network, one pass each, without reading and preprocessing.

    Args:
        run: a finished run.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as for training.

    Returns:
        Images per second (median over rounds, and every round), batch size, device, threads, and the
        machine's load when it began, for what else ran slows this down.
    """
    (measured,) = _measured([run.network], run.recipe.preprocessing.size, accelerator)
    return measured


def speed_side_by_side(
    networks: Sequence[str], size: int, accelerator: str, threads: int
) -> dict[str, dict[str, Any]]:
    """The same for several networks in alternating rounds, so that what else runs slows all of them alike.

    Args:
        networks: names of registry entries; what their weights are does not matter.
        size: of cropped slices.
        accelerator: ``cpu``, ``gpu`` or ``auto``.
        threads: CPU threads; 0 for one per core.

    Returns:
        By network, as :func:`inference_speed`.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    built = [build(name).eval().to(memory_format=torch.channels_last) for name in networks]
    return dict(zip(networks, _measured(built, size, accelerator), strict=True))


def _measured(networks: Sequence[nn.Module], size: int, accelerator: str) -> list[dict[str, Any]]:
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    images = torch.randn(BATCH_SIZE, 1, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rounds: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for network in networks:
            network.to(device)
        warm = [min(_seconds(network, images, 1) for _ in range(3)) for network in networks]
        batches = [max(1, round(_SHORTEST_ROUND / seconds)) for seconds in warm]
        for _ in range(ROUNDS):
            for network, count, speeds in zip(networks, batches, rounds, strict=True):
                speeds.append(BATCH_SIZE * count / _seconds(network, images, count))
        for network in networks:
            network.to("cpu")
    return [
        {
            "images_per_second": round(statistics.median(speeds), 2),
            "rounds_images_per_second": [round(each, 2) for each in speeds],
            "rounds": ROUNDS,
            "batch_size": BATCH_SIZE,
            "input_size": size,
            "passes_per_image": 1,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
            "load_average_before": load,
        }
        for speeds in rounds
    ]


def _seconds(network: nn.Module, images: torch.Tensor, batches: int) -> float:
    begin = time.perf_counter()
    for _ in range(batches):
        network(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


Say = Callable[[str], None]
"""Called with one line about what is going on."""


@dataclass(frozen=True)
class ExperimentPaths:
    """Where and on what an experiment's trainings are made.

    Attributes:
        data: the data set.
        runs: folder of the runs, one below it for each; large.
        output: folder of the results, one JSON for each run.
        lesion_free: folder of lesion-free slices for lesion synthesis.
        threads: CPU threads; 0 for one per core.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as Lightning names them.
        cache: folder for cropped slices, which all runs share.
        progress: show each training's progress bar.
    """

    data: Path
    runs: Path
    output: Path
    lesion_free: Path | None = None
    threads: int = 0
    accelerator: str = "auto"
    cache: Path | None = None
    progress: bool = True

    def result(self, task: Task) -> Path:
        """Where a task's result is written."""
        return self.output / f"{task.name}.json"

    def run(self, task: Task) -> Path:
        """The folder of a task's run."""
        return self.runs / task.name


class Availability:
    """Which weights can be had; each is looked for once.

    A hub that does not answer, or weights nobody has made yet, are no reason to give up the other rows.
    """

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], str | None] = {}

    def reason(self, recipe: Recipe) -> str | None:
        """Why the weights of a recipe's network cannot be had, or None where they can."""
        key = (recipe.network.name, recipe.network.weights)
        if key not in self._reasons:
            try:
                read_weights(find(key[0]), key[1])
                self._reasons[key] = None
            except WeightsError as error:
                self._reasons[key] = str(error)
        return self._reasons[key]


def check(tasks: Sequence[Task], place: ExperimentPaths) -> None:
    """Look for what would stop the list half-way, before anything is trained.

    Raises:
        RecipeError: lesion-free slices are wanted and no folder of them is named.
        RunError: a run or a result that is there already is of other settings.
        DataError: a result that is there is damaged.
    """
    for task in tasks:
        if task.recipe.synthesis.slices_per_epoch and place.lesion_free is None:
            raise RecipeError(
                f"{task.name}: paints lesions into lesion-free slices; name their folder with --lesion-free, "
                "or switch it off with --set synthesis.slices_per_epoch=0"
            )
        if place.result(task).exists():
            _check_result(task, place)
        elif (place.run(task) / INFO).exists():
            run = Run.open(place.run(task))
            _check_settings(place.run(task), run.recipe, run.info, task, place)


def check_splits(tasks: Sequence[Task], manifest: Manifest) -> None:
    """Make every split once, before anything is trained.

    Raises:
        DataError: the data set has no such split, or the split no part to judge on.
    """
    for task in {(task.split, task.identity.seed, task.parts): task for task in tasks}.values():
        split = make_split(manifest, task.split, task.identity.seed, task.allow_overlap)
        for part in ("train", "val", *task.parts):
            split.part(part)


def run_all(tasks: Sequence[Task], place: ExperimentPaths, say: Say) -> list[str]:
    """Train and judge every task that has no result yet.

    Runs whose weights cannot be had, and runs that fail by themselves, are noted in the results' folder and
    passed over.

    Args:
        tasks: in their order.
        place: where to; see :func:`check`.
        say: told what goes on.

    Returns:
        Names of the runs that failed.

    Raises:
        GroundglassError: as :func:`check`; the data cannot be read or do not fit.
        KeyboardInterrupt: the list was stopped.
    """
    check(tasks, place)
    manifest = load_dataset(place.data)
    check_splits(tasks, manifest)
    available = Availability()
    failed: list[str] = []
    for number, task in enumerate(tasks, 1):
        head = f"[{number}/{len(tasks)}] {task.name}"
        if place.result(task).exists():
            say(f"{head}: is there already")
            continue
        if (reason := available.reason(task.recipe)) is not None:
            _note(place.output, task, reason)
            say(f"{head}: skipped, {reason}")
            continue
        say(f"{head}: begins")
        try:
            document = _work(task, place, manifest)
        except KeyboardInterrupt:
            say(f"{head}: stopped; the same command goes on where it was")
            raise
        except RunError as error:
            failed.append(task.name)
            _note(place.output, task, str(error))
            say(f"{head}: failed, {error}")
            continue
        write_run_result(place.result(task), document)
        say(f"{head}: {_in_brief(document)}")
    _forget_made(place.output)
    return failed


def _work(task: Task, place: ExperimentPaths, manifest: Manifest) -> dict[str, Any]:
    """Train or go on training, judge, and say everything that is kept."""
    folder = place.run(task)
    _clear_false_start(folder)
    job = Job(
        task.recipe,
        place.data,
        task.split,
        task.identity.seed,
        folder,
        place.lesion_free,
        allow_overlap=task.allow_overlap,
        resume=True,
        threads=place.threads,
        accelerator=place.accelerator,
        cache=place.cache,
        progress=place.progress,
    )
    try:
        run = trained(job)
    except SystemExit:
        # Lightning ends the process when it is interrupted from the keyboard; what it had learned is kept.
        raise KeyboardInterrupt from None
    evaluations = {
        part: evaluate(run, manifest, task.split, part, folder / f"evaluation-{part}", data=place.data)
        for part in task.parts
    }
    return run_result_document(
        task.identity,
        run,
        evaluations,
        weights=task.weights,
        cost=network_cost(task.recipe),
        inference=inference_speed(run, place.accelerator),
        pretraining=_pretraining(task.recipe),
    )


def network_cost(recipe: Recipe) -> dict[str, int]:
    """Parameters, and multiply-accumulate operations for one cropped slice."""
    section, size = recipe.network, recipe.preprocessing.size
    cost = measure(
        section.name, size, mask=section.mask, attention=section.attention, histogram=section.histogram
    )
    return {"parameters": cost.parameters, "macs": cost.macs, "input_size": size}


def _clear_false_start(folder: Path) -> None:
    """A training killed between its first two files has begun nothing; its recipe would be in the way."""
    if folder.is_dir() and not (folder / INFO).exists():
        for path in folder.iterdir():
            if path.name == RECIPE or path.name.startswith((f".{RECIPE}.", f".{INFO}.")):
                path.unlink()


def _check_result(task: Task, place: ExperimentPaths) -> None:
    outcome = read_run_result(place.result(task))
    recipe = parse_recipe(dict(outcome.recipe), str(outcome.path))
    if outcome.weights == task.weights:
        # The same kind of weights may lie elsewhere now; which file it was stands in the result.
        section = recipe.network.model_copy(update={"weights": task.recipe.network.weights})
        recipe = recipe.model_copy(update={"network": section})
    _check_settings(outcome.path, recipe, outcome.run, task, place)


def _check_settings(
    path: Path, recipe: Recipe, info: Mapping[str, Any], task: Task, place: ExperimentPaths
) -> None:
    """Refuse what was made with other settings: mixing them would compare apples with pears."""
    was = dict(flat(recipe.model_dump(mode="json"))) | {
        "split": info.get("split"),
        "seed": info.get("seed"),
        "data": info.get("data"),
    }
    wanted = dict(flat(task.recipe.model_dump(mode="json"))) | {
        "split": task.split,
        "seed": task.identity.seed,
        "data": place.data.resolve().name,
    }
    changed = [
        f"{key} was {was.get(key)}, is {value}" for key, value in wanted.items() if was.get(key) != value
    ]
    if changed:
        raise RunError(
            f"{path}: is of other settings ({'; '.join(changed[:3])}); choose another --output and --runs, "
            "or remove it"
        )


def _pretraining(recipe: Recipe) -> dict[str, Any] | None:
    """What the weights in a file were pretrained on, where ``groundglass pretrain`` left it beside them."""
    own = find(recipe.network.name).pretrained_file if recipe.network.weights == "c2l" else None
    path = own or Path(recipe.network.weights)
    if not path.is_file():
        return None
    known = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    beside = path.with_suffix(".json") if own else path.parent / INFO
    try:
        info = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kept = ("recipe", "network", "weights", "data", "split", "images", "slices", "fingerprint", "seed")
    return known | {key: info.get(key) for key in kept}


def _note(output: Path, task: Task, reason: str) -> None:
    write_json(output / NOT_RUN, {**read_not_run(output), task.name: reason})


def _forget_made(output: Path) -> None:
    path = output / NOT_RUN
    if path.exists():
        if left := read_not_run(output):
            write_json(path, left)
        else:
            path.unlink()


def _in_brief(document: Mapping[str, Any]) -> str:
    last = document["history"][-1]
    words = [f"validation AUC {last['val_auc']:.3f}"]
    for part, measured in document["parts"].items():
        metrics = measured["metrics"]
        accuracy, auc = (metrics[name]["value"] for name in ("accuracy", "auc"))
        words.append(f"{part} accuracy {accuracy:.3f}" + (f", AUC {auc:.3f}" if auc is not None else ""))
    return f"{'; '.join(words)}; {document['run']['training_seconds']:.0f} s of training"


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


def plan(tasks: Sequence[Task], place: ExperimentPaths) -> list[Planned]:
    """State and time of every run; nothing is trained.

    The time of a run is taken to grow with epochs, slices per epoch, and operations per slice.

    Raises:
        GroundglassError: as :func:`groundglass.experiments.runner.check`, or the data do not fit.
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
            work = _work_estimate(task.recipe, slices(task.split, task.identity.seed), cost)
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
        work = _work_estimate(task.recipe, slices(task.split, task.identity.seed), cost)
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


def _rates(place: ExperimentPaths, cost: Callable[[Recipe], int]) -> dict[str, list[float]]:
    """Seconds per unit of work of the finished runs, by network."""
    rates: dict[str, list[float]] = {}
    for path in sorted(place.output.glob("*/*-seed-*.json")):
        outcome: RunResult = read_run_result(path)
        recipe = parse_recipe(dict(outcome.recipe), str(path))
        work = _work_estimate(recipe, int(outcome.run["counts"]["train"]), cost)
        rates.setdefault(outcome.network, []).append(float(outcome.run["training_seconds"]) / work)
    return rates


def _work_estimate(recipe: Recipe, slices: int, cost: Callable[[Recipe], int]) -> float:
    return recipe.training.epochs * (slices + recipe.synthesis.slices_per_epoch) * float(cost(recipe))
