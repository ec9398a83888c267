"""What all networks share: a backbone, a zero-initialised head of one logit or two, exact activation maps."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from groundglass.models.layers import NetworkOutput, ZeroMean


class LogitHead(nn.Module):
    """Global average pooling, dropout, the logit of COVID and, where asked for, that of opacity.

    It starts at zero, so that the first steps of fine-tuning move the head before they disturb the backbone.

    Args:
        channels: of the last feature map.
        drop_rate: dropout before the linear layers, 0..1; both see the same.
        opacity: give it the second logit.
    """

    def __init__(self, channels: int, drop_rate: float, opacity: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(channels, 1)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.opacity = _zero_linear(channels) if opacity else None

    def forward(self, features: Tensor) -> NetworkOutput:
        """Map the last feature map (B, channels, h, w) to logits, activation maps and embedding.

        While training, dropout makes a logit differ from its activation map's mean plus the bias.
        """
        embedding = features.mean(dim=(2, 3))
        seen = self.dropout(embedding)
        output = NetworkOutput(*_logit_and_map(self.classifier, seen, features), embedding)
        if self.opacity is None:
            return output
        opacity_logit, opacity_map = _logit_and_map(self.opacity, seen, features)
        return output._replace(opacity_logit=opacity_logit, opacity_map=opacity_map)


class Network(nn.Module):
    """A backbone and a head of one or two logits; maps float32 (B, 1, H, W) to ``NetworkOutput``.

    The input is expected to be roughly of zero mean and unit variance, as framing makes it.

    Args:
        backbone: a timm model without a classifier.
        channels: of the last feature map.
        drop_rate: dropout before the logits, 0..1.
        zero_mean: bring each image to zero mean and unit variance first, whatever framing did.
        opacity: answer also whether there is pneumonia-like opacity, whatever its cause.
    """

    def __init__(
        self, backbone: nn.Module, channels: int, drop_rate: float, zero_mean: bool, opacity: bool = False
    ) -> None:
        super().__init__()
        self.normalise = ZeroMean() if zero_mean else nn.Identity()
        self.backbone = backbone
        self.head = LogitHead(channels, drop_rate, opacity)

    def features(self, images: Tensor, *, mirrored: bool = False) -> Tensor:
        """The last feature map (B, channels, h, w) of normalised images (B, 1, H, W).

        Args:
            images: to be judged.
            mirrored: the second half are the mirror images of the first, for layers that can use it.
        """
        return cast(Tensor, self.backbone.forward_features(images))  # type: ignore[operator]

    def forward(self, images: Tensor, mirrored: bool = False) -> NetworkOutput:
        """Map (B, 1, H, W) to logits, activation maps and embedding; ``mirrored`` as for the features."""
        return cast(NetworkOutput, self.head(self.features(self.normalise(images), mirrored=mirrored)))


def _logit_and_map(linear: nn.Linear, embedding: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer's logit (B,) and its activation map (B, h, w)."""
    logit = linear(embedding).squeeze(1)
    return logit, F.conv2d(features, linear.weight[:, :, None, None]).squeeze(1)


def _zero_linear(channels: int) -> nn.Linear:
    """A linear layer of zeros that takes no random number: what is built after it starts as without it."""
    with torch.random.fork_rng(devices=()):
        linear = nn.Linear(channels, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
