"""CT series of an archive: which to classify, and what is stored for each; once, or in a polling loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from pydicom import Dataset
from pydicom.uid import UID

from groundglass.errors import ImageError, NotASliceError, PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.dicom import open_dataset, read_dicom
from groundglass.imaging.source import DEFAULT_LIMITS, MemorySource, guard, guard_each
from groundglass.inference.classifier import Classifier
from groundglass.inference.dicom_seg import OF_SOURCE, derived_uid, patient_and_study, segmentation
from groundglass.inference.prediction import PackedMasks, Prediction, Status
from groundglass.inference.report import evidence_picture
from groundglass.inference.series import SeriesSummary
from groundglass.pacs.client import Archive, InstanceEntry, SeriesEntry
from groundglass.pacs.report import ReportedSlice, SeriesReport, secondary_capture, structured_report

_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_MOST_POLLS_LEFT_OUT = 64
"""Most polls at which a series that could not be processed is left out: one, then two, then four."""


class State(str, Enum):
    """What became of a series."""

    REPORTED = "reported"
    KNOWN = "already reported"
    GROWING = "may still be growing"
    POSTPONED = "postponed"


@dataclass(frozen=True)
class SeriesResult:
    """What became of one series."""

    series: str  # its Series Instance UID
    state: State
    summary: SeriesSummary | None = None  # what its slices say, where it was reported now
    reason: str | None = None  # why it was postponed


class SeriesProcessor:
    """Classifies series of an archive, and stores heat maps, masks and a report beside them."""

    def __init__(self, archive: Archive, classifier: Classifier) -> None:
        self._archive, self._classifier, self._bundle = archive, classifier, classifier.bundle
        self._key = f"{self._bundle.info.id}-{self._bundle.info.precision}"

    def report_series(self, series: str, images: int) -> str:
        """Series Instance UID of this bundle's report; a series that has grown since needs another."""
        return derived_uid(series, self._key, "report", str(images))

    def process(self, series: SeriesEntry, instances: Sequence[InstanceEntry]) -> SeriesSummary:
        """Classify a series and store heat maps, masks and report; the report last, so that where it is, all is.

        Memory holds one image at a time and the masks of all, a bit a pixel; nothing is written to disk.

        Raises:
            PacsRefusedError: the archive sends none of the images, or does not accept the results.
            PacsUnavailableError: the archive went away; what is missing is stored next time.
        """
        images = tuple(each for each in instances if "Image Storage" in UID(each.sop_class).name)
        heat_maps = derived_uid(series.uid, self._key, "heat maps")
        patient, shown, slices = None, 0, list[ReportedSlice]()
        headers, masks = list[Dataset](), list[PackedMasks]()
        for image, header, prediction in self._predictions(series, images):
            patient = patient or (header and patient_and_study(header))
            slices.append(ReportedSlice(image, replace(prediction, evidence=None)))
            if header is None or patient is None or prediction.evidence is None:
                continue
            headers.append(header)
            masks.append(PackedMasks.of(prediction.evidence))
            if slices[-1].classified:
                shown += 1
                picture = evidence_picture(prediction.evidence)
                number = min(max(prediction.slice_number or shown, 1), 2**31 - 1)
                capture = secondary_capture(picture, slices[-1], patient, self._bundle, series=heat_maps, number=number)
                self._archive.store(capture)
        if patient is None:
            reasons = sorted({each.prediction.reason or "" for each in slices})
            raise PacsRefusedError(f"none of its images is available ({'; '.join(reasons) or 'it has none'})")
        if shown and (seg := segmentation(headers, masks, self._bundle)) is not None:
            self._archive.store(seg)
        made = self.report_series(series.uid, len(instances))
        report = SeriesReport(series.uid, made, images, tuple(slices), self._bundle.info.series)
        self._archive.store(structured_report(report, patient, self._bundle))
        return report.summary

    def _predictions(
        self, series: SeriesEntry, images: Sequence[InstanceEntry]
    ) -> Iterator[tuple[InstanceEntry, Dataset | None, Prediction]]:
        """Every image, its header where it could be read, and a prediction for each of its slices."""
        with FrameDecoder() as decoder:
            for image in images:
                header, status = None, Status.FAILED
                try:
                    source = MemorySource(image.uid, self._archive.fetch(series, image))
                    with guard(image.uid, "DICOM"):
                        received = open_dataset(source, DEFAULT_LIMITS, [*OF_SOURCE, *_IDENTITY])
                        if [str(received.get(each, "")) for each in _IDENTITY] != [series.study, series.uid, image.uid]:
                            raise ImageError(image.uid, "the archive sent another image than the one asked for")
                    header = received
                    for ct_slice in guard_each(read_dicom(source, decoder, DEFAULT_LIMITS), image.uid, "DICOM"):
                        yield image, header, self._classifier.classify(ct_slice, evidence=True)
                    continue
                except PacsRefusedError as error:
                    reason = f"not sent by the archive: {error}"
                except NotASliceError as error:
                    status, reason = Status.REFUSED, error.reason
                except ImageError as error:
                    reason = error.reason
                yield image, header, Prediction(status, image.uid, self._bundle.id, reason=reason)


