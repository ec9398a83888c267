"""One way to build any network of the catalogue."""

from __future__ import annotations

from pathlib import Path

from groundglass.models.baselines import build_backbone, build_baseline
from groundglass.models.catalogue import find
from groundglass.models.mask_efficientnet import MaskEfficientNet
from groundglass.models.network import Network
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
        zero_mean: bring each image to zero mean and unit variance first, whatever framing did.
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
