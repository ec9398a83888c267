"""Train and evaluate a list of tasks; an interrupted list is resumed by running it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from groundglass.data.load import load_pool
from groundglass.data.manifest import Manifest
from groundglass.data.splits import make_split
from groundglass.errors import RecipeError, RunError, WeightsError
from groundglass.evaluation.evaluate import Evaluation, evaluate
from groundglass.experiments.plan import Task
from groundglass.experiments.results import Predictions, RunResult, complete, read_run_result, write_run_result
from groundglass.files import printable
from groundglass.models.catalogue import find, pretraining

if TYPE_CHECKING:
    from groundglass.training.run import Run

# Files of a run's folder, as training names them.
_INFO = "run.json"
# What is kept of a pretraining, and of the measures of a part.
_PRETRAINING = ("recipe", "network", "weights", "data", "split", "images", "slices", "fingerprint", "seed")
_MEASURED = ("metrics", "confusion", "interval", "warnings", "evaluations_of_these_slices")


@dataclass(frozen=True)
class ExperimentPaths:
    """Where and on what an experiment's trainings are made."""

    data: tuple[Path, ...]
    runs: Path  # grow large
    output: Path  # gets the results
    lesion_free: Path | None = None  # folder of slices for lesion synthesis
    threads: int = 0  # of the CPU; 0 for one per core
    accelerator: str = "auto"  # cpu, gpu or auto
    cache: Path | None = None  # of cropped slices, for all runs
    lungs: Path | None = None  # ONNX model of the lung fields; None for the shipped one
    progress: bool = True
    map_label: tuple[str, ...] = ()  # as for :func:`groundglass.data.load.load_pool`

    def result(self, task: Task) -> Path:
        """Where a task's result is written."""
        return self.output / f"{task.name}.json"

    def run(self, task: Task) -> Path:
        """The folder of a task's run."""
        return self.runs / task.name


def check(tasks: Sequence[Task], paths: ExperimentPaths, manifest: Manifest) -> None:
    """Look for what would stop the list half-way, before anything is trained.

    Raises:
        RecipeError: lesion-free slices are wanted and no folder of them is named, or several processes.
        RunError: a run or a result that exists already has other settings.
        DataError: a result is damaged, or the data set has no such split or part.
    """
    # A list whose first row needs none goes without the rows that do.
    if tasks and _lacks_slices(tasks[0], paths):
        raise RecipeError(
            f"{tasks[0].name}: paints lesions into lesion-free slices; name their folder with --lesion-free, "
            "or switch it off with --set synthesis.slices_per_epoch=0"
        )
    if any(task.recipe.trainer.devices > 1 for task in tasks):
        raise RecipeError("trainer.devices: an experiment trains in one process; `groundglass train` takes several")
    data = [printable(each.resolve().name) for each in paths.data]
    free = paths.lesion_free and printable(paths.lesion_free.resolve().name)
    for task in tasks:
        path, folder = paths.result(task), paths.run(task)
        own = {"split": task.split, "seed": task.identity.seed, "data": data}
        own |= {"lesion_free": free} if task.recipe.synthesis.slices_per_epoch else {}
        wanted = {**complete(task.recipe.model_dump(mode="json")), **own}
        if path.exists():
            result = read_run_result(path)
            info, recipe = result.run, complete(result.recipe)
            # The same kind of weights may lie elsewhere now; which file it was stands in the result.
            if result.weights == task.weights:
                recipe["network.weights"] = task.recipe.network.weights
        elif (folder / _INFO).exists():
            from groundglass.training.run import read_info, read_recipe  # noqa: PLC0415 - torch, as below

            path, info, recipe = folder, read_info(folder), complete(read_recipe(folder))
        else:
            continue
        # To mix other settings would compare apples with pears.
        was = {**recipe, **{key: info.get(key) for key in own}}
        if differing := [key for key in was | wanted if was.get(key) != wanted.get(key)]:
            words = "; ".join(f"{key} was {was.get(key)}, is {wanted.get(key)}" for key in differing[:3])
            advice = "choose another --output and --runs, or remove it"
            raise RunError(f"{path}: has other settings ({words}); {advice}")
    for task in {(task.split, task.identity.seed, task.parts): task for task in tasks}.values():
        kept = manifest.without(task.recipe.sampling.leave_out)
        split = make_split(kept, task.split, task.identity.seed, task.allow_overlap)
        for part in ("train", "val", *task.parts):
            split.part(part)


def run_all(tasks: Sequence[Task], paths: ExperimentPaths, say: Callable[[str], None]) -> list[str]:
    """Train and evaluate every task that has no result yet, and return the names of those that failed.

    Runs whose weights cannot be had, and runs that fail, are skipped. ``say`` is called with one line about what is
    going on.

    Raises:
        GroundglassError: as :func:`check`; the data cannot be read or do not fit.
    """
    manifest = load_pool(paths.data, paths.map_label)
    check(tasks, paths, manifest)
    why_missing, failed = cache(_why_missing), list[str]()
    for number, task in enumerate(tasks, 1):
        head = f"[{number}/{len(tasks)}] {task.name}"
        if paths.result(task).exists():
            say(f"{head}: exists already")
            continue
        if (reason := _why_skipped(task, paths, why_missing)) is not None:
            say(f"{head}: skipped, {reason}")
            continue
        say(f"{head}: started")
        try:
            result = _work(task, paths, manifest)
        except KeyboardInterrupt:
            say(f"{head}: stopped; the same command resumes it")
            raise
        except (RunError, WeightsError) as error:
            failed.append(task.name)
            say(f"{head}: failed, {error}")
        else:
            write_run_result(result)
            say(f"{head}: {_summary(result)}")
    return failed


