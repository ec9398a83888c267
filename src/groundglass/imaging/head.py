"""Invented axial slices of the head: scalp, skull, brain with ventricles, sinuses lower down."""

from __future__ import annotations

import numpy as np

from groundglass.imaging.canvas import Canvas, ellipse
from groundglass.imaging.lesions import smooth_noise
from groundglass.imaging.organs import CORTEX, FAT, FLUID, GAS, MUSCLE
from groundglass.imaging.slice import Hounsfield

_GREY_MATTER, _WHITE_MATTER = 38, 29


def scan_head(rng: np.random.Generator, level: float | None = None, size: int = 512) -> Hounsfield:
    """Invent a head and scan one slice.

    Args:
        rng: draws everything; the same state gives the same slice.
        level: 0 vertex to 1 base of the skull, where sinuses hold air; drawn when None.
        size: pixels along each side.

    Returns:
        float32, shape (size, size), Hounsfield units.
    """
    level = rng.uniform(0, 1) if level is None else level
    a, b = rng.uniform(66, 80), rng.uniform(82, 100)
    shrink = 0.55 + 0.45 * min(1.0, level / 0.35)
    a, b = a * shrink, b * shrink
    spacing = rng.uniform(1.05, 1.6) * 200 / size
    canvas = Canvas(size, spacing, (rng.normal(0, 4), rng.normal(0, 6)), rng.normal(0, 0.06))
    _shell(canvas, a, b, rng)
    _brain(canvas, a - 13, b - 13, level, rng)
    if level > 0.65:
        _base(canvas, a, b, rng)
    image = canvas.hounsfield
    body = canvas.mask(ellipse(0, 0, a, b))
    grain = smooth_noise((size, size), size * 0.6, rng)
    image = image + grain * np.float32(rng.uniform(2, 6)) * (0.2 + body)
    return np.asarray(np.clip(np.rint(image), -1024, 3071), np.float32)


def _shell(canvas: Canvas, a: float, b: float, rng: np.random.Generator) -> None:
    """Skin, fat and the skull with its spongy middle; the headrest behind it at times."""
    if rng.random() < 0.5:
        canvas.paint(ellipse(0, 14, a + 22, b + 8), -300, softness=0.6)
        canvas.paint(ellipse(0, 10, a + 19, b + 8), -1000, softness=0.6)
    canvas.paint(ellipse(0, 0, a, b), MUSCLE, softness=0.6)
    canvas.paint(ellipse(0, 0, a - 2, b - 2), FAT + 40, softness=1.0)
    thickness = rng.uniform(5, 9)
    canvas.paint(ellipse(0, 0, a - 5, b - 5), CORTEX + 350, softness=0.5)
    canvas.paint(ellipse(0, 0, a - 6.5, b - 6.5), CORTEX - 250, softness=0.7)
    canvas.paint(ellipse(0, 0, a - 3 - thickness, b - 3 - thickness), CORTEX + 300, softness=0.5)


def _brain(canvas: Canvas, a: float, b: float, level: float, rng: np.random.Generator) -> None:
    """Folded grey matter around white matter, the midline, and ventricles where the level has them."""
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    canvas.paint(ellipse(0, 0, a, b), FLUID, softness=0.5)
    folds = 1 - 0.02 - 0.04 * np.abs(np.sin(turn * rng.integers(14, 22) / 2 + rng.uniform(0, 6)))
    outline = np.stack([a * np.cos(turn), b * np.sin(turn)], 1)
    canvas.paint(outline * folds[:, None], _GREY_MATTER, softness=0.6)
    inner = 0.84 - 0.07 * np.abs(np.sin(turn * rng.integers(9, 14) / 2 + rng.uniform(0, 6)))
    canvas.paint(outline * inner[:, None], _WHITE_MATTER, softness=1.5)
    canvas.paint(ellipse(0, 0, 1.0, 0.96 * b), FLUID + 18, softness=0.5)
    if 0.3 < level < 0.7:
        wide = rng.uniform(0.06, 0.14)
        for side in (-1, 1):
            horn = ellipse(side * 0.17 * a, -0.16 * b, wide * a, 0.26 * b, side * -0.25)
            canvas.paint(horn, FLUID, softness=0.8)
            canvas.paint(ellipse(side * 0.3 * a, 0.32 * b, 0.8 * wide * a, 0.17 * b, side * 0.5), FLUID)


def _base(canvas: Canvas, a: float, b: float, rng: np.random.Generator) -> None:
    """Petrous bones with air cells, nasal cavity and sinuses."""
    for side in (-1, 1):
        canvas.paint(
            ellipse(side * 0.55 * a, 0.12 * b, 0.32 * a, 0.10 * b, side * -0.5), CORTEX, softness=1.0
        )
        for _ in range(8):
            x, y = rng.normal(side * 0.72 * a, 5), rng.normal(0.2 * b, 5)
            canvas.paint(ellipse(x, y, 2.2, 1.8), -700, softness=0.6)
        sinus = ellipse(side * 0.3 * a, -0.68 * b, rng.uniform(0.1, 0.22) * a, rng.uniform(0.08, 0.17) * b)
        canvas.paint(sinus * 1.0, GAS, softness=0.6)
        canvas.paint(ellipse(side * 0.45 * a, -0.5 * b, 0.16 * a, 0.13 * b), FAT, softness=0.8)
        canvas.paint(ellipse(side * 0.45 * a, -0.55 * b, 0.12 * a, 0.12 * a), FLUID + 10, softness=0.5)
    canvas.paint(ellipse(0, -0.72 * b, 0.07 * a, 0.14 * b), GAS, softness=0.6)
