"""What a training is asked for, and the slices it needs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Manifest, Record
from groundglass.data.splits import make_split
from groundglass.errors import DataError
from groundglass.training.augment import CONTEXT
from groundglass.training.framed import FramedSet, load_framed
from groundglass.training.recipe import Recipe
from groundglass.training.samples import with_lungs


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
        cache: folder for framed slices.
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
class Material:
    """The slices of one training, framed."""

    train: FramedSet
    train_labels: NDArray[np.float32]
    val: FramedSet
    val_labels: NDArray[np.float32]
    lesion_free: FramedSet | None

    @property
    def fingerprint(self) -> str:
        """One hash of everything the network learns from or is selected on."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.lesion_free):
            for sha256 in part.sha256 if part else ():
                digest.update(bytes.fromhex(sha256))
            digest.update(b"|")
        return digest.hexdigest()


def load_material(job: Job) -> Material:
    """Read, split and frame the slices a job needs."""
    manifest = load_dataset(job.data)
    split = make_split(manifest, job.split, seed=job.seed, allow_overlap=job.allow_overlap)
    framing = job.recipe.framing.build()
    train_records = _labelled(manifest, split.parts["train"], "train")
    val_records = _labelled(manifest, split.parts["val"], "val")
    lesion_free = None
    if job.lesion_free is not None and job.recipe.synthesis.slices_per_epoch:
        folder = load_dataset(job.lesion_free)
        lesion_free = with_lungs(load_framed(folder.records, framing, CONTEXT, job.cache))
        if not len(lesion_free):
            raise DataError(
                f"{job.lesion_free}: lungs were found in none of its {len(folder.records)} slices"
            )
    return Material(
        load_framed(train_records, framing, CONTEXT, job.cache),
        _targets(train_records),
        load_framed(val_records, framing, 0.0, job.cache),
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
