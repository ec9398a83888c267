"""What is said of a CT series as a DICOM Structured Report, TID 1500 Measurement Report (DICOM PS3.16)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from highdicom.sr import (
    AlgorithmIdentification,
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

from groundglass.reporting import dicom_codes as terms
from groundglass.reporting.dicom_study import derived_uid

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

NAME = "groundglass"
RESEARCH_USE = "Research use only, no diagnosis"
_WARNING = (
    "Research use only. Made by software without a person's review; it is no diagnosis and must not be used "
    "for decisions about a patient."
)
_SERIES_NUMBER = 9902


@dataclass(frozen=True)
class Algorithm:
    """Who made an answer.

    Attributes:
        version: of groundglass.
        bundle: short id of the trained model, as findings have it.
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
    """A slice that was judged.

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
    """A slice, or a file, that was not judged.

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
        classified: slices that were judged, in their order along the body.
        left_out: slices that were not.
        images: every image of the series.
        study_score: see ``study_score_note``; None where nothing was classified.
        slices_in_score: how many slices it is the mean of.
        study_score_note: what the score is, in words.
    """

    series: str
    report_series: str
    classified: tuple[ClassifiedSlice, ...]
    left_out: tuple[LeftOutSlice, ...]
    images: tuple[ImageReference, ...]
    study_score: float | None
    slices_in_score: int
    study_score_note: str


def structured_report(report: SeriesReport, header: Dataset, algorithm: Algorithm) -> Dataset:
    """The report as an Enhanced SR object.

    It is preliminary and unverified. A group of measurements says how many slices were classified, refused
    and failed, and the study score; then each classified slice has a group with its coded finding, its
    probability and a reference to it; then the slices left out, by reason. A series in which nothing was
    classified has no finding.

    Args:
        report: what to say.
        header: of :func:`groundglass.reporting.dicom_study.patient_and_study`.
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
        procedure_reported=terms.CT_CHEST,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(_text(_WARNING))
    return EnhancedSR(
        evidence=[_evidence(header, report.series, image) for image in report.images],
        content=content[0],
        series_instance_uid=report.report_series,
        series_number=_SERIES_NUMBER,
        series_description=f"{NAME}: {RESEARCH_USE}",
        sop_instance_uid=derived_uid(report.report_series, "report"),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=algorithm.model[:64],
        device_serial_number=algorithm.bundle,
        software_versions=algorithm.version,
        is_complete=True,
        is_final=False,
        coding_schemes=[terms.coding_scheme()],
    )


def _device(algorithm: Algorithm) -> DeviceObserverIdentifyingAttributes:
    return DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", algorithm.bundle),
        name=NAME,
        manufacturer_name=NAME,
        model_name=algorithm.model,
        serial_number=algorithm.bundle,
    )


def _series_group(report: SeriesReport, algorithm: Algorithm) -> MeasurementsAndQualitativeEvaluations:
    """Counts and study score; no finding, since there is no threshold on the score."""
    status = [each.status for each in report.left_out]
    counts = {
        "classified": len(report.classified),
        "refused": status.count("refused"),
        "failed": status.count("failed"),
    }
    measurements = []
    if report.study_score is not None:
        measurements.append(_number(terms.STUDY_SCORE, report.study_score, terms.NO_UNITS))
        counts["in_score"] = report.slices_in_score
    measurements += [_number(terms.COUNTS[name], count, terms.SLICES) for name, count in counts.items()]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(report, "Series"),
        algorithm_id=_identification(
            algorithm, f"model {algorithm.model}", f"bundle SHA-256 {algorithm.bundle_hash}"
        ),
        measurements=measurements,
    )
    if report.study_score is None:
        group[0].ContentSequence.append(_text("No slice could be judged; there is no finding."))
    else:
        group[0].ContentSequence.append(_text(report.study_score_note))
    return group


def _slice_group(
    report: SeriesReport, number: int, each: ClassifiedSlice, algorithm: Algorithm
) -> MeasurementsAndQualitativeEvaluations:
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(report, f"Slice {number}"),
        finding_type=terms.FINDINGS[each.label],
        algorithm_id=_identification(algorithm),
        measurements=[_number(terms.PROBABILITY, each.probability, terms.NO_UNITS)],
        qualitative_evaluations=[
            QualitativeEvaluation(terms.NOT_RULED_OUT, terms.FINDINGS[label]) for label in each.prediction_set
        ],
        source_images=[_source(each.image)],
    )
    if each.flags:
        group[0].ContentSequence.append(_text(f"Keep in mind: {', '.join(each.flags)}"))
    return group


def _left_out_groups(report: SeriesReport) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    """One group for each reason."""
    by_reason: dict[tuple[str, str], list[ImageReference]] = defaultdict(list)
    for each in report.left_out:
        by_reason[each.status, each.reason].append(each.image)
    for number, ((status, reason), images) in enumerate(by_reason.items(), 1):
        group = MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(report, f"Left out {number}"),
            qualitative_evaluations=[QualitativeEvaluation(terms.OUTCOME, terms.OUTCOMES[status])],
            source_images=[_source(image) for image in images],
        )
        group[0].ContentSequence.append(_text(reason))
        yield group


def _tracking(report: SeriesReport, name: str) -> TrackingIdentifier:
    return TrackingIdentifier(uid=derived_uid(report.report_series, name), identifier=name)


def _identification(algorithm: Algorithm, *more: str) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=NAME,
        version=algorithm.version,
        parameters=[f"bundle {algorithm.bundle}", *more],
    )


def _number(name: CodedConcept, value: float, unit: CodedConcept) -> Measurement:
    return Measurement(name=name, value=round(value, 6), unit=unit)


def _text(text: str) -> TextContentItem:
    return TextContentItem(terms.COMMENT, text, RelationshipTypeValues.CONTAINS)


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
