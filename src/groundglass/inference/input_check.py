"""The input check: what is not an axial lung CT slice is refused, and doubtful slices are flagged.

The header's geometry decides where there is one. Then pictures too small or too blank to show anything are
refused. The rest is described by two vectors, the picture's appearance and the network's embedding, and refused
where a linear model, fitted to lung slices and to pictures of other things, finds it out of distribution. Two of
its inputs are distances from lung slices, the Mahalanobis distance within their principal directions and the
distance from the subspace these span, so that what resembles nothing is refused as well (cf. Lee et al., A simple
unified framework for detecting out-of-distribution samples, NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.imaging.crop import Box, CroppedSlice, grey_histogram, otsu_anchors
from groundglass.imaging.slice import LABELS, CTSlice, Grey, Origin
from groundglass.inference.prediction import OUTSIDE_LUNGS
from groundglass.inference.reference import Features, Gaussian

LUNG = "lung"
"""Kind of the examples that are to be accepted."""

OTHER_PART = "another part of the body"
"""Kind of axial CT slices that show no lung."""

TURNED = "a slice turned by 90 degrees"
"""Kind of lung slices whose rows run from front to back."""

FLAGS: Mapping[str, str] = {
    "one-lung-found": "lung was found in one half of the picture alone; what the other lung shows is not known",
    "little-lung": "the slice shows little lung, as at the apices and bases",
    "lung-cut-off": "a lung leaves the picture; what its other part shows is not known",
    "soft-tissue-window": "most of the lung is black: the picture's window hides what the model looks for",
    "several-slices": "the lungs are much broader than high, as where several slices lie side by side",
    "much-opacity": "the model leans to NonCOVID, though it sees lesions in more than a fifth of the lungs",
    "low-resolution": "the lungs take so few pixels that they were enlarged",
    "oblong-pixels": "the file's pixels are no squares: the model sees the slice stretched",
    "upside-down": "by the file's geometry the patient's back is up",
}
"""What may be doubtful about a slice that is classified all the same, and what each flag means."""

DOUBTFUL = frozenset(FLAGS) - {"much-opacity", "low-resolution", "upside-down"}
"""Flags of slices on which the network could not see what it should: their label is uncertain whatever it says."""

_DISTANCE_WEIGHT = 3.0  # of the two distances, beside a few thousand features that are small each

# Appearance: sides of the small copies, cells of the edge histograms and their directions. Grey values and gradients
# below the least ones are grain of the camera or scanner and shall not be blown up.
_SIDE, _GREY_SIDE = 48, 16
_CELLS, _WHOLE_CELLS, _DIRECTIONS = 6, 4, 8
_LEAST_CONTRAST, _LEAST_EDGES = 8.0, 200.0

APPEARANCE_VERSION = 3
"""Raised whenever the same picture gives other numbers, so that nothing fitted to the former ones is used."""

# Least cosine between the picture's rows and the body's left-right axis.
_UPRIGHT = 0.7
_SMALLEST_SIDE = 60
_BLANK = 4.0  # standard deviation of grey below which there is nothing to see
# Most grey values of a label map; of 7,000 slices of fourteen sources none has fewer than 92.
_FEW_VALUES = 64
_NOT_SEEN = "no lung was found: as much inside the picture is black as in a window for soft tissue or bone"
# So many grey values make up so much of a label map that JPEG has blurred; of these slices none has fewer than 12.
_NEARLY_ALL, _FEW_AREAS = 0.95, 6
# The grid on which the lungs' greys are sampled, what is black, and which share of the lungs is most of them.
_GRID, _BLACK, _MOSTLY = 40, 4, 0.6
# The brightest grey that a picture may have for black, how far from its edge and of which share of it an enclosed black
# area is at least, and of which share all are together where the window hides the lungs.
_BRIGHTEST_BLACK, _RIM, _SPECK, _HIDDEN = 16, 4, 0.005, 0.08
_HALF = 0.56  # the share of the width that one lung stays within
# How near the picture's edge is, and along which share of the lungs' box they lie there when they are cut off.
_EDGE, _CUT_OFF = 0.015, 0.5
# The share of the picture below which there is little lung, and how much the lungs' box may be enlarged.
_LITTLE, _ENLARGED = 0.04, 0.75
_OPPOSITE = -0.5  # the largest vertical cosine of the picture's columns when its top is the patient's back
# Lungs so many times broader than high, in so much of the picture, are those of several slices side by side.
_BROAD, _FILLED = 2.3, 0.12
_OBLONG = 1.25  # how many times longer than broad a pixel may be, or broader than long


@dataclass(frozen=True)
class InputCheck(Gaussian):
    """Distinguishes axial lung CT slices from everything else, by appearance followed by embedding.

    A multinomial logistic regression on these features, standardised, and two distances from lung slices.
    """

    PREFIX: ClassVar[str] = "input_check."
    NAME: ClassVar[str] = "input check"

    weights: NDArray[np.float32]  # shape (d + 2, 1 + kinds); the first column is that of lung slices
    bias: NDArray[np.float32]  # shape (1 + kinds,)
    kinds: NDArray[np.str_]  # what a picture out of distribution may be
    limit: float = np.inf  # the largest log odds of anything else against lung that are accepted
    appearance_version: int = APPEARANCE_VERSION  # of what it was fitted to; a BundleError where it is another

    def __post_init__(self) -> None:
        if self.appearance_version != APPEARANCE_VERSION:
            raise BundleError(
                f"the bundle's input check has version {self.appearance_version}, this groundglass reads "
                f"{APPEARANCE_VERSION}; export the run again"
            )
        object.__setattr__(self, "limit", float(self.limit))  # an array where it comes from a bundle

    def odds(self, features: Features) -> NDArray[np.float32]:
        """Log odds of each other kind against lung, shape (N, kinds)."""
        scores = self.describe(features) @ self.weights + self.bias
        return np.asarray(scores[:, 1:] - scores[:, :1], np.float32)

    def describe(self, features: Features) -> NDArray[np.float32]:
        """Standardised features and both distances, shape (N, d + 2)."""
        standard, within, beside = self.split(features)
        distances = _DISTANCE_WEIGHT / 2 * np.log(np.maximum(np.stack([beside, within], axis=1), 1e-6))
        return np.concatenate([standard / np.sqrt(len(self.centre)), distances], axis=1, dtype=np.float32)

    def refusal(self, ct_slice: CTSlice, cropped: CroppedSlice, embedding: NDArray[np.float32]) -> str | None:
        """Why a slice that is not :func:`unfit` is refused by what :func:`appearance` and embedding say; or None."""
        odds = self.odds(np.concatenate([appearance(ct_slice.pixels, cropped), embedding])[None])[0]
        score = float(np.logaddexp.reduce(odds))
        if score <= self.limit:
            return None
        # With little lung, what its header says to be axial can only be another part of the body.
        little = cropped.lungs.mean() < _LITTLE
        end = ct_slice.origin.orientation and little
        kind = OTHER_PART if end else self.kinds[int(np.argmax(odds))]
        if kind == TURNED and cropped.found and (little or _in_one_half(cropped.lungs)):
            return None  # so look the bases, of which no label is firm
        known = OUTSIDE_LUNGS if kind == OTHER_PART else "not recognised as an axial lung CT slice"
        return f"{known}: looks like {kind} (score {score:.1f}, limit {self.limit:.1f})"


def unfit(ct_slice: CTSlice, cropped: CroppedSlice) -> str | None:
    """Why a slice is refused by its file's geometry or its picture, before the network runs; or None."""
    return (
        _wrong_geometry(ct_slice.origin)
        or _nothing_to_see(ct_slice.pixels)
        or _label_map(ct_slice)
        or (None if cropped.found else _NOT_SEEN if _hidden(cropped.whole) else f"{OUTSIDE_LUNGS}: no lung was found")
    )


