"""C2L: a network is pretrained to tell slices apart before it learns what is on them.

Zhou, Yu, Bian, Hu, Ma and Zheng, Comparing to Learn: Surpassing ImageNet Pretraining on Radiographs by
Comparing Image Representations, MICCAI 2020. Two views of each slice are compared three times: as they are;
both mixed with the same other slice; and the mixed view against the mix of the teacher's features. In every
comparison a slice must find its own key among those of earlier slices (InfoNCE, with a momentum teacher and a
queue as in MoCo).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import Record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RecipeError
from groundglass.files import printable
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import open_segmenter
from groundglass.models.layers import Network
from groundglass.models.registry import build
from groundglass.training.recipe import PretrainRecipe
from groundglass.training.samples import CONTEXT, Augmentation, EpochBatches, SampleKey, load_cropped, to_images
from groundglass.training.trainer import Job, Scheduled, save_weights

BACKBONE = "backbone.safetensors"
"""The backbone alone under timm's names, in half precision: what other networks of the family start from."""

Views = tuple[Tensor, Tensor, Tensor]
"""First and second view, float32 (B, 1, H, W) in channels-last memory, and the slices' numbers, int64 (B,)."""

Refuse = Callable[[Sequence[Record], Sequence[Record]], None]
"""Raises an error where one of the second records shows the same slice as one of the first, which are held out."""


class Encoder(nn.Module):
    """A network and the projection of its pooled embedding, which is thrown away after pretraining."""

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


