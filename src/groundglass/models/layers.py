"""What all networks are built of: a backbone and a head of one logit, and layers that read the image itself.

The binarised mask and the histogram are computed inside the network, not given to it, so that they always fit
the augmented image and travel with the exported network. They read each image between its own minimum and
maximum, so that brightness and contrast do not change them. The histogram adds whole numbers, whose sum does
not depend on their order.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

_LEVELS = 256


class NetworkOutput(NamedTuple):
    """What every network returns.

    Attributes:
        logit: (B,), of COVID; its sigmoid is the probability.
        activation_map: (B, h, w) class activation map: how much each position of the last feature map speaks
            for COVID. Its mean plus the classifier's bias (plus a histogram's term, if any) is the logit.
        embedding: (B, D), the pooled last feature map.
    """

    logit: Tensor
    activation_map: Tensor
    embedding: Tensor


class GreyLevels(NamedTuple):
    """The whole grey levels of each image's own range, from which mask and histogram are made.

    Attributes:
        levels: (B, 1, H, W) of int64, 0..255; all 0 for an image of one value.
        counts: (B, 256) of float32: how often each level occurs in each image.
    """

    levels: Tensor
    counts: Tensor


def grey_levels(images: Tensor) -> GreyLevels:
    """Grey levels of images (B, 1, H, W) of any range; no gradient passes."""
    pixels = images.detach().float().flatten(1)
    lowest = pixels.amin(dim=1, keepdim=True)
    span = pixels.amax(dim=1, keepdim=True) - lowest
    scaled = (pixels - lowest) / span.clamp_min(torch.finfo(torch.float32).tiny)
    levels = torch.round(scaled * (_LEVELS - 1)).long()
    counts = torch.zeros(levels.shape[0], _LEVELS, device=levels.device)
    counts = counts.scatter_add(1, levels, torch.ones_like(levels, dtype=torch.float32))
    return GreyLevels(levels.view_as(images), counts)


def binary_mask(grey: GreyLevels) -> Tensor:
    """The binarised image, (B, 1, H, W) of bool: True above the image's Otsu threshold.

    The threshold maximises the variance between the two classes; of equal maxima it is the lowest level. Equals
    OpenCV's for the image scaled to 0..255 by its minimum and maximum. (Otsu, A threshold selection method from
    gray-level histograms, IEEE Transactions on Systems, Man, and Cybernetics 9, 1979.)
    """
    counts = grey.counts
    levels = torch.arange(_LEVELS, device=counts.device, dtype=counts.dtype)
    dark, dark_sum = counts.cumsum(1), (counts * levels).cumsum(1)
    bright, bright_sum = dark[:, -1:] - dark, dark_sum[:, -1:] - dark_sum
    distance = dark_sum / dark.clamp_min(1) - bright_sum / bright.clamp_min(1)
    threshold = (dark * bright * distance.square()).argmax(dim=1)
    return grey.levels > threshold[:, None, None, None]


def grey_histogram(grey: GreyLevels, bins: int) -> Tensor:
    """Each image's histogram over its own range of grey, (B, bins) of float32 summing to 1.

    Args:
        grey: of the images.
        bins: a divisor of 256.
    """
    counts = grey.counts.view(-1, bins, _LEVELS // bins).sum(dim=2)
    return counts / counts.sum(dim=1, keepdim=True)


class SqueezeExcitation(nn.Module):
    """A gate per channel, computed from the means of all channels; exactly 1 at initialisation.

    Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, with gates from 0 to 2 instead of 0 to 1, so that a
    zero-initialised last layer leaves a pretrained network's features untouched.

    Args:
        channels: of the feature map.
        reduction: how many times narrower the hidden layer is, at least 8 wide.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1)
        self.activation = nn.SiLU()
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        means = features.mean(dim=(2, 3), keepdim=True)
        gates = 2 * torch.sigmoid(self.expand(self.activation(self.reduce(means))))
        return features * gates


class LogitHead(nn.Module):
    """Global average pooling, dropout and the logit of COVID.

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

        During training, dropout makes the logit differ from the activation map's mean plus the bias.
        """
        embedding = features.mean(dim=(2, 3))
        logit = self.classifier(self.dropout(embedding)).squeeze(1)
        activation_map = F.conv2d(features, self.classifier.weight[:, :, None, None]).squeeze(1)
        return NetworkOutput(logit, activation_map, embedding)


class Network(nn.Module):
    """A backbone and a head; maps float32 (B, 1, H, W) to ``NetworkOutput``.

    The input is expected to be roughly of zero mean and unit variance, as preprocessing makes it.

    Args:
        backbone: a timm model without a classifier.
        channels: of the last feature map.
        drop_rate: dropout before the logit, 0..1.
    """

    def __init__(self, backbone: nn.Module, channels: int, drop_rate: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LogitHead(channels, drop_rate)

    def features(self, images: Tensor) -> Tensor:
        """The last feature map (B, channels, h, w) of images (B, 1, H, W)."""
        return cast(Tensor, self.backbone.forward_features(images))  # type: ignore[operator]

    def forward(self, images: Tensor) -> NetworkOutput:
        """Map (B, 1, H, W) to logit, activation map and embedding."""
        return cast(NetworkOutput, self.head(self.features(images)))
