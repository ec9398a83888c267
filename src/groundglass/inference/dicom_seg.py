"""Lung and lesion masks as DICOM SEG, and what all DICOM objects made from predictions share.

They share patient and study, UIDs, and the equipment. highdicom is a dependency of the extra ``[pacs]``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DA, TM, DSfloat

from groundglass import __version__
from groundglass.imaging.slice import Origin
from groundglass.inference.bundle import Bundle
from groundglass.inference.prediction import PackedMasks

NAME = "groundglass"
RESEARCH_USE = "Research use only, no diagnosis"

_LONGEST_TEXT = 64
_MASKS_NUMBER = 9903
# Most by which direction cosines and spacing in mm may differ within a stack, and millimetres that no slice has.
_ALIKE, _THICKEST = 1e-3, 1e4
_NAMESPACE = uuid.UUID("6c1b5d0e-3a84-5f0e-9d5a-6f2a1f6f3c10")
_SEGMENTS = (
    ("Lungs", codes.SCT.AnatomicalStructure, codes.SCT.Lung, None),
    ("Lesions", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, [codes.SCT.Lung]),
)

# Of a stack's images the first three agree.
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
_TEXTS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientSex", "PatientAge"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "PatientBirthDate", "StudyDate", "StudyTime"),
)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_FORMS = {
    "LossyImageCompression": "0[01]",
    "LossyImageCompressionRatio": r"[\d.\\]*",
    "LossyImageCompressionMethod": r"[A-Z0-9_ \\]*",
    "PatientSex": "[MFO]",
    "PatientAge": r"\d{3}[DWMY]",
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
}
_ANY_TEXT = r"[^\x00-\x1f\x7f-\x9f]*"  # without control characters
# Elements that must be there, if only empty.
_REQUIRED = {
    *("PatientName", "PatientID", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("PatientBirthDate", "StudyDate", "StudyTime"),
}
OF_SOURCE = (*_TEXTS, *_LOSSY, "SpecificCharacterSet", *_UIDS)
"""The elements of an image's header that are read for objects made from it."""


def patient_and_study(image: Dataset) -> Dataset:
    """Patient and study modules as an image has them, fit to be written into another object of the study.

    Text is decoded, and written as UTF-8. What breaks the standard, such as a
    date that is none, is left empty: a damaged header costs no report.

    Args:
        image: holds the elements of :data:`OF_SOURCE` that its file has.
    """
    header = Dataset()
    header.StudyInstanceUID = str(image.StudyInstanceUID)
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _TEXTS:
        if (value := _text(image, keyword)) or keyword in _REQUIRED:
            setattr(header, keyword, value)
    return header


def _text(dataset: Dataset, keyword: str) -> str:
    """An element's text, or nothing where it is missing, damaged or breaks the standard, as a day 00000000 does."""
    try:
        found = dataset.get(keyword, "")
        joint = " " if keyword.endswith("Name") else "\\"  # highdicom takes one name
        value = (joint.join(map(str, found)) if isinstance(found, MultiValue) else str(found or "")).strip()
        (DA if keyword.endswith("Date") else TM if keyword.endswith("Time") else str)(value)
    except Exception:  # noqa: BLE001 - pydicom decodes when asked, and raises whatever the value provokes
        return ""
    longest = 3 * _LONGEST_TEXT + 2 if keyword.endswith(("Name", "Method")) else _LONGEST_TEXT
    return value if len(value) <= longest and re.fullmatch(_FORMS.get(keyword, _ANY_TEXT), value) else ""


def derived_uid(*parts: str) -> str:
    """A UID that follows from its parts alone (UUID version 5, under DICOM's 2.25 root).

    The same series and bundle give objects of the same UIDs, so that to store them twice does no harm.
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def equipment(bundle: Bundle) -> dict[str, Any]:
    """The equipment module, as highdicom's objects take it."""
    return {
        "manufacturer": NAME,
        "manufacturer_model_name": bundle.info.name[:_LONGEST_TEXT],
        "device_serial_number": bundle.id,
        "software_versions": __version__,
    }


