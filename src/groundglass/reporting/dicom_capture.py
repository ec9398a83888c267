"""Pictures of slices as DICOM Secondary Capture images, to be looked at beside the slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from highdicom.sc import SCImage
from pydicom import Dataset
from pydicom.uid import JPEGBaseline8Bit

from groundglass.reporting.dicom_sr import NAME, RESEARCH_USE, Algorithm, ImageReference
from groundglass.reporting.dicom_study import derived_uid

if TYPE_CHECKING:
    from groundglass.reporting.overlay import Picture

_SERIES_NUMBER = 9901
_CAPTION_HEIGHT = 28
_INK = (255, 255, 255)


@dataclass(frozen=True)
class Capture:
    """One picture to be stored.

    Attributes:
        picture: red, green, blue, shape (H, W, 3).
        of: the slice that it shows.
        series: Series Instance UID of the pictures.
        number: from 1, of the picture in its series.
        caption: written below the picture.
    """

    picture: Picture
    of: ImageReference
    series: str
    number: int
    caption: str


def secondary_capture(capture: Capture, header: Dataset, algorithm: Algorithm) -> Dataset:
    """The picture with its caption as a Secondary Capture image, JPEG baseline.

    Args:
        capture: what to show.
        header: of :func:`groundglass.reporting.dicom_study.patient_and_study`.
        algorithm: who drew it.
    """
    captioned = _captioned(capture.picture, f"{NAME}: {RESEARCH_USE}. {capture.caption}")
    image = SCImage(
        pixel_array=captioned,
        photometric_interpretation="YBR_FULL_422",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # asked for here, taken back below
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=capture.series,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=capture_uid(capture.series, capture.of),
        instance_number=capture.number,
        manufacturer=NAME,
        manufacturer_model_name=algorithm.model[:64],
        device_serial_number=algorithm.bundle,
        software_versions=algorithm.version,
        series_description=f"{NAME} heat maps: {RESEARCH_USE}",
        patient_id=header.PatientID,
        patient_name=header.PatientName,
        patient_birth_date=header.PatientBirthDate,
        patient_sex=header.PatientSex,
        accession_number=header.AccessionNumber,
        study_id=header.StudyID,
        study_date=header.StudyDate,
        study_time=header.StudyTime,
        referring_physician_name=header.ReferringPhysicianName,
        specific_character_set=header.get("SpecificCharacterSet"),
        transfer_syntax_uid=JPEGBaseline8Bit,
    )
    image.update(header)
    # Two views side by side have no orientation of their own.
    image.PatientOrientation = []
    image.BodyPartExamined = "CHEST"
    image.LossyImageCompression = "01"
    image.LossyImageCompressionRatio = f"{captioned.nbytes / len(image.PixelData):.2f}"
    image.LossyImageCompressionMethod = "ISO_10918_1"
    image.SourceImageSequence = [_source(capture.of)]
    image.DerivationDescription = f"Lungs outlined, and activation map over the framed slice. {RESEARCH_USE}."
    return image


def capture_uid(series: str, image: ImageReference) -> str:
    """SOP Instance UID of the picture of a slice."""
    return derived_uid(series, image.sop_instance, str(image.frame))


def _captioned(picture: Picture, caption: str) -> Picture:
    """The picture above a line of text, both sides even as JPEG's halved colours want them."""
    height, width = picture.shape[:2]
    canvas = np.zeros((height + height % 2 + _CAPTION_HEIGHT, width + width % 2, 3), np.uint8)
    canvas[:height, :width] = picture
    scale = min(0.45, 0.45 * (width - 8) / max(cv2.getTextSize(caption, 0, 0.45, 1)[0][0], 1))
    origin = (4, canvas.shape[0] - _CAPTION_HEIGHT // 3)
    cv2.putText(canvas, caption, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)
    return canvas


def _source(image: ImageReference) -> Dataset:
    source = Dataset()
    source.ReferencedSOPClassUID = image.sop_class
    source.ReferencedSOPInstanceUID = image.sop_instance
    if image.frame is not None:
        source.ReferencedFrameNumber = image.frame + 1
    return source
