"""Train one network: data in, run folder out, resumable after a kill at any moment."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import PARTS, Label, Record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RecipeError
from groundglass.files import printable, write_bytes
from groundglass.imaging.lungs import LungSegmenter, open_segmenter
from groundglass.models.catalogue import pretraining
from groundglass.models.layers import Network
from groundglass.training.classify import Classifier
from groundglass.training.recipe import Recipe, SamplingSection, load_recipe
from groundglass.training.run import LUNGS, Run, build_network
from groundglass.training.samples import (
    CONTEXT,
    Augmentation,
    Batch,
    CroppedSet,
    EpochBatches,
    TrainingSamples,
    load_cropped,
    shares_of,
    to_images,
    with_lungs,
)
from groundglass.training.trainer import CHECKPOINTS, AtomicCheckpoints, Job

_LOG = logging.getLogger(__name__)


def train(
    recipe: Recipe | str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    overrides: Sequence[str] = (),
    split: str = "official",
    seed: int = 0,
    lesion_free: str | PathLike[str] | None = None,
    resume: bool = False,
    allow_overlap: bool = False,
    devices: int | None = None,
    accelerator: str = "auto",
    threads: int = 0,
    cache: str | PathLike[str] | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] | None = None,
    map_label: Sequence[str] = (),
) -> Run:
    """Train a network, as ``groundglass train`` does.

    >>> run = train("resnet-18", "covid-ct", "runs/first", overrides=["training.epochs=3"])  # doctest: +SKIP
    >>> run.history()[-1]["val_auc"], run.predict(["slice.png"]).probability  # doctest: +SKIP

    ``recipe`` is a recipe, its name, a network's name or a YAML file; ``overrides`` change fields of one that is named.
    ``data`` is one data set or several. All else is what :class:`groundglass.training.trainer.Job` says of it.

    Raises:
        GroundglassError: recipe, data, split, folder or machine do not fit; nothing is trained then.
        KeyboardInterrupt: interrupted; the same call with ``resume`` continues.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(str(recipe), overrides)
    elif overrides:
        raise RecipeError("overrides change a recipe that is named, not one that is given; change it itself")
    sets = (data,) if isinstance(data, str | PathLike) else data
    job = Job(
        recipe, tuple(map(Path, sets)), split, seed, Path(output),
        lesion_free=Path(lesion_free) if lesion_free is not None else None,
        devices=devices,
        cache=Path(cache) if cache is not None else None,
        callbacks=tuple(callbacks), loggers=None if loggers is None else tuple(loggers),
        allow_overlap=allow_overlap, resume=resume, threads=threads, accelerator=accelerator,
        progress=progress, map_label=tuple(map_label),
    )  # fmt: skip
    return train_job(job)


def train_job(job: Job[Recipe]) -> Run:
    """Train, and leave a run with ``weights.safetensors`` behind; without lesion-free slices, nothing is painted.

    A finished run of the same job is opened where it is to be resumed.

    Raises:
        DataError: the data, the split or the lesion-free slices do not fit.
        RunError: the folder holds another run, or one to be resumed with ``resume``; what the job needs is not there.
    """
    asked, job = job.recipe, without_synthesis(job)
    recipe = job.recipe
    if job.is_finished:
        return Run.open(job.output)
    torch.manual_seed(job.seed)
    network = build_network(recipe)
    job.prepare(network)
    train, val, free, _ = slices_of(job)
    lungs = open_segmenter(job.lungs)
    module, training, validation, facts = _prepared(job, network, lungs, train, val, free)
    if job.rank == 0:
        if recipe != asked:
            _LOG.warning("warning: trained without lesion synthesis; --lesion-free names slices to paint into")
        _warn_of_normalisation(recipe)
        job.begin(facts)
        write_bytes(job.output / LUNGS, lungs.model)
    best, stopping = _selection(job)
    history = job.fit(module, training, validation, [*best, *stopping])
    if job.rank == 0:
        selected = None
        for kept in best:
            checkpoint = AtomicCheckpoints().load_checkpoint(kept.best_model_path)
            module.load_state_dict(checkpoint["state_dict"])
            selected = int(checkpoint["epoch"])
        job.finish(history, module.averaged.module.state_dict(), selected)
    return Run.open(job.output)


