"""Train one network: data in, run folder out, resumable after a kill at any moment."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Manifest, Record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RecipeError
from groundglass.imaging.crop import Preprocessing
from groundglass.models.catalogue import pretraining
from groundglass.training.classify import Classifier
from groundglass.training.recipe import Recipe
from groundglass.training.run import Run, build_network
from groundglass.training.samples import (
    CONTEXT,
    Augmentation,
    CroppedSet,
    EpochBatches,
    TrainingSamples,
    load_cropped,
    with_lungs,
)
from groundglass.training.trainer import (
    CHECKPOINTS,
    HISTORY,
    INFO,
    WEIGHTS,
    AtomicCheckpoints,
    FitSettings,
    History,
    begin_run,
    check_same,
    finish_run,
    fit,
    prepare,
    save_weights,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        recipe: what is trained and how.
        data: the data set: COVID-CT, a folder ``COVID/`` and ``NonCOVID/``, or a manifest.
        split: which slices train and which validate; see :func:`groundglass.data.splits.make_split`.
        seed: of everything random.
        output: the run's folder.
        lesion_free: folder of lesion-free slices for lesion synthesis.
        allow_overlap: accept patients who are in several parts of the split.
        resume: continue where an earlier start of the same job was stopped.
        devices: processes (CPU) or accelerators per machine.
        nodes: machines.
        threads: CPU threads per process; 0 for one per core.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as Lightning names them.
        cache: folder for cropped slices.
        progress: show a progress bar.
    """

    recipe: Recipe
    data: Path
    split: str
    seed: int
    output: Path
    lesion_free: Path | None = None
    allow_overlap: bool = False
    resume: bool = False
    devices: int = 1
    nodes: int = 1
    threads: int = 0
    accelerator: str = "auto"
    cache: Path | None = None
    progress: bool = True

    @property
    def rank(self) -> int:
        """This process's number among all, as torchrun or Lightning set it; the first has none set."""
        if "RANK" in os.environ:
            return int(os.environ["RANK"])
        return int(os.environ.get("NODE_RANK", "0")) * self.devices + int(os.environ.get("LOCAL_RANK", "0"))


@dataclass(frozen=True)
class _TrainingData:
    """The slices of one training, cropped."""

    train: CroppedSet
    train_labels: NDArray[np.float32]
    val: CroppedSet
    val_labels: NDArray[np.float32]
    lesion_free: CroppedSet | None

    @property
    def fingerprint(self) -> str:
        """One hash of everything the network learns from or is selected on."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.lesion_free):
            for sha256 in part.sha256 if part else ():
                digest.update(bytes.fromhex(sha256))
            digest.update(b"|")
        return digest.hexdigest()


def _load(job: Job) -> _TrainingData:
    """Read, split and crop the slices a job needs."""
    manifest = load_dataset(job.data)
    split = make_split(manifest, job.split, seed=job.seed, allow_overlap=job.allow_overlap)
    preprocessing = job.recipe.preprocessing.build()
    train_records = _labelled(manifest, split.parts["train"], "train")
    val_records = _labelled(manifest, split.parts["val"], "val")
    lesion_free = None
    if job.lesion_free is not None and job.recipe.synthesis.slices_per_epoch:
        folder = load_dataset(job.lesion_free)
        lesion_free = with_lungs(load_cropped(folder.records, preprocessing, CONTEXT, job.cache))
        if not len(lesion_free):
            raise DataError(
                f"{job.lesion_free}: lungs were found in none of its {len(folder.records)} slices"
            )
    return _TrainingData(
        load_cropped(train_records, preprocessing, CONTEXT, job.cache),
        _targets(train_records),
        load_cropped(val_records, preprocessing, 0.0, job.cache),
        _targets(val_records),
        lesion_free,
    )


def _labelled(manifest: Manifest, indices: Sequence[int], part: str) -> list[Record]:
    records = [manifest.records[index] for index in indices]
    if not records:
        raise DataError(f"{manifest.name}: the split's part {part} is empty; training needs train and val")
    unlabelled = next((record for record in records if record.label is None), None)
    if unlabelled is not None:
        raise DataError(f"{unlabelled.path}: has no label; training needs COVID or NonCOVID for every slice")
    return records


def _targets(records: Sequence[Record]) -> NDArray[np.float32]:
    return np.array([record.label is Label.COVID for record in records], np.float32)


def train(job: Job) -> Run:
    """Train, and leave a run with ``weights.safetensors`` behind.

    Raises:
        DataError: the data, the split or the lesion-free slices do not fit.
        RunError: the folder holds another run, or one to be resumed with ``resume``.
    """
    _check(job)
    prepare(job.threads)
    slices = _load(job)
    torch.manual_seed(job.seed)
    network = build_network(job.recipe)
    if job.rank == 0:
        if (warning := normalisation_warning(job.recipe)) is not None:
            _LOG.warning("warning: %s", warning)
        begin_run(job.output, job.recipe, _facts(job, slices), job.resume)
    samples, batches = _samples(job, slices)
    module = Classifier(network, job.recipe, len(batches), job.seed)
    history = History(job.output / HISTORY, len(batches) * job.recipe.training.batch_size)
    kept = _keeper(job)
    settings = FitSettings(
        job.output,
        job.recipe.training.epochs,
        job.recipe.optimiser.gradient_clip,
        job.accelerator,
        job.devices,
        job.nodes,
        job.resume,
        job.progress,
    )
    loader = DataLoader(samples, batch_size=None, sampler=batches)
    validation = _validation(slices, job.recipe.preprocessing.build())
    if fit(module, loader, validation, [history, kept] if kept else [history], settings):
        _finish(job, module, kept, history)
    return Run.open(job.output)


def trained(job: Job) -> Run:
    """The job's run: trained or resumed where it is not finished, opened where it is.

    Raises:
        DataError, RunError: as :func:`train`; also when the finished run is of another recipe.
    """
    if (job.output / INFO).exists():
        run = Run.open(job.output)
        if run.info.get("finished"):
            check_same(job.output, job.recipe, {"seed": job.seed, "split": job.split})
            return run
    return train(job)


def normalisation_warning(recipe: Recipe) -> str | None:
    """Where the weights a recipe starts from were pretrained with another normalisation, a line that says so."""
    known = pretraining(recipe.network.name, recipe.network.weights) or {}
    own, theirs = recipe.preprocessing.normalisation, known.get("preprocessing", {}).get("normalisation")
    if not known or own == theirs:
        return None
    return (
        f"weights {recipe.network.weights} were pretrained with normalisation {theirs or 'unknown'}, "
        f"recipe {recipe.name} has {own}; results may suffer, `groundglass pretrain` makes others"
    )


def _facts(job: Job, slices: _TrainingData) -> dict[str, Any]:
    """What a run's ``run.json`` says of recipe, seed, split and slices."""
    return {
        "recipe": job.recipe.name,
        "network": job.recipe.network.name,
        "seed": job.seed,
        "split": job.split,
        "data": job.data.resolve().name,
        "lesion_free": job.lesion_free.resolve().name if slices.lesion_free and job.lesion_free else None,
        "counts": {
            "train": len(slices.train),
            "val": len(slices.val),
            "lesion_free": len(slices.lesion_free) if slices.lesion_free else 0,
        },
        "fingerprint": slices.fingerprint,
        "training_sha256": list(slices.train.sha256),
    }


