"""Paint what is no COVID-19 pneumonia into the lungs of a slice: a network must not take every shadow for it.

Each decoy is one sign of another disease (Hansell et al., Fleischner Society: Glossary of Terms for Thoracic
Imaging, Radiology 246(3), 2008), simplified to what a slice of a few hundred pixels shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.lesions import (
    Field,
    Painted,
    anchors,
    lay_over,
    meshes,
    smooth_noise,
    untouched,
)
from groundglass.imaging.slice import Grey

# Fewer lung pixels than this hold nothing that could be seen.
_FEWEST_PIXELS = 200
# A field that reaches across this share of the lungs' width is both lungs, touching in front of the heart.
_BOTH_LUNGS = 0.7
_RIM = np.ones((5, 5), np.uint8)


class Decoy(str, Enum):
    """Signs of other diseases."""

    NODULE = "nodule"
    MASS = "mass"
    LOBAR_CONSOLIDATION = "lobar-consolidation"
    EFFUSION = "effusion"
    EMPHYSEMA = "emphysema"
    HONEYCOMBING = "honeycombing"


def paint_decoy(pixels: Grey, lungs: NDArray[np.bool_], decoy: Decoy, rng: np.random.Generator) -> Painted:
    """Paint one sign of another disease into the lungs of one slice.

    Args:
        pixels: uint8, shape (H, W), lung darker than tissue.
        lungs: bool, shape (H, W): the lung fields.
        decoy: which sign.
        rng: draws everything random; the same state paints the same.

    Raises:
        ValueError: when the shapes differ.
    """
    if pixels.shape != lungs.shape:
        raise ValueError(f"pixels {pixels.shape} and lungs {lungs.shape} differ in shape")
    fields = _lung_fields(lungs)
    if not fields:
        return untouched(pixels)
    # Both lungs are affected at times where that is common, else the one drawn.
    order = rng.permutation(len(fields))
    both = decoy in _OFTEN_BILATERAL and rng.random() < 0.6
    chosen = [fields[index] for index in (order if both else order[:1])]
    lung, tissue = anchors(pixels, lungs)
    painted = untouched(pixels)
    for each in chosen:
        opacity, density, hidden = _PAINTERS[decoy](each, rng)
        inside = each.astype(np.float32)
        if decoy in _SOLID:
            # A little beyond the lung, so that no dark rim is left between a shadow and the chest wall.
            inside = cv2.dilate(inside, _RIM)
        opacity *= cv2.GaussianBlur(inside, (3, 3), 0)
        layer = lay_over(painted.pixels, opacity, lung + density * (tissue - lung), hidden)
        together = np.maximum(painted.opacity, layer.opacity)
        painted = Painted(layer.pixels, painted.mask | layer.mask, together)
    return painted


def _lung_fields(lungs: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The lung fields, at most two, those too small left out."""
    separate = _parted(lungs)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(separate.astype(np.uint8), connectivity=4)
    largest = sorted(range(1, count), key=lambda index: -int(stats[index, cv2.CC_STAT_AREA]))[:2]
    return [labels == index for index in largest if stats[index, cv2.CC_STAT_AREA] >= _FEWEST_PIXELS]


def _parted(lungs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The lungs, cut where they are thinnest in the middle if they are one field."""
    columns = np.flatnonzero(lungs.any(axis=0))
    if not len(columns):
        return lungs
    first, last = int(columns[0]), int(columns[-1]) + 1
    count, _, stats, _ = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=4)
    if count < 2 or stats[1:, cv2.CC_STAT_WIDTH].max() < _BOTH_LUNGS * (last - first):
        return lungs
    third = (last - first) // 3
    middle = slice(first + third, max(last - third, first + third + 1))
    parted = lungs.copy()
    parted[:, middle.start + int(np.argmin(lungs[:, middle].sum(axis=0)))] = False
    return parted


_Layer = tuple[Field, Field, float]
"""Opacity, density (0 aerated lung to 1 soft tissue), and how far vessels vanish."""


def _nodules(lung: NDArray[np.bool_], rng: np.random.Generator) -> _Layer:
    """One to four round shadows of 1 to 5 % of the picture's width."""
    opacity = np.zeros(lung.shape, np.float32)
    for _ in range(int(rng.integers(1, 5))):
        opacity = np.maximum(opacity, _blob(lung, rng.uniform(0.01, 0.035) * lung.shape[1], 0.12, rng))
    return opacity, np.full(lung.shape, rng.uniform(0.6, 1.0), np.float32), 1.0


def _mass(lung: NDArray[np.bool_], rng: np.random.Generator) -> _Layer:
    """One lobulated shadow of soft tissue, more than twice a nodule's size."""
    opacity = _blob(lung, rng.uniform(0.06, 0.14) * lung.shape[1], 0.3, rng)
    density = np.float32(rng.uniform(0.9, 1.05)) + 0.03 * smooth_noise(_shape(lung), 40, rng)
    return opacity, density, 1.0


def _lobar(lung: NDArray[np.bool_], rng: np.random.Generator) -> _Layer:
    """One side of a nearly straight fissure, filled evenly; branches of air may run through it."""
    rows, columns = _coordinates(lung)
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle) + 0.05 * smooth_noise(_shape(lung), 4, rng)
    edge = np.quantile(along[lung], 1 - rng.uniform(0.25, 0.7))
    opacity = _step(along - edge, 0.02)
    grain = 0.04 * smooth_noise(_shape(lung), 50, rng)
    density = rng.uniform(0.8, 1.0) + grain - rng.uniform(0, 0.9) * _bronchogram(lung, rng)
    return opacity, density.astype(np.float32), 1.0