def plan(job: Job[Recipe]) -> tuple[Recipe, Counter[tuple[str, str, str]], int]:
    """Check a training as far as no slice is read, and leave nothing behind; errors are those of :func:`train_job`.

    Gives the recipe as it would be trained, slices by part, source and label, and batches of an epoch.
    """
    job = without_synthesis(job)
    recipe = job.recipe
    _augmenter(recipe)
    job.prepare(build_network(recipe))
    train, val, free, test = slices_of(job)
    draws = (recipe.sampling.draws or len(train)) + (recipe.synthesis.slices_per_epoch if free else 0)
    counts = Counter(
        (name, record.hospital, str(record.label.value if record.label else "none"))
        for name, records in (("train", train), ("val", val), ("test", test), ("lesion-free", free))
        for record in records
    )
    return recipe, counts, max(1, draws // recipe.training.batch_size)


def _warn_of_normalisation(recipe: Recipe) -> None:
    """Where the weights that a recipe starts from were pretrained with another one."""
    known = pretraining(recipe.network.name, recipe.network.weights) or {}
    own, theirs = recipe.preprocessing.normalisation, known.get("preprocessing", {}).get("normalisation")
    if known and own != theirs:
        _LOG.warning(
            f"warning: weights {recipe.network.weights} were pretrained with normalisation {theirs or 'unknown'}, "
            f"recipe {recipe.name} has {own}; results may suffer, `groundglass pretrain` makes others"
        )


def without_synthesis(job: Job[Recipe]) -> Job[Recipe]:
    """The job, without lesion synthesis where it has no lesion-free slices."""
    recipe = job.recipe
    if not recipe.synthesis.slices_per_epoch or job.lesion_free is not None:
        return job
    off = recipe.synthesis.model_copy(update={"slices_per_epoch": 0})
    return replace(job, recipe=recipe.model_copy(update={"synthesis": off}))


def slices_of(job: Job[Recipe]) -> tuple[list[Record], ...]:
    """The slices that train, that validate, that lesions are painted into, and that test.

    A DataError where the data or the split do not fit.
    """
    manifest = load_pool(job.data, job.map_label).without(job.recipe.sampling.leave_out)
    if not len(manifest):
        raise DataError(f"{manifest}: sampling.leave_out leaves no slice of it")
    split = make_split(manifest, job.split, seed=job.seed, allow_overlap=job.allow_overlap)
    train, val, test = ([manifest.records[index] for index in split.parts.get(part, ())] for part in PARTS)
    for part, records in (("train", train), ("val", val)):
        if not records:
            advice = "training needs train and val; --split patients:1/5 makes them, and test, from the patients"
            raise DataError(f"{manifest}: split {split.name} leaves nothing for the part {part}; {advice}")
    free = job.lesion_free if job.recipe.synthesis.slices_per_epoch else None
    return train, val, list(load_dataset(free, job.map_label).records) if free is not None else [], test


def _prepared(
    job: Job[Recipe], network: Network, lungs: LungSegmenter,
    records: Sequence[Record], val_records: Sequence[Record], free: Sequence[Record],
) -> tuple[Classifier, DataLoader[Batch], DataLoader[tuple[Tensor, ...]], dict[str, Any]]:  # fmt: skip
    """What learns, what it learns from and is validated by, read and cropped, and what ``run.json`` says of these."""
    recipe, preprocessing = job.recipe, job.recipe.preprocessing
    sampling, synthesis, augmenter = recipe.sampling, recipe.synthesis, _augmenter(recipe)

    def cropped(records: Sequence[Record], context: float = CONTEXT) -> CroppedSet:
        return load_cropped(records, preprocessing, context, job.cache, lungs, job.progress and job.rank == 0)

    def targets(records: Sequence[Record]) -> NDArray[np.float32]:
        return np.array([record.label is Label.COVID for record in records], np.float32)

    real = cropped(records)
    keep = np.flatnonzero(_worth_teaching(records, real, sampling))
    records, real = [records[int(index)] for index in keep], real.take(keep)
    if len({record.label for record in records}) < len(Label):
        raise DataError("no COVID slice is left to train on: their lesion masks show less than sampling.least_lesion")
    lesion_free = with_lungs(cropped(free)) if free else real.take(np.arange(0))
    if free and not len(lesion_free):
        raise DataError(f"{job.lesion_free}: lungs were found in none of its {len(free)} slices")
    val = cropped(val_records, 0.0)
    validation = TensorDataset(to_images(val.pixels, preprocessing), torch.from_numpy(targets(val_records)))
    known = np.array([_known(record, sampling) for record in records], np.bool_)
    samples = TrainingSamples(
        real, targets(records), known, lesion_free, preprocessing, augmenter, recipe.augmentation.lungs_only, synthesis
    )  # fmt: skip
    chances = _chances(records, sampling) if sampling.draws else None
    synthetic = synthesis.slices_per_epoch if len(lesion_free) else 0
    batches = EpochBatches(
        sampling.draws or len(real), recipe.training.batch_size, job.seed, chances,
        len(lesion_free), synthetic, synthesis.painted, job.rank, job.processes,
    )  # fmt: skip
    drawn = [float(np.average(samples.labels, weights=chances)), synthesis.painted]
    covid = float(np.average(drawn, weights=[batches.real, synthetic]))
    return (
        Classifier(network, recipe, len(batches), job.seed, covid),
        # Whoever prepares a batch, it is drawn and seeded here: workers change nothing of it.
        DataLoader(samples, None, sampler=batches, num_workers=recipe.trainer.workers),
        DataLoader(validation, batch_size=64),
        _facts(job, (records, val_records), samples, val, lungs),
    )


def _augmenter(recipe: Recipe) -> Augmentation:
    try:
        return cast(Augmentation, resolve_name(recipe.augmenter)(recipe.augmentation, recipe.preprocessing.size))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise RecipeError(f"augmenter={recipe.augmenter}: {error}; is its module on PYTHONPATH?") from None


def _facts(
    job: Job[Recipe], parts: Sequence[Sequence[Record]], samples: TrainingSamples, val: CroppedSet, lungs: LungSegmenter
) -> dict[str, Any]:
    """What ``run.json`` says of the slices, and hashes of everything the network learns from or is selected on."""
    real, free, digest = samples.real, samples.lesion_free, hashlib.sha256()
    for part in (real, val, free):
        digest.update(bytes.fromhex("".join(part.sha256)) + b"|")
    digest.update(np.packbits(real.lesions).tobytes() + bytes.fromhex(lungs.sha256))
    said = [(each.label, each.hospital, each.patient_known and each.patient_id) for part in parts for each in part]
    return {
        "lesion_free": printable(job.lesion_free.resolve().name) if len(free) and job.lesion_free else None,
        "sources": dict(sorted(Counter(record.hospital for record in parts[0]).items())),
        "lungs": {"sha256": lungs.sha256, **lungs.notes},
        "counts": {"train": len(real), "val": len(val), "lesion_free": len(free)},
        "training_sha256": [*real.sha256, *free.sha256],
        "fingerprint": digest.hexdigest(),
        "labels": hashlib.sha256(repr(said).encode()).hexdigest(),
    }


class _Stopping(EarlyStopping):
    """Ends a training that it has stopped before its end was written, when that is resumed."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop at once where the checkpoint says so."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


def _selection(job: Job[Recipe]) -> tuple[list[ModelCheckpoint], list[EarlyStopping]]:
    """What keeps the best epoch on validation and what stops early, where the recipe asks for them."""
    training = job.recipe.training
    measure = "val_loss" if training.selection == "last" else training.selection
    better: Any = {"monitor": measure, "mode": "max" if measure == "val_auc" else "min"}
    kept: Any = {"save_weights_only": True, "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = [ModelCheckpoint(job.output / CHECKPOINTS, "best", **kept, **better)]
    stopping: list[EarlyStopping] = [_Stopping(patience=training.early_stopping, **better)]
    return best if training.selection != "last" else [], stopping if training.early_stopping else []


def _worth_teaching(records: Sequence[Record], slices: CroppedSet, sampling: SamplingSection) -> NDArray[np.bool_]:
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
    people = [(record.label, record.hospital, record.patient_id) for record in records]
    of_person, slices = Counter(people), Counter(person[:2] for person in people)
    persons = Counter(person[:2] for person in of_person)
    share: dict[tuple[Label | None, str], float] = {}
    for label in Label:
        present = {key: count for key, count in slices.items() if key[0] is label}
        weight = shares_of(present, {key: sampling.shares[key[1]] for key in present if key[1] in sampling.shares})
        # Named shares alone need not sum to 1, and both labels are drawn alike.
        share |= {key: each / (sum(weight.values()) or 1) for key, each in weight.items()}
    chances = np.array([share[each[:2]] / persons[each[:2]] / of_person[each] for each in people])
    return np.asarray(chances / chances.sum())
