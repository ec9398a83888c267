"""What a model learned from, as far as it takes to see how far other data lie from it.

Two clouds of slices, in the network's embedding and in grey statistics before normalisation, and quantiles of
the latter. Both are fitted to the training part and calibrated on slices that were held out, for training
slices lie nearer to each other than any new ones: the network has learned them.

Where points of one kind lie, and how far others lie from them, judged by points that were held out.

The points are described by a Gaussian: its principal directions, and one variance for everything beside them
(B. Moghaddam and A. Pentland, Probabilistic visual learning for object representation, IEEE TPAMI 19(7),
1997), which shrinks what a few hundred points cannot tell of a thousand dimensions. The distance is
Mahalanobis', as K. Lee et al. measure how unlike its training a network's input is (A simple unified
framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS 2018). A distance says
nothing by itself: it is turned into the share of held-out points that lie nearer (S. Bates et al., Testing
for outliers with conformal p-values, Annals of Statistics 51(1), 2023). Points that helped to fit the
Gaussian, or to train the network that gives them, lie nearer than new ones of the same kind.

What window, filter, dose and resolution leave in a slice: grey statistics before it is normalised.

Normalisation hides most of them from the network, and none of them is the disease; where they differ from
those of the training slices, the data come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.imaging.crop import CroppedSlice, Preprocessing, otsu_anchors
from groundglass.imaging.slice import Grey
from groundglass.inference.engine import Outputs

Points = NDArray[np.floating]
"""N points, shape (N, d)."""

_Numbers = NDArray[np.float64]

# A dimension that hardly varies among the points would otherwise shout at the least deviation.
_LEAST_SPREAD = 0.25
# A dimension speaks no louder than this many standard deviations: one broken number is no distance.
_CLIP = 6.0


@dataclass(frozen=True)
class Cloud:
    """A Gaussian and the distances of held-out points.

    Attributes:
        centre: shape (d,).
        spread: standard deviation of each dimension, shape (d,).
        directions: principal directions of the standardised points, shape (k, d).
        scale: standard deviation along these, shape (k,).
        beside: mean variance in every other direction, infinite where there is none, shape ().
        held_out: distances of the held-out points, shape (M,).
    """

    centre: NDArray[np.float32]
    spread: NDArray[np.float32]
    directions: NDArray[np.floating]
    scale: NDArray[np.float32]
    beside: NDArray[np.float32]
    held_out: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.centre)
        expected: dict[str, tuple[int, ...]] = {
            "spread": (count,),
            "directions": (len(self.scale), count),
            "beside": (),
            "held_out": (self.held_out.size,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} is of shape {getattr(self, name).shape}, expected {shape}")

    @classmethod
    def fit(cls, points: Points, held_out: Points, directions: int) -> Cloud:
        """Fit to points, and measure others of the same kind.

        Args:
            points: shape (N, d), at least 2.
            held_out: shape (M, d), that neither the network nor anything else has learned from.
            directions: most principal directions.

        Raises:
            ValueError: there are too few points.
        """
        if len(points) < 2 or not len(held_out):
            raise ValueError(f"{len(points)} points and {len(held_out)} held-out ones are too few")
        centre, spread = points.mean(axis=0), points.std(axis=0)
        spread = np.maximum(spread, _LEAST_SPREAD * np.median(spread) + 1e-6)
        standard = np.clip((points - centre) / spread, -_CLIP, _CLIP)
        count = min(directions, len(points) - 1, points.shape[1])
        _, singular, axes = np.linalg.svd(standard, full_matrices=False)
        variances = np.square(singular) / len(points)
        rest = points.shape[1] - count
        cloud = cls(
            np.asarray(centre, np.float32),
            np.asarray(spread, np.float32),
            # Half precision: the distances do not need more, and the bundle stays small.
            np.asarray(axes[:count], np.float16),
            np.asarray(np.sqrt(np.maximum(variances[:count], 1e-6)), np.float32),
            np.asarray(max(variances[count:].sum() / rest, 1e-6) if rest else np.inf, np.float32),
            np.zeros(0, np.float32),
        )
        return cls(**{**cloud.as_arrays(), "held_out": cloud.distance(held_out)})

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """The attributes, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Cloud:
        """The cloud whose attributes these are.

        Raises:
            ValueError: they do not fit together.
            TypeError: one is missing or too many.
        """
        return cls(**arrays)

    def coordinates(self, points: Points) -> NDArray[np.float32]:
        """Places along the principal directions in standard deviations, shape (N, k)."""
        return np.asarray(self._standard(points) @ self._axes.T / self.scale, np.float32)

    def distance(self, points: Points) -> NDArray[np.float32]:
        """Mahalanobis distance of each point, shape (N,)."""
        standard = self._standard(points)
        along = standard @ self._axes.T
        beside = np.maximum(np.square(standard).sum(axis=1) - np.square(along).sum(axis=1), 0)
        within = np.square(along / self.scale).sum(axis=1)
        return np.asarray(np.sqrt(within + beside / float(self.beside)), np.float32)

    def percentile(self, distance: NDArray[np.floating]) -> _Numbers:
        """Share of held-out points that lie nearer than each distance, 0 to 100, shape (N,)."""
        return percentile(distance, self.held_out)

    @property
    def _axes(self) -> NDArray[np.float32]:
        return np.asarray(self.directions, np.float32)

    def _standard(self, points: Points) -> NDArray[np.float32]:
        return np.asarray(np.clip((points - self.centre) / self.spread, -_CLIP, _CLIP), np.float32)


