"""LungNet: the lung fields of a whole slice, diseased lung included, by a small U-Net of separable convolutions."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn


class LungNet(nn.Module):
    """Maps slices (B, 1, S, S), 0..1, to logits of lung (B, 1, S / 2, S / 2), to be :func:`doubled`; 16 divides S.

    A U-Net (Ronneberger et al., MICCAI 2015) whose stem halves the slice at once, whose convolutions are separable
    and whose skips add instead of concatenating: 142,000 parameters, 0.076 G multiply-accumulates at 192 pixels.
    ``widths`` are channels at strides 2, 4, 8 and 16.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (24, 48, 96, 128)) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = nn.Sequential(nn.Conv2d(1, a, 5, 2, 2, bias=False), nn.BatchNorm2d(a), nn.ReLU(inplace=True))
        self.down = nn.ModuleList(
            [
                _separable(a, a),
                nn.Sequential(_separable(a, b, stride=2), _separable(b, b)),
                nn.Sequential(_separable(b, c, stride=2), *(_separable(c, c, kernel=5) for _ in range(2))),
                nn.Sequential(_separable(c, d, stride=2), *(_separable(d, d, kernel=5) for _ in range(3))),
            ]
        )
        self.narrow = nn.ModuleList([nn.Conv2d(d, c, 1), nn.Conv2d(c, b, 1), nn.Conv2d(b, a, 1)])
        self.up = nn.ModuleList([_separable(c, c), _separable(b, b), _separable(a, a)])
        self.head = nn.Conv2d(a, 1, 1)

    def forward(self, slices: Tensor) -> Tensor:
        """Segment slices."""
        features, skips = self.stem(slices - slices.mean(dim=(1, 2, 3), keepdim=True)), []
        for stage in self.down:
            features = stage(features)
            skips.append(features)
        features = skips.pop()
        for narrow, smooth in zip(self.narrow, self.up, strict=True):
            features = smooth(doubled(narrow(features)) + skips.pop())
        return cast(Tensor, self.head(features))


def doubled(features: Tensor) -> Tensor:
    """Features (B, C, H, W) enlarged to (B, C, 2 H, 2 W)."""
    return F.interpolate(features, scale_factor=2, mode="bilinear")


def _separable(channels: int, out: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )
