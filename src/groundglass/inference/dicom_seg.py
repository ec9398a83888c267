"""Lung and lesion masks as DICOM SEG, and what all DICOM objects made from predictions share.

They share patient and study, UIDs, and the algorithm. highdicom is a dependency of the extra ``[pacs]``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import AlgorithmIdentification
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DA, TM, DSfloat

from groundglass import __version__
from groundglass.imaging.slice import Origin
from groundglass.inference.bundle import Bundle

NAME = "groundglass"
RESEARCH_USE = "Research use only, no diagnosis"
LONGEST_TEXT = 64
"""Characters of most of DICOM's text elements."""

_MASKS_NUMBER = 9903
_ALIKE = 1e-3
"""Most by which direction cosines and spacing in mm may differ within a stack."""
_THICKEST = 1e4
"""Millimetres that no slice has."""
_NAMESPACE = uuid.UUID("6c1b5d0e-3a84-5f0e-9d5a-6f2a1f6f3c10")
_LUNGS = (codes.SCT.AnatomicalStructure, codes.SCT.Lung)
_LESIONS = (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion)

_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")

_TEXTS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientSex", "PatientAge"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "StudyID", "StudyDescription", "AccessionNumber"),
    "ReferringPhysicianName",
)
_DATES_AND_TIMES = ("PatientBirthDate", "StudyDate", "StudyTime")
_FORMS = {
    "PatientSex": re.compile("[MFO]"),
    "PatientBirthDate": re.compile(r"\d{8}"),
    "StudyDate": re.compile(r"\d{8}"),
    "StudyTime": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"),
}
# Elements that must be there, if only empty.
_REQUIRED = frozenset(
    {"PatientName", "PatientID", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName"}
) | frozenset(_DATES_AND_TIMES)
PATIENT_AND_STUDY = (*_TEXTS, *_DATES_AND_TIMES, "SpecificCharacterSet", "StudyInstanceUID")
"""What is copied from an image; objects of one study must agree on it."""


def patient_and_study(image: Dataset) -> Dataset:
    """Patient and study modules as an image has them, fit to be written into another object.

    Text is decoded; it is written as UTF-8 where it is not plain ASCII. What breaks the standard, such as a
    date that is none, is left empty: a damaged header costs no report.

    Args:
        image: holds the elements of :data:`PATIENT_AND_STUDY` that its file has.
    """
    header = Dataset()
    header.StudyInstanceUID = str(image.StudyInstanceUID)
    for keyword in (*_TEXTS, *_DATES_AND_TIMES):
        value = _text(image, keyword)
        if not _fits(keyword, value):
            value = ""
        if value or keyword in _REQUIRED:
            setattr(header, keyword, value)
    if not all(_text(header, keyword).isascii() for keyword in _TEXTS):
        header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _fits(keyword: str, value: str) -> bool:
    """Whether a value has its element's form; a day like 00000000 has not."""
    if keyword in _FORMS and not _FORMS[keyword].fullmatch(value):
        return False
    try:
        (DA if keyword.endswith("Date") else TM if keyword.endswith("Time") else str)(value)
    except ValueError:
        return False
    return True


def _text(dataset: Dataset, keyword: str) -> str:
    """An element's text, or nothing where it is missing, damaged or longer than the standard allows."""
    try:
        value = str(dataset.get(keyword, "") or "").strip()
    except Exception:  # noqa: BLE001 - pydicom decodes when asked, and raises whatever the value provokes
        return ""
    longest = 3 * LONGEST_TEXT + 2 if keyword.endswith("Name") else LONGEST_TEXT
    return value if len(value) <= longest and value.isprintable() else ""


def derived_uid(*parts: str) -> str:
    """A UID that follows from its parts alone (UUID version 5, under DICOM's 2.25 root).

    The same series and bundle give objects of the same UIDs, so that to store them twice does no harm.
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


@dataclass(frozen=True)
class Algorithm:
    """What made the predictions.

    Attributes:
        version: of groundglass.
        bundle: short id of the trained model, as predictions have it.
        bundle_hash: its full id.
        model: the trained model's name.
    """

    version: str
    bundle: str
    bundle_hash: str
    model: str

    @classmethod
    def of(cls, bundle: Bundle) -> Algorithm:
        """This version of groundglass with a bundle."""
        return cls(__version__, bundle.id, bundle.info.id, bundle.info.name)

    @property
    def equipment(self) -> dict[str, Any]:
        """The equipment module, as highdicom's objects take it."""
        return {
            "manufacturer": NAME,
            "manufacturer_model_name": self.model[:LONGEST_TEXT],
            "device_serial_number": self.bundle,
            "software_versions": self.version,
        }

    def identification(self, *more: str) -> AlgorithmIdentification:
        """Name, version and bundle for a group of measurements, and further parameters."""
        return AlgorithmIdentification(NAME, self.version, parameters=[f"bundle {self.bundle}", *more])


OF_SOURCE = (*PATIENT_AND_STUDY, *_UIDS, "SliceThickness")
"""What :func:`segmentation` reads of an image's header."""


@dataclass(frozen=True)
class SourceImage:
    """An image that masks were made from.

    Attributes:
        header: holds the elements of :data:`OF_SOURCE` that its file has.
        origin: where the image lies.
    """

    header: Dataset
    origin: Origin

    def can_be_referenced(self) -> bool:
        """Whether it is a CT image of one frame with UIDs and a complete place in space."""
        if self.origin.frame is not None or self.origin.position is None or len(self.plane()) != 8:
            return False
        axes, spacing = self.plane()[:6].reshape(2, 3), self.plane()[6:]
        uids = [_text(self.header, keyword) for keyword in ("StudyInstanceUID", *_UIDS)]
        return (
            bool(np.allclose(axes @ axes.T, np.eye(2), atol=_ALIKE))
            and float(spacing.min()) > 0
            and all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in uids)
            and self.header.SOPClassUID == CTImageStorage
        )

    def plane(self) -> NDArray[np.float64]:
        """Direction cosines of rows and columns, then spacing in mm."""
        return np.array([*(self.origin.orientation or ()), *(self.origin.spacing or ())])

    def height(self) -> float:
        """Its place along the slice normal in mm, to a thousandth."""
        normal = np.cross(*self.plane()[:6].reshape(2, 3))
        return round(float(normal @ np.array(self.origin.position or ())), 3)

    def dataset(self, thickness: float) -> Dataset:
        """The elements that highdicom asks for, of an image of one pixel."""
        header = patient_and_study(self.header)
        for keyword in _UIDS:
            setattr(header, keyword, _text(self.header, keyword))
        header.Rows = header.Columns = 1
        header.ImagePositionPatient = [_decimal(value) for value in self.origin.position or ()]
        header.ImageOrientationPatient = [_decimal(value) for value in self.origin.orientation or ()]
        header.SliceThickness = _decimal(thickness)
        header.PixelSpacing = [_decimal(value) for value in self.origin.spacing or ()]
        return header


