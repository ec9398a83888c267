"""Pretrain a network on slices without labels: training slices in, weights out, resumable after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from groundglass.atomic import atomic_path, write_json, write_text
from groundglass.data.duplicates import copies_of
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record, name_some
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RunError
from groundglass.imaging.framing import Framing
from groundglass.models.network import Network
from groundglass.models.registry import build
from groundglass.training.augment import CONTEXT, Augmentation
from groundglass.training.c2l import C2L, Views
from groundglass.training.checkpoint import History, read_history
from groundglass.training.framed import load_framed
from groundglass.training.pretrain_recipe import PretrainRecipe, parse_pretrain_recipe
from groundglass.training.provenance import machine, now, versions
from groundglass.training.recipe import SynthesisSection
from groundglass.training.run import HISTORY, INFO, RECIPE, WEIGHTS
from groundglass.training.samples import EpochBatches, SampleKey
from groundglass.training.trainer import Hardware, fit, make_trainer, prepare

BACKBONE = "backbone.safetensors"
"""The backbone alone under timm's names, in half precision: what other networks of the family start from."""


@dataclass(frozen=True)
class PretrainJob:
    """One pretraining.

    Attributes:
        recipe: what is pretrained and how.
        output: the run's folder.
        data: a data set, of which the training part alone is used, labels unseen; or None.
        images: files and folders of slices without labels.
        split: of ``data``.
        seed: of everything random.
        resume: go on where an earlier start of the same job was stopped.
        threads: CPU threads; 0 for one per core.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as Lightning names them.
        cache: folder for framed slices.
        progress: show a progress bar.
    """

    recipe: PretrainRecipe
    output: Path
    data: Path | None = None
    images: tuple[Path, ...] = ()
    split: str = "official"
    seed: int = 0
    resume: bool = False
    threads: int = 0
    accelerator: str = "auto"
    cache: Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining leaves behind.

    Attributes:
        path: the run's folder.
        info: content of ``run.json``.
        history: one row per epoch.
    """

    path: Path
    info: dict[str, Any]
    history: list[dict[str, float]]

    @property
    def weights(self) -> Path:
        """State of the whole network, for exactly this one."""
        return self.path / WEIGHTS

    @property
    def backbone(self) -> Path:
        """State of its backbone, for every network with the same."""
        return self.path / BACKBONE


class TwoViews(Dataset[Views]):
    """Batches of two augmented views of each slice.

    Args:
        slices: uint8, with context, shape (N, C, C).
        framing: normalises what augmentation gives.
        augmentation: draws the views.
    """

    def __init__(self, slices: NDArray[np.uint8], framing: Framing, augmentation: Augmentation) -> None:
        self.slices = slices
        self.framing = framing
        self.augmentation = augmentation

    def __getitem__(self, keys: list[SampleKey]) -> Views:
        """First and second view, float32 (B, 1, size, size) channels-last, and the slices' numbers (B,)."""
        size = self.framing.size
        pixels = np.empty((2, len(keys), size, size), np.uint8)
        for row, key in enumerate(keys):
            rng = np.random.default_rng(key.seed)
            for view in pixels:
                view[row] = self.augmentation(self.slices[key.index], rng)
        images = torch.from_numpy(self.framing.normalise(pixels)).unsqueeze(2)
        first, second = (view.contiguous(memory_format=torch.channels_last) for view in images)
        return first, second, torch.tensor([key.index for key in keys])


def pretrain(job: PretrainJob) -> Pretrained:
    """Pretrain, and leave the weights of the network and of its backbone behind.

    Raises:
        DataError: there are no slices, or an unlabelled one is a held-out slice of the data set.
        RunError: the folder holds another run, or one to be resumed with ``resume``.
    """
    prepare(job.threads)
    recipe = job.recipe
    records = unlabelled_slices(job)
    framing = recipe.framing.build()
    framed = load_framed(records, framing, CONTEXT, job.cache)
    if len(framed) < 2 * recipe.training.batch_size:
        raise DataError(
            f"{len(framed)} slices are too few to pretrain in batches of {recipe.training.batch_size}"
        )
    torch.manual_seed(job.seed)
    network = build(recipe.network.name, recipe.network.weights)
    batches = EpochBatches(len(framed), 0, SynthesisSection(), recipe.training.batch_size, job.seed)
    module = C2L(network, recipe, len(batches), _queue(recipe, len(framed)), job.seed)
    _begin(job, framed.sha256)
    history = History(job.output / HISTORY, len(batches) * recipe.training.batch_size)
    trainer = make_trainer(
        job.output,
        recipe.training.epochs,
        [history],
        Hardware(job.accelerator),
        gradient_clip=recipe.optimiser.gradient_clip,
        progress=job.progress,
    )
    views = TwoViews(framed.pixels, framing, Augmentation(recipe.augmentation, framing.size))
    fit(trainer, module, DataLoader(views, batch_size=None, sampler=batches), None, resume=job.resume)
    _finish(job, network, history)
    return open_pretrained(job.output)


