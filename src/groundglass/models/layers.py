"""A network asked twice: the slice and its mirror image, averaged.

Layers that read the image itself (zero mean, binarised mask, histogram) and the channel gate.

Mask and histogram are layers and not inputs, so that they always fit the augmented image and travel inside
the exported network. They see each image between its own minimum and maximum, so that brightness and contrast
leave them as they are. All layers are deterministic: the histogram adds whole numbers, whose sum does not
depend on their order.

What all networks share: a backbone, a zero-initialised head of one logit or two, exact activation maps.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

GREY_LEVELS = 256


class NetworkOutput(NamedTuple):
    """What every network returns.

    Attributes:
        logit: (B,), of COVID; its sigmoid is the probability.
        activation_map: (B, h, w) class activation map: how much each position of the last feature map speaks
            for COVID. Its mean plus the classifier's bias (plus a histogram's term, if any) is the logit.
        embedding: (B, D), the pooled last feature map.
        opacity_logit: (B,), of pneumonia-like opacity, whatever its cause; None where the network has no such
            output.
        opacity_map: (B, h, w), the same for it as ``activation_map`` is for COVID; its mean plus the
            classifier's bias is ``opacity_logit``.
    """

    logit: Tensor
    activation_map: Tensor
    embedding: Tensor
    opacity_logit: Tensor | None = None
    opacity_map: Tensor | None = None


def grey_levels(images: Tensor) -> Tensor:
    """Whole grey levels 0..255 of each image's own range from minimum to maximum.

    Args:
        images: (B, 1, H, W), any range.

    Returns:
        (B, H * W) of int64; all 0 for an image of one value.
    """
    pixels = images.detach().float().flatten(1)
    lowest = pixels.amin(dim=1, keepdim=True)
    span = pixels.amax(dim=1, keepdim=True) - lowest
    scaled = (pixels - lowest) / span.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.round(scaled * (GREY_LEVELS - 1)).long()


def count_levels(levels: Tensor, *, mirrored: bool = False) -> Tensor:
    """How often each grey level occurs in each image.

    Args:
        levels: (B, N) of int64, 0..255.
        mirrored: the second half of the batch are the mirror images of the first half, whose counts are
            theirs too and need not be taken again.

    Returns:
        (B, 256) of float32.
    """
    if mirrored:
        counts = count_levels(levels[: levels.shape[0] // 2])
        return torch.cat((counts, counts))
    counts = torch.zeros(levels.shape[0], GREY_LEVELS, device=levels.device)
    return counts.scatter_add(1, levels, torch.ones_like(levels, dtype=torch.float32))


def otsu_threshold(counts: Tensor) -> Tensor:
    """The grey level that parts each histogram into the two classes furthest apart.

    It maximises the variance between the classes; of equal maxima it is the lowest level. (Otsu, A threshold
    selection method from gray-level histograms, IEEE Transactions on Systems, Man, and Cybernetics 9, 1979.)

    Args:
        counts: (B, 256), whole numbers.

    Returns:
        (B, 1) of int64: pixels above it are the bright class.
    """
    levels = torch.arange(GREY_LEVELS, device=counts.device, dtype=counts.dtype)
    dark, dark_sum = counts.cumsum(1), (counts * levels).cumsum(1)
    bright, bright_sum = dark[:, -1:] - dark, dark_sum[:, -1:] - dark_sum
    distance = dark_sum / dark.clamp_min(1) - bright_sum / bright.clamp_min(1)
    return (dark * bright * distance.square()).argmax(dim=1, keepdim=True)


class ZeroMean(nn.Module):
    """Each image to zero mean and unit variance, the paper's normalisation.

    Args:
        epsilon: added to the variance, so that an image of one value gives zeros.
    """

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
        variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
        return centred * torch.rsqrt(variance + self.epsilon)


class BinaryMask(nn.Module):
    """The binarised image: 1 above the image's Otsu threshold, 0 elsewhere.

    Equals OpenCV's Otsu threshold of the image scaled to 0..255 by its minimum and maximum.
    """

    def forward(self, images: Tensor, *, mirrored: bool = False) -> Tensor:
        """Map (B, 1, H, W) to zeros and ones of the same shape and type; no gradient passes.

        With ``mirrored``, the second half of the batch are the mirror images of the first.
        """
        levels = grey_levels(images)
        mask = levels > otsu_threshold(count_levels(levels, mirrored=mirrored))
        return mask.to(images.dtype).view_as(images)


class GreyHistogram(nn.Module):
    """Each image's histogram over its own range of grey, summing to 1.

    Args:
        bins: a divisor of 256.
    """

    def __init__(self, bins: int = 32) -> None:
        super().__init__()
        if bins < 1 or GREY_LEVELS % bins:
            raise ValueError(f"a histogram's bins must divide {GREY_LEVELS}, not be {bins}")
        self.bins = bins

    def forward(self, images: Tensor, *, mirrored: bool = False) -> Tensor:
        """Map (B, 1, H, W) to (B, bins) of float32; no gradient passes.

        With ``mirrored``, the second half of the batch are the mirror images of the first.
        """
        counts = count_levels(grey_levels(images), mirrored=mirrored)
        counts = counts.view(-1, self.bins, GREY_LEVELS // self.bins).sum(dim=2)
        return counts / counts.sum(dim=1, keepdim=True)


class SqueezeExcitation(nn.Module):
    """A gate per channel, told by the means of all channels; exactly 1 at initialisation.

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
        gated: Tensor = features * gates
        return gated


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

    The input is expected to be roughly of zero mean and unit variance, as preprocessing makes it.

    Args:
        backbone: a timm model without a classifier.
        channels: of the last feature map.
        drop_rate: dropout before the logits, 0..1.
        zero_mean: bring each image to zero mean and unit variance first, whatever preprocessing did.
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


class Mirrored(nn.Module):
    """Averages what a network says of images and of their mirror images.

    Lungs are nearly symmetric and lesions fall on either side, so the mirror image is a second opinion.
    The activation maps of the mirror image are mirrored back, so that an averaged map still adds up to its
    averaged logit.

    Args:
        network: a ``Network``, or what passes its arguments on to one.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> NetworkOutput:
        """Map (B, 1, H, W) to the averaged logits, activation maps and embedding."""
        # One pass over both: an exported file then holds the weights once.
        count = images.shape[0]
        both: NetworkOutput = self.network(torch.cat((images, images.flip(-1))), mirrored=True)
        return NetworkOutput(
            _mean(both.logit, count),
            _mean_map(both.activation_map, count),
            _mean(both.embedding, count),
            None if both.opacity_logit is None else _mean(both.opacity_logit, count),
            None if both.opacity_map is None else _mean_map(both.opacity_map, count),
        )


def _mean(both: Tensor, count: int) -> Tensor:
    """Of the first ``count`` and the others."""
    return (both[:count] + both[count:]) / 2


def _mean_map(both: Tensor, count: int) -> Tensor:
    """The same for maps, the others mirrored back."""
    return (both[:count] + both[count:].flip(-1)) / 2
