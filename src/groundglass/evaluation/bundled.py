"""A bundle as something that can be evaluated: it predicts what it predicts for its users, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import Framing
from groundglass.inference.bundle import Bundle


@dataclass(frozen=True)
class BundledPredictions:
    """What a bundle says of N slices.

    Attributes:
        logit: of COVID, before calibration, shape (N,).
        probability: of COVID, calibrated, shape (N,).
        activation_map: contributions to the logit, shape (N, h, w).
        framed: the framed slices, shape (N, size, size).
    """

    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    activation_map: NDArray[np.float32]
    framed: NDArray[np.uint8]


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class _RecipeNames:
    name: str
    network: _Named


class BundledRun:
    """Wraps a bundle for :func:`groundglass.evaluation.evaluate.evaluate`.

    Slices that the bundle would refuse are judged all the same: a measurement leaves nothing out.

    Args:
        bundle: verified.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.path = bundle.path
        training = bundle.info.training
        self.recipe = _RecipeNames(
            str(training.get("recipe", "")), _Named(str(bundle.info.network.get("name", "")))
        )
        self.seed = int(training.get("seed", 0))
        self.split_spec = str(training.get("split", ""))

    @property
    def record_folder(self) -> Path | None:
        """Nowhere: a bundle is not written to once it is made."""
        return None

    @property
    def framing(self) -> Framing:
        """How slices are framed."""
        return self.bundle.framing

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the training, as far as the bundle carries them."""
        training = self.bundle.info.training
        return {
            "finished": True,
            "training_sha256": training.get("sha256", ()),
            "training_seconds": training.get("seconds"),
            "versions": training.get("versions") or {},
        }

    def history(self) -> Sequence[Mapping[str, Any]]:
        """Nothing: a bundle does not carry it."""
        return ()

    def predict(self, slices: Iterable[NDArray[np.uint8]]) -> BundledPredictions:
        """Predict grey slices, each of shape (H, W), one by one as the bundle's users do."""
        framing, engine, calibration = self.framing, self.bundle.engine(), self.bundle.calibration
        framed = np.array([framing.frame(pixels).pixels for pixels in slices], np.uint8)
        outputs = [engine.run(framing.normalise(pixels[None])) for pixels in framed]
        logit = np.array([output.logit[0] for output in outputs], np.float64)
        return BundledPredictions(
            logit,
            np.array([calibration.probability(value) for value in logit], np.float64),
            np.concatenate([output.activation_map for output in outputs]),
            framed,
        )
