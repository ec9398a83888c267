"""Train one network: data in, run folder out, resumable after a kill at any moment."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import Label, Manifest, Record
from groundglass.data.splits import Split, make_split
from groundglass.errors import DataError, RecipeError
from groundglass.files import write_bytes
from groundglass.imaging.lungs import LungSegmenter, open_segmenter
from groundglass.models.catalogue import pretraining
from groundglass.training.classify import Classifier
from groundglass.training.recipe import Recipe, SamplingSection
from groundglass.training.run import LUNGS, Run, build_network
from groundglass.training.samples import (
    CONTEXT,
    Augmentation,
    CroppedSet,
    EpochBatches,
    TrainingSamples,
    load_cropped,
    to_images,
    with_lungs,
)
from groundglass.training.trainer import (
    CHECKPOINTS,
    INFO,
    WEIGHTS,
    AtomicCheckpoints,
    Job,
    begin_run,
    check_same,
    check_space,
    finish_run,
    fit,
    prepare,
    save_weights,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TrainingData:
    """The slices of one training, cropped; ``known``: whose lesions are known; ``chances``: see EpochBatches."""

    train: CroppedSet
    train_labels: NDArray[np.float32]
    known: NDArray[np.bool_]
    chances: NDArray[np.float64] | None
    val: CroppedSet
    val_labels: NDArray[np.float32]
    lesion_free: CroppedSet | None
    sources: Mapping[str, int]
    lungs: LungSegmenter

    @property
    def fingerprint(self) -> str:
        """One hash of everything the network learns from or is selected on."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.lesion_free):
            for sha256 in part.sha256 if part else ():
                digest.update(bytes.fromhex(sha256))
            digest.update(b"|")
        digest.update(np.packbits(self.train.lesions).tobytes() + bytes.fromhex(self.lungs.sha256))
        return digest.hexdigest()


def train(job: Job[Recipe]) -> Run:
    """Train, and leave a run with ``weights.safetensors`` behind; without lesion-free slices, nothing is painted.

    Raises:
        DataError: the data, the split or the lesion-free slices do not fit.
        RunError: the folder holds another run, or one to be resumed with ``resume``; what the job needs is not there.
    """
    asked, job = job.recipe, _without_synthesis(job)
    recipe = job.recipe
    if recipe.training.batch_size % job.processes:
        shared = f"cannot be shared by {job.processes} processes"
        raise RecipeError(f"training.batch_size={recipe.training.batch_size} {shared}; choose a multiple")
    prepare(job)
    torch.manual_seed(job.seed)
    network = build_network(recipe)
    if job.rank == 0:
        check_space(job.output, network)
    slices = _load(job)
    if job.rank == 0:
        if recipe != asked:
            _LOG.warning(
                "warning: trained without lesion synthesis; --lesion-free names slices to paint into"
            )
        if (warning := normalisation_warning(recipe)) is not None:
            _LOG.warning("warning: %s", warning)
        begin_run(job, slices.fingerprint, _facts(job, slices))
        write_bytes(job.output / LUNGS, slices.lungs.model)
    preprocessing = recipe.preprocessing.build()
    samples = TrainingSamples(
        slices.train,
        slices.train_labels,
        slices.known,
        slices.lesion_free,
        preprocessing,
        Augmentation(recipe.augmentation, preprocessing.size),
        recipe.synthesis,
    )
    batches = EpochBatches(
        recipe.sampling.draws or len(slices.train),
        len(slices.lesion_free or ()),
        recipe.synthesis,
        recipe.training.batch_size,
        job.seed,
        job.rank,
        job.processes,
        slices.chances,
    )
    module = Classifier(network, recipe, len(batches), job.seed)
    best = _best(job)
    images = to_images(slices.val.pixels, preprocessing)
    history = fit(
        job,
        module,
        DataLoader(samples, batch_size=None, sampler=batches),
        DataLoader(TensorDataset(images, torch.from_numpy(slices.val_labels)), batch_size=64),
        [best] if best else [],
    )
    if job.rank == 0:
        selected = len(history.rows) - 1
        if best is not None:
            checkpoint = AtomicCheckpoints().load_checkpoint(best.best_model_path)
            module.load_state_dict(checkpoint["state_dict"])
            selected = int(checkpoint["epoch"])
        save_weights(module.averaged.module.state_dict(), job.output / WEIGHTS)
        finish_run(job, history, selected)
    return Run.open(job.output)


def trained(job: Job[Recipe]) -> Run:
    """The job's run: trained or resumed where it is not finished, opened where it is.

    Raises:
        DataError, RunError: as :func:`train`; also when the finished run is of another recipe.
    """
    if (job.output / INFO).exists():
        run = Run.open(job.output)
        if run.info.get("finished"):
            check_same(_without_synthesis(job))
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


def _without_synthesis(job: Job[Recipe]) -> Job[Recipe]:
    """The job, without lesion synthesis where it has no lesion-free slices."""
    recipe = job.recipe
    if not recipe.synthesis.slices_per_epoch or job.lesion_free is not None:
        return job
    off = recipe.synthesis.model_copy(update={"slices_per_epoch": 0})
    return replace(job, recipe=recipe.model_copy(update={"synthesis": off}))


