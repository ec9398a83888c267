"""Train one network: data in, run folder out, resumable after a kill at any moment.

What a training is asked for, and the slices it needs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Manifest, Record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RecipeError, RunError
from groundglass.files import atomic_path, write_json, write_text
from groundglass.imaging.crop import Preprocessing
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
    RECIPE,
    WEIGHTS,
    AtomicCheckpoints,
    Hardware,
    History,
    fit,
    machine,
    make_trainer,
    now,
    prepare,
    versions,
)


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
        allow_overlap: accept patients who stand in several parts of the split.
        resume: go on where an earlier start of the same job was stopped.
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
        """This process's number among all, as torchrun or Lightning tell it; the first is told nothing."""
        if "RANK" in os.environ:
            return int(os.environ["RANK"])
        return int(os.environ.get("NODE_RANK", "0")) * self.devices + int(os.environ.get("LOCAL_RANK", "0"))


@dataclass(frozen=True)
class TrainingData:
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


def load_training_data(job: Job) -> TrainingData:
    """Read, split and frame the slices a job needs."""
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
    return TrainingData(
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
    material = load_training_data(job)
    torch.manual_seed(job.seed if job.recipe.network.start is None else job.recipe.network.start)
    network = build_network(job.recipe)
    info = _begin(job, material)
    samples, batches = training_samples(job, material)
    module = Classifier(network, job.recipe, len(batches), job.seed)
    history = History(job.output / HISTORY, len(batches) * job.recipe.training.batch_size)
    kept = _keeper(job)
    trainer = make_trainer(
        job.output,
        job.recipe.training.epochs,
        [history, kept] if kept else [history],
        Hardware(job.accelerator, job.devices, job.nodes),
        gradient_clip=job.recipe.optimiser.gradient_clip,
        progress=job.progress,
    )
    loader = DataLoader(samples, batch_size=None, sampler=batches)
    fit(trainer, module, loader, _validation(material, job.recipe.preprocessing.build()), resume=job.resume)
    if trainer.is_global_zero:
        _finish(job, module, kept, history, info)
    return Run.open(job.output)


def trained(job: Job) -> Run:
    """The job's run: trained or resumed where it is not finished, opened where it is.

    Raises:
        DataError, RunError: as :func:`train`; also when the finished run is of another recipe.
    """
    if (job.output / INFO).exists():
        run = Run.open(job.output)
        if run.info.get("finished"):
            _check_same(run, job.recipe, {"seed": job.seed, "split": job.split})
            return run
    return train(job)


def job_facts(job: Job, material: TrainingData) -> dict[str, Any]:
    """What a run's ``run.json`` says of recipe, seed, split and slices."""
    return {
        "recipe": job.recipe.name,
        "network": job.recipe.network.name,
        "seed": job.seed,
        "split": job.split,
        "data": job.data.resolve().name,
        "lesion_free": job.lesion_free.resolve().name if material.lesion_free and job.lesion_free else None,
        "counts": {
            "train": len(material.train),
            "val": len(material.val),
            "lesion_free": len(material.lesion_free) if material.lesion_free else 0,
        },
        "fingerprint": material.fingerprint,
        "training_sha256": list(material.train.sha256),
    }


def training_samples(job: Job, material: TrainingData) -> tuple[TrainingSamples, EpochBatches]:
    """The job's samples and the order in which its epochs draw them."""
    recipe = job.recipe
    samples = TrainingSamples(
        material.train,
        material.train_labels,
        material.lesion_free,
        recipe.preprocessing.build(),
        Augmentation(recipe.augmentation, recipe.preprocessing.size),
        recipe.synthesis,
    )
    batches = EpochBatches(
        real=len(material.train),
        lesion_free=len(material.lesion_free) if material.lesion_free else 0,
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


def _validation(material: TrainingData, preprocessing: Preprocessing) -> DataLoader[Any]:
    images = torch.from_numpy(preprocessing.normalise(material.val.pixels)).unsqueeze(1)
    images = images.contiguous(memory_format=torch.channels_last)
    return DataLoader(TensorDataset(images, torch.from_numpy(material.val_labels)), batch_size=64)


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


def _begin(job: Job, material: TrainingData) -> dict[str, Any]:
    """Create the run's folder, or check that it holds the same job."""
    info = {"finished": False, **job_facts(job, material)}
    path = job.output / INFO
    if job.rank != 0:
        return info
    if path.exists():
        if not job.resume:
            raise RunError(
                f"{job.output}: holds a run already; go on with --resume or choose another --output"
            )
        _check_same(Run.open(job.output), job.recipe, info)
    elif job.output.exists() and any(job.output.iterdir()):
        raise RunError(f"{job.output}: is not empty and holds no run; choose another --output")
    write_text(job.output / RECIPE, job.recipe.to_yaml())
    write_json(path, {**info, "started": now(), "versions": versions(), "machine": machine()})
    return info


def _check_same(run: Run, recipe: Recipe, info: dict[str, Any]) -> None:
    for key in ("seed", "split", "fingerprint"):
        if key in info and run.info.get(key) != info[key]:
            was, now = run.info.get(key), info[key]
            raise RunError(f"{run.path}: cannot resume, {key} was {was}, is {now}; choose another --output")
    if run.recipe != recipe:
        raise RunError(f"{run.path}: cannot resume, the recipe has changed; choose another --output")


def _finish(
    job: Job, module: Classifier, kept: ModelCheckpoint | None, history: History, info: dict[str, Any]
) -> None:
    """Write the selected averaged weights, then say that the run is finished."""
    selected = len(history.rows) - 1
    if kept is not None:
        checkpoint = AtomicCheckpoints().load_checkpoint(kept.best_model_path)
        module.load_state_dict(checkpoint["state_dict"])
        selected = int(checkpoint["epoch"])
    state = {
        key: value.detach().cpu().contiguous() for key, value in module.averaged.module.state_dict().items()
    }
    with atomic_path(job.output / WEIGHTS) as temporary:
        save_file(state, temporary)
    started = Run.open(job.output).info
    finished = {
        "finished": True,
        "selected_epoch": selected,
        "ended": now(),
        "training_seconds": round(sum(row["seconds"] for row in history.rows), 1),
        "threads": torch.get_num_threads(),
        "processes": job.devices * job.nodes,
    }
    write_json(job.output / INFO, {**started, **info, **finished})
