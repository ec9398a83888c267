"""Paint the opacities of COVID-19 pneumonia, or signs of other diseases, into the lungs of a slice.

A slice scanned before the disease and the same slice painted differ in nothing but the lesion: no file format,
window, scanner or hospital can tell the two apart. The idea is published as label-free segmentation of
COVID-19 lesions (Yao et al., Label-Free Segmentation of COVID-19 Lesions in Lung CT, IEEE TMI 40(10), 2021).
Mimics are there so that a network does not take every shadow for COVID-19.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groundglass.imaging.crop import otsu_anchors
from groundglass.imaging.slice import Grey

Field = NDArray[np.float32]
_Mask = NDArray[np.bool_]

# Fields are smooth: they are drawn on a grid of at most this side and enlarged.
_FIELD_SIDE = 160
# Fewer lung pixels than this, on that grid or in a lung for a mimic, hold nothing that could be seen.
_FEWEST_PIXELS, _FEWEST_PIXELS_MIMIC = 30, 200
# Air this far below the grey of lung, in units of the distance from lung to tissue, is airway.
_AIRWAY_DEPTH = 0.12
# Where more than this share of the pixel is lesion, the mask says lesion.
_MASK_OPACITY = 0.25
# A field that reaches across this share of the lungs' width is both lungs, touching in front of the heart.
_BOTH_LUNGS = 0.7
_RIM = np.ones((5, 5), np.uint8)


class Kind(str, Enum):
    """What COVID-19 pneumonia looks like in the lung window."""

    GROUND_GLASS = "ground-glass"
    CONSOLIDATION = "consolidation"
    CRAZY_PAVING = "crazy-paving"
    MIXED = "mixed"  # ground glass and consolidation


class Mimic(str, Enum):
    """Signs of other diseases (Hansell et al., Fleischner Society: Glossary of Terms for Thoracic Imaging, 2008)."""

    NODULE = "nodule"
    MASS = "mass"
    LOBAR_CONSOLIDATION = "lobar-consolidation"
    EFFUSION = "effusion"
    EMPHYSEMA = "emphysema"
    HONEYCOMBING = "honeycombing"


class Painted(NamedTuple):
    """A painted slice."""

    pixels: Grey  # (H, W)
    mask: NDArray[np.bool_]  # (H, W): True where a lesion was painted


def paint_lesion(pixels: Grey, lungs: NDArray[np.bool_], kind: Kind, severity: float, rng: Generator) -> Painted:
    """Paint what COVID-19 pneumonia looks like into the lungs of one slice.

    Patches follow a low-pass random field pulled towards the pleura, the back and, at times, one side, as the
    disease prefers (Bernheim et al., Chest CT Findings in COVID-19, Radiology 295(3), 2020). Vessels brighter
    than ground glass stay visible through it, which is what sets it apart from consolidation.

    Pixels and lung fields have the shape (H, W), lung is darker than tissue. ``severity``, 0 (nothing painted) to 1
    (most of the lungs), sets extent and density; the same state of ``rng`` paints the same lesion.
    """
    height, width = pixels.shape
    scale = min(1.0, _FIELD_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(lungs.astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    if severity == 0 or int(small.sum()) < _FEWEST_PIXELS:
        return Painted(pixels.copy(), np.zeros_like(lungs))
    opacity, core = (cv2.resize(each, (width, height)) for each in _patches(np.asarray(small), severity, rng))
    lung, tissue = _anchors(pixels, lungs)
    # Air in airways and bullae is darker than lung and stays so: an air bronchogram.
    aerated = cv2.GaussianBlur(pixels, (5, 5), 0) >= lung - _AIRWAY_DEPTH * (tissue - lung)
    # Keep the lesion inside the lung without a hard rim along the pleura.
    opacity *= cv2.GaussianBlur((lungs & aerated).astype(np.float32), (3, 3), 0)
    density, hidden = _density(kind, np.asarray(core, np.float32), rng)
    return _lay_over(pixels, opacity, lung + density * (tissue - lung), hidden)


def paint_mimic(pixels: Grey, lungs: NDArray[np.bool_], mimic: Mimic, rng: Generator) -> Painted:
    """Paint one sign of another disease into the lungs of one slice, simplified to what few hundred pixels show.

    Pixels, lungs and random numbers are those of :func:`paint_lesion`.
    """
    painted = Painted(pixels.copy(), np.zeros_like(lungs))
    fields = _lung_fields(lungs)
    if not fields:
        return painted
    # Both lungs are affected at times where that is common, else the one drawn.
    order = rng.permutation(len(fields))
    both = mimic in _OFTEN_BILATERAL and rng.random() < 0.6
    lung, tissue = _anchors(pixels, lungs)
    for field in (fields[index] for index in (order if both else order[:1])):
        opacity, density, hidden = _PAINTERS[mimic](field, rng)
        inside = field.astype(np.float32)
        if mimic in _SOLID:
            # A little beyond the lung, so that no dark rim is left between a shadow and the chest wall.
            inside = cv2.dilate(inside, _RIM)
        opacity = opacity.astype(np.float32) * cv2.GaussianBlur(inside, (3, 3), 0)
        layer = _lay_over(painted.pixels, opacity, lung + density * (tissue - lung), hidden)
        painted = Painted(layer.pixels, painted.mask | layer.mask)
    return painted


def smooth_noise(shape: tuple[int, ...], cells: float, rng: Generator) -> Field:
    """A smooth random field of zero mean and unit variance, with ``cells`` independent values along the longer side."""
    height, width = shape
    step = max(shape) / max(cells, 2.0)
    grid = (max(2, round(height / step) + 2), max(2, round(width / step) + 2))
    values = rng.standard_normal(grid, dtype=np.float32)
    field = cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def _lay_over(pixels: Grey, opacity: Field, target: Field | np.floating, hidden: Field | float) -> Painted:
    """Blend a lesion over a slice; vessels brighter than the lesion vanish in it as far as ``hidden``, 0..1."""
    rise = target - pixels
    painted = pixels + opacity * np.where(rise > 0, rise, hidden * rise)
    return Painted(np.clip(np.rint(painted), 0, 255).astype(np.uint8), opacity > _MASK_OPACITY)


def _anchors(pixels: Grey, lungs: _Mask) -> tuple[float, float]:
    """Grey of aerated lung and of soft tissue."""
    lung = float(np.median(pixels[lungs]))
    return lung, max(otsu_anchors(pixels)[1], lung + 1)


def _step(distance: NDArray[np.floating], softness: float) -> NDArray[np.floating]:
    """0 below, 1 above, with an edge of that width."""
    return np.asarray(1 / (1 + np.exp(np.clip(-distance / softness, -30, 30))))


def _patches(lungs: NDArray[np.uint8], severity: float, rng: Generator) -> tuple[Field, Field]:
    """Extent (share of a pixel that is lesion) and relative density of the lesion, both in 0..1."""
    height, width = lungs.shape
    # Where lesions like to grow: a random field plus anatomy.
    score = smooth_noise(lungs.shape, rng.uniform(3, 9), rng)
    score += rng.uniform(0.2, 0.7) * smooth_noise(lungs.shape, rng.uniform(10, 24), rng)
    depth = cv2.distanceTransform(lungs, cv2.DIST_L2, 3)
    score += rng.uniform(0, 2.2) * np.exp(-depth / (rng.uniform(0.03, 0.10) * width))
    score += rng.uniform(-0.3, 1.2) * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    if rng.random() < 0.35:
        score += rng.uniform(-1.5, 1.5) * np.linspace(-1, 1, width, dtype=np.float32)
    inside = score[lungs > 0]
    share = np.clip(severity * rng.uniform(0.45, 1.0), 0.01, 0.85)
    edge = np.quantile(inside, 1 - share)
    extent = _step(score - edge, float(inside.std()) * rng.uniform(0.05, 0.3) + 1e-6)
    grain = smooth_noise(lungs.shape, rng.uniform(0.15, 0.5) * max(lungs.shape), rng)
    extent = extent * np.clip(1 - rng.uniform(0.05, 0.35) * np.abs(grain), 0.2, 1)
    # Cores, well above the threshold, are denser than the rim.
    core = np.clip((score - edge) / (float(inside.max()) - edge + 1e-6), 0, 1)
    return extent.astype(np.float32), core.astype(np.float32)


def _density(kind: Kind, core: Field, rng: Generator) -> tuple[Field, Field | float]:
    """Density of a full lesion, 0 aerated lung to 1 soft tissue, and how far it hides vessels."""
    # Ground glass is grainy, and denser in its cores.
    density = rng.uniform(0.22, 0.55) + rng.uniform(0, 0.45) * core
    grain = smooth_noise(core.shape, 0.45 * max(core.shape), rng)
    density = np.clip(density * (1 + rng.uniform(0.02, 0.22) * grain), 0.05, 1.0)
    if kind is Kind.GROUND_GLASS:
        return density, 0.0
    if kind is Kind.CRAZY_PAVING:
        lines = _meshes(core.shape, rng.uniform(22, 40), rng)
        return np.minimum(density + np.float32(rng.uniform(0.3, 0.6)) * lines, 1.0), 0.0
    solid = np.full_like(core, rng.uniform(0.8, 1.0))
    solid *= 1 + 0.05 * smooth_noise(core.shape, 60, rng)
    if kind is Kind.CONSOLIDATION:
        return solid, 1.0
    edge = rng.uniform(0.25, 0.6)
    share = np.asarray(_step(core - edge, rng.uniform(0.03, 0.12)), np.float32)
    return density + share * (solid - density), share


def _meshes(shape: tuple[int, ...], cells: float, rng: Generator) -> Field:
    """Walls between irregular polygons, 1 on a wall and 0 inside a mesh: borders of random Voronoi cells."""
    height, width = shape
    step = max(shape) / cells
    seeds = np.ones(shape, np.uint8)
    count = max(4, round(height * width / step**2))
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    _, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    walls = np.zeros(shape, np.float32)
    walls[:, 1:] = cell[:, 1:] != cell[:, :-1]
    walls[1:] = np.maximum(walls[1:], cell[1:] != cell[:-1])
    return np.asarray(cv2.GaussianBlur(walls, (0, 0), max(0.5, 0.06 * step)), np.float32)


def _lung_fields(lungs: _Mask) -> list[_Mask]:
    """The lung fields, at most two, those too small left out; cut where they are thinnest if they touch."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=4)
    columns = np.flatnonzero(lungs.any(axis=0))
    if len(columns) and stats[1:, cv2.CC_STAT_WIDTH].max() >= _BOTH_LUNGS * (np.ptp(columns) + 1):
        first, last = int(columns[0]), int(columns[-1]) + 1
        third = (last - first) // 3
        middle = lungs[:, first + third : max(last - third, first + third + 1)]
        lungs = lungs.copy()
        lungs[:, first + third + int(np.argmin(middle.sum(axis=0)))] = False
    _, labels, stats, _ = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = np.argsort(-areas, kind="stable")[:2]
    return [labels == index + 1 for index in largest if areas[index] >= _FEWEST_PIXELS_MIMIC]


