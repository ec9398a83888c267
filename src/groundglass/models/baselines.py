"""The networks Mask-EfficientNet is compared with: timm's, with one input channel and one logit."""

from __future__ import annotations

from typing import cast

import timm
from torch import Tensor, nn

from groundglass.models.catalogue import Entry
from groundglass.models.layers import Network


class Baseline(Network):
    """A timm model as it is, with a head of one logit.

    Args:
        backbone: a timm model with one input channel and no classifier.
        drop_rate: dropout before the logit, 0..1.
    """

    def __init__(self, backbone: nn.Module, drop_rate: float = 0.2) -> None:
        super().__init__(backbone, cast(int, backbone.head_hidden_size), drop_rate)


class VGGBaseline(Baseline):
    """VGG with its two fully connected layers, as convolutions of 7 x 7 and 1 x 1.

    Its activation map is coarse: the first of them sees 7 x 7 positions at once, so up to an input of
    224 x 224 pixels the map is a single position; smaller inputs are stretched to 7 x 7 positions.
    """

    def features(self, images: Tensor) -> Tensor:
        """The 4096 features of each position, (B, 4096, h, w), of images (B, 1, H, W)."""
        return cast(Tensor, self.backbone.pre_logits(super().features(images)))  # type: ignore[operator]


def build_backbone(entry: Entry) -> nn.Module:
    """An entry's timm model with one input channel and no classifier, randomly initialised."""
    backbone = timm.create_model(entry.timm_name, in_chans=1, num_classes=0)
    for layer in backbone.modules():
        if isinstance(layer, nn.ReLU6 | nn.SiLU):
            # Their gradients need their input, which training would have to copy before it is overwritten.
            layer.inplace = False
    return backbone


def build_baseline(backbone: nn.Module, entry: Entry, drop_rate: float) -> Baseline:
    """Give a backbone the head its family needs."""
    return (VGGBaseline if entry.family == "vgg" else Baseline)(backbone, drop_rate)
