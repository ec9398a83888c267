"""Refusal of what is no axial lung CT slice, by geometry, by the picture, and by the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import FramedSlice
from groundglass.imaging.slice import CTSlice

LUNGS_NOT_FOUND = "lungs-not-found"

_AXIAL = 0.9
"""Least cosine between the slice normal and the body axis; gantry tilt stays below 30 degrees."""


@dataclass(frozen=True)
class Verdict:
    """Whether a slice may be judged.

    Attributes:
        reason: why not, in words that follow "refused:"; None where it may.
        flags: what to keep in mind otherwise.
    """

    reason: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gate:
    """Tells axial lung CT slices from everything else.

    Attributes:
        centre: mean embedding of training slices, float32, shape (channels,).
        axes: directions in embedding space, each divided by the training slices' spread along it, float32,
            shape (k, channels).
        farthest: largest distance that is accepted.
    """

    centre: NDArray[np.float32]
    axes: NDArray[np.float32]
    farthest: float

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Gate:
        """The gate in a bundle's ``trust.npz``."""
        return cls(arrays["centre"], arrays["axes"], float(arrays["farthest"]))

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for a bundle's ``trust.npz``."""
        return {"centre": self.centre, "axes": self.axes, "farthest": np.asarray(self.farthest)}

    @classmethod
    def fit(
        cls,
        training: NDArray[np.float32],
        accepted: NDArray[np.float32],
        components: int = 64,
        share: float = 0.99,
    ) -> Gate:
        """Learn what embeddings of lung slices look like.

        Args:
            training: embeddings of slices the network learned from, shape (N, channels).
            accepted: embeddings of slices it did not learn from, shape (M, channels).
            components: principal directions kept.
            share: of ``accepted`` within the largest distance that is accepted.
        """
        centre = training.mean(axis=0)
        _, singular, directions = np.linalg.svd(training - centre, full_matrices=False)
        spread = singular[:components] / np.sqrt(len(training))
        axes = directions[:components] / np.maximum(spread, 1e-6)[:, None]
        distances = np.linalg.norm((accepted - centre) @ axes.T, axis=1)
        return cls(
            np.asarray(centre, np.float32), np.asarray(axes, np.float32), float(np.quantile(distances, share))
        )

    def look(self, ct_slice: CTSlice, framed: FramedSlice) -> Verdict:
        """Judge by the file's geometry and by the picture, before the network is asked."""
        orientation = ct_slice.origin.orientation
        if orientation is not None:
            normal = np.cross(orientation[:3], orientation[3:])
            if abs(normal[2]) < _AXIAL:
                plane = "sagittal" if abs(normal[0]) >= abs(normal[1]) else "coronal"
                return Verdict(f"a {plane} or oblique image; only axial slices can be judged")
        return Verdict(flags=() if framed.found else (LUNGS_NOT_FOUND,))

    def judge(self, framed: FramedSlice, embedding: NDArray[np.float32], so_far: Verdict) -> Verdict:
        """Judge by the embedding, shape (channels,), what passed :meth:`look`."""
        distance = float(np.linalg.norm((embedding - self.centre) @ self.axes.T))
        if distance > self.farthest:
            return Verdict(
                f"unlike the slices the model knows (distance {distance:.1f}, limit {self.farthest:.1f})",
                so_far.flags,
            )
        return so_far
