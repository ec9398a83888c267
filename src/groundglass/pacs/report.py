"""What is said of a CT series as DICOM objects: a Structured Report (TID 1500, PS3.16) and heat maps."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sc import SCImage
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    EnhancedSR,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import JPEGBaseline8Bit

if TYPE_CHECKING:
    from groundglass.reporting.overlay import Picture

_SCHEME = "99GROUNDGLASS"


def _own(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, _SCHEME, meaning)


_PREDICTIONS = {
    "COVID": CodedConcept("882784691000119100", "SCT", "Pneumonia caused by SARS-CoV-2"),
    "NonCOVID": _own("NONCOVID", "Anything but COVID-19 pneumonia"),
    "uncertain": _own("UNCERTAIN", "Uncertain whether COVID-19 pneumonia"),
}

_PROBABILITY = _own("PROBABILITY", "Probability of COVID-19 pneumonia, calibrated")
_SERIES_SCORE = _own("SERIES_SCORE", "Series score: mean of the highest probabilities")
_NOT_RULED_OUT = _own("NOT_RULED_OUT", "Cannot be ruled out")
_OUTCOME = _own("OUTCOME", "Outcome of a slice")
_OUTCOMES = {
    "refused": _own("REFUSED", "Refused: no axial lung CT slice"),
    "failed": _own("FAILED", "Failed: could not be fetched or read"),
}
_COUNTS = {
    "classified": _own("CLASSIFIED", "Slices classified"),
    "refused": _own("SLICES_REFUSED", "Slices refused"),
    "failed": _own("SLICES_FAILED", "Slices failed"),
    "in_score": _own("SLICES_IN_SCORE", "Slices in the series score"),
}
_SLICES = CodedConcept("{slices}", "UCUM", "slices")
_NO_UNITS = CodedConcept("1", "UCUM", "no units")
_CT_CHEST = CodedConcept("24627-2", "LN", "CT Chest")
_COMMENT = CodedConcept("121106", "DCM", "Comment")


_TEXTS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientSex", "PatientAge"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "StudyID", "StudyDescription", "AccessionNumber"),
    "ReferringPhysicianName",
)
_DATES, _TIMES = ("PatientBirthDate", "StudyDate"), ("StudyTime",)
PATIENT_AND_STUDY = (*_TEXTS, *_DATES, *_TIMES, "SpecificCharacterSet", "StudyInstanceUID")
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
    header = Dataset()
    header.StudyInstanceUID = str(image.StudyInstanceUID)
    for keyword in _TEXTS:
        value = _text(image, keyword)
        if keyword == "PatientSex" and value not in _SEXES:
            value = ""
        if value or keyword in _ALWAYS:
            setattr(header, keyword, value)
    for keywords, pattern in ((_DATES, _DATE), (_TIMES, _TIME)):
        for keyword in keywords:
            value = _text(image, keyword)
            setattr(header, keyword, value if pattern.fullmatch(value) else "")
    if not all(_text(header, keyword).isascii() for keyword in _TEXTS):
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


_NAME = "groundglass"
_RESEARCH_USE = "Research use only, no diagnosis"
_WARNING = (
    "Research use only. Made by software without a person's review; it is no diagnosis and must not be used "
    "for decisions about a patient."
)
_REPORT_NUMBER = 9902


@dataclass(frozen=True)
class Algorithm:
    """Who made an answer.

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


@dataclass(frozen=True)
class ImageReference:
    """An image in the archive.

    Attributes:
        sop_class: its SOP Class UID.
        sop_instance: its SOP Instance UID.
        frame: index from 0 of the frame that is meant; None for the whole image.
    """

    sop_class: str
    sop_instance: str
    frame: int | None = None


@dataclass(frozen=True)
class ClassifiedSlice:
    """A slice that was classified.

    Attributes:
        image: where it is.
        probability: of COVID, calibrated, 0 to 1.
        label: ``COVID``, ``NonCOVID`` or ``uncertain``.
        prediction_set: the labels that cannot be ruled out.
        flags: what to keep in mind.
    """

    image: ImageReference
    probability: float
    label: str
    prediction_set: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOutSlice:
    """A slice, or a file, that was not classified.

    Attributes:
        image: where it is.
        status: ``refused`` or ``failed``.
        reason: why.
    """

    image: ImageReference
    status: str
    reason: str


