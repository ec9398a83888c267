"""A network asked twice: the slice and its mirror image, averaged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundglass.models.layers import NetworkOutput


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
