"""Slices that are in a data set twice: the same file, the same pixels, or a copy that somebody worked on.

Perceptual fingerprints: what a slice looks like, in two kilobytes, for prediction its copies among many.

A fingerprint holds hashes of the whole picture and of its lungs, and of a hundred distinct patches. Hashes of
the whole find copies that were recoded, rescaled or given another window; those of patches find crops as
well. Copies resemble each other in their fingerprints, but so do other slices: a resemblance is a candidate
that ``registration`` has to verify.

Pairs of slices that may be copies, found among many without comparing each with each.

Patches are looked up by their codes, as words are in a library's index: what two slices share counts the more
the rarer it is (inverse document frequency), and for each slice the few others that share most are proposed.
Hashes of the whole and of the lungs are compared with all others, by matrix products.

Whether two pictures show the same slice: bring one onto the other, then compare what both show.

Slices of different people look alike, and neighbouring slices of one person even more so; what tells a copy
is that its fine structure, vessels above all, lies at the same places. So the pictures are registered, coarse
to fine, slow changes of grey are taken away, and the correlation is measured around every place with strong
structure. A copy correlates nearly everywhere; arrows and letters that somebody drew on it leave it alone
elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from groundglass.data.manifest import Record, read_bytes, read_pixels, read_record
from groundglass.errors import ImageError
from groundglass.files import usable_cores
from groundglass.imaging.crop import Box, find_lungs, shrunk
from groundglass.imaging.slice import CTSlice, Grey

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


Window = Literal["whole", "lungs"]

_NEAREST = 4
# A hundred pictures that are all alike are found by a few neighbours of each as well.
_MOST_ALIKE = 16
_LEAST_RESEMBLANCE = 0.012
# Codes that more slices have than this share (at least and at most so many) tell nothing and cost most.
_COMMON_SHARE, _COMMON_LEAST, _COMMON_MOST = 0.02, 20, 1000
# Bits by which hashes of copies may differ. Of 500,000 pairs of LUNA16 slices 1 differs in 40 or fewer bits
# of the whole, none in 48 or fewer of the lungs.
_DISTANCE: dict[Window, int] = {"whole": 40, "lungs": 48}
# Entries of one block of a product, which bounds memory to about 100 MB.
_CELLS = 12_000_000


@dataclass(frozen=True)
class Candidate:
    """Two slices that may be copies.

    Attributes:
        first: index of the one.
        second: index of the other.
        mirrored: whether the first resembles the second when mirrored.
        window: whose hashes are alike; None where patches are.
    """

    first: int
    second: int
    mirrored: bool
    window: Window | None


def patch_candidates(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None, groups: Sequence[str] | None = None
) -> Iterator[Candidate]:
    """For each of the first slices the few of the second that share most patches with it.

    Args:
        first: fingerprints.
        second: others; None for pairs among the first, of which each comes once.
        groups: of the first, where ``second`` is None: neighbours of the same group (a patient's slices)
            are proposed beside those of others and do not displace them.
    """
    rarity = _rarity([*first, *(second or ())])
    others = _weighted([print_.codes for print_ in (first if second is None else second)], rarity).T.tocsr()
    members = None if groups is None else np.unique(groups, return_inverse=True)[1]
    for mirrored in (False, True):
        codes = [mirrored_codes(print_.codes) if mirrored else print_.codes for print_ in first]
        for row, columns, resemblance in _products(_weighted(codes, rarity), others):
            if second is not None:
                near = _nearest(columns, resemblance)
                yield from (Candidate(row, other, mirrored, None) for other in near)
                continue
            elsewhere = columns != row
            near = _nearest(columns[elsewhere], resemblance[elsewhere])
            if members is not None:
                strangers = members[columns] != members[row]
                near |= _nearest(columns[strangers], resemblance[strangers])
            yield from (Candidate(min(row, other), max(row, other), mirrored, None) for other in near)


def hash_candidates(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None
) -> Iterator[Candidate]:
    """Pairs whose hashes of the whole or of the lungs are alike, mirrored or not.

    Args:
        first: fingerprints.
        second: others; None for pairs among the first, of which each comes once.
    """
    for window, distance in _DISTANCE.items():
        ours = [_hash(print_, window) for print_ in first]
        others = _signs(ours if second is None else [_hash(print_, window) for print_ in second])
        for mirrored in (False, True):
            mine = _signs([None if h is None else mirrored_hash(h) for h in ours] if mirrored else ours)
            for row, column in _alike(mine, others, distance):
                if second is not None or row < column:
                    yield Candidate(row, column, mirrored, window)


def _rarity(prints: Sequence[Fingerprint]) -> NDArray[np.float32]:
    """Weight of each code: 0 where it tells nothing, for it is everywhere or here alone."""
    counts = np.zeros(TABLES << CODE_BITS, np.int64)
    for print_ in prints:
        counts[_words(print_.codes)] += 1
    common = min(max(_COMMON_LEAST, _COMMON_SHARE * len(prints)), _COMMON_MOST)
    telling = (counts >= 1) & (counts <= common)
    weights = np.log((1 + len(prints)) / (1 + counts)) * telling
    return np.asarray(np.maximum(weights, 0), np.float32)


def _words(codes: NDArray[np.uint16]) -> NDArray[np.int64]:
    return np.unique(codes.astype(np.int64) + (np.arange(TABLES) << CODE_BITS))


def _weighted(codes: Sequence[NDArray[np.uint16]], rarity: NDArray[np.float32]) -> sparse.csr_matrix:
    """One row of unit length per slice, one column per code."""
    kept, values = [], []
    for slice_codes in codes:
        words = _words(slice_codes)
        weights = rarity[words]
        length = float(np.linalg.norm(weights))
        present = weights > 0
        kept.append(words[present].astype(np.int32))
        values.append(weights[present] / np.float32(max(length, 1e-9)))
    starts = np.cumsum([0, *(len(words) for words in kept)])
    columns = np.concatenate([*kept, np.zeros(0, np.int32)])
    entries = np.concatenate([*values, np.zeros(0, np.float32)])
    return sparse.csr_matrix((entries, columns, starts), shape=(len(codes), len(rarity)))


def _products(
    mine: sparse.csr_matrix, others: sparse.csr_matrix
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.float32]]]:
    """For each of my rows the columns of ``others`` that resemble it, and how much."""
    rows = max(1, _CELLS // max(others.shape[1], 1))
    for start in range(0, mine.shape[0], rows):
        products = (mine[start : start + rows] @ others).tocsr()
        for row in range(products.shape[0]):
            span = slice(products.indptr[row], products.indptr[row + 1])
            alike = products.data[span] >= _LEAST_RESEMBLANCE
            yield start + row, products.indices[span][alike], products.data[span][alike]


def _nearest(columns: NDArray[np.int32], resemblance: NDArray[np.float32]) -> set[int]:
    if len(columns) > _NEAREST:
        columns = columns[np.argpartition(-resemblance, _NEAREST)[:_NEAREST]]
    return {int(column) for column in columns}


def _hash(print_: Fingerprint, window: Window) -> Hash | None:
    return print_.hash if window == "whole" else print_.lungs_hash


def _signs(hashes: Sequence[Hash | None]) -> NDArray[np.float32]:
    """Bits as -1 and 1, shape (N, 255); a row of zeros, which resembles nothing, where there is no hash."""
    signs = np.zeros((len(hashes), HASH_BITS), np.float32)
    for row, bits in zip(signs, hashes, strict=True):
        if bits is not None:
            row[:] = np.where(bits, 1, -1)
    return signs


def _alike(
    mine: NDArray[np.float32], others: NDArray[np.float32], distance: int
) -> Iterator[tuple[int, int]]:
    rows = max(1, _CELLS // max(len(others), 1))
    for start in range(0, len(mine), rows):
        products = mine[start : start + rows] @ others.T
        close = products >= HASH_BITS - 2 * distance
        for row in np.flatnonzero(close.any(axis=1)):
            columns = np.flatnonzero(close[row])
            if len(columns) > _MOST_ALIKE:
                columns = columns[np.argpartition(-products[row, columns], _MOST_ALIKE)[:_MOST_ALIKE]]
            yield from ((start + int(row), int(column)) for column in columns)


COPY_CORRELATION = 0.9
"""From this correlation on two pictures are called copies of one slice."""

LOOKALIKE_CORRELATION = 0.6
"""From this one on they are called lookalikes: most often neighbouring slices of one person."""

Affine = NDArray[np.float64]
"""Takes x and y of the first picture to those of the second, both in pixels; shape (2, 3)."""

_LEAST_PATCHES = 5
_HYPOTHESES = 400
_MOST_PAIRS = 250
# How far a patch may lie from where the other picture has it, as a share of that picture's longer side.
_PATCH_TOLERANCE = 0.015
_SCALES = (0.12, 8.0)
_STRETCH = 1.6
_COARSE, _FINE = 96, 256
# What refining may change: more is a picture bent until it fits.
_LARGEST_CHANGE = 0.2
_LEAST_OVERLAP = 0.2
_LEAST_SIDE = 24
# Below this correlation of the coarse pictures there is nothing that a finer look could find.
_COARSE_CORRELATION = 0.45
# The fourth of a picture's structure that is weakest is noise in one copy and gone in another; of the rest
# a fifth may be covered by what was drawn onto one of them.
_STRONGEST = 30
_COVERED = 20


@dataclass(frozen=True)
class Registration:
    """How two pictures lie on each other.

    Attributes:
        correlation: what 80 % of the places with strong structure exceed, -1 to 1.
        affine: takes x and y of the first picture, mirrored where ``mirrored``, to those of the second.
        mirrored: whether the first picture has to be mirrored.
        overlap: share of the first and of the second picture that both show.
    """

    correlation: float
    affine: tuple[tuple[float, float, float], tuple[float, float, float]]
    mirrored: bool
    overlap: tuple[float, float]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the second picture per pixel of the first, along x and y."""
        return self.affine[0][0], self.affine[1][1]


def patches_start(first: Fingerprint, second: Fingerprint, mirrored: bool) -> Affine | None:
    """Where the second picture has the first one's patches: scale along x and y, and shift; or None.

    Args:
        first: of the first picture.
        second: of the second picture.
        mirrored: whether the first picture is to be mirrored.
    """
    here, there = _alike_patches(first, second, mirrored)
    if len(here) < _LEAST_PATCHES:
        return None
    left, top, right, bottom = second.box
    tolerance = _PATCH_TOLERANCE * max(right - left, bottom - top)
    found = _consensus(here, there, tolerance)
    if found is None:
        return None
    scale, shift, agree = found
    matched = min(len(np.unique(here[agree], axis=0)), len(np.unique(there[agree], axis=0)))
    if matched < _LEAST_PATCHES:
        return None
    return np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])