@dataclass(frozen=True)
class SeriesReport:
    """Everything that is said of one series.

    Attributes:
        series: its Series Instance UID.
        report_series: Series Instance UID of the report.
        classified: slices that were classified, in their order along the body.
        left_out: slices that were not.
        images: every image of the series.
        series_score: see ``series_score_note``; None where nothing was classified.
        slices_in_score: how many slices it is the mean of.
        series_score_note: what the score is, in words.
    """

    series: str
    report_series: str
    classified: tuple[ClassifiedSlice, ...]
    left_out: tuple[LeftOutSlice, ...]
    images: tuple[ImageReference, ...]
    series_score: float | None
    slices_in_score: int
    series_score_note: str


def structured_report(report: SeriesReport, header: Dataset, algorithm: Algorithm) -> Dataset:
    """The report as an Enhanced SR object.

    It is preliminary and unverified. A group of measurements says how many slices were classified, refused
    and failed, and the series score; then each classified slice has a group with its coded prediction, its
    probability and a reference to it; then the slices left out, by reason. A series in which nothing was
    classified has no prediction.

    Args:
        report: what to say.
        header: what :func:`patient_and_study` gives.
        algorithm: who says it.
    """
    groups = [_series_group(report, algorithm)]
    groups += [
        _slice_group(report, number, each, algorithm) for number, each in enumerate(report.classified, 1)
    ]
    groups += list(_left_out_groups(report))
    content = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, _device(algorithm))
        ),
        procedure_reported=_CT_CHEST,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(_comment(_WARNING))
    return EnhancedSR(
        evidence=[_evidence(header, report.series, image) for image in report.images],
        content=content[0],
        series_instance_uid=report.report_series,
        series_number=_REPORT_NUMBER,
        series_description=f"{_NAME}: {_RESEARCH_USE}",
        sop_instance_uid=derived_uid(report.report_series, "report"),
        instance_number=1,
        **_equipment(algorithm),
        is_complete=True,
        is_final=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=_SCHEME, name=_NAME, responsible_organization="The groundglass maintainers"
            )
        ],
    )


def _equipment(algorithm: Algorithm) -> dict[str, Any]:
    return {
        "manufacturer": _NAME,
        "manufacturer_model_name": algorithm.model[:64],
        "device_serial_number": algorithm.bundle,
        "software_versions": algorithm.version,
    }


def _device(algorithm: Algorithm) -> DeviceObserverIdentifyingAttributes:
    return DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", algorithm.bundle),
        name=_NAME,
        manufacturer_name=_NAME,
        model_name=algorithm.model,
        serial_number=algorithm.bundle,
    )


def _series_group(report: SeriesReport, algorithm: Algorithm) -> MeasurementsAndQualitativeEvaluations:
    """Counts and series score; no prediction, since there is no threshold on the score."""
    status = [each.status for each in report.left_out]
    counts = {
        "classified": len(report.classified),
        "refused": status.count("refused"),
        "failed": status.count("failed"),
    }
    measurements = []
    if report.series_score is not None:
        measurements.append(_number(_SERIES_SCORE, report.series_score, _NO_UNITS))
        counts["in_score"] = report.slices_in_score
    measurements += [_number(_COUNTS[name], count, _SLICES) for name, count in counts.items()]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(report, "Series"),
        algorithm_id=_identification(
            algorithm, f"model {algorithm.model}", f"bundle SHA-256 {algorithm.bundle_hash}"
        ),
        measurements=measurements,
    )
    if report.series_score is None:
        group[0].ContentSequence.append(_comment("No slice could be classified; there is no prediction."))
    else:
        group[0].ContentSequence.append(_comment(report.series_score_note))
    return group


