"""Crop to the lungs, resize, normalise: the one way from a slice and its lung mask to what a network sees.

Training, evaluation and prediction all crop through :class:`Preprocessing`; its fields travel with a trained
model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

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
    """A slice cut to its lungs."""

    pixels: Grey  # (size, size): a square around the lungs, resized, grey values as in the source
    box: Box  # where ``pixels`` lies in the source; may reach beyond its edges, where it is black
    lungs: NDArray[np.bool_]  # (H, W) of the source, disease included; all False where none was found
    found: bool  # whether lungs were found; otherwise ``box`` is around the whole picture
    whole: Grey  # the whole picture, its longer side at most 192 pixels


class Section(BaseModel):
    """A part of a recipe or of ``bundle.json``: no field too many, no infinite number, none that can be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Preprocessing(Section):
    """How slices are cropped."""

    size: Annotated[int, Field(ge=32, le=1024)] = 160  # side of the cropped slice in pixels
    crop: bool = True  # to a square around the lungs, so that they keep their shape; else the whole picture is resized
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.06  # added on each side of the lungs' longer side, as a share of it
    normalisation: Normalisation = "zero-mean"  # the choice of the paper (section III-A); `min-max` is its alternative

    def apply(self, pixels: Grey, lungs: NDArray[np.bool_]) -> CroppedSlice:
        """Crop one slice of any shape to its lungs, bool, as `groundglass.imaging.lungs.LungSegmenter` finds them."""
        height, width = pixels.shape
        found, box = bool(lungs.any()), (0, 0, width, height)
        if self.crop:
            left, top, columns, rows = cv2.boundingRect(lungs.astype(np.uint8)) if found else box
            # The square around the middle whose side is the longer one and a margin on both sides.
            side = round(max(columns, rows) * (1 + 2 * (self.margin if found else 0)))
            left, top = (2 * left + columns - side) // 2, (2 * top + rows - side) // 2
            box = (left, top, left + side, top + side)
        return CroppedSlice(resize_box(pixels, box, self.size), box, lungs, found, shrunk(pixels, _WHOLE_SIDE))

    def normalise(self, pixels: Grey) -> NDArray[np.float32]:
        """Normalise the grey values of cropped slices, shape (..., H, W), each by itself.

        Returns float32 of that shape, roughly of zero mean and unit spread; a blank slice gives a constant.
        """
        planes = pixels.reshape(-1, *pixels.shape[-2:])
        normalised = np.empty(planes.shape, np.float32)
        grey = np.arange(256, dtype=np.float32)
        for plane, out in zip(planes, normalised, strict=True):
            # One look-up table per slice: 256 values are computed instead of size x size.
            if self.normalisation == "zero-mean":
                table = (grey - plane.mean()) / max(float(plane.std()), 1.0)
            else:
                low, high = float(plane.min()), float(plane.max())
                share = np.clip((grey - low) / max(high - low, 1.0), 0, 1)
                table = (share - _MIN_MAX_CENTRE) / _MIN_MAX_SCALE
            cv2.LUT(plane, np.asarray(table, np.float32), out)
        return normalised.reshape(pixels.shape)


def shrunk(pixels: Grey, longest: int) -> Grey:
    """A picture (H, W) whose longer side is made ``longest`` pixels; the picture itself where it is smaller."""
    scale = longest / max(pixels.shape)
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


def lesion_mask(lesion_map: NDArray[np.float32], cropped: CroppedSlice) -> NDArray[np.bool_]:
    """Lesions inside the lungs, bool (H, W) of the source, by a lesion map over the crop, logits (h, w)."""
    return (in_slice(lesion_map, cropped) > 0) & cropped.lungs


def in_slice(lesion_map: NDArray[np.float32], cropped: CroppedSlice) -> NDArray[np.float32]:
    """A lesion map over the crop, logits (h, w), in its place in the source: (H, W), -inf outside the crop."""
    left, top, right, bottom = cropped.box
    height, width = cropped.lungs.shape
    enlarged = cv2.resize(lesion_map, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    placed = np.full((height, width), -np.inf, np.float32)
    placed[max(top, 0) : bottom, max(left, 0) : right] = enlarged[
        max(-top, 0) : height - top, max(-left, 0) : width - left
    ]
    return placed


def grey_histogram(pixels: Grey) -> NDArray[np.float64]:
    """How often each grey value occurs in a picture of shape (H, W), shape (256,)."""
    return np.asarray(cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel(), np.float64)


def otsu_anchors(pixels: Grey) -> tuple[float, float]:
    """Mean grey of the dark and of the bright Otsu class; equal for a blank picture.

    Source: N. Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9(1), 1979.
    """
    cut = int(cv2.threshold(pixels, 0, 255, cv2.THRESH_OTSU)[0]) + 1
    grey, histogram = np.arange(256), grey_histogram(pixels)
    parts = [part for part in (slice(cut), slice(cut, None)) if histogram[part].any()]
    means = [float(np.average(grey[part], weights=histogram[part])) for part in parts]
    return means[0], means[-1]
