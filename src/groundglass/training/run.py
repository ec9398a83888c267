"""A run: the folder one training leaves behind, and the network in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
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
from groundglass.reporting.figures import curves_figure
from groundglass.training.recipe import Recipe, checked
from groundglass.training.samples import to_images

INFO, RECIPE, HISTORY, WEIGHTS = "run.json", "recipe.yaml", "history.csv", "weights.safetensors"
LUNGS = "lungs.onnx"
"""The model of the lung fields with which the slices were cropped."""

FORMAT = 3
"""Of a run's folder, in ``run.json``; raised whenever older folders cannot be read any more."""

_BATCH = 32


@dataclass(frozen=True)
class Run:
    """A training's folder, its recipe, and the content of its ``run.json``."""

    path: Path
    recipe: Recipe
    info: Mapping[str, Any]
    calibration: None = field(default=None, init=False)  # export fits it for a bundle

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run's folder.

        Raises:
            RunError: it is no run, of another version's format, or its files are damaged.
        """
        path = Path(path)
        info = read_info(path)
        if kind := info.get("kind"):
            raise RunError(f"{path}: a run of {kind}, no classifier")
        return cls(path, checked(Recipe, read_recipe(path), str(path / RECIPE)), info)

    @property
    def preprocessing(self) -> Preprocessing:
        """How its slices are cropped and normalised."""
        return self.recipe.preprocessing

    @cached_property
    def lungs(self) -> LungSegmenter:
        """Finds the lungs as in training; a BundleError where its model is missing or damaged."""
        return open_segmenter(self.path / LUNGS)

    @cached_property
    def network(self) -> Network:
        """The trained network on the CPU, in evaluation mode; a RunError where its weights are missing or damaged."""
        network = build_network(self.recipe, pretrained=False)
        load_weights(network, self.path)
        return network.eval().to(memory_format=torch.channels_last)

    @cached_property
    def _fast_network(self) -> nn.Module:
        # A copy: what is exported stays on the CPU.
        return deepcopy(self.network).to("cuda") if torch.cuda.is_available() else self.network

    def history(self) -> list[dict[str, float]]:
        """One row per epoch."""
        return read_history(self.path)

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
        logit, maps = np.empty(len(cuts), np.float32), []
        with torch.inference_mode():
            for start in range(0, len(cuts), _BATCH):
                batch = slice(start, start + _BATCH)
                images = to_images(np.stack([cut.pixels for cut in cuts[batch]]), self.preprocessing)
                output = self._fast_network(images.to(next(self._fast_network.parameters()).device))
                logit[batch] = output.logit.cpu().numpy()
                if output.lesion_map is not None:
                    maps.append(output.lesion_map.cpu().numpy())
        return NetworkOutputs(logit, expit(logit), np.concatenate(maps) if maps else None, cuts)


def build_network(recipe: Recipe, *, pretrained: bool = True) -> Network:
    """The recipe's network; with ``pretrained`` off, its weights are about to be replaced."""
    section = recipe.network
    weights = section.weights if pretrained else "none"
    switches = section.model_dump(exclude={"name", "weights", "dropout"})
    return build(section.name, weights, drop_rate=section.dropout, **switches)


def load_weights(network: nn.Module, folder: Path) -> None:
    """Give a network the weights that its training left in a run's folder; a RunError where they are not or damaged."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise RunError(f"{folder}: training is not finished ({WEIGHTS} is missing); resume it with --resume")
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RunError(f"{weights}: damaged weights ({str(error).splitlines()[0]})") from None


def read_info(folder: Path) -> dict[str, Any]:
    """Content of a run's ``run.json``; a RunError where there is none, it is damaged, or of another format."""
    if not (folder / INFO).exists():
        raise RunError(f"{folder}: no run here ({INFO} is missing); train one with `groundglass train`")
    info = _parsed(folder / INFO, json.loads)
    if (written := info.get("format", 1)) != FORMAT:
        raise RunError(
            f"{folder}: a run of format {written}, this version of groundglass reads {FORMAT}; train it again"
        )
    return info


def read_recipe(folder: Path) -> dict[str, Any]:
    """The unchecked fields of a run's ``recipe.yaml``; a RunError where it is missing or damaged."""
    return _parsed(folder / RECIPE, yaml.safe_load)


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        return dict(parse(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"{path.parent}: damaged run ({' '.join(str(error).split())})") from None


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's ``history.csv``; empty where there is none."""
    try:
        with (folder / HISTORY).open(encoding="utf-8", newline="") as stream:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
    except FileNotFoundError:
        return []
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise RunError(f"{folder / HISTORY}: damaged ({error})") from None


def learning_curves(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and the measures of the validation part over the epochs of a history."""
    panels = {
        ("Loss", "loss"): {"training": "train_loss", "validation": "val_loss"},
        ("Validation", "value"): {"AUC": "val_auc", "accuracy": "val_accuracy", "Dice": "val_dice"},
    }
    found = {
        title: {name: [values] for name, key in keys.items() if (values := [row[key] for row in rows if key in row])}
        for title, keys in panels.items()
    }
    return curves_figure({title: curves for title, curves in found.items() if curves})
