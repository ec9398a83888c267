"""Where lung slices and training slices lie: the two Gaussians in a bundle's ``reference.npz``.

Slices are described by their principal directions and by what lies beside them (B. Moghaddam and A. Pentland,
Probabilistic visual learning for object representation, IEEE TPAMI 19(7), 1997), which shrinks what a few hundred
slices cannot tell of a thousand dimensions. Mahalanobis distances measure how unlike its training a network's input
is (K. Lee et al., A simple unified framework for detecting out-of-distribution samples and adversarial attacks,
NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError

if TYPE_CHECKING:
    from typing import Self

Features = NDArray[np.floating]
"""Descriptions of N pictures, shape (N, d): appearance followed by embedding."""

CLIP = 6.0
"""Standard deviations at which a dimension is clipped: one broken number is no distance."""


@dataclass(frozen=True)
class Gaussian:
    """Standardised slices along their principal directions.

    A bundle's ``reference.npz`` holds its fields as arrays, whose names begin with a prefix; messages call it by name.
    """

    PREFIX: ClassVar[str]
    NAME: ClassVar[str]

    centre: NDArray[np.float32]  # mean, shape (d,)
    spread: NDArray[np.float32]  # standard deviation of each dimension, shape (d,)
    directions: NDArray[np.floating]  # principal directions of the standardised slices, shape (k, d)
    scale: NDArray[np.float32]  # standard deviation along these, shape (k,)

    @cached_property
    def _across(self) -> NDArray[np.float32]:
        """The directions as columns in single precision: to convert them takes longer than to use them."""
        return np.ascontiguousarray(self.directions.T, np.float32)

    def split(self, features: Features) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """N points standardised, shape (N, d), and their squared distances within and beside the directions, (N,)."""
        standard = np.clip((features - self.centre) / self.spread, -CLIP, CLIP).astype(np.float32)
        along = standard @ self._across
        beside = np.square(standard).sum(axis=1) - np.square(along).sum(axis=1)
        return standard, np.square(along / self.scale).sum(axis=1), beside

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for a bundle's ``reference.npz``."""
        return {f"{self.PREFIX}{name}": np.asarray(each) for name, each in asdict(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self | None:
        """That in a bundle's ``reference.npz``; None where it holds none.

        Raises:
            BundleError: an array is missing, or there is one too many.
        """
        own = {name.removeprefix(cls.PREFIX): each for name, each in arrays.items() if name.startswith(cls.PREFIX)}
        try:
            return cls(**own) if own else None
        except TypeError as error:
            raise BundleError(f"the bundle's {cls.NAME} is damaged ({error})") from None


@dataclass(frozen=True)
class EmbeddingReference(Gaussian):
    """A Gaussian of the training slices' embeddings, and the distances of held-out slices.

    A distance says nothing by itself: it is turned into the share of held-out slices that lie nearer (S. Bates et
    al., Testing for outliers with conformal p-values, Annals of Statistics 51(1), 2023). Training slices would not
    do: the network has learned them.
    """

    PREFIX: ClassVar[str] = "embedding."
    NAME: ClassVar[str] = "embedding reference"

    # mean variance in every direction that is not principal, infinite where there is none, shape ()
    beside: NDArray[np.float32]
    held_out: NDArray[np.float32]  # distances of the held-out slices, shape (M,)
    slices: NDArray[np.integer]  # number of training slices, shape ()

    def distance(self, embedding: NDArray[np.floating]) -> NDArray[np.float32]:
        """Mahalanobis distance of N embeddings, shape (N, d), from the training slices, shape (N,)."""
        _, within, beside = self.split(embedding)
        return np.asarray(np.sqrt(within + np.maximum(beside, 0) / float(self.beside)), np.float32)

    def percentile(self, embedding: NDArray[np.floating]) -> NDArray[np.float64]:
        """Where N embeddings, shape (N, d), lie among the held-out slices: 0 to 100, shape (N,).

        100 less the conformal p-value in per cent: 95 or more occurs to 5 % of new slices of the same kind.
        """
        nearer = np.searchsorted(np.sort(self.held_out), self.distance(embedding), side="left")
        return np.asarray(100.0 * nearer / (len(self.held_out) + 1), np.float64)
