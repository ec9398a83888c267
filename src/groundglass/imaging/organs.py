"""Heart, great vessels, airway, abdominal organs and bones of an invented chest, painted level by level."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.canvas import Canvas, Points, ellipse, mirrored, ribbon
from groundglass.imaging.thorax import Patient, along, cavity, irregularity, mediastinum

# Hounsfield units of unenhanced tissue (Hounsfield scale as in Bushberg et al., The Essential Physics of
# Medical Imaging, 3rd edition, chapter 10).
MUSCLE, FAT, FLUID, LIVER, SPLEEN, CARTILAGE = 52, -102, 8, 58, 48, 105
CORTEX, CANAL, GAS = 720, 28, -980

CARINA = 0.42
_RIBS = 12


def paint_mediastinum(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint what lies between the lungs, without the airway's gas: fat, heart, great vessels, oesophagus."""
    neck = float(np.clip(1 - level / 0.12, 0, 1))
    inside = canvas.mask(cavity(patient, level, margin=2.0))
    canvas.paint(mediastinum(patient, level), FAT + neck * 90, softness=1.5, within=inside)
    canvas.paint(mediastinum(patient, level, inset=-1.0, reach=(0.3, 1.15)), 20, softness=2.0, within=inside)
    if level < 0.27:
        _inlet(canvas, patient, level)
    elif level < 0.37:
        _arch(canvas, patient, level)
    elif level < 0.58:
        _great_vessels(canvas, patient, level)
    if level >= 0.54:
        _heart(canvas, patient, level)
    _round(canvas, patient, (0.03, 0.30), 6.5, 38)
    _round(canvas, patient, (0.045, 0.30), 2.0, -60)


def _round(
    canvas: Canvas,
    patient: Patient,
    at: tuple[float, float],
    radius: float,
    value: float,
    stretch: float = 1.0,
) -> None:
    x, y = at[0] * patient.half_width, at[1] * patient.half_depth
    canvas.paint(ellipse(x, y, radius * stretch, radius / stretch), value, softness=0.5)


def _inlet(canvas: Canvas, patient: Patient, level: float) -> None:
    close = along(level, (1.2, 1.0), (0.0, 0.25))
    for at, radius in (
        ((-0.15, -0.40), 8.0),
        ((0.13, -0.48), 7.5),
        ((-0.11, -0.16), 7.0),
        ((0.07, -0.24), 4.5),
        ((0.15, -0.05), 5.5),
    ):
        _round(canvas, patient, (at[0] * close, at[1]), radius, patient.blood, 1.1)


def _arch(canvas: Canvas, patient: Patient, level: float) -> None:
    w, d = patient.half_width, patient.half_depth
    curve = np.array([[-0.05, -0.38], [0.08, -0.26], [0.17, -0.05], [0.19, 0.15], [0.16, 0.33]]) * (w, d)
    canvas.paint(ribbon(curve, np.array([9.0, 12, 12.5, 12, 10])), patient.blood, softness=1.2)
    _round(canvas, patient, (-0.15, -0.26), 8.5, patient.blood, 0.95)


def _great_vessels(canvas: Canvas, patient: Patient, level: float) -> None:
    w, d = patient.half_width, patient.half_depth
    _round(canvas, patient, (0.18, 0.42), 11.5, patient.blood)
    _round(canvas, patient, (-0.17, -0.22), 8.5, patient.blood, 0.95)
    _round(canvas, patient, (-0.05, -0.38), 15.5, patient.blood, 1.04)
    trunk = float(np.clip((level - 0.38) / 0.04, 0, 1))
    _round(canvas, patient, (0.14, -0.37), 13.5 * trunk + 0.1, patient.blood, 1.05)
    if level > 0.45:
        right = np.array([[0.13, -0.25], [0.04, -0.12], [-0.10, -0.08], [-0.22, -0.04], [-0.30, 0.03]]) * (
            w,
            d,
        )
        canvas.paint(ribbon(right, np.array([10.0, 9, 8.5, 8, 6])), patient.blood, softness=1.0)
        left = np.array([[0.16, -0.27], [0.22, -0.14], [0.27, -0.02], [0.28, 0.06]]) * (w, d)
        canvas.paint(ribbon(left, np.array([9.0, 9, 8, 5])), patient.blood, softness=1.0)


