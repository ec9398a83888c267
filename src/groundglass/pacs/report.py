"""What is said of a CT series as DICOM objects: a Structured Report (TID 1500, PS3.16) and heat maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sc import SCImage
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import JPEGBaseline8Bit

from groundglass import __version__
from groundglass.inference.bundle import Bundle
from groundglass.inference.calibration import Conformal, slices_in_score
from groundglass.inference.dicom_seg import NAME, RESEARCH_USE, derived_uid, equipment
from groundglass.inference.prediction import Prediction, Status
from groundglass.inference.series import SERIES_SCORE, Opacity, SeriesSummary, Totals
from groundglass.pacs.client import InstanceEntry
from groundglass.reporting.overlay import Picture

_SCHEME = "99GROUNDGLASS"


def _own(value: str, meaning: str) -> sr.CodedConcept:
    return sr.CodedConcept(value, _SCHEME, meaning)


_PREDICTIONS = {
    "COVID": sr.CodedConcept("882784691000119100", "SCT", "Pneumonia caused by SARS-CoV-2"),
    "NonCOVID": _own("NONCOVID", "Anything but COVID-19 pneumonia"),
    "uncertain": _own("UNCERTAIN", "Uncertain whether COVID-19 pneumonia"),
}

_PROBABILITY = _own("PROBABILITY", "Probability of COVID-19 pneumonia, calibrated")
_SERIES_SCORE = _own("SERIES_SCORE", "Series score: mean of the highest probabilities")
_NOT_RULED_OUT = _own("NOT_RULED_OUT", "Cannot be ruled out")
_OUTCOME = _own("OUTCOME", "Outcome of a slice")
_OUTCOMES = {
    Status.REFUSED: _own("REFUSED", "Refused: no axial lung CT slice"),
    Status.FAILED: _own("FAILED", "Failed: could not be fetched or read"),
}
_COUNTS = {
    Status.OK: _own("CLASSIFIED", "Slices classified"),
    Status.REFUSED: _own("SLICES_REFUSED", "Slices refused"),
    Status.FAILED: _own("SLICES_FAILED", "Slices failed"),
}
_SLICES_IN_SCORE = _own("SLICES_IN_SCORE", "Slices in the series score")
_OPACITY = _own("LUNG_OPACITY", "Share of the lungs that is lesion")
_LUNG_VOLUME, _LESION_VOLUME = _own("LUNG_VOLUME", "Lung volume"), _own("LESION_VOLUME", "Lesion volume")
_PERCENT, _MILLILITRE = sr.CodedConcept("%", "UCUM", "percent"), sr.CodedConcept("mL", "UCUM", "millilitre")
_SLICES = sr.CodedConcept("{slices}", "UCUM", "slices")
_NO_UNITS = sr.CodedConcept("1", "UCUM", "no units")
_CT_CHEST = sr.CodedConcept("24627-2", "LN", "CT Chest")

_WARNING = (
    "Research use only. Made by software without a person's review; it is no diagnosis and must not be used "
    "for decisions about a patient."
)
_HEAT_MAPS_NUMBER, _REPORT_NUMBER = 9901, 9902
_CAPTION_HEIGHT = 28


class ReportedSlice(NamedTuple):
    """An image of the archive, or the frame of it that the prediction names, and its prediction."""

    image: InstanceEntry
    prediction: Prediction

    @property
    def classified(self) -> bool:
        """Whether it has a probability and a label."""
        return self.prediction.probability is not None and self.prediction.label is not None


@dataclass(frozen=True)
class SeriesReport:
    """Everything that is said of one series."""

    series: str  # its Series Instance UID
    report_series: str  # that of the report
    images: tuple[InstanceEntry, ...]
    slices: tuple[ReportedSlice, ...]  # and what could not be read, in the order of reading; at least one
    rule: Conformal | None = None  # from the series score to a label, where the bundle has one

    @cached_property
    def summary(self) -> SeriesSummary:
        """What the slices say together; they are one series, whatever their headers say."""
        of_one = (replace(each.prediction, study=None, series=self.series, stack=None) for each in self.slices)
        return Totals(self.rule, of_one).summaries()[0]


def structured_report(report: SeriesReport, header: Dataset, bundle: Bundle) -> Dataset:
    """The report as an Enhanced SR object, preliminary and unverified.

    A group of measurements says how many slices were classified, refused and failed, and the series score; then each
    classified slice, in its order along the body, has a group with its coded prediction, its probability and a
    reference to it; then the slices left out, by reason. A series in which nothing was classified has no prediction.

    Args:
        report: what to say.
        header: what :func:`groundglass.inference.dicom_seg.patient_and_study` gives.
        bundle: that made the predictions.
    """
    classified = [each for each in report.slices if each.classified]
    classified.sort(key=lambda each: each.prediction.position or 0.0)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", bundle.id),
        name=NAME,
        manufacturer_name=NAME,
        model_name=bundle.info.name,
        serial_number=bundle.id,
    )
    slices = (_slice_group(report, number, each, bundle) for number, each in enumerate(classified, 1))
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=_CT_CHEST,
        imaging_measurements=[_series_group(report, bundle), *slices, *_left_out_groups(report)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    _add_comment(content, _WARNING)
    scheme = CodingSchemeIdentificationItem(
        designator=_SCHEME, name=NAME, responsible_organization="The groundglass maintainers"
    )
    return sr.EnhancedSR(
        evidence=[_evidence(header, report.series, image) for image in report.images],
        content=content[0],
        series_instance_uid=report.report_series,
        series_number=_REPORT_NUMBER,
        series_description=f"{NAME}: {RESEARCH_USE}",
        sop_instance_uid=derived_uid(report.report_series, "report"),
        instance_number=1,
        **equipment(bundle),
        is_complete=True,
        is_final=False,
        coding_schemes=[scheme],
    )


def _identification(bundle: Bundle, *more: str) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(NAME, __version__, parameters=[f"bundle {bundle.id}", *more])


def _series_group(report: SeriesReport, bundle: Bundle) -> sr.MeasurementsAndQualitativeEvaluations:
    """Counts, series score and, where the bundle has a rule for it, the label of the series."""
    summary, comment = report.summary, "No slice could be classified; there is no prediction."
    measurements = [_number(name, getattr(summary.counts, status.value), _SLICES) for status, name in _COUNTS.items()]
    if summary.series_score is not None:
        in_score = slices_in_score(summary.counts.ok)
        measurements.insert(0, _number(_SERIES_SCORE, summary.series_score, _NO_UNITS))
        measurements += [_number(_SLICES_IN_SCORE, in_score, _SLICES), *_opacity(summary.opacity)]
        comment = SERIES_SCORE
        if summary.interval is not None:
            comment += " 95 % interval over its slices {:.3f} to {:.3f}.".format(*summary.interval)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(report, "Series"),
        finding_type=None if summary.label is None else _PREDICTIONS[summary.label],
        algorithm_id=_identification(bundle, f"model {bundle.info.name}", f"bundle SHA-256 {bundle.info.id}"),
        measurements=measurements,
    )
    return _add_comment(group, comment)


def _opacity(opacity: Opacity | None) -> Iterator[sr.Measurement]:
    if opacity is not None:
        yield _number(_OPACITY, opacity.percent, _PERCENT)
        if opacity.lung_ml is not None and opacity.lesion_ml is not None:
            yield _number(_LUNG_VOLUME, opacity.lung_ml, _MILLILITRE)
            yield _number(_LESION_VOLUME, opacity.lesion_ml, _MILLILITRE)


def _slice_group(
    report: SeriesReport, number: int, each: ReportedSlice, bundle: Bundle
) -> sr.MeasurementsAndQualitativeEvaluations:
    prediction = each.prediction
    opacity = None if prediction.opacity is None else Opacity(prediction.opacity)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(report, f"Slice {number}"),
        finding_type=_PREDICTIONS[str(prediction.label)],
        algorithm_id=_identification(bundle),
        measurements=[_number(_PROBABILITY, prediction.probability or 0.0, _NO_UNITS), *_opacity(opacity)],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_NOT_RULED_OUT, _PREDICTIONS[label]) for label in prediction.prediction_set
        ],
        source_images=[_source(each)],
    )
    flags = ", ".join(prediction.flags)
    return _add_comment(group, f"Keep in mind: {flags}") if flags else group


def _left_out_groups(report: SeriesReport) -> Iterator[sr.MeasurementsAndQualitativeEvaluations]:
    """One group for each reason."""
    by_reason: dict[tuple[Status, str], list[sr.SourceImageForMeasurementGroup]] = {}
    for each in report.slices:
        if not each.classified:
            reason = each.prediction.reason or "no reason given"
            by_reason.setdefault((each.prediction.status, reason), []).append(_source(each))
    for number, ((status, reason), sources) in enumerate(by_reason.items(), 1):
        group = sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(report, f"Left out {number}"),
            qualitative_evaluations=[sr.QualitativeEvaluation(_OUTCOME, _OUTCOMES[status])],
            source_images=sources,
        )
        yield _add_comment(group, reason)


_Content = TypeVar("_Content", sr.MeasurementsAndQualitativeEvaluations, sr.MeasurementReport)


def _add_comment(content: _Content, text: str) -> _Content:
    content[0].ContentSequence.append(sr.TextContentItem(codes.DCM.Comment, text, sr.RelationshipTypeValues.CONTAINS))
    return content


def _tracking(report: SeriesReport, name: str) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uid=derived_uid(report.report_series, name), identifier=name)


def _number(name: sr.CodedConcept, value: float, unit: sr.CodedConcept) -> sr.Measurement:
    return sr.Measurement(name=name, value=round(value, 6), unit=unit)


def _source(each: ReportedSlice) -> sr.SourceImageForMeasurementGroup:
    frame = each.prediction.frame
    frames = None if frame is None else [frame + 1]
    return sr.SourceImageForMeasurementGroup(each.image.sop_class, each.image.uid, frames)


def _evidence(header: Dataset, series: str, image: InstanceEntry) -> Dataset:
    """An image as the report's list of evidence needs it."""
    evidence = Dataset()
    evidence.update(header)
    evidence.SeriesInstanceUID = series
    evidence.SOPClassUID, evidence.SOPInstanceUID = image.sop_class, image.uid
    return evidence


