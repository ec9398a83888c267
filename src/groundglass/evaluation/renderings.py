"""The same slices as another hospital might show them: other windows, filters, sizes and grey scales."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from groundglass.evaluation.alterations import Alteration
from groundglass.imaging.slice import Grey


def windowed(low: float, high: float) -> Alteration:
    """Show grey values from ``low`` to ``high`` as black to white."""

    def apply(pixels: Grey) -> Grey:
        grey = (pixels.astype(np.float32) - low) * (255 / (high - low))
        return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)

    return apply


def curved(gamma: float) -> Alteration:
    """Raise grey values, as shares of white, to a power."""

    def apply(pixels: Grey) -> Grey:
        return np.asarray(np.rint(255 * (pixels / 255.0) ** gamma), np.uint8)

    return apply


def blurred(share: float) -> Alteration:
    """Blur by a Gaussian whose standard deviation is a share of the longer side."""

    def apply(pixels: Grey) -> Grey:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), share * max(pixels.shape)))

    return apply


def sharpened(pixels: Grey) -> Grey:
    """Add what a blur takes away, twice, as a sharp reconstruction filter does."""
    grey = pixels.astype(np.float32)
    soft = cv2.GaussianBlur(grey, (0, 0), 0.004 * max(pixels.shape))
    return np.asarray(np.clip(np.rint(grey + 2 * (grey - soft)), 0, 255), np.uint8)


def shrunk(side: int) -> Alteration:
    """Reduce the longer side to so many pixels; smaller slices stay as they are."""

    def apply(pixels: Grey) -> Grey:
        scale = side / max(pixels.shape)
        if scale >= 1:
            return pixels
        height, width = (max(1, round(scale * length)) for length in pixels.shape)
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))

    return apply


RENDERINGS: Mapping[str, Alteration] = {
    "window half as wide": windowed(64, 192),
    "window twice as wide": windowed(-128, 383),
    "window 50 grey values lower": windowed(-50, 205),
    "window 50 grey values higher": windowed(50, 305),
    "grey values to the power of 0.6": curved(0.6),
    "grey values to the power of 1.6": curved(1.6),
    "blurred by 0.5 % of the side": blurred(0.005),
    "blurred by 1 % of the side": blurred(0.01),
    "sharpened": sharpened,
    "128 pixels large": shrunk(128),
}
"""Renderings by name; none of them touches what the slice shows."""
