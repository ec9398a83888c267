"""Refusal of what is no axial lung CT slice, by geometry, by the picture, and by the embedding.

The header's geometry decides where there is one. Then pictures too small or too blank to show anything are
refused. What is left is described by two lists of numbers, how the picture looks and the network's embedding,
and refused where a linear model, fitted on lung slices and on pictures of other things, finds it foreign. Two
of the numbers it sees are distances from lung slices: the Mahalanobis distance within their principal
directions and the distance from the subspace these span, so that what resembles nothing is refused as well
(cf. Lee et al., A simple unified framework for detecting out-of-distribution samples, NeurIPS 2018).

How foreign a picture is to lung slices, by a linear model of its description.

How a picture looks, in numbers: what tells axial lung slices from other pictures, cheap to compute.

Everything is taken from small copies of the whole picture and of the cropped slice: their grey values, the
directions of their edges (histograms of oriented gradients: Dalal and Triggs, CVPR 2005), the shape and place
of the lungs found, grain and grey statistics.

What to keep in mind about a slice that is judged all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.imaging.crop import Box, CroppedSlice, grey_histogram, otsu_anchors
from groundglass.imaging.slice import CTSlice, Grey, Origin

LUNG = "lung"
"""Name of the kind that is to be accepted."""

Features = NDArray[np.floating]
"""Descriptions of N pictures, shape (N, d)."""

_Weights = NDArray[np.float64]

_COMPONENTS = 64
# A number that lies farther than this many standard deviations from lung slices' mean speaks no louder.
_CLIP = 6.0
# Numbers that hardly vary among lung slices would otherwise shout at the least deviation.
_LEAST_SPREAD = 0.25
# The two distances stand beside a few thousand numbers that are small each; so they are heard.
_DISTANCE_WEIGHT = 3.0
_PENALTY = 1e-4
_STEPS = 300


@dataclass(frozen=True)
class Examples:
    """Described pictures of known kind, N of them.

    Attributes:
        features: shape (N, d).
        kind: `LUNG`, or what else each picture is.
        group: whose picture it is, shape (N,): pictures of one group are never on both sides of a fit.
        weight: how much each lung slice counts, shape (N,); foreign kinds are weighted by their numbers.
    """

    features: Features
    kind: tuple[str, ...]
    group: NDArray[np.integer]
    weight: _Weights

    @property
    def lung(self) -> NDArray[np.bool_]:
        """Which pictures are lung slices, shape (N,)."""
        return np.array([kind == LUNG for kind in self.kind])

    def take(self, chosen: NDArray[np.bool_]) -> Examples:
        """Those examples alone."""
        kind = tuple(kind for kind, keep in zip(self.kind, chosen, strict=True) if keep)
        return Examples(self.features[chosen], kind, self.group[chosen], self.weight[chosen])


@dataclass(frozen=True)
class OutOfDistributionModel:
    """A multinomial logistic regression on standardised numbers and two distances from lung slices.

    Attributes:
        centre: mean of lung slices, shape (d,).
        spread: their standard deviation, shape (d,).
        directions: principal directions of the standardised lung slices, shape (k, d).
        scale: their standard deviation along these, shape (k,).
        weights: shape (d + 2, 1 + kinds); the first column is that of lung slices.
        bias: shape (1 + kinds,).
        kinds: what a foreign picture may be.
    """

    centre: NDArray[np.float32]
    spread: NDArray[np.float32]
    directions: NDArray[np.floating]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    kinds: NDArray[np.str_]

    def __post_init__(self) -> None:
        count = len(self.centre)
        expected = {
            "spread": (count,),
            "directions": (len(self.scale), count),
            "weights": (count + 2, 1 + len(self.kinds)),
            "bias": (1 + len(self.kinds),),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} is of shape {getattr(self, name).shape}, expected {shape}")

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """The attributes, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def odds(self, features: Features) -> NDArray[np.float32]:
        """Log odds of each foreign kind against lung, shape (N, kinds)."""
        scores = self._describe(features) @ self.weights + self.bias
        return np.asarray(scores[:, 1:] - scores[:, :1], np.float32)

    def distance_from_lung(self, features: Features) -> NDArray[np.float32]:
        """Log odds of anything foreign against lung, shape (N,)."""
        return np.asarray(np.logaddexp.reduce(self.odds(features), axis=1), np.float32)

    @cached_property
    def _across(self) -> NDArray[np.float32]:
        """The directions as columns in single precision: to convert them takes longer than to use them."""
        return np.ascontiguousarray(self.directions.T, np.float32)

    def _describe(self, features: Features) -> NDArray[np.float32]:
        """Standardised numbers and both distances, shape (N, d + 2)."""
        standard = np.clip((features - self.centre) / self.spread, -_CLIP, _CLIP).astype(np.float32)
        along = standard @ self._across
        beside = np.maximum(np.square(standard).sum(axis=1) - np.square(along).sum(axis=1), 1e-6)
        within = np.maximum(np.square(along / self.scale).sum(axis=1), 1e-6)
        distances = _DISTANCE_WEIGHT / 2 * np.log(np.stack([beside, within], axis=1))
        return np.concatenate([standard / np.sqrt(len(self.centre)), distances], axis=1, dtype=np.float32)


