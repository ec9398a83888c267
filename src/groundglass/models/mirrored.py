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
        seen: NetworkOutput = self.network(images)
        mirrored: NetworkOutput = self.network(images.flip(-1))
        return NetworkOutput(
            (seen.logit + mirrored.logit) / 2,
            (seen.activation_map + mirrored.activation_map.flip(-1)) / 2,
            torch.lerp(seen.embedding, mirrored.embedding, 0.5),
        )
