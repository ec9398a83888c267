"""What all networks are built of: a backbone, a head of one logit, a lesion decoder, and layers that read the image.

The binarised mask and the histogram are computed inside the network, not given to it, so that they always fit
the augmented image and travel with the exported network. They read each image between its own minimum and
maximum, so that brightness and contrast do not change them. The histogram adds whole numbers, whose sum does
not depend on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

_LEVELS = 256
_STRIDES = (4, 8, 16, 32)


class NetworkOutput(NamedTuple):
    """What every network returns."""

    logit: Tensor  # (B,), of COVID; its sigmoid is the probability
    lesion_map: Tensor | None  # (B, h, w), a quarter of the input's side, logits; None without decoder
    embedding: Tensor  # (B, D), the pooled last feature map


class GreyLevels(NamedTuple):
    """The whole grey levels of each image's own range, from which mask and histogram are made."""

    levels: Tensor  # (B, 1, H, W) of int64, 0..255; all 0 for an image of one value
    counts: Tensor  # (B, 256) of float32: how often each level occurs in each image


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
    counts = grey.counts.long()  # whole sums are exact, and deterministic on a GPU too
    levels = torch.arange(_LEVELS, device=counts.device, dtype=counts.dtype)
    dark, dark_sum = counts.cumsum(1), (counts * levels).cumsum(1)
    bright, bright_sum = dark[:, -1:] - dark, dark_sum[:, -1:] - dark_sum
    distance = dark_sum / dark.clamp_min(1) - bright_sum / bright.clamp_min(1)
    threshold = (dark * bright * distance.square()).argmax(dim=1)
    return grey.levels > threshold[:, None, None, None]


def grey_histogram(grey: GreyLevels, bins: int) -> Tensor:
    """Each image's histogram over its own range of grey, (B, bins) of float32 summing to 1; ``bins`` divide 256."""
    counts = grey.counts.view(-1, bins, _LEVELS // bins).sum(dim=2)
    return counts / counts.sum(dim=1, keepdim=True)


class SqueezeExcitation(nn.Module):
    """A gate per channel, computed from the means of all channels; exactly 1 at initialisation.

    Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, with gates from 0 to 2 instead of 0 to 1, so that a
    zero-initialised last layer leaves a pretrained network's features untouched. The hidden layer is ``reduction``
    times narrower, at least 8 wide.
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


class LesionDecoder(nn.Module):
    """Features of strides 4, 8, 16 and 32 joined from the coarsest to the finest into one map of lesions.

    A feature pyramid (Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017) with separable
    convolutions. What the map sees, its mean and its strongest place, adds to the logit; 0 at initialisation.
    ``channels`` are those of each stride, the finest first, ``width`` those of the pyramid.
    """

    def __init__(self, channels: Sequence[int], width: int = 48) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, kernel_size=1) for each in channels)
        self.smooth = nn.ModuleList(_separable(width) for _ in channels[1:])
        self.map = nn.Conv2d(width, 1, kernel_size=1)
        # Most places show no lesion.
        nn.init.constant_(cast(Tensor, self.map.bias), -3.0)
        self.term = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.term.weight)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map features (B, channels, h, w), the finest first, to a lesion map (B, h, w) and the logit's term (B,)."""
        lateral = [layer(each) for layer, each in zip(self.lateral, features, strict=True)]
        joined = lateral.pop()
        for each, smooth in zip(reversed(lateral), self.smooth, strict=True):
            joined = smooth(each + F.interpolate(joined, size=each.shape[2:], mode="bilinear"))
        lesion_map = self.map(joined)
        lesion = lesion_map.sigmoid()
        # Nine neighbours together: one cell alone is noise.
        strongest = F.avg_pool2d(lesion, 3).amax(dim=(1, 2, 3))
        seen = torch.stack([(lesion.mean(dim=(1, 2, 3)) + 1e-3).log() + 4, (strongest + 1e-2).log() + 2], dim=1)
        return lesion_map.squeeze(1), cast(Tensor, self.term(seen)).squeeze(1)


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, kernel_size=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class LogitHead(nn.Module):
    """Global average pooling, dropout and the logit of COVID.

    It starts at zero, so that the first steps of fine-tuning move the head before they disturb the backbone.
    """

    def __init__(self, channels: int, drop_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(channels, 1)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map the last feature map (B, channels, h, w) to logit and embedding."""
        embedding = features.mean(dim=(2, 3))
        return self.classifier(self.dropout(embedding)).squeeze(1), embedding


class Network(nn.Module):
    """A backbone, a head and a lesion decoder; maps float32 (B, 1, H, W) to ``NetworkOutput``.

    The input is expected to be roughly of zero mean and unit variance, as preprocessing makes it. The backbone is a
    timm model without a classifier, whose last feature map has that many ``channels``; ``drop_rate``, 0..1, is the
    dropout before the logit; with ``lesions`` a lesion map is decoded, which adds to the logit.
    """

    def __init__(self, backbone: nn.Module, channels: int, drop_rate: float, *, lesions: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LogitHead(channels, drop_rate)
        levels = enumerate(cast(Iterable[dict[str, Any]], backbone.feature_info))
        self._levels = {number: level for number, level in levels if level["reduction"] in _STRIDES}
        self.decoder = LesionDecoder([level["num_chs"] for level in self._levels.values()]) if lesions else None

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last feature map (B, channels, h, w) of images (B, 1, H, W), and those of strides 4 to 32."""
        return cast(
            tuple[Tensor, list[Tensor]],
            self.backbone.forward_intermediates(images, indices=list(self._levels)),  # type: ignore[operator]
        )

    def forward(self, images: Tensor) -> NetworkOutput:
        """Map (B, 1, H, W) to logit, lesion map and embedding."""
        return self._decoded(*self.features(images))

    def _decoded(self, last: Tensor, pyramid: Sequence[Tensor]) -> NetworkOutput:
        logit, embedding = self.head(last)
        if self.decoder is None:
            return NetworkOutput(logit, None, embedding)
        lesion_map, term = self.decoder(pyramid)
        return NetworkOutput(logit + term, lesion_map, embedding)
