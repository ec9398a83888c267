"""What a network costs: parameters, and multiply-accumulate operations at a given input size."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from groundglass.models.registry import build

SMALLEST_INPUT = 32
"""Pixels: every network here halves its input five times."""


@dataclass(frozen=True)
class Complexity:
    """A network's cost.

    Attributes:
        parameters: trainable numbers.
        macs: multiply-accumulate operations of convolutions and linear layers for one image.
    """

    parameters: int
    macs: int


def measure(
    name: str, size: int, *, mask: bool = True, attention: bool = True, histogram: bool = True
) -> Complexity:
    """Count parameters and operations of a network by name, without holding its numbers or computing any.

    Args:
        name: of a registry entry.
        size: side of the square input, in pixels, at least 32.
        mask: count Mask-EfficientNet with its mask branch.
        attention: count it with its channel gates.
        histogram: count it with its histogram term.

    Raises:
        GroundglassError: unknown name.
    """
    with torch.device("meta"):
        network = build(name, mask=mask, attention=attention, histogram=histogram).eval()
        images = torch.empty(1, 1, size, size)
    operations: list[int] = []

    def count(layer: nn.Conv2d | nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
        # Every output value is a sum over one row of the weight: a filter's, or a linear layer's inputs.
        operations.append(output.numel() * prod(layer.weight.shape[1:]))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(images)
    return Complexity(sum(parameter.numel() for parameter in network.parameters()), sum(operations))