def _heart(canvas: Canvas, patient: Patient, level: float) -> None:
    w, d = patient.half_width, patient.half_depth
    _round(canvas, patient, (0.17, 0.44), 11.0, patient.blood)
    grown = float(np.clip((level - 0.54) / 0.08, 0.3, 1))
    canvas.paint(mediastinum(patient, level, inset=5, reach=(-0.78 * grown, 0.16)), 46, softness=1.8)
    muscle = 46 + 0.25 * max(0.0, patient.blood - 45)
    low = float(np.clip((level - 0.6) / 0.25, 0, 1))
    chambers = (
        (ellipse(0.30 * w, -0.36 * d, 0.22 * w, 0.13 * w, -0.75), 1.0, 9.0),
        (ellipse(0.04 * w, -0.58 * d, 0.22 * w, 0.12 * w, -0.3), 0.9, 3.5),
        (ellipse(0.04 * w, -0.02 * d, 0.24 * w, 0.10 * w * (1 - 0.5 * low), 0.0), 1.0, 2.0),
        (ellipse(-0.20 * w, -0.33 * d, 0.13 * w, 0.17 * w, 0.0), 0.85, 2.0),
    )
    for outline, filling, wall in chambers:
        centre = outline.mean(axis=0)
        canvas.paint(centre + (outline - centre) * (1 + wall / (0.15 * w)), muscle, softness=1.5)
        canvas.paint(outline, 46 + filling * (patient.blood - 46), softness=1.8)