def percentile(value: NDArray[np.floating], held_out: NDArray[np.floating]) -> _Numbers:
    """100 less the conformal p-value in per cent: 95 or more occurs to new points of the same kind in 5 %.

    Args:
        value: how strange each point is, shape (N,).
        held_out: how strange the held-out points are, shape (M,).
    """
    nearer = np.searchsorted(np.sort(held_out), value, side="left")
    return np.asarray(100.0 * nearer / (len(held_out) + 1), np.float64)


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


def exposure(cropped: CroppedSlice) -> NDArray[np.float32]:
    """Describe a cropped slice, shape (`len(STATISTICS)`,).

    Lung and soft tissue are the dark and the bright Otsu class of the cropped slice. Sharpness is the median
    gradient along the border between them, grain the standard deviation of noise within soft tissue (J.
    Immerkær, Fast noise variance estimation, Computer Vision and Image Understanding 64(2), 1996), both
    against the contrast of the two classes. Resolution is the longer side of what was cropped.
    """
    pixels = cropped.pixels
    dark, bright = otsu_anchors(pixels)
    contrast = max(bright - dark, _LEAST_CONTRAST)
    tissue = (pixels > (dark + bright) / 2).astype(np.uint8)
    inner = cv2.erode(tissue, _CROSS) > 0
    left, top, right, bottom = cropped.box
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


FEWEST = 20
"""Held-out slices below which nothing can lie beyond 95 % of them."""

QUANTILES = (0.05, 0.5, 0.95)
"""Of the training part's grey statistics."""

_DIRECTIONS = 24
_BATCH = 32
_EMBEDDING, _GREY = "embedding_", "grey_"


