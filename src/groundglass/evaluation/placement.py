"""Where evaluated slices lie from a bundle's training data, slice by slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Record, read_record
from groundglass.evaluation.look import Progress, Take, checked, predict_part
from groundglass.evaluation.part import Part
from groundglass.evaluation.protocol import Predictions, TrainedRun
from groundglass.imaging.slice import CTSlice
from groundglass.inference.reference import Places, Reference

_BATCH = 256
"""Slices placed in one call, which bounds memory on large data sets."""


@dataclass(frozen=True)
class Placement:
    """What is known of N slices beside their probability.

    Attributes:
        reason: why the gate refuses each slice, None for those that it accepts.
        reference: that they are placed by; None where the bundle carries none.
        places: where they lie, None likewise.
    """

    reason: tuple[str | None, ...]
    reference: Reference | None = None
    places: Places | None = None

    @classmethod
    def joined(cls, pieces: Sequence[Placement]) -> Placement:
        """Several, one behind the other."""
        known = [piece.places for piece in pieces if piece.places is not None]
        reasons = tuple(reason for piece in pieces for reason in piece.reason)
        return cls(reasons, pieces[0].reference, _joined(known) if known else None)


@runtime_checkable
class PlacingRun(Protocol):
    """A trained network that knows where its training data lie, as a bundle does and a run does not."""

    def predict_placed(self, slices: Iterable[CTSlice]) -> tuple[Predictions, Placement]:
        """Predict slices and place them."""


def predict_and_place(
    run: TrainedRun, part: Part, progress: Progress | None = None, take: Take | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Placement | None]:
    """Logits and probabilities of every slice of a part, shape (N,) each, and where the slices lie.

    Args:
        run: the trained network; where it is no :class:`PlacingRun`, nothing is placed.
        part: the slices.
        progress: told of every slice.
        take: given the predictions of every batch, for what else they say; of a :class:`PlacingRun` nothing.

    Raises:
        RunError: the network gives no valid number for a slice.
        ImageError: a slice cannot be read. None is left out silently.
    """
    if not isinstance(run, PlacingRun):
        return (*predict_part(run, part, progress, take=take), None)
    slices = _slices(part.records, progress)
    batches = [run.predict_placed(islice(slices, _BATCH)) for _ in range(0, len(part.records), _BATCH)]
    logit, probability = (
        np.concatenate([np.asarray(getattr(predictions, name), np.float64) for predictions, _ in batches])
        for name in ("logit", "probability")
    )
    return (*checked(run, part, logit, probability), Placement.joined([placed for _, placed in batches]))


def _slices(records: Sequence[Record], progress: Progress | None) -> Iterator[CTSlice]:
    for number, record in enumerate(records, 1):
        yield read_record(record)
        if progress is not None:
            progress(number, len(records))


def _joined(places: Sequence[Places]) -> Places:
    names = ("embedding", "grey", "either", "coordinates", "statistics")
    return Places(**{name: np.concatenate([getattr(each, name) for each in places]) for name in names})