_Layer = tuple[NDArray[np.floating], Field | np.float32, float]
"""Opacity, density (0 aerated lung to 1 soft tissue), and how far vessels vanish."""


def _nodules(lung: _Mask, rng: Generator) -> _Layer:
    """One to four round shadows of 1 to 5 % of the picture's width."""
    count, width = int(rng.integers(1, 5)), lung.shape[1]
    shadows = [_blob(lung, rng.uniform(0.01, 0.035) * width, 0.12, rng) for _ in range(count)]
    return np.max(shadows, axis=0), np.float32(rng.uniform(0.6, 1.0)), 1.0


def _mass(lung: _Mask, rng: Generator) -> _Layer:
    """One lobulated shadow of soft tissue, more than twice a nodule's size."""
    opacity = _blob(lung, rng.uniform(0.06, 0.14) * lung.shape[1], 0.3, rng)
    return opacity, np.float32(rng.uniform(0.9, 1.05)) + 0.03 * smooth_noise(lung.shape, 40, rng), 1.0


def _lobar(lung: _Mask, rng: Generator) -> _Layer:
    """One side of a nearly straight fissure, filled evenly; branches of air may run through it."""
    rows, columns = _coordinates(lung)
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle) + 0.05 * smooth_noise(lung.shape, 4, rng)
    opacity = _largest(along, lung, rng.uniform(0.25, 0.7), 0.02)
    grain = 0.04 * smooth_noise(lung.shape, 50, rng)
    density = rng.uniform(0.8, 1.0) + grain - rng.uniform(0, 0.9) * _bronchogram(lung, rng)
    return opacity, density, 1.0


