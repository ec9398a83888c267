"""CT series of an archive: which to classify, and what is stored for each; once, or in a polling loop."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from pydicom import Dataset
from pydicom.uid import UID

from groundglass import __version__
from groundglass.errors import ImageError, NotASliceError, PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.imaging.dicom import open_dataset, read_dicom
from groundglass.imaging.lossless import LosslessDecoder
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, MemorySource, guard
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Prediction, Status
from groundglass.inference.report import evidence_picture
from groundglass.inference.series import SERIES_SCORE, Counts, series_score, slices_in_score
from groundglass.pacs.client import Archive, InstanceEntry, SeriesEntry, StudyEntry
from groundglass.pacs.report import (
    PATIENT_AND_STUDY,
    Algorithm,
    Capture,
    ClassifiedSlice,
    ImageReference,
    LeftOutSlice,
    SeriesReport,
    derived_uid,
    patient_and_study,
    secondary_capture,
    structured_report,
)

_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_MOST_POLLS_LEFT_OUT = 64


class State(str, Enum):
    """What became of a series."""

    REPORTED = "reported"
    KNOWN = "already reported"
    GROWING = "may still be growing"
    POSTPONED = "postponed"


@dataclass(frozen=True)
class SeriesResult:
    """What became of one series.

    Attributes:
        series: its Series Instance UID.
        state: what became of it.
        counts: of its slices, where it was reported now.
        series_score: see :data:`groundglass.inference.series.SERIES_SCORE`; None where nothing was classified.
        reason: why it was postponed.
    """

    series: str
    state: State
    counts: Counts | None = None
    series_score: float | None = None
    reason: str | None = None


class SeriesProcessor:
    """Classifies series, and stores heat maps and a report beside them.

    Args:
        archive: where the images are and the results go.
        classifier: classifies slices.
        limits: what a single image may ask for.
    """

    def __init__(self, archive: Archive, classifier: Classifier, limits: Limits = DEFAULT_LIMITS) -> None:
        bundle = classifier.bundle
        self._archive, self._classifier, self._limits = archive, classifier, limits
        self._key = f"{bundle.info.id}-{bundle.precision}"
        self._algorithm = Algorithm(__version__, bundle.id, bundle.info.id, bundle.info.name)

    def report_series(self, series: str, images: int) -> str:
        """Series Instance UID of this bundle's report on a series of so many images.

        A series that has grown since its report needs another: that has another UID.
        """
        return derived_uid(series, self._key, "report", str(images))

    def process(self, series: SeriesEntry, instances: Sequence[InstanceEntry]) -> SeriesResult:
        """Classify a series and store heat maps and report; the report last, so that where it is, all is.

        Memory holds one image at a time, and nothing is written to disk.

        Args:
            series: to be classified.
            instances: all its objects.

        Raises:
            PacsRefusedError: the archive sends none of the images, or does not accept the results.
            PacsUnavailableError: the archive went away; what is missing is stored next time.
        """
        done = _Progress()
        images = [each for each in instances if "Image Storage" in UID(each.sop_class).name]
        with LosslessDecoder() as decoder:
            for image in images:
                self._process_image(done, series, image, decoder)
        if done.header is None:
            reasons = sorted({each.reason for each in done.left_out})
            raise PacsRefusedError(f"none of its images is available ({'; '.join(reasons) or 'it has none'})")
        classified = [each for _, each in sorted(done.classified, key=lambda item: item[0])]
        report = SeriesReport(
            series=series.uid,
            report_series=self.report_series(series.uid, len(instances)),
            classified=tuple(classified),
            left_out=tuple(done.left_out),
            images=tuple(ImageReference(each.sop_class, each.uid) for each in images),
            series_score=series_score([each.probability for each in classified]),
            slices_in_score=slices_in_score(len(classified)),
            series_score_note=SERIES_SCORE,
        )
        with _quiet():
            document = structured_report(report, done.header, self._algorithm)
        self._archive.store(document)
        return SeriesResult(series.uid, State.REPORTED, done.counts, report.series_score)

    def _process_image(
        self, done: _Progress, series: SeriesEntry, instance: InstanceEntry, decoder: LosslessDecoder
    ) -> None:
        """Fetch one image, classify it and store its heat maps."""
        try:
            source = MemorySource(instance.uid, self._archive.fetch(series, instance))
        except PacsRefusedError as error:
            self._leave_out(done, instance, Status.FAILED, f"not sent by the archive: {error}")
            return
        try:
            header = self._header(source, series, instance)
            done.header = done.header or header
            for ct_slice in read_dicom(source, decoder, self._limits):
                prediction = self._classifier.classify(ct_slice, evidence=True)
                done.add(ImageReference(instance.sop_class, instance.uid, prediction.frame), prediction)
                if prediction.status is Status.OK:
                    self._store_heat_map(done, series, prediction)
        except ImageError as error:
            status = Status.REFUSED if isinstance(error, NotASliceError) else Status.FAILED
            self._leave_out(done, instance, status, error.reason)

    def _leave_out(self, done: _Progress, instance: InstanceEntry, status: Status, reason: str) -> None:
        prediction = Prediction(status, instance.uid, self._classifier.bundle.id, reason=reason)
        done.add(ImageReference(instance.sop_class, instance.uid), prediction)

    def _header(self, source: MemorySource, series: SeriesEntry, instance: InstanceEntry) -> Dataset:
        """Patient and study of an image, once it is sure that it is the one that was asked for."""
        with guard(source.name, "DICOM"):
            found = open_dataset(source, self._limits, [*PATIENT_AND_STUDY, *_IDENTITY])
            received = tuple(str(found.get(keyword, "")) for keyword in _IDENTITY)
            if received != (series.study, series.uid, instance.uid):
                raise ImageError(source.name, "the archive sent another image than the one asked for")
            return patient_and_study(found)

    def _store_heat_map(self, done: _Progress, series: SeriesEntry, prediction: Prediction) -> None:
        if prediction.evidence is None or done.header is None:
            return
        capture = Capture(
            picture=evidence_picture(prediction.evidence),
            of=done.classified[-1][1].image,
            series=derived_uid(series.uid, self._key, "heat maps"),
            number=len(done.classified),
            caption=f"{prediction.label}, probability of COVID {prediction.probability:.2f}",
        )
        with _quiet():
            picture = secondary_capture(capture, done.header, self._algorithm)
        self._archive.store(picture)


@dataclass
class _Progress:
    """What is known of a series so far; no pixels."""

    counts: Counts = field(default_factory=Counts)
    classified: list[tuple[float, ClassifiedSlice]] = field(default_factory=list)
    left_out: list[LeftOutSlice] = field(default_factory=list)
    header: Dataset | None = None

    def add(self, image: ImageReference, prediction: Prediction) -> None:
        self.counts.add(prediction)
        if prediction.probability is not None and prediction.label is not None:
            found = ClassifiedSlice(
                image, prediction.probability, prediction.label, prediction.prediction_set, prediction.flags
            )
            self.classified.append((prediction.position or 0.0, found))
        else:
            reason = prediction.reason or "no reason given"
            self.left_out.append(LeftOutSlice(image, prediction.status.value, reason))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress highdicom's warnings, which quote patients' names."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Poll:
    """Goes through an archive's CT series and processes those without a report of this bundle.

    The archive itself holds what is done; nothing is kept elsewhere, so that any number of runs, one after
    another or after a crash, end in the same objects.

    Args:
        archive: to go through.
        processor: classifies and stores.
        settle: process a series only when it had as many images at the poll before.
    """

    def __init__(self, archive: Archive, processor: SeriesProcessor, *, settle: bool = False) -> None:
        self._archive, self._processor, self._settle = archive, processor, settle
        self._done: dict[str, int] = {}
        self._images: dict[str, int] = {}
        self._pauses: dict[str, _Pause] = {}

    def all(self, since: str | None = None) -> Iterator[SeriesResult]:
        """Go once through the studies with CT images.

        Args:
            since: the first day of the studies, YYYYMMDD.

        Raises:
            PacsUnavailableError: the archive is away.
        """
        for study in self._archive.studies(since):
            # Nothing was added since all its series had their reports.
            if study.images is None or self._done.get(study.uid) != study.images:
                yield from self._of_study(study)

    def study(self, uid: str) -> Iterator[SeriesResult]:
        """The CT series of one study.

        Raises:
            PacsError: the archive has no such study.
            PacsUnavailableError: the archive is away.
        """
        listed = self._archive.series(uid)
        if not listed:
            raise PacsError(f"{self._archive.url}: has no study {uid}")
        yield from self._of_series(listed)

    def forever(
        self,
        interval: float,
        since: str | None,
        on_away: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[SeriesResult]:
        """Go through the archive again and again; a server that is away is asked again at the next poll.

        Args:
            interval: seconds between polls.
            since: see :meth:`all`.
            on_away: called when the server is away.
            sleep: waits.
        """
        while True:
            try:
                yield from self.all(since)
            except PacsUnavailableError as error:
                on_away(str(error))
            sleep(interval)

    def _of_study(self, study: StudyEntry) -> Iterator[SeriesResult]:
        complete = True
        for result in self._of_series(self._archive.series(study.uid)):
            complete = complete and result.state is State.KNOWN
            yield result
        if complete and study.images is not None:
            self._done[study.uid] = study.images

    def _of_series(self, listed: list[SeriesEntry]) -> Iterator[SeriesResult]:
        present = {each.uid for each in listed}
        yield from (self._of_one(series, present) for series in listed if series.modality == "CT")

    def _of_one(self, series: SeriesEntry, present: set[str]) -> SeriesResult:
        if series.images is not None and self._has_report(series, series.images, present):
            return SeriesResult(series.uid, State.KNOWN)
        pause = self._pauses.setdefault(series.uid, _Pause())
        if pause.continues():
            return SeriesResult(series.uid, State.POSTPONED)
        instances = self._archive.instances(series)
        if self._has_report(series, len(instances), present):
            return SeriesResult(series.uid, State.KNOWN)
        if self._settle and self._images.get(series.uid) != len(instances):
            self._images[series.uid] = len(instances)
            return SeriesResult(series.uid, State.GROWING)
        try:
            result = self._processor.process(series, instances)
        except (PacsUnavailableError, PacsRefusedError) as error:
            pause.begin()
            return SeriesResult(series.uid, State.POSTPONED, reason=str(error))
        self._pauses.pop(series.uid, None)
        self._images.pop(series.uid, None)
        return result

    def _has_report(self, series: SeriesEntry, images: int, present: set[str]) -> bool:
        return self._processor.report_series(series.uid, images) in present


@dataclass
class _Pause:
    """Polls at which a series that could not be processed is left out: one, then two, then four."""

    left: int = 0
    following: int = 1

    def begin(self) -> None:
        self.left, self.following = self.following, min(2 * self.following, _MOST_POLLS_LEFT_OUT)

    def continues(self) -> bool:
        self.left -= 1
        return self.left >= 0
