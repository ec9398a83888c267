"""A run: the folder one training leaves behind, and the network in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.special import expit
from torch import nn

from groundglass.errors import RunError
from groundglass.evaluation.evaluate import NetworkOutputs
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import LungSegmenter, open_segmenter
from groundglass.imaging.read import read_slice
from groundglass.imaging.slice import CTSlice
from groundglass.models.layers import Network
from groundglass.models.registry import build
from groundglass.training.recipe import Recipe, parse_recipe
from groundglass.training.samples import to_images
from groundglass.training.trainer import (
    RECIPE,
    WEIGHTS,
    learning_curves,
    read_history,
    read_info,
    read_recipe,
)

LUNGS = "lungs.onnx"
"""The model of the lung fields with which the slices were cropped."""

_BATCH = 32


@dataclass(frozen=True)
class Run:
    """A training's folder.

    Attributes:
        path: of the folder.
        recipe: that was trained.
        info: content of ``run.json``: seed, split, versions, data, times, whether it is finished.
    """

    path: Path
    recipe: Recipe
    info: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run's folder.

        Raises:
            RunError: it is no run, of another version's format, or its files are damaged.
        """
        path = Path(path)
        info = read_info(path)
        return cls(path, parse_recipe(read_recipe(path), str(path / RECIPE)), info)

    @property
    def record_folder(self) -> Path:
        """Where evaluations of this run are counted."""
        return self.path

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.info["seed"])

    @property
    def split_spec(self) -> str:
        """The split it was trained on, as given on the command line."""
        return str(self.info["split"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How its slices are cropped and normalised."""
        return self.recipe.preprocessing.build()

    @cached_property
    def lungs(self) -> LungSegmenter:
        """Finds the lungs as in training.

        Raises:
            BundleError: its model is missing or damaged.
        """
        return open_segmenter(self.path / LUNGS)

    @property
    def calibration(self) -> None:
        """None: export fits it for a bundle."""

    def history(self) -> list[dict[str, float]]:
        """One row per epoch."""
        return read_history(self.path)

    @cached_property
    def network(self) -> Network:
        """The trained network on the CPU, in evaluation mode.

        Raises:
            RunError: the weights are missing or damaged.
        """
        weights = self.path / WEIGHTS
        if not weights.is_file():
            what = f"training is not finished ({WEIGHTS} is missing)"
            raise RunError(f"{self.path}: {what}; resume it with --resume")
        network = build_network(self.recipe, pretrained=False)
        try:
            network.load_state_dict(load_file(weights))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise RunError(f"{weights}: damaged weights ({str(error).splitlines()[0]})") from None
        return network.eval().to(memory_format=torch.channels_last)

    @cached_property
    def _fast_network(self) -> nn.Module:
        # A copy: what is exported stays on the CPU.
        return deepcopy(self.network).to("cuda") if torch.cuda.is_available() else self.network

    def plot(self) -> Figure:
        """Loss, AUC and accuracy over the epochs; ``curves.svg`` in the folder is the same."""
        return learning_curves(self.history())

    def predict(self, slices: Iterable[CTSlice | str | Path]) -> NetworkOutputs:
        """Predict slices, or files of one, cropped as in training, in batches, on the GPU where there is one.

        Raises:
            ImageError: a file cannot be read as a slice.
        """
        read = (each if isinstance(each, CTSlice) else read_slice(Path(each)) for each in slices)
        cuts = [self.preprocessing.apply(each.pixels, self.lungs(each.pixels)) for each in read]
        pixels = np.array([cut.pixels for cut in cuts], np.uint8).reshape(-1, *[self.preprocessing.size] * 2)
        logit, lesion_map = predict_cropped(self._fast_network, self.preprocessing, pixels)
        return NetworkOutputs(logit, expit(logit), lesion_map, cuts)


def predict_cropped(
    network: nn.Module, preprocessing: Preprocessing, cropped: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Logits (N,) and lesion maps (N, h, w), if the network has them, of cropped slices, uint8 (N, size, size)."""
    device = next(network.parameters()).device
    logit, maps = np.empty(len(cropped), np.float32), []
    with torch.inference_mode():
        for start in range(0, len(cropped), _BATCH):
            batch = slice(start, start + _BATCH)
            output = network(to_images(cropped[batch], preprocessing).to(device))
            logit[batch] = output.logit.cpu().numpy()
            if output.lesion_map is not None:
                maps.append(output.lesion_map.cpu().numpy())
    return logit, np.concatenate(maps) if maps else None


def build_network(recipe: Recipe, *, pretrained: bool = True) -> Network:
    """The recipe's network; with ``pretrained`` off, its weights are about to be replaced."""
    section = recipe.network
    weights = section.weights if pretrained else "none"
    switches = section.model_dump(exclude={"name", "weights", "dropout"})
    return build(section.name, weights, drop_rate=section.dropout, **switches)