class Network(Protocol):
    """What answers cropped slices: an :class:`groundglass.inference.engine.Engine`."""

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Judge normalised cropped slices, shape (N, size, size)."""


@dataclass(frozen=True)
class Described:
    """N slices as they are placed.

    Attributes:
        cropped: uint8, shape (N, size, size).
        grey: statistics before normalisation, float32, shape (N, S); see :mod:`groundglass.inference.reference`.
        group: whose slice each is, shape (N,).
    """

    cropped: NDArray[np.uint8]
    grey: NDArray[np.float32]
    group: NDArray[np.str_]


@dataclass(frozen=True)
class Embedded:
    """N slices as a model sees them.

    Attributes:
        embedding: of the network, float32, shape (N, channels).
        grey: statistics before normalisation, float32, shape (N, S).
        group: whose slice each is, shape (N,).
    """

    embedding: NDArray[np.float32]
    grey: NDArray[np.float32]
    group: NDArray[np.str_]

    def take(self, chosen: NDArray[np.bool_]) -> Embedded:
        """Those slices alone."""
        return Embedded(self.embedding[chosen], self.grey[chosen], self.group[chosen])


@dataclass(frozen=True)
class Places:
    """Where N slices lie.

    Attributes:
        embedding: percentile among held-out slices, 0 to 100, shape (N,).
        grey: the same for their grey statistics, shape (N,).
        either: the same for the larger of the two, shape (N,).
        coordinates: in the reduced embedding, in standard deviations, shape (N, k).
        statistics: grey statistics, shape (N, S).
    """

    embedding: NDArray[np.float64]
    grey: NDArray[np.float64]
    either: NDArray[np.float64]
    coordinates: NDArray[np.float32]
    statistics: NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Where the slices lie that a model learned from.

    Attributes:
        embedding: of the network.
        grey: statistics, on linear scales.
        quantiles: `QUANTILES` of each grey statistic, shape (3, S).
        held_out: of each held-out slice the coordinates in the reduced embedding, shape (M, k).
        held_out_statistics: and the grey statistics, shape (M, S).
        held_out_group: and whose it is, as a number, shape (M,).
        slices: of the training part, shape ().
    """

    embedding: Cloud
    grey: Cloud
    quantiles: NDArray[np.float32]
    held_out: NDArray[np.floating]
    held_out_statistics: NDArray[np.float32]
    held_out_group: NDArray[np.integer]
    slices: NDArray[np.integer]

    @classmethod
    def fit(cls, training: Embedded, held_out: Embedded) -> Reference | None:
        """Fit to slices that a model learned from, and calibrate by slices it did not.

        Args:
            training: slices of the training part.
            held_out: slices of the same sources; those of a training slice's patient are left out.

        Returns:
            The reference, or None where there are fewer than `FEWEST` slices of either.
        """
        new = held_out.take(~np.isin(held_out.group, training.group))
        if min(len(new.group), len(training.group)) < FEWEST:
            return None
        embedding = Cloud.fit(training.embedding, new.embedding, _DIRECTIONS)
        grey = Cloud.fit(linear(training.grey), linear(new.grey), len(STATISTICS))
        return cls(
            embedding,
            grey,
            np.asarray(np.quantile(training.grey, QUANTILES, axis=0), np.float32),
            np.asarray(embedding.coordinates(new.embedding), np.float16),
            new.grey,
            np.asarray(np.unique(new.group, return_inverse=True)[1].ravel(), np.int32),
            np.asarray(len(training.group)),
        )

    def place(self, embedding: NDArray[np.floating], statistics: NDArray[np.float32]) -> Places:
        """Place slices.

        Args:
            embedding: of the network, shape (N, channels).
            statistics: of the cropped slices, shape (N, S).
        """
        far = self.embedding.percentile(self.embedding.distance(embedding))
        odd = self.grey.percentile(self.grey.distance(linear(statistics)))
        either = percentile(np.maximum(far, odd), self._held_out_either())
        return Places(far, odd, either, self.embedding.coordinates(embedding), statistics)

    def _held_out_either(self) -> NDArray[np.float64]:
        """The larger percentile of each held-out slice, shape (M,)."""
        clouds = (self.embedding, self.grey)
        return np.maximum(*(cloud.percentile(cloud.held_out) for cloud in clouds))

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for a bundle's ``trust.npz``."""
        return {
            **{f"{_EMBEDDING}{name}": array for name, array in self.embedding.as_arrays().items()},
            **{f"{_GREY}{name}": array for name, array in self.grey.as_arrays().items()},
            **{name: getattr(self, name) for name in _OWN},
            "exposure_version": np.asarray(VERSION),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Reference | None:
        """The reference in a bundle's ``trust.npz``; None where it carries none that this version can use.

        Raises:
            BundleError: the arrays do not fit together.
        """
        try:
            if int(arrays.get("exposure_version", 0)) != VERSION:
                return None
            embedding, grey = (Cloud.from_arrays(_named(arrays, prefix)) for prefix in (_EMBEDDING, _GREY))
            own = {name: arrays[name] for name in _OWN}
            return cls(embedding=embedding, grey=grey, **own)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the bundle's reference statistics are damaged ({error})") from None


_OWN = ("quantiles", "held_out", "held_out_statistics", "held_out_group", "slices")


def describe_slices(preprocessing: Preprocessing, slices: Iterable[Grey], group: Sequence[str]) -> Described:
    """Frame slices and take their grey statistics.

    Args:
        preprocessing: the model's.
        slices: uint8, each of shape (H, W), at least one.
        group: whose slice each is.
    """
    cropped, grey = [], []
    for pixels in slices:
        frame = preprocessing.apply(pixels)
        cropped.append(frame.pixels)
        grey.append(exposure(frame))
    return Described(np.stack(cropped), np.stack(grey), np.array(group, np.str_))


def embed(network: Network, preprocessing: Preprocessing, slices: Described) -> Embedded:
    """Ask a model for the embeddings of slices.

    Args:
        network: the model.
        preprocessing: whose normalisation is applied.
        slices: described with the same preprocessing.
    """
    starts = range(0, len(slices.cropped), _BATCH)
    batches = (preprocessing.normalise(slices.cropped[start : start + _BATCH]) for start in starts)
    embedding = np.concatenate([network.run(images).embedding for images in batches])
    return Embedded(embedding, slices.grey, slices.group)


def _named(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}
