"""Trains a network without batch statistics in one or two processes; started by the tests.

Batch normalisation sees half a batch in each of two processes and so cannot agree with one; everything else
must.
"""

from __future__ import annotations

import sys
from pathlib import Path

from numpy.random import Generator
from torch import Tensor, nn

from groundglass.imaging.slice import Grey
from groundglass.models.layers import NetworkOutput
from groundglass.training import train as training
from groundglass.training.recipe import load_recipe
from groundglass.training.samples import Augmentation
from groundglass.training.trainer import Job


class Small(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.GELU(), nn.Conv2d(4, 8, 5, 4), nn.GELU())
        self.classifier = nn.Linear(8, 1)

    def forward(self, images: Tensor) -> NetworkOutput:
        """One logit per image."""
        features = self.features(images)
        embedding = features.mean((2, 3))
        return NetworkOutput(self.classifier(embedding)[:, 0], None, embedding)


class Still(Augmentation):
    """An augmentation of one's own, which only cuts."""

    def __call__(self, pixels: Grey, rng: Generator, *masks: Grey) -> tuple[Grey, ...]:
        """The middle of slice and masks."""
        edge = (len(pixels) - self.size) // 2
        return tuple(each[edge:][: self.size, edge:][:, : self.size] for each in (pixels, *masks))


def small_job(data: Path, output: Path, devices: int) -> Job:
    """Two epochs at 64 pixels on ``devices`` processes."""
    settings = (
        "preprocessing.size=64",
        "training.batch_size=8",
        "training.epochs=2",
        "training.ema_decay=0.5",
    )
    return Job(
        load_recipe("phantom-demo", settings),
        (data,),
        "official",
        0,
        output,
        devices=devices,
        threads=1,
        accelerator="cpu",
        cache=output.parent / "cache",
        progress=False,
    )


if __name__ == "__main__":
    training.build_network = lambda recipe: Small()
    training.train_job(small_job(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