def open_pretrained(path: Path) -> Pretrained:
    """Open the folder of a pretraining.

    Raises:
        RunError: it is none, or damaged.
    """
    try:
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: no pretraining here ({error})") from None
    return Pretrained(path, info, read_history(path / HISTORY))


def unlabelled_slices(job: PretrainJob) -> list[Record]:
    """The training part of the data set and the unlabelled slices; no slice that is held out for judging.

    Raises:
        DataError: there are none, or an unlabelled slice shows the same as a held-out one, whether it was
            recoded, rescaled, cropped, given another window or mirrored.
        ImageError: a held-out slice cannot be read, so that nobody can tell.
    """
    records: list[Record] = []
    held_out: list[Record] = []
    if job.data is not None:
        manifest = load_dataset(job.data)
        split = make_split(manifest, job.split, seed=job.seed)
        for name, indices in split.parts.items():
            (records if name == "train" else held_out).extend(manifest.records[index] for index in indices)
    outside = [record for path in job.images for record in load_dataset(path).records]
    if held_out and outside:
        _refuse_copies(held_out, outside, job.threads or None)
    records.extend(outside)
    if not records:
        raise DataError("nothing to pretrain on: name a data set with --data, or slices with --images")
    return records


def _refuse_copies(held_out: Sequence[Record], outside: Sequence[Record], threads: int | None) -> None:
    copies = copies_of(held_out, outside, threads=threads)
    if not copies:
        return
    twin = copies[0].first.path
    name, *others = dict.fromkeys(str(pair.second.path) for pair in copies)
    more = f" and {len(others)} more such copies ({name_some(others)})" if others else ""
    raise DataError(
        f"{name}: shows the same slice as {twin}, which is held out for judging; "
        f"remove it{more} from --images"
    )


def _queue(recipe: PretrainRecipe, slices: int) -> int:
    """Keys kept: at most half the slices, so that no key is older than an epoch."""
    half = max(1, slices // 2)
    return min(recipe.contrast.queue or half, half)


def _begin(job: PretrainJob, hashes: Sequence[str]) -> None:
    """Create the run's folder, or check that it holds the same job."""
    fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()
    info = {
        "finished": False,
        "kind": "pretraining",
        "recipe": job.recipe.name,
        "network": job.recipe.network.name,
        "weights": job.recipe.network.weights,
        "seed": job.seed,
        "split": job.split if job.data else None,
        "data": job.data.resolve().name if job.data else None,
        "images": [path.resolve().name for path in job.images],
        "slices": len(hashes),
        "fingerprint": fingerprint,
    }
    path = job.output / INFO
    if path.exists():
        if not job.resume:
            raise RunError(
                f"{job.output}: holds a run already; go on with --resume or choose another --output"
            )
        _check_same(job, fingerprint)
        return
    if job.output.exists() and any(job.output.iterdir()):
        raise RunError(f"{job.output}: is not empty and holds no run; choose another --output")
    write_text(job.output / RECIPE, job.recipe.to_yaml())
    write_json(path, {**info, "started": now(), "versions": versions(), "machine": machine()})


def _check_same(job: PretrainJob, fingerprint: str) -> None:
    before = open_pretrained(job.output).info
    fields = yaml.safe_load((job.output / RECIPE).read_text(encoding="utf-8"))
    same = before.get("seed") == job.seed and before.get("fingerprint") == fingerprint
    if not same or parse_pretrain_recipe(fields, str(job.output / RECIPE)) != job.recipe:
        raise RunError(
            f"{job.output}: cannot resume, recipe, seed or slices have changed; choose another --output"
        )


def _finish(job: PretrainJob, network: Network, history: History) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    _save(state, job.output / WEIGHTS)
    start = "backbone."
    backbone = {
        name.removeprefix(start): value.half() if value.is_floating_point() else value
        for name, value in state.items()
        if name.startswith(start)
    }
    _save(backbone, job.output / BACKBONE)
    info = open_pretrained(job.output).info
    seconds = round(sum(row["seconds"] for row in history.rows), 1)
    write_json(job.output / INFO, {**info, "finished": True, "ended": now(), "training_seconds": seconds})


def _save(state: dict[str, Tensor], path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file(state, temporary)
