"""Crop to the lungs, resize, normalise: the one way from a slice and its lung mask to what a network sees.

Training, evaluation and prediction all crop through :class:`Preprocessing`; its fields travel with a trained
model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.slice import Grey

Normalisation = Literal["zero-mean", "min-max"]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie outside."""

MUCH_LUNG = 0.06
"""Of a slice cut from anywhere in a series: with this share of lung it is a lung slice; with none that could
be found it belongs to the abdomen or neck; what lies in between is nobody's example."""

# Side of the small copy of the whole picture.
_WHOLE_SIDE = 192
# Bring min-max values to the zero mean and unit spread that networks pretrained on standardised photographs
# expect. Fixed for all slices, so that equal densities stay equal.
_MIN_MAX_CENTRE, _MIN_MAX_SCALE = 0.45, 0.27


@dataclass(frozen=True)
class CroppedSlice:
    """A slice cut to its lungs.

    Attributes:
        pixels: uint8, shape (size, size): a square around the lungs, resized, grey values as in the source.
        box: where ``pixels`` lies in the source (may reach beyond its edges, where it is black).
        lungs: bool, shape (H, W) of the source: the lung fields, disease included; all False where none were found.
        found: whether lungs were found; otherwise ``box`` is around the whole picture.
        whole: uint8, the whole picture, its longer side at most 192 pixels.
    """

    pixels: Grey
    box: Box
    lungs: NDArray[np.bool_]
    found: bool
    whole: Grey


@dataclass(frozen=True)
class Preprocessing:
    """How slices are cropped.

    Attributes:
        size: side of the cropped slice in pixels.
        crop: cut to a square around the lungs, so that they keep their shape; otherwise the whole picture is resized.
        margin: added on each side of the lungs' longer side, as a share of it.
        normalisation: ``zero-mean`` is the paper's choice (section III-A), ``min-max`` its alternative.
    """

    size: int = 160
    crop: bool = True
    margin: float = 0.06
    normalisation: Normalisation = "zero-mean"

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"size must be at least 32 pixels, not {self.size}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must be in [0, 1), not {self.margin}")
        if self.normalisation not in get_args(Normalisation):
            choices = ", ".join(get_args(Normalisation))
            raise ValueError(f"normalisation must be one of {choices}, not {self.normalisation!r}")

    def apply(self, pixels: Grey, lungs: NDArray[np.bool_]) -> CroppedSlice:
        """Crop one slice of any shape.

        Args:
            pixels: uint8, shape (H, W).
            lungs: bool, of the same shape: the lung fields, as :class:`groundglass.imaging.lungs.LungSegmenter`
                finds them.
        """
        found = bool(lungs.any())
        box: Box = (0, 0, pixels.shape[1], pixels.shape[0])
        if self.crop:
            box = _square(_extent(lungs) if found else box, self.margin if found else 0)
        return CroppedSlice(resize_box(pixels, box, self.size), box, lungs, found, _shrunk(pixels))

    def normalise(self, pixels: Grey) -> NDArray[np.float32]:
        """Normalise the grey values of cropped slices, each by itself.

        Args:
            pixels: uint8, shape (..., H, W).

        Returns:
            float32 of the same shape, roughly of zero mean and unit spread; a blank slice gives a constant.
        """
        planes = pixels.reshape(-1, *pixels.shape[-2:])
        normalised = np.empty(planes.shape, np.float32)
        for plane, out in zip(planes, normalised, strict=True):
            # One look-up table per slice: 256 values are computed instead of size x size.
            cv2.LUT(plane, _grey_table(plane, self.normalisation), out)
        return normalised.reshape(pixels.shape)


def _extent(mask: NDArray[np.bool_]) -> Box:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _square(box: Box, margin: float) -> Box:
    """The square around the middle of a box whose side is the box's longer one and a margin on both sides."""
    left, top, right, bottom = box
    side = round(max(right - left, bottom - top) * (1 + 2 * margin))
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    return left, top, left + side, top + side


def _shrunk(pixels: Grey) -> Grey:
    """The small copy; the picture itself, shape (H, W), where it is smaller."""
    scale = _WHOLE_SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    height, width = (max(1, round(length * scale)) for length in pixels.shape)
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))


def resize_box(pixels: Grey, box: Box, size: int) -> Grey:
    """Cut ``box`` out of a picture and resize it to (size, size); beyond the picture it is black."""
    left, top, right, bottom = box
    height, width = pixels.shape
    cut = pixels[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    padding = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
    if any(padding):
        cut = cv2.copyMakeBorder(cut, *padding, cv2.BORDER_CONSTANT)
    interpolation = cv2.INTER_AREA if max(cut.shape) > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (size, size), interpolation=interpolation))


def grey_histogram(pixels: Grey) -> NDArray[np.float64]:
    """How often each grey value occurs in a picture of shape (H, W), shape (256,)."""
    return np.asarray(cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel(), np.float64)


def otsu_anchors(pixels: Grey) -> tuple[float, float]:
    """Mean grey of the dark and of the bright Otsu class; equal for a blank picture.

    Source: N. Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9(1), 1979.
    """
    histogram = grey_histogram(pixels)
    below = np.cumsum(histogram)
    weighted = np.cumsum(histogram * np.arange(256))
    above = below[-1] - below
    splits = (below > 0) & (above > 0)
    if not splits.any():
        mean = float(weighted[-1] / below[-1])
        return mean, mean
    dark = weighted[splits] / below[splits]
    bright = (weighted[-1] - weighted[splits]) / above[splits]
    best = int(np.argmax(below[splits] * above[splits] * (bright - dark) ** 2))
    return float(dark[best]), float(bright[best])


def _grey_table(plane: Grey, normalisation: Normalisation) -> NDArray[np.float32]:
    grey = np.arange(256, dtype=np.float32)
    if normalisation == "zero-mean":
        table = (grey - plane.mean()) / max(float(plane.std()), 1.0)
        return np.asarray(table, np.float32)
    low, high = float(plane.min()), float(plane.max())
    share = np.clip((grey - low) / max(high - low, 1.0), 0, 1)
    return np.asarray((share - _MIN_MAX_CENTRE) / _MIN_MAX_SCALE, np.float32)
