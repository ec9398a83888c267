"""The anatomy of a synthetic patient's chest and abdomen, painted level by level onto a plane of Hounsfield units.

Shapes are smooth outlines in millimetres, x to the patient's left and y to the back. A level is 0 at the apex of
the lungs, 1 at their base and 2 a lungs' height below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groundglass.imaging.slice import Hounsfield

Points = NDArray[np.float64]
"""A closed polygon or an open curve, shape (N, 2), mm."""

_Floats = NDArray[np.float64]
_Cover = NDArray[np.float32]
_Region = tuple[slice, slice]
_Row = tuple[float, ...]

# Hounsfield units of unenhanced tissue (Hounsfield scale as in Bushberg et al., The Essential Physics of
# Medical Imaging, 3rd edition, chapter 10).
MUSCLE, FAT, FLUID, LIVER, SPLEEN, KIDNEY, CARTILAGE = 52, -102, 8, 58, 48, 34, 105
CORTEX, CANAL, GAS = 720, 28, -980

_SUBPIXEL_BITS = 4
_HARMONICS = np.arange(2, 8)

# Thoracic inlet, aortic arch, carina, upper heart, lower heart, diaphragm.
_LEVELS = (0.0, 0.15, 0.30, 0.42, 0.70, 1.0)
_CAVITY_WIDTH = (0.50, 0.72, 0.86, 0.92, 1.00, 0.97)
_CAVITY_DEPTH = (0.46, 0.68, 0.86, 0.94, 1.00, 0.98)
# Front to back, in half depths of the chest cavity; +0.4 is the front of the vertebral body.
_DEPTHS = (-1.1, -0.85, -0.6, -0.35, -0.1, 0.15, 0.4, 0.65, 0.85, 1.15)
# Half width of the mediastinum and spine at levels x depths, in half widths of the chest cavity.
_RIGHT = (
    (0.30, 0.30, 0.30, 0.28, 0.25, 0.22, 0.20, 0.22, 0.30, 0.40),
    (0.36, 0.22, 0.20, 0.21, 0.23, 0.20, 0.17, 0.19, 0.27, 0.40),
    (0.20, 0.05, 0.09, 0.20, 0.24, 0.20, 0.14, 0.17, 0.24, 0.36),
    (0.15, 0.03, 0.07, 0.23, 0.27, 0.22, 0.12, 0.16, 0.24, 0.36),
    (0.15, 0.08, 0.29, 0.37, 0.36, 0.24, 0.08, 0.16, 0.24, 0.36),
    (0.34, 0.34, 0.38, 0.36, 0.30, 0.16, 0.07, 0.16, 0.24, 0.36),
)
_LEFT = (
    (0.30, 0.30, 0.30, 0.28, 0.25, 0.22, 0.20, 0.22, 0.30, 0.40),
    (0.36, 0.22, 0.18, 0.19, 0.21, 0.21, 0.18, 0.19, 0.27, 0.40),
    (0.20, 0.05, 0.13, 0.23, 0.29, 0.31, 0.26, 0.19, 0.24, 0.36),
    (0.15, 0.03, 0.11, 0.26, 0.27, 0.18, 0.25, 0.23, 0.24, 0.36),
    (0.15, 0.20, 0.50, 0.56, 0.43, 0.18, 0.23, 0.22, 0.24, 0.36),
    (0.34, 0.52, 0.66, 0.56, 0.34, 0.15, 0.20, 0.20, 0.24, 0.36),
)


class _Organ(NamedTuple):
    """An ellipse between two levels; x, y and half axes at the first and last in mm of a chest 260 x 184 wide."""

    top: float
    bottom: float
    first: _Row
    last: _Row = ()  # the same as the first
    turned: float = 0  # radians, clockwise
    tissue: float = 46  # Hounsfield units
    contrast: float = 1  # share of the blood's enhancement


_ORGANS = (
    # Veins, then arteries of the thoracic inlet.
    _Organ(0.00, 0.27, (-23, -37, 9, 7), (-20, -37, 9, 7)),
    _Organ(0.00, 0.27, (20, -44, 8, 7), (17, -44, 8, 7)),
    _Organ(0.00, 0.27, (-17, -15, 7, 7), (-14, -15, 7, 7)),
    _Organ(0.00, 0.27, (9, -22, 5, 5)),
    _Organ(0.00, 0.27, (24, -5, 6, 6), (20, -5, 6, 6)),
    # Aortic arch, descending and ascending aorta, superior vena cava, pulmonary trunk and arteries.
    _Organ(0.27, 0.37, (12, -3, 38, 12), (), 1.15),
    _Organ(0.27, 0.58, (-21, -22, 9, 8)),
    _Organ(0.37, 1.05, (23, 39, 11, 11)),
    _Organ(0.37, 0.58, (-6, -35, 16, 15)),
    _Organ(0.40, 0.58, (18, -34, 14, 13)),
    _Organ(0.45, 0.56, (-11, -10, 31, 8), (), -0.43),
    _Organ(0.45, 0.56, (29, -10, 17, 8), (), 1.12),
    # Left and right ventricle, left and right atrium.
    _Organ(0.58, 0.92, (36, -32, 20, 12), (40, -33, 30, 17), -0.75, 46, 1),
    _Organ(0.58, 0.92, (5, -48, 22, 12), (5, -52, 29, 16), -0.3, 46, 0.9),
    _Organ(0.56, 0.80, (5, -2, 31, 13), (5, -2, 31, 8)),
    _Organ(0.56, 0.90, (-26, -30, 14, 20), (-26, -30, 17, 22), 0, 46, 0.85),
    # Oesophagus with a little air.
    _Organ(0.00, 1.00, (4, 28, 6.5, 6.5), (), 0, 38, 0),
    _Organ(0.00, 1.00, (6, 28, 2, 2), (), 0, -60, 0),
    # Liver, spleen, kidneys, psoas, abdominal aorta and inferior vena cava.
    _Organ(1.00, 1.70, (-58, -11, 65, 72), (-58, -11, 20, 22), 0.12, LIVER, 0.35),
    _Organ(1.00, 1.70, (-6, -41, 52, 28), (-6, -41, 18, 10), 0.2, LIVER, 0.35),
    _Organ(1.00, 1.70, (86, 20, 29, 41), (86, 20, 8, 12), 0.3, SPLEEN, 0.35),
    _Organ(1.10, 1.45, (-52, 39, 6, 6), (-52, 39, 25, 24), -0.4, KIDNEY, 0.5),
    _Organ(1.10, 1.45, (52, 39, 6, 6), (52, 39, 25, 24), 0.4, KIDNEY, 0.5),
    _Organ(1.45, 1.85, (-52, 39, 25, 24), (-52, 39, 6, 6), -0.4, KIDNEY, 0.5),
    _Organ(1.45, 1.85, (52, 39, 25, 24), (52, 39, 6, 6), 0.4, KIDNEY, 0.5),
    _Organ(1.05, 2.00, (-26, 51, 13, 15), (), 0, MUSCLE, 0),
    _Organ(1.05, 2.00, (26, 51, 13, 15), (), 0, MUSCLE, 0),
    _Organ(1.05, 2.00, (6, 23, 9.5, 9.5)),
    _Organ(1.00, 2.00, (-18, 22, 11, 8), (), 0, 46, 0.8),
    # Loops of bowel, some with gas.
    _Organ(1.05, 1.60, (40, -40, 20, 14), (70, -30, 12, 20), 0.3, FLUID + 25, 0),
    _Organ(1.05, 1.60, (40, -48, 14, 7), (70, -40, 9, 10), 0.3, GAS, 0),
    _Organ(1.20, 1.95, (20, -10, 14, 10), (-10, -20, 22, 13), -0.4, FLUID + 35, 0),
    _Organ(1.30, 2.00, (-70, -20, 14, 17), (-80, -5, 22, 20), 0, FLUID + 15, 0),
    _Organ(1.40, 2.00, (-70, -28, 10, 8), (-80, -16, 16, 9), 0, GAS, 0),
    _Organ(1.50, 2.00, (50, -5, 15, 12), (30, -45, 18, 12), 0.5, FLUID + 30, 0),
)
# Trachea, carina, right and left main bronchus.
_AIRWAY = (
    _Organ(0.00, 0.40, (-0.6, -5, 8.2, 9.2), (-0.6, 11, 8.2, 9.2), 0, GAS, 0),
    _Organ(0.40, 0.445, (0, 11, 10, 7), (0, 11, 17, 7), 0, GAS, 0),
    _Organ(0.445, 0.56, (-11, 10, 8, 6.2), (-32, 10, 8, 6.2), 0.25, GAS, 0),
    _Organ(0.445, 0.56, (10, 9, 8.5, 5.4), (31, 9, 8.5, 5.4), -0.25, GAS, 0),
)


class Canvas:
    """A square plane of ``size`` pixels a side, ``spacing`` mm apart, seen with the patient's middle near its centre.

    The origin of drawing lies ``middle`` mm from the plane's centre, and drawing is turned clockwise by ``tilt``
    radians. It changes ``hounsfield``, (size, size), air at first, in place.
    """

    def __init__(self, size: int, spacing: float, middle: tuple[float, float], tilt: float) -> None:
        self.size, self.spacing, self.middle, self.tilt = size, spacing, middle, tilt
        self.hounsfield: Hounsfield = np.full((size, size), -1000, np.float32)

    def to_pixels(self, points: Points) -> Points:
        """Millimetres to (column, row)."""
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        turned = points @ np.array([[cosine, sine], [-sine, cosine]]) + self.middle
        return np.asarray(turned / self.spacing + (self.size - 1) / 2)

    def mask(self, points: Points) -> _Cover:
        """Coverage 0..1 of the whole plane by a polygon."""
        plane = np.zeros((self.size, self.size), np.float32)
        region, cover = self._coverage(points, 0)
        plane[region] = cover
        return plane

    def paint(self, points: Points, value: float, softness: float = 0.5, within: _Cover | None = None) -> None:
        """Fill a polygon with Hounsfield units, where ``within`` covers the plane.

        ``softness`` is the standard deviation, mm, of a blur of the edge: partial volume of a slanted surface.
        """
        region, cover = self._coverage(points, softness)
        plane = self.hounsfield[region]
        plane += (cover if within is None else cover * within[region]) * (np.float32(value) - plane)

    def paint_bone(self, outline: Points, rim: float, marrow: float) -> None:
        """Fill an outline with cortex, and with marrow but for a ``rim``, a share of its radius."""
        self.paint(outline, CORTEX - 120, softness=0.35)
        self.paint(_scaled(outline, 1 - rim), marrow, softness=0.45)

    def blend(self, cover: _Cover, value: float | NDArray[np.float32]) -> None:
        """Blend Hounsfield units over the whole plane by a coverage of its shape."""
        self.hounsfield[...] += cover * (np.asarray(value, np.float32) - self.hounsfield)

    def _coverage(self, points: Points, softness: float) -> tuple[_Region, _Cover]:
        """Coverage 0..1 by a polygon: the region of pixels, which may be empty, and a plane of its shape."""
        pixels, sigma = self.to_pixels(points), softness / self.spacing
        margin = 2 + int(np.ceil(2.5 * sigma))
        low = np.clip(np.floor(pixels.min(axis=0)).astype(int) - margin, 0, self.size)
        high = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + margin + 1, low, self.size)
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        if mask.size:
            fixed = np.rint((pixels - low) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
            cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
            mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma)) if sigma > 0 else mask
        return (slice(low[1], high[1]), slice(low[0], high[0])), mask.astype(np.float32) * np.float32(1 / 255)


def ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0) -> Points:
    """An ellipse with half axes ``a`` and ``b`` in mm, turned clockwise by ``angle`` radians."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    u, v = a * np.cos(turn), b * np.sin(turn)
    return np.stack([x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)], 1)