def _lacks_slices(task: Task, paths: ExperimentPaths) -> bool:
    return bool(task.recipe.synthesis.slices_per_epoch) and paths.lesion_free is None


def _why_skipped(task: Task, paths: ExperimentPaths, missing: Callable[[str, str], str | None]) -> str | None:
    lacking = "has no lesion-free slices to paint into" if _lacks_slices(task, paths) else None
    return lacking or missing(task.recipe.network.name, task.recipe.network.weights)


def _why_missing(network: str, weights: str) -> str | None:
    """Why the weights cannot be had, or None where they can: other rows need not wait for a hub."""
    from groundglass.models.weights import read_weights  # noqa: PLC0415 - torch, which rendering does without

    try:
        read_weights(find(network), weights)
    except WeightsError as error:
        return str(error)
    return None


def count_left(tasks: Sequence[Task], paths: ExperimentPaths) -> int:
    """How many runs are to be trained."""
    why_not, to_do = cache(_why_missing), [task for task in tasks if not paths.result(task).exists()]
    return sum(_why_skipped(task, paths, why_not) is None for task in to_do)


def _work(task: Task, paths: ExperimentPaths, manifest: Manifest) -> RunResult:
    """Train or resume, evaluate, and gather everything that is kept."""
    from groundglass.training.train import train_job  # noqa: PLC0415 - torch, which rendering does without
    from groundglass.training.trainer import Job  # noqa: PLC0415 - torch, which rendering does without

    folder = paths.run(task)
    job = Job(
        task.recipe, paths.data, task.split, task.identity.seed, folder, paths.lesion_free,
        resume=True, allow_overlap=task.allow_overlap, threads=paths.threads, accelerator=paths.accelerator,
        cache=paths.cache, lungs=paths.lungs, map_label=paths.map_label, progress=paths.progress,
    )  # fmt: skip
    run = train_job(job)
    kept = manifest.without(task.recipe.sampling.leave_out)
    evaluations = {part: evaluate(run, kept, task.split, part, folder / f"evaluation-{part}") for part in task.parts}
    return gather(paths.result(task), task, run, evaluations)


def gather(path: Path, task: Task, run: Run, evaluations: Mapping[str, Evaluation]) -> RunResult:
    """Everything that is kept of a finished run, to be written to ``path``; ``evaluations`` are by part.

    Raises:
        RunError: the history holds a value that is no number.
    """
    from groundglass.models.registry import measure  # noqa: PLC0415 - torch, which rendering does without

    history, network, size = list(run.history()), task.recipe.network, task.recipe.preprocessing.size
    for row in history:
        if not all(math.isfinite(value) for value in row.values()):
            epoch = f"{run.path}: epoch {row['epoch']:.0f}"
            raise RunError(f"{epoch} has no finite loss; was the training stable?")
    cost = measure(network.name, size, **network.model_dump(exclude={"name", "weights", "dropout"}))
    pretrained, parts, predictions = pretraining(network.name, network.weights), {}, {}
    for part, evaluation in evaluations.items():
        document, slices = evaluation.document, evaluation.part
        counts = {key: document["data"][key] for key in ("slices", "covid", "patients")}
        parts[part] = counts | {key: document[key] for key in _MEASURED}
        patient = np.array([printable(record.patient_id) for record in slices.records], np.str_)
        files = tuple(map(slices.file, slices.records))
        predictions[part] = Predictions(files, slices.label, patient, evaluation.logit)
    return RunResult(
        path,
        task.identity,
        network.name,
        task.weights,
        pretrained and {key: pretrained.get(key) for key in _PRETRAINING},
        split={
            "specification": task.split,
            "train_and_val": run.info.get("fingerprint"),
            "parts": {part: each.document["data"]["fingerprint"] for part, each in evaluations.items()},
        },
        run={key: value for key, value in run.info.items() if key != "training_sha256"},
        cost={"parameters": cost.parameters, "macs": cost.macs, "input_size": size},
        recipe=task.recipe.model_dump(mode="json"),
        history=history,
        parts=parts,
        predictions=predictions,
    )


def _summary(result: RunResult) -> str:
    words = [f"validation AUC {result.history[-1]['val_auc']:.3f}"]
    for part, measured in result.parts.items():
        accuracy, auc = (measured["metrics"][name]["value"] for name in ("accuracy", "auc"))
        words.append(f"{part} accuracy {accuracy:.3f}" + (f", AUC {auc:.3f}" if auc is not None else ""))
    return f"{'; '.join(words)}; {result.run['training_seconds']:.0f} s of training"
