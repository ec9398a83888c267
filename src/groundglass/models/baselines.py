"""The networks Mask-EfficientNet is compared with: timm's, with one input channel and one logit."""

from __future__ import annotations

from typing import Any, cast

import timm
from torch import Tensor, nn

from groundglass.models.catalogue import Entry
from groundglass.models.layers import Network

WITHOUT_STOCHASTIC_DEPTH = ("densenet", "vgg")


class Baseline(Network):
    """A timm model as it is, with a head of one logit.

    Args:
        backbone: a timm model with one input channel and no classifier.
        drop_rate: dropout before the logits, 0..1.
        zero_mean: bring each image to zero mean and unit variance first, whatever preprocessing did.
        opacity: answer also whether there is pneumonia-like opacity, whatever its cause.
    """

    def __init__(
        self,
        backbone: nn.Module,
        drop_rate: float = 0.2,
        zero_mean: bool = False,
        opacity: bool = False,
    ) -> None:
        super().__init__(backbone, cast(int, backbone.head_hidden_size), drop_rate, zero_mean, opacity)


class VGGBaseline(Baseline):
    """VGG with its two fully connected layers, as convolutions of 7 x 7 and 1 x 1.

    Its activation map is coarse: the first of them looks at 7 x 7 positions at once, so up to an input of
    224 x 224 pixels the map is a single position; smaller inputs are stretched to 7 x 7 positions.
    """

    def features(self, images: Tensor, *, mirrored: bool = False) -> Tensor:
        """The 4096 features of each position, (B, 4096, h, w), of normalised images (B, 1, H, W)."""
        return cast(Tensor, self.backbone.pre_logits(super().features(images, mirrored=mirrored)))  # type: ignore[operator]


def build_backbone(entry: Entry, drop_path_rate: float = 0.0) -> nn.Module:
    """An entry's timm model with one input channel and no classifier, randomly initialised."""
    stochastic_depth: dict[str, Any] = {}
    if entry.family not in WITHOUT_STOCHASTIC_DEPTH:
        stochastic_depth["drop_path_rate"] = drop_path_rate
    backbone = timm.create_model(entry.timm_name, in_chans=1, num_classes=0, **stochastic_depth)
    for layer in backbone.modules():
        if isinstance(layer, nn.ReLU6 | nn.SiLU):
            # Their gradients need their input, which training would have to copy before it is overwritten.
            layer.inplace = False
    return backbone


def build_baseline(
    backbone: nn.Module, entry: Entry, drop_rate: float, zero_mean: bool, opacity: bool = False
) -> Baseline:
    """Give a backbone the head its family wants."""
    kind = VGGBaseline if entry.family == "vgg" else Baseline
    return kind(backbone, drop_rate, zero_mean, opacity)
