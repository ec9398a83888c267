"""An archive gone through once, or watched: which series to judge, which to skip, which to put off.

One series of an archive, judged and answered: heat maps slice by slice, then the report.
"""

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
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, MemorySource, Source, guard
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


@dataclass(frozen=True)
class SeriesAnswer:
    """What was answered.

    Attributes:
        counts: of the slices.
        series_score: see :data:`groundglass.inference.series.SERIES_SCORE`; None where nothing was classified.
    """

    counts: Counts
    series_score: float | None


@dataclass
class _Told:
    """What is known of a series so far; no pixels."""

    counts: Counts = field(default_factory=Counts)
    classified: list[tuple[float, ClassifiedSlice]] = field(default_factory=list)
    left_out: list[LeftOutSlice] = field(default_factory=list)
    header: Dataset | None = None
    pictures: int = 0

    def add(self, image: ImageReference, prediction: Prediction, height: float) -> None:
        self.counts.add(prediction)
        if (
            prediction.status is Status.OK
            and prediction.probability is not None
            and prediction.label is not None
        ):
            self.classified.append(
                (
                    height,
                    ClassifiedSlice(
                        image,
                        prediction.probability,
                        prediction.label,
                        prediction.prediction_set,
                        prediction.flags,
                    ),
                )
            )
        else:
            self.left_out.append(
                LeftOutSlice(image, prediction.status.value, prediction.reason or "no reason given")
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
        return SeriesAnswer(told.counts, report.series_score)

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
            for prediction in self._predictions(source, decoder):
                self._tell(told, series, instance, prediction)
        except ImageError as error:
            status = Status.REFUSED if isinstance(error, NotASliceError) else Status.FAILED
            self._leave_out(told, instance, status, error.reason)

    def _leave_out(self, told: _Told, instance: InstanceEntry, status: Status, reason: str) -> None:
        image = ImageReference(instance.sop_class, instance.uid)
        prediction = Prediction(status, instance.uid, self._classifier.bundle.id, reason=reason)
        told.add(image, prediction, 0.0)

    def _header(self, source: Source, series: SeriesEntry, instance: InstanceEntry) -> Dataset:
        """Patient and study of an image, once it is sure that it is the one that was asked for."""
        with guard(source.name, "DICOM"):
            found = open_dataset(source, self._limits, [*PATIENT_AND_STUDY, *_IDENTITY])
            given = tuple(str(found.get(keyword, "")) for keyword in _IDENTITY)
            if given != (series.study, series.uid, instance.uid):
                raise ImageError(source.name, "the archive gave another image than the one asked for")
            return patient_and_study(found)

    def _predictions(self, source: Source, decoder: LosslessDecoder) -> Iterator[Prediction]:
        for ct_slice in read_dicom(source, decoder, self._limits):
            yield from self._classifier.predict_slices([ct_slice], evidence=True)

    def _tell(
        self, told: _Told, series: SeriesEntry, instance: InstanceEntry, prediction: Prediction
    ) -> None:
        image = ImageReference(instance.sop_class, instance.uid, prediction.frame)
        told.add(image, prediction, prediction.position or 0.0)
        if prediction.status is not Status.OK or prediction.evidence is None or told.header is None:
            return
        told.pictures += 1
        capture = Capture(
            evidence_picture(prediction.evidence),
            image,
            self.pictures_series(series.uid),
            told.pictures,
            f"{prediction.label}, probability of COVID {prediction.probability:.2f}",
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
            series_score=series_score([each.probability for each in classified]),
            slices_in_score=slices_in_score(len(classified)),
            series_score_note=SERIES_SCORE,
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


_MOST_POLLS_LEFT_OUT = 64


class State(str, Enum):
    """What became of a series."""

    ANSWERED = "answered"
    KNOWN = "already answered"
    GROWING = "may still be growing"
    PUT_OFF = "put off"


@dataclass(frozen=True)
class RunResult:
    """What became of one series.

    Attributes:
        series: its Series Instance UID.
        state: what became of it.
        answer: what was answered, now.
        reason: why it was put off.
    """

    series: str
    state: State
    answer: SeriesAnswer | None = None
    reason: str | None = None


class Rounds:
    """Goes through an archive's CT series and answers those without an answer of this bundle.

    The archive itself holds what is done; nothing is kept elsewhere, so that any number of runs, one after
    another or after a crash, end in the same objects.

    Args:
        archive: to go through.
        answerer: judges and stores.
        settle: judge a series only when it had as many images in the round before.
    """

    def __init__(self, archive: Archive, answerer: Answerer, *, settle: bool = False) -> None:
        self._archive = archive
        self._answerer = answerer
        self._settle = settle
        self._done: dict[str, int] = {}
        self._images: dict[str, int] = {}
        self._rests: dict[str, _Rest] = {}

    def all(self, since: str | None = None) -> Iterator[RunResult]:
        """One round through the studies with CT images.

        Args:
            since: the first day of the studies, YYYYMMDD.

        Raises:
            PacsUnavailableError: the archive is away.
        """
        for study in self._archive.studies(since):
            # Nothing was added since all its series had their answers.
            if study.images is None or self._done.get(study.uid) != study.images:
                yield from self._of_study(study)

    def study(self, uid: str) -> Iterator[RunResult]:
        """The CT series of one study.

        Raises:
            PacsError: the archive has no such study.
            PacsUnavailableError: the archive is away.
        """
        listed = self._archive.series(uid)
        if not listed:
            raise PacsError(f"{self._archive.url}: has no study {uid}")
        yield from self._of_series(listed)

    def _of_study(self, study: StudyEntry) -> Iterator[RunResult]:
        complete = True
        for outcome in self._of_series(self._archive.series(study.uid)):
            complete = complete and outcome.state is State.KNOWN
            yield outcome
        if complete and study.images is not None:
            self._done[study.uid] = study.images

    def _of_series(self, listed: list[SeriesEntry]) -> Iterator[RunResult]:
        present = {each.uid for each in listed}
        for series in listed:
            if series.modality == "CT":
                yield self._of_one(series, present)

    def _of_one(self, series: SeriesEntry, present: set[str]) -> RunResult:
        if series.images is not None and self._has_answer(series, series.images, present):
            return RunResult(series.uid, State.KNOWN)
        rest = self._rests.setdefault(series.uid, _Rest())
        if rest.goes_on():
            return RunResult(series.uid, State.PUT_OFF)
        instances = self._archive.instances(series)
        if self._has_answer(series, len(instances), present):
            return RunResult(series.uid, State.KNOWN)
        if self._settle and self._images.get(series.uid) != len(instances):
            self._images[series.uid] = len(instances)
            return RunResult(series.uid, State.GROWING)
        try:
            answer = self._answerer.answer(series, instances)
        except (PacsUnavailableError, PacsRefusedError) as error:
            rest.begin()
            return RunResult(series.uid, State.PUT_OFF, reason=str(error))
        for memory in (self._rests, self._images):
            memory.pop(series.uid, None)
        return RunResult(series.uid, State.ANSWERED, answer)

    def _has_answer(self, series: SeriesEntry, images: int, present: set[str]) -> bool:
        return self._answerer.report_series(series.uid, images) in present


@dataclass
class _Rest:
    """Rounds in which a series that could not be answered is left alone: one, then two, then four."""

    left: int = 0
    following: int = 1

    def begin(self) -> None:
        self.left, self.following = self.following, min(2 * self.following, _MOST_POLLS_LEFT_OUT)

    def goes_on(self) -> bool:
        self.left -= 1
        return self.left >= 0


def watch(
    rounds: Rounds,
    interval: float,
    since: str | None,
    on_away: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[RunResult]:
    """Go round for ever; a server that is away is asked again in the next round.

    Args:
        rounds: with ``settle``, since series may arrive at any time.
        interval: seconds between rounds.
        since: see :meth:`Rounds.all`.
        on_away: told that the server is away.
        sleep: waits.
    """
    while True:
        try:
            yield from rounds.all(since)
        except PacsUnavailableError as error:
            on_away(str(error))
        sleep(interval)
