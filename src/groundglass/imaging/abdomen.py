"""Invented axial slices below the lungs: liver, spleen, stomach, kidneys, bowel with gas."""

from __future__ import annotations

import numpy as np

from groundglass.imaging.canvas import Canvas, ellipse
from groundglass.imaging.organs import FAT, FLUID, GAS, LIVER, MUSCLE, SPLEEN, paint_bones
from groundglass.imaging.phantom import Scanner, acquire, paint_table
from groundglass.imaging.slice import Hounsfield
from groundglass.imaging.thorax import Patient, cavity, skin

_STREAM = 17
_KIDNEY = 34


def abdomen_below(patient: Patient, scanner: Scanner, depth: float, size: int = 512) -> Hounsfield:
    """Scan one slice of an invented patient below the lungs.

    Args:
        patient: whose; the same patient gives the same organs at all depths.
        scanner: how.
        depth: below the base of the lungs, as a share of the lungs' height, 0 to 1.
        size: pixels along each side.

    Returns:
        float32, shape (size, size).

    Raises:
        ValueError: ``depth`` lies outside 0..1.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth {depth} must lie in 0..1")
    canvas = Canvas(size, scanner.spacing * 512 / size, patient.middle, patient.tilt)
    paint_table(canvas, patient, scanner)
    outline = skin(patient, 1.0)
    body = canvas.mask(outline)
    canvas.blend(body, -5)
    canvas.paint(outline * (1 - 1.8 / patient.half_width), FAT, softness=0.6)
    canvas.paint(skin(patient, 1.0, depth=1.0), MUSCLE, softness=1.0)
    canvas.paint(cavity(patient, 1.0, margin=-2.0), FAT + 8, softness=1.5)
    _organs(canvas, patient, depth)
    _bowel(canvas, patient, depth)
    paint_bones(canvas, patient, 1.0)
    rng = np.random.default_rng([patient.number, _STREAM, round(depth * 1e6)])
    return acquire(canvas, scanner, body, 1.0, rng)


def _organs(canvas: Canvas, patient: Patient, depth: float) -> None:
    """Liver, spleen, kidneys and aorta; the upper organs shrink with depth, the kidneys come and go."""
    w, d = patient.half_width, patient.half_depth
    enhanced = 0.35 * max(0.0, patient.blood - 45)
    upper = max(0.0, 1 - depth / 0.75) ** 0.5
    lower = float(np.exp(-(((depth - 0.45) / 0.3) ** 2)))
    if upper > 0.1:
        liver = ellipse(-0.45 * w, -0.12 * d, 0.50 * w * upper, 0.78 * d * upper, 0.12)
        canvas.paint(liver, LIVER + enhanced, softness=2.0)
        canvas.paint(
            ellipse(-0.05 * w, -0.45 * d, 0.4 * w * upper, 0.3 * d * upper, 0.2),
            LIVER + enhanced,
            softness=2.0,
        )
        spleen = ellipse(0.66 * w, 0.22 * d, 0.22 * w * upper, 0.45 * d * upper, 0.3)
        canvas.paint(spleen, SPLEEN + enhanced, softness=2.0)
    for side in (-1, 1):
        kidney = ellipse(
            side * 0.40 * w, 0.42 * d, 0.19 * w * lower + 0.1, 0.26 * d * lower + 0.1, side * 0.4
        )
        canvas.paint(kidney, _KIDNEY + 1.5 * enhanced, softness=1.0)
        canvas.paint(
            ellipse(side * 0.36 * w, 0.42 * d, 0.06 * w * lower + 0.1, 0.08 * d * lower + 0.1), FAT + 10
        )
        psoas = ellipse(side * 0.20 * w, 0.55 * d, 0.10 * w, 0.16 * d)
        canvas.paint(psoas, MUSCLE, softness=1.0)
    canvas.paint(ellipse(0.05 * w, 0.25 * d, 9.5, 9.5), patient.blood, softness=0.8)
    canvas.paint(ellipse(-0.14 * w, 0.24 * d, 11, 8), 0.8 * patient.blood + 8, softness=0.8)


def _bowel(canvas: Canvas, patient: Patient, depth: float) -> None:
    """Loops of bowel filled with fluid, some with gas in front; they drift with depth."""
    rng = np.random.default_rng([patient.number, _STREAM])
    w, d = patient.half_width, patient.half_depth
    for _ in range(16):
        x, y = rng.uniform(-0.75, 0.8) * w, rng.uniform(-0.75, 0.15) * d
        start, length = rng.uniform(-0.2, 1), rng.uniform(0.2, 0.6)
        a, b = rng.uniform(9, 24, 2)
        gas, content = rng.random() < 0.35, FLUID + rng.uniform(0, 40)
        present = 1 - ((depth - start) / length - 0.5) ** 2 * 4
        hidden_by_liver = x < 0 and depth < 0.5
        if present <= 0.1 or hidden_by_liver:
            continue
        scale = present**0.5
        canvas.paint(ellipse(x, y, a * scale + 2, b * scale + 2), MUSCLE - 10, softness=0.8)
        canvas.paint(ellipse(x, y, a * scale, b * scale), content, softness=0.8)
        if gas:
            canvas.paint(
                ellipse(x, y - 0.35 * b * scale, 0.8 * a * scale, 0.5 * b * scale), GAS, softness=0.8
            )