def fit_foreign_model(examples: Examples) -> OutOfDistributionModel:
    """Fit to examples of lung slices and of every foreign kind.

    Raises:
        ValueError: there is no lung slice or nothing foreign.
    """
    lung = examples.lung
    if lung.all() or not lung.any():
        raise ValueError("the gate needs examples of lung slices and of foreign pictures")
    base = _standardise(examples.features[lung], examples.weight[lung], sorted(set(examples.kind) - {LUNG}))
    described = base._describe(examples.features).astype(np.float64)
    kinds = [LUNG, *base.kinds.tolist()]
    target = np.array([kinds.index(kind) for kind in examples.kind])
    weight = _balanced(examples, target)
    middle = weight @ described
    weights, bias = _regress(described - middle, target, weight, len(kinds))
    return OutOfDistributionModel(
        base.centre,
        base.spread,
        base.directions,
        base.scale,
        np.asarray(weights, np.float32),
        np.asarray(bias - middle @ weights, np.float32),
        base.kinds,
    )


def held_out_distance_from_lung(examples: Examples, folds: int = 5) -> NDArray[np.float32]:
    """Foreignness of each picture by a model that saw nothing of its group, in the order of the examples.

    Args:
        examples: all of them.
        folds: how many models are fitted, at least 2.

    Raises:
        ValueError: all lung slices, or all foreign pictures, are of one group.
    """
    fold = np.empty(len(examples.kind), np.int64)
    for same in (examples.lung, ~examples.lung):
        groups, member = np.unique(examples.group[same], return_inverse=True)
        fold[same] = np.random.default_rng(0).permutation(len(groups))[member] % folds
    result = np.empty(len(fold), np.float32)
    for number in np.unique(fold):
        held = fold == number
        result[held] = fit_foreign_model(examples.take(~held)).distance_from_lung(examples.features[held])
    return result


