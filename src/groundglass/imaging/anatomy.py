"""The anatomy of a synthetic patient's chest, painted level by level onto a plane of Hounsfield units.

Shapes are smooth outlines in millimetres, x to the patient's left and y to the back. A level is 0 at the apex of
the lungs and 1 at their base.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groundglass.imaging.slice import Hounsfield

Points = NDArray[np.float64]
"""A closed polygon or an open curve, shape (N, 2), mm."""

_Floats = NDArray[np.float64]
_Coverage = NDArray[np.float32]
_Region = tuple[slice, slice]
_Mask = _Coverage | None

# Hounsfield units of unenhanced tissue (Hounsfield scale as in Bushberg et al., The Essential Physics of
# Medical Imaging, 3rd edition, chapter 10).
MUSCLE, FAT, FLUID, LIVER, SPLEEN, KIDNEY, CARTILAGE = 52, -102, 8, 58, 48, 34, 105
CORTEX, CANAL, GAS = 720, 28, -980

_SUBPIXEL_BITS = 4
_CARINA = 0.42
_RIBS = 12
_HARMONICS = np.arange(2, 8)

# Thoracic inlet, sternoclavicular joint, aortic arch, carina, hilum, upper heart, lower heart, diaphragm.
_LEVELS = (0.0, 0.15, 0.30, 0.42, 0.55, 0.70, 0.85, 1.0)
_CAVITY_WIDTH = (0.50, 0.72, 0.86, 0.92, 0.96, 1.00, 1.00, 0.97)
_CAVITY_DEPTH = (0.46, 0.68, 0.86, 0.94, 0.98, 1.00, 1.00, 0.98)
# Front to back, in half depths of the chest cavity; +0.4 is the front of the vertebral body.
_DEPTHS = (-1.1, -0.85, -0.6, -0.35, -0.1, 0.15, 0.4, 0.65, 0.85, 1.15)
# Half width of the mediastinum and spine at levels x depths, in half widths of the chest cavity.
_RIGHT = (
    (0.30, 0.30, 0.30, 0.28, 0.25, 0.22, 0.20, 0.22, 0.30, 0.40),
    (0.36, 0.22, 0.20, 0.21, 0.23, 0.20, 0.17, 0.19, 0.27, 0.40),
    (0.20, 0.05, 0.09, 0.20, 0.24, 0.20, 0.14, 0.17, 0.24, 0.36),
    (0.15, 0.03, 0.07, 0.23, 0.27, 0.22, 0.12, 0.16, 0.24, 0.36),
    (0.15, 0.04, 0.14, 0.29, 0.31, 0.22, 0.10, 0.16, 0.24, 0.36),
    (0.15, 0.08, 0.29, 0.37, 0.36, 0.24, 0.08, 0.16, 0.24, 0.36),
    (0.20, 0.18, 0.33, 0.39, 0.35, 0.20, 0.07, 0.16, 0.24, 0.36),
    (0.34, 0.34, 0.38, 0.36, 0.30, 0.16, 0.07, 0.16, 0.24, 0.36),
)
_LEFT = (
    (0.30, 0.30, 0.30, 0.28, 0.25, 0.22, 0.20, 0.22, 0.30, 0.40),
    (0.36, 0.22, 0.18, 0.19, 0.21, 0.21, 0.18, 0.19, 0.27, 0.40),
    (0.20, 0.05, 0.13, 0.23, 0.29, 0.31, 0.26, 0.19, 0.24, 0.36),
    (0.15, 0.03, 0.11, 0.26, 0.27, 0.18, 0.25, 0.23, 0.24, 0.36),
    (0.15, 0.06, 0.25, 0.35, 0.32, 0.16, 0.24, 0.23, 0.24, 0.36),
    (0.15, 0.20, 0.50, 0.56, 0.43, 0.18, 0.23, 0.22, 0.24, 0.36),
    (0.20, 0.42, 0.66, 0.63, 0.42, 0.16, 0.21, 0.21, 0.24, 0.36),
    (0.34, 0.52, 0.66, 0.56, 0.34, 0.15, 0.20, 0.20, 0.24, 0.36),
)


@dataclass(frozen=True)
class Canvas:
    """A square plane seen with the patient's middle near its centre.

    Attributes:
        size: pixels along each side.
        spacing: mm between pixels.
        middle: where the origin of drawing lies, mm from the plane's centre.
        tilt: how far drawing is turned clockwise, radians.
        hounsfield: the plane, float32 (size, size), starting as air; drawing changes it in place.
    """

    size: int
    spacing: float
    middle: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0
    hounsfield: Hounsfield = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hounsfield", np.full((self.size, self.size), -1000, np.float32))

    def to_pixels(self, points: Points) -> Points:
        """Millimetres to (column, row)."""
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        turned = points @ np.array([[cosine, sine], [-sine, cosine]]) + self.middle
        return np.asarray(turned / self.spacing + (self.size - 1) / 2)

    def fill(self, plane: NDArray[np.uint8], points: Points, value: int) -> None:
        """Fill a polygon with a grey value, its edge anti-aliased, on an 8-bit plane of the canvas's size."""
        _fill(plane, self.to_pixels(points), value)

    def mask(self, points: Points) -> _Coverage:
        """Coverage 0..1 of the whole plane by a polygon."""
        plane = np.zeros((self.size, self.size), np.uint8)
        self.fill(plane, points, 255)
        return plane.astype(np.float32) * np.float32(1 / 255)

    def coverage(self, points: Points, softness: float) -> tuple[_Region, _Coverage]:
        """Coverage 0..1 by a polygon, as the pixels' region, which may be empty, and a plane of its shape.

        ``softness`` is the standard deviation, mm, of a blur of the edge: partial volume of a slanted surface.
        """
        pixels = self.to_pixels(points)
        sigma = softness / self.spacing
        margin = 2 + int(np.ceil(2.5 * sigma))
        low = np.clip(np.floor(pixels.min(axis=0)).astype(int) - margin, 0, self.size)
        high = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + margin + 1, low, self.size)
        region = (slice(low[1], high[1]), slice(low[0], high[0]))
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        if mask.size:
            _fill(mask, pixels - low, 255)
            mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma)) if sigma > 0 else mask
        return region, mask.astype(np.float32) * np.float32(1 / 255)

    def paint(
        self, points: Points, value: float, softness: float = 0, opacity: float = 1, within: _Mask = None
    ) -> None:
        """Fill a polygon with Hounsfield units, blended by coverage times ``opacity`` and ``within``."""
        region, cover = self.coverage(points, softness)
        if within is not None:
            cover = cover * within[region]
        plane = self.hounsfield[region]
        plane += (cover * np.float32(opacity)) * (np.float32(value) - plane)

    def blend(self, cover: _Coverage, value: float | NDArray[np.float32]) -> None:
        """Blend Hounsfield units over the whole plane by a coverage of its shape."""
        self.hounsfield[...] += cover * (np.asarray(value, np.float32) - self.hounsfield)


