"""One axial image, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
"""Grey pixels, shape (H, W), 0 black to 255 white."""

Hounsfield = NDArray[np.float32]
"""Hounsfield units, shape (H, W): air -1000, water 0."""

LABELS = "labels"
"""`Origin.mode` of a volume whose header says that it is a label map."""


def is_uid(text: str | None) -> bool:
    """Whether text can be a DICOM UID; what anonymisers write in its place, such as ``REMOVED``, cannot."""
    return bool(re.fullmatch(r"[0-2](\.[0-9]+)+", text or ""))


@dataclass(frozen=True)
class Patient:
    """Who is on a slice, as its file says; None where it does not. Handed out only to those who ask for it.

    Attributes:
        name: DICOM's Patient's Name, such as ``Doe^Jane``.
        id: DICOM's Patient ID.
        birth_date: DICOM's form, YYYYMMDD.
    """

    name: str | None = None
    id: str | None = None
    birth_date: str | None = None


@dataclass(frozen=True)
class VoxelGrid:
    """The voxels of a file that holds a volume, and how planes are cut from them.

    Attributes:
        shape: (I, J, K).
        affine: four rows, from voxel indices to mm rightwards, forwards and upwards (RAS).
        axes: for each axis of the voxels the axis of the planes along which it runs, 0 columns, 1 rows, 2 planes,
            and 1 or -1 for the direction.
        frames: of the file in the order of the planes; empty where they are in order.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    axes: tuple[tuple[int, int], ...] = ((0, 1), (1, 1), (2, 1))
    frames: tuple[int, ...] = ()

    @property
    def order(self) -> Sequence[int]:
        """The frame of each plane."""
        count = next(length for length, (axis, _) in zip(self.shape, self.axes, strict=True) if axis == 2)
        return self.frames or range(count)

    def voxels(self, planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Planes, shape (N, H, W), as an array of the grid's shape."""
        columns_first = planes.transpose(2, 1, 0).transpose([axis for axis, _ in self.axes])
        return columns_first[tuple(slice(None, None, direction) for _, direction in self.axes)]


@dataclass(frozen=True)
class Origin:
    """Where a slice came from.

    Attributes:
        file: path of the file; for a zip's member ``archive.zip!member``.
        file_format: value of :class:`groundglass.imaging.source.FileFormat`, such as ``DICOM``.
        mode: pixel mode as stored (Pillow's name, or DICOM's photometric interpretation).
        frame: index of the frame or axial plane in a file that holds several, else None.
        study: DICOM Study Instance UID, or None.
        series: DICOM Series Instance UID, or None.
        instance: DICOM SOP Instance UID, or None.
        number: DICOM Instance Number, or None.
        stack: four digits that differ between the stacks that share these UIDs, see
            :mod:`groundglass.imaging.dicom`; None for what belongs to no series.
        position: patient coordinates of the first pixel's centre in mm (DICOM's LPS), or None.
        orientation: direction cosines of rows then columns (DICOM's ImageOrientationPatient), or None.
        spacing: mm between rows and between columns, or None.
        thickness: of the slice in mm, or None.
        description: of the series, as its file has it, or None.
        grid: of a volume, of which ``frame`` is a plane; None where the file has none, or not evenly spaced.
        patient: identifiers from a DICOM header, else None; in no representation of the origin.
    """

    file: str
    file_format: str
    mode: str = "L"
    frame: int | None = None
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    number: int | None = None
    stack: str | None = None
    position: tuple[float, float, float] | None = None
    orientation: tuple[float, float, float, float, float, float] | None = None
    spacing: tuple[float, float] | None = None
    thickness: float | None = None
    description: str | None = field(default=None, repr=False)
    grid: VoxelGrid | None = field(default=None, repr=False)
    patient: Patient | None = field(default=None, repr=False)


@dataclass(frozen=True)
class CTSlice:
    """Grey pixels, Hounsfield units where the file has them, and their origin.

    Attributes:
        pixels: uint8, shape (H, W); windowed from ``hounsfield`` where that is known.
        origin: where the slice came from.
        hounsfield: float32, shape (H, W), or None for picture files.
    """

    pixels: Grey
    origin: Origin
    hounsfield: Hounsfield | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 2:
            found = f"{self.pixels.dtype} {self.pixels.shape}"
            raise ValueError(f"pixels must be uint8 of shape (H, W), not {found}")
