"""C2L: a network learns to tell slices apart before anybody tells it what is on them.

Zhou, Yu, Bian, Hu, Ma and Zheng, Comparing to Learn: Surpassing ImageNet Pretraining on Radiographs by
Comparing Image Representations, MICCAI 2020. Two views of each slice are compared three times: as they are;
both mixed with the same other slice; and the mixed view against the mix of the teacher's features. In every
comparison a slice must find its own key among those of earlier slices (InfoNCE, with a momentum teacher and a
queue as in MoCo).
"""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from groundglass.models.network import Network
from groundglass.training.classify import adamw
from groundglass.training.pretrain_recipe import PretrainRecipe

TERMS = ("plain", "mixed", "feature_mixed")
"""The three comparisons, each with a queue of its own."""

Views = tuple[Tensor, Tensor, Tensor]
"""First and second view, float32 (B, 1, H, W), and the slices' numbers, int64 (B,)."""


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
        return adamw(self.student.parameters(), self.recipe.optimiser, steps, self.steps_per_epoch)

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
