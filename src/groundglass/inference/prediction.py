"""What is said of one slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from html import escape
from os import PathLike
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import PredictionError
from groundglass.files import printable
from groundglass.imaging.crop import CroppedSlice, lesion_mask
from groundglass.imaging.slice import CTSlice, Origin, Patient
from groundglass.inference.calibration import COVID, NON_COVID, UNCERTAIN
from groundglass.reporting.overlay import LESION, Picture, fit, grey_picture, outline_mask, png_data_uri

OUTSIDE_LUNGS = "outside the lungs"
"""Beginning of the reason of slices refused because they show another part of the body, such as the neck."""

COPY = "a copy"
"""Beginning of the reason of slices refused because the same DICOM image was read before."""

IDENTIFIERS = ("patient_name", "patient_id", "birth_date")
"""Columns that follow the others where identifiers are kept."""

# Pixels of a picture in a notebook, and most predictions shown there.
_SIDE, _SHOWN = 256, 24
_IN_NOTEBOOKS = ("file", "status", "reason", "label", "probability", "opacity", "flags")


class Status(str, Enum):
    """Whether a slice could be classified."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Evidence:
    """What a prediction was drawn from."""

    slice: CTSlice  # as it was read
    cropped: CroppedSlice  # what the network was shown
    # float32, shape (h, w), over the crop: logit of each place that it shows a lesion; None unless classified
    # by a network with lesion decoder
    lesion_map: NDArray[np.float32] | None = None

    def lesions(self) -> NDArray[np.bool_]:
        """The lesions inside the lungs, shape (H, W) of the source; all False without lesion map."""
        if self.lesion_map is None:
            return np.zeros(self.slice.pixels.shape, np.bool_)
        return lesion_mask(self.lesion_map, self.cropped)

    def picture(self) -> Picture:
        """The slice with the outlines of its lungs, yellow, and lesions, orange; shape (H, W, 3)."""
        return outline_mask(outline_mask(grey_picture(self.slice.pixels), self.cropped.lungs), self.lesions(), LESION)


