"""A network and an augmentation of one's own, which recipes name."""

from __future__ import annotations

from numpy.random import Generator
from torch import Tensor, nn

from groundglass.imaging.slice import Grey
from groundglass.models.layers import NetworkOutput
from groundglass.training.samples import Augmentation


class Small(nn.Module):
    """Two convolutions and a linear layer, without batch statistics, which depend on who sees which part of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.GELU(), nn.Conv2d(4, 8, 5, 4), nn.GELU())
        self.classifier = nn.Linear(8, 1)

    def forward(self, images: Tensor) -> NetworkOutput:
        embedding = self.features(images).mean((2, 3))
        return NetworkOutput(self.classifier(embedding)[:, 0], None, embedding)


class Still(Augmentation):
    """Cuts the middle of slice and masks."""

    def __call__(self, pixels: Grey, rng: Generator, *masks: Grey) -> tuple[Grey, ...]:
        edge = (len(pixels) - self.size) // 2
        return tuple(each[edge:][: self.size, edge:][:, : self.size] for each in (pixels, *masks))
