"""Anti-aliased drawing of smooth shapes in millimetres onto a plane of Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.slice import Hounsfield

Points = NDArray[np.float64]
"""A closed polygon or an open curve, shape (N, 2): x to the patient's left, y to the back, in mm."""

Region = tuple[slice, slice]

_SUBPIXEL_BITS = 4


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

    def coverage(self, points: Points, softness: float = 0.0) -> tuple[Region, NDArray[np.float32]]:
        """How much of each pixel a polygon covers.

        Args:
            points: the polygon.
            softness: standard deviation of a blur of the edge in mm: partial volume of a slanted surface.

        Returns:
            The pixels' region and float32 coverage 0..1 of that region's shape, which may be empty.
        """
        pixels = self.to_pixels(points)
        sigma = softness / self.spacing
        margin = 2 + int(np.ceil(2.5 * sigma))
        low = np.clip(np.floor(pixels.min(axis=0)).astype(int) - margin, 0, self.size)
        high = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + margin + 1, low, self.size)
        region = (slice(low[1], high[1]), slice(low[0], high[0]))
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        if mask.size == 0:
            return region, mask.astype(np.float32)
        _fill(mask, pixels - low, 255)
        if sigma > 0:
            mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma))
        return region, mask.astype(np.float32) * np.float32(1 / 255)

    def mask(self, points: Points) -> NDArray[np.float32]:
        """Coverage 0..1 of the whole plane by a polygon."""
        plane = np.zeros((self.size, self.size), np.uint8)
        self.fill(plane, points, 255)
        return plane.astype(np.float32) * np.float32(1 / 255)

    def paint(
        self,
        points: Points,
        value: float,
        softness: float = 0.0,
        opacity: float = 1.0,
        within: NDArray[np.float32] | None = None,
    ) -> None:
        """Fill a polygon with Hounsfield units, blended by coverage times ``opacity`` and ``within``."""
        region, cover = self.coverage(points, softness)
        if within is not None:
            cover = cover * within[region]
        plane = self.hounsfield[region]
        plane += (cover * np.float32(opacity)) * (np.float32(value) - plane)

    def blend(self, cover: NDArray[np.float32], value: float | NDArray[np.float32]) -> None:
        """Blend Hounsfield units over the whole plane by a coverage of its shape."""
        self.hounsfield[...] += cover * (np.asarray(value, np.float32) - self.hounsfield)


def _fill(plane: NDArray[np.uint8], pixels: Points, value: int) -> None:
    fixed = np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(plane, [fixed], float(value), lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0, points: int = 48) -> Points:
    """An ellipse with half axes ``a`` and ``b`` in mm, turned clockwise by ``angle`` radians."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    u, v = a * np.cos(turn), b * np.sin(turn)
    return np.stack([x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)], 1)


def ribbon(centreline: Points, half_width: NDArray[np.float64] | float) -> Points:
    """The polygon that a curve of varying thickness covers."""
    tangent = np.gradient(centreline, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    offset = normal * np.reshape(half_width, (-1, 1))
    return np.concatenate([centreline + offset, (centreline - offset)[::-1]])


def mirrored(points: Points, side: int) -> Points:
    """The same shape on the patient's left (``side`` 1) or right (``side`` -1)."""
    return np.asarray(points * np.array([side, 1.0]))
