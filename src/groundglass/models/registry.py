"""What a network costs: parameters, and multiply-accumulate operations at a given input size.

One way to build any network of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from groundglass.models.baselines import build_backbone, build_baseline
from groundglass.models.catalogue import find
from groundglass.models.layers import Network
from groundglass.models.mask_efficientnet import MaskEfficientNet
from groundglass.models.weights import load_backbone, load_network, read_weights


def build(
    name: str,
    weights: str | Path = "none",
    *,
    mask: bool = True,
    attention: bool = True,
    histogram: bool = True,
    drop_rate: float = 0.2,
    drop_path_rate: float = 0.0,
    zero_mean: bool = False,
    opacity: bool = False,
) -> Network:
    """Build a network of one input channel and one logit, or two.

    Args:
        name: of a registry entry.
        weights: ``none``, ``imagenet``, or a safetensors file with a timm backbone's state (its first layer
            may have three input channels, its classifier is left out) or the state of exactly this network.
        mask: give Mask-EfficientNet its mask branch; the baselines have none.
        attention: give Mask-EfficientNet its channel gates; the baselines have none.
        histogram: give Mask-EfficientNet its histogram term; the baselines have none.
        drop_rate: dropout before the logits, 0..1.
        drop_path_rate: stochastic depth of the backbone, 0..1; DenseNet and VGG have none.
        zero_mean: bring each image to zero mean and unit variance first, whatever preprocessing did.
        opacity: give any of them the second logit: is there pneumonia-like opacity, whatever its cause?

    Raises:
        GroundglassError: unknown name.
        WeightsError: the weights cannot be had or do not fit.
    """
    entry = find(name)
    state = read_weights(entry, weights)
    backbone = build_backbone(entry, drop_path_rate)
    if state is not None and not state.whole_network:
        load_backbone(backbone, state)
    network: Network
    if entry.family == "mask-efficientnet":
        network = MaskEfficientNet(
            backbone,
            mask=mask,
            attention=attention,
            histogram=histogram,
            drop_rate=drop_rate,
            zero_mean=zero_mean,
            opacity=opacity,
        )
    else:
        network = build_baseline(backbone, entry, drop_rate, zero_mean, opacity)
    if state is not None and state.whole_network:
        load_network(network, state)
    return network


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