def _standardise(lungs: Features, weight: _Weights, kinds: Sequence[str]) -> OutOfDistributionModel:
    """A model that knows lung slices but no weights yet."""
    share = weight / weight.sum()
    centre = share @ lungs
    spread = np.sqrt(share @ np.square(lungs - centre))
    spread = np.maximum(spread, _LEAST_SPREAD * np.median(spread) + 1e-9)
    standard = np.clip((lungs - centre) / spread, -_CLIP, _CLIP) * np.sqrt(share)[:, None]
    variances, directions = _principal(standard.T @ standard, min(_COMPONENTS, max(1, len(lungs) // 2)))
    return OutOfDistributionModel(
        np.asarray(centre, np.float32),
        np.asarray(spread, np.float32),
        # Half precision: the distances do not need more, and the bundle stays small.
        np.asarray(directions, np.float16),
        np.asarray(np.sqrt(np.maximum(variances, 1e-6)), np.float32),
        np.zeros((lungs.shape[1] + 2, 1 + len(kinds)), np.float32),
        np.zeros(1 + len(kinds), np.float32),
        np.array(kinds),
    )


def _principal(covariance: _Weights, count: int) -> tuple[_Weights, _Weights]:
    """The largest eigenvalues of a covariance and their eigenvectors as rows, largest first."""
    from scipy.sparse.linalg import eigsh  # noqa: PLC0415 - for fitting alone, and slow to import

    count = min(count, len(covariance) - 1)
    # A fixed start: the same examples give the same model.
    values, vectors = eigsh(covariance, count, v0=np.ones(len(covariance)))
    return values[::-1], vectors.T[::-1]


def _balanced(examples: Examples, target: NDArray[np.integer]) -> _Weights:
    """Weights that sum to 1: half for lung slices, half for foreign kinds by the roots of their numbers."""
    counts = np.bincount(target).astype(np.float64)
    roots = np.sqrt(counts)
    weight = (roots / roots[1:].sum() / counts)[target] / 2
    lung = target == 0
    weight[lung] = examples.weight[lung] / examples.weight[lung].sum() / 2
    return np.asarray(weight)


def _regress(
    described: NDArray[np.float64], target: NDArray[np.integer], weight: _Weights, kinds: int
) -> tuple[_Weights, _Weights]:
    """Multinomial logistic regression with a ridge penalty: weights (d, kinds) and bias (kinds,)."""
    from scipy.optimize import minimize  # noqa: PLC0415 - for fitting alone, and slow to import

    wanted = np.eye(kinds)[target]

    def loss(flat: _Weights) -> tuple[float, _Weights]:
        table = flat.reshape(-1, kinds)
        scores = described @ table[:-1] + table[-1]
        log_share = scores - np.logaddexp.reduce(scores, axis=1)[:, None]
        error = (np.exp(log_share) - wanted) * weight[:, None]
        gradient = np.vstack([described.T @ error + _PENALTY * table[:-1], error.sum(axis=0)])
        value = (
            -(weight * (log_share * wanted).sum(axis=1)).sum() + _PENALTY / 2 * np.square(table[:-1]).sum()
        )
        return float(value), gradient.ravel()

    start = np.zeros((described.shape[1] + 1) * kinds)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    table = found.x.reshape(-1, kinds)
    return table[:-1], table[-1]


_SIDE = 48
_GREY_SIDE = 16
_CELLS, _WHOLE_CELLS = 6, 4
_DIRECTIONS = 8
# Grey values and gradients below these are grain of the camera or scanner and shall not be blown up.
_LEAST_SPREAD_APPEARANCE, _LEAST_EDGES = 8.0, 200.0

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
    return np.asarray(
        ((coarse - coarse.mean()) / (coarse.std() + _LEAST_SPREAD_APPEARANCE)).ravel(), np.float32
    )


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


LUNGS_NOT_FOUND = "lungs-not-found"
"""Preprocessing found no lungs; the network is shown the whole picture."""

ONE_LUNG_FOUND = "one-lung-found"
"""What preprocessing took for the lungs lies in one half of the picture: the other lung is not shown."""

SOFT_TISSUE_WINDOW = "soft-tissue-window"
"""Most of the lungs is black: the picture's window hides what the network looks for."""

LOW_RESOLUTION = "low-resolution"
"""The lungs take so few pixels that they are enlarged for the network."""

UPSIDE_DOWN = "upside-down"
"""By the file's geometry the patient's back is up."""

_GRID = 40
_BLACK = 4
_MOSTLY = 0.6
_HALF = 0.56
_ENLARGED = 0.75
_OPPOSITE = -0.5


def picture_flags(cropped: CroppedSlice, pixels: np.ndarray) -> tuple[str, ...]:
    """Flags that the picture gives rise to.

    Args:
        cropped: the slice, cropped.
        pixels: uint8, shape (H, W): the slice.
    """
    if not cropped.found:
        return (LUNGS_NOT_FOUND,)
    left, top, right, bottom = cropped.box
    width = pixels.shape[1]
    flags = []
    if right < _HALF * width or left > (1 - _HALF) * width:
        flags.append(ONE_LUNG_FOUND)
    if max(right - left, bottom - top) < _ENLARGED * cropped.pixels.shape[0]:
        flags.append(LOW_RESOLUTION)
    if _black_share(cropped, pixels) > _MOSTLY:
        flags.append(SOFT_TISSUE_WINDOW)
    return tuple(flags)


def geometry_flags(origin: Origin) -> tuple[str, ...]:
    """Flags that the file's header gives rise to."""
    if origin.orientation is None or origin.orientation[4] > _OPPOSITE:
        return ()
    return (UPSIDE_DOWN,)


def _black_share(cropped: CroppedSlice, pixels: np.ndarray) -> float:
    """Share of the lungs that is black, on a coarse grid over their box."""
    left, top, right, bottom = cropped.box
    rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
    size = (_GRID, _GRID)
    lungs = cv2.resize(cropped.lungs[rows, columns].view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    grey = cv2.resize(pixels[rows, columns], size, interpolation=cv2.INTER_NEAREST)
    return float(np.mean(grey[lungs] <= _BLACK)) if lungs.any() else 0.0


__all__ = ["ACCEPTED", "LUNGS_NOT_FOUND", "InputCheck", "Verdict"]

_AERATED = (-950.0, -250.0)
"""Hounsfield units between air and tissue: lung, with ground glass in it too, and little else but bowel."""
_LEAST_LUNG = 0.1
"""Share of the body below which a slice in which no lungs were found has none worth judging."""

ACCEPTED = 0.99
"""Share of lung slices, held out when the model was fitted, that is to be accepted at least."""

REFUSED = 0.99
"""Share of foreign pictures, held out likewise, that is to be refused where that accepts more slices."""

_AXIAL = 0.86
"""Least cosine between the slice normal and the body axis: gantries tilt by up to 30 degrees."""

_UPRIGHT = 0.7
"""Least cosine between the picture's rows and the body's left-right axis."""

_SMALLEST_SIDE = 32
_BLANK = 4.0
"""Standard deviation of grey below which there is nothing to see."""


@dataclass(frozen=True)
class Verdict:
    """Whether a slice may be judged.

    Attributes:
        reason: why not, in words that follow "refused:"; None where it may.
        flags: what to keep in mind otherwise.
        looks: how the picture looks, for :meth:`InputCheck.judge`; None where it was refused at once.
    """

    reason: str | None = None
    flags: tuple[str, ...] = ()
    looks: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class InputCheck:
    """Tells axial lung CT slices from everything else.

    Attributes:
        model: finds how foreign a picture is, from its looks followed by its embedding.
        limit: the largest distance_from_lung that is accepted.
    """

    model: OutOfDistributionModel
    limit: float

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> InputCheck:
        """The gate in a bundle's ``trust.npz``.

        Raises:
            BundleError: it was fitted to another description of pictures, or its arrays do not fit together.
        """
        rest = dict(arrays)
        try:
            version, limit = int(rest.pop("looks_version")), float(rest.pop("limit"))
            if version != VERSION:
                raise BundleError(
                    f"the bundle's gate has version {version}, this groundglass reads {VERSION}; export again"
                )
            return cls(OutOfDistributionModel(**rest), limit)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the bundle's gate does not fit this version ({error})") from None

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for a bundle's ``trust.npz``."""
        return {
            **self.model.as_arrays(),
            "limit": np.asarray(self.limit),
            "looks_version": np.asarray(VERSION),
        }

    @classmethod
    def fit(
        cls,
        examples: Examples,
        deciding: NDArray[np.bool_],
        accepted: float = ACCEPTED,
        refused: float = REFUSED,
    ) -> InputCheck:
        """Learn to tell lung slices from other pictures.

        The limit is the larger of the two that the shares below ask for. For where the kinds lie well apart,
        that of the lung slices is too strict: all of them were trained on, and of slices that were not the
        network's embeddings lie farther out.

        Args:
            examples: lung slices and foreign pictures; their features are looks followed by embeddings.
            deciding: which examples, all of them lung slices, decide on the limit, shape (N,).
            accepted: share of these that is accepted by models that have not seen their patients.
            refused: share of foreign pictures that is refused by models that have not seen them.

        Raises:
            ValueError: there are no two groups of lung slices or of foreign pictures, or no deciding slice.
        """
        if not deciding.any():
            raise ValueError("the gate's limit needs lung slices to decide on it")
        held_out = held_out_distance_from_lung(examples)
        limits = (
            np.quantile(held_out[deciding], accepted),
            np.quantile(held_out[~examples.lung], 1 - refused),
        )
        # Below even odds nothing is refused, however well the kinds are told apart.
        return cls(fit_foreign_model(examples), round(max(0.0, *map(float, limits)), 4))

    @classmethod
    def open_wide(cls, channels: int) -> InputCheck:
        """A gate that knows nothing: it lets pass whatever is neither blank nor of a wrong geometry.

        Args:
            channels: of the network's embedding.
        """
        count = COUNT + channels
        rng = np.random.default_rng(0)
        examples = Examples(
            rng.normal(0, 1, (4, count)), (LUNG, LUNG, "other", "other"), np.arange(4), np.ones(4)
        )
        return cls(fit_foreign_model(examples), float("inf"))

    def look(self, ct_slice: CTSlice, cropped: CroppedSlice) -> Verdict:
        """Judge by the file's geometry and by the picture, before the network is asked."""
        reason = (
            _wrong_geometry(ct_slice.origin)
            or _nothing_to_see(ct_slice.pixels)
            or _hardly_any_lung(ct_slice, cropped)
        )
        if reason is not None:
            return Verdict(reason)
        flags = (*geometry_flags(ct_slice.origin), *picture_flags(cropped, ct_slice.pixels))
        return Verdict(None, flags, appearance(ct_slice.pixels, cropped))

    def judge(self, cropped: CroppedSlice, embedding: NDArray[np.float32], so_far: Verdict) -> Verdict:
        """Judge what passed :meth:`look` by its looks and its embedding, shape (channels,)."""
        if so_far.reason is not None or so_far.looks is None:
            return so_far
        features = np.concatenate([so_far.looks, embedding])[None]
        odds = self.model.odds(features)[0]
        distance_from_lung = float(np.logaddexp.reduce(odds))
        if distance_from_lung <= self.limit:
            return so_far
        kind = self.model.kinds[int(np.argmax(odds))]
        score = f"score {distance_from_lung:.1f}, limit {self.limit:.1f}"
        return Verdict(f"not recognised as an axial lung CT slice; looks like {kind} ({score})", so_far.flags)


def _wrong_geometry(origin: Origin) -> str | None:
    if origin.orientation is None:
        return None
    rows, columns = np.array(origin.orientation[:3]), np.array(origin.orientation[3:])
    normal = np.cross(rows, columns)
    if abs(normal[2]) < _AXIAL:
        plane = "sagittal" if abs(normal[0]) >= abs(normal[1]) else "coronal"
        return f"a {plane} or oblique image; only axial slices can be judged"
    if abs(rows[0]) < _UPRIGHT:
        return "an axial image turned by 90 degrees; turn it so that its rows run across the body"
    return None


def _nothing_to_see(pixels: Grey) -> str | None:
    height, width = pixels.shape
    if min(height, width) < _SMALLEST_SIDE:
        return f"too small: {width} x {height} pixels, at least {_SMALLEST_SIDE} on each side are needed"
    if float(cv2.meanStdDev(pixels)[1].item()) < _BLANK:
        return "blank: nearly all of it is one grey"
    return None


def _hardly_any_lung(ct_slice: CTSlice, cropped: CroppedSlice) -> str | None:
    """By Hounsfield units, where they are known and no lungs were found: is there lung that disease hides?"""
    if cropped.found or ct_slice.hounsfield is None:
        return None
    hollow = ct_slice.hounsfield <= _AERATED[1]
    _, regions = cv2.connectedComponents(hollow.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    rim = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    lung = hollow & (ct_slice.hounsfield >= _AERATED[0]) & ~np.isin(regions, rim)
    if lung.sum() >= _LEAST_LUNG * np.count_nonzero(~hollow):
        return None
    return "hardly any lung is in this slice; only lung slices can be judged"