def paint_airway(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint trachea or main bronchi with their walls; below the hilum there are none in the mediastinum."""
    w, d = patient.half_width, patient.half_depth
    if level < CARINA - 0.02:
        lumens = [ellipse(-0.005 * w, along(level, (-0.05, 0.12), (0.0, CARINA)) * d, 8.2, 9.2)]
    elif level < CARINA + 0.025:
        lumens = [ellipse(0.0, 0.12 * d, along(level, (10.0, 17.0), (0.4, 0.445)), 7.0)]
    elif level < 0.56:
        away = along(level, (0.085, 0.25), (CARINA + 0.02, 0.56))
        lumens = [
            ellipse(-away * w, 0.11 * d, 8.0, 6.2, 0.25),
            ellipse(away * 0.95 * w, 0.10 * d, 8.5, 5.4, -0.25),
        ]
    else:
        return
    for lumen in lumens:
        centre = lumen.mean(axis=0)
        canvas.paint(centre + (lumen - centre) * 1.22, 30, softness=0.4)
        canvas.paint(lumen, GAS, softness=0.4)


def dome_outlines(patient: Patient, level: float) -> list[tuple[Points, float]]:
    """The diaphragm's domes cut at a level: outline and density of the organ beneath, right then left."""
    domes = []
    w, d = patient.half_width, patient.half_depth
    for side, top, organ in (
        (-1, 0.88 - 0.13 * patient.dome, LIVER),
        (1, 0.93 - 0.12 * patient.dome, SPLEEN),
    ):
        depth = (level - top) / (1.04 - top)
        if depth <= 0:
            continue
        reach = min(1.0, depth) ** 0.5
        centre = (side * (0.50 - 0.03 * reach) * w, (-0.05 - 0.17 * reach) * d)
        outline = ellipse(*centre, 0.50 * w * reach, 0.86 * d * reach, side * 0.12)
        turn = np.linspace(0, 2 * np.pi, len(outline), endpoint=False)
        scale = 1 + 2.5 * irregularity(patient, 2 if side < 0 else 3, turn, level)
        domes.append((centre + (outline - centre) * scale[:, None], float(organ)))
    return domes


def paint_domes(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint liver, spleen and stomach where the slice is below the diaphragm."""
    enhanced = 0.25 * max(0.0, patient.blood - 45)
    for outline, organ in dome_outlines(patient, level):
        canvas.paint(outline, organ + enhanced, softness=4.0)
        if organ == SPLEEN and np.ptp(outline[:, 0]) > 45:
            stomach = _within(outline, (-0.1, -0.25), (0.62, 0.5))
            canvas.paint(stomach, FLUID + 22, softness=1.2)
            height = stomach[:, 1]
            gas = stomach[height < height.mean() - 0.1 * np.ptp(height)]
            if len(gas) > 2:
                canvas.paint(gas, -930, softness=0.8)


def _within(outline: Points, at: tuple[float, float], size: tuple[float, float]) -> Points:
    """An ellipse placed and sized relative to an outline's middle and half extent."""
    x, y = outline.mean(axis=0)
    a, b = np.ptp(outline, axis=0) / 2
    return ellipse(x + at[0] * a, y + at[1] * b, size[0] * a, size[1] * b, 0.2)


def paint_bones(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint vertebra, ribs, breast bone, collar bones and shoulder blades, each with its cortical rim."""
    _vertebra(canvas, patient, level)
    wall = cavity(patient, level, margin=6.5)
    for rib in range(-1, _RIBS + 2):
        along_rib = (level * 9.5 + patient.rib_phase + 4.2 - rib) * 0.205
        for side in (-1, 1):
            _rib(canvas, patient, wall, along_rib + 0.02 * side, side)
    _sternum(canvas, patient, level)
    for side in (-1, 1):
        _shoulder_blade(canvas, patient, level, side)


def _rimmed(canvas: Canvas, outer: Points, inner: Points, marrow: float, cortex: float = CORTEX) -> None:
    canvas.paint(outer, cortex, softness=0.35)
    canvas.paint(inner, marrow, softness=0.45)


def _shrunk(outline: Points, rim: float) -> Points:
    centre = outline.mean(axis=0)
    radius = float(np.linalg.norm(outline - centre, axis=1).mean())
    return np.asarray(centre + (outline - centre) * max(0.1, 1 - rim / radius))


def _vertebra(canvas: Canvas, patient: Patient, level: float) -> None:
    y = 0.60 * patient.half_depth
    width = along(level, (14.0, 18.5), (0.0, 1.0))
    # Discs alternate with vertebral bodies and pedicles come and go down the column: 12 in the lungs' height.
    phase = (level * 11 + patient.rib_phase) % 1
    disc = phase > 0.84
    depth = 0.82 * width
    for side in (-1, 1):
        process = mirrored(np.array([[9.0, y + depth + 6], [20, y + depth + 9], [29, y + depth + 15]]), side)
        if phase < 0.6:
            width_here = np.array([5.0, 3.6, 4.2])
            _rimmed(
                canvas, ribbon(process, width_here), ribbon(process, width_here - 1.6), patient.marrow + 60
            )
        lamina = mirrored(np.array([[10.0, y + depth + 3], [8, y + depth + 13], [1, y + depth + 20]]), side)
        canvas.paint(ribbon(lamina, np.array([3.6, 3.0, 2.8])), CORTEX - 180, softness=0.9)
        if phase < 0.5:
            pedicle = mirrored(np.array([[9.5, y + 0.6 * depth], [10.0, y + depth + 6]]), side)
            canvas.paint(ribbon(pedicle, 3.2), CORTEX - 200, softness=0.8)
    spine = np.array([[0.0, y + depth + 17], [0.4, y + depth + 28], [0, y + depth + 38 - 10 * phase]])
    _rimmed(
        canvas,
        ribbon(spine, np.array([3.4, 2.4, 3.0])),
        ribbon(spine, np.array([1.6, 0.8, 1.2])),
        patient.marrow,
    )
    canvas.paint(ellipse(0, y + depth + 8.5, 9.5, 8.0), CANAL - 40, softness=0.6)
    canvas.paint(ellipse(0, y + depth + 8.5, 6.5, 5.0), CANAL + 10, softness=0.8)
    body = ellipse(0, y, width, depth)
    # The body's back is hollowed towards the canal.
    body[:, 1] -= 3.5 * np.exp(-((body[:, 0] / 8) ** 2)) * (body[:, 1] > y)
    if disc:
        canvas.paint(body, 95, softness=1.2)
    else:
        _rimmed(canvas, body, _shrunk(body, 1.8), patient.marrow, CORTEX - 120)


def _rib(canvas: Canvas, patient: Patient, wall: Points, middle: float, side: int) -> None:
    """One rib's cut; ``middle`` 0 at the spine to 1 at the breast bone is where along the cage it lies."""
    if not 0.07 < middle < 1.0:
        return
    # Ribs cross the slice at a flat angle at the back and side, steeply at the front.
    half = along(middle, (0.062, 0.052, 0.042, 0.035), (0.1, 0.4, 0.7, 1.0))
    places = np.clip(np.linspace(middle - half, middle + half, 17), 0.04, 1) * 128
    index = places if side > 0 else 256 - places
    knots = np.arange(257)
    curve = np.stack([np.interp(index, knots, np.append(wall[:, axis], wall[0, axis])) for axis in (0, 1)], 1)
    # The cut runs from the rib's inner to its outer surface.
    centre = wall.mean(axis=0)
    outwards = (curve - centre) / np.linalg.norm(curve - centre, axis=1, keepdims=True)
    curve = curve + outwards * np.linspace(1.2, -1.2, 17)[:, None]
    taper = np.sin(np.linspace(0.12, np.pi - 0.12, 17)) ** 0.45
    thickness = along(middle, (4.4, 3.9, 4.2), (0.1, 0.5, 1.0)) * taper
    if middle > 0.86:
        canvas.paint(ribbon(curve, thickness), CARTILAGE, softness=0.7)
    else:
        inner = np.maximum(thickness - 1.7, 0.2)
        _rimmed(canvas, ribbon(curve, thickness), ribbon(curve, inner), patient.marrow + 70)


def _sternum(canvas: Canvas, patient: Patient, level: float) -> None:
    front = float(cavity(patient, level, margin=7)[128, 1])
    if 0.10 < level < 0.86:
        width = along(level, (20.0, 27.0, 16.0, 15.0, 11.0), (0.1, 0.18, 0.3, 0.6, 0.86))
        bone = ellipse(0, front, width, 5.6)
        bone[:, 1] -= 2.0 * (bone[:, 0] / width) ** 2
        hollow = ellipse(0, front, width - 2.2, 3.9)
        hollow[:, 1] -= 2.0 * (hollow[:, 0] / width) ** 2
        _rimmed(canvas, bone, hollow, patient.marrow - 30, CORTEX - 150)
    if level < 0.17:
        for side in (-1, 1):
            away = along(level, (62.0, 30.0), (0.0, 0.17))
            bone = ellipse(side * away, front - 3, along(level, (17.0, 11.0), (0.0, 0.17)), 6.5, side * -0.35)
            _rimmed(canvas, bone, _shrunk(bone, 1.9), patient.marrow + 40)


def _shoulder_blade(canvas: Canvas, patient: Patient, level: float, side: int) -> None:
    if level > 0.52:
        return
    reach = along(level, (1.0, 0.9, 0.2), (0.0, 0.3, 0.52))
    wall = cavity(patient, max(level, 0.25), margin=20 + 0.35 * patient.muscle)
    first = 26 + 8 * (level < 0.2)
    blade = wall[first : first + int(26 * reach) + 4]
    if level < 0.3:
        # Towards the joint the blade leaves the cage and thickens.
        blade = blade + np.linspace(0, 1, len(blade))[:, None] ** 2 * (16 * (0.3 - level) / 0.3) * (1.0, -0.3)
    blade = mirrored(blade, side)
    ends = np.linspace(-1, 1, len(blade))
    thickness = 1.7 + 2.4 * np.abs(ends) ** 4 + 2.2 * max(0.0, 0.3 - level) / 0.3 * (ends > 0.3)
    _rimmed(
        canvas, ribbon(blade, thickness), ribbon(blade, np.maximum(thickness - 1.5, 0.1)), patient.marrow + 60
    )
    if level < 0.24:
        middle = blade[len(blade) // 2]
        crest = np.stack(
            [
                middle,
                middle + mirrored(np.array([7.0, 15.0]), side),
                middle + mirrored(np.array([18.0, 22.0]), side),
            ]
        )
        canvas.paint(ribbon(crest, np.array([1.8, 1.5, 2.6])), CORTEX - 100, softness=0.6)


def lung_coverage(canvas: Canvas, patient: Patient, level: float) -> NDArray[np.float32]:
    """Coverage 0..1 of the canvas by aerated lung: the chest cavity without mediastinum and diaphragm."""
    plane = np.zeros((canvas.size, canvas.size), np.uint8)
    canvas.fill(plane, cavity(patient, level), 255)
    canvas.fill(plane, mediastinum(patient, level), 0)
    sigma = along(level, (7.0, 3.0), (0.0, 0.2)) / canvas.spacing
    rounded = cv2.GaussianBlur(plane, (0, 0), sigma).astype(np.float32) / 255
    lungs = np.clip((rounded - 0.5) * np.float32(sigma * 1.6) + 0.5, 0, 1)
    for outline, _ in dome_outlines(patient, level):
        region, cover = canvas.coverage(outline, softness=3.0)
        lungs[region] *= 1 - cover
    return np.asarray(lungs, np.float32)
