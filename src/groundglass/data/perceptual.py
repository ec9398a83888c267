"""Perceptual fingerprints: what a slice looks like, in two kilobytes, for finding its copies among many.

A fingerprint holds hashes of the whole picture and of its lungs, and of a hundred distinct patches. Hashes of
the whole find copies that were recoded, rescaled or given another window; those of patches find crops as
well. Copies resemble each other in their fingerprints, but so do other slices: a resemblance is a candidate
that ``registration`` has to verify.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import Box, find_lungs, shrunk
from groundglass.imaging.slice import Grey

HASH_BITS = 255
"""Bits of a hash of the whole picture or of its lungs."""

TABLES = 6
"""Codes per patch, each made of other features of the patch: one that agrees makes two patches alike."""

CODE_BITS = 16

Hash = NDArray[np.bool_]
"""Shape (255,)."""

Codes = NDArray[np.uint16]
"""Shape (patches, TABLES)."""

_PATCHES = 100
_WORKING_SIDE = 256
_HASH_SIDE = 32
_HASH_FREQUENCIES = 16
# A row or column between whose darker and brighter pixels (4th and 96th percentile) lie fewer grey values
# than this is a margin: paper, or the black around a reconstruction. Letters in it do not make it a picture.
_FLAT = 24
_LEAST_CONTENT = 0.3
# Most robust of the 127 features of a patch: the slower a feature changes over it, the less do noise and
# recompression change its sign.
_FEATURES = 40


@dataclass(frozen=True)
class Fingerprint:
    """What a slice looks like.

    Attributes:
        shape: height and width of the slice in pixels.
        box: the picture without uniform margins; everything else is about what is inside.
        hash: of the whole; None where nothing is to be seen.
        lungs: box of the lungs, or None where none were found.
        lungs_hash: of the lungs' box, likewise.
        codes: of the patches, uint16, shape (N, TABLES).
        points: centres of the patches in pixels of the slice, x and y, float32, shape (N, 2).
    """

    shape: tuple[int, int]
    box: Box
    hash: Hash | None = field(repr=False)
    lungs: Box | None
    lungs_hash: Hash | None = field(repr=False)
    codes: Codes = field(repr=False)
    points: NDArray[np.float32] = field(repr=False)


def fingerprint(pixels: Grey, patches: bool = True) -> Fingerprint:
    """Take a slice's fingerprint.

    Args:
        pixels: uint8, shape (H, W).
        patches: whether to take those of patches as well, which needs most of the time.
    """
    small = shrunk(pixels, _WORKING_SIDE)
    content = _content(small)
    mask, found = find_lungs(small)
    lungs = _bounding_box(mask) if found else None
    box = _enlarged(content, small, pixels)
    codes, points = _patches(pixels, box) if patches else _NO_PATCHES
    return Fingerprint(
        shape=(pixels.shape[0], pixels.shape[1]),
        box=box,
        hash=perceptual_hash(small, content),
        lungs=None if lungs is None else _enlarged(lungs, small, pixels),
        lungs_hash=None if lungs is None else perceptual_hash(small, lungs),
        codes=codes,
        points=points,
    )


def perceptual_hash(pixels: Grey, box: Box) -> Hash | None:
    """Signs of the slowest frequencies of the discrete cosine transform of a box, grey values equalised.

    Source: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2;
    here with 255 instead of 64 bits, for chest slices resemble each other.

    Args:
        pixels: uint8, shape (H, W).
        box: left, top, right, bottom within the picture.

    Returns:
        None where nothing is to be seen: all blank pictures would be alike.
    """
    left, top, right, bottom = box
    small = cv2.resize(pixels[top:bottom, left:right], (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    if int(small.max()) - int(small.min()) < _FLAT:
        return None
    frequencies = cv2.dct(cv2.equalizeHist(small).astype(np.float32))
    return np.asarray(frequencies[:_HASH_FREQUENCIES, :_HASH_FREQUENCIES].ravel()[1:] > 0)


def mirrored_hash(original: Hash) -> Hash:
    """The hash of the mirror image: frequencies that are odd from left to right change their sign."""
    return np.asarray(original ^ _ODD)


def mirrored_codes(original: Codes) -> Codes:
    """The codes of the mirror image's patches."""
    return np.asarray(original ^ _MIRROR)


def _content(small: Grey) -> Box:
    """The picture without uniform margins; the whole picture where hardly anything else is in it."""
    height, width = small.shape
    left, top, right, bottom = 0, 0, width, height
    for _ in range(2):  # once the margins above and below are gone, those at the sides are seen better
        inside = small[top:bottom, left:right]
        above, below = _varied(inside[:, ::2])
        before, behind = _varied(inside[::2].T)
        if below - above < _LEAST_CONTENT * height or behind - before < _LEAST_CONTENT * width:
            return 0, 0, width, height
        left, right, top, bottom = left + before, left + behind, top + above, top + below
        if inside.shape == (bottom - top, right - left):
            break
    return left, top, right, bottom


def _varied(lines: Grey) -> tuple[int, int]:
    """From the first to behind the last line that is no margin; every line is a row of ``lines``."""
    rim = len(lines) // 8  # most pictures have margins no wider than that, or none
    for outer in (rim, len(lines)):
        first, last = (
            np.flatnonzero(_is_varied(rows)) for rows in (lines[:outer], lines[len(lines) - outer :])
        )
        if len(first) and len(last):
            return int(first[0]), len(lines) - outer + int(last[-1]) + 1
    return 0, 0


