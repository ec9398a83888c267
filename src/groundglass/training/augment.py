"""Augmentation of framed slices: what makes a network look at lungs rather than at containers.

All operations work on 8-bit grey in OpenCV, before normalisation, so that an augmented slice is exactly what
another scanner, window or JPEG encoder would have handed in.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.slice import Grey
from groundglass.training.recipe import AugmentationSection

CONTEXT = 0.125
"""Share of the frame's side kept on every side of a training slice, for crops and shifts to move into."""


class Augmentation:
    """Random augmentation of one framed slice with context.

    Args:
        section: ranges and probabilities.
        size: side of the augmented slice in pixels.
    """

    def __init__(self, section: AugmentationSection, size: int) -> None:
        self.section = section
        self.size = size

    def __call__(self, pixels: Grey, rng: np.random.Generator) -> Grey:
        """Augment a slice of shape (C, C), C including the context, to (size, size)."""
        s = self.section
        # Resolution first, then noise and compression, in the order a picture suffers them.
        out = self._warp(pixels, rng)
        if rng.random() < s.grey:
            out = cv2.LUT(out, _grey_curve(rng))
        if rng.random() < s.blur:
            out = _blurred(out, rng)
        if rng.random() < s.noise:
            out = _noisy(out, rng)
        if rng.random() < s.jpeg:
            out = _recompressed(out, rng)
        if rng.random() < s.erasing:
            out = _erased(out, rng)
        return np.asarray(out, np.uint8)

    def centre(self, pixels: Grey) -> Grey:
        """The same slice without augmentation: the context cut away."""
        return np.asarray(self._resample(pixels, np.eye(2), (0.0, 0.0)), np.uint8)

    def _warp(self, pixels: Grey, rng: np.random.Generator) -> Grey:
        """Crop, stretch, rotation, mirror and translation in one interpolation."""
        s = self.section
        zoom = 1.0
        if s.smallest_crop < 1:
            zoom = math.sqrt(rng.uniform(s.smallest_crop, 1.0)) * rng.uniform(1.0, 1.0 + CONTEXT / 2)
        stretch = math.exp(rng.uniform(-s.stretch, s.stretch))
        angle = math.radians(rng.uniform(-s.rotation, s.rotation))
        flip = -1.0 if rng.random() < s.mirror else 1.0
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        scale = np.diag([zoom * stretch * flip, zoom / stretch])
        # A smaller crop may lie anywhere inside the frame.
        slack = (1 - zoom) / 2 if zoom < 1 else 0.0
        shift = rng.uniform(-1, 1, 2) * (slack + s.translation) * self.size
        return self._resample(pixels, turn @ scale, (float(shift[0]), float(shift[1])))

    def _resample(self, pixels: Grey, linear: NDArray[np.float64], shift: tuple[float, float]) -> Grey:
        """Map output pixel p to source pixel ``linear @ (p - centre) + source centre + shift``."""
        source = pixels.shape[0]
        per_pixel = source / (self.size * (1 + 2 * CONTEXT))
        linear = linear * per_pixel
        centre = np.full(2, (self.size - 1) / 2)
        offset = np.full(2, (source - 1) / 2) + np.asarray(shift) * per_pixel - linear @ centre
        matrix = np.column_stack([linear, offset]).astype(np.float32)
        return np.asarray(
            cv2.warpAffine(
                pixels,
                matrix,
                (self.size, self.size),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )


def _grey_curve(rng: np.random.Generator) -> Grey:
    """Gamma, contrast and a narrower window, as one look-up table."""
    grey = np.linspace(0, 1, 256)
    grey = grey ** math.exp(rng.uniform(-0.35, 0.35))
    low, high = rng.uniform(-0.12, 0.12), 1 + rng.uniform(-0.25, 0.15)
    grey = (grey - low) / (high - low)
    grey = 0.5 + (grey - 0.5) * rng.uniform(0.8, 1.1) + rng.uniform(-0.06, 0.06)
    return np.asarray(np.clip(np.rint(grey * 255), 0, 255), np.uint8)


def _blurred(pixels: Grey, rng: np.random.Generator) -> Grey:
    """A softer reconstruction kernel, or a picture that was small before it was enlarged."""
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.2)))
    side = pixels.shape[0]
    small = max(16, round(side * rng.uniform(0.45, 0.9)))
    shrunk = cv2.resize(pixels, (small, small), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (side, side), interpolation=cv2.INTER_LINEAR))


def _noisy(pixels: Grey, rng: np.random.Generator) -> Grey:
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(2, 12)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _recompressed(pixels: Grey, rng: np.random.Generator) -> Grey:
    _, stream = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 92))])
    return np.asarray(cv2.imdecode(stream, cv2.IMREAD_GRAYSCALE))


def _erased(pixels: Grey, rng: np.random.Generator) -> Grey:
    """One or two rectangles filled with one grey: no single patch may decide."""
    out = pixels.copy()
    side = pixels.shape[0]
    for _ in range(int(rng.integers(1, 3))):
        height, width = (rng.uniform(0.08, 0.28, 2) * side).astype(int)
        top, left = int(rng.integers(0, side - height)), int(rng.integers(0, side - width))
        out[top : top + height, left : left + width] = rng.integers(0, 256)
    return out
