"""One axial image, whatever file it came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
"""Grey pixels, shape (H, W), 0 black to 255 white."""

Hounsfield = NDArray[np.float32]
"""Hounsfield units, shape (H, W): air -1000, water 0."""

LABELS = "labels"
"""`Origin.mode` of a volume whose header says that it is a label map."""

# Least cosine between normal and body axis of an axial slice, as gantries tilt by up to 30 degrees; and most of the
# normal's other cosines of one that is not tilted.
_AXIAL, _STRAIGHT = 0.86, 1e-3
_SAME_PLACE = 1.0  # mm by which a mask may lie apart from its slice


def is_uid(text: str | None) -> bool:
    """Whether text can be a DICOM UID; what anonymisers write in its place, such as ``REMOVED``, cannot."""
    return bool(re.fullmatch(r"[0-2](\.[0-9]+)+", text or ""))


@dataclass(frozen=True)
class Patient:
    """Who is on a slice, as its file says; None where it does not. Handed out only to those who ask for it."""

    name: str | None = None  # in DICOM's form, Doe^Jane
    id: str | None = None
    birth_date: str | None = None  # in DICOM's form, YYYYMMDD


@dataclass(frozen=True)
class VoxelGrid:
    """The voxels of a file that holds a volume, and how planes are cut from them."""

    shape: tuple[int, int, int]  # (I, J, K)
    affine: tuple[tuple[float, ...], ...]  # four rows, from voxel indices to mm rightwards, forwards and upwards (RAS)
    # Of each axis of the voxels: along which axis of the planes it runs, 0 columns, 1 rows, 2 planes; 1 or -1 there.
    axes: tuple[tuple[int, int], ...]

    @property
    def planes(self) -> int:
        """How many planes are cut."""
        return next(length for length, (axis, _) in zip(self.shape, self.axes, strict=True) if axis == 2)

    def voxels(self, planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Planes, shape (N, H, W), as an array of the grid's shape."""
        columns_first = planes.transpose(2, 1, 0).transpose([axis for axis, _ in self.axes])
        return columns_first[tuple(slice(None, None, direction) for _, direction in self.axes)]


@dataclass(frozen=True)
class Origin:
    """Where a slice came from; None for what its file does not say."""

    file: str  # its path; of a zip's member `archive.zip!member`
    file_format: str  # such as `DICOM`
    mode: str = "L"  # of the pixels as stored: Pillow's name, or DICOM's photometric interpretation
    frame: int | None = None  # index of the frame or axial plane in a file that holds several
    study: str | None = None  # DICOM's UIDs
    series: str | None = None
    instance: str | None = None
    number: int | None = None  # DICOM's Instance Number
    stack: str | None = None  # four digits that differ between the stacks that share these UIDs
    position: tuple[float, float, float] | None = None  # of the first pixel's centre in mm (DICOM's LPS)
    orientation: tuple[float, float, float, float, float, float] | None = None  # cosines: rows, columns
    spacing: tuple[float, float] | None = None  # mm between rows and between columns
    thickness: float | None = None  # in mm
    description: str | None = field(default=None, repr=False)  # of the series
    grid: VoxelGrid | None = field(default=None, repr=False)  # of which `frame` is an even plane
    patient: Patient | None = field(default=None, repr=False)

    @property
    def normal(self) -> NDArray[np.float64]:
        """Of its plane, (3,); along the body where its file does not say."""
        return np.cross(*np.reshape(self.orientation or (1, 0, 0, 0, 1, 0), (2, 3)))

    @property
    def is_axial(self) -> bool:
        """Whether its plane is axial, as a gantry may tilt it."""
        return bool(abs(self.normal[2]) >= _AXIAL)

    @property
    def height(self) -> float | None:
        """Where it lies along the body in mm, towards the head; along its normal where that is tilted."""
        if self.position is None or not self.is_axial or np.abs(self.normal[:2]).max() < _STRAIGHT:
            return self.position and self.position[2]
        return float(self.normal @ self.position) * float(np.sign(self.normal[2]))


@dataclass(frozen=True)
class CTSlice:
    """Grey pixels, shape (H, W), windowed from Hounsfield units where the file has them, and their origin."""

    pixels: Grey
    origin: Origin
    hounsfield: Hounsfield | None = field(default=None, repr=False)

    @property
    def corners(self) -> NDArray[np.float64] | None:
        """Where three of its corner pixels lie in mm, (3, 3); None where its file does not say."""
        position, orientation, spacing = self.origin.position, self.origin.orientation, self.origin.spacing
        if position is None or orientation is None or spacing is None:
            return None
        (across, down), (rows, columns) = np.reshape(orientation, (2, 3)), np.subtract(self.pixels.shape, 1)
        return np.add(
            position, (np.zeros(3), columns * spacing[1] * across, rows * spacing[0] * down), dtype=np.float64
        )

    def lies_apart_from(self, other: CTSlice) -> bool:
        """Whether two slices of one shape, as far as both files say, do not lie within 1 mm of each other."""
        own, others = self.corners, other.corners
        return own is not None and others is not None and bool(np.abs(own - others).max() > _SAME_PLACE)
