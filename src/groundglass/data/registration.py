"""Whether two pictures show the same slice: bring one onto the other, then compare what both show.

Slices of different people look alike, and neighbouring slices of one person even more so; what tells a copy
is that its fine structure, vessels above all, lies at the same places. So the pictures are registered, coarse
to fine, slow changes of grey are taken away, and the correlation is measured around every place with strong
structure. A copy correlates nearly everywhere; arrows and letters that somebody drew on it leave it alone
elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.data.perceptual import Fingerprint, mirrored_codes
from groundglass.imaging.framing import Box
from groundglass.imaging.slice import Grey

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
