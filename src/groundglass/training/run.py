"""A run: the folder one training leaves behind, and the network in it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.special import expit
from torch import Tensor, nn

from groundglass.errors import RunError
from groundglass.imaging.crop import Preprocessing
from groundglass.models.layers import Mirrored
from groundglass.models.registry import build
from groundglass.training.recipe import Recipe, parse_recipe
from groundglass.training.trainer import HISTORY, INFO, RECIPE, WEIGHTS, read_history

if TYPE_CHECKING:
    from groundglass.models.layers import Network


_BATCH = 32


@dataclass(frozen=True)
class NetworkOutputs:
    """What a network says of slices.

    Attributes:
        logit: float32, shape (N,).
        probability: float32, shape (N,), of COVID.
        activation_map: float32, shape (N, h, w): each position's share of the logit.
        cropped: uint8, shape (N, size, size): what the network was shown, before normalisation.
        opacity_logit: float32, shape (N,); None, as the next two, where the network has no such output.
        opacity: float32, shape (N,), probability of pneumonia-like opacity, whatever its cause.
        opacity_map: float32, shape (N, h, w): each position's share of ``opacity_logit``.
    """

    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    activation_map: NDArray[np.float32]
    cropped: NDArray[np.uint8]
    opacity_logit: NDArray[np.float32] | None = None
    opacity: NDArray[np.float32] | None = None
    opacity_map: NDArray[np.float32] | None = None


class Run:
    """A training's folder.

    Args:
        path: of the folder.
        recipe: that was trained.
        info: content of ``run.json``: seed, split, versions, data, times, whether it is finished.
    """

    def __init__(self, path: Path, recipe: Recipe, info: dict[str, Any]) -> None:
        self.path = path
        self.recipe = recipe
        self.info = info

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run's folder.

        Raises:
            RunError: it is no run, or its files are damaged.
        """
        path = Path(path)
        if not (path / INFO).is_file():
            raise RunError(f"{path}: no run here ({INFO} is missing); train one with `groundglass train`")
        try:
            info = json.loads((path / INFO).read_text(encoding="utf-8"))
            fields = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RunError(f"{path}: damaged run ({error})") from None
        return cls(path, parse_recipe(fields, str(path / RECIPE)), info)

    @property
    def record_folder(self) -> Path:
        """Where evaluations of this run are counted."""
        return self.path

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.info["seed"])

    @property
    def averaged(self) -> tuple[int, ...]:
        """Seeds of the runs whose weights were averaged; empty for a training."""
        return tuple(int(each["seed"]) for each in self.info.get("averaged") or ())

    @property
    def split_spec(self) -> str:
        """The split it was trained on, as given on the command line."""
        return str(self.info["split"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How its slices are cropped."""
        return self.recipe.preprocessing.build()

    def history(self) -> list[dict[str, float]]:
        """One row per epoch; see :data:`groundglass.training.trainer.COLUMNS`."""
        return read_history(self.path / HISTORY)

    @cached_property
    def network(self) -> nn.Module:
        """The trained network, in evaluation mode, asked as the recipe says.

        Raises:
            RunError: the weights are missing or damaged.
        """
        network = build_network(self.recipe, pretrained=False)
        try:
            network.load_state_dict(self.weights())
        except RuntimeError as error:
            raise self._damaged(error) from None
        return judge(self.recipe, network).eval().to(memory_format=torch.channels_last)

    def weights(self) -> dict[str, Tensor]:
        """The trained network's state.

        Raises:
            RunError: the weights are missing or damaged.
        """
        weights = self.path / WEIGHTS
        if not weights.is_file():
            raise RunError(
                f"{self.path}: training is not finished ({WEIGHTS} is missing); go on with --resume"
            )
        try:
            return load_file(weights)
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> RunError:
        return RunError(f"{self.path / WEIGHTS}: damaged weights ({str(error).splitlines()[0]})")

    def predict(self, slices: Iterable[NDArray[np.uint8]]) -> NetworkOutputs:
        """Judge slices of any shape, cropped as in training, in batches.

        Args:
            slices: uint8 arrays of shape (H, W).
        """
        preprocessing, device = self.preprocessing, "cuda" if torch.cuda.is_available() else "cpu"
        cropped = [preprocessing.apply(pixels).pixels for pixels in slices]
        return predict_cropped(
            self.network.to(device),
            preprocessing,
            np.array(cropped, np.uint8).reshape(-1, preprocessing.size, preprocessing.size),
        )


def predict_cropped(
    network: torch.nn.Module, preprocessing: Preprocessing, cropped: NDArray[np.uint8]
) -> NetworkOutputs:
    """Judge cropped slices.

    Args:
        network: in evaluation mode, on the device that is to be used.
        preprocessing: whose normalisation is applied.
        cropped: uint8, shape (N, size, size).
    """
    batches: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    device = next(network.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(cropped), _BATCH):
            images = torch.from_numpy(preprocessing.normalise(cropped[start : start + _BATCH])).unsqueeze(1)
            output = network(images.to(device, memory_format=torch.channels_last))
            for name in ("logit", "activation_map", "opacity_logit", "opacity_map"):
                if (values := getattr(output, name)) is not None:
                    batches[name].append(values.cpu().numpy())
    joined = {name: np.concatenate(values) for name, values in batches.items()}
    logit = joined.get("logit", np.empty(0, np.float32))
    opacity_logit = joined.get("opacity_logit")
    return NetworkOutputs(
        logit,
        _sigmoid(logit),
        joined.get("activation_map", np.empty((0, 1, 1), np.float32)),
        cropped,
        opacity_logit,
        None if opacity_logit is None else _sigmoid(opacity_logit),
        joined.get("opacity_map"),
    )


def _sigmoid(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(expit(logit), np.float32)


def judge(recipe: Recipe, network: nn.Module) -> nn.Module:
    """What gives judgements: the network, or, where the recipe says so, its mean over mirror images."""
    return Mirrored(network) if recipe.network.mirror else network


def build_network(recipe: Recipe, *, pretrained: bool = True) -> Network:
    """The recipe's network; with ``pretrained`` off, its weights are about to be replaced."""
    section = recipe.network
    return build(
        section.name,
        weights=section.weights if pretrained else "none",
        mask=section.mask,
        attention=section.attention,
        histogram=section.histogram,
        drop_rate=section.dropout,
        opacity=section.opacity,
    )