class C2L(Scheduled):
    """Pretrains a network in place by three comparisons; of each ``queue`` keys are kept, a part of its state."""

    recipe: PretrainRecipe
    queues: Tensor
    owners: Tensor
    pointer: Tensor

    def __init__(self, network: Network, recipe: PretrainRecipe, steps_per_epoch: int, queue: int, seed: int) -> None:
        super().__init__(recipe, steps_per_epoch, seed)
        contrast = recipe.contrast
        self.student = Encoder(network, contrast.hidden, contrast.dimensions).to(memory_format=torch.channels_last)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.register_buffer("queues", torch.zeros(3, queue, contrast.dimensions))
        # Number of the slice behind each key; -1 where no key has been written yet.
        self.register_buffer("owners", torch.full((queue,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch: Views, batch_idx: int) -> Tensor:
        """Mean of the three comparisons' losses."""
        first, second, owners = batch
        share, partner = self._mixture(len(first), batch_idx)
        plain, mixed = self.student(first), self.student(_mix(first, share, partner))
        keys = self._keys(second, share, partner)
        allowed = (self.owners >= 0) & (self.owners != owners[:, None])
        temperature = self.recipe.contrast.temperature
        loss = torch.stack(
            [
                info_nce(F.normalize(query), key, queue, allowed, temperature)
                for query, key, queue in zip((plain, mixed, mixed), keys, self.queues, strict=True)
            ]
        ).mean()
        self._enqueue(keys, owners)
        self.log_loss(loss, len(first))
        return loss

    @torch.no_grad()
    def _keys(self, second: Tensor, share: float, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's keys of each comparison, unit length, after it took a step towards the student."""
        momentum = self.recipe.contrast.momentum
        for mine, learned in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(learned, 1 - momentum)
        # Statistics of the batch: those it has gathered lag behind its parameters.
        self.teacher.train()
        plain, mixed = self.teacher(second), self.teacher(_mix(second, share, partner))
        return F.normalize(plain), F.normalize(mixed), F.normalize(_mix(plain, share, partner))

    def _mixture(self, count: int, batch_idx: int) -> tuple[float, Tensor]:
        """The share of the slice itself, at least a half, and with which other each is mixed."""
        rng = np.random.default_rng([self.seed, self.current_epoch, batch_idx])
        share = float(rng.beta(1, 1))
        return max(share, 1 - share), torch.from_numpy(rng.permutation(count)).to(self.device)

    @torch.no_grad()
    def _enqueue(self, keys: Sequence[Tensor], owners: Tensor) -> None:
        """Replace the oldest keys."""
        places = (self.pointer + torch.arange(len(owners), device=self.device)) % len(self.owners)
        self.queues[:, places] = torch.stack(list(keys)).to(self.queues.dtype)
        self.owners[places] = owners
        self.pointer.copy_((self.pointer + len(owners)) % len(self.owners))


def info_nce(query: Tensor, key: Tensor, queue: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each query's own key among the queue's (van den Oord et al., 2018).

    ``query``, ``key`` (B, d) and ``queue`` (K, d) are unit vectors, whose similarities are divided by ``temperature``;
    ``allowed``, bool (B, K), says which of the queue count as negatives.
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
class TwoViews(Dataset[Views]):
    """Batches of two augmented views of each of ``slices``, uint8 (N, C, C) with context, made from keys."""

    slices: NDArray[np.uint8]
    preprocessing: Preprocessing
    augmentation: Augmentation

    def __getitem__(self, keys: list[SampleKey]) -> Views:
        pixels = np.empty((2, len(keys), *[self.preprocessing.size] * 2), np.uint8)
        for row, key in enumerate(keys):
            rng = np.random.default_rng(key.seed)
            for view in pixels:
                (view[row],) = self.augmentation(self.slices[key.index], rng)
        first, second = (to_images(view, self.preprocessing) for view in pixels)
        return first, second, torch.tensor([key.index for key in keys])


def pretrain(job: Job[PretrainRecipe], refuse_copies: Refuse) -> None:
    """Pretrain, and leave the weights of the network and of its backbone in the run's folder.

    Raises:
        DataError: there are no slices, or an unlabelled one is a held-out slice of the data set.
        RunError: the folder holds another run, or one to be resumed with ``resume``.
    """
    recipe, count = job.recipe, job.recipe.training.batch_size
    if job.processes > 1:
        raise RecipeError("trainer.devices: a pretraining runs in one process")
    if recipe.augmentation.lungs_only:
        raise RecipeError("augmentation.lungs_only: a pretraining has none")
    if job.is_finished:
        return
    torch.manual_seed(job.seed)
    network = build(recipe.network.name, recipe.network.weights, options=recipe.network.options)
    if not isinstance(network, Network):
        raise RecipeError(
            f"network {recipe.network.name}: has no backbone to pretrain; `groundglass models` lists those that have"
        )
    job.prepare(network)
    records = unlabelled_slices(job, refuse_copies)
    preprocessing = recipe.preprocessing
    lungs = open_segmenter(job.lungs)
    cropped = load_cropped(records, preprocessing, CONTEXT, job.cache, lungs, job.progress)
    half = len(cropped) // 2
    if half < count:
        few = f"{len(cropped)} slices are too few to pretrain in batches of {count}, {2 * count} would do"
        smaller = f"; or make batches smaller with --set training.batch_size={half}" if half > 1 else ""
        raise DataError(few + smaller)
    batches = EpochBatches(len(cropped), count, job.seed)
    # At most half the slices, so that no key is older than an epoch.
    module = C2L(network, recipe, len(batches), min(recipe.contrast.queue or half, half), job.seed)
    # These travel with the weights.
    facts = {
        "kind": "pretraining",
        "weights": recipe.network.weights,
        "preprocessing": recipe.preprocessing.model_dump(mode="json"),
        "epochs": recipe.training.epochs,
        "images": [printable(path.resolve().name) for path in job.images],
        "slices": len(cropped),
        "fingerprint": hashlib.sha256("".join(cropped.sha256).encode()).hexdigest(),
    }
    job.begin(facts)
    views = TwoViews(cropped.pixels, preprocessing, Augmentation(recipe.augmentation, preprocessing.size))
    history = job.fit(module, DataLoader(views, batch_size=None, sampler=batches))
    backbone = network.backbone.state_dict().items()
    halved = {name: value.half() if value.is_floating_point() else value for name, value in backbone}
    save_weights(halved, job.output / BACKBONE)
    job.finish(history, network.state_dict())


def unlabelled_slices(job: Job[PretrainRecipe], refuse_copies: Refuse) -> list[Record]:
    """The training part of the data set and the unlabelled slices; no slice that is held out for evaluation.

    Raises:
        DataError: there are none, or an unlabelled slice shows the same as a held-out one.
        ImageError: a held-out slice cannot be read, so that copies of it cannot be found.
    """
    records: list[Record] = []
    held_out: list[Record] = []
    if job.data:
        manifest = load_pool(job.data, job.map_label)
        for name, indices in make_split(manifest, job.split, seed=job.seed).parts.items():
            (records if name == "train" else held_out).extend(manifest.records[index] for index in indices)
    unlabelled = [record for path in job.images for record in load_dataset(path, job.map_label).records]
    if held_out and unlabelled:
        refuse_copies(held_out, unlabelled)
    if not (records := records + unlabelled):
        raise DataError("nothing to pretrain on: name a data set with --data, or slices with --images")
    return records
