"""Works off a list of trainings; stopped at any moment and started again, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundglass.atomic import write_json
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Manifest
from groundglass.data.splits import make_split
from groundglass.errors import RecipeError, RunError, WeightsError
from groundglass.evaluation.evaluate import evaluate
from groundglass.evaluation.experiment_tables import flat
from groundglass.evaluation.outcome import (
    NOT_RUN,
    outcome_document,
    read_not_run,
    read_outcome,
    write_outcome,
)
from groundglass.models.catalogue import find
from groundglass.models.complexity import measure
from groundglass.models.weights import read_weights
from groundglass.training.experiments.speed import inference_speed
from groundglass.training.experiments.task import Task
from groundglass.training.job import Job
from groundglass.training.recipe import Recipe, parse_recipe
from groundglass.training.run import INFO, RECIPE, Run
from groundglass.training.train import trained

Say = Callable[[str], None]
"""Called with one line about what is going on."""


@dataclass(frozen=True)
class Workplace:
    """Where and on what an experiment's trainings are made.

    Attributes:
        data: the data set.
        runs: folder of the runs, one below it for each; large.
        output: folder of the results, one JSON for each run.
        lesion_free: folder of lesion-free slices for lesion synthesis.
        threads: CPU threads; 0 for one per core.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as Lightning names them.
        cache: folder for framed slices, which all runs share.
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


def check(tasks: Sequence[Task], place: Workplace) -> None:
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


def work_off(tasks: Sequence[Task], place: Workplace, say: Say) -> list[str]:
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
        write_outcome(place.result(task), document)
        say(f"{head}: {_in_brief(document)}")
    _forget_made(place.output)
    return failed


def _work(task: Task, place: Workplace, manifest: Manifest) -> dict[str, Any]:
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
    return outcome_document(
        task.identity,
        run,
        evaluations,
        weights=task.weights,
        cost=network_cost(task.recipe),
        inference=inference_speed(run, place.accelerator),
        pretraining=_pretraining(task.recipe),
    )


def network_cost(recipe: Recipe) -> dict[str, int]:
    """Parameters, and multiply-accumulate operations for one framed slice."""
    section, size = recipe.network, recipe.framing.size
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


def _check_result(task: Task, place: Workplace) -> None:
    outcome = read_outcome(place.result(task))
    recipe = parse_recipe(dict(outcome.recipe), str(outcome.path))
    if outcome.weights == task.weights:
        # The same kind of weights may lie elsewhere now; which file it was stands in the result.
        section = recipe.network.model_copy(update={"weights": task.recipe.network.weights})
        recipe = recipe.model_copy(update={"network": section})
    _check_settings(outcome.path, recipe, outcome.run, task, place)


def _check_settings(
    path: Path, recipe: Recipe, info: Mapping[str, Any], task: Task, place: Workplace
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
