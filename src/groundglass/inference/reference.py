"""What a model learned from, as far as it takes to see how far other data lie from it.

Two clouds of slices, in the network's embedding and in grey statistics before normalisation, and quantiles of
the latter. Both are fitted to the training part and calibrated on slices that were held out, for training
slices lie nearer to each other than any new ones: the network has learned them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.imaging import exposure
from groundglass.imaging.framing import Framing
from groundglass.imaging.slice import Grey
from groundglass.inference.cloud import Cloud, percentile
from groundglass.inference.engine import Outputs

FEWEST = 20
"""Held-out slices below which nothing can lie beyond 95 % of them."""

QUANTILES = (0.05, 0.5, 0.95)
"""Of the training part's grey statistics."""

_DIRECTIONS = 24
_BATCH = 32
_EMBEDDING, _GREY = "embedding_", "grey_"


class Network(Protocol):
    """What answers framed slices: an :class:`groundglass.inference.engine.Engine`."""

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Judge normalised framed slices, shape (N, size, size)."""


@dataclass(frozen=True)
class Described:
    """N slices as they are placed.

    Attributes:
        framed: uint8, shape (N, size, size).
        grey: statistics before normalisation, float32, shape (N, S); see :mod:`groundglass.imaging.exposure`.
        group: whose slice each is, shape (N,).
    """

    framed: NDArray[np.uint8]
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
        grey = Cloud.fit(exposure.linear(training.grey), exposure.linear(new.grey), len(exposure.STATISTICS))
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
            statistics: of the framed slices, shape (N, S).
        """
        far = self.embedding.percentile(self.embedding.distance(embedding))
        odd = self.grey.percentile(self.grey.distance(exposure.linear(statistics)))
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
            "exposure_version": np.asarray(exposure.VERSION),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Reference | None:
        """The reference in a bundle's ``trust.npz``; None where it carries none that this version can use.

        Raises:
            BundleError: the arrays do not fit together.
        """
        try:
            if int(arrays.get("exposure_version", 0)) != exposure.VERSION:
                return None
            embedding, grey = (Cloud.from_arrays(_named(arrays, prefix)) for prefix in (_EMBEDDING, _GREY))
            own = {name: arrays[name] for name in _OWN}
            return cls(embedding=embedding, grey=grey, **own)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the bundle's reference statistics are damaged ({error})") from None


_OWN = ("quantiles", "held_out", "held_out_statistics", "held_out_group", "slices")


def describe_slices(framing: Framing, slices: Iterable[Grey], group: Sequence[str]) -> Described:
    """Frame slices and take their grey statistics.

    Args:
        framing: the model's.
        slices: uint8, each of shape (H, W), at least one.
        group: whose slice each is.
    """
    framed, grey = [], []
    for pixels in slices:
        frame = framing.frame(pixels)
        framed.append(frame.pixels)
        grey.append(exposure.exposure(frame))
    return Described(np.stack(framed), np.stack(grey), np.array(group, np.str_))


def embed(network: Network, framing: Framing, slices: Described) -> Embedded:
    """Ask a model for the embeddings of slices.

    Args:
        network: the model.
        framing: whose normalisation is applied.
        slices: described with the same framing.
    """
    starts = range(0, len(slices.framed), _BATCH)
    batches = (framing.normalise(slices.framed[start : start + _BATCH]) for start in starts)
    embedding = np.concatenate([network.run(images).embedding for images in batches])
    return Embedded(embedding, slices.grey, slices.group)


def _named(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}
