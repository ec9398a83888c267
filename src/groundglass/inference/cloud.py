"""Where points of one kind lie, and how far others lie from them, judged by points that were held out.

The points are described by a Gaussian: its principal directions, and one variance for everything beside them
(B. Moghaddam and A. Pentland, Probabilistic visual learning for object representation, IEEE TPAMI 19(7),
1997), which shrinks what a few hundred points cannot tell of a thousand dimensions. The distance is
Mahalanobis', as K. Lee et al. measure how unlike its training a network's input is (A simple unified
framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS 2018). A distance says
nothing by itself: it is turned into the share of held-out points that lie nearer (S. Bates et al., Testing
for outliers with conformal p-values, Annals of Statistics 51(1), 2023). Points that helped to fit the
Gaussian, or to train the network that gives them, lie nearer than new ones of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