def _wrong_geometry(origin: Origin) -> str | None:
    if not origin.is_axial:
        plane = "sagittal" if abs(origin.normal[0]) >= abs(origin.normal[1]) else "coronal"
        return f"a {plane} or oblique image; only axial slices can be classified"
    if origin.orientation is not None and abs(origin.orientation[0]) < _UPRIGHT:
        return "an axial image turned by 90 degrees; turn it so that its rows run across the body"
    return None


def _label_map(ct_slice: CTSlice) -> str | None:
    if ct_slice.origin.mode == LABELS:
        return "a label map, as its header says, not a CT slice"
    counts = np.sort(grey_histogram(ct_slice.pixels))[::-1]
    values = int(np.count_nonzero(counts))
    if 1 < values <= _FEW_VALUES:
        return f"a label map, mask or drawing: it has only {values} grey values"
    if 1 < int(np.searchsorted(counts.cumsum(), _NEARLY_ALL * counts.sum())) + 1 <= _FEW_AREAS:
        return "a label map, mask or drawing: nearly all of it are a few areas of one grey each"
    return None


def _nothing_to_see(pixels: Grey) -> str | None:
    height, width = pixels.shape
    if min(height, width) < _SMALLEST_SIDE:
        return f"too small: {width} x {height} pixels, at least {_SMALLEST_SIDE} on each side are needed"
    if float(cv2.meanStdDev(pixels)[1].item()) < _BLANK:
        return "blank: nearly all of it is one grey"
    return None