@dataclass
class _Seen:
    """What is remembered of a series: its images at the poll before, and polls for which it is left out."""

    images: int | None = None
    left_out: int = 0
    next_pause: int = 1


class Poll:
    """Goes through an archive's CT series and processes those without a report of this bundle.

    The archive itself holds what is done; nothing is kept elsewhere, so that any number of runs, one after
    another or after a crash, end in the same objects. To ``settle`` is to process a series only when it had as many
    images at the poll before.
    """

    def __init__(self, archive: Archive, processor: SeriesProcessor, *, settle: bool = False) -> None:
        self._archive, self._processor, self._settle = archive, processor, settle
        self._complete: dict[str, int] = {}
        self._seen: dict[tuple[str, str], _Seen] = {}

    def all(self, since: str | None = None) -> Iterator[SeriesResult]:
        """Go once through the studies with CT images, from the day ``since`` (YYYYMMDD) on.

        Raises:
            PacsUnavailableError: the archive is away.
        """
        for study in self._archive.studies(since):
            if study.images is not None and self._complete.get(study.uid) == study.images:
                continue  # nothing was added since all its series had their reports
            try:
                listed = self._archive.series(study.uid)
            except (PacsUnavailableError, PacsRefusedError) as error:
                yield SeriesResult(study.uid or "a study", State.POSTPONED, reason=str(error))
                continue
            known = True
            for result in self._results(listed):
                known &= result.state is State.KNOWN
                yield result
            if study.images is not None and known:
                self._complete[study.uid] = study.images

    def study(self, uid: str) -> Iterator[SeriesResult]:
        """The CT series of one study.

        Raises:
            PacsError: the archive has no such study.
            PacsUnavailableError: the archive is away.
        """
        listed = self._archive.series(uid)
        if not listed:
            raise PacsError(f"{self._archive.url}: has no study {uid}")
        yield from self._results(listed)

    def forever(self, interval: float, since: str | None, on_away: Callable[[str], None]) -> Iterator[SeriesResult]:
        """Go through the archive every ``interval`` seconds; a server that is away is asked again at the next poll."""
        while True:
            try:
                yield from self.all(since)
            except PacsUnavailableError as error:
                on_away(str(error))
            time.sleep(interval)

    def _results(self, listed: list[SeriesEntry]) -> Iterator[SeriesResult]:
        present = {each.uid for each in listed}
        for series in listed:
            if series.modality not in {"CT", ""}:
                continue
            if series.images is not None and self._has_report(series, series.images, present):
                yield SeriesResult(series.uid, State.KNOWN)
            elif (result := self._result(series, present)) is not None:
                yield result

    def _result(self, series: SeriesEntry, present: set[str]) -> SeriesResult | None:
        """What became of a series; None where it has no image, or the archive tells no modality and none is CT's."""
        seen = self._seen.setdefault((series.study, series.uid), _Seen())
        if seen.left_out:
            seen.left_out -= 1
            return SeriesResult(series.uid, State.POSTPONED)
        try:
            instances = self._archive.instances(series)
            images = [each for each in instances if "Image Storage" in UID(each.sop_class).name]
            if not any(series.modality or each.is_ct for each in images):
                return None
            if self._has_report(series, len(instances), present):
                return SeriesResult(series.uid, State.KNOWN)
            if self._settle and seen.images != len(instances):
                seen.images = len(instances)
                return SeriesResult(series.uid, State.GROWING)
            summary = self._processor.process(series, instances)
        except (PacsUnavailableError, PacsRefusedError) as error:
            seen.left_out, seen.next_pause = seen.next_pause, min(2 * seen.next_pause, _MOST_POLLS_LEFT_OUT)
            return SeriesResult(series.uid or f"a series of {series.study}", State.POSTPONED, reason=str(error))
        del self._seen[series.study, series.uid]
        return SeriesResult(series.uid, State.REPORTED, summary)

    def _has_report(self, series: SeriesEntry, images: int, present: set[str]) -> bool:
        return self._processor.report_series(series.uid, images) in present
