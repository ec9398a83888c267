"""What is said of one slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.files import printable
from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.slice import CTSlice, Patient

COVID, NON_COVID, UNCERTAIN = "COVID", "NonCOVID", "uncertain"

OUTSIDE_LUNGS = "outside the lungs"
"""Beginning of the reason of slices refused because they show another part of the body, such as the neck."""


class Status(str, Enum):
    """Whether a slice could be classified."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Evidence:
    """What a prediction was drawn from.

    Attributes:
        slice: as it was read.
        cropped: what the network was shown.
        activation_map: float32, shape (h, w): each position's share of the logit; None unless classified.
        logit: of COVID, before calibration; None unless classified.
    """

    slice: CTSlice
    cropped: CroppedSlice
    activation_map: NDArray[np.float32] | None = None
    logit: float | None = None

    def lesions(self) -> NDArray[np.bool_]:
        """The lesions inside the lungs, shape (H, W) of the source; all False without a map."""
        mask = np.zeros_like(self.cropped.lungs)
        if self.activation_map is not None:
            left, top, right, bottom = self.cropped.box
            height, width = mask.shape
            enlarged = cv2.resize(self.activation_map, (right - left, bottom - top)) > 0
            rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
            mask[rows, columns] = enlarged[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
        return mask & self.cropped.lungs


@dataclass(frozen=True)
class Prediction:
    """What is said of one slice; never a diagnosis.

    Attributes:
        status: ``ok`` classified, ``refused`` not an axial lung CT slice, ``failed`` cannot be read.
        file: path of the file; for a zip's member ``archive.zip!member``.
        bundle: id of the bundle.
        reason: why it was refused or failed, else None.
        probability: of COVID, calibrated, 0 to 1; None unless classified.
        label: ``COVID``, ``NonCOVID`` or ``uncertain``; None unless classified.
        prediction_set: the labels that cannot be ruled out at the bundle's coverage.
        flags: what may be doubtful, such as ``lungs-not-found``.
        frame: index within a file that holds several slices, else None.
        series: DICOM Series Instance UID, or None.
        position: along the body axis in mm, towards the head, or None.
        patient: who is on the slice, where identifiers were requested, else None.
        evidence: pixels and activation map, where requested; in no output file.
    """

    status: Status
    file: str
    bundle: str
    reason: str | None = None
    probability: float | None = None
    label: str | None = None
    prediction_set: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    frame: int | None = None
    series: str | None = None
    position: float | None = None
    patient: Patient | None = field(default=None, repr=False)
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def outside_lungs(self) -> bool:
        """Whether the slice was refused because it shows another part of the body."""
        return self.status is Status.REFUSED and (self.reason or "").startswith(OUTSIDE_LUNGS)

    def as_row(self) -> dict[str, Any]:
        """Plain values that JSON and UTF-8 can hold, one per column of :data:`COLUMNS`.

        Those of :data:`IDENTIFIERS` come last where they were requested.
        """
        values = {name: getattr(self, name) for name in COLUMNS}
        if self.patient is not None:
            who = (self.patient.name, self.patient.id, self.patient.birth_date)
            values |= dict(zip(IDENTIFIERS, who, strict=True))
        values["status"] = self.status.value
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """The prediction that :meth:`as_row` gave.

        Raises:
            ValueError: a column is missing, or holds what it cannot hold.
        """
        try:
            values = {name: row[name] for name in COLUMNS}
            who = [row[name] for name in IDENTIFIERS] if IDENTIFIERS[0] in row else None
        except KeyError as error:
            raise ValueError(f"column {error.args[0]} is missing") from None
        for name, kinds in _KINDS.items():
            if not isinstance(values[name], kinds) or isinstance(values[name], bool):
                raise ValueError(f"{name} cannot be {values[name]!r:.80}")
        lists = {name: tuple(str(item) for item in values[name]) for name in ("prediction_set", "flags")}
        patient = None if who is None else Patient(*(None if text is None else str(text) for text in who))
        return cls(**{**values, **lists, "status": Status(values["status"]), "patient": patient})


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return list(value) if isinstance(value, tuple) else value


_TEXT, _NUMBER = (str, type(None)), (int, float, type(None))
_KINDS: Mapping[str, tuple[type, ...]] = {
    "file": (str,),
    "frame": (int, type(None)),
    "series": _TEXT,
    "position": _NUMBER,
    "status": (str,),
    "reason": _TEXT,
    "probability": _NUMBER,
    "label": _TEXT,
    "prediction_set": (list,),
    "flags": (list,),
    "bundle": (str,),
}

COLUMNS = tuple(_KINDS)
"""Names and order of a prediction's fields in every output."""

IDENTIFIERS = ("patient_name", "patient_id", "birth_date")
"""Columns that follow where identifiers are kept."""
