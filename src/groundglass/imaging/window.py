"""Hounsfield units and the windows that show them; numbers of no stated unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import NotASliceError
from groundglass.imaging.slice import Grey, Hounsfield


@dataclass(frozen=True)
class Window:
    """A CT display window, in Hounsfield units: its centre, and the range shown from black to white."""

    level: float
    width: float

    def apply(self, hounsfield: NDArray[np.generic]) -> Grey:
        """Map Hounsfield units linearly to 0..255, clipped at both ends of the window."""
        grey = hounsfield.astype(np.float32)  # changed in place from here: fresh memory costs more than arithmetic
        grey -= np.float32(self.level - self.width / 2)
        grey *= np.float32(255.0 / self.width)
        return np.clip(np.rint(grey, out=grey), 0, 255, out=grey).astype(np.uint8)


LUNG = Window(level=-600.0, width=1500.0)
"""The lung window radiologists read pneumonia in; used whatever the file's header says."""

AIR = -1024.0
"""Hounsfield units of nothing at all: no tissue lies below, paddings of -2000 and -3024 do."""

SURELY_HOUNSFIELD = -500.0
"""Grey values never reach down to it, every chest CT does."""

_OFFSETS = (1024.0, 2048.0, 8192.0, 32768.0)  # that are added to Hounsfield units where no sign can be stored
_FULL_SCALES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
_SAMPLES = 128  # along each axis, of which a volume's scale is found


def as_hounsfield(values: NDArray[np.generic]) -> Hounsfield:
    """Hounsfield units as float32, paddings and missing values (NaN) raised to ``AIR``."""
    hounsfield: Hounsfield = np.maximum(values, np.float32(AIR), dtype=np.float32)
    if not np.isfinite(hounsfield.max(initial=AIR)):
        hounsfield[~np.isfinite(hounsfield)] = AIR
    return hounsfield


def extent(values: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest finite value; ``ValueError`` where there is none, or the numbers are complex."""
    if np.iscomplexobj(values):
        raise ValueError("complex numbers are no CT")
    if np.issubdtype(values.dtype, np.floating):
        values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("not one finite value")
    return float(values.min()), float(values.max())


@dataclass(frozen=True)
class Scale:
    """What the numbers of an image or volume mean: stored values times ``slope`` and ``intercept``."""

    slope: float = 1.0
    intercept: float = 0.0
    offset: float | None = None  # subtracted, it leaves Hounsfield units; None where they are grey values
    black: float = 0.0  # numbers that are shown black and white, of grey values
    white: float = 255.0

    @np.errstate(over="ignore", invalid="ignore")  # of damaged files
    def apply(self, values: NDArray[np.generic]) -> tuple[Grey, Hounsfield | None]:
        """Grey values for display and, where the numbers mean that, Hounsfield units."""
        numbers = values.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)
        if self.offset is not None:
            hounsfield = as_hounsfield(numbers - np.float32(self.offset))
            return LUNG.apply(hounsfield), hounsfield
        finite = np.nan_to_num(numbers, nan=self.black, posinf=self.white, neginf=self.black)
        return Window((self.black + self.white) / 2, self.white - self.black).apply(finite), None


@np.errstate(over="ignore", invalid="ignore")  # of damaged files
def find_scale(
    values: NDArray[np.generic], name: str, slope: float = 1.0, intercept: float = 0.0, *, grey: bool = False
) -> Scale:
    """What the numbers of an image or volume mean that does not say it, from all of them, so that slices agree.

    Numbers that reach below -500, and those that look like a chest with 1024, 2048, 8192 or 32768 added, are
    Hounsfield units. Else they are grey, and white is the smallest of 1 (floating point only), 8, 10, 12, 14, 16,
    31 and 32 bits that holds the largest of them.

    Values of any shape and real type, times ``slope`` and plus ``intercept``, are the numbers that are meant; messages
    call their file ``name``. ``grey`` are those that are known not to be Hounsfield units.

    Raises:
        NotASliceError: they fit neither, such as numbers from -1 to 1 and standardised ones.
        ValueError: not one of them is finite.
    """
    minimum, maximum = sorted(end * slope + intercept for end in extent(values))
    steps = tuple(slice(None, None, -(-length // _SAMPLES)) for length in values.shape)
    sample = values[steps].astype(np.float64)
    sample = np.append(sample[np.isfinite(sample)] * slope + intercept, (minimum, maximum))
    above = sample[sample > minimum]  # of which one may be padding
    in_range = not above.size or np.mean((above > -1100) & (above < 4000)) > 0.9
    if minimum < SURELY_HOUNSFIELD and in_range and not grey:
        return Scale(slope, intercept, offset=0.0)
    if values.dtype == np.int8 and (slope, intercept) == (1, 0):
        return Scale(slope, intercept, black=-128.0 if minimum < -1 else 0.0, white=127.0)
    if minimum >= 0 and maximum > _FULL_SCALES[1] and not grey:
        for offset in _OFFSETS:
            if _is_chest(sample - offset):
                return Scale(slope, intercept, offset)
    whole = bool((sample == np.rint(sample)).all())
    scales = _FULL_SCALES if values.dtype.kind in "biu" and slope == 1 else (1.0, *_FULL_SCALES)
    white = next((scale for scale in scales if maximum <= 1.01 * scale), np.inf)
    # A picture uses much of its scale. Masks, whose numbers are few, small and whole, are read as well.
    much = (maximum - minimum) / white >= (0.25 if whole else 0.5) or minimum == white
    if minimum >= -0.01 * white and (much or (whole and white <= _FULL_SCALES[0])):
        return Scale(slope, intercept, white=white)
    known = "neither Hounsfield units nor grey values of 0 to 1, or of 8, 10, 12, 14, 16 or 32 bits"
    raise NotASliceError(name, f"its numbers, from {minimum:g} to {maximum:g}, fit no known scale: {known}")


def _is_chest(sample: NDArray[np.float64]) -> bool:
    """Whether numbers could be the Hounsfield units of a chest: air, soft tissue, and little beyond bone."""
    above = sample[sample > sample.min()]
    return bool(
        above.size > 1
        and np.mean((above > -1100) & (above < 4000)) > 0.95
        and np.mean(sample < SURELY_HOUNSFIELD) > 0.05
        and np.mean(np.abs(above) < 150) > 0.05
        and np.mean(above > 600) < 0.1
    )