def _effusion(lung: _Mask, rng: Generator) -> _Layer:
    """Fluid that has sunk to the back of a lying patient, with a concave surface."""
    rows, columns = _coordinates(lung)
    height = rows + rng.uniform(0.1, 0.5) * np.abs(columns) ** 2
    return _largest(height, lung, rng.uniform(0.12, 0.5), 0.03), np.float32(rng.uniform(0.85, 1.0)), 1.0


def _emphysema(lung: _Mask, rng: Generator) -> _Layer:
    """Holes without walls, darker than the lung around them."""
    holes = smooth_noise(lung.shape, rng.uniform(14, 40), rng)
    score = holes + 0.6 * smooth_noise(lung.shape, rng.uniform(3, 6), rng)
    return _largest(score, lung, rng.uniform(0.2, 0.6), 0.3), np.float32(rng.uniform(-0.35, -0.15)), 0.7


def _honeycomb(lung: _Mask, rng: Generator) -> _Layer:
    """Cysts with walls in rows below the pleura, lines of fibrosis between them."""
    depth = cv2.distanceTransform(lung.astype(np.uint8), cv2.DIST_L2, 3) / lung.shape[1]
    rows, _ = _coordinates(lung)
    score = -depth / rng.uniform(0.03, 0.08) + rng.uniform(0.2, 0.8) * rows
    score += 0.4 * smooth_noise(lung.shape, 8, rng)
    opacity = _largest(score, lung, rng.uniform(0.2, 0.55), 0.15)
    walls = _meshes(lung.shape, rng.uniform(24, 44), rng)
    return opacity, rng.uniform(-0.2, 0.0) + rng.uniform(0.7, 1.1) * walls, 0.5