def secondary_capture(
    picture: Picture, of: ReportedSlice, header: Dataset, bundle: Bundle, *, series: str, number: int
) -> Dataset:
    """The picture (H, W, 3) of a classified slice with a caption, as a Secondary Capture image, JPEG baseline.

    It is the ``number``-th, from 1, of the ``series`` of heat maps; for the header see :func:`structured_report`.
    """
    shown, prediction = of.image, of.prediction
    opacity = "" if prediction.opacity is None else f", lung opacity {prediction.opacity:.1f} %"
    result = f"{prediction.label}, probability of COVID {prediction.probability:.2f}{opacity}"
    captioned = _captioned(picture, f"{NAME}: {RESEARCH_USE}. {result}")
    image = SCImage.from_ref_dataset(
        header,
        captioned,
        photometric_interpretation="YBR_FULL_422",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # highdicom asks for it; taken back below
        series_instance_uid=series,
        series_number=_HEAT_MAPS_NUMBER,
        sop_instance_uid=derived_uid(series, shown.uid, str(prediction.frame)),
        instance_number=number,
        **equipment(bundle),
        series_description=f"{NAME} heat maps: {RESEARCH_USE}",
        transfer_syntax_uid=JPEGBaseline8Bit,
    )
    image.update(header)
    # Two views side by side have no orientation of their own.
    image.PatientOrientation = []
    image.BodyPartExamined = "CHEST"
    image.LossyImageCompression = "01"
    image.LossyImageCompressionRatio = f"{captioned.nbytes / len(image.PixelData):.2f}"
    image.LossyImageCompressionMethod = "ISO_10918_1"
    image.DerivationDescription = f"The slice, and beside it its lungs and lesions outlined. {RESEARCH_USE}."
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = shown.sop_class, shown.uid
    if prediction.frame is not None:
        source.ReferencedFrameNumber = prediction.frame + 1
    image.SourceImageSequence = [source]
    return image


def _captioned(picture: Picture, caption: str) -> Picture:
    """The picture above a line of text, both sides even as JPEG's halved colours want them."""
    height, width = picture.shape[:2]
    canvas = np.zeros((height + height % 2 + _CAPTION_HEIGHT, width + width % 2, 3), np.uint8)
    canvas[:height, :width] = picture
    scale = min(0.45, 0.45 * (width - 8) / max(cv2.getTextSize(caption, 0, 0.45, 1)[0][0], 1))
    origin = (4, canvas.shape[0] - _CAPTION_HEIGHT // 3)
    cv2.putText(canvas, caption, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas
