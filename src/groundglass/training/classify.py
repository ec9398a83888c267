"""The training step: classification by one logit with averaged weights, as a Lightning module."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torchmetrics.functional.classification import binary_accuracy, binary_auroc
from torchvision.ops import sigmoid_focal_loss

from groundglass.training.recipe import Recipe
from groundglass.training.samples import Batch
from groundglass.training.trainer import Averaging

# Added to both sides of Dice, in pixels, so that a tiny lesion does not weigh as a large one.
_SMOOTH = 20.0


class Classifier(Averaging):
    """Trains a network, float32 (B, 1, H, W) to a ``NetworkOutput``; its averaged weights are evaluated.

    ``covid`` is the share of COVID among the slices drawn, which balanced class weights make up for.
    """

    recipe: Recipe
    class_weights: Tensor

    def __init__(self, network: nn.Module, recipe: Recipe, steps_per_epoch: int, seed: int, covid: float = 0.5) -> None:
        super().__init__(network, recipe, steps_per_epoch, seed, recipe.training.ema_decay)
        given = recipe.training.class_weights
        weights = (0.5 / (1 - covid), 0.5 / covid) if given == "balanced" else given
        self.register_buffer("class_weights", torch.tensor(weights or (1.0, 1.0)), persistent=False)
        self._validated: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss against smoothed labels, and that of the lesion map where lesions are known."""
        output = self.network(batch.images)
        loss = self._label_loss(output.logit, batch.labels)
        if output.lesion_map is not None:
            lesion = lesion_loss(output.lesion_map, batch.lesions, batch.known)
            loss = loss + self.recipe.training.lesion_weight * lesion
        self.log_loss(loss, len(batch.images))
        return loss

    def _label_loss(self, logit: Tensor, labels: Tensor) -> Tensor:
        training = self.recipe.training
        target = labels * (1 - training.label_smoothing) + training.label_smoothing / 2
        weight = self.class_weights[labels.long()] if training.class_weights else None
        if training.loss == "bce":
            return binary_cross_entropy_with_logits(logit, target, weight)
        each = sigmoid_focal_loss(logit, target, alpha=-1, gamma=training.focal_gamma)
        return cast(Tensor, (each if weight is None else each * weight).mean())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect the averaged network's logits."""
        self._validated.append((self.averaged(batch[0]).logit.float(), batch[1]))

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


def lesion_loss(lesion_map: Tensor, lesions: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of every place, and Dice of the slices with a lesion, over slices whose lesions are known.

    ``lesion_map`` holds logits (B, h, w); ``lesions``, a finer grid (B, H, W), is 1 where a lesion is; ``known`` (B,) 1
    for slices that count.
    """
    logit = interpolate(lesion_map[:, None], size=lesions.shape[1:], mode="bilinear")[:, 0]
    entropy = binary_cross_entropy_with_logits(logit, lesions, reduction="none").mean(dim=(1, 2))
    share, size = logit.sigmoid(), lesions.sum(dim=(1, 2))
    overlap = 2 * (share * lesions).sum(dim=(1, 2)) + _SMOOTH
    dice = 1 - overlap / (share.sum(dim=(1, 2)) + size + _SMOOTH)
    each = 2 * entropy + dice * (size > 0)
    return (each * known).sum() / known.sum().clamp_min(1)
