"""Paint ground-glass opacity into the lungs of a slice, with its mask as ground truth.

A slice scanned before the disease and the same slice painted differ in nothing but the lesion: no container,
window, scanner or hospital can tell the two apart. The idea is published as label-free segmentation of
COVID-19 lesions (Yao et al., Label-Free Segmentation of COVID-19 Lesions in Lung CT, IEEE TMI 40(10), 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Paint ground glass, denser in its cores, into the lungs of one slice.

    Patches follow a low-pass random field pulled towards the pleura, the back and, at times, one side, as the
    disease prefers (Bernheim et al., Chest CT Findings in COVID-19, Radiology 295(3), 2020). Vessels brighter
    than the lesion stay visible through it, which is what sets ground glass apart from consolidation.

    Args:
        pixels: uint8, shape (H, W), lung darker than tissue.
        lungs: bool, shape (H, W): the lung fields.
        severity: 0 (nothing painted) to 1 (most of the lungs); sets extent and density.
        rng: draws everything random; the same state paints the same lesion.

    Raises:
        ValueError: when ``severity`` lies outside 0..1 or the shapes differ.
    """
    if not 0 <= severity <= 1:
        raise ValueError(f"severity must lie in 0..1, not {severity}")
    if pixels.shape != lungs.shape:
        raise ValueError(f"pixels {pixels.shape} and lungs {lungs.shape} differ in shape")
    height, width = pixels.shape
    scale = min(1.0, _FIELD_SIDE / max(height, width))
    small_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small_lungs = cv2.resize(lungs.astype(np.uint8), small_size, interpolation=cv2.INTER_AREA)
    if severity == 0 or int(small_lungs.sum()) < _FEWEST_PIXELS:
        return Painted(pixels.copy(), np.zeros_like(lungs), np.zeros(pixels.shape, np.float32))
    extent, core = _patches(small_lungs, severity, rng)
    opacity = cv2.resize(extent, (width, height), interpolation=cv2.INTER_LINEAR)
    lung, tissue = _anchors(pixels, lungs)
    # Air in airways and bullae is darker than lung and stays so: an air bronchogram.
    aerated = cv2.GaussianBlur(pixels, (5, 5), 0) >= lung - _AIRWAY_DEPTH * (tissue - lung)
    # Keep the lesion inside the lung without a hard rim along the pleura.
    opacity *= cv2.GaussianBlur((lungs & aerated).astype(np.float32), (3, 3), 0)
    density = _target_density(cv2.resize(core, (width, height)), rng)
    target = lung + density * (tissue - lung)
    painted = pixels + opacity * np.maximum(target - pixels, 0)
    return Painted(np.clip(np.rint(painted), 0, 255).astype(np.uint8), opacity > _MASK_OPACITY, opacity)


def _patches(lungs: NDArray[np.uint8], severity: float, rng: np.random.Generator) -> tuple[Field, Field]:
    """Extent (share of a pixel that is lesion) and relative density of the lesion, both in 0..1."""
    score = _preference(lungs, rng)
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


def _preference(lungs: NDArray[np.uint8], rng: np.random.Generator) -> Field:
    """Where lesions like to grow: a random field plus anatomy."""
    height, width = lungs.shape
    score = smooth_noise(lungs.shape, rng.uniform(3, 9), rng)
    score += rng.uniform(0.2, 0.7) * smooth_noise(lungs.shape, rng.uniform(10, 24), rng)
    depth = cv2.distanceTransform(lungs, cv2.DIST_L2, 3)
    score += rng.uniform(0, 2.2) * np.exp(-depth / (rng.uniform(0.03, 0.10) * width))
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    score += rng.uniform(-0.3, 1.2) * rows
    if rng.random() < 0.35:
        score += rng.uniform(-1.5, 1.5) * columns
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


def _anchors(pixels: Grey, lungs: NDArray[np.bool_]) -> tuple[float, float]:
    """Grey of aerated lung and of soft tissue."""
    lung = float(np.median(pixels[lungs]))
    return lung, max(otsu_anchors(pixels)[1], lung + 1)


def _target_density(core: Field, rng: np.random.Generator) -> Field:
    """Density of a full lesion, 0 aerated lung to 1 soft tissue: grainy, higher in the cores."""
    density = rng.uniform(0.22, 0.55) + rng.uniform(0, 0.45) * core
    grain = smooth_noise((core.shape[0], core.shape[1]), 0.45 * max(core.shape), rng)
    return np.asarray(np.clip(density * (1 + rng.uniform(0.02, 0.22) * grain), 0.05, 1.0), np.float32)
