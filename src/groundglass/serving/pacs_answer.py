"""One series of an archive, judged and answered: heat maps slice by slice, then the report."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom import Dataset
from pydicom.uid import UID

from groundglass import __version__
from groundglass.errors import ImageError, NotASliceError, PacsRefusedError
from groundglass.imaging.dicom import open_dataset, read_dicom
from groundglass.imaging.guard import guard
from groundglass.imaging.limits import DEFAULT_LIMITS, Limits
from groundglass.imaging.lossless import LosslessDecoder
from groundglass.imaging.source import MemorySource, Source
from groundglass.inference.classifier import Classifier
from groundglass.inference.finding import Finding, Status
from groundglass.inference.pictures import evidence_picture
from groundglass.inference.study import STUDY_SCORE, Counts, slices_in_score, study_score
from groundglass.reporting.dicom_capture import Capture, secondary_capture
from groundglass.reporting.dicom_sr import (
    Algorithm,
    ClassifiedSlice,
    ImageReference,
    LeftOutSlice,
    SeriesReport,
    structured_report,
)
from groundglass.reporting.dicom_study import PATIENT_AND_STUDY, derived_uid, patient_and_study
from groundglass.serving.dicomweb import Archive, InstanceEntry, SeriesEntry

_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass(frozen=True)
class SeriesAnswer:
    """What was answered.

    Attributes:
        counts: of the slices.
        study_score: see :data:`groundglass.inference.study.STUDY_SCORE`; None where nothing was classified.
    """

    counts: Counts
    study_score: float | None


@dataclass
class _Told:
    """What is known of a series so far; no pixels."""

    counts: Counts = field(default_factory=Counts)
    classified: list[tuple[float, ClassifiedSlice]] = field(default_factory=list)
    left_out: list[LeftOutSlice] = field(default_factory=list)
    header: Dataset | None = None
    pictures: int = 0

    def add(self, image: ImageReference, finding: Finding, height: float) -> None:
        self.counts.add(finding)
        if finding.status is Status.OK and finding.probability is not None and finding.label is not None:
            self.classified.append(
                (
                    height,
                    ClassifiedSlice(
                        image, finding.probability, finding.label, finding.prediction_set, finding.flags
                    ),
                )
            )
        else:
            self.left_out.append(
                LeftOutSlice(image, finding.status.value, finding.reason or "no reason given")
            )


class Answerer:
    """Judges series and stores what it has to say beside them.

    Args:
        archive: where the images are and the answers go.
        classifier: judges slices.
        limits: what a single image may ask for.
    """

    def __init__(self, archive: Archive, classifier: Classifier, limits: Limits = DEFAULT_LIMITS) -> None:
        bundle = classifier.bundle
        self._archive = archive
        self._classifier = classifier
        self._limits = limits
        self._key = f"{bundle.info.id}-{bundle.precision}"
        self._algorithm = Algorithm(__version__, bundle.id, bundle.info.id, bundle.info.name)

    def report_series(self, series: str, images: int) -> str:
        """Series Instance UID of this bundle's report on a series of so many images.

        A series that has grown since its answer is another question: its report has another UID.
        """
        return derived_uid(series, self._key, "report", str(images))

    def pictures_series(self, series: str) -> str:
        """Series Instance UID of this bundle's heat maps of a series."""
        return derived_uid(series, self._key, "heat maps")

    def answer(self, series: SeriesEntry, instances: Sequence[InstanceEntry]) -> SeriesAnswer:
        """Judge a series and store heat maps and report; the report last, so that where it is, all is.

        Memory holds one image at a time, and nothing is written to disk.

        Args:
            series: to be judged.
            instances: all its objects.

        Raises:
            PacsRefusedError: the archive gives none of the images, or does not take the answer.
            PacsUnavailableError: the archive went away; what is missing is stored next time.
        """
        told = _Told()
        images = [each for each in instances if is_image(each)]
        with LosslessDecoder() as decoder:
            for image in images:
                self._take(told, series, image, decoder)
        if told.header is None:
            reasons = sorted({each.reason for each in told.left_out})
            raise PacsRefusedError(f"none of its images can be had ({'; '.join(reasons) or 'it has none'})")
        report = self._report(told, series, instances, images)
        with quiet():
            document = structured_report(report, told.header, self._algorithm)
        self._archive.store(document)
        return SeriesAnswer(told.counts, report.study_score)

    def _take(
        self, told: _Told, series: SeriesEntry, instance: InstanceEntry, decoder: LosslessDecoder
    ) -> None:
        """Fetch one image, judge it and store its heat maps."""
        try:
            source = MemorySource(instance.uid, self._archive.fetch(series, instance))
        except PacsRefusedError as error:
            self._leave_out(told, instance, Status.FAILED, f"not given by the archive: {error}")
            return
        try:
            header = self._header(source, series, instance)
            told.header = told.header or header
            for finding in self._findings(source, decoder):
                self._tell(told, series, instance, finding)
        except ImageError as error:
            status = Status.REFUSED if isinstance(error, NotASliceError) else Status.FAILED
            self._leave_out(told, instance, status, error.reason)

    def _leave_out(self, told: _Told, instance: InstanceEntry, status: Status, reason: str) -> None:
        image = ImageReference(instance.sop_class, instance.uid)
        finding = Finding(status, instance.uid, self._classifier.bundle.id, reason=reason)
        told.add(image, finding, 0.0)

    def _header(self, source: Source, series: SeriesEntry, instance: InstanceEntry) -> Dataset:
        """Patient and study of an image, once it is sure that it is the one that was asked for."""
        with guard(source.name, "DICOM"):
            found = open_dataset(source, self._limits, [*PATIENT_AND_STUDY, *_IDENTITY])
            given = tuple(str(found.get(keyword, "")) for keyword in _IDENTITY)
            if given != (series.study, series.uid, instance.uid):
                raise ImageError(source.name, "the archive gave another image than the one asked for")
            return patient_and_study(found)

    def _findings(self, source: Source, decoder: LosslessDecoder) -> Iterator[Finding]:
        for ct_slice in read_dicom(source, decoder, self._limits):
            yield from self._classifier.predict_slices([ct_slice], evidence=True)

    def _tell(self, told: _Told, series: SeriesEntry, instance: InstanceEntry, finding: Finding) -> None:
        image = ImageReference(instance.sop_class, instance.uid, finding.frame)
        told.add(image, finding, finding.position or 0.0)
        if finding.status is not Status.OK or finding.evidence is None or told.header is None:
            return
        told.pictures += 1
        capture = Capture(
            evidence_picture(finding.evidence),
            image,
            self.pictures_series(series.uid),
            told.pictures,
            f"{finding.label}, probability of COVID {finding.probability:.2f}",
        )
        with quiet():
            picture = secondary_capture(capture, told.header, self._algorithm)
        self._archive.store(picture)

    def _report(
        self,
        told: _Told,
        series: SeriesEntry,
        instances: Sequence[InstanceEntry],
        images: Sequence[InstanceEntry],
    ) -> SeriesReport:
        classified = [each for _, each in sorted(told.classified, key=lambda item: item[0])]
        return SeriesReport(
            series=series.uid,
            report_series=self.report_series(series.uid, len(instances)),
            classified=tuple(classified),
            left_out=tuple(told.left_out),
            images=tuple(ImageReference(each.sop_class, each.uid) for each in images),
            study_score=study_score([each.probability for each in classified]),
            slices_in_score=slices_in_score(len(classified)),
            study_score_note=STUDY_SCORE,
        )


def is_image(instance: InstanceEntry) -> bool:
    """Whether an object of a CT series is an image, and no report or presentation state."""
    return "Image Storage" in UID(instance.sop_class).name


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what highdicom warns of to itself: it quotes patients' names."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
