"""What is said of one slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.slice import CTSlice, Origin, Patient

COVID, NON_COVID, UNCERTAIN = "COVID", "NonCOVID", "uncertain"


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


@dataclass(frozen=True)
class Prediction:
    """What is said of one slice; never a diagnosis.

    Attributes:
        status: ``ok`` classified, ``refused`` no axial lung CT slice, ``failed`` cannot be read.
        file: path of the file; for a zip's member ``archive.zip!member``.
        bundle: id of the bundle that was asked.
        reason: why it was refused or failed, else None.
        probability: of COVID, calibrated, 0 to 1; None unless classified.
        label: ``COVID``, ``NonCOVID`` or ``uncertain``; None unless classified.
        prediction_set: the labels that cannot be ruled out at the bundle's coverage.
        flags: what to keep in mind, such as ``lungs-not-found``.
        frame: index within a file that holds several slices, else None.
        series: DICOM Series Instance UID, or None.
        position: along the body axis in mm, towards the head, or None.
        patient: who is on the slice, where identifiers were asked for, else None.
        evidence: pixels and activation map, where they were asked for; in no output file.
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

    @classmethod
    def of(cls, origin: Origin, status: Status, bundle: str, **fields: Any) -> Prediction:
        """A prediction for a slice of that origin."""
        position = None if origin.position is None else origin.position[2]
        return cls(
            status=status,
            file=origin.file,
            bundle=bundle,
            frame=origin.frame,
            series=origin.series,
            position=position,
            **fields,
        )

    def as_row(self) -> dict[str, Any]:
        """Plain values, one per column of :data:`COLUMNS`; JSON can hold them all.

        Those of :data:`IDENTIFIERS` come last where they were asked for.
        """
        values = {name: getattr(self, name) for name in COLUMNS}
        who = () if self.patient is None else (self.patient.name, self.patient.id, self.patient.birth_date)
        return {
            **values,
            "status": self.status.value,
            "prediction_set": list(self.prediction_set),
            "flags": list(self.flags),
            **dict(zip(IDENTIFIERS, who, strict=False)),
        }

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


COLUMNS = (
    "file",
    "frame",
    "series",
    "position",
    "status",
    "reason",
    "probability",
    "label",
    "prediction_set",
    "flags",
    "bundle",
)
"""Names and order of a prediction's fields in every output."""

IDENTIFIERS = ("patient_name", "patient_id", "birth_date")
"""Columns that follow where identifiers are kept."""

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