def boxes_start(first: Box, second: Box, width: int, mirrored: bool) -> Affine:
    """What brings one box onto the other.

    Args:
        first: in the first picture.
        second: in the second picture.
        width: of the first picture.
        mirrored: whether the first picture is to be mirrored.
    """
    left, top, right, bottom = first
    if mirrored:
        left, right = width - right, width - left
    scale_x, scale_y = (second[2] - second[0]) / (right - left), (second[3] - second[1]) / (bottom - top)
    return np.array([[scale_x, 0, second[0] - scale_x * left], [0, scale_y, second[1] - scale_y * top]])


def register(
    first: Grey, second: Grey, boxes: tuple[Box, Box], start: Affine, mirrored: bool
) -> Registration | None:
    """Register two pictures and measure how far they agree.

    Args:
        first: uint8, shape (H, W).
        second: uint8, shape (h, w).
        boxes: what is picture and no margin in the first and the second (`Fingerprint.box`).
        start: takes the first picture to the second one, roughly.
        mirrored: whether the first picture is to be mirrored; ``start`` is then about its mirror image.

    Returns:
        None where they do not agree at all, or hardly overlap.
    """
    box = boxes[0]
    if mirrored:
        width = first.shape[1]
        first, box = np.ascontiguousarray(first[:, ::-1]), (width - box[2], box[1], width - box[0], box[3])
    affine, correlation = start, 0.0
    for side in (_COARSE, _FINE):
        view = _View.over(affine, box, boxes[1], side)
        if view is None:
            return None
        there = view.of_second(second)
        affine = _refine(view, view.of_first(first, affine), there, affine)
        correlation = agreement(view.of_first(first, affine), there)
        if correlation < _COARSE_CORRELATION:
            return None
    view = _View.over(affine, box, boxes[1], _FINE)
    if view is None:
        return None
    (a, b, c), (d, e, f) = affine.tolist()
    return Registration(float(correlation), ((a, b, c), (d, e, f)), mirrored, view.overlap)


