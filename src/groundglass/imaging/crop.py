"""Crop to the lungs, resize, normalise: the one way from a slice to what a network sees.

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

# Lungs are looked for on a small copy: their box need not be known to the pixel, and it is 10 times faster.
_SEARCH_SIDE = 192
# Least share of the picture of a lung field, and of its bounding box that it fills: smaller dark spots are airways,
# bowel gas and print, sparser ones printed frames and rims of air. At the picture's edge, where skin folds, arms
# and table leave dark regions, only a whole lung counts.
_LEAST_AREA, _LEAST_AREA_AT_EDGE = 0.008, 0.05
_LEAST_COMPACT, _LEAST_COMPACT_AT_EDGE = 0.15, 0.3
# A lung's centre lies between these shares of the picture's height; the table's hollows lie lower.
_LUNG_ROWS = (0.12, 0.85)
# Pixels of the small copy that count as its edge, so that a printed frame does not hide the air behind it.
_RIM = 3
# Below this share of the picture, what was found cannot be a pair of lungs in a thorax slice.
_SMALLEST_LUNGS = 0.025
# Bring min-max values to the zero mean and unit spread that networks pretrained on standardised photographs
# expect. Fixed for all slices, so that equal densities stay equal.
_MIN_MAX_CENTRE, _MIN_MAX_SCALE = 0.45, 0.27


@dataclass(frozen=True)
class CroppedSlice:
    """A slice cut to its lungs.

    Attributes:
        pixels: uint8, shape (size, size): the lungs' box, resized, grey values as in the source.
        box: where ``pixels`` lies in the source (may reach beyond its edges, which are padded by repetition).
        lungs: bool, shape (H, W) of the source: the air-filled lung fields found; all False where none were.
        found: whether lungs were found; otherwise ``box`` is the whole picture.
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
        crop: cut to the lungs' bounding box; otherwise the whole picture is resized.
        margin: added on each side of the lungs' box, as a share of its width and height.
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

    def apply(self, pixels: Grey) -> CroppedSlice:
        """Crop one slice of any shape.

        Args:
            pixels: uint8, shape (H, W).
        """
        whole = _shrunk(pixels)
        lungs, found = _lungs_of(pixels, whole)
        box: Box = (0, 0, pixels.shape[1], pixels.shape[0])
        if self.crop and found:
            columns, rows = np.flatnonzero(lungs.any(axis=0)), np.flatnonzero(lungs.any(axis=1))
            left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
            dx, dy = round((right - left) * self.margin), round((bottom - top) * self.margin)
            box = left - dx, top - dy, right + dx, bottom + dy
        return CroppedSlice(resize_box(pixels, box, self.size), box, lungs, found, whole)

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


def find_lungs(pixels: Grey) -> tuple[NDArray[np.bool_], bool]:
    """The air-filled lung fields of a thorax slice, by Otsu's threshold and connected components.

    Dark regions inside the body are lung; those that touch the picture's edge are the air around it, unless
    the picture is cut so closely that nothing else is dark.

    Args:
        pixels: uint8, shape (H, W), any window in which lung is darker than tissue.

    Returns:
        A bool mask of shape (H, W), and whether it holds lungs.
    """
    return _lungs_of(pixels, _shrunk(pixels))


def _shrunk(pixels: Grey) -> Grey:
    """The small copy on which lungs are looked for; the picture itself, shape (H, W), where it is smaller."""
    scale = _SEARCH_SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    height, width = (max(1, round(length * scale)) for length in pixels.shape)
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))


def resize_box(pixels: Grey, box: Box, size: int) -> Grey:
    """Cut ``box`` out of a picture and resize it to (size, size); beyond the picture its edge is repeated."""
    left, top, right, bottom = box
    height, width = pixels.shape
    cut = pixels[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    padding = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
    if any(padding):
        cut = cv2.copyMakeBorder(cut, *padding, cv2.BORDER_REPLICATE)
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


def _lungs_of(pixels: Grey, small: Grey) -> tuple[NDArray[np.bool_], bool]:
    fields = _lung_components(small)
    if fields.mean() < _SMALLEST_LUNGS:
        return np.zeros(pixels.shape, np.bool_), False
    if fields.shape != pixels.shape:
        fields = cv2.resize(fields, pixels.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return fields.view(np.bool_), True


def _grey_table(plane: Grey, normalisation: Normalisation) -> NDArray[np.float32]:
    grey = np.arange(256, dtype=np.float32)
    if normalisation == "zero-mean":
        table = (grey - plane.mean()) / max(float(plane.std()), 1.0)
        return np.asarray(table, np.float32)
    low, high = float(plane.min()), float(plane.max())
    share = np.clip((grey - low) / max(high - low, 1.0), 0, 1)
    return np.asarray((share - _MIN_MAX_CENTRE) / _MIN_MAX_SCALE, np.float32)


def _lung_components(small: Grey) -> NDArray[np.uint8]:
    """Lung fields (1) on the small copy, by Otsu's threshold; by a second, lower one where the first fails.

    In a soft-tissue window Otsu parts bone and contrast agent from the rest, and lungs flow into fat and air;
    the threshold between the two halves of the dark class finds them again.
    """
    smooth = cv2.GaussianBlur(small, (3, 3), 0)
    threshold, dark = cv2.threshold(smooth, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    fields = _dark_fields(dark)
    if fields.mean() < _SMALLEST_LUNGS and dark.any():
        lower, _ = cv2.threshold(smooth[smooth <= threshold], 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
        fields = _dark_fields((smooth <= lower).astype(np.uint8))
    # Vessels and small opacities are holes in the thresholded lung; they belong to it.
    side = max(3, round(0.04 * max(small.shape)) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.morphologyEx(fields, cv2.MORPH_CLOSE, kernel), np.uint8)


def _dark_fields(dark: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Connected dark regions that can be lung: large, compact, and not the air around the body."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats(dark, connectivity=4, ltype=cv2.CV_32S)
    area = stats[:, cv2.CC_STAT_AREA] / dark.size
    boxes = stats[:, cv2.CC_STAT_WIDTH].astype(np.float64) * stats[:, cv2.CC_STAT_HEIGHT]
    compact = stats[:, cv2.CC_STAT_AREA] / np.maximum(boxes, 1)

    def occur(part: NDArray[np.int32]) -> NDArray[np.bool_]:
        occurring = np.zeros(count, np.bool_)
        occurring[part] = True
        return occurring

    rim = np.ones(labels.shape, np.bool_)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    corner = rim.copy()
    corner[2 * _RIM : -2 * _RIM, :] = corner[:, 2 * _RIM : -2 * _RIM] = False
    touching = occur(labels[rim])
    lung = (area >= _LEAST_AREA) & (compact >= _LEAST_COMPACT) & ~touching
    # A picture cut closely lets lungs run into its edges, but hardly into its corners.
    at_edge = (area >= _LEAST_AREA_AT_EDGE) & (compact >= _LEAST_COMPACT_AT_EDGE)
    lung |= at_edge & touching & ~occur(labels[corner])
    low, high = (share * dark.shape[0] for share in _LUNG_ROWS)
    lung &= (centres[:, 1] >= low) & (centres[:, 1] <= high)
    # What reaches from the left edge to the right one is the air between the body and a curved table.
    lung &= ~(occur(labels[:, :_RIM]) & occur(labels[:, -_RIM:]))
    lung[0] = False
    return np.asarray(lung[labels], np.uint8)
