"""From files to predictions: read, crop, check the input, run the network, calibrate."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from os import PathLike
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np

from groundglass.errors import ImageError, NotASliceError, PredictionError
from groundglass.files import name_some
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.crop import lesion_mask
from groundglass.imaging.read import Scaled, read_slices
from groundglass.imaging.slice import CTSlice, Origin, Patient
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, Source
from groundglass.inference.bundle import Bundle
from groundglass.inference.calibration import COVID, MUCH_OPACITY, NON_COVID
from groundglass.inference.input_check import DOUBTFUL, doubts, unfit
from groundglass.inference.inputs import named_by
from groundglass.inference.prediction import Evidence, Prediction, Predictions, Status
from groundglass.inference.series import SeriesSummary, Totals

Path = str | PathLike[str]
Skip = Callable[[str, int | None], bool]
"""Given file and frame, says whether a slice needs no prediction; without frame, whether the file need not be read."""

_AHEAD = 16
"""Slices that may be read before the network has time for them."""


class Classifier:
    """A bundle, ready to classify slices. Threads may share it; to a process it goes by the bundle's path.

    Args:
        bundle: verified.
        limits: what a single input may ask for.
        keep_identifiers: predictions say who is on a slice, where the file does.
    """

    def __init__(self, bundle: Bundle, limits: Limits = DEFAULT_LIMITS, *, keep_identifiers: bool = False) -> None:
        self.bundle = bundle
        self._preprocessing, self._calibration = bundle.preprocessing, bundle.info.calibration
        self._check, self._lungs = bundle.input_check, bundle.lungs
        self._limits, self._keep_identifiers = limits, keep_identifiers

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Classifier, keep_identifiers=self._keep_identifiers), (self.bundle, self._limits)

    def predict(self, source: Any, *, hu: bool = False, evidence: bool = True) -> Prediction | Predictions:
        """Classify whatever holds slices; never a diagnosis.

        A picture that is no axial lung CT gives a prediction that is ``refused`` and says why. So does what cannot
        be read among others, as ``failed``.

        Args:
            source: a path (``str`` or ``PathLike``) of a file, folder, zip, member of one or manifest, see
                :meth:`predict_all`; an array, (H, W) or (N, H, W) from the feet to the head, grey of 8 or 16 bits, or
                (H, W, 3) that is grey; a Pillow image; a pydicom data set; a nibabel or SimpleITK image; a file's
                content as bytes or an open file; a :class:`CTSlice`; or a list or tuple of these.
            hu: arrays and Pillow images are Hounsfield units. The others say so themselves.
            evidence: keep pixels, masks and lesion map, about 0.6 MB for a slice of 512 x 512 pixels.

        Returns:
            `Prediction` of the one slice in the source; `Predictions` of several, and of every folder, list and tuple.

        Raises:
            ImageError: nothing of the source can be read, and it is no list or tuple.
            DataError: a manifest is damaged.
            TypeError: the source is nothing of the kind.
        """
        read = (
            # Nobody needs the Hounsfield units of evidence, which are most of a volume's memory.
            replace(item, hounsfield=None) if isinstance(item, CTSlice) else item
            for item in self._read(source, None, hu)
        )
        found = Predictions(_ahead(read, partial(self.classify, evidence=evidence)))
        if isinstance(source, list | tuple):
            return found
        if found and all(each.status is Status.FAILED for each in found):
            raise ImageError(found[0].file, str(found[0].reason))
        folder = isinstance(source, str | PathLike) and os.path.isdir(source)
        return found if folder or len(found) != 1 else found[0]

    def predict_series(self, source: Any, *, hu: bool = False) -> SeriesSummary:
        """What the slices of one series or volume say together; no diagnosis.

        Args:
            source: as for :meth:`predict`, or what that gave. Pictures and arrays that belong to no series are
                taken for one, in their order.
            hu: as for :meth:`predict`.

        Raises:
            ImageError: nothing of the source can be read.
            PredictionError: it holds several series.
        """
        known = isinstance(source, Prediction | Predictions)
        found = source if known else self.predict(source, hu=hu, evidence=False)
        predictions = [found] if isinstance(found, Prediction) else list(found)
        rule = self.bundle.info.series
        totals = Totals(rule, predictions)
        summaries = totals.summaries()
        if not summaries:
            place = str(source) if isinstance(source, str | PathLike) else ""
            # A UID, as only what has one is taken for a single series wherever its files lie.
            together = Totals(rule, (replace(each, series="0.0") for each in predictions))
            summaries = [replace(each, series=None, place=place or each.place) for each in together.summaries()]
        loose = totals.counts.ok - sum(each.counts.ok for each in summaries)
        if len(summaries) != 1 or loose:
            names = [each.name for each in summaries] + loose * ["a slice of none"]
            places = name_some(names) or "nothing"
            raise PredictionError(f"one series is wanted, and here are {len(names)}: {places}")
        return summaries[0]

    def _read(self, source: Any, number: int | None, hu: bool) -> Iterator[CTSlice | Prediction]:
        """The slices of an object; what is refused or cannot be read is a prediction."""
        if isinstance(source, str | PathLike):
            yield from self.read_files(named_by(source) if os.fspath(source) else [source])
        elif isinstance(source, CTSlice):
            yield source
        elif isinstance(source, list | tuple):
            for inner, each in enumerate(source):
                yield from self._read(each, inner, hu)
        else:
            from groundglass.inference.objects import from_object  # noqa: PLC0415 - not for files

            try:
                read = from_object(source, number, hu=hu)
                yield from self.read_files([read]) if isinstance(read, Source) else read
            except ImageError as error:
                yield from self._failures([error])

    def predict_all(
        self, paths: Path | Iterable[Path | Source], *, evidence: bool = False, skip: Skip = lambda *_: False
    ) -> Generator[Prediction, None, None]:
        """Classify every slice of files, folders and zips, as they are read.

        Memory holds no more than the names in one directory and the places of its DICOM files; two threads read
        and classify ahead of what is asked for. What cannot be read gives a prediction that says so, and never
        stops the rest.

        Args:
            paths: files, folders, zips, members of zips (``archive.zip!member``), manifests (``.csv``); or one.
            evidence: keep pixels and lesion map in the predictions.
            skip: leaves slices out, and files before they are read.
        """
        paths = [paths] if isinstance(paths, str | PathLike) else paths
        files: Iterator[Path | Source | Scaled]
        files = chain.from_iterable([path] if isinstance(path, Source) else named_by(path) for path in paths)
        yield from _ahead(self.read_files(files, skip), partial(self.classify, evidence=evidence))

    def classify(self, item: CTSlice | Prediction, *, evidence: bool = False) -> Prediction:
        """Classify a slice of :meth:`read_files`; many threads may do so at the same time.

        One at a time: on a CPU a batch is no faster, as it outgrows the cache, and costs memory; and what is
        said of a slice cannot depend on its neighbours.

        Args:
            item: a slice; a prediction is returned as it is.
            evidence: keep pixels and lesion map in the prediction.
        """
        if isinstance(item, Prediction):
            return item
        cropped = self._preprocessing.apply(item.pixels, self._lungs(item.pixels))
        reason = unfit(item, cropped)
        flags: tuple[str, ...] = ()
        shown = Evidence(item, cropped) if evidence else None
        if reason is None:
            flags = doubts(item, cropped)
            outputs = self.bundle.engine().run(self._preprocessing.normalise(cropped.pixels)[None])
            reason = self._check.refusal(item, cropped, outputs.embedding[0])
        if reason is not None:
            return replace(self._prediction(item.origin, Status.REFUSED, reason), flags=flags, evidence=shown)
        lungs, opacity = int(np.count_nonzero(cropped.lungs)), None
        lesion_map = None if outputs.lesion_map is None else outputs.lesion_map[0]
        if lesion_map is not None:
            opacity = round(100 * int(np.count_nonzero(lesion_mask(lesion_map, cropped))) / lungs, 2)
        probability = self._calibration.probability(float(outputs.logit[0]))
        prediction_set = self._calibration.prediction_set(probability)
        contradicted = prediction_set == (NON_COVID,) and opacity is not None and opacity > MUCH_OPACITY
        flags += ("much-opacity",) * contradicted
        if contradicted or not DOUBTFUL.isdisjoint(flags):
            prediction_set = (COVID, NON_COVID)
        spacing = item.origin.spacing
        return replace(
            self._prediction(item.origin, Status.OK),
            probability=probability,
            label=self._calibration.label(prediction_set),
            prediction_set=prediction_set,
            opacity=opacity,
            lung_cm2=None if spacing is None else round(lungs * spacing[0] * spacing[1] / 100, 2),
            flags=flags,
            evidence=shown and replace(shown, lesion_map=lesion_map),
        )

    def _prediction(self, origin: Origin, status: Status, reason: str | None = None) -> Prediction:
        return Prediction(
            status,
            origin.file,
            self.bundle.id,
            reason,
            frame=origin.frame,
            study=origin.study,
            series=origin.series,
            instance=origin.instance,
            slice_number=origin.number if origin.frame is None else origin.frame + 1,
            stack=origin.stack,
            position=origin.height,
            patient=(origin.patient or Patient()) if self._keep_identifiers else None,
        )

    def read_files(
        self, files: Iterable[Path | Source | Scaled], skip: Skip = lambda *_: False
    ) -> Generator[CTSlice | Prediction, None, None]:
        """Every slice of files as they are read, each for :meth:`classify`; what cannot be read is a prediction.

        No file stands for others: a manifest is no image. ``skip`` is that of :meth:`predict_all`.
        """
        failed: list[ImageError] = []
        with FrameDecoder() as decoder:
            for file in files:
                found = read_slices(file, self._limits, failed.append, lambda name: skip(name, None), decoder=decoder)
                for ct_slice in found:
                    yield from self._failures(failed, skip)
                    if not skip(ct_slice.origin.file, ct_slice.origin.frame):
                        yield ct_slice
                yield from self._failures(failed, skip)

    def _failures(self, failed: list[ImageError], skip: Skip = lambda *_: False) -> Iterator[Prediction]:
        """Predictions for files that could not be read, which are then forgotten."""
        for error in failed:
            if not skip(error.path, None):
                status = Status.REFUSED if isinstance(error, NotASliceError) else Status.FAILED
                yield self._prediction(Origin(error.path, ""), status, error.reason)
        failed.clear()


def _ahead(
    items: Generator[CTSlice | Prediction, None, None], work: Callable[[CTSlice | Prediction], Prediction]
) -> Iterator[Prediction]:
    """The results of work on each item, in order, made by two threads that draw one item at a time and work on it.

    So both are busy, whether drawing or working takes longer. At most `_AHEAD` results wait to be asked for; what is
    raised is raised there. Closing ends the threads and closes the items.
    """
    drawn: SimpleQueue[Future[Prediction | None]] = SimpleQueue()
    turn = Lock()

    def step() -> None:
        made: Future[Prediction | None] = Future()
        try:
            with turn:
                try:
                    item = next(items, None)
                finally:
                    drawn.put(made)
            made.set_result(None if item is None else work(item))
        except BaseException as error:  # noqa: BLE001 - raised where the results are asked for
            made.set_exception(error)

    with closing(items), ThreadPoolExecutor(2, "groundglass") as pool:
        for _ in range(_AHEAD):
            pool.submit(step)
        try:
            while (result := drawn.get().result()) is not None:
                yield result
                pool.submit(step)
        finally:
            pool.shutdown(cancel_futures=True)
