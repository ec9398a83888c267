"""C2L: a network is pretrained to tell slices apart before it learns what is on them.

Zhou, Yu, Bian, Hu, Ma and Zheng, Comparing to Learn: Surpassing ImageNet Pretraining on Radiographs by
Comparing Image Representations, MICCAI 2020. Two views of each slice are compared three times: as they are;
both mixed with the same other slice; and the mixed view against the mix of the teacher's features. In every
comparison a slice must find its own key among those of earlier slices (InfoNCE, with a momentum teacher and a
queue as in MoCo).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record
from groundglass.data.splits import make_split
from groundglass.errors import DataError
from groundglass.files import name_some
from groundglass.imaging.crop import Preprocessing
from groundglass.models.layers import Network
from groundglass.models.registry import build
from groundglass.training.classify import adamw
from groundglass.training.recipe import PretrainRecipe, SynthesisSection
from groundglass.training.samples import CONTEXT, Augmentation, EpochBatches, SampleKey, load_cropped
from groundglass.training.trainer import (
    HISTORY,
    WEIGHTS,
    FitSettings,
    History,
    begin_run,
    finish_run,
    fit,
    prepare,
    save_weights,
)

BACKBONE = "backbone.safetensors"
"""The backbone alone under timm's names, in half precision: what other networks of the family start from."""

TERMS = ("plain", "mixed", "feature_mixed")
"""The three comparisons, each with a queue of its own."""

Views = tuple[Tensor, Tensor, Tensor]
"""First and second view, float32 (B, 1, H, W), and the slices' numbers, int64 (B,)."""

FindCopies = Callable[[Sequence[Record], Sequence[Record]], Sequence[tuple[Record, Record]]]
"""Pairs of a record of the first and one of the second sequence that show the same slice."""


class Encoder(nn.Module):
    """A network and the projection that is thrown away after pretraining.

    Args:
        network: whose pooled embedding is projected.
        hidden: width of the projection's hidden layer.
        dimensions: of the projection.
    """

    def __init__(self, network: Network, hidden: int, dimensions: int) -> None:
        super().__init__()
        self.network = network
        channels = network.head.classifier.in_features
        self.projection = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dimensions)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1, H, W) to un-normalised features (B, dimensions)."""
        return cast(Tensor, self.projection(self.network(images).embedding))


class C2L(LightningModule):
    """Pretrains a network by three comparisons; queues and their pointer are part of its state.

    Args:
        network: is trained in place.
        recipe: contrast, optimiser and schedule.
        steps_per_epoch: batches of one epoch, for the schedule.
        queue: keys kept for each comparison.
        seed: of the run.
    """

    queues: Tensor
    owners: Tensor
    pointer: Tensor

    def __init__(
        self, network: Network, recipe: PretrainRecipe, steps_per_epoch: int, queue: int, seed: int
    ) -> None:
        super().__init__()
        contrast = recipe.contrast
        self.student = Encoder(network, contrast.hidden, contrast.dimensions).to(
            memory_format=torch.channels_last
        )
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.register_buffer("queues", torch.zeros(len(TERMS), queue, contrast.dimensions))
        # Number of the slice behind each key; -1 where no key has been written yet.
        self.register_buffer("owners", torch.full((queue,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def on_train_batch_start(self, batch: Views, batch_idx: int) -> None:
        """Seed what draws from torch's generator by the batch, so that a resumed training repeats it."""
        entropy = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx])
        torch.manual_seed(int(entropy.generate_state(1)[0]))

    def training_step(self, batch: Views, batch_idx: int) -> Tensor:
        """Mean of the three comparisons' losses."""
        first, second, owners = batch
        share, partner = self._mixture(len(first), batch_idx)
        queries = {
            "plain": self.student(first),
            "mixed": self.student(_mix(first, share, partner)),
        }
        queries["feature_mixed"] = queries["mixed"]
        keys = self._keys(second, share, partner)
        negatives = self._allowed(owners)
        losses = [
            info_nce(
                F.normalize(queries[term]),
                keys[term],
                self.queues[number],
                negatives,
                self.recipe.contrast.temperature,
            )
            for number, term in enumerate(TERMS)
        ]
        self._enqueue([keys[term] for term in TERMS], owners)
        loss = torch.stack(losses).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(first))
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine; see :func:`groundglass.training.classify.adamw`."""
        steps = self.steps_per_epoch * self.recipe.training.epochs
        return adamw(self.student, self.recipe.optimiser, steps, self.steps_per_epoch)

    @torch.no_grad()
    def _keys(self, second: Tensor, share: float, partner: Tensor) -> dict[str, Tensor]:
        """The teacher's keys of each comparison, unit length, after it took a step towards the student."""
        momentum = self.recipe.contrast.momentum
        for mine, learned in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(learned, 1 - momentum)
        # Statistics of the batch: those it has gathered lag behind its parameters.
        self.teacher.train()
        plain = self.teacher(second)
        return {
            "plain": F.normalize(plain),
            "mixed": F.normalize(self.teacher(_mix(second, share, partner))),
            "feature_mixed": F.normalize(_mix(plain, share, partner)),
        }

    def _mixture(self, count: int, batch_idx: int) -> tuple[float, Tensor]:
        """The share of the slice itself, at least a half, and with which other each is mixed."""
        rng = np.random.default_rng([self.seed, self.current_epoch, batch_idx])
        share = float(rng.beta(1, 1))
        return max(share, 1 - share), torch.from_numpy(rng.permutation(count)).to(self.device)

    def _allowed(self, owners: Tensor) -> Tensor:
        """Which key of the queue is a negative of which slice, bool (B, queue): none of its own."""
        return (self.owners[None, :] >= 0) & (self.owners[None, :] != owners[:, None])

    @torch.no_grad()
    def _enqueue(self, keys: list[Tensor], owners: Tensor) -> None:
        """Replace the oldest keys."""
        places = (self.pointer + torch.arange(len(owners), device=self.device)) % len(self.owners)
        for queue, fresh in zip(self.queues, keys, strict=True):
            queue[places] = fresh
        self.owners[places] = owners
        self.pointer.copy_((self.pointer + len(owners)) % len(self.owners))