def ribbon(centreline: Points, half_width: _Floats | float) -> Points:
    """The polygon that a curve of varying thickness covers."""
    tangent = np.gradient(centreline, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    offset = normal * np.reshape(half_width, (-1, 1))
    return np.concatenate([centreline + offset, (centreline - offset)[::-1]])


def _along(level: float, values: _Row, levels: _Row = _LEVELS) -> float:
    return float(np.interp(level, levels, values))


@dataclass(frozen=True)
class Vessels:
    """Straight segments of a vessel tree; N of them."""

    start: _Floats  # (N, 3), mm, z from apex to base
    end: _Floats
    radius: _Floats  # (N,), mm

    @classmethod
    def grow(cls, root: _Floats, targets: _Floats, radius: float, rng: Generator) -> Vessels:
        """Grow a binary tree from ``root`` until a branch points at each target.

        Every generation halves each group of targets along the axis of its greatest spread and sends a branch
        part of the way to each half's centre of mass: the volume-filling scheme of Tawhai et al. (Annals of
        Biomedical Engineering, 2000), one generation at a time. Radii, ``radius`` at the root, shrink nearly by
        Murray's law. ``targets``, (2**generations, 3), are spread over the volume to fill; all in mm.
        """
        tips, groups = root[None], targets[None]
        segments = []
        while groups.shape[1] > 1:
            # Not always the widest axis, or all branches of a generation would lie at one level.
            spread = np.ptp(groups, axis=1) * rng.uniform(0.45, 1.0, (len(groups), 3))
            along = np.take_along_axis(groups, spread.argmax(axis=1)[:, None, None], axis=2)
            groups = np.take_along_axis(groups, along.argsort(axis=1), axis=1)
            groups = groups.reshape(2 * len(groups), -1, 3)
            origin = np.repeat(tips, 2, axis=0)
            reach = rng.uniform(0.18, 0.62, (len(origin), 1)) if groups.shape[1] > 1 else 0.9
            tips = origin + (groups.mean(axis=1) - origin) * reach
            length = np.linalg.norm(tips - origin, axis=1, keepdims=True)
            tips = tips + rng.normal(0, 0.12, tips.shape) * length
            generation = np.log2(len(tips)) - 1 + rng.uniform(-0.5, 0.5, len(tips))
            segments.append((origin, tips, radius * 2 ** (-0.40 * generation)))
        return cls(*(np.concatenate(parts) for parts in zip(*segments, strict=True)))

    def cut(self, z: float, thickness: float) -> Vessels:
        """The part inside the axial slice of the given thickness around ``z``, all in mm."""
        rise = self.end[:, 2] - self.start[:, 2] + 1e-6
        half = thickness / 2 + 0.5 * self.radius
        bounds = np.sort([(z - half - self.start[:, 2]) / rise, (z + half - self.start[:, 2]) / rise], axis=0)
        first, last = np.clip(bounds, 0, 1)
        kept = last > first
        start, run = self.start[kept], (self.end - self.start)[kept]
        near, far = (start + run * part[kept][:, None] for part in (first, last))
        return Vessels(near, far, 0.9 * self.radius[kept])

    def draw(self, canvas: Canvas, thickness: float, widen: float = 0.0) -> _Cover:
        """Coverage 0..1 of the canvas by a cut tree in a slice of that thickness, ``widen`` mm added all around."""
        plane = np.zeros((canvas.size, canvas.size), np.uint8)
        width = 2 * (self.radius + widen) / canvas.spacing
        depth = np.abs(self.end[:, 2] - self.start[:, 2]) + 1.6 * self.radius
        # Vessels that fill a part of the slice or are thinner than a pixel are dimmed.
        filled = np.clip(depth / (thickness + 1.2 * self.radius), 0.05, 1) * np.minimum(1, width)
        start, end = (
            np.rint(canvas.to_pixels(points[:, :2]) * (1 << _SUBPIXEL_BITS)).astype(int).tolist()
            for points in (self.start, self.end)
        )
        # Dim ones first: where vessels cross, the brighter one shows, as in a thin slice.
        for i in np.argsort(filled, kind="stable"):
            grey, wide = round(255 * filled[i]), max(1, round(width[i]))
            cv2.line(plane, start[i], end[i], grey, wide, cv2.LINE_AA, _SUBPIXEL_BITS)
        return plane.astype(np.float32) * np.float32(1 / 255)


@dataclass(frozen=True)
class Patient:
    """What stays the same through all slices of one synthetic patient; lengths in mm, densities in HU."""

    number: int  # names and UIDs are made from it
    half_width: float  # of the chest cavity at its widest
    half_depth: float
    height: float  # of the lungs, from apex to base
    fat: float  # thickness under the skin at the side
    muscle: float  # thickness of the chest wall's muscles
    breast: float  # forward bulge of the breasts
    blood: float  # density; above 100 with contrast medium
    lung: float  # mean density of aerated lung
    marrow: float  # density of spongy bone
    rib_phase: float  # where along the ribs' sequence the apex lies
    dome: float  # how far the diaphragm stands up, 0..1
    tilt: float  # of the body on the table, radians
    middle: tuple[float, float]  # of the body in the field of view
    wobble: _Floats = field(repr=False)  # (outlines, 3, harmonics): amplitude, phase, drift of irregularities
    vessels: tuple[Vessels, ...] = field(repr=False)  # arteries of both lungs, then veins

    @classmethod
    def draw(cls, rng: Generator) -> Patient:
        """Draw a patient; the same state gives the same one."""
        half_width = rng.uniform(118, 142)
        extent = np.array([half_width, half_width * rng.uniform(0.65, 0.77), rng.uniform(215, 270)])
        amplitude = np.abs(rng.normal(0, 0.014, (4, len(_HARMONICS)))) / (_HARMONICS - 1) ** 0.5
        phase, drift = rng.uniform(0, 2 * np.pi, amplitude.shape), rng.normal(0, 2.5, amplitude.shape)
        return cls(
            number=int(rng.integers(1 << 40)),
            half_width=extent[0],
            half_depth=extent[1],
            height=extent[2],
            fat=float(np.clip(rng.gamma(3.0, 4.5), 4, 40)),
            muscle=rng.uniform(9, 18),
            breast=float(rng.choice([0.0, 1.0])) * rng.uniform(8, 32),
            blood=rng.uniform(130, 330) if rng.random() < 0.35 else rng.uniform(34, 48),
            lung=rng.uniform(-890, -810),
            marrow=rng.uniform(110, 290),
            rib_phase=rng.uniform(0, 1),
            dome=rng.uniform(0.15, 1.0),
            tilt=rng.normal(0, 0.025),
            middle=(rng.normal(0, 5), rng.normal(-4, 7)),
            wobble=np.stack([amplitude, phase, drift], axis=1),
            vessels=tuple(_grow_vessels(extent, rng)),
        )


def _grow_vessels(extent: _Floats, rng: Generator) -> Iterator[Vessels]:
    for hilum, radius, tips in (((0.27, 0.02, 0.50), 5.6, 2048), ((0.24, -0.04, 0.57), 4.6, 1024)):
        for side in (-1, 1):
            level = rng.uniform(0.02, 1, tips)
            width = np.interp(level, _LEVELS, _CAVITY_WIDTH)
            lateral = 0.16 + (0.97 * width - 0.16) * rng.uniform(0, 1, tips)
            reach = np.sqrt(np.maximum(0, 1 - (lateral / width) ** 2))
            depth = rng.uniform(-1, 1, tips) * (np.interp(level, _LEVELS, _CAVITY_DEPTH) * reach)
            targets = np.stack([side * lateral, depth, level], axis=1) * extent
            yield Vessels.grow(np.array(hilum) * (side, 1, 1) * extent, targets, radius, rng)


def _irregularity(patient: Patient, outline: int, turn: _Floats, level: float) -> _Floats:
    """Relative deviation of an outline from its smooth shape, drifting slowly from level to level."""
    amplitude, phase, drift = patient.wobble[outline]
    return np.asarray((amplitude * np.cos(turn[:, None] * _HARMONICS + phase + drift * level)).sum(axis=1))


def _oval(patient: Patient, outline: int, level: float, front: float, back: float) -> Points:
    """A superellipse of half axes 1 with these exponents; 256 points from the back, turning leftwards."""
    turn = np.pi / 2 - np.linspace(0, 2 * np.pi, 256, endpoint=False)
    direction = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    power = 2 / np.where(direction[:, 1:] > 0, back, front)
    scale = 1 + _irregularity(patient, outline, turn, level)
    return np.asarray(np.sign(direction) * np.abs(direction) ** power * scale[:, None])


def cavity(patient: Patient, level: float, margin: float = 0.0) -> Points:
    """Inner outline of the rib cage, ``margin`` mm outside it; 256 points from the back, turning leftwards."""
    shape = _oval(patient, 0, level, front=2.15, back=2.75)
    # The cage is widest towards its back and narrows towards the front.
    shape[:, 0] *= 1 - 0.14 * np.maximum(0, -shape[:, 1]) ** 1.3
    a = _along(level, _CAVITY_WIDTH) * patient.half_width + margin
    b = _along(level, _CAVITY_DEPTH) * patient.half_depth + margin
    return shape * (a, b)


def skin(patient: Patient, level: float, depth: float = 0.0) -> Points:
    """Outline of the body, or of the layer ``depth`` (0 skin, 1 under the fat) below it; 256 points."""
    shape = _oval(patient, 1, level, front=2.5, back=2.5)
    front, back = np.maximum(0, -shape[:, 1]), np.maximum(0, shape[:, 1])
    shoulder = max(0.0, 1 - level / 0.4) ** 1.3
    a = patient.half_width * 0.97 + 9 + patient.muscle + patient.fat * (1 - depth) + shoulder * 38
    b = patient.half_depth * (1 - 0.28 * shoulder) + 8 + 0.7 * (1 - depth) * patient.fat
    lateral = np.abs(shape[:, 0])
    shape[:, 0] *= a * (1 - 0.10 * front**2)
    shape[:, 1] = b * shape[:, 1] + back * (14 + 0.35 * patient.muscle)
    bulge = patient.breast * np.exp(-(((level - 0.62) / 0.2) ** 2)) * (0.25 + 0.75 * (1 - depth))
    shape[:, 1] -= bulge * front * np.exp(-(((lateral - 0.52) / 0.24) ** 2))
    shape[:, 1] -= 5 * back**4 * np.exp(-((lateral / 0.09) ** 2))  # the furrow over the spine
    return shape


def _mediastinum(
    patient: Patient, level: float, inset: float = 0.0, reach: tuple[float, float] = (-1.1, 1.15)
) -> Points:
    """Outline of what lies between the lungs, spine included, ``inset`` mm taken off each side.

    ``reach`` is the part from front to back, in half depths of the cavity.
    """
    depth = np.linspace(*reach, 96)
    sides = []
    for outline, table, side in ((2, _RIGHT, -1), (3, _LEFT, 1)):
        widths = [_along(level, column) for column in zip(*table, strict=True)]
        width = cv2.GaussianBlur(np.interp(depth, _DEPTHS, widths)[None], (0, 0), 3)[0]
        width = width + 0.9 * _irregularity(patient, outline, 2.2 * depth, level)
        lateral = np.maximum(width * patient.half_width - inset, 0.5)
        sides.append(np.stack([side * lateral, depth * patient.half_depth], axis=1))
    return np.concatenate([sides[0], sides[1][::-1]])


def _domes(patient: Patient, level: float) -> Iterator[tuple[Points, int]]:
    """The diaphragm's domes cut at a level: outline and density of the organ beneath, right then left."""
    w, d = patient.half_width, patient.half_depth
    for side, organ in ((-1, LIVER), (1, SPLEEN)):
        top = 0.90 + 0.025 * side - 0.125 * patient.dome
        if level > top:
            reach = min(1.0, (level - top) / (1.04 - top)) ** 0.5
            x, y = side * (0.50 - 0.03 * reach) * w, (-0.05 - 0.17 * reach) * d
            yield ellipse(x, y, 0.50 * w * reach, 0.86 * d * reach, side * 0.12), organ


def lung_coverage(canvas: Canvas, patient: Patient, level: float) -> NDArray[np.float32]:
    """Coverage 0..1 of the canvas by aerated lung: the chest cavity without mediastinum and diaphragm."""
    plane = canvas.mask(cavity(patient, level)) * (1 - canvas.mask(_mediastinum(patient, level)))
    sigma = _along(level, (7.0, 3.0), (0.0, 0.2)) / canvas.spacing
    rounded = cv2.GaussianBlur(plane, (0, 0), sigma)
    lungs = np.clip((rounded - 0.5) * np.float32(sigma * 1.6) + 0.5, 0, 1)
    for outline, _ in _domes(patient, level):
        lungs *= 1 - cv2.GaussianBlur(canvas.mask(outline), (0, 0), 3.0 / canvas.spacing)
    return np.asarray(lungs, np.float32)


def paint_wall(canvas: Canvas, patient: Patient, level: float) -> NDArray[np.float32]:
    """Paint skin, fat and muscle over the whole body; returns the body's coverage of the canvas, 0..1."""
    outline = skin(patient, level)
    body = canvas.mask(outline)
    canvas.blend(body, -5)
    canvas.paint(outline * (1 - 1.8 / patient.half_width), FAT, softness=0.6)
    canvas.paint(skin(patient, level, depth=1.0), MUSCLE, softness=1.0)
    return body


def paint_mediastinum(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint what fills the space between the lungs: fat, the muscles beside the spine, the heart's muscle."""
    inside = canvas.mask(cavity(patient, level, margin=2.0))
    neck = float(np.clip(1 - level / 0.12, 0, 1))
    canvas.paint(_mediastinum(patient, level), FAT + neck * 90, 1.5, inside)
    canvas.paint(_mediastinum(patient, level, inset=-1.0, reach=(0.3, 1.15)), 20, 2.0, inside)
    if level > 0.54:
        front = -0.78 * min(1.0, max(0.3, (level - 0.54) / 0.08))
        heart = _mediastinum(patient, level, inset=5, reach=(front, 0.16))
        canvas.paint(heart, 46 + 0.25 * max(0.0, patient.blood - 45), softness=1.8)


def paint_organs(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint liver, spleen and stomach below the diaphragm, and all organs that are found at a level."""
    contrast = max(0.0, patient.blood - 46)
    for outline, tissue in _domes(patient, level) if level <= 1 else ():
        canvas.paint(outline, tissue + 0.35 * contrast, softness=4.0)
        x, y = outline.mean(axis=0)
        a, b = np.ptp(outline, axis=0) / 2
        if tissue == SPLEEN and a > 22:
            canvas.paint(ellipse(x - 0.1 * a, y - 0.25 * b, 0.62 * a, 0.5 * b, 0.2), FLUID + 22, softness=1.2)
            canvas.paint(ellipse(x - 0.05 * a, y - 0.52 * b, 0.5 * a, 0.2 * b, 0.2), GAS + 50, softness=0.8)
    for organ, outline in _present(_ORGANS, patient, level):
        canvas.paint(outline, organ.tissue + organ.contrast * (patient.blood - 46), softness=0.9)


def paint_airway(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint trachea or main bronchi with their walls; below the hilum there are none in the mediastinum."""
    lumens = [outline for _, outline in _present(_AIRWAY, patient, level)]
    for value, scale in ((30, 1.22), (GAS, 1.0)):
        for lumen in lumens:
            canvas.paint(_scaled(lumen, scale), value, softness=0.4)


def _present(organs: tuple[_Organ, ...], patient: Patient, level: float) -> Iterator[tuple[_Organ, Points]]:
    scale = np.array([patient.half_width / 130, patient.half_depth / 92])
    for organ in organs:
        if organ.top <= level < organ.bottom:
            share = (level - organ.top) / (organ.bottom - organ.top)
            x, y, a, b = np.array(organ.first) * (1 - share) + np.array(organ.last or organ.first) * share
            yield organ, ellipse(x, y, a, b, organ.turned) * scale


def _scaled(outline: Points, factor: float) -> Points:
    centre = outline.mean(axis=0)
    return np.asarray(centre + (outline - centre) * factor)


def paint_bones(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint vertebra, ribs, breast bone, collar bones and shoulder blades, each with its cortical rim."""
    _paint_vertebra(canvas, patient, level)
    wall = cavity(patient, level, margin=6.5)
    for rib in range(-1, 14):
        place = (level * 9.5 + patient.rib_phase + 4.2 - rib) * 0.205
        for side in (-1, 1):
            _paint_rib(canvas, wall, patient.marrow, place + 0.02 * side, side)
    front = float(cavity(patient, level, margin=7)[128, 1])
    if 0.10 < level < 0.86:
        width = _along(level, (20.0, 27.0, 16.0, 15.0, 11.0), (0.1, 0.18, 0.3, 0.6, 0.86))
        canvas.paint_bone(ellipse(0, front, width, 5.6), 1.8 / 5.6, patient.marrow - 30)
    for side in (-1, 1):
        if level < 0.17:
            away, length = (_along(level, ends, (0.0, 0.17)) for ends in ((62.0, 30.0), (17.0, 11.0)))
            collar = ellipse(side * away, front - 3, length, 6.5, side * -0.35)
            canvas.paint_bone(collar, 0.2, patient.marrow)
        if level < 0.52:
            _paint_shoulder_blade(canvas, patient, level, side)


def _paint_vertebra(canvas: Canvas, patient: Patient, level: float) -> None:
    y, width = 0.60 * patient.half_depth, _along(level, (14.0, 18.5), (0.0, 1.0))
    # Discs alternate with vertebral bodies and pedicles come and go down the column: 12 in the lungs' height.
    phase, back = (level * 11 + patient.rib_phase) % 1, y + 0.82 * width
    if phase < 0.6:
        for side in (-1, 1):
            process = np.array([[9.0, back + 6], [20, back + 9], [29, back + 15]]) * (side, 1)
            canvas.paint(ribbon(process, np.array([5.0, 3.6, 4.2])), CORTEX - 300, softness=0.9)
    canvas.paint(ellipse(0, back + 27, 2.6, 11 - 4 * phase), CORTEX - 250)
    canvas.paint(ellipse(0, back + 8.5, 13, 11.5), CORTEX - 200, softness=0.9)
    canvas.paint(ellipse(0, back + 8.5, 9.5, 8.0), CANAL - 40, softness=0.6)
    canvas.paint(ellipse(0, back + 8.5, 6.5, 5.0), CANAL + 10, softness=0.8)
    body = ellipse(0, y, width, 0.82 * width)
    canvas.paint_bone(body, 1.8 / width, patient.marrow)
    if phase > 0.84:
        canvas.paint(body, CARTILAGE - 10, softness=1.2)


def _paint_rib(canvas: Canvas, wall: Points, marrow: float, middle: float, side: int) -> None:
    """One rib's cut in the cage's wall; ``middle`` 0 at the spine to 1 at the breast bone is where along it."""
    if not 0.07 < middle < 1.0:
        return
    # Ribs cross the slice at a flat angle at the back and side, steeply at the front, from inside to outside.
    half = _along(middle, (0.062, 0.035), (0.1, 1.0))
    index = side * np.clip(np.linspace(middle - half, middle + half, 17), 0.04, 1) * 128
    curve = np.stack([np.interp(index, np.arange(256), wall[:, axis], period=256) for axis in (0, 1)], axis=1)
    lift = np.linspace(1.2, -1.2, 17)[:, None]
    curve = curve * (1 + lift / np.linalg.norm(curve, axis=1, keepdims=True))
    thickness = 4.1 * np.sin(np.linspace(0.12, np.pi - 0.12, 17)) ** 0.45
    canvas.paint(ribbon(curve, thickness), CARTILAGE if middle > 0.86 else CORTEX, softness=0.4)
    if middle <= 0.86:
        canvas.paint(ribbon(curve, np.maximum(thickness - 1.7, 0.2)), marrow + 70)


def _paint_shoulder_blade(canvas: Canvas, patient: Patient, level: float, side: int) -> None:
    wall = cavity(patient, max(level, 0.25), margin=20 + 0.35 * patient.muscle)
    first = 26 + 8 * (level < 0.2)
    blade = wall[first : first + int(26 * _along(level, (1.0, 0.9, 0.2), (0.0, 0.3, 0.52))) + 4]
    thickness = 1.7 + 2.4 * np.abs(np.linspace(-1, 1, len(blade))) ** 4
    # Towards the joint the blade leaves the cage.
    joint = max(0.0, (0.3 - level) / 0.3) * np.linspace(0, 1, len(blade))[:, None] ** 2
    blade = (blade + joint * (16.0, -5.0)) * (side, 1.0)
    canvas.paint(ribbon(blade, thickness), CORTEX, softness=0.35)
    canvas.paint(ribbon(blade, np.maximum(thickness - 1.5, 0.1)), patient.marrow + 60)
