"""Patient and study of DICOM objects that are stored beside the images they speak of."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

TEXTS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientSex",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
DATES, TIMES = ("PatientBirthDate", "StudyDate"), ("StudyTime",)
PATIENT_AND_STUDY = (*TEXTS, *DATES, *TIMES, "SpecificCharacterSet", "StudyInstanceUID")
"""What is taken over from an image; objects of one study must agree on it."""

_ALWAYS = frozenset(
    {"PatientName", "PatientID", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName"}
)
"""Elements that must be there, if only empty."""
_SEXES = frozenset({"M", "F", "O"})
_LONGEST = 64
_DATE, _TIME = re.compile(r"\d{8}"), re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
_NAMESPACE = uuid.UUID("6c1b5d0e-3a84-5f0e-9d5a-6f2a1f6f3c10")


def patient_and_study(image: Dataset) -> Dataset:
    """Patient and study modules as an image has them, fit to be written into another object.

    Text is decoded; it is written as UTF-8 where it is not plain ASCII. What breaks the standard, such as a
    date that is none, is left empty: an answer is not lost for a damaged header.

    Args:
        image: holds the elements of :data:`PATIENT_AND_STUDY` that its file has.
    """
    from pydicom import Dataset  # noqa: PLC0415 - slow to import

    header = Dataset()
    header.StudyInstanceUID = str(image.StudyInstanceUID)
    for keyword in TEXTS:
        value = _text(image, keyword)
        if keyword == "PatientSex" and value not in _SEXES:
            value = ""
        if value or keyword in _ALWAYS:
            setattr(header, keyword, value)
    for keywords, pattern in ((DATES, _DATE), (TIMES, _TIME)):
        for keyword in keywords:
            value = _text(image, keyword)
            setattr(header, keyword, value if pattern.fullmatch(value) else "")
    if not all(_text(header, keyword).isascii() for keyword in TEXTS):
        header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _text(dataset: Dataset, keyword: str) -> str:
    """An element's text, or nothing where it is missing, damaged or longer than the standard allows."""
    try:
        value = str(dataset.get(keyword, "") or "").strip()
    except Exception:  # noqa: BLE001 - pydicom decodes when asked, and raises whatever the value provokes
        return ""
    longest = 3 * _LONGEST + 2 if keyword.endswith("Name") else _LONGEST
    return value if len(value) <= longest and value.isprintable() else ""


def derived_uid(*parts: str) -> str:
    """A UID that follows from its parts alone (UUID version 5, under DICOM's 2.25 root).

    The same question gives objects of the same UIDs, so that to store an answer twice does no harm.
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"