@dataclass(frozen=True)
class PackedMasks:
    """Masks of one slice, a bit a pixel."""

    origin: Origin  # where the slice came from
    shape: tuple[int, int]  # of the slice, (H, W)
    bits: NDArray[np.uint8]  # uint8, shape (2, B): lungs, then lesions, row by row, lowest bit first

    @classmethod
    def of(cls, evidence: Evidence) -> PackedMasks:
        """The masks that a prediction was drawn from."""
        masks = np.stack([evidence.cropped.lungs, evidence.lesions()])
        height, width = masks.shape[1:]
        return cls(evidence.slice.origin, (height, width), np.packbits(masks.reshape(2, -1), axis=1, bitorder="little"))

    def unpacked(self) -> NDArray[np.bool_]:
        """Lungs and lesions, shape (2, H, W)."""
        count = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, axis=1, count=count, bitorder="little").reshape(2, *self.shape).view(np.bool_)


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
        flags: what may be doubtful, such as ``one-lung-found``.
        frame: index within a file that holds several slices, else None.
        series: DICOM Series Instance UID, or None.
        position: along the body axis in mm, towards the head, or None.
        opacity: percent of the lungs that is lesion; None unless classified by a network with lesion decoder.
        lung_cm2: area of the lungs in cm2; None unless classified, or where the spacing is not known.
        study: DICOM Study Instance UID, or None.
        instance: DICOM SOP Instance UID, or None.
        slice_number: as viewers show it: DICOM Instance Number, in a file of several slices from 1; or None.
        stack: four digits that differ where patients or geometries share the UIDs; None where there is no series.
        overlay: path of the picture of lungs and lesions, from the folder that the predictions lie in; or None.
        patient: who is on the slice, where identifiers were requested, else None.
        evidence: pixels and lesion map, where requested; in no output file.
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
    opacity: float | None = None
    lung_cm2: float | None = None
    study: str | None = None
    instance: str | None = None
    slice_number: int | None = None
    stack: str | None = None
    overlay: str | None = None
    patient: Patient | None = field(default=None, repr=False)
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def outside_lungs(self) -> bool:
        """Whether the slice was refused because it shows another part of the body."""
        return self.status is Status.REFUSED and str(self.reason).startswith(OUTSIDE_LUNGS)

    @property
    def is_copy(self) -> bool:
        """Whether the slice was refused because the same DICOM image was read before."""
        return self.status is Status.REFUSED and str(self.reason).startswith(COPY)

    @property
    def lung_mask(self) -> NDArray[np.bool_] | None:
        """The lungs, disease included, shape (H, W) of the slice; None without evidence."""
        return None if self.evidence is None else self.evidence.cropped.lungs

    @property
    def lesion_mask(self) -> NDArray[np.bool_] | None:
        """The lesions inside the lungs, shape (H, W) of the slice; None without evidence."""
        return None if self.evidence is None else self.evidence.lesions()

    def save_overlay(self, path: str | PathLike[str]) -> None:
        """Write the slice with the outlines of lungs and lesions, in the format that the path's suffix names.

        Raises:
            PredictionError: there is no evidence, or the file cannot be written.
        """
        if self.evidence is None:
            raise PredictionError(f"{self.file}: no pixels were kept; predict with evidence=True, or see its reason")
        from PIL import Image  # noqa: PLC0415 - 20 ms that others need not wait for

        try:
            Image.fromarray(self.evidence.picture()).save(path)
        except (OSError, ValueError, KeyError) as error:  # the latter: Pillow writes no such suffix
            raise PredictionError(f"{path}: cannot be written ({error})") from None

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>"
            for name, value in self.to_dict().items()
            if name in _IN_NOTEBOOKS and value not in (None, [])
        )
        picture = self.evidence and png_data_uri(fit(self.evidence.picture(), _SIDE))
        image = f'<img src="{picture}" alt="slice, lungs and lesions outlined">' if picture else ""
        return f'<div style="display:inline-flex;gap:1em;margin:1em">{image}<table>{rows}</table></div>'

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and UTF-8 can hold, one per column of :data:`COLUMNS`.

        Those of :data:`IDENTIFIERS` come last where they were requested.
        """
        values = {name: getattr(self, name) for name in COLUMNS} | {"status": self.status.value}
        values |= {"prediction_set": list(self.prediction_set), "flags": list(self.flags)}
        if self.patient is not None:
            values |= zip(IDENTIFIERS, (self.patient.name, self.patient.id, self.patient.birth_date), strict=True)
        return {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Prediction:
        """The prediction that :meth:`to_dict` gave; a ValueError where a column is missing or of another type."""
        values: dict[str, Any] = {name: row.get(name) for name in COLUMNS}
        for name, column in _COLUMNS.items():
            types = [column["type"]] if isinstance(column["type"], str) else column["type"]
            kinds = tuple(_KINDS[each] for each in types)
            if not isinstance(values[name], kinds) or isinstance(values[name], bool):
                raise ValueError(f"{name} cannot be {values[name]!r:.80}")
        if not all(math.isfinite(each) for each in values.values() if isinstance(each, float)):
            raise ValueError("a number is not finite")
        values["status"] = Status(row["status"])
        if (values["status"] is Status.OK) != (values["probability"] is not None):
            raise ValueError("what is ok, and nothing else, has a probability")
        values |= {name: tuple(map(str, row[name])) for name in ("prediction_set", "flags")}
        if IDENTIFIERS[0] in row:
            who = (row.get(name) for name in IDENTIFIERS)
            values["patient"] = Patient(*(None if text is None else str(text) for text in who))
        return cls(**values)


class Predictions(list[Prediction]):
    """What is said of several slices, in their order: a list with what notebooks need."""

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values of each, see :meth:`Prediction.to_dict`."""
        return [each.to_dict() for each in self]

    @property
    def lung_mask(self) -> NDArray[np.bool_] | None:
        """The lungs as voxels of the volume that the slices are, see :meth:`lesion_mask`."""
        return self._voxels([each.lung_mask for each in self])

    @property
    def lesion_mask(self) -> NDArray[np.bool_] | None:
        """The lesions as voxels of the volume that the slices are.

        Of a file with a voxel grid (NIfTI, nibabel, SimpleITK) it has the shape and order of its voxels (I, J, K),
        which is SimpleITK's GetArrayFromImage transposed; else it is the slices stacked, (N, H, W). None without
        evidence, and where the slices differ in shape.
        """
        return self._voxels([each.lesion_mask for each in self])

    def _voxels(self, masks: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
        planes = [mask for mask in masks if mask is not None]
        if len(planes) < len(masks) or len({plane.shape for plane in planes}) != 1:
            return None
        stack = np.stack(planes)
        grid, *others = {each.evidence.slice.origin.grid for each in self if each.evidence}
        frames = [each.frame or 0 for each in self]
        if others or grid is None or sorted(frames) != list(range(grid.planes)):
            return stack
        return grid.voxels(stack[np.argsort(frames)].view(np.uint8)).view(np.bool_)

    def _repr_html_(self) -> str:
        more = f"<p>{len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return "".join(each._repr_html_() for each in self[:_SHOWN]) + more


_TEXT, _WHOLE, _NUMBER = ({"type": [kind, "null"]} for kind in ("string", "integer", "number"))
_TEXTS = {"type": "array", "items": {"type": "string"}}
_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "file": {"type": "string"},
    "frame": _WHOLE,
    "study": _TEXT,
    "series": _TEXT,
    "instance": _TEXT,
    "slice_number": _WHOLE,
    "stack": _TEXT,
    "position": _NUMBER,
    "status": {"type": "string", "enum": [status.value for status in Status]},
    "reason": _TEXT,
    "probability": _NUMBER | {"minimum": 0, "maximum": 1},
    "label": _TEXT | {"enum": [COVID, NON_COVID, UNCERTAIN, None]},
    "prediction_set": _TEXTS | {"items": {"enum": [COVID, NON_COVID]}},
    "opacity": _NUMBER | {"minimum": 0, "maximum": 100},
    "lung_cm2": _NUMBER | {"minimum": 0},
    "flags": _TEXTS,
    "overlay": _TEXT,
    "bundle": {"type": "string"},
}
_KINDS: Mapping[str, Any] = {"string": str, "integer": int, "number": int | float, "array": list, "null": NoneType}

COLUMNS = tuple(_COLUMNS)
"""Names and order of a prediction's fields in every output."""


def row_schema() -> dict[str, Any]:
    """The JSON schema of a row, with or without identifiers; ``docs/prediction.schema.json`` is a copy."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Prediction",
        "description": "The prediction of one slice: a line of what ``groundglass predict --json`` prints.",
        "type": "object",
        "properties": {**_COLUMNS, **dict.fromkeys(IDENTIFIERS, _TEXT)},
        "required": list(COLUMNS),
        "additionalProperties": False,
    }
