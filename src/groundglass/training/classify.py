"""The training step: classification by one logit with averaged weights, as a Lightning module."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torchmetrics.functional.classification import binary_accuracy, binary_auroc

from groundglass.training.recipe import OptimiserSection, Recipe
from groundglass.training.samples import Batch

# Added to both sides of Dice, in pixels, so that a tiny lesion does not weigh as a large one.
_SMOOTH = 20.0


class Classifier(LightningModule):
    """Trains a network and keeps an exponential moving average of its weights, which is what is evaluated.

    Everything random in a batch is seeded from (seed, epoch, batch, process), so that a resumed training
    repeats it exactly.

    Args:
        network: float32 (B, 1, H, W) to a ``NetworkOutput``.
        recipe: loss, optimiser and schedule.
        steps_per_epoch: batches of one epoch, for the schedule.
        seed: of the run.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, steps_per_epoch: int, seed: int) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        # The average's memory grows with the steps seen, n / (n + 9), up to the decay.
        self.averaged = ModelEmaV3(
            network, recipe.training.ema_decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0
        ).requires_grad_(False)
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self._validated: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the batch: what else draws from torch's generator differs after a resume."""
        torch.manual_seed(int(self._entropy(batch_idx).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy against smoothed labels, and the loss of the lesion map where lesions are known."""
        smoothing = self.recipe.training.label_smoothing
        output = self.network(batch.images)
        loss = binary_cross_entropy_with_logits(output.logit, batch.labels * (1 - smoothing) + smoothing / 2)
        if output.lesion_map is not None:
            lesion = lesion_loss(output.lesion_map, batch.lesions, batch.known)
            loss = loss + self.recipe.training.lesion_weight * lesion
        count = len(batch.images)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=count)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        """Move the averaged weights a step towards the trained ones."""
        self.averaged.update(self.network, step=self.global_step)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect the averaged network's logits."""
        self._validated.append((self.averaged(batch[0]).logit, batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Loss, AUC and accuracy over the whole validation part; every process sees all of it."""
        logits, labels = (torch.cat(each) for each in zip(*self._validated, strict=True))
        self._validated.clear()
        measures = {
            "val_loss": binary_cross_entropy_with_logits(logits, labels),
            "val_auc": binary_auroc(logits.sigmoid(), labels.int()),
            "val_accuracy": binary_accuracy(logits.sigmoid(), labels.int()),
        }
        self.log_dict(measures, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine; see :func:`adamw`."""
        steps = self.steps_per_epoch * self.recipe.training.epochs
        return adamw(self.network, self.recipe.optimiser, steps, self.steps_per_epoch)

    def _entropy(self, batch_idx: int) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])


def lesion_loss(lesion_map: Tensor, lesions: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of every place, and Dice of the slices with a lesion, over slices whose lesions are known.

    Args:
        lesion_map: logits (B, h, w).
        lesions: 1 where a lesion is, (B, H, W), a finer grid.
        known: 1 for slices that count, (B,).
    """
    logit = interpolate(lesion_map[:, None], size=lesions.shape[1:], mode="bilinear")[:, 0]
    entropy = binary_cross_entropy_with_logits(logit, lesions, reduction="none").mean(dim=(1, 2))
    share, size = logit.sigmoid(), lesions.sum(dim=(1, 2))
    overlap = 2 * (share * lesions).sum(dim=(1, 2)) + _SMOOTH
    dice = 1 - overlap / (share.sum(dim=(1, 2)) + size + _SMOOTH)
    each = 2 * entropy + dice * (size > 0)
    return (each * known).sum() / known.sum().clamp_min(1)


def adamw(
    network: nn.Module, section: OptimiserSection, steps: int, steps_per_epoch: int
) -> OptimizerLRSchedulerConfig:
    """AdamW without decay on biases and norms; linear warm-up and half a cosine, by the step.

    Args:
        network: its parameters that ask for gradients are trained.
        section: rates and decay.
        steps: of the whole training.
        steps_per_epoch: for the warm-up, which is given in epochs.
    """
    groups = param_groups_weight_decay(network, section.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=section.lr, fused=True)
    warmup = round(section.warmup_epochs * steps_per_epoch)
    lowest = section.lr * section.final_lr_share
    schedule: LRScheduler = CosineAnnealingLR(optimiser, max(1, steps - warmup), eta_min=lowest)
    if warmup:
        rise = LinearLR(optimiser, 1 / (warmup + 1), total_iters=warmup)
        schedule = SequentialLR(optimiser, [rise, schedule], milestones=[warmup])
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
