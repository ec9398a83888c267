"""Refusal of what is no axial lung CT slice, by geometry, by the picture, and by the embedding.

The header's geometry decides where there is one. Then pictures too small or too blank to show anything are
refused. What is left is described by two lists of numbers, how the picture looks and the network's embedding,
and refused where a linear model, fitted on lung slices and on pictures of other things, finds it foreign. Two
of the numbers it sees are distances from lung slices: the Mahalanobis distance within their principal
directions and the distance from the subspace these span, so that what resembles nothing is refused as well
(cf. Lee et al., A simple unified framework for detecting out-of-distribution samples, NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.imaging.appearance import COUNT, VERSION, appearance
from groundglass.imaging.framing import FramedSlice
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.inference.flags import LUNGS_NOT_FOUND, geometry_flags, picture_flags
from groundglass.inference.foreign import (
    LUNG,
    Examples,
    ForeignModel,
    fit_foreign_model,
    held_out_foreignness,
)

__all__ = ["ACCEPTED", "LUNGS_NOT_FOUND", "Gate", "Verdict"]

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
        looks: how the picture looks, for :meth:`Gate.judge`; None where it was refused at once.
    """

    reason: str | None = None
    flags: tuple[str, ...] = ()
    looks: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Gate:
    """Tells axial lung CT slices from everything else.

    Attributes:
        model: finds how foreign a picture is, from its looks followed by its embedding.
        limit: the largest foreignness that is accepted.
    """

    model: ForeignModel
    limit: float

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Gate:
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
            return cls(ForeignModel(**rest), limit)
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
    ) -> Gate:
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
        held_out = held_out_foreignness(examples)
        limits = (
            np.quantile(held_out[deciding], accepted),
            np.quantile(held_out[~examples.lung], 1 - refused),
        )
        # Below even odds nothing is refused, however well the kinds are told apart.
        return cls(fit_foreign_model(examples), round(max(0.0, *map(float, limits)), 4))

    @classmethod
    def open_wide(cls, channels: int) -> Gate:
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

    def look(self, ct_slice: CTSlice, framed: FramedSlice) -> Verdict:
        """Judge by the file's geometry and by the picture, before the network is asked."""
        reason = (
            _wrong_geometry(ct_slice.origin)
            or _nothing_to_see(ct_slice.pixels)
            or _hardly_any_lung(ct_slice, framed)
        )
        if reason is not None:
            return Verdict(reason)
        flags = (*geometry_flags(ct_slice.origin), *picture_flags(framed, ct_slice.pixels))
        return Verdict(None, flags, appearance(ct_slice.pixels, framed))

    def judge(self, framed: FramedSlice, embedding: NDArray[np.float32], so_far: Verdict) -> Verdict:
        """Judge what passed :meth:`look` by its looks and its embedding, shape (channels,)."""
        if so_far.reason is not None or so_far.looks is None:
            return so_far
        features = np.concatenate([so_far.looks, embedding])[None]
        odds = self.model.odds(features)[0]
        foreignness = float(np.logaddexp.reduce(odds))
        if foreignness <= self.limit:
            return so_far
        kind = self.model.kinds[int(np.argmax(odds))]
        score = f"score {foreignness:.1f}, limit {self.limit:.1f}"
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


def _hardly_any_lung(ct_slice: CTSlice, framed: FramedSlice) -> str | None:
    """By Hounsfield units, where they are known and no lungs were found: is there lung that disease hides?"""
    if framed.found or ct_slice.hounsfield is None:
        return None
    hollow = ct_slice.hounsfield <= _AERATED[1]
    _, regions = cv2.connectedComponents(hollow.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    rim = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    lung = hollow & (ct_slice.hounsfield >= _AERATED[0]) & ~np.isin(regions, rim)
    if lung.sum() >= _LEAST_LUNG * np.count_nonzero(~hollow):
        return None
    return "hardly any lung is in this slice; only lung slices can be judged"