def _slice_group(
    report: SeriesReport, number: int, each: ClassifiedSlice, algorithm: Algorithm
) -> MeasurementsAndQualitativeEvaluations:
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(report, f"Slice {number}"),
        finding_type=_PREDICTIONS[each.label],
        algorithm_id=_identification(algorithm),
        measurements=[_number(_PROBABILITY, each.probability, _NO_UNITS)],
        qualitative_evaluations=[
            QualitativeEvaluation(_NOT_RULED_OUT, _PREDICTIONS[label]) for label in each.prediction_set
        ],
        source_images=[_source(each.image)],
    )
    if each.flags:
        group[0].ContentSequence.append(_comment(f"Keep in mind: {', '.join(each.flags)}"))
    return group


def _left_out_groups(report: SeriesReport) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    """One group for each reason."""
    by_reason: dict[tuple[str, str], list[ImageReference]] = defaultdict(list)
    for each in report.left_out:
        by_reason[each.status, each.reason].append(each.image)
    for number, ((status, reason), images) in enumerate(by_reason.items(), 1):
        group = MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(report, f"Left out {number}"),
            qualitative_evaluations=[QualitativeEvaluation(_OUTCOME, _OUTCOMES[status])],
            source_images=[_source(image) for image in images],
        )
        group[0].ContentSequence.append(_comment(reason))
        yield group


def _tracking(report: SeriesReport, name: str) -> TrackingIdentifier:
    return TrackingIdentifier(uid=derived_uid(report.report_series, name), identifier=name)


def _identification(algorithm: Algorithm, *more: str) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=_NAME,
        version=algorithm.version,
        parameters=[f"bundle {algorithm.bundle}", *more],
    )


def _number(name: CodedConcept, value: float, unit: CodedConcept) -> Measurement:
    return Measurement(name=name, value=round(value, 6), unit=unit)


def _comment(text: str) -> TextContentItem:
    return TextContentItem(_COMMENT, text, RelationshipTypeValues.CONTAINS)


def _source(image: ImageReference) -> SourceImageForMeasurementGroup:
    frames = None if image.frame is None else [image.frame + 1]
    return SourceImageForMeasurementGroup(image.sop_class, image.sop_instance, frames)


def _evidence(header: Dataset, series: str, image: ImageReference) -> Dataset:
    """An image as the report's list of evidence needs it."""
    evidence = Dataset()
    evidence.update(header)
    evidence.SeriesInstanceUID = series
    evidence.SOPClassUID = image.sop_class
    evidence.SOPInstanceUID = image.sop_instance
    return evidence


_HEAT_MAPS_NUMBER = 9901
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
        header: what :func:`patient_and_study` gives.
        algorithm: who drew it.
    """
    captioned = _captioned(capture.picture, f"{_NAME}: {_RESEARCH_USE}. {capture.caption}")
    image = SCImage(
        pixel_array=captioned,
        photometric_interpretation="YBR_FULL_422",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # asked for here, taken back below
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=capture.series,
        series_number=_HEAT_MAPS_NUMBER,
        sop_instance_uid=derived_uid(capture.series, capture.of.sop_instance, str(capture.of.frame)),
        instance_number=capture.number,
        **_equipment(algorithm),
        series_description=f"{_NAME} heat maps: {_RESEARCH_USE}",
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
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = (
        capture.of.sop_class,
        capture.of.sop_instance,
    )
    if capture.of.frame is not None:
        source.ReferencedFrameNumber = capture.of.frame + 1
    image.SourceImageSequence = [source]
    image.DerivationDescription = (
        f"Lungs outlined, and activation map over the cropped slice. {_RESEARCH_USE}."
    )
    return image


def _captioned(picture: Picture, caption: str) -> Picture:
    """The picture above a line of text, both sides even as JPEG's halved colours want them."""
    height, width = picture.shape[:2]
    canvas = np.zeros((height + height % 2 + _CAPTION_HEIGHT, width + width % 2, 3), np.uint8)
    canvas[:height, :width] = picture
    scale = min(0.45, 0.45 * (width - 8) / max(cv2.getTextSize(caption, 0, 0.45, 1)[0][0], 1))
    origin = (4, canvas.shape[0] - _CAPTION_HEIGHT // 3)
    cv2.putText(canvas, caption, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)
    return canvas
