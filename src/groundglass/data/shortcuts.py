"""What a slice says without its lungs being looked at: its container, size, grey values and surroundings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Record
from groundglass.imaging.framing import find_lungs
from groundglass.imaging.slice import CTSlice, Grey

SIZE_FEATURES = ("width", "height", "width to height", "pixels")

GREY_FEATURES = (
    *("mean", "standard deviation"),
    *(f"{percent} % percentile" for percent in (1, 5, 25, 50, 75, 95, 99)),
    *("share of black", "share of white", "entropy"),
)

SURROUNDINGS_FEATURES = (
    *(f"{name} outside the lungs' box" for name in GREY_FEATURES),
    *(
        f"{name} of the {edge} edge"
        for edge in ("top", "bottom", "left", "right")
        for name in GREY_FEATURES[:2]
    ),
)

_PERCENTILES = (0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
# The middle of the picture, where lungs are, is blanked where none were found.
_MIDDLE = (0.15, 0.20, 0.85, 0.80)
_MARGIN = 0.02
_EDGE = 0.02
_LEAST_PIXELS = 50


@dataclass(frozen=True)
class ShortcutFeatures:
    """What a slice says without its lungs.

    Attributes:
        container: format, pixel mode and suffix, such as ``PNG RGBA .png``.
        size: `SIZE_FEATURES`, float32.
        grey: `GREY_FEATURES`, float32.
        surroundings: `SURROUNDINGS_FEATURES`, float32.
    """

    container: str
    size: NDArray[np.float32]
    grey: NDArray[np.float32]
    surroundings: NDArray[np.float32]


def shortcut_features(record: Record, image: CTSlice) -> ShortcutFeatures:
    """Measure a slice.

    Args:
        record: the slice.
        image: the same, read.
    """
    height, width = image.pixels.shape
    suffix = record.path.suffix.lower()
    return ShortcutFeatures(
        container=f"{image.origin.container} {image.origin.mode} {suffix}".strip(),
        size=np.array([width, height, width / height, width * height], np.float32),
        grey=_grey_statistics(image.pixels),
        surroundings=_surroundings(image.pixels),
    )


def _grey_statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    share = np.bincount(pixels.ravel(), minlength=256) / max(pixels.size, 1)
    grey = np.arange(256)
    mean = float((share * grey).sum())
    deviation = float(np.sqrt((share * (grey - mean) ** 2).sum()))
    percentiles = np.searchsorted(np.cumsum(share), _PERCENTILES)
    present = share[share > 0]
    entropy = -float((present * np.log2(present)).sum())
    return np.array([mean, deviation, *percentiles, share[0], share[255], entropy], np.float32)


def _surroundings(pixels: Grey) -> NDArray[np.float32]:
    """Statistics of what lies outside a box around the lungs, and of the picture's four edges.

    The box hides mediastinum and heart as well. Neither its size nor its place is told: they change with the
    disease.
    """
    height, width = pixels.shape
    outside = np.ones(pixels.shape, np.bool_)
    outside[_lungs_box(pixels)] = False
    around = pixels[outside]
    statistics = np.zeros(len(GREY_FEATURES), np.float32)
    if len(around) >= _LEAST_PIXELS:
        statistics = _grey_statistics(around)
    rows, columns = max(1, round(_EDGE * height)), max(1, round(_EDGE * width))
    edges = (pixels[:rows], pixels[-rows:], pixels[:, :columns], pixels[:, -columns:])
    moments = [moment for edge in edges for moment in (float(edge.mean()), float(edge.std()))]
    return np.concatenate([statistics, np.array(moments, np.float32)])


def _lungs_box(pixels: Grey) -> tuple[slice, slice]:
    height, width = pixels.shape
    mask, found = find_lungs(pixels)
    left, top, right, bottom = (
        round(share * side) for share, side in zip(_MIDDLE, (width, height) * 2, strict=True)
    )
    if found:
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    margin = round(_MARGIN * max(height, width))
    return slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)
