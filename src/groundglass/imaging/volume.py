"""A volume of any orientation as axial slices the way radiologists see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.imaging.grey import extent, interpret
from groundglass.imaging.limits import Limits
from groundglass.imaging.slice import CTSlice, Origin

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """Stored values and what they mean.

    Attributes:
        values: shape (I, J, K), real.
        affine: shape (4, 4), from voxel indices to mm rightwards, forwards and upwards (RAS).
        slope: from stored values to Hounsfield units.
        intercept: likewise.
    """

    values: NDArray[np.generic]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0


def check_shape(shape: tuple[int, ...], name: str, limits: Limits) -> tuple[int, int, int]:
    """A volume's shape without trailing axes of length 1, before anything is allocated.

    Raises:
        ImageError: not a volume of two or three dimensions, or larger than ``limits`` allow.
    """
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 3 or min(shape) < 1:
        raise ImageError(name, f"an image of shape {' x '.join(map(str, shape))}, not one CT volume")
    if len(shape) == 2:
        shape = (*shape, 1)
    if sorted(shape)[0] > limits.frames or shape[0] * shape[1] * shape[2] / min(shape) > limits.pixels:
        raise ImageError(name, f"{' x '.join(map(str, shape))} voxels are more than the limits allow")
    return shape[0], shape[1], shape[2]


def axial_slices(volume: Volume, origin: Origin) -> Iterator[CTSlice]:
    """Axial planes from the feet to the head: the patient's right at the image's left, anterior up.

    The axes nearest to the patient's are taken; nothing is resampled, so that a tilted volume stays tilted.

    Args:
        volume: stored values.
        origin: what all slices have in common; frame, position, orientation and spacing are filled in.

    Raises:
        ValueError: the affine is degenerate, or there is no finite voxel.
    """
    from nibabel import orientations  # noqa: PLC0415 - slow to import

    if not np.isfinite(volume.affine).all():
        raise ValueError("the orientation is not finite")
    axes = orientations.io_orientation(volume.affine)
    if np.isnan(axes).any():
        raise ValueError("the orientation is degenerate")
    upright = orientations.apply_orientation(volume.values, axes)
    affine = volume.affine @ orientations.inv_ornt_aff(axes, volume.values.shape)
    minimum, maximum = sorted(end * volume.slope + volume.intercept for end in extent(upright))

    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    along_row, along_column = (-affine[:3, axis] / lengths[axis] * _RAS_TO_LPS for axis in (0, 1))
    rx, ry, rz, cx, cy, cz = (float(cosine) + 0.0 for cosine in (*along_row, *along_column))
    width, height, count = upright.shape
    for index in range(count):
        plane = upright[::-1, ::-1, index].T.astype(np.float32)
        values = plane * np.float32(volume.slope) + np.float32(volume.intercept)
        pixels, hounsfield = interpret(values, minimum, maximum)
        corner = (affine @ (width - 1, height - 1, index, 1))[:3] * _RAS_TO_LPS
        place = replace(
            origin,
            frame=index,
            position=(float(corner[0]), float(corner[1]), float(corner[2])),
            orientation=(rx, ry, rz, cx, cy, cz),
            spacing=(float(lengths[1]), float(lengths[0])),
        )
        yield CTSlice(pixels, place, hounsfield)
