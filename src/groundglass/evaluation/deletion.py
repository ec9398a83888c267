"""Deletion: does the logit fall when what the activation map calls hottest is removed?

The framed slice is divided into the cells of the activation map. The hottest fifth of them is removed, and,
for comparison, as many cells drawn at random, many times, and the coldest fifth. If the map tells what the
logit rests on, removing the hottest cells must lower it more than removing random ones (the idea: Samek et
al., Evaluating the visualization of what a deep neural network has learned, IEEE TNNLS 28(11), 2017).

To remove means to paint over, and every paint says something: a flat grey is itself foreign to lungs. So
two paints are measured, the mean grey of what remains, and the slice blurred until only coarse grey is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.intervals import resample_patients
from groundglass.evaluation.proportion import Proportion
from groundglass.imaging.slice import Grey
from groundglass.inference.bundle import Bundle

SHARE = 0.2
"""Of the cells that is removed."""

DRAWS = 30
"""Random choices of cells per slice."""

RESAMPLES = 2000
_BATCH = 16

Paint = Callable[[Grey, NDArray[np.bool_]], Grey]


@dataclass(frozen=True)
class Mean:
    """A mean over slices with a 95 % percentile bootstrap interval over patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Deletion:
    """What one paint measured.

    Attributes:
        paint: what removed cells were painted with.
        slices: COVID slices measured.
        patients: whose they are.
        cells: of the activation map.
        removed: cells removed.
        hottest: by how much the logit falls without the hottest cells.
        random: without random cells, the mean of `DRAWS` choices for each slice.
        coldest: without the coldest cells.
        difference: hottest less random, slice by slice.
        beaten: slices in which the fall without the hottest exceeds the mean fall without random cells.
        beaten_most: slices in which it exceeds that of 95 % of the random choices.
        seed: of the random choices and the bootstrap.
    """

    paint: str
    slices: int
    patients: int
    cells: int
    removed: int
    hottest: Mean
    random: Mean
    coldest: Mean
    difference: Mean
    beaten: Proportion
    beaten_most: Proportion
    seed: int


def paint_mean(framed: Grey, removed: NDArray[np.bool_]) -> Grey:
    """Paint with the mean grey of what remains."""
    painted = framed.copy()
    painted[removed] = round(float(framed[~removed].mean()))
    return painted


def paint_blurred(framed: Grey, removed: NDArray[np.bool_]) -> Grey:
    """Paint with the slice blurred by a tenth of its side."""
    blurred = np.asarray(cv2.GaussianBlur(framed, (0, 0), framed.shape[0] / 10), np.uint8)
    return np.where(removed, blurred, framed)


PAINTS: Mapping[str, Paint] = {
    "mean grey of the rest": paint_mean,
    "the slice, blurred": paint_blurred,
}


def deletion(
    bundle: Bundle, slices: Sequence[Grey], patient: NDArray[np.str_], paint: str, seed: int = 0
) -> Deletion:
    """Measure one paint.

    Args:
        bundle: to be measured.
        slices: COVID slices, uint8, shape (H, W) each.
        patient: whose they are, shape (N,).
        paint: a key of `PAINTS`.
        seed: of the random choices and the bootstrap.
    """
    framing = bundle.framing
    framed = np.stack([framing.frame(pixels).pixels for pixels in slices])
    falls, cells, count = _falls(bundle, framed, PAINTS[paint], seed)
    hottest, coldest, drawn = falls[:, 0], falls[:, 1], falls[:, 2:]
    expected = drawn.mean(axis=1)
    member = np.unique(patient, return_inverse=True)[1]
    return Deletion(
        paint,
        len(slices),
        int(member.max()) + 1,
        cells,
        count,
        _mean(hottest, member, seed),
        _mean(expected, member, seed),
        _mean(coldest, member, seed),
        _mean(hottest - expected, member, seed),
        Proportion.of(hottest > expected),
        Proportion.of(hottest > np.quantile(drawn, 0.95, axis=1)),
        seed,
    )


def _falls(
    bundle: Bundle, framed: NDArray[np.uint8], paint: Paint, seed: int
) -> tuple[NDArray[np.float64], int, int]:
    """By how much each slice's logit falls, shape (N, 2 + `DRAWS`): hottest, coldest, random choices."""
    engine, framing = bundle.engine(), bundle.framing
    rng = np.random.default_rng(seed)
    falls, cells, count = [], 0, 0
    for pixels in framed:
        outputs = engine.run(framing.normalise(pixels[None]))
        heat = outputs.activation_map[0]
        cells, count = heat.size, max(1, round(SHARE * heat.size))
        order = np.argsort(heat.ravel(), kind="stable")
        chosen = [order[-count:], order[:count], *(rng.permutation(cells)[:count] for _ in range(DRAWS))]
        altered = np.stack([paint(pixels, _removed(heat.shape, each, pixels.shape)) for each in chosen])
        logits = [
            engine.run(framing.normalise(altered[start : start + _BATCH])).logit
            for start in range(0, len(altered), _BATCH)
        ]
        falls.append(float(outputs.logit[0]) - np.concatenate(logits).astype(np.float64))
    return np.stack(falls), cells, count


def _removed(grid: tuple[int, ...], chosen: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels of the chosen cells."""
    cells = np.zeros(grid, np.uint8)
    cells.ravel()[chosen] = 1
    size = (shape[1], shape[0])
    return np.asarray(cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST), np.bool_)


def _mean(values: NDArray[np.float64], member: NDArray[np.intp], seed: int) -> Mean:
    draws = [weights @ values / weights.sum(axis=1) for weights in resample_patients(member, RESAMPLES, seed)]
    low, high = np.percentile(np.concatenate(draws), [2.5, 97.5])
    return Mean(float(values.mean()), float(low), float(high))
