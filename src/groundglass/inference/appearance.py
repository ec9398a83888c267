"""How a picture looks, in numbers: what distinguishes axial lung slices from other pictures, cheap to compute.

Everything is taken from small copies of the whole picture and of the cropped slice: their grey values, the
directions of their edges (histograms of oriented gradients: Dalal and Triggs, CVPR 2005), the shape and place
of the lungs found, noise and grey statistics.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import Box, CroppedSlice, grey_histogram, otsu_anchors
from groundglass.imaging.slice import Grey

_SIDE = 48
_GREY_SIDE = 16
_CELLS, _WHOLE_CELLS = 6, 4
_DIRECTIONS = 8
# Grey values and gradients below these are grain of the camera or scanner and shall not be blown up.
_LEAST_CONTRAST, _LEAST_EDGES = 8.0, 200.0

_SHAPES, _GREYS = 19, 10
COUNT = 2 * _GREY_SIDE**2 + (_CELLS**2 + _WHOLE_CELLS**2) * _DIRECTIONS + _SHAPES + _GREYS
"""How many numbers `appearance` gives."""

VERSION = 2
"""Raised whenever the same picture gives other numbers, so that nothing fitted to the former ones is used."""


def appearance(pixels: Grey, cropped: CroppedSlice) -> NDArray[np.float32]:
    """Describe a picture.

    Args:
        pixels: uint8, shape (H, W).
        cropped: the same, cropped.

    Returns:
        float32, shape (`COUNT`,): grey values and edge directions of the cropped slice, those of the whole
        picture, shapes, grey statistics.
    """
    inner, whole = _small(cropped.pixels), _small(cropped.whole)
    return np.concatenate(
        [
            _grey_values(inner),
            _edges(inner, _CELLS),
            _grey_values(whole),
            _edges(whole, _WHOLE_CELLS),
            _shapes(pixels.shape, cropped),
            _grey_statistics(cropped.pixels, inner),
        ]
    ).astype(np.float32)


def _small(pixels: Grey) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.float32)


def _grey_values(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standardised grey values of a coarse copy, shape (256,)."""
    coarse = cv2.resize(small, (_GREY_SIDE, _GREY_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(((coarse - coarse.mean()) / (coarse.std() + _LEAST_CONTRAST)).ravel(), np.float32)


def _edges(small: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """Square roots of the shares of edge strength by cell and direction, shape (cells * cells * 8,)."""
    across = cv2.Sobel(small, cv2.CV_32F, 1, 0, ksize=1)
    down = cv2.Sobel(small, cv2.CV_32F, 0, 1, ksize=1)
    strength, turn = cv2.cartToPolar(across, down)
    direction = (turn * (_DIRECTIONS / np.pi)).astype(np.intp) % _DIRECTIONS
    cell = np.arange(_SIDE) * cells // _SIDE
    place = (cell[:, None] * cells + cell[None, :]) * _DIRECTIONS + direction
    shares = np.bincount(place.ravel(), strength.ravel(), cells * cells * _DIRECTIONS)
    return np.asarray(np.sqrt(shares / (shares.sum() + _LEAST_EDGES)), np.float32)


def _shapes(shape: tuple[int, ...], cropped: CroppedSlice) -> NDArray[np.float64]:
    """Aspect of picture and box, and how the lungs fill their box, shape (19,)."""
    left, top, right, bottom = cropped.box
    height, width = shape
    lungs = _in_box(cropped.lungs, cropped.box)
    middle = _GREY_SIDE // 2
    halves = lungs[:, :middle].mean(), lungs[:, middle:].mean()
    share = float(lungs.mean())
    quarters = _GREY_SIDE // 4 * np.arange(4)
    return np.array(
        [
            np.log(width / height),
            np.log((right - left) / (bottom - top)),
            (right - left) / width,
            (bottom - top) / height,
            (left + right) / width - 1,
            float(cropped.found),
            cv2.countNonZero(cropped.lungs.view(np.uint8)) / cropped.lungs.size,
            share,
            min(halves),
            abs(halves[0] - halves[1]) / (share + 0.05),
            float(lungs[:, middle - 2 : middle + 2].mean()),
            *np.sort(lungs.mean(axis=0))[quarters],
            *np.sort(lungs.mean(axis=1))[quarters],
        ]
    )


def _in_box(lungs: NDArray[np.bool_], box: Box) -> NDArray[np.float32]:
    """Share of lung on a coarse grid over the box."""
    left, top, right, bottom = box
    cut = lungs[max(top, 0) : bottom, max(left, 0) : right].view(np.uint8)
    small = cv2.resize(cut, (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST).astype(np.float32)
    return np.asarray(cv2.resize(small, (_GREY_SIDE, _GREY_SIDE), interpolation=cv2.INTER_AREA), np.float32)


def _grey_statistics(pixels: Grey, small: NDArray[np.float32]) -> NDArray[np.float64]:
    """Symmetry, grain, the two Otsu classes and the histogram of the cropped slice, shape (10,)."""
    dark, bright = otsu_anchors(pixels)
    histogram = grey_histogram(pixels) / pixels.size
    present = histogram[histogram > 0]
    grain = cv2.Laplacian(pixels, cv2.CV_16S)
    spread = (small - small.mean()) / (small.std() + 1)
    return np.array(
        [
            (spread * spread[:, ::-1]).mean(),
            (spread * spread[::-1]).mean(),
            np.log1p(cv2.norm(grain, cv2.NORM_L1) / grain.size),
            np.log1p(small.std()),
            (bright - dark) / 255,
            dark / 255,
            bright / 255,
            -(present * np.log(present)).sum(),
            histogram.max(),
            len(present) / 256,
        ]
    )