def _decimal(value: float) -> DSfloat:
    return DSfloat(value, auto_format=True)


def segmentation(
    sources: Sequence[SourceImage],
    masks: Sequence[NDArray[np.uint8]],
    shape: tuple[int, int],
    algorithm: Algorithm,
) -> Segmentation | None:
    """The masks of a series as a DICOM Segmentation object of two segments, lungs and lesions.

    Frames without a pixel of their segment are left out, unless all are. The UIDs follow from the images and the
    bundle.

    Args:
        sources: images of one series.
        masks: of the lungs, then of the lesions, for each image: shape (2, B), a bit a pixel, lowest bit first.
        shape: of the images, (H, W).
        algorithm: what made them.

    Returns:
        None where the images do not form one stack in space: an image has no place, two have the same, or they
        differ in orientation, spacing or frame of reference.
    """
    if not _form_a_stack(sources):
        return None
    thickness = _thickness(sources)
    images = [source.dataset(thickness) for source in sources]
    made = algorithm.bundle_hash, algorithm.bundle, *(image.SOPInstanceUID for image in images)
    identification = AlgorithmIdentificationSequence(
        NAME,
        codes.cid7162.ArtificialIntelligence,
        algorithm.version,
        parameters={"bundle": algorithm.bundle, "model": algorithm.model},
    )
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type="AUTOMATIC",
            algorithm_identification=identification,
            tracking_uid=derived_uid(*made, label),
            tracking_id=label,
            anatomic_regions=regions,
        )
        for number, (label, (category, kind), regions) in enumerate(
            (("Lungs", _LUNGS, None), ("Lesions", _LESIONS, [codes.SCT.Lung])), 1
        )
    ]
    seg = Segmentation(
        source_images=images,
        pixel_array=np.array([mask.any(axis=1) for mask in masks]).reshape(-1, 1, 1, 2),
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=derived_uid(*made, "masks"),
        series_number=_MASKS_NUMBER,
        series_description=f"{NAME} masks: {RESEARCH_USE}",
        sop_instance_uid=derived_uid(*made, "mask"),
        instance_number=1,
        content_label="LUNGS_LESIONS",
        content_description=RESEARCH_USE,
        **algorithm.equipment,
    )
    by_image = {image.SOPInstanceUID: mask for image, mask in zip(images, masks, strict=True)}
    _set_pixels(seg, by_image, shape)
    return seg


def _set_pixels(seg: Segmentation, masks: Mapping[str, NDArray[np.uint8]], shape: tuple[int, int]) -> None:
    """Put the masks in place of the single pixels that highdicom was given: of many slices it needs gigabytes."""
    seg.Rows, seg.Columns = shape
    frames, count = [], shape[0] * shape[1]
    for item in seg.PerFrameFunctionalGroupsSequence:
        image = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        frames.append(masks[image][item.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1])
    if count % 8:  # the next frame begins within a byte
        bits = np.concatenate([np.unpackbits(frame, count=count, bitorder="little") for frame in frames])
        frames = [np.packbits(bits, bitorder="little")]
    content = b"".join(frame.tobytes() for frame in frames)
    seg.PixelData = content + b"\0" * (len(content) % 2)


def _thickness(sources: Sequence[SourceImage]) -> float:
    """Of the slices in mm as the first header has it, else their usual distance."""
    try:
        thickness = float(_text(sources[0].header, "SliceThickness"))
    except ValueError:
        thickness = 0.0
    heights = sorted(source.height() for source in sources)
    if not 0 < thickness < _THICKEST and len(heights) > 1:
        thickness = float(np.median(np.diff(heights)))
    return thickness if 0 < thickness < _THICKEST else 0.0


def _form_a_stack(sources: Sequence[SourceImage]) -> bool:
    if not all(source.can_be_referenced() for source in sources):
        return False
    alike = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    owners = {tuple(_text(source.header, keyword) for keyword in alike) for source in sources}
    planes = np.array([source.plane() for source in sources])
    instances = {_text(source.header, "SOPInstanceUID") for source in sources}
    heights = {source.height() for source in sources}
    return (
        len(owners) == 1
        and float(np.ptp(planes, axis=0).max()) < _ALIKE
        and len(instances) == len(heights) == len(sources)
    )