def agreement(first: Grey, second: Grey) -> float:
    """Correlation of fine structure that 80 % of the places with strong structure exceed.

    Args:
        first: uint8, shape (H, W).
        second: registered to the first, same shape.
    """
    unit = max(first.shape) / 256
    one, other = _structure(first, unit), _structure(second, unit)
    width = max(4 * unit, 1.2)
    variance, other_variance = _variance(one, width), _variance(other, width)
    product = _smooth(one * other, width) - _smooth(one, width) * _smooth(other, width)
    edge = min(round(1.5 * width), min(first.shape) // 4)
    inside = (slice(edge, -edge or None),) * 2
    variance, other_variance, product = variance[inside], other_variance[inside], product[inside]
    # Grey values are whole numbers and recompressed: variances below a few are no structure.
    correlation = product / np.sqrt((variance + 4) * (other_variance + 4))
    strength = np.maximum(
        variance / max(float(variance.mean()), 1e-6), other_variance / max(float(other_variance.mean()), 1e-6)
    )
    strong = correlation[strength >= np.percentile(strength, 100 - _STRONGEST)]
    return float(np.percentile(strong, _COVERED))


@dataclass(frozen=True)
class _View:
    """The part that both pictures show, at a resolution that neither exceeds.

    Attributes:
        to_second: takes its pixels to those of the second picture.
        size: width and height.
        overlap: share of the first and of the second picture that it covers.
    """

    to_second: Affine
    size: tuple[int, int]
    overlap: tuple[float, float]

    @classmethod
    def over(cls, affine: Affine, first: Box, second: Box, side: int) -> _View | None:
        """The view of two boxes, at most ``side`` pixels long; None where they hardly overlap."""
        corners = np.array([first[:2], first[2:]], np.float64).T
        placed = np.diag(affine[:, :2])[:, None] * corners + affine[:, 2:]
        left, top = np.maximum(placed.min(axis=1), second[:2])
        right, bottom = np.minimum(placed.max(axis=1), second[2:])
        common = max(right - left, 0) * max(bottom - top, 0)
        areas = [
            float(np.ptp(edges[0]) * np.ptp(edges[1]))
            for edges in (placed, np.array([second[::2], second[1::2]]))
        ]
        overlap = (float(common / max(areas[0], 1e-6)), float(common / max(areas[1], 1e-6)))
        if max(overlap) < _LEAST_OVERLAP:
            return None
        coarser = min(1.0, 1 / float(np.abs(np.diag(affine[:, :2])).max()))
        resolution = min(coarser, side / max(right - left, bottom - top))
        size = (round((right - left) * resolution), round((bottom - top) * resolution))
        if min(size) < _LEAST_SIDE:
            return None
        step = np.array([(right - left) / size[0], (bottom - top) / size[1]])
        corner = np.array([left, top]) + step / 2 - 0.5
        return cls(np.column_stack([np.diag(step), corner]), size, overlap)

    def of_second(self, second: Grey) -> Grey:
        """The view, taken from the second picture."""
        return _sample(second, self.to_second, self.size)

    def of_first(self, first: Grey, affine: Affine) -> Grey:
        """The view, taken from the first picture."""
        return _sample(first, _compose(_inverse(affine), self.to_second), self.size)


def _alike_patches(
    first: Fingerprint, second: Fingerprint, mirrored: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of patches that share a code, those that share most first; each of shape (N, 2)."""
    codes, points = first.codes, first.points.astype(np.float64)
    if mirrored:
        codes = mirrored_codes(codes)
        points = points * (-1, 1) + (first.shape[1] - 1, 0)
    shared = (codes[:, None, :] == second.codes[None, :, :]).sum(axis=2)
    here, there = np.nonzero(shared)
    best = np.argsort(-shared[here, there], kind="stable")[:_MOST_PAIRS]
    return points[here[best]], second.points.astype(np.float64)[there[best]]


def _consensus(
    here: NDArray[np.float64], there: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]] | None:
    """Scale and shift along x and y that most pairs of points agree with (random sample consensus).

    Source: M. A. Fischler, R. C. Bolles, Random Sample Consensus, CACM 24(6), 1981.
    """
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, len(here), (2, _HYPOTHESES))
    apart = here[one] - here[other]
    usable = (np.abs(apart) > 2 * tolerance / _SCALES[1]).all(axis=1) & (np.abs(apart) > 4).all(axis=1)
    one, other, apart = one[usable], other[usable], apart[usable]
    scale = (there[one] - there[other]) / apart
    stretch = scale[:, 0] / np.where(scale[:, 1] == 0, 1e-9, scale[:, 1])
    likely = (scale > _SCALES[0]).all(axis=1) & (scale < _SCALES[1]).all(axis=1)
    likely &= (stretch > 1 / _STRETCH) & (stretch < _STRETCH)
    if not likely.any():
        return None
    scale = scale[likely]
    shift = there[one[likely]] - scale * here[one[likely]]
    misfit = np.abs(here[None] * scale[:, None] + shift[:, None] - there[None]).max(axis=2)
    agree = misfit[np.argmax((misfit < tolerance).sum(axis=1))] < tolerance
    for _ in range(3):
        if agree.sum() < _LEAST_PATCHES:
            return None
        best_scale, best_shift = _fit(here[agree], there[agree])
        agree = np.abs(here * best_scale + best_shift - there).max(axis=1) < tolerance
    return best_scale, best_shift, agree


def _fit(
    here: NDArray[np.float64], there: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least squares of ``there = scale * here + shift``, along x and y."""
    centre, other_centre = here.mean(axis=0), there.mean(axis=0)
    spread = np.maximum(((here - centre) ** 2).sum(axis=0), 1e-6)
    scale = ((here - centre) * (there - other_centre)).sum(axis=0) / spread
    return scale, other_centre - scale * centre


def _refine(view: _View, first: Grey, second: Grey, affine: Affine) -> Affine:
    """A better ``affine``, by maximising the correlation of the two views (ECC).

    Source: G. D. Evangelidis, E. Z. Psarakis, Parametric Image Alignment Using Enhanced Correlation
    Coefficient Maximization, IEEE TPAMI 30(10), 2008.
    """
    unit = max(first.shape) / 256
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, found = cv2.findTransformECC(
            _structure(second, unit),
            _structure(first, unit),
            np.eye(2, 3, dtype=np.float32),
            cv2.MOTION_AFFINE,
            criteria,
            None,
            5,
        )
    except cv2.error:  # it says so where it does not converge
        return affine
    change = np.abs(found[:, :2] - np.eye(2))
    if not np.isfinite(found).all() or change.max() > _LARGEST_CHANGE:
        return affine
    # ``found`` takes the view's pixels to those of the view as taken from the first picture with ``affine``.
    moved = _compose(view.to_second, _compose(_inverse(found.astype(np.float64)), _inverse(view.to_second)))
    return _compose(moved, affine)


def _structure(pixels: Grey, unit: float) -> NDArray[np.float32]:
    """Structure between 1 and 5 pixels of a picture 256 pixels long."""
    grey = pixels.astype(np.float32)
    return np.asarray(_smooth(grey, max(0.8 * unit, 0.5)) - _smooth(grey, max(5 * unit, 1.5)), np.float32)


def _variance(values: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    return np.asarray(_smooth(values * values, width) - _smooth(values, width) ** 2, np.float32).clip(0)


def _smooth(values: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), width), np.float32)


def _sample(pixels: Grey, to_pixels: Affine, size: tuple[int, int]) -> Grey:
    """A picture of ``size`` whose pixels ``to_pixels`` takes to those of ``pixels``."""
    shrinking = float(np.abs(np.diag(to_pixels[:, :2])).max())
    if shrinking > 1.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), 0.42 * shrinking)
    return np.asarray(
        cv2.warpAffine(
            pixels,
            to_pixels,
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.uint8,
    )


def _compose(outer: Affine, inner: Affine) -> Affine:
    """First ``inner``, then ``outer``."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def _inverse(affine: Affine) -> Affine:
    back = np.linalg.inv(affine[:, :2])
    return np.column_stack([back, -back @ affine[:, 2]])


Kind = Literal["file", "pixels", "copy", "lookalike"]
"""Same content, same pixels in another file, verified copy, or merely very much alike."""

Progress = Callable[[int], None]
"""Told how many more steps are done."""

_KINDS: tuple[Kind, ...] = get_args(Kind)
_WINDOWS: tuple[Window | None, ...] = (None, *get_args(Window))
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Beyond this number of identical slices each is paired with the first only.
_ALL_PAIRS = 8
_CACHE_BYTES = 256 * 2**20
_AHEAD = 4


@dataclass(frozen=True)
class Trace:
    """What is kept of a slice to find its copies.

    Attributes:
        record: the slice.
        sha256: of its file's content.
        pixels_sha256: of its grey pixels and their shape.
        fingerprint: what it looks like.
    """

    record: Record
    sha256: str
    pixels_sha256: str
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Pair:
    """Two slices that show the same.

    Attributes:
        first: the one.
        second: the other.
        kind: how much they are the same.
        correlation: 1 for the same file or pixels, otherwise as verified (`registration.agreement`).
        registration: how they lie on each other; None for the same file or pixels.
    """

    first: Record
    second: Record
    kind: Kind
    correlation: float
    registration: Registration | None = None

    @property
    def mirrored(self) -> bool:
        """Whether one is the mirror image of the other."""
        return self.registration is not None and self.registration.mirrored

    @property
    def across_parts(self) -> bool:
        """Whether they are in different parts of the data set's split."""
        return (
            self.first.split is not None
            and self.second.split is not None
            and self.first.split != self.second.split
        )

    @property
    def across_labels(self) -> bool:
        """Whether they carry different labels."""
        return (
            self.first.label is not None
            and self.second.label is not None
            and self.first.label is not self.second.label
        )

    @property
    def across_patients(self) -> bool:
        """Whether they are said to be of different patients, or at least one of a patient not known."""
        return self.first.patient_id != self.second.patient_id


_IDENTITIES: tuple[tuple[Kind, Callable[[Trace], str]], ...] = (
    ("file", lambda trace: trace.sha256),
    ("pixels", lambda trace: trace.pixels_sha256),
)


def take_trace(record: Record, image: CTSlice, patches: bool = True) -> Trace:
    """What is kept of a slice.

    Args:
        record: the slice.
        image: the same, read.
        patches: whether crops are to be found as well, which takes four times as long.

    Raises:
        ImageError: the file cannot be read.
    """
    pixels = np.ascontiguousarray(image.pixels)
    shape = np.array(pixels.shape, "<i8").tobytes()
    return Trace(
        record=record,
        sha256=hashlib.sha256(read_bytes(record)).hexdigest(),
        pixels_sha256=hashlib.sha256(shape + pixels.tobytes()).hexdigest(),
        fingerprint=fingerprint(pixels, patches),
    )


def copies_of(
    held_out: Sequence[Record],
    candidates: Sequence[Record],
    *,
    lookalikes: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Pair]:
    """Which of the candidates show a held-out slice: what must not enter a training on the candidates.

    The same files, the same pixels, and copies that were recoded, rescaled, cropped, annotated or mirrored.

    Args:
        held_out: slices to be judged on.
        candidates: slices to be trained on.
        lookalikes: name lookalikes as well: most often neighbouring slices of a held-out patient.
        threads: to read and compare in; as many as there are cores unless given.
        progress: told of each slice read and each pair compared.

    Returns:
        Pairs of a held-out slice (first) and a candidate (second), the surest first. A candidate that cannot
        be read is passed over, as whoever trains on it will say.

    Raises:
        ImageError: a held-out slice cannot be read.
    """
    ours = [_certain(result) for result in read_traces(held_out, threads=threads, progress=progress)]
    read = read_traces(candidates, threads=threads, progress=progress)
    theirs = [result for result in read if isinstance(result, Trace)]
    exact: dict[tuple[int, int], Kind] = {}
    for kind, key in _IDENTITIES:
        for places in _equal([key(trace) for trace in ours], [key(trace) for trace in theirs]):
            exact.setdefault(places, kind)
    prints = [trace.fingerprint for trace in ours], [trace.fingerprint for trace in theirs]
    proposed = itertools.chain(patch_candidates(*prints), hash_candidates(*prints))
    new = (candidate for candidate in proposed if (candidate.first, candidate.second) not in exact)
    pairs = [
        Pair(ours[first].record, theirs[second].record, kind, 1.0) for (first, second), kind in exact.items()
    ]
    pairs += verify(ours, theirs, new, threads=threads, progress=progress)
    return in_order(pair for pair in pairs if lookalikes or pair.kind != "lookalike")


def find_pairs(
    traces: Sequence[Trace],
    *,
    across_parts: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Pair]:
    """Pairs of slices that show the same, the surest first.

    Of slices with the same pixels only one is compared with others. Lookalikes of one patient are left out:
    neighbouring slices of a patient are expected to be alike.

    Args:
        traces: of the slices.
        across_parts: compare only slices of different parts; the same files and pixels are found anyway.
        threads: to compare in; as many as there are cores unless given.
        progress: told of each pair compared.
    """
    pairs: list[Pair] = []
    unlike = list(range(len(traces)))
    for kind, key in _IDENTITIES:
        pairs += _identical([traces[index] for index in unlike], kind, key)
        unlike = list({key(traces[index]): index for index in reversed(unlike)}.values())[::-1]
    kept = [traces[index] for index in unlike]
    prints = [trace.fingerprint for trace in kept]
    patients = [trace.record.patient_id for trace in kept]
    proposed = itertools.chain(
        patch_candidates(prints, None, patients),
        hash_candidates(prints, None),
    )
    splits = [trace.record.split for trace in kept]
    wanted = (
        candidate
        for candidate in proposed
        if not across_parts or splits[candidate.first] != splits[candidate.second]
    )
    for pair in verify(kept, kept, wanted, threads=threads, progress=progress):
        if pair.kind != "lookalike" or pair.across_patients:
            pairs.append(pair)
    return in_order(pairs)


def groups_of(pairs: Iterable[Pair]) -> list[list[Record]]:
    """Slices that show the same, as pairs connect them; groups and slices in the order of the pairs."""
    group: dict[int, list[Record]] = {}
    for pair in pairs:
        first = group.setdefault(id(pair.first), [pair.first])
        second = group.setdefault(id(pair.second), [pair.second])
        if first is not second:
            first += second
            group.update((id(record), first) for record in second)
    return list({id(members): members for members in group.values()}.values())


def verify(
    first: Sequence[Trace],
    second: Sequence[Trace],
    candidates: Iterable[Candidate],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Pair]:
    """The candidates that registration confirms, as copies or lookalikes.

    Args:
        first: what the candidates' first index is about.
        second: what their second index is about.
        candidates: in any order, pairs repeated or not.
        threads: to compare in.
        progress: told of each pair compared.
    """
    pixels = _PixelCache()

    def compare(merged: tuple[int, int, bool, tuple[Window | None, ...]]) -> Pair | None:
        one, other, mirrored, windows = merged
        found = _register(first[one], second[other], mirrored, windows, pixels)
        if found is None or found.correlation < LOOKALIKE_CORRELATION:
            return None
        kind: Kind = "copy" if found.correlation >= COPY_CORRELATION else "lookalike"
        return Pair(first[one].record, second[other].record, kind, found.correlation, found)

    best: Pair | None = None
    for pair in in_threads(compare, _merged(candidates, len(second)), threads):
        if progress is not None:
            progress(1)
        if pair is None:
            continue
        if best is not None and (best.first, best.second) == (pair.first, pair.second):
            best = max(best, pair, key=lambda either: either.correlation)
            continue
        if best is not None:
            yield best
        best = pair
    if best is not None:
        yield best


def in_order(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs by kind and falling correlation."""
    return sorted(pairs, key=lambda pair: (_KINDS.index(pair.kind), -pair.correlation))


def read_traces(
    records: Sequence[Record],
    *,
    patches: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Trace | ImageError]:
    """What is kept of each slice, or why it cannot be read, in the order of the records."""

    def attempt(record: Record) -> Trace | ImageError:
        try:
            return take_trace(record, read_record(record), patches)
        except ImageError as error:
            return error

    for result in in_threads(attempt, records, threads):
        if progress is not None:
            progress(1)
        yield result


def in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None = None
) -> Iterator[_Result]:
    """``function`` of each item, in order, a few at a time: decoding and filtering leave Python's lock."""
    workers = threads or usable_cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _certain(result: Trace | ImageError) -> Trace:
    if isinstance(result, ImageError):
        raise result
    return result


def _identical(traces: Sequence[Trace], kind: Kind, key: Callable[[Trace], str]) -> Iterator[Pair]:
    """Pairs of traces with the same key."""
    same: dict[str, list[Record]] = {}
    for trace in traces:
        same.setdefault(key(trace), []).append(trace.record)
    for records in same.values():
        few = len(records) <= _ALL_PAIRS
        pairs = itertools.combinations(records, 2) if few else ((records[0], other) for other in records[1:])
        yield from (Pair(first, second, kind, 1.0) for first, second in pairs)


def _equal(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Indices of equal keys."""
    places: dict[str, list[int]] = {}
    for index, key in enumerate(first):
        places.setdefault(key, []).append(index)
    for other, key in enumerate(second):
        yield from ((index, other) for index in places.get(key, ()))


def _merged(
    candidates: Iterable[Candidate], width: int
) -> Iterator[tuple[int, int, bool, tuple[Window | None, ...]]]:
    """Each pair once, with all that speaks for it; pairs of one first slice follow each other."""
    keys = array("q")  # a million candidates must not become a million objects
    for candidate in candidates:
        pair = (candidate.first * width + candidate.second) * 2 + candidate.mirrored
        keys.append(pair * len(_WINDOWS) + _WINDOWS.index(candidate.window))
    unique = np.unique(np.frombuffer(keys, np.int64)) if keys else np.zeros(0, np.int64)
    for pair, members in itertools.groupby(unique.tolist(), key=lambda key: key // len(_WINDOWS)):
        first, second = divmod(pair // 2, width)
        yield first, second, bool(pair % 2), tuple(_WINDOWS[key % len(_WINDOWS)] for key in members)


def _register(
    first: Trace, second: Trace, mirrored: bool, windows: Iterable[Window | None], pixels: _PixelCache
) -> Registration | None:
    best: Registration | None = None
    for start in _starts(first.fingerprint, second.fingerprint, mirrored, windows):
        try:
            here, there = pixels.read(first.record), pixels.read(second.record)
        except ImageError:  # gone since it was read first
            return None
        boxes = first.fingerprint.box, second.fingerprint.box
        found = register(here, there, boxes, start, mirrored)
        if found is not None and (best is None or found.correlation > best.correlation):
            best = found
        if best is not None and best.correlation >= COPY_CORRELATION:
            break
    return best


def _starts(
    first: Fingerprint, second: Fingerprint, mirrored: bool, windows: Iterable[Window | None]
) -> Iterator[Affine]:
    patches = patches_start(first, second, mirrored)
    if patches is not None:
        yield patches
    for window in windows:
        if window == "whole":
            yield boxes_start(first.box, second.box, first.shape[1], mirrored)
        elif window == "lungs" and first.lungs is not None and second.lungs is not None:
            yield boxes_start(first.lungs, second.lungs, first.shape[1], mirrored)


class _PixelCache:
    """Pixels of the slices read last, within a bound of memory."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, Grey] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def read(self, record: Record) -> Grey:
        with self._lock:
            if id(record) in self._held:
                self._held.move_to_end(id(record))
                return self._held[id(record)]
        pixels = read_pixels(record)
        with self._lock:
            if id(record) not in self._held:
                self._held[id(record)] = pixels
                self._bytes += pixels.nbytes
            while self._bytes > _CACHE_BYTES and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return pixels
