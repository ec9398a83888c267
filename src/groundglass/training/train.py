"""Train one network: data in, run folder out, resumable after a kill at any moment."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from groundglass.atomic import atomic_path, write_json, write_text
from groundglass.errors import RecipeError, RunError
from groundglass.imaging.framing import Framing
from groundglass.training.augment import Augmentation
from groundglass.training.checkpoint import AtomicCheckpoints, History
from groundglass.training.classify import Classifier
from groundglass.training.job import Job, Material, load_material
from groundglass.training.provenance import machine, now, versions
from groundglass.training.recipe import Recipe
from groundglass.training.run import CHECKPOINTS, HISTORY, INFO, RECIPE, WEIGHTS, Run, build_network
from groundglass.training.samples import EpochBatches, TrainingSamples
from groundglass.training.trainer import Hardware, fit, make_trainer, prepare


def train(job: Job) -> Run:
    """Train, and leave a run with ``weights.safetensors`` behind.

    Raises:
        DataError: the data, the split or the lesion-free slices do not fit.
        RunError: the folder holds another run, or one to be resumed with ``resume``.
    """
    _check(job)
    prepare(job.threads)
    material = load_material(job)
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
    fit(trainer, module, loader, _validation(material, job.recipe.framing.build()), resume=job.resume)
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


def job_facts(job: Job, material: Material) -> dict[str, Any]:
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


def training_samples(job: Job, material: Material) -> tuple[TrainingSamples, EpochBatches]:
    """The job's samples and the order in which its epochs draw them."""
    recipe = job.recipe
    samples = TrainingSamples(
        material.train,
        material.train_labels,
        material.lesion_free,
        recipe.framing.build(),
        Augmentation(recipe.augmentation, recipe.framing.size),
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


def _validation(material: Material, framing: Framing) -> DataLoader[Any]:
    images = torch.from_numpy(framing.normalise(material.val.pixels)).unsqueeze(1)
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


def _begin(job: Job, material: Material) -> dict[str, Any]:
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
