"""What was found in a request, and a bounded memory of it for those who asked for links."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.imaging.window import LUNG
from groundglass.inference.prediction import Evidence, Prediction
from groundglass.inference.series import Totals
from groundglass.serving.problems import Problem
from groundglass.serving.settings import Capacity

_SHORT = np.iinfo(np.int16)


@dataclass(frozen=True)
class KeptSlice:
    """What a prediction was drawn from, packed: half a megabyte for a slice of 512 x 512 pixels.

    Attributes:
        shape: rows and columns.
        grey: uint8, shape (H, W); None where Hounsfield units are kept instead.
        hounsfield: int16, shape (H, W), rounded; None where the file has none.
        lungs: bits of the mask of the lungs.
        cropped: what the network was shown, its own mask left out.
        activation_map: float32, shape (h, w); None unless classified.
    """

    shape: tuple[int, int]
    grey: Grey | None
    hounsfield: NDArray[np.int16] | None
    lungs: NDArray[np.uint8]
    cropped: CroppedSlice
    activation_map: NDArray[np.float32] | None

    @classmethod
    def of(cls, evidence: Evidence) -> KeptSlice:
        """Pack what a prediction brought."""
        units = evidence.slice.hounsfield
        rounded = None if units is None else np.clip(np.rint(units), _SHORT.min, _SHORT.max).astype(np.int16)
        return cls(
            shape=(evidence.slice.pixels.shape[0], evidence.slice.pixels.shape[1]),
            grey=evidence.slice.pixels if rounded is None else None,
            hounsfield=rounded,
            lungs=np.packbits(evidence.cropped.lungs),
            cropped=replace(evidence.cropped, lungs=np.zeros((0, 0), np.bool_)),
            activation_map=evidence.activation_map,
        )

    @property
    def size(self) -> int:
        """Bytes."""
        arrays = (self.grey, self.hounsfield, self.lungs, self.cropped.pixels, self.activation_map)
        return sum(array.nbytes for array in arrays if array is not None)

    def pixels(self) -> Grey:
        """The slice in the lung window, or in grey as its file has it, shape (H, W)."""
        if self.hounsfield is not None:
            return LUNG.apply(self.hounsfield)
        assert self.grey is not None  # noqa: S101 - one of the two is kept
        return self.grey

    def lung_mask(self) -> NDArray[np.bool_]:
        """Where lungs were found, shape (H, W)."""
        count = self.shape[0] * self.shape[1]
        return np.unpackbits(self.lungs, count=count).reshape(self.shape).astype(np.bool_)

    def evidence(self, prediction: Prediction) -> Evidence:
        """What the prediction was drawn from, without Hounsfield units."""
        origin = Origin(prediction.file, "", frame=prediction.frame, series=prediction.series)
        cropped = replace(self.cropped, lungs=self.lung_mask())
        return Evidence(CTSlice(self.pixels(), origin), cropped, self.activation_map)


@dataclass
class Result:
    """What is said of the slices of one request.

    Attributes:
        id: that nobody can guess; empty where nobody can ask for it.
        bundle: id of the bundle that was asked.
        begun: when, in the clock's seconds.
        predictions: in the order of reading.
        totals: what they say together.
        slices: those that are kept, by the number of their prediction.
        size: bytes of the slices.
    """

    id: str
    bundle: str
    begun: float
    predictions: list[Prediction] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    slices: dict[int, KeptSlice] = field(default_factory=dict)
    size: int = 0

    def add(self, prediction: Prediction) -> None:
        """Take the next prediction."""
        self.predictions.append(prediction)
        self.totals.add(prediction)


class Results:
    """Results in memory: at most so many, so large together, and for so long; the oldest go first.

    For one thread, the event loop's.

    Args:
        capacity: ``kept_bytes``, ``kept_results`` and ``kept_seconds``.
        clock: seconds that never go back.
    """

    def __init__(self, capacity: Capacity, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self._kept: OrderedDict[str, Result] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, bundle: str, *, keep: bool) -> Result:
        """A new result, which can be asked for from now on where it is to be kept."""
        result = Result(secrets.token_urlsafe(16) if keep else "", bundle, self._clock())
        if keep:
            self.expire()
            while len(self._kept) >= self._capacity.kept_results:
                self._drop(next(iter(self._kept)))
            self._kept[result.id] = result
        return result

    def keep_slice(self, result: Result, number: int, kept: KeptSlice) -> bool:
        """Keep the slice of a prediction; False where there is no room for it, even without older results."""
        if result.id not in self._kept:
            return False
        while self.size + kept.size > self._capacity.kept_bytes:
            oldest = next(iter(self._kept))
            if oldest == result.id:
                return False
            self._drop(oldest)
        result.slices[number] = kept
        result.size += kept.size
        self.size += kept.size
        return True

    def get(self, key: str) -> Result:
        """A result that is kept.

        Raises:
            Problem: there is none of that id, or no more.
        """
        self.expire()
        try:
            return self._kept[key]
        except KeyError:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                "no-such-result",
                f"No result of this id is kept; results are forgotten after {self._capacity.kept_seconds:g} "
                "seconds, or earlier for want of room. Send the files again.",
            ) from None

    def slice(self, key: str, number: int) -> KeptSlice:
        """What a prediction of a kept result was drawn from.

        Raises:
            Problem: there is no such result, or the slice is not kept.
        """
        try:
            return self.get(key).slices[number]
        except KeyError:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                "no-such-slice",
                "The result has no slice of this number, or its pixels are not kept.",
            ) from None

    def forget(self, key: str) -> None:
        """Forget a result, where it is kept."""
        if key in self._kept:
            self._drop(key)

    def seconds_left(self, result: Result) -> float:
        """How long a result will be kept at most."""
        return max(0.0, result.begun + self._capacity.kept_seconds - self._clock())

    def expire(self) -> None:
        """Forget what has been kept long enough."""
        for key in [key for key, result in self._kept.items() if not self.seconds_left(result)]:
            self._drop(key)

    def _drop(self, key: str) -> None:
        result = self._kept.pop(key)
        self.size -= result.size
        result.slices.clear()
        result.size = 0
