"""What a trained network says of a slice and of its painted copies, scored against what was painted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.map_scores import Truth, reframe, score_map
from groundglass.evaluation.metrics import THRESHOLD
from groundglass.evaluation.painted_slices import PaintedSlice
from groundglass.evaluation.protocol import Predictions, TrainedRun
from groundglass.imaging.framing import Box

RISE = "_of_rise"
"""Ends the names of scores of the painted copy's map less that of the untouched slice."""


@dataclass(frozen=True)
class Answer:
    """What one output says of a slice and its painted copies.

    Attributes:
        scores: of each copy, by name: those of `map_scores.score_map` for its map and, ending in `RISE`, for
            that map less the untouched slice's; those of `Truth.chance`; ``logit``, ``gain`` (over the
            untouched slice's), ``noticed`` (whether that is above 0) and ``called`` (called COVID).
        twin: of the untouched slice: ``logit`` and ``called``.
    """

    scores: tuple[Mapping[str, float], ...]
    twin: Mapping[str, float]


def ask(run: TrainedRun, piece: PaintedSlice) -> dict[str, Answer]:
    """Ask a network about a slice and its painted copies.

    Returns:
        By output: ``""`` for COVID, and ``opacity`` where the network has that output as well.
    """
    pictures = [piece.pixels, *(painting.pixels for painting in piece.paintings)]
    predictions = run.predict(pictures)
    boxes = [run.framing.frame(pixels).box for pixels in pictures]
    size = int(predictions.framed.shape[-1])
    return {
        name: Answer(tuple(_score(output, piece, boxes, size)), output.verdict(0))
        for name, output in _outputs(predictions)
    }


@dataclass(frozen=True)
class _Output:
    """Logits and probabilities (N,) and maps (N, h, w) of one output."""

    logit: NDArray[np.floating]
    probability: NDArray[np.floating]
    heat: NDArray[np.floating]

    def verdict(self, index: int) -> dict[str, float]:
        called = float(self.probability[index] >= THRESHOLD)
        return {"logit": float(self.logit[index]), "called": called}


def _outputs(predictions: Predictions) -> Iterator[tuple[str, _Output]]:
    yield "", _Output(predictions.logit, predictions.probability, predictions.activation_map)
    # Only some networks have the second output, and only some kinds of runs hand it on.
    logit, probability, heat = (
        getattr(predictions, name, None) for name in ("opacity_logit", "opacity", "opacity_map")
    )
    if logit is not None and probability is not None and heat is not None:
        yield "opacity", _Output(logit, probability, heat)


def _score(
    output: _Output, piece: PaintedSlice, boxes: Sequence[Box], size: int
) -> Iterator[dict[str, float]]:
    twin, twin_heat = output.verdict(0), output.heat[0]
    for index, painting in enumerate(piece.paintings, start=1):
        heat, verdict = output.heat[index], output.verdict(index)
        truth = Truth.of(painting.lesion, piece.lungs, boxes[index], size, heat.shape)
        rise = score_map(heat - reframe(twin_heat, boxes[0], boxes[index]), truth)
        gain = verdict["logit"] - twin["logit"]
        yield {
            **score_map(heat, truth),
            **{f"{name}{RISE}": value for name, value in rise.items()},
            **truth.chance(),
            **verdict,
            "gain": gain,
            "noticed": float(gain > 0),
        }