def doubts(ct_slice: CTSlice, cropped: CroppedSlice) -> tuple[str, ...]:
    """The :data:`FLAGS` that the file's header and the picture of a slice with lungs give rise to."""
    orientation, lungs, spacing = ct_slice.origin.orientation, cropped.lungs, ct_slice.origin.spacing
    _, _, across, down = cv2.boundingRect(lungs.view(np.uint8))
    along_edge, across_edge = (max(1, round(_EDGE * side)) for side in lungs.shape)
    touching = max(
        *(part.any(axis=1).sum() / down for part in (lungs[:, :across_edge], lungs[:, -across_edge:])),
        *(part.any(axis=0).sum() / across for part in (lungs[:along_edge], lungs[-along_edge:])),
    )
    found = {
        "oblong-pixels": spacing is not None and max(spacing) > _OBLONG * min(spacing),
        "upside-down": orientation is not None and orientation[4] <= _OPPOSITE,
        "one-lung-found": _in_one_half(lungs),
        "little-lung": np.count_nonzero(lungs) < _LITTLE * lungs.size,
        "lung-cut-off": touching > _CUT_OFF,
        "low-resolution": max(across, down) < _ENLARGED * cropped.pixels.shape[0],
        "soft-tissue-window": _hidden(cropped.whole) or _black_share(cropped, ct_slice.pixels) > _MOSTLY,
        "several-slices": across > _BROAD * down and np.count_nonzero(lungs) > _FILLED * lungs.size,
    }
    return tuple(name for name, holds in found.items() if holds)


def _in_one_half(lungs: NDArray[np.bool_]) -> bool:
    """Whether all lung lies in one half of the picture's width."""
    (left, _, across, _), width = cv2.boundingRect(lungs.view(np.uint8)), lungs.shape[1]
    return bool(left + across - 1 < _HALF * width or left > (1 - _HALF) * width)


def _within(array: NDArray[Any], box: Box) -> Grey:
    """A mask's or picture's part in the box, as uint8."""
    left, top, right, bottom = box
    return array[max(top, 0) : bottom, max(left, 0) : right].view(np.uint8)


def _black_share(cropped: CroppedSlice, pixels: Grey) -> float:
    """Share of the lungs that is black or of one grey, on a coarse grid over their box."""
    lungs, grey = (
        cv2.resize(_within(each, cropped.box), (_GRID, _GRID), interpolation=cv2.INTER_NEAREST)
        for each in (cropped.lungs, pixels)
    )
    inside = grey[lungs > 0]
    return float(np.mean((inside <= _BLACK) | (np.abs(inside - np.median(inside)) <= 1))) if inside.size else 0.0


def _hidden(whole: Grey) -> bool:
    """Whether much of a picture is black and enclosed by what is not, as lungs are in a window for soft tissue."""
    black = (whole <= min(int(whole.min()), _BRIGHTEST_BLACK) + _BLACK).view(np.uint8)
    parts = cv2.connectedComponentsWithStats(black, connectivity=4)[2][1:]
    start, end, area = parts[:, :2], parts[:, :2] + parts[:, 2:4], parts[:, 4]
    inner = (start >= _RIM).all(axis=1) & (end <= np.subtract(whole.shape[::-1], _RIM)).all(axis=1)
    return bool(area[inner & (area > _SPECK * whole.size)].sum() > _HIDDEN * whole.size)


def appearance(pixels: Grey, cropped: CroppedSlice) -> NDArray[np.float32]:
    """Describe a picture in numbers that distinguish axial lung slices from other pictures, cheap to compute.

    Everything is taken from small copies of the whole picture and of the cropped slice: their grey values, the
    directions of their edges (histograms of oriented gradients: Dalal and Triggs, CVPR 2005), the shape and place
    of the lungs found, noise and grey statistics.

    Args:
        pixels: uint8, shape (H, W).
        cropped: the same, cropped.

    Returns:
        float32, shape (957,): grey values and edge directions of the cropped slice, those of the whole
        picture, shapes, grey statistics.
    """
    inner, whole = (
        np.asarray(cv2.resize(each, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.float32)
        for each in (cropped.pixels, cropped.whole)
    )
    parts = (
        *(_grey_values(inner), _edges(inner, _CELLS), _grey_values(whole), _edges(whole, _WHOLE_CELLS)),
        *(_shapes(pixels.shape, cropped), _grey_statistics(cropped.pixels, inner)),
    )
    return np.concatenate(parts).astype(np.float32)


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
    """Aspect of picture and box, and how the lungs fill their box on a coarse grid, shape (19,)."""
    left, top, right, bottom = cropped.box
    height, width = shape
    part = cv2.resize(_within(cropped.lungs, cropped.box), (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
    lungs = cv2.resize(part.astype(np.float32), (_GREY_SIDE, _GREY_SIDE), interpolation=cv2.INTER_AREA)
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
            np.count_nonzero(cropped.lungs) / cropped.lungs.size,
            share,
            min(halves),
            abs(halves[0] - halves[1]) / (share + 0.05),
            float(lungs[:, middle - 2 : middle + 2].mean()),
            *np.sort(lungs.mean(axis=0))[quarters],
            *np.sort(lungs.mean(axis=1))[quarters],
        ]
    )


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
