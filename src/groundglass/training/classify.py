"""The training step: classification by one logit or two with averaged weights, as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel
from torchmetrics.functional.classification import binary_accuracy, binary_auroc

from groundglass.models.layers import NetworkOutput
from groundglass.training.recipe import OptimiserSection, Recipe
from groundglass.training.run import judge
from groundglass.training.samples import Batch

_Tensors = tuple[Tensor, ...] | list[Tensor]


class Classifier(LightningModule):
    """Trains a network and keeps an exponential moving average of its weights, which is what is judged.

    Everything random in a batch is seeded from (seed, epoch, batch), so that a resumed training repeats it
    exactly.

    Args:
        network: float32 (B, 1, H, W) to a ``NetworkOutput``.
        recipe: loss, optimiser and schedule.
        steps_per_epoch: batches of one epoch, for the schedule.
        seed: of the run.
    """

    _judge: nn.Module

    def __init__(self, network: nn.Module, recipe: Recipe, steps_per_epoch: int, seed: int) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.averaged = AveragedModel(
            network, multi_avg_fn=_moving_average(recipe.training.ema_decay), use_buffers=True
        ).requires_grad_(False)
        # Kept out of the module's children: its weights are those of the averaged network already.
        object.__setattr__(self, "_judge", judge(recipe, self.averaged))
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self._val_logits: list[Tensor] = []
        self._val_labels: list[Tensor] = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the batch: what else draws from torch's generator differs after a resume."""
        entropy = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy against smoothed, possibly mixed labels; of both outputs where there are two.

        ``train_loss`` is that of COVID alone, so that it can be held against ``val_loss``.
        """
        smoothing = self.recipe.training.label_smoothing
        covid, opacity = (truth * (1 - smoothing) + smoothing / 2 for truth in (batch.covid, batch.opacity))
        batch = Batch(batch.images, covid, opacity)
        if self.recipe.augmentation.mixup > 0:
            batch = self._mixed(batch, batch_idx)
        output: NetworkOutput = self.network(batch.images)
        if output.opacity_logit is None:
            loss = binary_cross_entropy_with_logits(output.logit, batch.covid)
            self._log_loss("train_loss", loss, batch)
            return loss
        loss = known_loss(output.logit, batch.covid)
        opacity_loss = known_loss(output.opacity_logit, batch.opacity)
        self._log_loss("train_loss", loss, batch)
        self._log_loss("train_opacity_loss", opacity_loss, batch)
        return loss + self.recipe.training.opacity_weight * opacity_loss

    def on_train_batch_end(self, *_: object) -> None:
        """Move the averaged weights a step towards the trained ones."""
        self.averaged.update_parameters(self.network)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect the averaged network's logits."""
        images, labels = batch
        self._val_logits.append(self._judge(images).logit)
        self._val_labels.append(labels)

    def on_validation_epoch_end(self) -> None:
        """Loss, AUC and accuracy over the whole validation part; every process sees all of it."""
        logits, labels = torch.cat(self._val_logits), torch.cat(self._val_labels)
        self._val_logits.clear()
        self._val_labels.clear()
        self.log_dict(validation_measures(logits, labels), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine; see :func:`adamw`."""
        steps = self.steps_per_epoch * self.recipe.training.epochs
        return adamw(self.network.parameters(), self.recipe.optimiser, steps, self.steps_per_epoch)

    def _log_loss(self, name: str, loss: Tensor, batch: Batch) -> None:
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.images))

    def _mixed(self, batch: Batch, batch_idx: int) -> Batch:
        """Mixup (Zhang et al., ICLR 2018): pairs of images and labels blended by a share from Beta(a, a).

        Of a blend with a slice of unknown label the label is unknown: NaN stays NaN.
        """
        rng = np.random.default_rng([self.seed, self.current_epoch, batch_idx, self.global_rank])
        share = float(rng.beta(self.recipe.augmentation.mixup, self.recipe.augmentation.mixup))
        other = torch.from_numpy(rng.permutation(len(batch.images))).to(batch.images.device)
        images, covid, opacity = (each.lerp(each[other], 1 - share) for each in batch)
        return Batch(images.contiguous(memory_format=torch.channels_last), covid, opacity)


def validation_measures(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss, AUC and accuracy of a whole part, by the names they have in a history.

    Args:
        logits: (N,), of COVID.
        labels: (N,) of float32, 1 COVID, 0 NonCOVID.
    """
    probabilities, truth = logits.sigmoid(), labels.int()
    return {
        "val_loss": binary_cross_entropy_with_logits(logits, labels),
        "val_auc": binary_auroc(probabilities, truth),
        "val_accuracy": binary_accuracy(probabilities, truth),
    }


def known_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of the known targets, their sum divided by the number of all.

    Every known target so weighs the same, whatever is in its batch, and processes that share a batch come to
    its loss by averaging. Where none is known, loss and gradients are 0.

    Args:
        logits: (B,).
        targets: (B,), 0..1, or NaN where not known.
    """
    known = ~targets.isnan()
    losses = binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return (losses * known).sum() / len(targets)


def adamw(
    parameters: Iterable[nn.Parameter], section: OptimiserSection, steps: int, steps_per_epoch: int
) -> OptimizerLRSchedulerConfig:
    """AdamW without decay on biases and norms; warm-up and cosine by the step.

    Args:
        parameters: those that ask for gradients are trained.
        section: rates and decay.
        steps: of the whole training.
        steps_per_epoch: for the warm-up, which is given in epochs.
    """
    optimiser = torch.optim.AdamW(
        _parameter_groups(parameters, section.weight_decay), lr=section.lr, fused=True
    )
    warmup = section.warmup_epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: lr_share(step, steps, warmup, section)
    )
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def lr_share(step: int, steps: int, warmup: float, section: OptimiserSection) -> float:
    """The learning rate at ``step`` as a share of its peak: linear warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    low = section.final_lr_share
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def _parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


class _moving_average:  # noqa: N801 - used as a function; a class only so that deep copies of the module work
    """Exponential moving average whose memory grows with the steps seen, up to ``decay``."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, averaged: _Tensors, current: _Tensors, steps: Tensor | int) -> None:
        seen = int(steps)
        weight = 1 - min(self.decay, (1 + seen) / (10 + seen))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)
