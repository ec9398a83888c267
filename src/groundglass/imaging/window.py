"""Hounsfield units and the windows that show them; numbers of no stated unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.slice import Grey, Hounsfield


@dataclass(frozen=True)
class Window:
    """A CT display window.

    Attributes:
        level: centre, in Hounsfield units.
        width: range shown from black to white, in Hounsfield units; positive.
    """

    level: float
    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"window width must be positive, not {self.width}")

    def apply(self, hounsfield: NDArray[np.generic]) -> Grey:
        """Map Hounsfield units linearly to 0..255, clipped at both ends of the window."""
        low = self.level - self.width / 2
        grey = (hounsfield.astype(np.float32) - np.float32(low)) * np.float32(255.0 / self.width)
        return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)


LUNG = Window(level=-600.0, width=1500.0)
"""The lung window radiologists read pneumonia in; used whatever the file's header says."""

AIR = -1024.0
"""Hounsfield units of nothing at all: no tissue lies below, paddings of -2000 and -3024 do."""

SURELY_HOUNSFIELD = -200.0
"""Grey values never reach down to it, every chest CT does."""

_FULL_SCALES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)


def as_hounsfield(values: NDArray[np.generic]) -> Hounsfield:
    """Hounsfield units as float32, paddings and missing values (NaN) raised to ``AIR``."""
    finite = np.nan_to_num(values.astype(np.float32), nan=AIR, posinf=AIR, neginf=AIR)
    return np.maximum(finite, np.float32(AIR))


def extent(values: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest finite value.

    Raises:
        ValueError: there is none, or the numbers are complex.
    """
    if np.iscomplexobj(values):
        raise ValueError("complex numbers are no CT")
    if np.issubdtype(values.dtype, np.floating):
        values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("not one finite value")
    return float(values.min()), float(values.max())


def interpret(values: NDArray[np.generic], minimum: float, maximum: float) -> tuple[Grey, Hounsfield | None]:
    """Grey values for display and, where the numbers can only be that, Hounsfield units.

    Of numbers of unknown depth, the full scale is the smallest of 1 (floating point only), 8, 10, 12, 14 and 16
    bits that holds ``maximum``, so that slices of one scanner are scaled alike; beyond it is ``maximum``.

    Args:
        values: shape (H, W), any real type.
        minimum: smallest of the whole image or volume, so that its slices are treated alike.
        maximum: largest of it.
    """
    if minimum < SURELY_HOUNSFIELD:
        hounsfield = as_hounsfield(values)
        return LUNG.apply(hounsfield), hounsfield
    scales = (1.0, *_FULL_SCALES) if np.issubdtype(values.dtype, np.floating) else _FULL_SCALES
    full = next((scale for scale in scales if maximum <= scale), maximum)
    finite = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=full, neginf=0.0)
    return np.asarray(np.clip(np.rint(finite * np.float32(255.0 / full)), 0, 255), np.uint8), None
