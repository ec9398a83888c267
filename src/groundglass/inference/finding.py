"""What is said of one slice."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import FramedSlice
from groundglass.imaging.slice import CTSlice, Origin

COVID, NON_COVID, UNCERTAIN = "COVID", "NonCOVID", "uncertain"


class Status(str, Enum):
    """Whether a slice could be classified."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Evidence:
    """What a finding was drawn from.

    Attributes:
        slice: as it was read.
        framed: what the network was shown.
        activation_map: float32, shape (h, w): each position's share of the logit.
        logit: of COVID, before calibration.
    """

    slice: CTSlice
    framed: FramedSlice
    activation_map: NDArray[np.float32]
    logit: float


@dataclass(frozen=True)
class Finding:
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
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, origin: Origin, status: Status, bundle: str, **fields: Any) -> Finding:
        """A finding for a slice of that origin."""
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
        """Plain values, one per column of :data:`COLUMNS`; JSON can hold them all."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return {
            **values,
            "status": self.status.value,
            "prediction_set": list(self.prediction_set),
            "flags": list(self.flags),
        }


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
"""Names and order of a finding's fields in every output."""
