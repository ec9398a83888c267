"""Paint the opacities of COVID-19 pneumonia into the lungs of a slice, with their mask as ground truth.

A slice scanned before the disease and the same slice painted differ in nothing but the lesion: no container,
window, scanner or hospital can tell the two apart. The idea is published as label-free segmentation of
COVID-19 lesions (Yao et al., Label-Free Segmentation of COVID-19 Lesions in Lung CT, IEEE TMI 40(10), 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import otsu_anchors
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
    disease prefers (Bernheim et al., Chest CT Findings in COVID-19, Radiology 295(3), 2020). Vessels brighter
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
