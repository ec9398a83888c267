"""What to keep in mind about a slice that is judged all the same."""

from __future__ import annotations

import cv2
import numpy as np

from groundglass.imaging.framing import FramedSlice
from groundglass.imaging.slice import Origin

LUNGS_NOT_FOUND = "lungs-not-found"
"""Framing found no lungs; the network is shown the whole picture."""

ONE_LUNG_FOUND = "one-lung-found"
"""What framing took for the lungs lies in one half of the picture: the other lung is not shown."""

SOFT_TISSUE_WINDOW = "soft-tissue-window"
"""Most of the lungs is black: the picture's window hides what the network looks for."""

LOW_RESOLUTION = "low-resolution"
"""The lungs take so few pixels that they are enlarged for the network."""

UPSIDE_DOWN = "upside-down"
"""By the file's geometry the patient's back is up."""

_GRID = 40
_BLACK = 4
_MOSTLY = 0.6
_HALF = 0.56
_ENLARGED = 0.75
_OPPOSITE = -0.5


def picture_flags(framed: FramedSlice, pixels: np.ndarray) -> tuple[str, ...]:
    """Flags that the picture gives rise to.

    Args:
        framed: the slice, framed.
        pixels: uint8, shape (H, W): the slice.
    """
    if not framed.found:
        return (LUNGS_NOT_FOUND,)
    left, top, right, bottom = framed.box
    width = pixels.shape[1]
    flags = []
    if right < _HALF * width or left > (1 - _HALF) * width:
        flags.append(ONE_LUNG_FOUND)
    if max(right - left, bottom - top) < _ENLARGED * framed.pixels.shape[0]:
        flags.append(LOW_RESOLUTION)
    if _black_share(framed, pixels) > _MOSTLY:
        flags.append(SOFT_TISSUE_WINDOW)
    return tuple(flags)


def geometry_flags(origin: Origin) -> tuple[str, ...]:
    """Flags that the file's header gives rise to."""
    if origin.orientation is None or origin.orientation[4] > _OPPOSITE:
        return ()
    return (UPSIDE_DOWN,)


def _black_share(framed: FramedSlice, pixels: np.ndarray) -> float:
    """Share of the lungs that is black, on a coarse grid over their box."""
    left, top, right, bottom = framed.box
    rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
    size = (_GRID, _GRID)
    lungs = cv2.resize(framed.lungs[rows, columns].view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    grey = cv2.resize(pixels[rows, columns], size, interpolation=cv2.INTER_NEAREST)
    return float(np.mean(grey[lungs] <= _BLACK)) if lungs.any() else 0.0