def _effusion(lung: NDArray[np.bool_], rng: np.random.Generator) -> _Layer:
    """Fluid that has sunk to the back of a lying patient, with a concave surface."""
    rows, columns = _coordinates(lung)
    meniscus = rng.uniform(0.1, 0.5) * np.abs(columns) ** 2
    height = rows + meniscus
    edge = np.quantile(height[lung], 1 - rng.uniform(0.12, 0.5))
    return _step(height - edge, 0.03), np.full(lung.shape, rng.uniform(0.85, 1.0), np.float32), 1.0


def _emphysema(lung: NDArray[np.bool_], rng: np.random.Generator) -> _Layer:
    """Holes without walls, darker than the lung around them."""
    holes = smooth_noise(_shape(lung), rng.uniform(14, 40), rng)
    patchy = smooth_noise(_shape(lung), rng.uniform(3, 6), rng)
    score = holes + 0.6 * patchy
    opacity = _step(score - np.quantile(score[lung], 1 - rng.uniform(0.2, 0.6)), 0.3)
    return opacity, np.full(lung.shape, rng.uniform(-0.35, -0.15), np.float32), 0.7


def _honeycomb(lung: NDArray[np.bool_], rng: np.random.Generator) -> _Layer:
    """Cysts with walls in rows below the pleura, lines of fibrosis between them."""
    depth = cv2.distanceTransform(lung.astype(np.uint8), cv2.DIST_L2, 3) / lung.shape[1]
    rows, _ = _coordinates(lung)
    score = -depth / rng.uniform(0.03, 0.08) + rng.uniform(0.2, 0.8) * rows
    score += 0.4 * smooth_noise(_shape(lung), 8, rng)
    opacity = _step(score - np.quantile(score[lung], 1 - rng.uniform(0.2, 0.55)), 0.15)
    walls = meshes(_shape(lung), rng.uniform(24, 44), rng)
    density = rng.uniform(-0.2, 0.0) + rng.uniform(0.7, 1.1) * walls
    return opacity, density.astype(np.float32), 0.5


def _bronchogram(lung: NDArray[np.bool_], rng: np.random.Generator) -> Field:
    """Air-filled bronchi, 1 inside them: a few branches that start near the middle of the picture."""
    canvas = np.zeros(lung.shape, np.uint8)
    inside = np.argwhere(lung)
    centre = np.array(lung.shape) / 2
    hilum = inside[np.argmin(np.linalg.norm(inside - centre, axis=1))]
    for _ in range(int(rng.integers(2, 6))):
        end = inside[rng.integers(len(inside))]
        steps = np.linspace(0, 1, 12)[:, None]
        path = hilum + steps * (end - hilum) + np.cumsum(rng.normal(0, 0.008, (12, 2)), 0) * lung.shape[1]
        points = np.rint(path[int(rng.integers(2, 6)) :, ::-1]).astype(np.int32)
        cv2.polylines(canvas, [points], False, 255, max(1, round(0.008 * lung.shape[1])), cv2.LINE_AA)
    return np.asarray(canvas / np.float32(255), np.float32)


def _blob(lung: NDArray[np.bool_], radius: float, ragged: float, rng: np.random.Generator) -> Field:
    """A round shadow about a point of the lung whose radius wavers by ``ragged``; opacity 0..1."""
    inside = np.argwhere(lung)
    row, column = inside[rng.integers(len(inside))]
    rows, columns = np.indices(lung.shape, dtype=np.float32)
    angle = np.arctan2(rows - row, columns - column)
    outline = np.ones(lung.shape, np.float32)
    for harmonic in range(2, 7):
        outline += (
            ragged / harmonic * rng.standard_normal() * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
        )
    distance = np.hypot(rows - row, columns - column)
    return _step(radius * np.maximum(outline, 0.3) - distance, max(0.6, 0.06 * radius))


def _coordinates(lung: NDArray[np.bool_]) -> tuple[Field, Field]:
    """Row and column of each pixel within the lung's bounding box, -1..1 inside it."""
    rows, columns = np.flatnonzero(lung.any(axis=1)), np.flatnonzero(lung.any(axis=0))
    down, across = np.mgrid[: lung.shape[0], : lung.shape[1]].astype(np.float32)
    return _scaled(down, rows), _scaled(across, columns)


def _scaled(values: Field, extent: NDArray[np.intp]) -> Field:
    first, last = float(extent[0]), float(extent[-1])
    return np.asarray(2 * (values - first) / max(last - first, 1) - 1, np.float32)


def _step(distance: NDArray[np.floating], softness: float) -> Field:
    """0 below, 1 above, with an edge of that width."""
    return np.asarray(1 / (1 + np.exp(np.clip(-distance / softness, -30, 30))), np.float32)


def _shape(lung: NDArray[np.bool_]) -> tuple[int, int]:
    return lung.shape[0], lung.shape[1]


_PAINTERS: Mapping[Decoy, Callable[[NDArray[np.bool_], np.random.Generator], _Layer]] = {
    Decoy.NODULE: _nodules,
    Decoy.MASS: _mass,
    Decoy.LOBAR_CONSOLIDATION: _lobar,
    Decoy.EFFUSION: _effusion,
    Decoy.EMPHYSEMA: _emphysema,
    Decoy.HONEYCOMBING: _honeycomb,
}
_OFTEN_BILATERAL = {Decoy.NODULE, Decoy.EFFUSION, Decoy.EMPHYSEMA, Decoy.HONEYCOMBING}
_SOLID = {Decoy.NODULE, Decoy.MASS, Decoy.LOBAR_CONSOLIDATION, Decoy.EFFUSION}