def _samples(job: Job, slices: _TrainingData) -> tuple[TrainingSamples, EpochBatches]:
    """The job's samples and the order in which its epochs draw them."""
    recipe = job.recipe
    samples = TrainingSamples(
        slices.train,
        slices.train_labels,
        slices.lesion_free,
        recipe.preprocessing.build(),
        Augmentation(recipe.augmentation, recipe.preprocessing.size),
        recipe.synthesis,
    )
    batches = EpochBatches(
        real=len(slices.train),
        lesion_free=len(slices.lesion_free) if slices.lesion_free else 0,
        synthesis=recipe.synthesis,
        batch_size=recipe.training.batch_size,
        seed=job.seed,
        rank=job.rank,
        world_size=job.devices * job.nodes,
    )
    return samples, batches


def _check(job: Job) -> None:
    if job.recipe.synthesis.slices_per_epoch and job.lesion_free is None:
        raise RecipeError(
            f"recipe {job.recipe.name} paints lesions into lesion-free slices: name their folder with "
            "--lesion-free, or switch it off with --set synthesis.slices_per_epoch=0"
        )
    if job.recipe.training.batch_size % (job.devices * job.nodes):
        raise RecipeError(
            f"training.batch_size={job.recipe.training.batch_size} cannot be shared by "
            f"{job.devices * job.nodes} processes; choose a multiple"
        )


def _validation(slices: _TrainingData, preprocessing: Preprocessing) -> DataLoader[Any]:
    images = torch.from_numpy(preprocessing.normalise(slices.val.pixels)).unsqueeze(1)
    images = images.contiguous(memory_format=torch.channels_last)
    return DataLoader(TensorDataset(images, torch.from_numpy(slices.val_labels)), batch_size=64)


def _keeper(job: Job) -> ModelCheckpoint | None:
    """Keeps the best epoch on validation, where the recipe selects one."""
    selection = job.recipe.training.selection
    if selection == "last":
        return None
    return ModelCheckpoint(
        dirpath=job.output / CHECKPOINTS,
        filename="best",
        monitor=selection,
        mode="max" if selection == "val_auc" else "min",
        save_weights_only=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _finish(job: Job, module: Classifier, kept: ModelCheckpoint | None, history: History) -> None:
    """Write the selected averaged weights, then say that the run is finished."""
    selected = len(history.rows) - 1
    if kept is not None:
        checkpoint = AtomicCheckpoints().load_checkpoint(kept.best_model_path)
        module.load_state_dict(checkpoint["state_dict"])
        selected = int(checkpoint["epoch"])
    save_weights(module.averaged.module.state_dict(), job.output / WEIGHTS)
    finish_run(
        job.output,
        {
            "selected_epoch": selected,
            "training_seconds": history.seconds,
            "threads": torch.get_num_threads(),
            "processes": job.devices * job.nodes,
        },
    )
