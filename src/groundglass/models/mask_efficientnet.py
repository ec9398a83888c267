"""Mask-EfficientNet: an EfficientNet with a branch for the binarised image, channel gates and a histogram.

Xu, Wang and Xu, Image Classification of Covid-19 Pneumonia Based on Mask-EfficientNet. The binarised image
passes a stem and a first stage of its own and joins the image's features after the first stage; every stage
ends in a gate ("extrusion activation module"); the histogram adds to the logit.
"""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from groundglass.models.layers import BinaryMask, GreyHistogram, Network, NetworkOutput, SqueezeExcitation


class MaskBranch(nn.Module):
    """The binarised image's stem and first stage, and the layer that joins it to the image's features.

    Stem and stage are copies of the backbone's, with statistics of their own for batch normalisation. The
    joining layer starts as identity on the image's channels and 0 on the mask's.

    Args:
        backbone: a timm EfficientNet, its weights already loaded.
        channels: of the first stage's output.
        attention: end the mask's stage in a gate too.
    """

    def __init__(self, backbone: nn.Module, channels: int, attention: bool) -> None:
        super().__init__()
        self.binarise = BinaryMask()
        self.stem = deepcopy(
            nn.Sequential(backbone.get_submodule("conv_stem"), backbone.get_submodule("bn1"))
        )
        self.stage = deepcopy(backbone.get_submodule("blocks.0"))
        self.gate = _gate(channels, attention)
        self.fuse = nn.Conv2d(2 * channels, channels, kernel_size=1, bias=False)
        with torch.no_grad():
            identity = torch.eye(channels, 2 * channels)
            self.fuse.weight.copy_(identity[:, :, None, None])

    def forward(self, images: Tensor, features: Tensor, *, mirrored: bool = False) -> Tensor:
        """Join the mask of the images (B, 1, H, W) to the first stage's features (B, channels, h, w)."""
        # The backbone expects zero mean and unit variance: -1 and 1 come closer than 0 and 1.
        mask = 2 * self.binarise(images, mirrored=mirrored) - 1
        mask_features = self.gate(self.stage(self.stem(mask)))
        return cast(Tensor, self.fuse(torch.cat([features, mask_features], dim=1)))


class HistogramTerm(nn.Module):
    """What the image's histogram adds to the logit; 0 at initialisation.

    Args:
        bins: of the histogram.
        hidden: width of the hidden layer.
    """

    def __init__(self, bins: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.histogram = GreyHistogram(bins)
        self.hidden = nn.Linear(bins, hidden)
        self.activation = nn.SiLU()
        self.output = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, images: Tensor, *, mirrored: bool = False) -> Tensor:
        """Map (B, 1, H, W) to (B,)."""
        # Square roots give every histogram unit length and keep a black background from drowning the rest.
        roots = self.histogram(images, mirrored=mirrored).sqrt()
        return cast(Tensor, self.output(self.activation(self.hidden(roots)))).squeeze(1)


class MaskEfficientNet(Network):
    """Mask-EfficientNet on any timm EfficientNet; computes its backbone's features exactly at initialisation.

    Args:
        backbone: a timm EfficientNet with one input channel and no classifier, its weights already loaded.
        mask: splice the binarised image in after the first stage.
        attention: end every stage in a channel gate.
        histogram: let the grey histogram add to the logit of COVID.
        drop_rate: dropout before the logits, 0..1.
        zero_mean: bring each image to zero mean and unit variance first, whatever preprocessing did.
        opacity: answer also whether there is pneumonia-like opacity, whatever its cause.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mask: bool = True,
        attention: bool = True,
        histogram: bool = True,
        drop_rate: float = 0.2,
        zero_mean: bool = False,
        opacity: bool = False,
    ) -> None:
        super().__init__(backbone, cast(int, backbone.num_features), drop_rate, zero_mean, opacity)
        widths = _stage_widths(cast(nn.Sequential, backbone.blocks))
        self.gates = nn.ModuleList(_gate(width, attention) for width in widths)
        self.mask_branch = MaskBranch(backbone, widths[0], attention) if mask else None
        self.histogram_term = HistogramTerm() if histogram else None

    def features(self, images: Tensor, *, mirrored: bool = False) -> Tensor:
        """The last feature map (B, channels, h, w) of normalised images (B, 1, H, W)."""
        backbone = self.backbone
        features = backbone.bn1(backbone.conv_stem(images))  # type: ignore[operator]
        for number, (stage, gate) in enumerate(zip(backbone.blocks, self.gates, strict=True)):  # type: ignore[arg-type]
            features = gate(stage(features))
            if number == 0 and self.mask_branch is not None:
                features = self.mask_branch(images, features, mirrored=mirrored)
        return cast(Tensor, backbone.bn2(backbone.conv_head(features)))  # type: ignore[operator]

    def forward(self, images: Tensor, mirrored: bool = False) -> NetworkOutput:
        """Map (B, 1, H, W) to logits, activation maps and embedding; ``mirrored`` as for the features."""
        output = super().forward(images, mirrored=mirrored)
        if self.histogram_term is None:
            return output
        # Opacity gets none: the whole picture's histogram knows window and frame, and no place in the lung.
        return output._replace(logit=output.logit + self.histogram_term(images, mirrored=mirrored))


def _gate(channels: int, attention: bool) -> nn.Module:
    return SqueezeExcitation(channels) if attention else nn.Identity()


def _stage_widths(stages: nn.Sequential) -> list[int]:
    """Channels that leave each stage: those of its last convolution."""
    convolutions = ([layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)] for stage in stages)
    return [layers[-1].out_channels for layers in convolutions]
