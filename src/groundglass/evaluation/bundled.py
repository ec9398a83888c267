"""A bundle as something that can be evaluated: it predicts what it predicts for its users, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.placement import Placement
from groundglass.imaging.exposure import exposure
from groundglass.imaging.framing import FramedSlice, Framing
from groundglass.imaging.slice import CTSlice
from groundglass.inference.bundle import Bundle
from groundglass.inference.engine import Outputs
from groundglass.inference.gate import Gate


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

    Slices that the bundle would refuse are judged all the same: a measurement leaves nothing out. Which they
    are is told beside, and how far each slice lies from the training data.

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
            "lesion_free": training.get("lesion_free"),
            "training_seconds": training.get("seconds"),
            "versions": training.get("versions") or {},
        }

    def history(self) -> Sequence[Mapping[str, Any]]:
        """Nothing: a bundle does not carry it."""
        return ()

    def predict(self, slices: Iterable[NDArray[np.uint8]]) -> BundledPredictions:
        """Predict grey slices, each of shape (H, W), one by one as the bundle's users do."""
        framed = [self.framing.frame(pixels).pixels for pixels in slices]
        return self._predictions(framed, [self._ask(pixels) for pixels in framed])

    def predict_placed(self, slices: Iterable[CTSlice]) -> tuple[BundledPredictions, Placement]:
        """Predict slices, and say which of them the bundle would refuse and where they lie."""
        gate = Gate.from_arrays(self.bundle.trust)
        framed, outputs, reasons, grey = [], [], [], []
        for ct_slice in slices:
            frame = self.framing.frame(ct_slice.pixels)
            output = self._ask(frame.pixels)
            reasons.append(_reason(gate, ct_slice, frame, output))
            grey.append(exposure(frame))
            framed.append(frame.pixels)
            outputs.append(output)
        reference = self.bundle.reference
        places = None if reference is None else reference.place(_embeddings(outputs), np.stack(grey))
        return self._predictions(framed, outputs), Placement(tuple(reasons), reference, places)

    def _ask(self, framed: NDArray[np.uint8]) -> Outputs:
        return self.bundle.engine().run(self.framing.normalise(framed[None]))

    def _predictions(
        self, framed: Sequence[NDArray[np.uint8]], outputs: Sequence[Outputs]
    ) -> BundledPredictions:
        calibration = self.bundle.calibration
        logit = np.array([output.logit[0] for output in outputs], np.float64)
        return BundledPredictions(
            logit,
            np.array([calibration.probability(value) for value in logit], np.float64),
            np.concatenate([output.activation_map for output in outputs]),
            np.array(framed, np.uint8),
        )


def _embeddings(outputs: Sequence[Outputs]) -> NDArray[np.float32]:
    return np.concatenate([output.embedding for output in outputs])


def _reason(gate: Gate, ct_slice: CTSlice, framed: FramedSlice, outputs: Outputs) -> str | None:
    """Why the bundle's users would be refused an answer."""
    return gate.judge(framed, outputs.embedding[0], gate.look(ct_slice, framed)).reason
