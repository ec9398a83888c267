"""A network asked twice: the slice and its mirror image, averaged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundglass.models.layers import NetworkOutput


class Mirrored(nn.Module):
    """Averages what a network says of images and of their mirror images.

    Lungs are nearly symmetric and lesions fall on either side, so the mirror image is a second opinion.
    The activation map of the mirror image is mirrored back, so that the averaged map still adds up to the
    averaged logit.

    Args:
        network: float32 (B, 1, H, W) to a ``NetworkOutput``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> NetworkOutput:
        """Map (B, 1, H, W) to the averaged logit, activation map and embedding."""
        # One pass over both: an exported file then holds the weights once.
        count = images.shape[0]
        both: NetworkOutput = self.network(torch.cat((images, images.flip(-1))))
        return NetworkOutput(
            (both.logit[:count] + both.logit[count:]) / 2,
            (both.activation_map[:count] + both.activation_map[count:].flip(-1)) / 2,
            (both.embedding[:count] + both.embedding[count:]) / 2,
        )
