"""Other views of an invented chest: coronal and sagittal reformats, and projections like an X-ray's."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.abdomen import abdomen_below
from groundglass.imaging.phantom import Scanner, scan
from groundglass.imaging.slice import Hounsfield
from groundglass.imaging.thorax import Patient

_WATER = 0.019
"""Attenuation of water in an X-ray beam of some 70 keV, per mm (NIST, X-ray mass attenuation tables)."""


@dataclass(frozen=True)
class Volume:
    """A scanned stack.

    Attributes:
        hounsfield: float32, shape (planes, rows, columns), from the apex of the lungs downwards.
        between: mm from plane to plane.
        spacing: mm from pixel to pixel within a plane.
    """

    hounsfield: NDArray[np.float32] = field(repr=False)
    between: float
    spacing: float

    def coronal(self, share: float) -> Hounsfield:
        """The view from the front at a share of the depth, 0 front to 1 back; head up, isotropic."""
        return self._isotropic(self.hounsfield[:, self._index(share, 1)])

    def sagittal(self, share: float) -> Hounsfield:
        """The view from the side at a share of the width; head up, the patient facing left, isotropic."""
        return self._isotropic(self.hounsfield[:, :, self._index(share, 2)])

    def radiograph(self, lateral: bool = False) -> NDArray[np.float32]:
        """Attenuation along parallel rays through the patient, from the front or the side.

        Returns:
            float32, the line integral of attenuation, dimensionless, 0 where there is only air; head up.
        """
        density = np.clip(1 + self.hounsfield / 1000, 0, None)
        density[density < 0.08] = 0
        path = density.sum(axis=2 if lateral else 1) * np.float32(self.spacing * _WATER)
        return self._isotropic(path)

    def _index(self, share: float, axis: int) -> int:
        return int(np.clip(share, 0, 1) * (self.hounsfield.shape[axis] - 1))

    def _isotropic(self, view: NDArray[np.float32]) -> NDArray[np.float32]:
        height = max(1, round(view.shape[0] * self.between / self.spacing))
        return np.asarray(cv2.resize(view, (view.shape[1], height), interpolation=cv2.INTER_LINEAR))


def scan_volume(
    rng: np.random.Generator, planes: int = 64, size: int = 256, severity: float = 0.0, below: float = 0.4
) -> Volume:
    """Invent a patient and scan chest and upper abdomen.

    Args:
        rng: draws everything; the same state gives the same volume.
        planes: of the chest, at least 2.
        size: pixels along each side of a plane.
        severity: of the lesions, 0 healthy to 1.
        below: length of the abdomen that is scanned, as a share of the lungs' height.
    """
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    levels = np.linspace(0.0, 1.0, planes)
    chest = [scan(patient, scanner, float(level), severity, size).hounsfield for level in levels]
    step = levels[1]
    depths = np.arange(step, below, step)
    belly = [abdomen_below(patient, scanner, float(depth), size) for depth in depths]
    return Volume(np.stack(chest + belly), step * patient.height, scanner.spacing * 512 / size)


def develop(attenuation: NDArray[np.float32], gamma: float = 0.7) -> NDArray[np.uint8]:
    """A radiograph's grey values: bone white, air black.

    Args:
        attenuation: as `Volume.radiograph` gives it.
        gamma: below 1 brightens what absorbs little.
    """
    share = attenuation / max(float(np.quantile(attenuation, 0.995)), 1e-6)
    return np.asarray(np.rint(255 * np.clip(share, 0, 1) ** gamma), np.uint8)