def _is_varied(rows: Grey) -> NDArray[np.bool_]:
    if not rows.size:
        return np.zeros(len(rows), np.bool_)
    dark, bright = np.percentile(rows, [4, 96], axis=1, method="nearest").astype(np.int16)
    return np.asarray(bright - dark > _FLAT)


def _enlarged(box: Box, small: Grey, pixels: Grey) -> Box:
    """A box of the shrunken picture in the original; pixels that straddle its edges are left out."""
    vertical, horizontal = pixels.shape[0] / small.shape[0], pixels.shape[1] / small.shape[1]
    left, top, right, bottom = box
    return (
        math.ceil(left * horizontal),
        math.ceil(top * vertical),
        math.floor(right * horizontal + 1e-6),
        math.floor(bottom * vertical + 1e-6),
    )


def _bounding_box(mask: NDArray[np.bool_]) -> Box:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _patches(pixels: Grey, box: Box) -> tuple[Codes, NDArray[np.float32]]:
    """Codes and centres of the most distinct patches, found and described by SIFT, upright.

    Source: D. G. Lowe, Distinctive Image Features from Scale-Invariant Keypoints, IJCV 60(2), 2004. Slices
    are never turned, so that a patch's direction is part of what it looks like.
    """
    left, top, right, bottom = box
    content = pixels[top:bottom, left:right]
    scale = _WORKING_SIDE / max(content.shape)
    size = (max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale)))
    small = cv2.resize(content, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    detector = cv2.SIFT.create(contrastThreshold=0.02, edgeThreshold=12)
    found = sorted(detector.detect(small, None), key=lambda keypoint: -keypoint.response)
    kept = {}
    for keypoint in found:
        place = (round(keypoint.pt[0]), round(keypoint.pt[1]), round(keypoint.size))
        if place not in kept:  # SIFT gives a patch once for each of its directions
            keypoint.angle = 0.0
            kept[place] = keypoint
        if len(kept) == _PATCHES:
            break
    if not kept:
        return _NO_PATCHES
    keypoints, descriptors = detector.compute(small, list(kept.values()))
    places = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    shrunk = np.array([(right - left) / size[0], (bottom - top) / size[1]], np.float32)
    return _encode(descriptors), (places + 0.5) * shrunk - 0.5 + np.array([left, top], np.float32)


def _encode(descriptors: NDArray[np.float32]) -> Codes:
    """Codes of SIFT descriptors, shape (N, 128): signs of their slowest frequencies."""
    total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6)
    signs = np.sqrt(descriptors / total) @ _PROJECTION > 0
    weights = (1 << np.arange(CODE_BITS)).astype(np.int64)
    return np.asarray(signs[:, _CHOSEN] @ weights, np.uint16)


def _cosines(count: int) -> NDArray[np.float64]:
    """Functions of the discrete cosine transform over ``count`` places, one per row."""
    place = (np.arange(count) + 0.5) / count
    return np.cos(np.pi * np.arange(count)[:, None] * place)


def _patch_features() -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """The slowest functions over a descriptor, shape (128, _FEATURES), and which a mirror turns to minus one.

    A descriptor is a histogram of 8 gradient directions at 4 x 4 places: cosines over the places, a Fourier
    series over the directions. The mirror image reverses the places from left to right and takes direction
    ``k`` to ``4 - k``, so that each function stays what it is or changes its sign.
    """
    turn = np.arange(8) * np.pi / 4
    waves = [(0, np.ones(8), 1)]
    for order in range(1, 5):
        waves.append((order, np.cos(order * turn), (-1) ** order))
        if order < 4:  # the sine of the fastest wave is 0 in all 8 directions
            waves.append((order, np.sin(order * turn), -((-1) ** order)))
    functions = []
    for row, over_rows in enumerate(_cosines(4)):
        for column, over_columns in enumerate(_cosines(4)):
            for order, wave, parity in waves:
                values = over_rows[:, None, None] * over_columns[None, :, None] * wave
                speed = row**2 + column**2 + 0.35 * order**2
                functions.append((speed, values.ravel(), parity * (-1) ** column))
    functions.sort(key=lambda function: function[0])
    chosen = functions[1 : _FEATURES + 1]  # the first is constant
    projection = np.stack([values for _, values, _ in chosen], axis=1)
    return projection.astype(np.float32), np.array([sign < 0 for *_, sign in chosen], np.uint16)


_PROJECTION, _CHANGING = _patch_features()
_CHOSEN = np.stack(
    [np.random.default_rng(table).choice(_FEATURES, CODE_BITS, replace=False) for table in range(TABLES)]
)
_MIRROR = np.array([_CHANGING[chosen] @ (1 << np.arange(CODE_BITS)) for chosen in _CHOSEN], np.uint16)
_ODD = np.tile(np.arange(_HASH_FREQUENCIES) % 2 == 1, _HASH_FREQUENCIES)[1:]
_NO_PATCHES = (np.zeros((0, TABLES), np.uint16), np.zeros((0, 2), np.float32))
