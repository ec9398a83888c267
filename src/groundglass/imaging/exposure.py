"""What window, filter, dose and resolution leave in a slice: grey statistics before it is normalised.

Normalisation hides most of them from the network, and none of them is the disease; where they differ from
those of the training slices, the data come from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import FramedSlice, otsu_anchors
from groundglass.imaging.slice import Grey

VERSION = 1
"""Raised whenever the same slice gives other numbers, so that nothing fitted to the former ones is used."""


@dataclass(frozen=True)
class Statistic:
    """One number that describes a slice.

    Attributes:
        name: in words.
        unit: of its values.
        logarithmic: whether its ratios mean more than its differences.
    """

    name: str
    unit: str
    logarithmic: bool = False


STATISTICS = (
    Statistic("lung grey", "grey values"),
    Statistic("soft tissue grey", "grey values"),
    Statistic("spread within soft tissue", "grey values", logarithmic=True),
    Statistic("sharpness of edges", "% of contrast"),
    Statistic("grain", "% of contrast", logarithmic=True),
    Statistic("resolution", "pixels", logarithmic=True),
)
"""What :func:`exposure` gives, in its order."""

_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_LEAST_CONTRAST = 1.0
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
# What is taken for 0 on a logarithmic scale: a tenth of a grey value or of a per cent is nothing.
_LEAST = 0.1


def exposure(framed: FramedSlice) -> NDArray[np.float32]:
    """Describe a framed slice, shape (`len(STATISTICS)`,).

    Lung and soft tissue are the dark and the bright Otsu class of the framed slice. Sharpness is the median
    gradient along the border between them, grain the standard deviation of noise within soft tissue (J.
    Immerkær, Fast noise variance estimation, Computer Vision and Image Understanding 64(2), 1996), both
    against the contrast of the two classes. Resolution is the longer side of what was framed.
    """
    pixels = framed.pixels
    dark, bright = otsu_anchors(pixels)
    contrast = max(bright - dark, _LEAST_CONTRAST)
    tissue = (pixels > (dark + bright) / 2).astype(np.uint8)
    inner = cv2.erode(tissue, _CROSS) > 0
    left, top, right, bottom = framed.box
    return np.array(
        [
            _median(pixels[tissue == 0], dark),
            _median(pixels[tissue > 0], bright),
            float(pixels[inner].std()) if inner.any() else 0.0,
            100 * _edge_gradient(pixels, tissue) / contrast,
            100 * _noise(pixels, inner) / contrast,
            max(right - left, bottom - top),
        ],
        np.float32,
    )


def linear(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Statistics (N, S) on scales on which differences mean the same everywhere."""
    scaled = np.asarray(values, np.float64).copy()
    chosen = [statistic.logarithmic for statistic in STATISTICS]
    scaled[:, chosen] = np.log2(np.maximum(scaled[:, chosen], _LEAST))
    return scaled


def _median(values: Grey, otherwise: float) -> float:
    return float(np.median(values)) if len(values) else otherwise


def _edge_gradient(pixels: Grey, tissue: NDArray[np.uint8]) -> float:
    """Median gradient where lung and soft tissue meet, grey values per pixel; 0 where they do not."""
    border = cv2.morphologyEx(tissue, cv2.MORPH_GRADIENT, _CROSS) > 0
    if not border.any():
        return 0.0
    across, down = (cv2.Sobel(pixels, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    return float(np.median(np.hypot(across, down)[border]))


def _noise(pixels: Grey, where: NDArray[np.bool_]) -> float:
    """Standard deviation of noise, grey values."""
    if not where.any():
        return 0.0
    filtered = np.abs(cv2.filter2D(pixels, cv2.CV_32F, _NOISE_KERNEL))
    return float(np.sqrt(np.pi / 2) / 6 * filtered[where].mean())
