"""The shape of an invented chest: how its outlines change from the apex of the lungs to their base."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.canvas import Points
from groundglass.imaging.vessels import VesselTree, grow_tree

# Levels along the lungs, 0 apex to 1 base: thoracic inlet, sternoclavicular joint, aortic arch, carina,
# hilum, upper heart, lower heart, diaphragm.
LEVELS = (0.0, 0.15, 0.30, 0.42, 0.55, 0.70, 0.85, 1.0)

# Front to back, in half depths of the chest cavity; +0.4 is the front of the vertebral body.
DEPTHS = (-1.1, -0.85, -0.6, -0.35, -0.1, 0.15, 0.4, 0.65, 0.85, 1.15)

# Half width of the mediastinum and spine at LEVELS x DEPTHS, in half widths of the chest cavity.
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
_CAVITY_WIDTH = (0.50, 0.72, 0.86, 0.92, 0.96, 1.00, 1.00, 0.97)
_CAVITY_DEPTH = (0.46, 0.68, 0.86, 0.94, 0.98, 1.00, 1.00, 0.98)
_HARMONICS = np.arange(2, 8)


def along(level: float, values: tuple[float, ...], levels: tuple[float, ...] = LEVELS) -> float:
    """Interpolate values given at some levels."""
    return float(np.interp(level, levels, values))


@dataclass(frozen=True)
class Patient:
    """What stays the same through all slices of one invented patient; lengths in mm, densities in HU.

    Attributes:
        number: identifies the patient; names and UIDs are made from it.
        half_width, half_depth: of the chest cavity at its widest.
        height: of the lungs, from apex to base.
        fat: thickness of subcutaneous fat at the side.
        muscle: thickness of the chest wall's muscles.
        breast: forward bulge of the breasts.
        shoulders: how far the shoulders stand out at the apex.
        heart: scale of the heart's width.
        blood: density of blood; above 100 with contrast medium.
        lung: mean density of aerated lung.
        marrow: density of spongy bone.
        rib_phase: where along the ribs' sequence the apex lies.
        dome: how far the diaphragm stands up, 0..1.
        wobble: float64 (outlines, 3, harmonics), amplitude, phase and drift of each outline's irregularity.
        tilt: of the body on the table, radians.
        middle: of the body in the field of view, mm.
        vessels: pulmonary arteries of both lungs, whose first generations the bronchi follow, then veins.
    """

    number: int
    half_width: float
    half_depth: float
    height: float
    fat: float
    muscle: float
    breast: float
    shoulders: float
    heart: float
    blood: float
    lung: float
    marrow: float
    rib_phase: float
    dome: float
    tilt: float
    middle: tuple[float, float]
    wobble: NDArray[np.float64] = field(repr=False)
    vessels: tuple[VesselTree, ...] = field(repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        """Invent a patient."""
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
            vessels=_grow_vessels(half_width, half_depth, height, rng),
        )


def _grow_vessels(
    half_width: float, half_depth: float, height: float, rng: np.random.Generator
) -> tuple[VesselTree, ...]:
    trees = []
    for hilum, radius, tips in (((0.27, 0.02, 0.50), 5.6, 2048), ((0.24, -0.04, 0.57), 4.6, 1024)):
        for side in (-1, 1):
            root = np.array([side * hilum[0] * half_width, hilum[1] * half_depth, hilum[2] * height])
            targets = _spread(side, half_width, half_depth, height, tips, rng)
            trees.append(grow_tree(root, targets, radius, rng))
    return tuple(trees)


def _spread(
    side: int, half_width: float, half_depth: float, height: float, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    level = rng.uniform(0.02, 1, count)
    width = np.interp(level, LEVELS, _CAVITY_WIDTH)
    lateral = 0.16 + (0.97 * width - 0.16) * rng.uniform(0, 1, count)
    depth = np.interp(level, LEVELS, _CAVITY_DEPTH) * np.sqrt(np.maximum(0, 1 - (lateral / width) ** 2))
    front_to_back = rng.uniform(-1, 1, count) * depth
    return np.stack([side * lateral * half_width, front_to_back * half_depth, level * height], axis=1)


def cavity(patient: Patient, level: float, margin: float = 0.0, points: int = 256) -> Points:
    """Inner outline of the rib cage, ``margin`` mm outside it; starts at the back, turning leftwards."""
    a = along(level, _CAVITY_WIDTH) * patient.half_width + margin
    b = along(level, _CAVITY_DEPTH) * patient.half_depth + margin
    turn = np.pi / 2 - np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = _superellipse(turn, np.where(np.sin(turn) > 0, 2.75, 2.15))
    # The cage is widest towards its back and narrows towards the front.
    x = x * (1 - 0.14 * np.maximum(0, -y) ** 1.3)
    scale = 1 + irregularity(patient, 0, turn, level)
    return np.stack([a * x * scale, b * y * scale], axis=1)


def skin(patient: Patient, level: float, depth: float = 0.0, points: int = 256) -> Points:
    """Outline of the body, or of the layer ``depth`` (0 skin, 1 under the fat) below it."""
    turn = np.pi / 2 - np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = _superellipse(turn, 2.5)
    front, back = np.maximum(0, -y), np.maximum(0, y)
    shoulder = max(0.0, 1 - level / 0.4) ** 1.3
    wall = 9 + patient.muscle
    fat = patient.fat * (1 - depth)
    a = patient.half_width * 0.97 + wall + fat + shoulder * patient.shoulders
    b = patient.half_depth * (1 - 0.28 * shoulder) + 8 + 0.7 * (1 - depth) * patient.fat
    scale = 1 + irregularity(patient, 1, turn, level)
    x = a * x * scale * (1 - 0.10 * front**2)
    y = b * y * scale + back * (14 + 0.35 * patient.muscle)
    lateral = np.abs(x) / a
    bulge = patient.breast * np.exp(-(((level - 0.62) / 0.2) ** 2)) * (0.25 + 0.75 * (1 - depth))
    y = y - bulge * front * np.exp(-(((lateral - 0.52) / 0.24) ** 2))
    # The furrow along the breast bone and the one over the spine.
    y = y + 0.25 * patient.breast * front * np.exp(-((lateral / 0.13) ** 2)) * (level > 0.3)
    y = y - 5 * back**4 * np.exp(-((lateral / 0.09) ** 2))
    return np.stack([x, y], axis=1)


def mediastinum(
    patient: Patient, level: float, inset: float = 0.0, reach: tuple[float, float] = (-1.1, 1.15)
) -> Points:
    """Outline of what lies between the lungs, spine included.

    Args:
        patient: whose.
        level: 0 apex to 1 base.
        inset: mm taken off each side.
        reach: part from front to back, in half depths of the cavity.
    """
    depth = np.linspace(*reach, 96)
    sides = []
    for index, (table, side) in enumerate(((_RIGHT, -1), (_LEFT, 1))):
        widths = [float(np.interp(level, LEVELS, column)) for column in zip(*table, strict=True)]
        width = np.interp(depth, DEPTHS, widths)
        width = np.convolve(
            np.pad(width, 6, mode="edge"), np.hanning(15)[1:-1] / np.hanning(15).sum(), "valid"
        )
        cardiac = np.clip((level - 0.5) / 0.1, 0, 1) * np.clip((0.3 - depth) / 0.2, 0, 1)
        width = width * (1 + cardiac * (patient.heart - 1))
        width = width + 0.9 * irregularity(patient, 2 + index, 2.2 * depth, level)
        lateral = np.maximum(width * patient.half_width - inset, 0.5)
        sides.append(np.stack([side * lateral, depth * patient.half_depth], axis=1))
    return np.concatenate([sides[0], sides[1][::-1]])


def irregularity(
    patient: Patient, outline: int, turn: NDArray[np.float64], level: float
) -> NDArray[np.float64]:
    """Relative deviation of an outline from its smooth shape, drifting slowly from level to level."""
    amplitude, phase, drift = patient.wobble[outline]
    waves = np.cos(turn[:, None] * _HARMONICS + phase + drift * level)
    return np.asarray((amplitude * waves).sum(axis=1))


def _superellipse(
    turn: NDArray[np.float64], exponent: NDArray[np.float64] | float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cosine, sine = np.cos(turn), np.sin(turn)
    power = 2 / exponent
    return np.sign(cosine) * np.abs(cosine) ** power, np.sign(sine) * np.abs(sine) ** power
