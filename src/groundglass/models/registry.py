"""One way to build any network of the catalogue, and to count what it costs.

The networks that Mask-EfficientNet is compared with are timm's, with one input channel and one logit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, cast

import timm
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from groundglass.errors import GroundglassError
from groundglass.models.catalogue import find
from groundglass.models.layers import Network
from groundglass.models.mask_efficientnet import MaskEfficientNet
from groundglass.models.weights import load_backbone, load_network, read_weights


class VGG(Network):
    """VGG with its two fully connected layers, as convolutions of 7 x 7 and 1 x 1."""

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The 4096 features of each position, (B, 4096, h, w), of images (B, 1, H, W), and those of strides 4 to 32."""
        last, pyramid = super().features(images)
        layers = cast(Any, self.backbone.pre_logits)
        if max(last.shape[2:]) > 7:
            return layers(last), pyramid
        # One position: the same as a product of matrices does without reordering 100 million weights in every step.
        # Adaptive pooling to 7 x 7, each place the mean of at most two: a GPU has none that is deterministic.
        for axis in (2, 3):
            bins = torch.arange(7, device=last.device) * last.shape[axis]
            low, high = bins // 7, (bins + last.shape[axis] - 1) // 7
            last = (last.index_select(axis, low) + last.index_select(axis, high)) / 2
        pooled = last.permute(0, 2, 3, 1).flatten(1)
        first = F.linear(pooled, layers.fc1.weight.permute(0, 2, 3, 1).flatten(1), layers.fc1.bias)
        return layers.act2(layers.fc2(layers.drop(layers.act1(first))[..., None, None])), pyramid


def build(
    name: str,
    weights: str | Path = "none",
    *,
    drop_rate: float = 0.2,
    options: Mapping[str, Any] | None = None,
    **switches: Any,
) -> Network:
    """Build a network of one input channel and one logit.

    Args:
        name: of a catalogue entry, of a network of timm, or ``module:Class`` of a network of your own.
        weights: ``none``, ``imagenet``, ``c2l``, or a safetensors file with a timm backbone's state (its first
            layer may have three input channels, its classifier is left out) or the state of exactly this
            network.
        drop_rate: dropout before the logit, 0..1.
        options: further arguments of timm's model, or of your class.
        **switches: parts of a :class:`MaskEfficientNet` to leave out; the others have a lesion decoder alone.

    Raises:
        GroundglassError: unknown name, or a network that gives no features at strides 4 to 32.
        WeightsError: the weights cannot be had or do not fit.
    """
    entry = find(name)
    state = read_weights(entry, weights)
    if entry.family == "own":
        own = _own(name, options or {})
        if state is not None:
            load_network(own, state)
        return own
    try:
        backbone = timm.create_model(entry.timm_name, in_chans=1, num_classes=0, **(options or {}))
    except TypeError as error:
        raise GroundglassError(f"network.options={options}: {error}") from None
    for layer in backbone.modules():
        if isinstance(layer, nn.ReLU6 | nn.SiLU):
            # Their gradients need their input, which training would have to copy before it is overwritten.
            layer.inplace = False
    if state is not None and not state.whole_network:
        load_backbone(backbone, state)
    network: Network
    if entry.family == "mask-efficientnet":
        network = MaskEfficientNet(backbone, drop_rate, **switches)
    else:
        kind = VGG if entry.family == "vgg" else Network
        channels = _channels(backbone, name) if entry.family == "timm" else backbone.head_hidden_size
        network = kind(backbone, cast(int, channels), drop_rate, lesions=switches.get("lesions", True))
    if state is not None and state.whole_network:
        load_network(network, state)
    return network


def _own(name: str, options: Mapping[str, Any]) -> Network:
    """An instance of ``module:Class``, which takes images (B, 1, H, W) to a ``NetworkOutput``."""
    try:
        made = resolve_name(name)
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise TypeError("it is no class of networks")
        return cast(Network, made(**options))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise GroundglassError(f"network {name}: cannot be made ({error}); is its module on PYTHONPATH?") from None


def _channels(backbone: nn.Module, name: str) -> int:
    """Channels of the last feature map of any of timm's networks."""
    strides = [level["reduction"] for level in cast(Iterable[dict[str, Any]], backbone.feature_info)]
    try:
        with torch.no_grad():
            last, _ = backbone.eval().forward_intermediates(torch.zeros(1, 1, 128, 128))  # type: ignore[operator]
        fits = last.ndim == 4 and last.shape[2:] == (4, 4) and {4, 8, 16, 32} <= set(strides)
    except Exception:  # noqa: BLE001 - each of timm's networks fails in its own way
        fits = False
    if not fits or len(set(strides)) < len(strides):
        raise GroundglassError(
            f"network {name}: gives no features at strides 4, 8, 16 and 32; choose a convolutional one of timm"
        )
    backbone.train()
    return int(last.shape[1])


class Complexity(NamedTuple):
    """A network's trainable numbers, and multiply-accumulates of convolutions and linear layers for one image."""

    parameters: int
    macs: int


def measure(name: str, size: int, **switches: Any) -> Complexity:
    """Count parameters and operations of a network for images of ``size`` x ``size``, without computing any numbers."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = build(name, **switches).eval()
        network(torch.empty(1, 1, size, size))
    # A multiply-accumulate operation is two floating-point operations.
    return Complexity(sum(each.numel() for each in network.parameters()), counter.get_total_flops() // 2)
