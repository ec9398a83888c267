"""Mask-EfficientNet: an EfficientNet with a branch for the binarised image, channel gates and a histogram.

Xu, Wang and Xu, Image Classification of Covid-19 Pneumonia Based on Mask-EfficientNet. The binarised image
passes a stem and a first stage of its own and joins the image's features after the first stage; every stage
ends in a gate ("extrusion activation module"); the histogram adds to the logit. The lesion decoder is ours.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal, cast

import torch
from torch import Tensor, nn

from groundglass.models.layers import (
    GreyLevels,
    Network,
    NetworkOutput,
    SqueezeExcitation,
    binary_mask,
    grey_histogram,
    grey_levels,
)

_BINS, _HIDDEN = 32, 32


class MaskBranch(nn.Module):
    """The binarised image's stem and first stage, and the layer that joins it to the image's features.

    Stem and stage are copies of the backbone's, with statistics of their own for batch normalisation. The
    joining layer starts as identity on the image's channels and 0 on the mask's. With ``attention`` the mask's stage,
    of that many ``channels``, ends in a gate too.
    """

    def __init__(self, backbone: nn.Module, channels: int, attention: bool) -> None:
        super().__init__()
        self.stem = deepcopy(nn.Sequential(backbone.get_submodule("conv_stem"), backbone.get_submodule("bn1")))
        self.stage = deepcopy(backbone.get_submodule("blocks.0"))
        self.gate = _gate(channels, attention)
        self.fuse = nn.Conv2d(2 * channels, channels, kernel_size=1, bias=False)
        with torch.no_grad():
            identity = torch.eye(channels, 2 * channels)
            self.fuse.weight.copy_(identity[:, :, None, None])

    def forward(self, mask: Tensor, features: Tensor) -> Tensor:
        """Join the mask (B, 1, H, W) to the first stage's features (B, channels, h, w)."""
        # The backbone expects zero mean and unit variance: -1 and 1 come closer than 0 and 1.
        mask_features = self.gate(self.stage(self.stem(2 * mask.to(features.dtype) - 1)))
        return cast(Tensor, self.fuse(torch.cat([features, mask_features], dim=1)))


class HistogramTerm(nn.Module):
    """What the image's histogram adds to the logit; 0 at initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(_BINS, _HIDDEN)
        self.activation = nn.SiLU()
        self.output = nn.Linear(_HIDDEN, 1, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, histogram: Tensor) -> Tensor:
        """Map histograms (B, 32) to (B,)."""
        # Square roots give every histogram unit length and keep a black background from drowning the rest.
        return cast(Tensor, self.output(self.activation(self.hidden(histogram.sqrt())))).squeeze(1)


class MaskEfficientNet(Network):
    """Mask-EfficientNet on any timm EfficientNet; computes its backbone's features exactly at initialisation.

    ``backbone`` has one input channel, no classifier, and its weights already loaded; ``drop_rate``, 0..1, is the
    dropout before the logit. The others switch parts off.
    """

    def __init__(
        self,
        backbone: nn.Module,
        drop_rate: float = 0.2,
        *,
        mask: bool = True,  # splice the binarised image in after the first stage
        attention: bool = True,  # gate the channels
        gates: Literal["stages", "blocks"] = "stages",  # of every stage, or of every block that has none of its own
        histogram: bool = True,  # let the grey histogram add to the logit
        lesions: bool = True,  # decode a lesion map, which adds to the logit
    ) -> None:
        super().__init__(backbone, cast(int, backbone.num_features), drop_rate, lesions=lesions)
        if attention and gates == "blocks":
            _gate_blocks(backbone)
            attention = False
        stages = cast(nn.Sequential, backbone.blocks)
        convolutions = ([each for each in stage.modules() if isinstance(each, nn.Conv2d)] for stage in stages)
        widths = [layers[-1].out_channels for layers in convolutions]
        self.gates = nn.ModuleList(_gate(width, attention) for width in widths)
        self.mask_branch = MaskBranch(backbone, widths[0], attention) if mask else None
        self.histogram_term = HistogramTerm() if histogram else None

    def forward(self, images: Tensor) -> NetworkOutput:
        """Map (B, 1, H, W) to logit, lesion map and embedding."""
        if self.histogram_term is None:
            return super().forward(images)
        grey = grey_levels(images)  # once for mask and histogram
        output = self._decoded(*self.features(images, grey))
        return output._replace(logit=output.logit + self.histogram_term(grey_histogram(grey, _BINS)))

    def features(self, images: Tensor, grey: GreyLevels | None = None) -> tuple[Tensor, list[Tensor]]:
        """As of any network; ``grey`` are the images' grey levels, if they are known."""
        backbone, pyramid, stages = self.backbone, [], {level["stage"] for level in self._levels.values()}
        features = backbone.bn1(backbone.conv_stem(images))  # type: ignore[operator]
        gated = zip(backbone.blocks, self.gates, strict=True)  # type: ignore[arg-type]
        for number, (stage, gate) in enumerate(gated, 1):
            features = gate(stage(features))
            if number == 1 and self.mask_branch is not None:
                features = self.mask_branch(binary_mask(grey or grey_levels(images)), features)
            if number in stages:
                pyramid.append(features)
        return cast(Tensor, backbone.bn2(backbone.conv_head(features))), pyramid  # type: ignore[operator]


def _gate_blocks(backbone: nn.Module) -> None:
    """Gate every block where EfficientNet-B0 has its gates, and as wide; those that a network has already stay."""
    for block in backbone.get_submodule("blocks").modules():
        if isinstance(getattr(block, "se", None), nn.Identity):
            width = cast(nn.Conv2d, block.conv_dw).out_channels
            entering = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d)).in_channels
            block.se = SqueezeExcitation(width, reduction=4 * width // entering)


def _gate(channels: int, attention: bool) -> nn.Module:
    return SqueezeExcitation(channels) if attention else nn.Identity()