def info_nce(query: Tensor, key: Tensor, queue: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each query's key among the queue's (van den Oord et al., 2018).

    Args:
        query: unit vectors, (B, d).
        key: unit vectors, (B, d), the queries' own.
        queue: unit vectors, (K, d).
        allowed: bool (B, K): which of the queue count as negatives.
        temperature: similarities are divided by it.
    """
    own = (query * key).sum(dim=1, keepdim=True)
    # A copy: the queue is written to before the gradient is computed.
    others = (query @ queue.clone().T).masked_fill(~allowed, -torch.inf)
    logits = torch.cat([own, others], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def _mix(values: Tensor, share: float, partner: Tensor) -> Tensor:
    """Each value blended with its partner's; images keep their channels-last memory."""
    mixed = values.lerp(values[partner], 1 - share)
    return mixed.contiguous(memory_format=torch.channels_last) if mixed.ndim == 4 else mixed


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
        resume: continue where an earlier start of the same job was stopped.
        threads: CPU threads; 0 for one per core.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as Lightning names them.
        cache: folder for cropped slices.
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


class TwoViews(Dataset[Views]):
    """Batches of two augmented views of each slice.

    Args:
        slices: uint8, with context, shape (N, C, C).
        preprocessing: normalises what augmentation gives.
        augmentation: draws the views.
    """

    def __init__(
        self, slices: NDArray[np.uint8], preprocessing: Preprocessing, augmentation: Augmentation
    ) -> None:
        self.slices = slices
        self.preprocessing = preprocessing
        self.augmentation = augmentation

    def __getitem__(self, keys: list[SampleKey]) -> Views:
        """First and second view, float32 (B, 1, size, size) channels-last, and the slices' numbers (B,)."""
        size = self.preprocessing.size
        pixels = np.empty((2, len(keys), size, size), np.uint8)
        for row, key in enumerate(keys):
            rng = np.random.default_rng(key.seed)
            for view in pixels:
                view[row] = self.augmentation(self.slices[key.index], rng)
        images = torch.from_numpy(self.preprocessing.normalise(pixels)).unsqueeze(2)
        first, second = (view.contiguous(memory_format=torch.channels_last) for view in images)
        return first, second, torch.tensor([key.index for key in keys])


def pretrain(job: PretrainJob, find_copies: FindCopies) -> None:
    """Pretrain, and leave the weights of the network and of its backbone in the run's folder.

    Args:
        job: what is asked for.
        find_copies: looks for copies of held-out slices among the unlabelled ones.

    Raises:
        DataError: there are no slices, or an unlabelled one is a held-out slice of the data set.
        RunError: the folder holds another run, or one to be resumed with ``resume``.
    """
    prepare(job.threads)
    recipe = job.recipe
    records = unlabelled_slices(job, find_copies)
    preprocessing = recipe.preprocessing.build()
    cropped = load_cropped(records, preprocessing, CONTEXT, job.cache)
    if len(cropped) < 2 * recipe.training.batch_size:
        raise DataError(
            f"{len(cropped)} slices are too few to pretrain in batches of {recipe.training.batch_size}"
        )
    torch.manual_seed(job.seed)
    network = build(recipe.network.name, recipe.network.weights)
    batches = EpochBatches(len(cropped), 0, SynthesisSection(), recipe.training.batch_size, job.seed)
    # At most half the slices, so that no key is older than an epoch.
    half = len(cropped) // 2
    module = C2L(network, recipe, len(batches), min(recipe.contrast.queue or half, half), job.seed)
    begin_run(job.output, recipe, _facts(job, cropped.sha256), job.resume)
    history = History(job.output / HISTORY, len(batches) * recipe.training.batch_size)
    settings = FitSettings(
        job.output,
        recipe.training.epochs,
        recipe.optimiser.gradient_clip,
        job.accelerator,
        resume=job.resume,
        progress=job.progress,
    )
    views = TwoViews(cropped.pixels, preprocessing, Augmentation(recipe.augmentation, preprocessing.size))
    fit(module, DataLoader(views, batch_size=None, sampler=batches), None, [history], settings)
    state = network.state_dict()
    save_weights(state, job.output / WEIGHTS)
    save_weights(_backbone(state), job.output / BACKBONE)
    finish_run(job.output, {"training_seconds": history.seconds})


def unlabelled_slices(job: PretrainJob, find_copies: FindCopies) -> list[Record]:
    """The training part of the data set and the unlabelled slices; no slice that is held out for evaluation.

    Raises:
        DataError: there are none, or an unlabelled slice shows the same as a held-out one.
        ImageError: a held-out slice cannot be read, so that copies of it cannot be found.
    """
    records: list[Record] = []
    held_out: list[Record] = []
    if job.data is not None:
        manifest = load_dataset(job.data)
        split = make_split(manifest, job.split, seed=job.seed)
        for name, indices in split.parts.items():
            (records if name == "train" else held_out).extend(manifest.records[index] for index in indices)
    unlabelled = [record for path in job.images for record in load_dataset(path).records]
    if held_out and unlabelled and (copies := find_copies(held_out, unlabelled)):
        name, *others = dict.fromkeys(str(copy.path) for _, copy in copies)
        more = f" and {len(others)} more such copies ({name_some(others)})" if others else ""
        raise DataError(
            f"{name}: shows the same slice as {copies[0][0].path}, which is held out for evaluation; "
            f"remove it{more} from --images"
        )
    records.extend(unlabelled)
    if not records:
        raise DataError("nothing to pretrain on: name a data set with --data, or slices with --images")
    return records


def _facts(job: PretrainJob, hashes: Sequence[str]) -> dict[str, Any]:
    """What ``run.json`` says of the job; it travels with the weights."""
    return {
        "kind": "pretraining",
        "recipe": job.recipe.name,
        "network": job.recipe.network.name,
        "weights": job.recipe.network.weights,
        "preprocessing": job.recipe.preprocessing.model_dump(mode="json"),
        "epochs": job.recipe.training.epochs,
        "seed": job.seed,
        "split": job.split if job.data else None,
        "data": job.data.resolve().name if job.data else None,
        "images": [path.resolve().name for path in job.images],
        "slices": len(hashes),
        "fingerprint": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = "backbone."
    return {
        name.removeprefix(start): value.half() if value.is_floating_point() else value
        for name, value in state.items()
        if name.startswith(start)
    }