def _load(job: Job[Recipe]) -> _TrainingData:
    """Read, split and crop the slices a job needs."""
    recipe, lungs = job.recipe, open_segmenter(job.lungs)

    def cropped(records: Sequence[Record], context: float) -> CroppedSet:
        return load_cropped(records, recipe.preprocessing.build(), context, job.cache, lungs)

    manifest = load_pool(job.data).without(recipe.sampling.leave_out)
    split = make_split(manifest, job.split, seed=job.seed, allow_overlap=job.allow_overlap)
    records, val_records = (_labelled(manifest, split, part) for part in ("train", "val"))
    train = cropped(records, CONTEXT)
    keep = np.flatnonzero(_worth_teaching(records, train, recipe.sampling))
    records, train = [records[index] for index in keep], train.take(keep)
    lesion_free = None
    if job.lesion_free is not None and recipe.synthesis.slices_per_epoch:
        free = load_dataset(job.lesion_free).records
        lesion_free = with_lungs(cropped(free, CONTEXT))
        if not len(lesion_free):
            raise DataError(f"{job.lesion_free}: lungs were found in none of its {len(free)} slices")
    return _TrainingData(
        train,
        _targets(records),
        np.array([_known(record, recipe.sampling) for record in records], np.bool_),
        _chances(records, recipe.sampling) if recipe.sampling.draws else None,
        cropped(val_records, 0.0),
        _targets(val_records),
        lesion_free,
        Counter(record.hospital for record in records),
        lungs,
    )


def _worth_teaching(
    records: Sequence[Record], slices: CroppedSet, sampling: SamplingSection
) -> NDArray[np.bool_]:
    """False for COVID slices whose mask shows hardly any lesion: what they show is not what their label says."""
    lesion = (slices.lesions & slices.lungs).sum(axis=(1, 2)) / np.maximum(slices.lungs.sum(axis=(1, 2)), 1)
    masked = np.array([record.lesion_mask is not None and record.label is Label.COVID for record in records])
    return np.asarray(~masked | (lesion >= sampling.least_lesion), np.bool_)


def _known(record: Record, sampling: SamplingSection) -> bool:
    """Whether a slice's lesions are known: from its mask, or because there are none."""
    free = record.label is Label.NON_COVID and record.hospital in sampling.lesion_free
    return free or record.lesion_mask is not None


def _chances(records: Sequence[Record], sampling: SamplingSection) -> NDArray[np.float64]:
    """How likely each slice is drawn; see :class:`groundglass.training.recipe.SamplingSection`."""
    keys = [(record.label, record.hospital) for record in records]
    people = [(key, record.patient_id) for key, record in zip(keys, records, strict=True)]
    slices, of_person, persons = Counter(keys), Counter(people), Counter(key for key, _ in set(people))
    share: dict[tuple[Label | None, str], float] = {}
    for label in Label:
        present = [key for key in slices if key[0] is label]
        fixed = {key: sampling.shares[key[1]] for key in present if key[1] in sampling.shares}
        roots = {key: math.sqrt(slices[key]) for key in present if key not in fixed}
        rest = max(0.0, 1 - sum(fixed.values())) / (sum(roots.values()) or 1)
        weight = {key: fixed[key] if key in fixed else roots[key] * rest for key in present}
        # Named shares alone need not sum to 1, and both labels are drawn alike.
        share |= {key: each / (sum(weight.values()) or 1) for key, each in weight.items()}
    chances = np.array([share[key] / persons[key] / of_person[key, person] for key, person in people])
    return np.asarray(chances / chances.sum())


def _labelled(manifest: Manifest, split: Split, part: str) -> list[Record]:
    records = [manifest.records[index] for index in split.parts.get(part, ())]
    if not records:
        advice = "training needs train and val; --split patients:1/5 makes them, and test, from the patients"
        raise DataError(f"{manifest}: split {split.name} leaves nothing for the part {part}; {advice}")
    unlabelled = next((record for record in records if record.label is None), None)
    if unlabelled is not None:
        raise DataError(f"{unlabelled.path}: has no label; training needs COVID or NonCOVID for every slice")
    return records


def _targets(records: Sequence[Record]) -> NDArray[np.float32]:
    return np.array([record.label is Label.COVID for record in records], np.float32)


def _facts(job: Job[Recipe], slices: _TrainingData) -> dict[str, Any]:
    """What ``run.json`` says of the slices."""
    counts = {
        "train": len(slices.train),
        "val": len(slices.val),
        "lesion_free": len(slices.lesion_free or ()),
    }
    return {
        "lesion_free": job.lesion_free.resolve().name if slices.lesion_free and job.lesion_free else None,
        "sources": dict(sorted(slices.sources.items())),
        "lungs": {"sha256": slices.lungs.sha256, **slices.lungs.notes},
        "counts": counts,
        "training_sha256": list(slices.train.sha256),
    }


def _best(job: Job[Recipe]) -> ModelCheckpoint | None:
    """Keeps the best epoch on validation, where the recipe selects one."""
    selection = job.recipe.training.selection
    if selection == "last":
        return None
    return ModelCheckpoint(
        job.output / CHECKPOINTS,
        filename="best",
        monitor=selection,
        mode="max" if selection == "val_auc" else "min",
        save_weights_only=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
