"""What all networks share: a backbone, a zero-initialised head of one logit, and the exact activation map."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from groundglass.models.layers import NetworkOutput, ZeroMean


class LogitHead(nn.Module):
    """Global average pooling, dropout and one logit.

    It starts at zero, so that the first steps of fine-tuning move the head before they disturb the backbone.

    Args:
        channels: of the last feature map.
        drop_rate: dropout before the linear layer, 0..1.
    """

    def __init__(self, channels: int, drop_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(channels, 1)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> NetworkOutput:
        """Map the last feature map (B, channels, h, w) to logit, activation map and embedding.

        While training, dropout makes the logit differ from the activation map's mean plus the bias.
        """
        embedding = features.mean(dim=(2, 3))
        logit = self.classifier(self.dropout(embedding)).squeeze(1)
        activation_map = F.conv2d(features, self.classifier.weight[:, :, None, None]).squeeze(1)
        return NetworkOutput(logit, activation_map, embedding)


class Network(nn.Module):
    """A backbone and a head of one logit; maps float32 (B, 1, H, W) to ``NetworkOutput``.

    The input is expected to be roughly of zero mean and unit variance, as framing makes it.

    Args:
        backbone: a timm model without a classifier.
        channels: of the last feature map.
        drop_rate: dropout before the logit, 0..1.
        zero_mean: bring each image to zero mean and unit variance first, whatever framing did.
    """

    def __init__(self, backbone: nn.Module, channels: int, drop_rate: float, zero_mean: bool) -> None:
        super().__init__()
        self.normalise = ZeroMean() if zero_mean else nn.Identity()
        self.backbone = backbone
        self.head = LogitHead(channels, drop_rate)

    def features(self, images: Tensor) -> Tensor:
        """The last feature map (B, channels, h, w) of normalised images (B, 1, H, W)."""
        return cast(Tensor, self.backbone.forward_features(images))  # type: ignore[operator]

    def forward(self, images: Tensor) -> NetworkOutput:
        """Map (B, 1, H, W) to logit, activation map and embedding."""
        return cast(NetworkOutput, self.head(self.features(self.normalise(images))))