def _largest(score: NDArray[np.floating], lung: _Mask, share: float, softness: float) -> NDArray[np.floating]:
    """1 in that share of the lung in which ``score`` is largest."""
    return _step(score - np.quantile(score[lung], 1 - share), softness)


def _bronchogram(lung: _Mask, rng: Generator) -> Field:
    """Air-filled bronchi, 1 inside them: a few branches that start near the middle of the picture."""
    canvas = np.zeros(lung.shape, np.uint8)
    inside = np.argwhere(lung)
    hilum = inside[np.argmin(np.linalg.norm(inside - np.array(lung.shape) / 2, axis=1))]
    for _ in range(int(rng.integers(2, 6))):
        end = inside[rng.integers(len(inside))]
        steps = np.linspace(0, 1, 12)[:, None]
        path = hilum + steps * (end - hilum) + np.cumsum(rng.normal(0, 0.008, (12, 2)), 0) * lung.shape[1]
        points = np.rint(path[int(rng.integers(2, 6)) :, ::-1]).astype(np.int32)
        cv2.polylines(canvas, [points], False, 255, max(1, round(0.008 * lung.shape[1])), cv2.LINE_AA)
    return np.asarray(canvas / np.float32(255), np.float32)


def _blob(lung: _Mask, radius: float, ragged: float, rng: Generator) -> NDArray[np.floating]:
    """A round shadow about a point of the lung whose radius wavers by ``ragged``; opacity 0..1."""
    inside = np.argwhere(lung)
    row, column = inside[rng.integers(len(inside))]
    rows, columns = np.indices(lung.shape, dtype=np.float32)
    angle = np.arctan2(rows - row, columns - column)
    outline = np.ones(lung.shape, np.float32)
    for harmonic in range(2, 7):
        amplitude, phase = ragged / harmonic * rng.standard_normal(), rng.uniform(0, 2 * np.pi)
        outline += amplitude * np.cos(harmonic * angle + phase)
    distance = np.hypot(rows - row, columns - column)
    return _step(radius * np.maximum(outline, 0.3) - distance, max(0.6, 0.06 * radius))


def _coordinates(lung: _Mask) -> tuple[Field, Field]:
    """Row and column of each pixel within the lung's bounding box, -1..1 inside it."""
    scaled = []
    for axis in (0, 1):
        places = np.flatnonzero(lung.any(axis=1 - axis))
        first, last = float(places[0]), float(places[-1])
        along = np.arange(lung.shape[axis], dtype=np.float32)
        scaled.append(np.expand_dims(2 * (along - first) / max(last - first, 1) - 1, 1 - axis))
    return scaled[0], scaled[1]


_PAINTERS: Mapping[Mimic, Callable[[_Mask, Generator], _Layer]] = {
    Mimic.NODULE: _nodules,
    Mimic.MASS: _mass,
    Mimic.LOBAR_CONSOLIDATION: _lobar,
    Mimic.EFFUSION: _effusion,
    Mimic.EMPHYSEMA: _emphysema,
    Mimic.HONEYCOMBING: _honeycomb,
}
_OFTEN_BILATERAL = {Mimic.NODULE, Mimic.EFFUSION, Mimic.EMPHYSEMA, Mimic.HONEYCOMBING}
_SOLID = {Mimic.NODULE, Mimic.MASS, Mimic.LOBAR_CONSOLIDATION, Mimic.EFFUSION}
