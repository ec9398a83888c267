"""Paint what is no COVID-19 pneumonia into the lungs of a slice: a network must not take every shadow for it.

Each mimic is one sign of another disease (Hansell et al., Fleischner Society: Glossary of Terms for Thoracic
Imaging, Radiology 246(3), 2008), simplified to what a slice of a few hundred pixels shows.

Paint the opacities of COVID-19 pneumonia into the lungs of a slice, with their mask as ground truth.

A slice scanned before the disease and the same slice painted differ in nothing but the lesion: no file_format,
window, scanner or hospital can tell the two apart. The idea is published as label-free segmentation of
COVID-19 lesions (Yao et al., Label-Free Segmentation of COVID-19 Lesions in Lung CT, IEEE TMI 40(10), 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import otsu_anchors
from groundglass.imaging.slice import Grey

Field = NDArray[np.float32]

# Fields are smooth: they are drawn on a grid of at most this side and enlarged.
_FIELD_SIDE = 160
# Fewer lung pixels than this on that grid hold no lesion that could be seen.
_FEWEST_PIXELS = 30
# Air this far below the grey of lung, in units of the distance from lung to tissue, is airway.
_AIRWAY_DEPTH = 0.12
# Where more than this share of the pixel is lesion, the mask says lesion.
_MASK_OPACITY = 0.25


class Kind(str, Enum):
    """What COVID-19 pneumonia looks like in the lung window."""

    GROUND_GLASS = "ground-glass"
    CONSOLIDATION = "consolidation"
    CRAZY_PAVING = "crazy-paving"
    MIXED = "mixed"


class Distribution(str, Enum):
    """Where its patches lie."""

    PERIPHERAL = "peripheral"
    BASAL = "basal"
    BILATERAL = "bilateral"
    UNILATERAL = "unilateral"
    DIFFUSE = "diffuse"


@dataclass(frozen=True)
class Pull:
    """How strongly anatomy draws patches, in units of the random field's spread.

    Attributes:
        pleura: range of the pull towards it.
        back: range of the pull towards the patient's back, the lower edge of the picture.
        one_side: chance of a pull towards one side.
        least_one_side: least strength of that pull.
    """

    pleura: tuple[float, float] = (0.0, 2.2)
    back: tuple[float, float] = (-0.3, 1.2)
    one_side: float = 0.35
    least_one_side: float = 0.0


_PULLS = {
    None: Pull(),
    Distribution.PERIPHERAL: Pull(pleura=(1.6, 3.2)),
    Distribution.BASAL: Pull(back=(1.2, 2.4)),
    Distribution.BILATERAL: Pull(one_side=0.0),
    Distribution.UNILATERAL: Pull(one_side=1.0, least_one_side=1.5),
    Distribution.DIFFUSE: Pull(pleura=(0.0, 0.3), back=(-0.2, 0.2), one_side=0.0),
}


@dataclass(frozen=True)
class Painted:
    """A painted slice.

    Attributes:
        pixels: uint8, shape (H, W).
        mask: bool, shape (H, W): True where a lesion was painted.
        opacity: float32, shape (H, W), 0..1: how much of each pixel is lesion.
    """

    pixels: Grey
    mask: NDArray[np.bool_]
    opacity: Field


def paint_ground_glass(
    pixels: Grey, lungs: NDArray[np.bool_], severity: float, rng: np.random.Generator
) -> Painted:
    """Paint ground glass, denser in its cores, into the lungs of one slice; see :func:`paint_lesion`."""
    return paint_lesion(pixels, lungs, Kind.GROUND_GLASS, severity, rng)


def paint_lesion(
    pixels: Grey,
    lungs: NDArray[np.bool_],
    kind: Kind,
    severity: float,
    rng: np.random.Generator,
    distribution: Distribution | None = None,
) -> Painted:
    """Paint what COVID-19 pneumonia looks like into the lungs of one slice.

    Patches follow a low-pass random field pulled towards the pleura, the back and, at times, one side, as the
    disease prefers (Bernheim et al., Chest CT Predictions in COVID-19, Radiology 295(3), 2020). Vessels brighter
    than ground glass stay visible through it, which is what sets it apart from consolidation.

    Args:
        pixels: uint8, shape (H, W), lung darker than tissue.
        lungs: bool, shape (H, W): the lung fields.
        kind: ground glass, consolidation, crazy paving, or both of the first.
        severity: 0 (nothing painted) to 1 (most of the lungs); sets extent and density.
        rng: draws everything random; the same state paints the same lesion.
        distribution: where the patches lie; drawn freely between all of them where None.

    Raises:
        ValueError: when ``severity`` lies outside 0..1 or the shapes differ.
    """
    if not 0 <= severity <= 1:
        raise ValueError(f"severity must lie in 0..1, not {severity}")
    small_lungs = small_copy(pixels, lungs)
    if severity == 0 or small_lungs is None:
        return untouched(pixels)
    extent, core = _patches(small_lungs, severity, rng, _PULLS[distribution])
    height, width = pixels.shape
    opacity = cv2.resize(extent, (width, height), interpolation=cv2.INTER_LINEAR)
    core = cv2.resize(core, (width, height))
    lung, tissue = anchors(pixels, lungs)
    # Air in airways and bullae is darker than lung and stays so: an air bronchogram.
    aerated = cv2.GaussianBlur(pixels, (5, 5), 0) >= lung - _AIRWAY_DEPTH * (tissue - lung)
    # Keep the lesion inside the lung without a hard rim along the pleura.
    opacity *= cv2.GaussianBlur((lungs & aerated).astype(np.float32), (3, 3), 0)
    density, hidden = _density(kind, core, rng)
    return lay_over(pixels, opacity, lung + density * (tissue - lung), hidden)


def lay_over(pixels: Grey, opacity: Field, target: Field, hidden: Field | float) -> Painted:
    """Blend a lesion over a slice.

    Args:
        pixels: uint8, shape (H, W).
        opacity: how much of each pixel is lesion, 0..1, shape (H, W).
        target: grey of the lesion, shape (H, W).
        hidden: how far vessels brighter than the lesion vanish in it, 0..1.
    """
    rise = target - pixels
    painted = pixels + opacity * np.where(rise > 0, rise, hidden * rise)
    return Painted(np.clip(np.rint(painted), 0, 255).astype(np.uint8), opacity > _MASK_OPACITY, opacity)


def untouched(pixels: Grey) -> Painted:
    """A slice in which nothing was painted."""
    return Painted(pixels.copy(), np.zeros(pixels.shape, np.bool_), np.zeros(pixels.shape, np.float32))


def small_copy(pixels: Grey, lungs: NDArray[np.bool_]) -> NDArray[np.uint8] | None:
    """The lung fields on the grid that random fields are drawn on; None where too little lung is in view.

    Raises:
        ValueError: when the shapes differ.
    """
    if pixels.shape != lungs.shape:
        raise ValueError(f"pixels {pixels.shape} and lungs {lungs.shape} differ in shape")
    height, width = pixels.shape
    scale = min(1.0, _FIELD_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(lungs.astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    return None if int(small.sum()) < _FEWEST_PIXELS else np.asarray(small, np.uint8)


def _patches(
    lungs: NDArray[np.uint8], severity: float, rng: np.random.Generator, pull: Pull
) -> tuple[Field, Field]:
    """Extent (share of a pixel that is lesion) and relative density of the lesion, both in 0..1."""
    score = _preference(lungs, rng, pull)
    inside = score[lungs > 0]
    share = np.clip(severity * rng.uniform(0.45, 1.0), 0.01, 0.85)
    edge = np.quantile(inside, 1 - share)
    softness = float(inside.std()) * rng.uniform(0.05, 0.3) + 1e-6
    extent = 1 / (1 + np.exp(np.clip((edge - score) / softness, -30, 30)))
    grain = smooth_noise(lungs.shape, rng.uniform(0.15, 0.5) * max(lungs.shape), rng)
    extent = extent * np.clip(1 - rng.uniform(0.05, 0.35) * np.abs(grain), 0.2, 1)
    # Cores, well above the threshold, are denser than the rim.
    core = np.clip((score - edge) / (float(inside.max()) - edge + 1e-6), 0, 1)
    return extent.astype(np.float32), core.astype(np.float32)


def _preference(lungs: NDArray[np.uint8], rng: np.random.Generator, pull: Pull) -> Field:
    """Where lesions like to grow: a random field plus anatomy."""
    height, width = lungs.shape
    score = smooth_noise(lungs.shape, rng.uniform(3, 9), rng)
    score += rng.uniform(0.2, 0.7) * smooth_noise(lungs.shape, rng.uniform(10, 24), rng)
    depth = cv2.distanceTransform(lungs, cv2.DIST_L2, 3)
    score += rng.uniform(*pull.pleura) * np.exp(-depth / (rng.uniform(0.03, 0.10) * width))
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    score += rng.uniform(*pull.back) * rows
    if rng.random() < pull.one_side:
        strength = rng.uniform(-1.5, 1.5)
        score += (strength + np.copysign(pull.least_one_side, strength)) * columns
    return np.asarray(score, np.float32)


def smooth_noise(shape: tuple[int, int], cells: float, rng: np.random.Generator) -> Field:
    """A smooth random field of zero mean and unit variance.

    Args:
        shape: rows and columns.
        cells: number of independent values along the longer side.
        rng: source of randomness.
    """
    step = max(shape) / max(cells, 2.0)
    grid = (max(2, round(shape[0] / step) + 2), max(2, round(shape[1] / step) + 2))
    field = cv2.resize(
        rng.standard_normal(grid, dtype=np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def anchors(pixels: Grey, lungs: NDArray[np.bool_]) -> tuple[float, float]:
    """Grey of aerated lung and of soft tissue."""
    lung = float(np.median(pixels[lungs]))
    return lung, max(otsu_anchors(pixels)[1], lung + 1)


def _ground_glass(core: Field, rng: np.random.Generator) -> Field:
    """Density of ground glass, 0 aerated lung to 1 soft tissue: grainy, higher in the cores."""
    density = rng.uniform(0.22, 0.55) + rng.uniform(0, 0.45) * core
    grain = smooth_noise((core.shape[0], core.shape[1]), 0.45 * max(core.shape), rng)
    return np.asarray(np.clip(density * (1 + rng.uniform(0.02, 0.22) * grain), 0.05, 1.0), np.float32)


def _density(kind: Kind, core: Field, rng: np.random.Generator) -> tuple[Field, Field | float]:
    """Density of a full lesion, 0 aerated lung to 1 soft tissue, and how far it hides vessels."""
    density = _ground_glass(core, rng)
    if kind is Kind.GROUND_GLASS:
        return density, 0.0
    if kind is Kind.CRAZY_PAVING:
        lines = meshes((core.shape[0], core.shape[1]), rng.uniform(22, 40), rng)
        return np.minimum(density + np.float32(rng.uniform(0.3, 0.6)) * lines, 1.0), 0.0
    solid = np.full_like(core, rng.uniform(0.8, 1.0))
    solid *= 1 + 0.05 * smooth_noise((core.shape[0], core.shape[1]), 60, rng)
    if kind is Kind.CONSOLIDATION:
        return solid, 1.0
    edge, width = rng.uniform(0.25, 0.6), rng.uniform(0.03, 0.12)
    share = np.asarray(1 / (1 + np.exp(np.clip((edge - core) / width, -30, 30))), np.float32)
    return density + share * (solid - density), share


def meshes(shape: tuple[int, int], cells: float, rng: np.random.Generator) -> Field:
    """Walls between irregular polygons, 1 on a wall and 0 inside a mesh: borders of random Voronoi cells.

    Args:
        shape: rows and columns.
        cells: meshes along the longer side.
        rng: source of randomness.
    """
    step = max(shape) / cells
    seeds = np.ones(shape, np.uint8)
    count = max(4, round(shape[0] * shape[1] / step**2))
    seeds[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = 0
    _, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    walls = np.zeros(shape, np.float32)
    walls[:, 1:] = cell[:, 1:] != cell[:, :-1]
    walls[1:] = np.maximum(walls[1:], cell[1:] != cell[:-1])
    return np.asarray(cv2.GaussianBlur(walls, (0, 0), max(0.5, 0.06 * step)), np.float32)


# Fewer lung pixels than this hold nothing that could be seen.
_FEWEST_PIXELS_MIMICS = 200
# A field that reaches across this share of the lungs' width is both lungs, touching in front of the heart.
_BOTH_LUNGS = 0.7
_RIM = np.ones((5, 5), np.uint8)


class Mimic(str, Enum):
    """Signs of other diseases."""

    NODULE = "nodule"
    MASS = "mass"
    LOBAR_CONSOLIDATION = "lobar-consolidation"
    EFFUSION = "effusion"
    EMPHYSEMA = "emphysema"
    HONEYCOMBING = "honeycombing"


def paint_mimic(pixels: Grey, lungs: NDArray[np.bool_], mimic: Mimic, rng: np.random.Generator) -> Painted:
    """Paint one sign of another disease into the lungs of one slice.

    Args:
        pixels: uint8, shape (H, W), lung darker than tissue.
        lungs: bool, shape (H, W): the lung fields.
        mimic: which sign.
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
    both = mimic in _OFTEN_BILATERAL and rng.random() < 0.6
    chosen = [fields[index] for index in (order if both else order[:1])]
    lung, tissue = anchors(pixels, lungs)
    painted = untouched(pixels)
    for each in chosen:
        opacity, density, hidden = _PAINTERS[mimic](each, rng)
        inside = each.astype(np.float32)
        if mimic in _SOLID:
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
    return [labels == index for index in largest if stats[index, cv2.CC_STAT_AREA] >= _FEWEST_PIXELS_MIMICS]


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


_PAINTERS: Mapping[Mimic, Callable[[NDArray[np.bool_], np.random.Generator], _Layer]] = {
    Mimic.NODULE: _nodules,
    Mimic.MASS: _mass,
    Mimic.LOBAR_CONSOLIDATION: _lobar,
    Mimic.EFFUSION: _effusion,
    Mimic.EMPHYSEMA: _emphysema,
    Mimic.HONEYCOMBING: _honeycomb,
}
_OFTEN_BILATERAL = {Mimic.NODULE, Mimic.EFFUSION, Mimic.EMPHYSEMA, Mimic.HONEYCOMBING}
_SOLID = {Mimic.NODULE, Mimic.MASS, Mimic.LOBAR_CONSOLIDATION, Mimic.EFFUSION}