def segmentation(headers: Sequence[Dataset], slices: Sequence[PackedMasks], bundle: Bundle) -> Segmentation | None:
    """The masks of a series as a DICOM Segmentation object of two segments, lungs and lesions.

    Frames without a pixel of their segment are left out, unless all are. The UIDs follow from the images and the
    bundle.

    Args:
        headers: of the slices' images; each holds the elements of :data:`OF_SOURCE` that its file has.
        slices: at least one.
        bundle: that made the masks.

    Returns:
        None where the images do not form one stack in space: an image has no place, two have the same, or they
        differ in shape, orientation, spacing or frame of reference.
    """
    origins = [each.origin for each in slices]
    heights = _heights(headers, origins)
    if heights is None or len({each.shape for each in slices}) > 1:
        return None
    # That of the first image, else their usual distance.
    distances = [origins[0].thickness or 0.0, *([float(np.median(np.diff(heights)))] if len(heights) > 1 else [])]
    thickness = next((each for each in distances if 0 < each < _THICKEST), 0.0)
    images = [_one_pixel(*each, origins[0].orientation, thickness) for each in zip(headers, origins, strict=True)]
    made = bundle.info.id, bundle.id, *(image.SOPInstanceUID for image in images)
    identification = AlgorithmIdentificationSequence(
        NAME,
        codes.cid7162.ArtificialIntelligence,
        __version__,
        parameters={"bundle": bundle.id, "model": bundle.info.name},
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
        for number, (label, category, kind, regions) in enumerate(_SEGMENTS, 1)
    ]
    seg = Segmentation(
        source_images=images,
        pixel_array=np.array([each.bits.any(axis=1) for each in slices]).reshape(-1, 1, 1, 2),
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=derived_uid(*made, "masks"),
        series_number=_MASKS_NUMBER,
        series_description=f"{NAME} masks: {RESEARCH_USE}",
        sop_instance_uid=derived_uid(*made, "mask"),
        instance_number=1,
        content_label="LUNGS_LESIONS",
        content_description=RESEARCH_USE,
        **equipment(bundle),
    )
    lossy = next((header for header in headers if _text(header, _LOSSY[0]) == "01"), Dataset())
    for keyword in _LOSSY:  # what was lossy once stays so
        if value := _text(lossy, keyword):
            setattr(seg, keyword, value)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):  # highdicom draws one
        item.DimensionOrganizationUID = derived_uid(*made, "dimensions")
    if len(slices) == 1:  # of which highdicom says that the next is 1 mm away
        del seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    by_image = {image.SOPInstanceUID: each.bits for image, each in zip(images, slices, strict=True)}
    _set_pixels(seg, by_image, slices[0].shape)
    return seg


def _heights(headers: Sequence[Dataset], origins: Sequence[Origin]) -> list[float] | None:
    """Where the images of a stack lie along the slice normal in mm, sorted; None where they form no stack."""
    uids = np.array([[_text(header, keyword) for keyword in _UIDS] for header in headers])
    if (
        (uids[:, :3] != uids[0, :3]).any()
        or (uids[:, 3] != CTImageStorage).any()
        or len(set(uids[:, 4])) < len(uids)
        or not all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in uids.flat)
        or any(each.frame is not None for each in origins)
        or any(None in (each.position, each.orientation, each.spacing) for each in origins)
    ):
        return None
    axes = np.array([each.orientation for each in origins]).reshape(-1, 2, 3)
    spacing = np.array([each.spacing for each in origins])
    planes = np.concatenate([axes.reshape(-1, 6), spacing], axis=1)
    right_angles = np.allclose(axes @ axes.transpose(0, 2, 1), np.eye(2), atol=_ALIKE)
    if not right_angles or np.ptp(planes, axis=0).max() >= _ALIKE:
        return None
    normals, places = np.cross(axes[:, 0], axes[:, 1]), np.array([each.position for each in origins])
    heights = {round(float(normal @ place), 3) for normal, place in zip(normals, places, strict=True)}
    return sorted(heights) if len(heights) == len(origins) else None


def _one_pixel(header: Dataset, origin: Origin, orientation: Sequence[float] | None, thickness: float) -> Dataset:
    """The elements that highdicom asks for, of an image of one pixel."""
    image = patient_and_study(header)
    for keyword in _UIDS:
        setattr(image, keyword, _text(header, keyword))
    image.Rows = image.Columns = 1
    for keyword, values in (
        ("ImagePositionPatient", origin.position),
        ("ImageOrientationPatient", orientation),  # highdicom knows no tolerance
        ("PixelSpacing", origin.spacing),
        ("SliceThickness", [thickness]),
    ):
        setattr(image, keyword, [DSfloat(value, auto_format=True) for value in values or ()])
    return image


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