def _fill(plane: NDArray[np.uint8], pixels: Points, value: int) -> None:
    fixed = np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(plane, [fixed], float(value), lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


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


def _mirrored(points: list[list[float]], side: int) -> Points:
    """A shape on the patient's left (``side`` 1) or right (``side`` -1)."""
    return np.array(points) * (side, 1.0)


def _scaled(outline: Points, factor: float) -> Points:
    centre = outline.mean(axis=0)
    return np.asarray(centre + (outline - centre) * factor)


def _along(level: float, values: tuple[float, ...], levels: tuple[float, ...] = _LEVELS) -> float:
    """Interpolate values given at some levels."""
    return float(np.interp(level, levels, values))


# Vessels


@dataclass(frozen=True)
class Vessels:
    """Tapering straight segments of a vessel tree, or the part of them inside a slice; N of them."""

    start: _Floats  # (N, 3), mm, z from apex to base; (N, 2) of a cut
    end: _Floats
    radius: _Floats  # (N,), mm, where a segment starts, or in the middle of a cut one
    generation: NDArray[np.int64]  # (N,), 0 for the branches that leave the root
    share: _Floats | float = 1.0  # (N,), 0..1, the part of the slice's thickness that the vessel fills

    @classmethod
    def grow(cls, root: _Floats, targets: _Floats, radius: float, rng: Generator) -> Vessels:
        """Grow a binary tree from ``root`` until a branch points at each target.

        Every generation halves each group of targets along the axis of its greatest spread and sends a branch
        part of the way to each half's centre of mass: the volume-filling scheme of Tawhai et al. (Annals of
        Biomedical Engineering, 2000), one generation at a time. Radii shrink nearly by Murray's law.

        Args:
            root: float64 (3,), mm.
            targets: float64 (2**generations, 3), mm, spread over the volume to fill.
            radius: at the root, mm.
            rng: source of the branches' irregularity.
        """
        generations = int(np.log2(len(targets)))
        tips = root[None]
        groups = np.ascontiguousarray(targets.T)[:, None]
        starts, ends, radii = [], [], []
        for generation in range(generations):
            spread = groups.max(axis=2) - groups.min(axis=2)
            # Not always the widest axis, or all branches of a generation would lie at one level.
            widest = (spread * rng.uniform(0.45, 1.0, spread.shape)).argmax(axis=0)
            order = groups[widest, np.arange(len(widest))]
            order = order.argpartition(order.shape[1] // 2 - 1, axis=1)
            groups = np.take_along_axis(groups, order[None], axis=2).reshape(3, 2 * len(widest), -1)
            origin = np.repeat(tips, 2, axis=0)
            reach = rng.uniform(0.18, 0.62, (len(origin), 1)) if generation + 1 < generations else 0.9
            tips = origin + (groups.mean(axis=2).T - origin) * reach
            length = np.linalg.norm(tips - origin, axis=1, keepdims=True)
            tips = tips + rng.normal(0, 0.12, tips.shape) * length
            starts.append(origin)
            ends.append(tips)
            radii.append(radius * 2 ** (-0.40 * (generation + rng.uniform(-0.5, 0.5, len(tips)))))
        generation_of = np.repeat(range(generations), [len(each) for each in radii])
        return cls(np.concatenate(starts), np.concatenate(ends), np.concatenate(radii), generation_of)

    def cut(self, z: float, thickness: float) -> Vessels:
        """The part inside the axial slice of the given thickness around ``z``, all in mm."""
        rise = self.end[:, 2] - self.start[:, 2]
        rise = np.where(np.abs(rise) < 1e-6, 1e-6, rise)
        half = thickness / 2 + 0.5 * self.radius
        bounds = np.stack([(z - half - self.start[:, 2]) / rise, (z + half - self.start[:, 2]) / rise])
        first, last = np.clip(bounds.min(axis=0), 0, 1), np.clip(bounds.max(axis=0), 0, 1)
        kept = last > first
        first, last, wide = first[kept], last[kept], self.radius[kept]
        start, run = self.start[kept], (self.end - self.start)[kept]
        # A segment tapers to 0.8 of its radius.
        radius = wide + (wide * 0.8 - wide) * ((first + last) / 2)
        filled = np.abs(rise[kept]) * (last - first) + 1.6 * radius
        share = np.clip(filled / (thickness + 1.2 * radius), 0.05, 1)
        near, far = ((start + run * part[:, None])[:, :2] for part in (first, last))
        return Vessels(near, far, radius, self.generation[kept], share)

    def draw(self, canvas: Canvas, widen: float = 0.0) -> _Coverage:
        """Coverage 0..1 of the canvas by a cut tree, ``widen`` mm added to every radius."""
        plane = np.zeros((canvas.size, canvas.size), np.uint8)
        radius = np.maximum(self.radius + widen, 0.05) / canvas.spacing
        # Vessels thinner than a pixel are dimmed.
        shown = np.maximum(radius, 0.55)
        level = np.rint(255 * self.share * np.minimum(1, radius / 0.55)).astype(int)
        start, end = canvas.to_pixels(self.start), canvas.to_pixels(self.end)
        run = end - start
        cap = np.linspace(np.pi / 2, 3 * np.pi / 2, 7)
        turn = np.arctan2(run[:, 1], run[:, 0])[:, None] + np.concatenate([cap, cap + np.pi])
        centre = np.concatenate([np.repeat(start[:, None], 7, 1), np.repeat(end[:, None], 7, 1)], axis=1)
        capsule = centre + shown[:, None, None] * np.stack([np.cos(turn), np.sin(turn)], axis=2)
        fixed = np.rint(capsule * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        # Dim ones first: where vessels cross, the brighter one shows, as in a thin slice.
        for index in np.argsort(level, kind="stable"):
            cv2.fillConvexPoly(plane, fixed[index], int(level[index]), cv2.LINE_AA, _SUBPIXEL_BITS)
        return plane.astype(np.float32) * np.float32(1 / 255)


# Patients and their outlines


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
    shoulders: float  # how far they stand out at the apex
    heart: float  # scale of the heart's width
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
        half_depth = half_width * rng.uniform(0.65, 0.77)
        height = rng.uniform(215, 270)
        amplitude = np.abs(rng.normal(0, 0.014, (4, len(_HARMONICS)))) / (_HARMONICS - 1) ** 0.5
        turns = rng.uniform(0, 2 * np.pi, (4, len(_HARMONICS)))
        drift = rng.normal(0, 2.5, (4, len(_HARMONICS)))
        return cls(
            number=int(rng.integers(1 << 40)),
            half_width=half_width,
            half_depth=half_depth,
            height=height,
            fat=float(np.clip(rng.gamma(3.0, 4.5), 4, 40)),
            muscle=rng.uniform(9, 18),
            breast=float(rng.choice([0.0, 1.0])) * rng.uniform(8, 32),
            shoulders=rng.uniform(25, 50),
            heart=rng.uniform(0.88, 1.12),
            blood=rng.uniform(130, 330) if rng.random() < 0.35 else rng.uniform(34, 48),
            lung=rng.uniform(-890, -810),
            marrow=rng.uniform(110, 290),
            rib_phase=rng.uniform(0, 1),
            dome=rng.uniform(0.15, 1.0),
            tilt=rng.normal(0, 0.025),
            middle=(rng.normal(0, 5), rng.normal(-4, 7)),
            wobble=np.stack([amplitude, turns, drift], axis=1),
            vessels=_grow_vessels(np.array([half_width, half_depth, height]), rng),
        )


def _grow_vessels(extent: _Floats, rng: Generator) -> tuple[Vessels, ...]:
    trees = []
    for hilum, radius, tips in (((0.27, 0.02, 0.50), 5.6, 2048), ((0.24, -0.04, 0.57), 4.6, 1024)):
        for side in (-1, 1):
            level = rng.uniform(0.02, 1, tips)
            width = np.interp(level, _LEVELS, _CAVITY_WIDTH)
            lateral = 0.16 + (0.97 * width - 0.16) * rng.uniform(0, 1, tips)
            reach = np.sqrt(np.maximum(0, 1 - (lateral / width) ** 2))
            depth = rng.uniform(-1, 1, tips) * (np.interp(level, _LEVELS, _CAVITY_DEPTH) * reach)
            targets = np.stack([side * lateral, depth, level], axis=1) * extent
            trees.append(Vessels.grow(np.array(hilum) * (side, 1, 1) * extent, targets, radius, rng))
    return tuple(trees)


def cavity(patient: Patient, level: float, margin: float = 0.0) -> Points:
    """Inner outline of the rib cage, ``margin`` mm outside it; 256 points from the back, turning leftwards."""
    a = _along(level, _CAVITY_WIDTH) * patient.half_width + margin
    b = _along(level, _CAVITY_DEPTH) * patient.half_depth + margin
    turn = np.pi / 2 - np.linspace(0, 2 * np.pi, 256, endpoint=False)
    x, y = _superellipse(turn, np.where(np.sin(turn) > 0, 2.75, 2.15))
    # The cage is widest towards its back and narrows towards the front.
    x = x * (1 - 0.14 * np.maximum(0, -y) ** 1.3)
    scale = 1 + _irregularity(patient, 0, turn, level)
    return np.stack([a * x * scale, b * y * scale], axis=1)


def skin(patient: Patient, level: float, depth: float = 0.0) -> Points:
    """Outline of the body, or of the layer ``depth`` (0 skin, 1 under the fat) below it; 256 points."""
    turn = np.pi / 2 - np.linspace(0, 2 * np.pi, 256, endpoint=False)
    x, y = _superellipse(turn, 2.5)
    front, back = np.maximum(0, -y), np.maximum(0, y)
    shoulder = max(0.0, 1 - level / 0.4) ** 1.3
    wall = 9 + patient.muscle
    a = patient.half_width * 0.97 + wall + patient.fat * (1 - depth) + shoulder * patient.shoulders
    b = patient.half_depth * (1 - 0.28 * shoulder) + 8 + 0.7 * (1 - depth) * patient.fat
    scale = 1 + _irregularity(patient, 1, turn, level)
    x = a * x * scale * (1 - 0.10 * front**2)
    y = b * y * scale + back * (14 + 0.35 * patient.muscle)
    lateral = np.abs(x) / a
    bulge = patient.breast * np.exp(-(((level - 0.62) / 0.2) ** 2)) * (0.25 + 0.75 * (1 - depth))
    y = y - bulge * front * np.exp(-(((lateral - 0.52) / 0.24) ** 2))
    # The furrow along the breast bone and the one over the spine.
    y = y + 0.25 * patient.breast * front * np.exp(-((lateral / 0.13) ** 2)) * (level > 0.3)
    y = y - 5 * back**4 * np.exp(-((lateral / 0.09) ** 2))
    return np.stack([x, y], axis=1)


def _mediastinum(
    patient: Patient, level: float, inset: float = 0.0, reach: tuple[float, float] = (-1.1, 1.15)
) -> Points:
    """Outline of what lies between the lungs, spine included, ``inset`` mm taken off each side.

    ``reach`` is the part from front to back, in half depths of the cavity.
    """
    depth = np.linspace(*reach, 96)
    smoothing = np.hanning(15)[1:-1] / np.hanning(15).sum()
    sides = []
    for index, (table, side) in enumerate(((_RIGHT, -1), (_LEFT, 1))):
        widths = [_along(level, column) for column in zip(*table, strict=True)]
        width = np.interp(depth, _DEPTHS, widths)
        width = np.convolve(np.pad(width, 6, mode="edge"), smoothing, "valid")
        cardiac = np.clip((level - 0.5) / 0.1, 0, 1) * np.clip((0.3 - depth) / 0.2, 0, 1)
        width = width * (1 + cardiac * (patient.heart - 1))
        width = width + 0.9 * _irregularity(patient, 2 + index, 2.2 * depth, level)
        lateral = np.maximum(width * patient.half_width - inset, 0.5)
        sides.append(np.stack([side * lateral, depth * patient.half_depth], axis=1))
    return np.concatenate([sides[0], sides[1][::-1]])


def _irregularity(patient: Patient, outline: int, turn: _Floats, level: float) -> _Floats:
    """Relative deviation of an outline from its smooth shape, drifting slowly from level to level."""
    amplitude, phase, drift = patient.wobble[outline]
    waves = np.cos(turn[:, None] * _HARMONICS + phase + drift * level)
    return np.asarray((amplitude * waves).sum(axis=1))


def _superellipse(turn: _Floats, exponent: _Floats | float) -> tuple[_Floats, _Floats]:
    cosine, sine = np.cos(turn), np.sin(turn)
    power = 2 / exponent
    return np.sign(cosine) * np.abs(cosine) ** power, np.sign(sine) * np.abs(sine) ** power


def lung_coverage(canvas: Canvas, patient: Patient, level: float) -> NDArray[np.float32]:
    """Coverage 0..1 of the canvas by aerated lung: the chest cavity without mediastinum and diaphragm."""
    plane = np.zeros((canvas.size, canvas.size), np.uint8)
    canvas.fill(plane, cavity(patient, level), 255)
    canvas.fill(plane, _mediastinum(patient, level), 0)
    sigma = _along(level, (7.0, 3.0), (0.0, 0.2)) / canvas.spacing
    rounded = cv2.GaussianBlur(plane, (0, 0), sigma).astype(np.float32) / 255
    lungs = np.clip((rounded - 0.5) * np.float32(sigma * 1.6) + 0.5, 0, 1)
    for outline, _ in _dome_outlines(patient, level):
        region, cover = canvas.coverage(outline, softness=3.0)
        lungs[region] *= 1 - cover
    return np.asarray(lungs, np.float32)


# Soft tissue


def paint_wall(canvas: Canvas, patient: Patient, level: float) -> NDArray[np.float32]:
    """Paint skin, fat and muscle over the whole body; returns the body's coverage of the canvas, 0..1."""
    outline = skin(patient, level)
    body = canvas.mask(outline)
    canvas.blend(body, -5)
    canvas.paint(outline * (1 - 1.8 / patient.half_width), FAT, softness=0.6)
    canvas.paint(skin(patient, level, depth=1.0), MUSCLE, softness=1.0)
    return body


def paint_mediastinum(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint what lies between the lungs, without the airway's gas: fat, heart, great vessels, oesophagus."""
    neck = float(np.clip(1 - level / 0.12, 0, 1))
    inside = canvas.mask(cavity(patient, level, margin=2.0))
    canvas.paint(_mediastinum(patient, level), FAT + neck * 90, softness=1.5, within=inside)
    spine = _mediastinum(patient, level, inset=-1.0, reach=(0.3, 1.15))
    canvas.paint(spine, 20, softness=2.0, within=inside)
    if level < 0.27:
        close = _along(level, (1.2, 1.0), (0.0, 0.25))
        veins = (-0.15, -0.40, 8.0), (0.13, -0.48, 7.5)
        arteries = (-0.11, -0.16, 7.0), (0.07, -0.24, 4.5), (0.15, -0.05, 5.5)
        for x, y, radius in veins + arteries:
            _disc(canvas, patient, (x * close, y), radius, patient.blood, 1.1)
    elif level < 0.37:
        arch = [[-0.05, -0.38], [0.08, -0.26], [0.17, -0.05], [0.19, 0.15], [0.16, 0.33]]
        _tube(canvas, patient, arch, [9.0, 12, 12.5, 12, 10], softness=1.2)
        _disc(canvas, patient, (-0.15, -0.26), 8.5, patient.blood, 0.95)
    elif level < 0.58:
        _paint_great_vessels(canvas, patient, level)
    if level >= 0.54:
        _paint_heart(canvas, patient, level)
    _disc(canvas, patient, (0.03, 0.30), 6.5, 38)
    _disc(canvas, patient, (0.045, 0.30), 2.0, -60)


def _disc(
    canvas: Canvas, patient: Patient, at: tuple[float, float], radius: float, value: float, stretch: float = 1
) -> None:
    """A nearly round structure at a place in half widths and half depths of the cavity."""
    x, y = at[0] * patient.half_width, at[1] * patient.half_depth
    canvas.paint(ellipse(x, y, radius * stretch, radius / stretch), value, softness=0.5)


def _tube(
    canvas: Canvas, patient: Patient, course: list[list[float]], radii: list[float], softness: float
) -> None:
    """A vessel that runs within the slice."""
    curve = np.array(course) * (patient.half_width, patient.half_depth)
    canvas.paint(ribbon(curve, np.array(radii)), patient.blood, softness)


def _paint_great_vessels(canvas: Canvas, patient: Patient, level: float) -> None:
    """Descending aorta, superior vena cava, ascending aorta, pulmonary trunk and arteries."""
    trunk = float(np.clip((level - 0.38) / 0.04, 0, 1))
    for at, radius, stretch in (
        ((0.18, 0.42), 11.5, 1.0),
        ((-0.17, -0.22), 8.5, 0.95),
        ((-0.05, -0.38), 15.5, 1.04),
        ((0.14, -0.37), 13.5 * trunk + 0.1, 1.05),
    ):
        _disc(canvas, patient, at, radius, patient.blood, stretch)
    if level > 0.45:
        right = [[0.13, -0.25], [0.04, -0.12], [-0.10, -0.08], [-0.22, -0.04], [-0.30, 0.03]]
        _tube(canvas, patient, right, [10.0, 9, 8.5, 8, 6], softness=1.0)
        left = [[0.16, -0.27], [0.22, -0.14], [0.27, -0.02], [0.28, 0.06]]
        _tube(canvas, patient, left, [9.0, 9, 8, 5], softness=1.0)


def _paint_heart(canvas: Canvas, patient: Patient, level: float) -> None:
    """Descending aorta, the heart's muscle and its chambers."""
    w, d = patient.half_width, patient.half_depth
    _disc(canvas, patient, (0.17, 0.44), 11.0, patient.blood)
    grown = float(np.clip((level - 0.54) / 0.08, 0.3, 1))
    canvas.paint(_mediastinum(patient, level, inset=5, reach=(-0.78 * grown, 0.16)), 46, softness=1.8)
    muscle = 46 + 0.25 * max(0.0, patient.blood - 45)
    low = float(np.clip((level - 0.6) / 0.25, 0, 1))
    for chamber, filling, wall in (
        (ellipse(0.30 * w, -0.36 * d, 0.22 * w, 0.13 * w, -0.75), 1.0, 9.0),
        (ellipse(0.04 * w, -0.58 * d, 0.22 * w, 0.12 * w, -0.3), 0.9, 3.5),
        (ellipse(0.04 * w, -0.02 * d, 0.24 * w, 0.10 * w * (1 - 0.5 * low), 0.0), 1.0, 2.0),
        (ellipse(-0.20 * w, -0.33 * d, 0.13 * w, 0.17 * w, 0.0), 0.85, 2.0),
    ):
        canvas.paint(_scaled(chamber, 1 + wall / (0.15 * w)), muscle, softness=1.5)
        canvas.paint(chamber, 46 + filling * (patient.blood - 46), softness=1.8)


def paint_airway(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint trachea or main bronchi with their walls; below the hilum there are none in the mediastinum."""
    w, d = patient.half_width, patient.half_depth
    if level < _CARINA - 0.02:
        lumens = [ellipse(-0.005 * w, _along(level, (-0.05, 0.12), (0.0, _CARINA)) * d, 8.2, 9.2)]
    elif level < _CARINA + 0.025:
        lumens = [ellipse(0.0, 0.12 * d, _along(level, (10.0, 17.0), (0.4, 0.445)), 7.0)]
    elif level < 0.56:
        away = _along(level, (0.085, 0.25), (_CARINA + 0.02, 0.56))
        right = ellipse(-away * w, 0.11 * d, 8.0, 6.2, 0.25)
        lumens = [right, ellipse(away * 0.95 * w, 0.10 * d, 8.5, 5.4, -0.25)]
    else:
        return
    for lumen in lumens:
        canvas.paint(_scaled(lumen, 1.22), 30, softness=0.4)
        canvas.paint(lumen, GAS, softness=0.4)


def _dome_outlines(patient: Patient, level: float) -> list[tuple[Points, int]]:
    """The diaphragm's domes cut at a level: outline and density of the organ beneath, right then left."""
    domes = []
    w, d = patient.half_width, patient.half_depth
    tops = 0.88 - 0.13 * patient.dome, 0.93 - 0.12 * patient.dome
    for side, top, organ in ((-1, tops[0], LIVER), (1, tops[1], SPLEEN)):
        depth = (level - top) / (1.04 - top)
        if depth <= 0:
            continue
        reach = min(1.0, depth) ** 0.5
        centre = np.array([side * (0.50 - 0.03 * reach) * w, (-0.05 - 0.17 * reach) * d])
        outline = ellipse(centre[0], centre[1], 0.50 * w * reach, 0.86 * d * reach, side * 0.12)
        turn = np.linspace(0, 2 * np.pi, len(outline), endpoint=False)
        scale = 1 + 2.5 * _irregularity(patient, 2 if side < 0 else 3, turn, level)
        domes.append((centre + (outline - centre) * scale[:, None], organ))
    return domes


def paint_domes(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint liver, spleen and stomach where the slice is below the diaphragm."""
    enhanced = 0.25 * max(0.0, patient.blood - 45)
    for outline, organ in _dome_outlines(patient, level):
        canvas.paint(outline, organ + enhanced, softness=4.0)
        a, b = np.ptp(outline, axis=0) / 2
        if organ == SPLEEN and 2 * a > 45:
            x, y = outline.mean(axis=0)
            stomach = ellipse(x - 0.1 * a, y - 0.25 * b, 0.62 * a, 0.5 * b, 0.2)
            canvas.paint(stomach, FLUID + 22, softness=1.2)
            height = stomach[:, 1]
            gas = stomach[height < height.mean() - 0.1 * np.ptp(height)]
            if len(gas) > 2:
                canvas.paint(gas, -930, softness=0.8)


# Bones


def paint_bones(canvas: Canvas, patient: Patient, level: float) -> None:
    """Paint vertebra, ribs, breast bone, collar bones and shoulder blades, each with its cortical rim."""
    _paint_vertebra(canvas, patient, level)
    wall = cavity(patient, level, margin=6.5)
    for rib in range(-1, _RIBS + 2):
        place = (level * 9.5 + patient.rib_phase + 4.2 - rib) * 0.205
        for side in (-1, 1):
            _paint_rib(canvas, patient, wall, place + 0.02 * side, side)
    _paint_sternum(canvas, patient, level)
    for side in (-1, 1):
        _paint_shoulder_blade(canvas, patient, level, side)


def _paint_bone(canvas: Canvas, outer: Points, inner: Points, marrow: float, cortex: float = CORTEX) -> None:
    canvas.paint(outer, cortex, softness=0.35)
    canvas.paint(inner, marrow, softness=0.45)


def _hollow(outline: Points, rim: float) -> Points:
    """An outline without its rim, mm."""
    radius = float(np.linalg.norm(outline - outline.mean(axis=0), axis=1).mean())
    return _scaled(outline, max(0.1, 1 - rim / radius))


def _paint_vertebra(canvas: Canvas, patient: Patient, level: float) -> None:
    y = 0.60 * patient.half_depth
    width = _along(level, (14.0, 18.5), (0.0, 1.0))
    # Discs alternate with vertebral bodies and pedicles come and go down the column: 12 in the lungs' height.
    phase = (level * 11 + patient.rib_phase) % 1
    depth = 0.82 * width
    back = y + depth
    for side in (-1, 1):
        if phase < 0.6:
            process = _mirrored([[9.0, back + 6], [20, back + 9], [29, back + 15]], side)
            reach = np.array([5.0, 3.6, 4.2])
            _paint_bone(canvas, ribbon(process, reach), ribbon(process, reach - 1.6), patient.marrow + 60)
        lamina = _mirrored([[10.0, back + 3], [8, back + 13], [1, back + 20]], side)
        canvas.paint(ribbon(lamina, np.array([3.6, 3.0, 2.8])), CORTEX - 180, softness=0.9)
        if phase < 0.5:
            pedicle = _mirrored([[9.5, y + 0.6 * depth], [10.0, back + 6]], side)
            canvas.paint(ribbon(pedicle, 3.2), CORTEX - 200, softness=0.8)
    spine = np.array([[0.0, back + 17], [0.4, back + 28], [0, back + 38 - 10 * phase]])
    outer, inner = (ribbon(spine, np.array(each)) for each in ([3.4, 2.4, 3.0], [1.6, 0.8, 1.2]))
    _paint_bone(canvas, outer, inner, patient.marrow)
    canvas.paint(ellipse(0, back + 8.5, 9.5, 8.0), CANAL - 40, softness=0.6)
    canvas.paint(ellipse(0, back + 8.5, 6.5, 5.0), CANAL + 10, softness=0.8)
    body = ellipse(0, y, width, depth)
    # The body's back is hollowed towards the canal.
    body[:, 1] -= 3.5 * np.exp(-((body[:, 0] / 8) ** 2)) * (body[:, 1] > y)
    if phase > 0.84:
        canvas.paint(body, 95, softness=1.2)
    else:
        _paint_bone(canvas, body, _hollow(body, 1.8), patient.marrow, CORTEX - 120)


def _paint_rib(canvas: Canvas, patient: Patient, wall: Points, middle: float, side: int) -> None:
    """One rib's cut; ``middle`` 0 at the spine to 1 at the breast bone is where along the cage it lies."""
    if not 0.07 < middle < 1.0:
        return
    # Ribs cross the slice at a flat angle at the back and side, steeply at the front.
    half = _along(middle, (0.062, 0.052, 0.042, 0.035), (0.1, 0.4, 0.7, 1.0))
    places = np.clip(np.linspace(middle - half, middle + half, 17), 0.04, 1) * 128
    index = places if side > 0 else 256 - places
    knots = np.arange(257)
    curve = np.stack([np.interp(index, knots, np.append(wall[:, axis], wall[0, axis])) for axis in (0, 1)], 1)
    # The cut runs from the rib's inner to its outer surface.
    outwards = curve - wall.mean(axis=0)
    outwards = outwards / np.linalg.norm(outwards, axis=1, keepdims=True)
    curve = curve + outwards * np.linspace(1.2, -1.2, 17)[:, None]
    taper = np.sin(np.linspace(0.12, np.pi - 0.12, 17)) ** 0.45
    thickness = _along(middle, (4.4, 3.9, 4.2), (0.1, 0.5, 1.0)) * taper
    if middle > 0.86:
        canvas.paint(ribbon(curve, thickness), CARTILAGE, softness=0.7)
    else:
        inner = ribbon(curve, np.maximum(thickness - 1.7, 0.2))
        _paint_bone(canvas, ribbon(curve, thickness), inner, patient.marrow + 70)


def _paint_sternum(canvas: Canvas, patient: Patient, level: float) -> None:
    """Breast bone and, near the apex, collar bones."""
    front = float(cavity(patient, level, margin=7)[128, 1])
    if 0.10 < level < 0.86:
        width = _along(level, (20.0, 27.0, 16.0, 15.0, 11.0), (0.1, 0.18, 0.3, 0.6, 0.86))
        outer, inner = ellipse(0, front, width, 5.6), ellipse(0, front, width - 2.2, 3.9)
        for outline in (outer, inner):
            outline[:, 1] -= 2.0 * (outline[:, 0] / width) ** 2
        _paint_bone(canvas, outer, inner, patient.marrow - 30, CORTEX - 150)
    if level < 0.17:
        away, length = (_along(level, values, (0.0, 0.17)) for values in ((62.0, 30.0), (17.0, 11.0)))
        for side in (-1, 1):
            bone = ellipse(side * away, front - 3, length, 6.5, side * -0.35)
            _paint_bone(canvas, bone, _hollow(bone, 1.9), patient.marrow + 40)


def _paint_shoulder_blade(canvas: Canvas, patient: Patient, level: float, side: int) -> None:
    if level > 0.52:
        return
    reach = _along(level, (1.0, 0.9, 0.2), (0.0, 0.3, 0.52))
    wall = cavity(patient, max(level, 0.25), margin=20 + 0.35 * patient.muscle)
    first = 26 + 8 * (level < 0.2)
    blade = wall[first : first + int(26 * reach) + 4]
    ends = np.linspace(-1, 1, len(blade))
    thickness = 1.7 + 2.4 * np.abs(ends) ** 4
    if level < 0.3:
        # Towards the joint the blade leaves the cage and thickens.
        near = (0.3 - level) / 0.3
        blade = blade + np.linspace(0, 1, len(blade))[:, None] ** 2 * (16 * near) * (1.0, -0.3)
        thickness = thickness + 2.2 * near * (ends > 0.3)
    blade = blade * (side, 1.0)
    inner = ribbon(blade, np.maximum(thickness - 1.5, 0.1))
    _paint_bone(canvas, ribbon(blade, thickness), inner, patient.marrow + 60)
    if level < 0.24:
        crest = blade[len(blade) // 2] + _mirrored([[0.0, 0.0], [7.0, 15.0], [18.0, 22.0]], side)
        canvas.paint(ribbon(crest, np.array([1.8, 1.5, 2.6])), CORTEX - 100, softness=0.6)
